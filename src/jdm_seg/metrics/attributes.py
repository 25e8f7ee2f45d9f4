"""What the truth knows of each reference lesion besides its voxels: host tissue, pattern, or whatever a table says.

One file per case, named by its id, in one folder: ``<id>.csv``, or ``<id>.json`` holding a list of rows or an object
with such a list under ``lesions`` or ``deposits`` (as the records of ``jdm-seg synthesize``). Every text field of a row
is an attribute. A row says which lesion it describes by one of

- ``instance``: a number in ``instances/<id>.nii.gz`` beside the folder of references; without the field, the row's
  place, counted from 1;
- ``centroid_x_mm``, ``centroid_y_mm``, ``centroid_z_mm``: a point in RAS mm, as in ``lesions.csv``;
- ``centre``: a point in mm along the reference's axes, from the corner of its first voxel, as in the records.

Where a folder ``faint/`` lies beside the references, as in sets of ``jdm-seg synthesize``, each lesion has the
attribute ``contrast`` as well: ``none`` where that mask covers more than half of it, else ``seen``.

Points belong to the lesion with the nearest voxel, up to :data:`NEAR_MM` away, or the row's ``radius``.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from jdm_seg.components import LesionVoxels
from jdm_seg.errors import InputError
from jdm_seg.volume import Grid, read_volume

NEAR_MM = 5.0
"""Farthest that a point may lie from its lesion: a sheet's or ring's centre need not be in it (assumed)."""
UNKNOWN = "unknown"
_POINT = ("centroid_x_mm", "centroid_y_mm", "centroid_z_mm")
_NOT_ATTRIBUTES = ("case_id", "lesion", "instance", "role", "size_stratum", "counted", "matched", "matches", "dice")

Row = dict[str, Any]


def read_rows(folder: Path, case_id: str) -> list[Row]:
    """Read the rows of one case; none when the folder has no file for it, or a record that lists nothing.

    Raises:
        InputError: If the file holds no table.
    """
    table, record = folder / f"{case_id}.csv", folder / f"{case_id}.json"
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as stream:
            return [{key: _value(text) for key, text in row.items() if key} for row in csv.DictReader(stream)]
    if not record.is_file():
        return []
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if isinstance(content, dict):
        content = content.get("lesions", content.get("deposits", []))
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(
            record,
            expected="a list of rows, or an object with one under lesions or deposits",
            found="something else",
            remedy="write one row for each lesion",
        )
    return content


def lesion_attributes(
    reference: LesionVoxels,
    grid: Grid,
    rows: list[Row],
    instances: NDArray[Any] | None = None,
    faint: NDArray[Any] | None = None,
) -> list[dict[str, str]]:
    """Give each reference lesion the attributes of the row that describes most of it.

    Args:
        reference: Reference lesions.
        grid: Where they lie.
        rows: Of this case, see :func:`read_rows`.
        instances: Numbered voxels on the same grid, if there are any; points are not looked at then.
        faint: What nobody can see, on the same grid, if that is known.

    Returns:
        One dictionary per lesion with the same keys each; a lesion that no row describes has ``unknown`` throughout.
        Where several points fall into one lesion the row with the largest ``labelled_mm3`` counts, else the first.
    """
    keys = sorted({key for row in rows for key, value in row.items() if isinstance(value, str)} - set(_NOT_ATTRIBUTES))
    if not keys:
        return _contrast(reference, faint)
    chosen = _by_point(reference, grid, rows) if instances is None else _by_instance(reference, rows, instances)
    described: list[dict[str, str]] = [dict.fromkeys(keys, UNKNOWN) for _ in range(reference.count)]
    for lesion, place in chosen.items():
        values = {key: rows[place].get(key) for key in keys}
        described[lesion - 1] |= {key: value for key, value in values.items() if isinstance(value, str) and value}
    return [row | contrast for row, contrast in zip(described, _contrast(reference, faint), strict=True)]


def _contrast(reference: LesionVoxels, faint: NDArray[Any] | None) -> list[dict[str, str]]:
    if faint is None:
        return [{} for _ in range(reference.count)]
    hidden = faint[tuple(reference.indices.T)] > 0
    size = np.bincount(reference.numbers, minlength=reference.count + 1)[1:]
    covered = np.bincount(reference.numbers[hidden], minlength=reference.count + 1)[1:]
    return [{"contrast": "none" if more else "seen"} for more in (covered > 0.5 * size).tolist()]


def read_instances(references: Path, case_id: str, grid: Grid) -> NDArray[Any] | None:
    """Return the numbered truth beside a folder of references, canonical, shape (X, Y, Z); None if there is none.

    Raises:
        InputError: If it lies on another grid.
    """
    return _read_beside(references, "instances", case_id, grid)


def read_faint(references: Path, case_id: str, grid: Grid) -> NDArray[Any] | None:
    """Return what nobody can see of the truth, canonical, shape (X, Y, Z); None without a folder ``faint/``.

    In such a folder a case without a file has nothing that cannot be seen.

    Raises:
        InputError: If it lies on another grid.
    """
    if not (references.parent / "faint").is_dir():
        return None
    mask = _read_beside(references, "faint", case_id, grid)
    return np.zeros(grid.shape, np.uint8) if mask is None else mask


def _read_beside(references: Path, folder: str, case_id: str, grid: Grid) -> NDArray[Any] | None:
    path = references.parent / folder / f"{case_id}.nii.gz"
    if not path.is_file():
        return None
    volume = read_volume(path).to_canonical()
    if not volume.grid.matches(grid):
        raise InputError(
            path, expected=f"{folder} on the reference's grid", found="another grid", remedy="export both from one scan"
        )
    return volume.array


def _by_instance(reference: LesionVoxels, rows: list[Row], instances: NDArray[Any]) -> dict[int, int]:
    """Map lesions to the place of the row whose instance has most voxels in them."""
    place_of = {_whole(row.get("instance", place + 1)): place for place, row in enumerate(rows)}
    numbers = instances[tuple(reference.indices.T)].astype(np.int64)
    pairs, counts = np.unique(np.stack([reference.numbers, numbers])[:, numbers > 0], axis=1, return_counts=True)
    most: dict[int, tuple[int, int]] = {}
    for (lesion, number), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if number in place_of and count > most.get(lesion, (0, 0))[0]:
            most[lesion] = (count, place_of[number])
    return {lesion: place for lesion, (_, place) in most.items()}


def _by_point(reference: LesionVoxels, grid: Grid, rows: list[Row]) -> dict[int, int]:
    """Map lesions to the place of the row whose point lies in them or next to them."""
    if not reference.count:
        return {}
    tree = KDTree(reference.indices @ grid.affine[:3, :3].T + grid.affine[:3, 3])
    best: dict[int, tuple[float, int]] = {}
    for place, row in enumerate(rows):
        point = _point_of(row, grid)
        if point is None or np.isnan(point).any():
            continue
        distance, voxel = tree.query(point)
        lesion, size = int(reference.numbers[voxel]), _number(row.get("labelled_mm3"), 0.0)
        if distance > max(NEAR_MM, _number(row.get("radius"), 0.0)):
            continue
        if lesion not in best or size > best[lesion][0]:
            best[lesion] = (size, place)
    return {lesion: place for lesion, (_, place) in best.items()}


def _point_of(row: Row, grid: Grid) -> NDArray[np.float64] | None:
    if all(key in row for key in _POINT):
        return np.array([_number(row[key], np.nan) for key in _POINT])
    centre = row.get("centre")
    if not isinstance(centre, list | tuple) or len(centre) != 3:
        return None
    index = np.array(centre, dtype=np.float64) / grid.spacing - 0.5
    return np.asarray(grid.affine[:3, :3] @ index + grid.affine[:3, 3])


def _value(text: str | None) -> Any:
    """Return a number where a CSV cell holds one."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0
