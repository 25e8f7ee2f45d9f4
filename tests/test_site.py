"""The built site: whole, closed in itself, and without a link that leads nowhere, by a parser of its own."""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
import posixpath
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
import yaml

from jdm_seg import config
from jdm_seg.cli import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "jdm_seg"
OUTSIDE = re.compile(r"(?:https?:)?//|mailto:")
RESOURCES = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
VOID = {"meta", "link", "img", "input", "br", "hr", "source"}


class Parsed(HTMLParser):
    """What one page has: anchors, links, resources, and the text of its main part."""

    def __init__(self, html: str):
        super().__init__()
        self.anchors: Counter[str] = Counter()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.styles: list[str] = []
        self.text: list[str] = []
        self.tags: Counter[str] = Counter()
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        if values.get("id"):
            self.anchors[values["id"]] += 1
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in RESOURCES and RESOURCES[tag] in values:
            self.resources.append(values[RESOURCES[tag]])
        if "style" in values:
            self.styles.append(values["style"])
        if "main" in self.inside:
            self.tags[tag] += 1
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        while tag in self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "main" in self.inside:
            self.text.append(data)
        if "style" in self.inside or "script" in self.inside:
            self.styles.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def mkdocs(*words, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *map(str, words)],
        capture_output=True, text=True, cwd=cwd, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = mkdocs("build", "--strict", "--site-dir", folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Parsed]:
    found = {path.relative_to(site).as_posix(): Parsed(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(found) > 100
    return found


@pytest.fixture
def links(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "docsite"))
    import links

    return links


def test_internal_links_resolve(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if OUTSIDE.match(link):
                continue
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(path))) if path else name
            if not (site / target).is_file():
                broken.append(f"{name}: {link}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                broken.append(f"{name}: {link}: no such anchor")
    assert not broken


def test_anchors_are_unique(pages):
    twice = [f"{name}#{anchor}" for name, page in pages.items() for anchor, n in page.anchors.items() if n > 1]
    assert not twice


def test_nothing_is_asked_from_the_network(site, pages):
    """Links may lead out; scripts, styles, pictures and fonts may not come from there, nor be missing."""
    for name, page in pages.items():
        for resource in page.resources:
            assert not OUTSIDE.match(resource), f"{name} asks for {resource}"
            if not resource.startswith("data:"):
                assert (site / posixpath.dirname(name) / resource).is_file(), f"{name} asks for {resource}"
        assert not re.search(r"url\(|@import|https?://|fetch\(", " ".join(page.styles)), name
    for path in [*site.rglob("*.css"), *site.glob("*.js")]:
        assert not re.search(r"url\(|@import|https?://|fetch\(", path.read_text("utf-8")), path.name


@functools.cache
def public_names() -> list[tuple[str, str]]:
    """Return module and dotted name of every public class, function and method in the source."""
    found = []
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC.parent).with_suffix("").parts
        if (
            any(part.startswith("_") and part != "__init__" for part in parts)
            or not (path.parent / "__init__.py").exists()
        ):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text("utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            found.append((module, f"{module}.{node.name}"))
            if isinstance(node, ast.ClassDef):
                methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef)]
                found += [(module, f"{module}.{node.name}.{one}") for one in methods if not one.startswith("_")]
    return found


def test_every_public_name_has_its_place(pages):
    names = public_names()
    assert len(names) > 800
    missing = [name for module, name in names if name not in pages[f"reference/python/{module}.html"].anchors]
    assert not missing


def test_a_docstring_is_there_whole(pages):
    """One function by hand: signature, parameters, result and error, with a link for the name that it refers to."""
    page = pages["reference/python/jdm_seg.config.html"]
    assert "def instantiate(spec: dict[str, Any], group: str, **arguments: Any) -> Any" in page.words
    assert "Config group, for messages." in page.words
    assert "If a target is missing, outside ALLOWED_TARGETS, unknown, or refuses its arguments." in page.words
    assert "#jdm_seg.config.ALLOWED_TARGETS" in page.links
    assert ":data:" not in page.words


def test_every_module_is_in_the_overview(pages):
    linked = set(pages["reference/python/index.html"].links)
    assert {f"{module}.html" for module, _ in public_names() if module != "jdm_seg"} <= linked


def test_every_verb_and_option_has_its_place(pages):
    page = pages["reference/commands.html"]
    for name, verb in typer.main.get_command(app).commands.items():
        assert name in page.anchors
        for parameter in verb.params:
            assert all(option in page.words for option in parameter.opts if option.startswith("--")), (name, parameter)


def test_every_config_file_has_its_place(pages):
    page = pages["reference/configs.html"]
    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(paths) > 30
    for path in paths:
        anchor = path.relative_to(ROOT / "configs").as_posix().removesuffix(".yaml").replace("/", "-")
        assert anchor in page.anchors, path
        assert " ".join(path.read_text("utf-8").split()) in page.words, path


def keys_of(cls, prefix="") -> list[str]:
    found = []
    for field in dataclasses.fields(cls):
        found.append(prefix + field.name)
        inner = getattr(config, str(field.type).removesuffix(" | None"), None)
        if dataclasses.is_dataclass(inner):
            found += keys_of(inner, f"{prefix}{field.name}.")
    return found


def test_every_field_has_its_place_and_default(pages):
    page = pages["reference/configuration.html"]
    keys = keys_of(config.TrainConfig)
    assert {"seed", "data.patch_size", "data.synthesize.preset", "preprocess.intensity.kind"} <= set(keys)
    assert [key for key in keys if key not in page.anchors] == []
    assert "data.folds int = 5 Used where the manifest names no validation cases." in page.words
    meaning = "Voxels along x, y, z; multiples of 8. Zeros: planned from the scans and the memory."
    size = f"data.patch_size tuple[int, int, int] = [96, 96, 96] {meaning} jdm-seg train sets [64, 64, 64]"
    assert size in page.words


@pytest.fixture(scope="module")
def chromium():
    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    import chromium

    if chromium.BINARY is None:
        pytest.skip("no chromium")
    return chromium


def test_pages_work_from_disk_without_a_network(chromium, site):
    """Search finds a function and leads to it; the other theme stays on the next page; nothing is asked for."""
    with chromium.Browser(1300, 900) as browser:
        browser.open(site / "index.html")
        before = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.click("#site-theme")
        browser.until(f"getComputedStyle(document.body).backgroundColor !== '{before}'")
        browser.click("#site-search")
        browser.send("Input.insertText", text="find_overlaps")
        browser.until("document.querySelectorAll('#site-results a').length > 0")
        found = browser.run("document.querySelector('#site-results a').getAttribute('href')")
        assert found.endswith("jdm_seg.metrics.matching.html#jdm_seg.metrics.matching.find_overlaps")
        browser.click("#site-results a")
        browser.until(
            "location.hash === '#jdm_seg.metrics.matching.find_overlaps' && document.readyState === 'complete'"
        )
        browser.until(f"getComputedStyle(document.body).backgroundColor !== '{before}'")
        assert browser.run("document.querySelector(':target').textContent").startswith("find_overlaps")
        assert not [url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))]
        assert browser.errors == []


@pytest.mark.skipif("JDM_SEG_AXE" not in os.environ, reason="JDM_SEG_AXE names no axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible(chromium, site, scheme):
    with chromium.Browser(1300, 900) as browser:
        browser.prefer(scheme)
        for name in (
            "index",
            "faq",
            "reference/commands",
            "reference/configuration",
            "reference/python/jdm_seg.config",
        ):
            browser.open(site / f"{name}.html")
            browser.run(Path(os.environ["JDM_SEG_AXE"]).read_text(encoding="utf-8") + ";1")
            found = browser.run(
                "axe.run().then(r => r.violations.map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`))"
            )
            assert found == [], name


SOURCES = {"index.html": "README.md", "guides.html": "docs/README.md", "data.html": "data/README.md",
           "changelog.html": "CHANGELOG.md", "contributing.html": "CONTRIBUTING.md"}  # fmt: skip


def test_pages_read_as_on_github(pages):
    """As many headings, list items and table rows as the text has: the two dialects of Markdown are not the same."""
    sources = {name: ROOT / path for name, path in SOURCES.items()}
    sources |= {f"{one.stem}.html": one for one in ROOT.glob("docs/*.md") if one.name != "README.md"}
    for name, source in sources.items():
        text = re.sub(r"^ *```.*?^ *```", "", source.read_text("utf-8"), flags=re.S | re.M)
        tags = pages[name].tags
        assert tags["li"] == len(re.findall(r"^ *(?:[-*]|\d+\.) ", text, flags=re.M)), name
        rows = len(re.findall(r"^\|", text, flags=re.M)) - len(re.findall(r"^\|[-| :]+\|$", text, flags=re.M))
        assert tags["tr"] == rows, name
        assert sum(tags[f"h{n}"] for n in range(1, 5)) == len(re.findall(r"^#+ ", text, flags=re.M)), name


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("docs/train.md", "train.md", "../configs", "reference/configs.md"),
        ("docs/x.md", "x.md", "../configs/hydra/launcher/slurm.yaml", "reference/configs.md#hydra-launcher-slurm"),
        ("docs/add-network.md", "add-network.md", "../src/jdm_seg/losses.py", "reference/python/jdm_seg.losses.md"),
        ("docs/faq.md", "faq.md", "../CITATION.cff", "files/CITATION.cff.md"),
        ("docs/faq.md", "faq.md", "../data/README.md#dicom", "data.md#dicom"),
        ("README.md", "index.md", "docs/report.png", "report.png"),
        ("README.md", "index.md", "notebooks", "notebooks.md"),
        ("notebooks/a.py", "notebooks/a.md", "../docs/report.png", "../report.png"),
        ("README.md", "index.md", "#more", "#more"),
        ("README.md", "index.md", "https://hydra.cc", "https://hydra.cc"),
        ("README.md", "index.md", "docs/not-there.md", "docs/not-there.md"),  # the strict build names it
    ],
)  # fmt: skip
def test_links_of_the_repository_become_links_of_the_site(links, source, page, link, expected):
    block = "```\n[x](docs/faq.md)\n```"
    assert links.rewrite(f"a [b]({link}) c\n\n{block}", source, page) == f"a [b]({expected}) c\n\n{block}"


@pytest.mark.parametrize(
    ("link", "code"), [("#good", 0), ("missing.md", 1), ("good.md#missing", 1), ("/absolute.md", 1)]
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path, link, code):
    """The site's settings on a page of two lines; that a good link passes shows that the link is what fails."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "good.md").write_text(f"# Good\n\n[there]({link})\n")
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    kept = {key: site[key] for key in ("site_name", "strict", "use_directory_urls", "validation")}
    settings = tmp_path / "mkdocs.yml"
    settings.write_text(yaml.safe_dump({**kept, "plugins": [], "theme": {"name": "mkdocs", "highlightjs": False}}))
    done = mkdocs("build", "--config-file", settings, cwd=tmp_path)
    assert done.returncode == code
    assert code == 0 or (link.partition("#")[2] or link) in done.stderr


def test_a_docstring_that_refers_to_nothing_warns(monkeypatch, caplog):
    """A strict build fails on the warning."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "docsite"))
    import griffe
    import python_reference

    module = '"""See :func:`there`, :func:`~jdm_seg.a.there` and :func:`~jdm_seg.a.gone`."""\n\n\ndef there(): ...\n'
    with griffe.temporary_visited_package("jdm_seg", {"__init__.py": "", "a.py": module}) as package:
        page = python_reference.page(package["a"])
    assert "See [`there`](#jdm_seg.a.there), [`there`](#jdm_seg.a.there) and `jdm_seg.a.gone`." in page
    assert [record.getMessage() for record in caplog.records] == [
        "jdm_seg.a: a docstring refers to jdm_seg.a.gone, which is not there"
    ]
