"""JSON files of a model folder that hold a small fitted model: what it measures, its numbers, on what it was fitted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jdm_seg.errors import InputError
from jdm_seg.volume import write_text

Fitted = TypeVar("Fitted")


def write_fitted(path: Path, features: Sequence[str], values: dict[str, Any]) -> None:
    """Write features and values as JSON; arrays with six digits."""
    write_text(path, json.dumps({"features": list(features), **values}, default=_six_digits) + "\n")


def read_fitted(
    path: Path,
    features: Sequence[str],
    build: Callable[[dict[str, Any]], Fitted],
    *,
    expected: str,
    remedy: str,
) -> Fitted:
    """Read what :func:`write_fitted` wrote.

    Args:
        path: The file.
        features: What this version measures.
        build: Makes the fitted model of the file's values.
        expected: What the file should be, for the message.
        remedy: What to do if it is not.

    Raises:
        InputError: If it is not that, or of a version that measures other features.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        read = build(values)
        found = "" if values["features"] == list(features) else "other features than this version measures"
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    if found:
        raise InputError(f"{path.parent.name}/{path.name}", expected=expected, found=found, remedy=remedy)
    return read


def _six_digits(array: Any) -> list[Any]:
    rounded: list[Any] = np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(array).tolist()
    return rounded
