"""Copies a data set and mends in the copy what can be mended without guessing. Nothing is ever changed in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.checks.files import check_header
from jdm_seg.checks.labels import check_grid, check_values
from jdm_seg.errors import InputError
from jdm_seg.layouts.files import Entry
from jdm_seg.placement import place_on_grid
from jdm_seg.volume import NIFTI_SUFFIXES, Volume, read_volume, write_volume


def fix_copy(root: Path, entries: Sequence[Entry], out: Path) -> list[str]:
    """Copy a file or a folder and mend the copy.

    Mended are: masks whose grid differs from the scan's by rounding or by the order of axes, masks of one other value
    than 1, masks stored as floating-point numbers, scans with two geometries (the sform is kept), and scans stored
    with a slope and an intercept.

    Args:
        root: What was checked.
        entries: Its cases.
        out: New folder; gets every file of ``root`` under its own name.

    Returns:
        What was done, one sentence a file.

    Raises:
        InputError: If ``out`` exists with something in it, or lies inside ``root``.
    """
    base = root if root.is_dir() else root.parent
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, expected="a new folder", found="one with files in it", remedy="choose another for --fix")
    if root.is_dir() and out.resolve().is_relative_to(root.resolve()):
        raise InputError(out, expected="a folder outside the data", found="one inside", remedy="choose another")
    mended: dict[Path, str] = {}
    for entry in entries:
        scan = _fix_scan(entry, base, out, mended)
        _fix_label(entry, scan, base, out, mended)
    for file in _files(root):
        target = out / file.relative_to(base)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return [f"{path.as_posix()}: {text}." for path, text in sorted(mended.items())]


def _fix_scan(entry: Entry, base: Path, out: Path, mended: dict[Path, str]) -> Volume | None:
    """Mend one scan; return it as it was read, None where it cannot be read."""
    path = entry.image
    if path is None or not path.name.lower().endswith(NIFTI_SUFFIXES):
        return None
    try:
        scan = read_volume(path)
    except (InputError, OSError):
        return None
    codes = {finding.code for finding in check_header(scan, entry.case_id)}
    texts = {
        "two_geometries": "the qform was made equal to the sform",
        "stored_scaled": "slope and intercept were applied to the stored values",
    }
    done = [text for code, text in texts.items() if code in codes]
    place = _place(path, base)
    if "two_geometries" in codes:
        # without its header, both forms are written from the one affine
        scan = Volume(scan.array, scan.affine, scan.name)
    if done and place is not None:
        write_volume(out / place, scan.array, scan)
        mended[place] = ", ".join(done)
    return scan


def _fix_label(entry: Entry, scan: Volume | None, base: Path, out: Path, mended: dict[Path, str]) -> None:
    path = entry.label
    if path is None or not path.name.lower().endswith(NIFTI_SUFFIXES):
        return
    try:
        label = read_volume(path)
    except (InputError, OSError):
        return
    findings = check_values(label.array, entry.case_id)
    if scan is not None:
        findings += check_grid(label.grid, scan.grid, entry.case_id)
    if any(finding.severity == "error" for finding in findings):
        return
    codes = {finding.code for finding in findings}
    done = []
    array: NDArray[Any] = label.array
    like = label
    if scan is not None and "grid_axes" in codes:
        array, like = place_on_grid(label, scan.grid), scan
        done.append("it was stored along the scan's axes")
    if scan is not None and "grid_rounding" in codes:
        like = scan
        done.append("it got the scan's header")
    if "label_value" in codes:
        done.append(f"{array.max():g} became 1")
        array = (array > 0).astype(np.uint8)
    if "float_label" in codes:
        done.append("it was stored as whole numbers")
        array = array.astype(np.uint8 if array.max() <= 255 else np.uint16)
    place = _place(path, base)
    if done and place is not None:
        write_volume(out / place, array, like)
        mended[place] = ", ".join(done)


def _place(path: Path, base: Path) -> Path | None:
    """Return where a file goes below the copy; None for one outside the data, which is left alone."""
    try:
        return path.resolve().relative_to(base.resolve())
    except ValueError:
        return None


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names)
