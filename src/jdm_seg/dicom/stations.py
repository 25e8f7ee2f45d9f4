"""Stations of one body, each scanned by itself, to one volume on one grid.

CT of a long body may come as several series or acquisitions along the table, whole-body MR always does. Stations share
a frame of reference, so their coordinates say how they lie; nothing is registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from jdm_seg.dicom.series import Series
from jdm_seg.errors import InputError
from jdm_seg.volume import Volume

_SAME_GRID = 0.01
"""Part of a voxel by which a station may lie off the common grid and still be copied, not interpolated."""
_MAX_OVERLAP = 0.6
"""Stations that share more of the shorter one are two scans of one part of the body (assumed)."""
_UNLIKE = 1.25
"""Ratio of the mean signal of two stations in their overlap from which it is said (assumed)."""
_AIR_HU = -1024.0


def are_stations(first: Series, second: Series) -> str | None:
    """Tell why two series are no stations of one body, or None if they are."""
    if first.study != second.study:
        return "they are of different studies"
    if not first.frame_of_reference or first.frame_of_reference != second.frame_of_reference:
        return "they do not state one frame of reference"
    if first.modality != second.modality:
        return "they are of different modalities"
    one, other = first.frames[0], second.frames[0]
    if one.orientation is None or other.orientation is None or first.extent_mm is None or second.extent_mm is None:
        return "a slice states no place"
    if np.abs(one.directions - other.directions).max() > 1e-3:
        return "their slices run in different directions"
    return None


def joining_axis(stations: Sequence[Series]) -> int:
    """Return the image axis (row, column or slice direction) along which stations follow each other.

    Axial stations follow along the slices, coronal and sagittal ones of a whole-body MR within the image plane.
    """
    centres = np.array([one.box_mm.mean(axis=1) for one in stations])
    return int(np.ptp(centres, axis=0).argmax())


def gap_mm(first: Series, second: Series, axis: int) -> float:
    """Return the distance between two stations along an axis, negative where they overlap."""
    low, high = sorted([first.box_mm[axis].tolist(), second.box_mm[axis].tolist()])
    return float(high[0] - min(low[1], high[1]))


def lie_end_to_end(first: Series, second: Series) -> bool:
    """Tell whether two stations follow each other: along one axis they touch or overlap in part, across it mostly."""
    axis = joining_axis([first, second])
    sides = np.minimum(*(one.box_mm[:, 1] - one.box_mm[:, 0] for one in (first, second)))
    overlaps = np.array([-gap_mm(first, second, n) for n in range(3)])
    across = [n for n in range(3) if n != axis]
    touch = -_slack(first, second, axis) <= overlaps[axis] <= _MAX_OVERLAP * sides[axis]
    return bool(touch and (overlaps[across] >= _MAX_OVERLAP * sides[across]).all())


def _slack(first: Series, second: Series, axis: int) -> float:
    """Two scans may begin half a voxel after the other's end."""
    return max(one.spacing[axis] if one.spacing else 0.0 for one in (first, second)) / 2


def check_stations(stations: Sequence[Series], where: str) -> None:
    """Raise unless series are stations of one body in one chain.

    Raises:
        InputError: Saying which two do not fit, and why.
    """
    for one in stations:
        if one.extent_mm is None or one.spacing is None:
            raise _not_stations(where, f"{one.name} states no place or voxel size")
    axis = joining_axis(stations)
    ordered = sorted(stations, key=lambda one: float(one.box_mm[axis, 0]))
    for first, second in pairwise(ordered):
        reason = are_stations(first, second)
        gap = gap_mm(first, second, axis)
        if reason is None and gap > _slack(first, second, axis):
            reason = f"{gap:.0f} mm lie between them"
        if reason is not None:
            raise _not_stations(where, f"{first.name} and {second.name}: {reason}")


def _not_stations(where: str, found: str) -> InputError:
    return InputError(
        where,
        expected="stations of one body",
        found=found,
        remedy="choose one series, or those that belong together, with --series",
    )


def join_stations(volumes: Sequence[Volume], modality: str) -> tuple[Volume, list[str]]:
    """Bring stations onto one grid and blend them where they overlap.

    The grid has the directions of the stations and the smallest of their voxel sizes along each axis, and begins where
    the first does. A station that lies on it is copied; another is interpolated linearly. In the overlap the weight of
    a station falls linearly towards its end. Where no station is, there is air (CT, -1024 HU) or nothing (0).

    Args:
        volumes: At least two, of one orientation.
        modality: ``CT`` or another.

    Returns:
        The volume, and notes on interpolation and on stations of unlike brightness.
    """
    affine, shape = _common_grid(volumes)
    spans = [_span(one, affine) for one in volumes]
    axis = int(np.ptp([span.mean(axis=1) for span in spans], axis=0).argmax())
    order = sorted(range(len(volumes)), key=lambda n: float(spans[n][axis, 0]))
    ordered, ends = [volumes[n] for n in order], [spans[n][axis] for n in order]
    total, cover = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    interpolated = 0
    for number, one in enumerate(ordered):
        values, inside, box, exact = _on_grid(one, affine, shape)
        interpolated += not exact
        weight = np.moveaxis(_ramp(number, ends, np.arange(shape[axis])[box[axis]])[:, None, None], 0, axis)
        total[box] += values * (inside * weight)
        cover[box] += inside * weight
    np.divide(total, cover, out=total, where=cover > 0)
    total[cover == 0] = _AIR_HU if modality == "CT" else 0.0
    whole = modality == "CT" and all(one.array.dtype.kind == "i" for one in volumes)
    joined = np.rint(total).astype(np.int16 if np.abs(total).max() <= np.iinfo(np.int16).max else np.int32)
    notes = [f"{len(volumes)} stations were joined to one scan and blended where they overlap."]
    if interpolated:
        notes.append(f"{interpolated} of {len(volumes)} stations were interpolated to the common grid.")
    if modality != "CT":
        notes += _unlike(ordered, ends, axis)
    return Volume(joined if whole else total, affine, volumes[0].name), notes


def _span(volume: Volume, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first and last voxel centre of a volume in voxels of a grid, shape (3, 2)."""
    to_grid = np.linalg.inv(affine) @ volume.affine
    first = to_grid[:3, 3]
    return np.stack([first, first + to_grid[:3, :3] @ (np.array(volume.array.shape) - 1)], axis=1)


def _common_grid(volumes: Sequence[Volume]) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    first = volumes[0].affine
    spacing = np.min([one.spacing for one in volumes], axis=0)
    affine = np.eye(4)
    affine[:3, :3] = first[:3, :3] / np.linalg.norm(first[:3, :3], axis=0) * spacing
    affine[:3, 3] = first[:3, 3]
    # whole voxels from the first station's corner: it, and every station on the same raster, is copied unchanged
    spans = np.array([_span(one, affine) for one in volumes])
    low = np.floor(spans.min(axis=(0, 2)) + _SAME_GRID)
    affine[:3, 3] += affine[:3, :3] @ low
    x, y, z = (np.ceil(spans.max(axis=(0, 2)) - low - _SAME_GRID).astype(int) + 1).tolist()
    return affine, (x, y, z)


def _on_grid(
    volume: Volume, affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[slice, slice, slice], bool]:
    """Return a station's values on the common grid, where they are valid, their box, and whether they were copied."""
    to_grid = np.linalg.inv(affine) @ volume.affine
    offset = to_grid[:3, 3]
    size = np.array(volume.array.shape)
    drift = np.abs((to_grid[:3, :3] - np.eye(3)) @ (size - 1)).max()
    if drift < _SAME_GRID and np.abs(offset - np.rint(offset)).max() < _SAME_GRID:
        start = np.rint(offset).astype(int)
        stop = start + size
        box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
        return volume.array.astype(np.float32), np.ones((1, 1, 1), np.bool_), box, True
    corners = np.array([offset, to_grid[:3, :3] @ (size - 1) + offset])
    start = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    stop = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, shape)
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    back = np.linalg.inv(to_grid)
    values = np.zeros(tuple(stop - start), np.float32)
    inside = np.zeros(values.shape, np.bool_)
    x, y = np.meshgrid(np.arange(start[0], stop[0]), np.arange(start[1], stop[1]), indexing="ij")
    for n, z in enumerate(range(start[2], stop[2])):  # slice by slice: coordinates of all voxels would not fit
        at = np.einsum("ij,jxy->ixy", back[:3, :3], np.stack([x, y, np.full_like(x, z)])) + back[:3, 3, None, None]
        inside[..., n] = ((at > -_SAME_GRID) & (at < (size - 1 + _SAME_GRID)[:, None, None])).all(axis=0)
        values[..., n] = map_coordinates(volume.array, at, output=np.float32, order=1, mode="nearest")
    return values, inside, box, False


def _ramp(number: int, ends: Sequence[NDArray[np.float64]], place: NDArray[Any]) -> NDArray[np.float32]:
    """Return a station's weight at places along the joining axis: 1, and falling linearly where a neighbour overlaps.

    Args:
        number: Of the station.
        ends: First and last voxel of each station, in order.
        place: Voxels along the axis.
    """
    low, high = ends[number]
    before = ends[number - 1][1] if number else low
    after = ends[number + 1][0] if number + 1 < len(ends) else high
    rise = (place - low + 1) / max(before - low + 2, 1)
    fall = (high - place + 1) / max(high - after + 2, 1)
    # never 0 inside the station: where its neighbour has no voxel it stands alone
    weight: NDArray[np.float32] = np.clip(np.minimum(rise, fall), 1e-3, 1.0).astype(np.float32)
    return weight


def _unlike(ordered: Sequence[Volume], ends: Sequence[NDArray[np.float64]], axis: int) -> list[str]:
    """Name neighbours whose brightness differs where they overlap: coils and prescans differ between MR stations."""
    notes = []
    for n in range(len(ordered) - 1):
        (low, stop), (start, high) = ends[n], ends[n + 1]
        if stop <= start:
            continue
        means = []
        for one, first, last in ((ordered[n], low, stop), (ordered[n + 1], start, high)):
            scale = (one.array.shape[axis] - 1) / max(last - first, 1e-6)
            part = slice(int((start - first) * scale), int((stop - first) * scale) + 1)
            means.append(float(np.take(one.array, np.arange(one.array.shape[axis])[part], axis=axis).mean()))
        if min(means) > 0 and max(means) / min(means) > _UNLIKE:
            notes.append(
                f"Stations {n + 1} and {n + 2} differ in brightness by a factor of {max(means) / min(means):.2f} where "
                "they overlap; they were blended as they are."
            )
    return notes
