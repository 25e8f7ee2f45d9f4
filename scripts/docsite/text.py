"""Docstrings, signatures and values as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

ROLE = re.compile(r":(?:func|class|data|mod|meth|attr):`~?([\w.]+)`")
_CODE = re.compile(r"(``.+?``|`[^`]+`)", flags=re.S)
Resolve = Callable[[str], str]
"""Gives the Markdown link, or the code, for a name that a docstring refers to."""


def escape(text: str) -> str:
    """Escape what Markdown would take for markup outside of code spans: docstrings are plain text with code in them."""
    pieces = _CODE.split(text)
    return "".join(
        piece if place % 2 else re.sub(r"([*_\[\]\\])", r"\\\1", piece.replace("&", "&amp;").replace("<", "&lt;"))
        for place, piece in enumerate(pieces)
    )


def prose(text: str, resolve: Resolve) -> str:
    """Turn the text of a docstring into Markdown; what it refers to becomes a link."""
    pieces = ROLE.split(_spaced(text))
    return "".join(resolve(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces))


def line(text: str, resolve: Resolve) -> str:
    """The same on one line, for the cell of a table."""
    return prose(" ".join(text.split()), resolve).replace("|", "&#124;")


def items(text: str, resolve: Resolve) -> str:
    """Return the entries of a section such as ``Terms:`` as a list; what is indented goes on with the entry above."""
    entries: list[str] = []
    for row in text.splitlines():
        if entries and (row.startswith(" ") or not row.strip()):
            entries[-1] += f" {row.strip()}"
        else:
            entries.append(row)
    return "\n".join(f"- {line(entry, resolve)}" for entry in entries)


def _spaced(text: str) -> str:
    """Put the blank line before a list that Markdown wants and a docstring may lack."""
    return re.sub(r"^(?!- |  )(.*\S.*)\n(?=- )", r"\1\n\n", text, flags=re.M)


def code(value: object) -> str:
    """Return a value as a code span; a bar in it does not part the cells of a table."""
    text = str(value)
    mark = "``" if "`" in text else "`"
    return f"{mark}{text}{mark}"


def fence(text: str, language: str = "") -> str:
    """Return a code block; longer marks where the text has three backticks itself."""
    mark = "````" if "```" in text else "```"
    return f"{mark}{language}\n{text.rstrip()}\n{mark}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or nothing without rows."""
    rows = list(rows)
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
