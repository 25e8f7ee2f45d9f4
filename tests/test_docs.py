"""README, guides and help texts, held true: every command parses as the program would parse it.

Every fenced block is typed line by line in a folder of its own by test_guides.py; here its commands, and those in
sentences, are parsed by the command line itself, and overrides of ``train`` are composed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from jdm_seg.cli import app
from jdm_seg.config import compose

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"])


class Command(NamedTuple):
    page: str
    line: int
    words: tuple[str, ...]
    block: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def commands_of(page: Path) -> Iterator[Command]:
    """Yield what stands in the fenced blocks of a page: lines that begin with jdm-seg, joined where they go on."""
    fenced, block = False, 0
    pending, begin = "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            fenced, block = not fenced, number
        elif fenced and (pending or line.startswith("jdm-seg ")):
            begin = begin if pending else number
            pending += line.removesuffix("\\") + " "
            if not line.endswith("\\"):
                yield Command(page.name, begin, tuple(shlex.split(pending, comments=True))[1:], block)
                pending = ""


def inline_commands_of(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.findall(r"`jdm-seg ([^`]+)`", text)


ROOT_COMMAND = typer.main.get_command(app)
VERBS = dict(ROOT_COMMAND.commands)
COMMANDS = [command for page in PAGES for command in commands_of(page)]
INLINE = [(page.name, words) for page in PAGES for words in inline_commands_of(page)]
EXAMPLES = [
    (verb, example)
    for verb, command in VERBS.items()
    for example in re.findall(r"jdm-seg .*?(?=\. [A-Z]|;|\.?$)", command.epilog or "")
]


def assert_parses(words: tuple[str, ...]) -> None:
    """Parse as the program does, without running it; wrong usage raises."""
    verb, *arguments = words
    assert verb in VERBS, f"no verb {verb}"
    VERBS[verb].make_context(verb, list(arguments))
    if verb == "train":
        composed = [word for word in arguments if not word.startswith(("-", "hydra")) and word != "job"]
        if "-m" in arguments:  # the first value of a sweep stands for all
            composed = [re.sub(r"=([^\[,]+),.*", r"=\1", word) for word in composed]
        compose(composed)


def assert_options_exist(text: str) -> None:
    words = text.split()
    if not re.fullmatch(r"[a-z]+", words[0]):
        return  # jdm-seg --version, jdm-seg VERB
    assert words[0] in VERBS, f"no verb {words[0]}"
    known = {name for option in VERBS[words[0]].params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    for word in words[1:]:
        if word.startswith("--") and words[0] != "train":
            assert re.split(r"[=.,;|]", word)[0] in known, f"jdm-seg {words[0]} has no {word}"


def test_there_is_something_to_check():
    assert len(COMMANDS) > 40
    assert len(EXAMPLES) >= len(VERBS)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_in_a_block_parses(command):
    assert_parses(command.words)


@pytest.mark.parametrize(("page", "text"), INLINE)
def test_every_command_in_a_sentence_exists(page, text):
    assert_options_exist(text)


@pytest.mark.parametrize(("verb", "example"), EXAMPLES)
def test_every_example_in_help_parses(verb, example):
    words = tuple(shlex.split(example)[1:])
    assert words[0] == verb
    assert_parses(words)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"jdm-seg {verb}" in text


def test_the_checks_can_fail():
    """A page with a misspelt verb, option, override or a missing argument would be found."""
    wrong = [
        ("predikt", "a", "b"),
        ("predict", "a", "b", "--modell", "x"),
        ("predict", "a"),
        ("train", "trainer.max_epoch=3"),
    ]
    for words in wrong:
        with pytest.raises((AssertionError, Exception), match=r"no verb|[Nn]o such option|[Mm]issing|max_epoch"):
            assert_parses(words)
    with pytest.raises(AssertionError, match="has no --fixx"):
        assert_options_exist("check data/ --fixx mended/")


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a page's headings get on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name} links to {target}"


def test_every_guide_is_listed():
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"}


def test_scripts_and_targets_that_pages_name_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?:python |`)(scripts/\w+\.py)", text):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"
        for target in re.findall(r"^make (\w+)", text, flags=re.M) + re.findall(r"`make (\w+)`", text):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"
