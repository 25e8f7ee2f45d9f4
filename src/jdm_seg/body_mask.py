"""Where the body is, roughly: to crop before a window slides, and to tell how deep a lesion lies.

Two answers, because the two uses fail in opposite ways. :func:`locate_body` crops: it may keep air, blanket or table,
but never loses skin, since superficial plaques sit 1 to 3 mm under it. :func:`outline_body` measures: its edge is the
skin itself, at full resolution.

Arrays are canonical (RAS) or at least have their axial planes across axis 2, where enclosed air (lung, bowel) is
filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.cases import as_modality
from jdm_seg.volume import Spacing

BODY_MIN_HU = -300
"""Half-way between air and fat, so a blurred skin line is found where it is."""
COARSE_MM = 3.5
"""Voxel size of the search: a child's finger is still two voxels wide."""
MARGIN_MM = {"ct": 5.0, "stir": 10.0}
"""Added around the body. STIR more: suppressed fat is as dark as air, so its skin line is the least certain."""
_SHEET_MM = 8.0
"""What is nowhere thicker than this ..."""
_SHEET_LENGTH_MM = 120.0
"""... and at least this long is a table, a sheet or a tube; a finger cut off by the field of view is shorter."""
_FAT_MM = 12.0
"""Widest layer of suppressed fat that is bridged on STIR; more is filled where skin closes around it."""
_MIN_PART_MM3 = 1000.0
"""Smaller parts are noise in air."""

_NEAR_SKIN, _INSIDE = np.uint8(1), np.uint8(2)

_Box = tuple[slice, slice, slice]


def bounding_box(mask: NDArray[Any], margin_vox: int | Sequence[int] = 0) -> _Box:
    """Return the smallest box that holds the foreground.

    Args:
        mask: Any array of shape (X, Y, Z); non-zero is foreground.
        margin_vox: Voxels added on each side, for all axes or per axis; the box stays inside the array.

    Returns:
        Three slices. They are empty, ``slice(0, 0)``, when there is no foreground: the caller decides what that means.
    """
    margins = (margin_vox,) * 3 if isinstance(margin_vox, int) else margin_vox
    view = np.asarray(mask)
    occupied = view if view.dtype == bool else view != 0
    box = []
    for axis in range(3):
        hits = np.flatnonzero(occupied.any(axis=tuple(other for other in range(3) if other != axis)))
        if hits.size == 0:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        low, high = int(hits[0]) - margins[axis], int(hits[-1]) + 1 + margins[axis]
        box.append(slice(max(0, low), min(view.shape[axis], high)))
    return box[0], box[1], box[2]


@dataclass(frozen=True)
class CoarseMask:
    """A mask that is known on every few voxels; each sample stands for the voxels behind it.

    A whole-body mask takes 5 MB this way instead of 200.

    Attributes:
        samples: At the voxels 0, stride, 2 stride, ... of each axis, bool.
        strides: Voxels from sample to sample along each axis.
        shape: Of the scan, in voxels.
    """

    samples: NDArray[np.bool_]
    strides: tuple[int, int, int]
    shape: tuple[int, int, int]

    def box(self, margin_vox: int | Sequence[int] = 0) -> _Box:
        """Return the smallest box of voxels that holds the mask; see :func:`bounding_box`."""
        margins = (margin_vox,) * 3 if isinstance(margin_vox, int) else margin_vox
        box = [
            slice(max(0, s.start * step - margin), min(size, s.stop * step + margin)) if s.stop else slice(0, 0)
            for s, step, size, margin in zip(bounding_box(self.samples), self.strides, self.shape, margins, strict=True)
        ]
        return box[0], box[1], box[2]

    def at(self, x: NDArray[np.intp], y: NDArray[np.intp], z: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return the mask at voxel indices of each axis, shape (len(x), len(y), len(z))."""
        i, j, k = (at // step for at, step in zip((x, y, z), self.strides, strict=True))
        part: NDArray[np.bool_] = self.samples[np.ix_(i, j, k)]
        return part


def locate_body(array: NDArray[Any], spacing: Spacing, modality: str, *, margin_mm: float | None = None) -> CoarseMask:
    """Find everything that may be body, with a margin.

    The search runs on every few voxels (about 3.5 mm), which keeps it to a second or two for a whole-body scan. Parts
    that are thin everywhere and long (a table top, a sheet, a tube) and specks are dropped when nothing joins them to
    the body; every other part stays, so a second leg or a free-lying hand is kept.

    Args:
        array: Scan, shape (X, Y, Z): HU for ``ct``, any unit for ``stir``.
        spacing: Voxel size in mm.
        modality: ``ct`` or ``stir``.
        margin_mm: Dilation of the result; default :data:`MARGIN_MM`.

    Returns:
        The mask. All true when no body is found, so that a crop to it loses nothing.
    """
    margin = MARGIN_MM[as_modality(modality)] if margin_mm is None else margin_mm
    strides, coarse_spacing, body = _coarse_body(array, spacing, modality)
    if body is None:
        body = np.ones([-(-n // step) for n, step in zip(array.shape, strides, strict=True)], dtype=bool)
    else:
        # one coarse voxel more than the margin covers what lies between two samples
        body = _dilate_box(body, coarse_spacing, [margin + step for step in coarse_spacing])
    x, y, z = array.shape
    return CoarseMask(body, (strides[0], strides[1], strides[2]), (x, y, z))


def find_body(
    array: NDArray[Any], spacing: Spacing, modality: str, *, margin_mm: float | None = None
) -> NDArray[np.bool_]:
    """Return :func:`locate_body` at full resolution: a mask of the array's shape."""
    coarse = locate_body(array, spacing, modality, margin_mm=margin_mm)
    return _upsample(coarse.samples, list(coarse.strides), array)


class BodyOutline:
    """The body with its skin line at full resolution, worked out only where it is asked for.

    Indexed like a mask of the scan's shape, by three slices or whole numbers, or by three arrays of indices; a whole
    body has 200 million voxels, and nobody needs them all. See :func:`outline_body` for what is body.

    Attributes:
        shape: Of the scan, in voxels.
    """

    def __init__(self, array: NDArray[Any], spacing: Spacing, modality: str) -> None:
        """Look at every few voxels of a scan (X, Y, Z), HU for ``ct``, any unit for ``stir``."""
        self.shape = array.shape
        self._array = array
        strides, coarse_spacing, body = _coarse_body(array, spacing, as_modality(modality))
        self._strides = strides
        self._threshold: float = BODY_MIN_HU
        if body is None:
            self._zones = np.full([-(-n // step) for n, step in zip(array.shape, strides, strict=True)], _INSIDE)
            return
        # the skin lies between a sample and the next, so one step either way holds it
        self._zones = _dilate_box(body, coarse_spacing, coarse_spacing).astype(np.uint8)
        self._zones[~_dilate_box(~body, coarse_spacing, coarse_spacing)] = _INSIDE
        if modality != "ct":
            self._threshold = _threshold(_sampled(array, strides, coarse_spacing, modality), modality)

    def __getitem__(self, key: tuple[Any, Any, Any]) -> NDArray[np.bool_]:
        """Return the mask at an index, as numpy indexes an array; in the scan's order in memory."""
        values = self._array[key]
        if not any(isinstance(at, slice) for at in key):
            zones = self._zones[tuple(np.asarray(at) // step for at, step in zip(key, self._strides, strict=True))]
            return np.asarray(((values > self._threshold) & (zones >= _NEAR_SKIN)) | (zones == _INSIDE))
        x, y, z = (np.arange(n)[at] // step for n, at, step in zip(self.shape, key, self._strides, strict=True))
        if not z.ndim:
            return self._plane(values, self._zones[:, :, z][x][..., y])
        result = np.empty_like(values, dtype=bool)
        for index, level in enumerate(z.tolist()):
            if index == 0 or level != z[index - 1]:
                zones = self._zones[:, :, level][x][..., y]
            result[..., index] = self._plane(values[..., index], zones)
        return result

    def _plane(self, values: NDArray[Any], zones: NDArray[np.uint8]) -> NDArray[np.bool_]:
        body: NDArray[np.bool_] = values > self._threshold
        body &= zones >= _NEAR_SKIN
        body |= zones == _INSIDE
        return body

    def all(self) -> bool:
        """Tell whether there is no outside."""
        if (self._zones == _INSIDE).all():
            return True
        return all(bool(self[:, :, z].all()) for z in range(self.shape[2]))


Body = NDArray[np.bool_] | BodyOutline
"""A mask of the body, whole or on demand."""


def outline_body(array: NDArray[Any], spacing: Spacing, modality: str) -> NDArray[np.bool_]:
    """Find the body with its skin line at full resolution, for measuring depth.

    Voxels within one coarse step of the coarse outline are decided one by one at full resolution; farther inside,
    everything is body, whatever air it holds (but not lung under a chest wall thinner than about 8 mm). A table that
    touches the skin counts as body, so depth above it is too large. Where a part of it is enough, see
    :class:`BodyOutline`.

    Args:
        array: Scan, shape (X, Y, Z): HU for ``ct``, any unit for ``stir``.
        spacing: Voxel size in mm.
        modality: ``ct`` or ``stir``.

    Returns:
        Mask of the array's shape and memory order. All true when no body is found.
    """
    return BodyOutline(array, spacing, modality)[:, :, :]


def _coarse_body(
    array: NDArray[Any], spacing: Spacing, modality: str
) -> tuple[list[int], list[float], NDArray[np.bool_] | None]:
    """Return strides, coarse spacing and the body on the coarse grid, None when there is none."""
    strides = [max(1, round(COARSE_MM / step)) for step in spacing]
    coarse_spacing = [stride * step for stride, step in zip(strides, spacing, strict=True)]
    coarse = _sampled(array, strides, coarse_spacing, modality)
    tissue = np.ascontiguousarray(coarse > _threshold(coarse, modality))
    body = _without_sheets_and_specks(tissue, coarse_spacing, sheets=modality == "ct")
    if modality == "stir":
        # dark fat parts the bright skin from muscle: bridge it before filling
        body = _close_box(body, coarse_spacing, _FAT_MM)
    for index in range(body.shape[2]):
        if body[:, :, index].any():
            body[:, :, index] = ndimage.binary_fill_holes(body[:, :, index])
    return strides, coarse_spacing, body if body.any() else None


def _sampled(array: NDArray[Any], strides: list[int], spacing: list[float], modality: str) -> NDArray[Any]:
    """Take every few voxels; on STIR average neighbours, because suppressed fat is little brighter than noise."""
    coarse = array[tuple(slice(None, None, stride) for stride in strides)]
    if modality == "ct":
        return coarse
    size = [3 if step < 1.5 * COARSE_MM else 1 for step in spacing]
    smooth: NDArray[np.float32] = ndimage.uniform_filter(coarse.astype(np.float32), size=size, mode="nearest")
    return smooth


def _threshold(array: NDArray[Any], modality: str) -> float:
    return BODY_MIN_HU if modality == "ct" else _low_otsu(array)


def _low_otsu(array: NDArray[Any]) -> float:
    """Split air from the darkest tissue: Otsu once for bright against dark, then again within the dark part.

    A single Otsu threshold on STIR falls between fluid and muscle. Source: Otsu 1979, IEEE Trans. SMC 9:62.
    """
    values = np.asarray(array, dtype=np.float32).ravel()
    first = _otsu(values)
    dark = values[values <= first]
    return _otsu(dark) if dark.size else first


def _otsu(values: NDArray[np.float32]) -> float:
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high <= low:
        return high
    counts, edges = np.histogram(values, bins=256, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sum_below / below - (sum_below[-1] - sum_below) / above
    between = np.nan_to_num(below * above * gap**2)
    return float(edges[int(np.argmax(between)) + 1])


def _without_sheets_and_specks(tissue: NDArray[np.bool_], spacing: list[float], *, sheets: bool) -> NDArray[np.bool_]:
    parts: NDArray[np.uint32] = cc3d.connected_components(tissue, connectivity=6, binary_image=True)
    statistics = cc3d.statistics(parts)
    voxel_mm3 = float(np.prod(spacing))
    keep = np.zeros(len(statistics["voxel_counts"]), dtype=bool)
    for number in range(1, len(keep)):
        if statistics["voxel_counts"][number] * voxel_mm3 < _MIN_PART_MM3:
            continue
        box = statistics["bounding_boxes"][number]
        length = max((s.stop - s.start) * step for s, step in zip(box, spacing, strict=True))
        keep[number] = not sheets or length < _SHEET_LENGTH_MM or _thickness(parts, number, box, spacing) > _SHEET_MM
    kept: NDArray[np.bool_] = keep[parts]
    return kept


def _thickness(parts: NDArray[np.uint32], number: int, box: _Box, spacing: list[float]) -> float:
    """Return the diameter in mm of the largest ball inside one part, as far as the coarse grid tells."""
    part = parts[box] == number
    # the edge of the scan is no surface: what it cuts is thicker than it looks
    cut = [(int(s.start == 0), int(s.stop == size)) for s, size in zip(box, parts.shape, strict=True)]
    ends = [(1 - low, 1 - high) for low, high in cut]
    depth = ndimage.distance_transform_edt(np.pad(np.pad(part, cut, mode="edge"), ends), sampling=spacing)
    return 2.0 * float(depth.max()) - min(spacing)


def _dilate_box(mask: NDArray[np.bool_], spacing: list[float], reach_mm: list[float]) -> NDArray[np.bool_]:
    """Dilate by a box: separable, and larger than the ball it stands for."""
    size = [2 * int(np.ceil(reach / step - 1e-6)) + 1 for reach, step in zip(reach_mm, spacing, strict=True)]
    dilated: NDArray[np.bool_] = ndimage.maximum_filter(mask, size=size, mode="nearest")
    return dilated


def _close_box(mask: NDArray[np.bool_], spacing: list[float], reach_mm: float) -> NDArray[np.bool_]:
    reach = [reach_mm] * 3
    return ~_dilate_box(~_dilate_box(mask, spacing, reach), spacing, reach)


def _upsample(coarse: NDArray[np.bool_], strides: list[int], like: NDArray[Any]) -> NDArray[np.bool_]:
    """Give every voxel the value of the sample it lies behind (samples are the voxels 0, stride, 2 stride, ...)."""
    fine = np.empty_like(like, dtype=bool)  # in the memory order of the scan: later operations on both stay fast
    for index in range(coarse.shape[2]):
        plane = np.repeat(np.repeat(coarse[:, :, index], strides[0], axis=0), strides[1], axis=1)
        fine[:, :, index * strides[2] : (index + 1) * strides[2]] = plane[: like.shape[0], : like.shape[1], None]
    return fine
