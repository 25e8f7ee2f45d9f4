"""Sparse voxel sets: indices of the foreground, and what lies within reach of them.

Lesions fill a few thousandths of a scan. Filters over whole arrays pay for the scan; these functions pay for the
lesions. Indices are integer arrays of shape (N, 3), steps integer arrays of shape (K, 3).
"""

from __future__ import annotations

import itertools
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import COARSE_MM, Body
from jdm_seg.volume import Spacing

Indices = NDArray[np.int64]

ROUNDING_MM = 1e-3
"""Slack for distances: the voxel size of a rotated or float32 affine is 1 mm only to a few digits."""
HERE: Indices = np.zeros((1, 3), dtype=np.int64)
"""The step that stays where it is."""
EXACT_DEPTH_MM = 10.0
_BLOCK_MM = 40.0
_CHUNK = 4_000_000


def foreground_indices(mask: NDArray[Any]) -> Indices:
    """Return the indices of the non-zero voxels, shape (N, 3), in C order whatever the memory order."""
    # walk along memory, and flat: a Fortran-ordered NIfTI array is many times slower the other way
    order = np.argsort([-abs(stride) for stride in mask.strides], kind="stable")
    walked = mask.transpose(order)
    flat = np.flatnonzero(walked if walked.dtype == bool else walked != 0)
    indices: Indices = np.stack(np.unravel_index(flat, walked.shape), axis=1)[:, np.argsort(order)]
    if not np.array_equal(order, (0, 1, 2)):
        indices = indices[np.argsort(np.ravel_multi_index(tuple(indices.T), mask.shape), kind="stable")]
    return indices


def ball_steps(radii_mm: float | list[float], spacing: Spacing) -> Indices:
    """Return the steps to every voxel centre inside a ball, or inside an ellipsoid with these semi-axes.

    Args:
        radii_mm: Radius in mm, or one semi-axis per array axis.
        spacing: Voxel size in mm.
    """
    radii = np.broadcast_to(np.asarray(radii_mm, dtype=float), 3) + ROUNDING_MM
    reach = (radii // np.array(spacing)).astype(int)
    box = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))), dtype=np.int64)
    inside: Indices = box[((box * np.array(spacing) / radii) ** 2).sum(axis=1) <= 1.0]
    return inside


def paint(target: NDArray[Any], indices: Indices, steps: Indices, value: int | bool) -> None:
    """Set ``target`` to ``value`` at each index plus each step.

    Args:
        target: C-ordered array, shape (X, Y, Z), changed in place; every index plus step must lie inside.
        indices: Shape (N, 3).
        steps: Shape (K, 3).
        value: What is written.
    """
    strides = np.array([target.shape[1] * target.shape[2], target.shape[2], 1])
    flat, offsets = indices @ strides, steps @ strides
    cells = target.reshape(-1)
    at_once = max(1, _CHUNK // max(1, len(flat)))
    for start in range(0, len(offsets), at_once):
        cells[(flat[:, None] + offsets[None, start : start + at_once]).ravel()] = value


def dilation(indices: Indices, steps: Indices) -> tuple[NDArray[np.bool_], Indices]:
    """Dilate a voxel set by a set of steps that holds :data:`HERE`.

    Args:
        indices: Shape (N, 3), N at least 1.
        steps: Shape (K, 3).

    Returns:
        The dilated set as a mask, with at least one voxel of background around it, and the index that its first voxel
        has in the coordinates of ``indices`` (negative where the dilation leaves the scan).
    """
    reach = np.abs(steps).max(axis=0) + 1
    origin = indices.min(axis=0) - reach
    mask = np.zeros(indices.max(axis=0) + 1 + reach - origin, dtype=bool)
    local = indices - origin
    paint(mask, local, HERE, True)
    if len(steps) > 1:
        paint(mask, local[on_surface(mask, local)], steps, True)
    return mask, origin


def on_surface(mask: NDArray[np.bool_], indices: Indices) -> NDArray[np.bool_]:
    """Tell which foreground voxels have a background face neighbour.

    Only they can be the nearest to a point outside, so distances and dilations need no others.

    Args:
        mask: Shape (X, Y, Z), with background all around the foreground.
        indices: Its foreground, shape (N, 3).

    Returns:
        Shape (N,).
    """
    inside = np.ones(len(indices), dtype=bool)
    for axis, step in itertools.product(range(3), (-1, 1)):
        neighbour = indices.copy()
        neighbour[:, axis] += step
        inside &= mask[tuple(neighbour.T)]
    return ~inside


def distance_to_outside(mask: Body, indices: Indices, spacing: Spacing) -> NDArray[np.float64] | None:
    """Measure how far voxels lie from the nearest voxel outside a mask.

    Exact down to :data:`EXACT_DEPTH_MM`, where skin or subcutis is the question. Deeper voxels get the interpolated
    distance of a coarse grid, right to about 3 mm: an exact search that far would need a map of the whole scan.
    Shallow voxels are searched block by block, so memory stays within a few MB beside the coarse grid.

    Args:
        mask: Shape (X, Y, Z). The end of the array is not outside: a scan cuts the body there.
        indices: Voxels, shape (N, 3), at least one.
        spacing: Voxel size in mm.

    Returns:
        Distance in mm between voxel centres, shape (N,), 0 for voxels outside. None when the mask has no outside.
    """
    if mask.all():
        return None
    strides = [max(1, round(COARSE_MM / step)) for step in spacing]
    coarse_mm = np.array(strides) * spacing
    x, y, z = (slice(None, None, stride) for stride in strides)
    coarse = np.pad(mask[x, y, z], 1, mode="edge")
    rough = np.zeros(len(indices))
    if not coarse.all():
        field = edt.edt(np.ascontiguousarray(coarse), anisotropy=tuple(coarse_mm.tolist()), parallel=0)
        rough = ndimage.map_coordinates(field, (indices / strides).T + 1, order=1, mode="nearest").astype(np.float64)
    unsure_mm = float(np.linalg.norm(coarse_mm))
    reach_mm = EXACT_DEPTH_MM + unsure_mm
    shallow = np.flatnonzero(rough <= reach_mm)
    exact = _distance_near(mask, indices[shallow], spacing, np.minimum(rough[shallow] + unsure_mm, reach_mm))
    rough[shallow] = np.where(exact <= reach_mm, exact, np.maximum(rough[shallow], reach_mm))
    return rough


def _distance_near(
    mask: Body, indices: Indices, spacing: Spacing, reach_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance to the nearest voxel outside, shape (N,), exact up to ``reach_mm`` (N,)."""
    blocks = indices // np.maximum(1, np.round(_BLOCK_MM / np.array(spacing))).astype(np.int64)
    number = np.ravel_multi_index(tuple(blocks.T), tuple(blocks.max(axis=0, initial=0) + 1))
    order = np.argsort(number, kind="stable")
    distance = np.full(len(indices), np.inf)
    for rows in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else []:
        margin = np.ceil(reach_mm[rows].max() / np.array(spacing)).astype(np.int64)
        low = np.maximum(indices[rows].min(axis=0) - margin, 0)
        high = indices[rows].max(axis=0) + 1 + margin
        x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        crop = mask[x, y, z].copy(order="K")
        if not crop.all():
            field = edt.edt(crop, anisotropy=spacing, parallel=1)
            distance[rows] = field[tuple((indices[rows] - low).T)]
    return distance
