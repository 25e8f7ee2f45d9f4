"""Sparse voxel sets: indices of the foreground, and what lies within reach of them.

Lesions fill a few thousandths of a scan. Filters over whole arrays pay for the scan; these functions pay for the
lesions. Indices are integer arrays of shape (N, 3), steps integer arrays of shape (K, 3).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from jdm_seg.body_mask import COARSE_MM
from jdm_seg.volume import Spacing

Indices = NDArray[np.int64]

ROUNDING_MM = 1e-3
"""Slack for distances: the voxel size of a rotated or float32 affine is 1 mm only to a few digits."""
HERE: Indices = np.zeros((1, 3), dtype=np.int64)
"""The step that stays where it is."""
EXACT_DEPTH_MM = 10.0
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


def distance_to_outside(mask: NDArray[np.bool_], indices: Indices, spacing: Spacing) -> NDArray[np.float64] | None:
    """Measure how far voxels lie from the nearest voxel outside a mask.

    Exact down to :data:`EXACT_DEPTH_MM`, where skin or subcutis is the question. Deeper voxels get the interpolated
    distance of a coarse grid, right to about 3 mm: an exact search that far costs milliseconds a voxel.

    Args:
        mask: Shape (X, Y, Z). The end of the array is not outside: a scan cuts the body there.
        indices: Voxels, shape (N, 3), at least one.
        spacing: Voxel size in mm.

    Returns:
        Distance in mm between voxel centres, shape (N,), 0 for voxels outside. Voxels enclosed by the other ones are
        infinitely far where the exact search leaves them out, so only a minimum over a set means something.
        None when the mask has no outside.
    """
    outer = foreground_indices(_outer_surface(mask))
    if len(outer) == 0:
        return None
    strides = [max(1, round(COARSE_MM / step)) for step in spacing]
    coarse_mm = np.array(strides) * spacing
    coarse = np.pad(mask[tuple(slice(None, None, stride) for stride in strides)], 1, mode="edge")
    distance = np.zeros(len(indices))
    if not coarse.all():
        rough = ndimage.distance_transform_edt(coarse, sampling=coarse_mm)
        distance = ndimage.map_coordinates(rough, (indices / strides).T + 1, order=1, mode="nearest")
    shallow = distance <= EXACT_DEPTH_MM + np.linalg.norm(coarse_mm)
    distance[shallow] = np.inf
    padded, origin = dilation(indices, HERE)
    shallow &= on_surface(padded, indices - origin)
    distance[shallow], _ = KDTree(outer * np.array(spacing)).query(indices[shallow] * np.array(spacing))
    distance[~mask[tuple(indices.T)]] = 0.0
    return distance


def _outer_surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels outside a mask that touch it with a face."""
    touching = np.zeros_like(mask)
    for axis in range(3):
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        touching[low] |= mask[high]
        touching[high] |= mask[low]
    touching &= ~mask
    return touching
