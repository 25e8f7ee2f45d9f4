"""Landmarks of the body in the axial slices of a coarse tissue map: lungs, the fork of the legs, ankles, midline.

Terms:
    part: a separate piece of body in an axial slice; trunk, legs and free-lying arms are parts.
    arch: where the two legs become one trunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.synthesis.anatomy.tissue import OUTSIDE, Tissue
from jdm_seg.volume import Spacing

INNER = (Tissue.ORGAN, Tissue.LUNG, Tissue.GAS)
"""What only the trunk and the head hold."""

_LUNG_CM3 = 150.0
_LUNG_CM2 = 12.0
_PART_CM2 = 3.0
_TRUNK_CM2 = 120.0
_TRUNK_ALONE_CM2 = 250.0
"""Without lungs or arch in the scan, only what is larger than a thigh is a trunk (assumed)."""
_LEG_SHARE = 0.85
"""Two parts of a slice that make up so much of it are a pair of limbs; arms and a trunk are three."""
_PAIR_RATIO = 0.55
_ARM_SHARE = 0.35
"""A part beside the trunk smaller than this share of it is an arm."""
_MIDLINE_REACH_MM = 300.0
"""How far from a slice that shows the midline it is still believed."""


@dataclass(frozen=True)
class Landmarks:
    """Levels along z in voxels of the map, None where the scan does not show them.

    Attributes:
        lung: First and last slice of the lungs.
        arch: Lowest slice of the trunk, above the legs.
        ankle: Slice of the ankles.
        lung_half_width: Largest distance of lung from the middle between both, in voxels of the map along x.
    """

    lung: tuple[int, int] | None
    arch: int | None
    ankle: int | None
    lung_half_width: float = np.inf


@dataclass(frozen=True)
class Parts:
    """The separate parts of every axial slice.

    Attributes:
        tissue: Codes, shape (X, Y, Z).
        spacing: Voxel size in mm.
        labels: Number of the part in its slice, 0 outside, shape (X, Y, Z).
        areas_cm2: Area of every part of every slice.
        middles: Mean index along x of the same.
        ends: How many sides of the scan, left and right, cut the part, 0 to 2; the middle of one cut on a single side
            says nothing.
        pairs: In every slice the numbers (from 0) of two parts that are limbs of one kind, None where there are none.
    """

    tissue: NDArray[np.uint8]
    spacing: Spacing
    labels: NDArray[np.uint16]
    areas_cm2: tuple[NDArray[np.float64], ...]
    middles: tuple[NDArray[np.float64], ...]
    ends: tuple[NDArray[np.int64], ...]
    pairs: tuple[tuple[int, int] | None, ...]


def find_parts(tissue: NDArray[np.uint8], spacing: Spacing) -> Parts:
    """Part every axial slice of a tissue map (X, Y, Z) of a given voxel size in mm."""
    body = ~np.isin(tissue, OUTSIDE)
    labels = np.zeros(tissue.shape, np.uint16)
    areas, middles, ends = [], [], []
    for z in range(tissue.shape[2]):
        plane = cc3d.connected_components(np.ascontiguousarray(body[:, :, z]), connectivity=4, binary_image=True)
        counts = np.bincount(plane.ravel())
        sums = np.bincount(plane.ravel(), np.repeat(np.arange(plane.shape[0]), plane.shape[1]))
        labels[:, :, z] = plane
        areas.append(np.asarray(counts[1:] * (spacing[0] * spacing[1] / 100), dtype=np.float64))
        middles.append(np.asarray(sums[1:] / np.maximum(counts[1:], 1), dtype=np.float64))
        low, high = (np.isin(np.arange(1, len(counts)), plane[edge]) for edge in (0, -1))
        ends.append(low.astype(np.int64) + high)
    pairs = tuple(_pair(*one) for one in zip(areas, ends, strict=True))
    return Parts(tissue, spacing, labels, tuple(areas), tuple(middles), tuple(ends), pairs)


def _pair(areas: NDArray[np.float64], ends: NDArray[np.int64]) -> tuple[int, int] | None:
    if len(areas) < 2:
        return None
    first, second = (int(number) for number in np.argsort(-areas, kind="stable")[:2])
    alike = areas[second] >= max(_PAIR_RATIO * areas[first], _PART_CM2)
    if not alike or ends[first] == 1 or ends[second] == 1 or areas[first] + areas[second] < _LEG_SHARE * areas.sum():
        return None
    return first, second


def find_landmarks(parts: Parts) -> Landmarks:
    """Find the levels that the parts show."""
    lung = _lung(parts)
    arch = _arch(parts, parts.tissue.shape[2] if lung is None else lung[0])
    ankle = None if arch is None else _ankle(parts, arch)
    if lung is None:
        return Landmarks(lung, arch, ankle)
    across = np.flatnonzero((parts.tissue[:, :, lung[0] : lung[1] + 1] == Tissue.LUNG).any(axis=(1, 2)))
    return Landmarks(lung, arch, ankle, float(np.ptp(across)) / 2)


def _lung(parts: Parts) -> tuple[int, int] | None:
    x, y, z = parts.spacing
    area = (parts.tissue == Tissue.LUNG).sum(axis=(0, 1)) * (x * y / 100)
    if area.sum() * z / 10 < _LUNG_CM3:
        return None
    runs, count = ndimage.label(area > max(_LUNG_CM2, 0.1 * float(area.max())))
    if not count:
        return None
    weight = np.bincount(runs, area)[1:]
    inside = np.flatnonzero(runs == int(weight.argmax()) + 1)
    return int(inside[0]), int(inside[-1])


def _arch(parts: Parts, top: int) -> int | None:
    """Return the slice right above the highest pair that one part as large as both lies on."""
    for z in range(top - 2, -1, -1):
        pair = parts.pairs[z]
        if pair is None or parts.pairs[z + 1] is not None or not len(parts.areas_cm2[z + 1]):
            continue
        both = float(parts.areas_cm2[z][list(pair)].sum())
        if parts.areas_cm2[z + 1].max() > 0.8 * both and both > 0.4 * _TRUNK_CM2:
            return z + 1
    return None


def _ankle(parts: Parts, arch: int) -> int | None:
    """Return the narrowest level between calf and foot, None where the scan ends before the feet."""
    area = np.array([one.sum() for one in parts.areas_cm2[:arch]])
    shown = np.flatnonzero(area > _PART_CM2)
    if not len(shown) or shown[0] * parts.spacing[2] < 10:
        return None  # cut off by the end of the scan, or just so
    sole, length = int(shown[0]), arch - int(shown[0])
    best = sole + int(0.45 * length)
    for z in range(best, sole, -1):
        if area[z] < area[best]:
            best = z
        elif area[z] > 1.2 * area[best]:
            return best
    return sole + int(0.06 * length)


def find_midline(parts: Parts, marks: Landmarks) -> NDArray[np.float64]:
    """Return the midline's index along x in every slice, shape (Z,), NaN where nothing near shows it."""
    depth = parts.tissue.shape[2]
    seen = np.full(depth, np.nan)
    inner = np.flatnonzero(np.isin(parts.tissue, INNER).any(axis=(0, 1)))
    trunk = marks.arch is not None or marks.lung is not None
    for z, (areas, middles, pair) in enumerate(zip(parts.areas_cm2, parts.middles, parts.pairs, strict=True)):
        if pair is not None:
            seen[z] = middles[list(pair)].mean()
        elif len(areas) and z >= (marks.arch or 0):
            largest = int(areas.argmax())
            alone = z in inner and areas[largest] >= _TRUNK_ALONE_CM2 and parts.ends[z][largest] == 0
            if alone or (trunk and parts.ends[z][largest] != 1):
                seen[z] = middles[largest]
    known = np.flatnonzero(~np.isnan(seen))
    if not len(known):
        return seen
    # one leg bent or one arm merged moves a slice's middle: a running median does not follow
    smooth = ndimage.median_filter(seen[known], size=max(1, int(60 / parts.spacing[2]) | 1), mode="nearest")
    slices = np.arange(depth)
    result = np.interp(slices, known, smooth)
    near = np.abs(slices[:, None] - known).min(axis=1) * parts.spacing[2]
    result[near > _MIDLINE_REACH_MM] = np.nan
    return np.asarray(result, dtype=np.float64)


def find_arms(parts: Parts, marks: Landmarks) -> NDArray[np.bool_]:
    """Return the parts beside the trunk, and beside the legs what is not of the pair; shape (X, Y, Z)."""
    result = np.zeros(parts.tissue.shape, dtype=bool)
    if marks.arch is None and marks.lung is None:
        return result
    for z, areas in enumerate(parts.areas_cm2):
        above_lungs = marks.lung is not None and z > marks.lung[1]  # a shoulder's tip, or an arm raised
        if len(areas) < 2 or above_lungs:
            continue
        kept = np.flatnonzero(areas > _ARM_SHARE * areas.max())
        if marks.arch is not None and z < marks.arch:
            kept = np.array(parts.pairs[z] or (areas.argmax(),))
        is_arm = np.ones(len(areas) + 1, dtype=bool)
        is_arm[0] = is_arm[kept + 1] = False
        result[:, :, z] = is_arm[parts.labels[:, :, z]]
    return result
