"""Reading what other verbs wrote: tables and JSON files, each with an error that says what is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from jdm_seg.errors import InputError

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """Read a CSV table."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: If the file is damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, expected="JSON", found="a damaged file", remedy="make the folder again") from error
    if not isinstance(content, dict):
        raise InputError(path, expected="a JSON object", found="something else", remedy="make the folder again")
    return content


def as_float(text: str | None) -> float | None:
    """Return a number of a table; None for an empty or undefined one."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return None if value != value else value
