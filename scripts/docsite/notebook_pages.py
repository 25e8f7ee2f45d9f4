"""Notebooks as pages: text and code of their ``.py`` sources, without outputs."""

from __future__ import annotations

import re
from pathlib import Path

from text import fence

_CELL = re.compile(r"^# %%(.*)$", flags=re.M)


def page(source: Path) -> str:
    """Return the page of a notebook in jupytext's percent format."""
    _, *cells = _CELL.split(source.read_text(encoding="utf-8"))
    out = []
    for kind, body in zip(cells[::2], cells[1::2], strict=True):
        if "[markdown]" in kind:
            out.append("\n".join(re.sub(r"^# ?", "", row) for row in body.strip().splitlines()) + "\n")
        elif body.strip():
            out.append(fence(body.strip(), "python"))
    return "\n".join(out)


def title(source: Path) -> str:
    """Return the first heading of a notebook."""
    found = re.search(r"^# # (.+)$", source.read_text(encoding="utf-8"), flags=re.M)
    return found[1] if found else source.stem


def overview(sources: list[Path]) -> str:
    """Return the page that lists the notebooks; they run by `make notebooks`."""
    rows = [f"- [{title(one)}](notebooks/{one.stem}.md): `notebooks/{one.name}`" for one in sources]
    return "\n".join(["# Notebooks", "", "Text and code; `make notebooks` runs them.", "", *rows, ""])
