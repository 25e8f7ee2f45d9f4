"""Where in the body a place lies, as far as geometry tells: tissue, region, and the patient's side.

No model and no atlas: lungs, the fork of the legs and the feet are found by CT number and shape, everything else
follows from them by proportions of the body. What cannot be told that way is ``unknown``, and a scan without these
landmarks is unknown throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import Body
from jdm_seg.burden.landmarks import INNER, Landmarks, find_arms, find_landmarks, find_midline, find_parts
from jdm_seg.neighbourhood import Indices
from jdm_seg.synthesis.anatomy.tissue import Tissue
from jdm_seg.synthesis.estimate import estimate_tissue
from jdm_seg.volume import Spacing

UNKNOWN = "unknown"
REGIONS = ("head_neck", "chest", "abdomen", "hip", "trunk", "arm", "leg", "thigh", "knee", "lower_leg", "foot", UNKNOWN)
"""``trunk`` and ``leg`` stand where the landmarks for a finer name are not in the scan."""
SIDES = ("left", "right", "midline", UNKNOWN)
MAP_MM = 4.0
"""Voxels of the map are as close to this as whole multiples of the scan's come."""

_MIDLINE_MM = 10.0
_HIP_SHARE = 0.6
_CHEST_WIDTH = 1.3
"""What lies farther from the midline than this many half widths of the lungs is no chest wall (assumed)."""
_KNEE_SHARE, _KNEE_HALF = 0.56, 0.09
"""From ankle (0) to arch (1); iliac crest and knee follow usual proportions of height (assumed)."""
_GAP_MM, _JOINT_MM = 8.0, 20.0
"""A joint is a gap of up to twice the first between two bones; what lies within the second of it is periarticular."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class BodyMap:
    """A coarse map of one CT scan.

    Attributes:
        tissue: :class:`~jdm_seg.synthesis.anatomy.tissue.Tissue` codes, shape (X, Y, Z) of the map.
        strides: Voxels of the scan in one of the map, along each axis.
        spacing: Voxel size of the map in mm.
        midline: Index along x of the patient's midline in every slice of the map, NaN where unknown, shape (Z,).
        arms: Voxels of parts beside the trunk, shape (X, Y, Z).
        landmarks: Levels.
        bone_mm: Distance to bone, 0 inside, shape (X, Y, Z).
        joint_mm: Distance to a gap between two bones, shape (X, Y, Z).
    """

    tissue: NDArray[np.uint8]
    strides: tuple[int, int, int]
    spacing: Spacing
    midline: NDArray[np.float64]
    arms: NDArray[np.bool_]
    landmarks: Landmarks
    bone_mm: FloatArray
    joint_mm: FloatArray

    def side_of(self, indices: Indices) -> str:
        """Return the side of a lesion's voxels (N, 3) of the scan: one of :data:`SIDES`."""
        x, _, z = (self._at(indices)[:, axis] for axis in range(3))
        away = (x - self.midline[z]) * self.spacing[0]
        if np.isnan(away).any():
            return UNKNOWN
        mean = float(away.mean())
        if abs(mean) < _MIDLINE_MM:
            return "midline"
        return "right" if mean > 0 else "left"

    def region_of(self, indices: Indices) -> str:
        """Return the region of a lesion's voxels (N, 3) of the scan: one of :data:`REGIONS`."""
        cells = self._at(indices)
        if self.arms[tuple(cells.T)].mean() > 0.5:
            return "arm"
        lung = self.landmarks.lung
        if lung is not None and lung[0] <= np.median(cells[:, 2]) <= lung[1]:
            away = np.abs(cells[:, 0] - self.midline[cells[:, 2]])
            if np.median(away) > _CHEST_WIDTH * self.landmarks.lung_half_width:
                return "arm"  # an arm that touches the chest
        return self._level(int(np.median(cells[:, 2])))

    def is_inner(self, indices: Indices) -> bool:
        """Tell whether a lesion lies among inner organs, lung or gas of the trunk."""
        return float(np.isin(self.tissue[tuple(self._at(indices).T)], INNER).mean()) > 0.5

    def nearest(self, field: FloatArray, indices: Indices) -> float:
        """Return the smallest value of a field of the map over a lesion's voxels (N, 3) of the scan."""
        return float(field[tuple(self._at(indices).T)].min())

    def is_periarticular(self, indices: Indices) -> bool:
        """Tell whether a lesion lies near a gap between two bones; joints whose gap does not show are missed."""
        return self.nearest(self.joint_mm, indices) <= _JOINT_MM

    def _at(self, indices: Indices) -> Indices:
        result: Indices = np.minimum(indices // self.strides, np.array(self.tissue.shape) - 1)
        return result

    def _level(self, z: int) -> str:
        marks = self.landmarks
        if marks.arch is not None and z < marks.arch:
            return self._leg_level(z)
        if marks.lung is None:
            return UNKNOWN if marks.arch is None else "hip" if (z - marks.arch) * self.spacing[2] < 80 else "trunk"
        low, high = marks.lung
        if z > high + 15 / self.spacing[2]:
            return "head_neck"
        if z >= low:
            return "chest"
        if marks.arch is None:
            return "abdomen" if (low - z) * self.spacing[2] < 80 else "trunk"
        return "hip" if z < marks.arch + _HIP_SHARE * (low - marks.arch) else "abdomen"

    def _leg_level(self, z: int) -> str:
        ankle, arch = self.landmarks.ankle, self.landmarks.arch
        if arch is None or ankle is None:
            return "leg"
        if z < ankle:
            return "foot"
        along = (z - ankle) / (arch - ankle)
        if abs(along - _KNEE_SHARE) <= _KNEE_HALF:
            return "knee"
        return "thigh" if along > _KNEE_SHARE else "lower_leg"


def map_body(hu: NDArray[Any], spacing: Spacing, lesions: Indices) -> BodyMap:
    """Map a CT scan.

    Args:
        hu: CT numbers, canonical axes, shape (X, Y, Z).
        spacing: Voxel size in mm.
        lesions: Voxels that are calcinosis, shape (N, 3): a large deposit must not be taken for bone.
    """
    strides = np.maximum(1, np.round(MAP_MM / np.array(spacing))).astype(int)
    coarse = block_means(hu, strides)
    # a voxel more than the lesion: blur is not bone either
    blank = np.zeros(coarse.shape, dtype=bool)
    blank[tuple(np.minimum(lesions // strides, np.array(coarse.shape) - 1).T)] = True
    coarse[ndimage.binary_dilation(blank)] = 40.0
    step = (float(strides[0] * spacing[0]), float(strides[1] * spacing[1]), float(strides[2] * spacing[2]))
    tissue = estimate_tissue(coarse, step)
    parts = find_parts(tissue, step)
    landmarks = find_landmarks(parts)
    bone = tissue == Tissue.CORTEX
    to_bone = _distance(~bone, step)
    return BodyMap(
        tissue=tissue,
        strides=(int(strides[0]), int(strides[1]), int(strides[2])),
        spacing=step,
        midline=find_midline(parts, landmarks),
        arms=find_arms(parts, landmarks),
        landmarks=landmarks,
        bone_mm=to_bone,
        joint_mm=_distance(~_gaps(bone, to_bone, step), step),
    )


def water_equivalent_diameter_cm(
    hu: NDArray[Any], body: Body, spacing: Spacing, slices: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the diameter of the disc of water that attenuates as much as the body, for some axial slices.

    Args:
        hu: CT numbers, canonical axes, shape (X, Y, Z).
        body: Body mask, same shape.
        spacing: Voxel size in mm.
        slices: Which, shape (K,).

    Returns:
        In cm, shape (K,), too small where the field of view cuts the body; 0 without body.

    Source: AAPM report 220 (2014).
    """
    every = [max(1, int(MAP_MM // step)) for step in spacing[:2]]
    area = every[0] * every[1] * spacing[0] * spacing[1]
    water = np.array(
        [
            np.where(body[:: every[0], :: every[1], z], 1 + hu[:: every[0], :: every[1], z] / 1000.0, 0.0).sum()
            for z in slices.tolist()
        ]
    )
    return np.asarray(2 * np.sqrt(np.maximum(water, 0) * area / np.pi) / 10, dtype=np.float64)


def block_means(hu: NDArray[Any], strides: NDArray[np.int64]) -> FloatArray:
    """Average blocks of voxels of an array (X, Y, Z); the last block of an axis may be smaller.

    Works slice by slice of the result, float32: no copy of the whole array is made.
    """
    starts = [np.arange(0, n, s) for n, s in zip(hu.shape, strides, strict=True)]
    counts = [np.diff(np.append(first, n)).astype(np.float32) for first, n in zip(starts, hu.shape, strict=True)]
    result = np.empty([len(first) for first in starts], np.float32)
    area = counts[0][:, None] * counts[1]
    for index, z in enumerate(starts[2]):
        # memory order of the scan: its rows are added as they lie
        plane = hu[:, :, z].astype(np.float32)
        for other in range(z + 1, min(z + strides[2], hu.shape[2])):
            plane += hu[:, :, other]
        rows = np.add.reduceat(plane.T, starts[1], axis=0)
        sums = np.zeros((len(starts[1]), len(starts[0])), np.float32)
        for step in range(strides[0]):
            part = rows[:, step :: strides[0]]
            sums[:, : part.shape[1]] += part
        result[:, :, index] = sums.T / (area * counts[2][index])
    return result


def _distance(mask: NDArray[np.bool_], spacing: Spacing) -> FloatArray:
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    result: FloatArray = edt.edt(np.ascontiguousarray(mask), anisotropy=spacing, parallel=0)
    return result


def _gaps(bone: NDArray[np.bool_], to_bone: FloatArray, spacing: Spacing) -> NDArray[np.bool_]:
    """Return what a closing of bone by a ball adds: gaps of joints, without corners of one voxel."""
    if not bone.any():
        return bone
    closed = _distance(to_bone <= _GAP_MM, spacing) > _GAP_MM + max(spacing) / 3
    opened: NDArray[np.bool_] = ndimage.binary_opening(closed & ~bone, np.ones((2, 2, 2)))
    return opened
