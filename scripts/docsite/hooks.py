"""What MkDocs calls while it builds the site: pages of files outside ``docs``, the reference, links and search.

The pages are the files that GitHub shows, at one place each; nothing is copied by hand. `make docs` builds them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command_reference
import config_reference
import griffe
import links
import notebook_pages
import python_reference
from links import PYTHON, ROOT
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter
from text import fence

LANGUAGES = {".json": "json", ".cff": "yaml", ".toml": "toml"}


@functools.cache
def package() -> griffe.Module:
    """Read the package once a process."""
    return python_reference.load(ROOT / "src")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete what YAML cannot say: anchors as on GitHub, and the navigation of generated pages."""
    config.mdx_configs["toc"]["slugify"] = links.slug
    for section in config.nav or []:
        if isinstance(section, dict) and "Reference" in section:
            section["Reference"].append({"Python": _python_navigation()})
        if isinstance(section, dict) and "Notebooks" in section:
            section["Notebooks"] += [{notebook_pages.title(one): f"notebooks/{one.stem}.md"} for one in _notebooks()]
    return config


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.py"))


def _python_navigation() -> list[Any]:
    """Return the overview, then packages with their modules; modules outside packages stand under ``jdm_seg``."""
    top = package()
    groups: dict[str, list[Any]] = {top.name: []}
    for module in python_reference.modules_of(top):
        parts = module.path.split(".")
        inner = len(parts) > 2 or (module.is_init_module and module is not top)
        name = parts[1] if inner else top.name
        groups.setdefault(name, []).append({".".join(parts[1:]) or top.name: f"{PYTHON}/{module.path}.md"})
    return [{"All modules": f"{PYTHON}/index.md"}, *({name: pages} for name, pages in groups.items())]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages of files outside ``docs``, of whatever pages link to, and of the reference."""
    guides = files.get_file_from_path("README.md")
    if guides is not None:
        files.remove(guides)  # the index of docs/ is not the start of the site
    for path, page in links.GUIDES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for page, content in _generated():
        files.append(File.generated(config, page, content=content))
    linked = {target for file in list(files.documentation_pages()) for target in _targets(file)}
    for path in sorted(linked | set(config_reference.recorded(ROOT / "configs"))):
        page = links.page_of(path)
        if page.startswith("files/") and (ROOT / path).is_file():
            text = (ROOT / path).read_text(encoding="utf-8")
            content = f"# {path}\n\n{fence(text, LANGUAGES.get(Path(path).suffix, 'text'))}"
            files.append(File.generated(config, page, content=content))
    return files


def _generated() -> Iterator[tuple[str, str]]:
    """Yield place and text of every page that is made from code."""
    configs = ROOT / "configs"
    yield "reference/commands.md", command_reference.page()
    yield config_reference.FIELDS, config_reference.fields_page(package()["config"], configs)
    yield links.CONFIGS, config_reference.files_page(configs)
    yield f"{PYTHON}/index.md", python_reference.overview(package())
    for module in python_reference.modules_of(package()):
        yield f"{PYTHON}/{module.path}.md", python_reference.page(module)
    yield "notebooks.md", notebook_pages.overview(_notebooks())
    for source in _notebooks():
        yield f"notebooks/{source.stem}.md", notebook_pages.page(source)


def _source_of(file: File) -> str | None:
    """Return the path in the repository of the file that a page is, or None for one made from code."""
    if file.src_uri.startswith("notebooks/"):
        return file.src_uri.removesuffix(".md") + ".py"
    if file.generated_by is not None and file.abs_src_path is None:
        return None
    return Path(str(file.abs_src_path)).relative_to(ROOT).as_posix()


def _targets(file: File) -> Iterator[str]:
    source = _source_of(file)
    if source is not None:
        yield from links.targets(file.content_string, source)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files of the repository into links of the site."""
    source = _source_of(page.file)
    return markdown if source is None else links.rewrite(markdown, source, page.file.src_uri)


def on_post_build(config: MkDocsConfig) -> None:
    """Write colours of code, and the search index as a script: a page opened from disk may not read other files."""
    site = Path(config.site_dir)
    light, dark = (
        HtmlFormatter(style=style).get_style_defs(f"{root} .codehilite")
        for style, root in (("default", ":root[data-theme=light]"), ("github-dark", ":root[data-theme=dark]"))
    )
    (site / "code.css").write_text(f"{light}\n{dark}\n", encoding="utf-8")
    index = site / "search" / "search_index.json"
    text = index.read_text(encoding="utf-8")
    (site / "search" / "search_index.js").write_text(f"window.searchIndex = {text};\n", encoding="utf-8")
    for useless in (index, site / "sitemap.xml", site / "sitemap.xml.gz"):  # a sitemap wants the address of a server
        useless.unlink(missing_ok=True)
