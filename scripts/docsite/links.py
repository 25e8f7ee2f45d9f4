"""Links of pages that are read on GitHub and in the built site alike.

A guide links to a file of the repository by its path from the guide. GitHub shows that file; in the site the same link
leads to the page that is made from it: a guide, the reference of a module or of a config, or the file's plain text.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "reference/python"
CONFIGS = "reference/configs.md"
GUIDES = {
    "README.md": "index.md",
    "docs/README.md": "guides.md",
    "data/README.md": "data.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages that lie elsewhere in the site than in ``docs``, by their path in the repository."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)(#[^)\s]+)?(?=\))")
_FENCE = re.compile(r"^```.*?^```", flags=re.S | re.M)


def slug(heading: str, separator: str = "-") -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", separator)


def relative(target: str, page: str) -> str:
    """Return the path of one page of the site as another one links to it; an anchor is kept."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def page_of(path: str) -> str:
    """Return where the site shows a file or folder of the repository, as a page with its anchor.

    Args:
        path: From the root of the repository, with slashes; it exists.
    """
    if path in GUIDES:
        return GUIDES[path]
    parts = path.split("/")
    if parts[0] == "docs":
        return "/".join(parts[1:])
    if parts[0] == "notebooks":
        return "/".join([*parts[:-1], f"{Path(parts[-1]).stem}.md"])
    if path.startswith("src/jdm_seg") and (path.endswith(".py") or (ROOT / path).is_dir()):
        return f"{PYTHON}/{module_of(path)}.md"
    if parts[0] == "configs" and not path.endswith(".json"):
        return CONFIGS + ("" if len(parts) == 1 else f"#{config_anchor('/'.join(parts[1:]))}")
    return f"files/{path}.md"


def module_of(path: str) -> str:
    """Return the dotted name of a source file or folder: ``src/jdm_seg/burden/mass.py`` is jdm_seg.burden.mass."""
    return path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def config_anchor(path: str) -> str:
    """Return the anchor of a file or folder under ``configs``: ``network/unet.yaml`` is network-unet."""
    return path.removesuffix(".yaml").replace("/", "-")


def targets(markdown: str, source: str) -> Iterator[str]:
    """Yield the paths in the repository to which a page links, without anchors; code blocks are no links.

    Args:
        markdown: The page's text.
        source: Its path in the repository.
    """
    for match in _LINK.finditer(_FENCE.sub("", markdown)):
        yield _resolve(match[1], source)


def _resolve(link: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def rewrite(markdown: str, source: str, page: str) -> str:
    """Return a page's text with its links turned into links of the site.

    What is not in the repository stays as it is, so that the strict build names it.

    Args:
        markdown: The page's text.
        source: Its path in the repository.
        page: Where it lies in the site.
    """

    def replaced(match: re.Match[str]) -> str:
        path = _resolve(match[1], source)
        if not os.path.lexists(ROOT / path):
            return match[0]
        return relative(page_of(path), page) + (match[2] or "")

    # code blocks stand at the odd places
    pieces = re.split(f"({_FENCE.pattern})", markdown, flags=re.S | re.M)
    return "".join(piece if place % 2 else _LINK.sub(replaced, piece) for place, piece in enumerate(pieces))
