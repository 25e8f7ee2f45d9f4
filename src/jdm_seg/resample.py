"""Separable linear resampling between voxel lattices, centred to a few hundredths of a voxel.

Each axis is a small matrix of weights, so one function serves up- and down-sampling, any spacing, and the way back.
Going to coarser voxels the triangle widens with them, which keeps a bright voxel from falling between samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
_SLAB = 32


def axis_weights(n_in: int, n_out: int, step: float, offset: float = 0.0) -> FloatArray:
    """Return the weights that resample one axis.

    Output voxel i has its centre at input index ``(i + 0.5) * step - 0.5 + offset``. Beyond the border the border's
    value holds.

    Args:
        n_in: Input voxels.
        n_out: Output voxels.
        step: Output spacing over input spacing.
        offset: Input index at which the output's first edge lies.

    Returns:
        Shape (n_out, n_in), rows sum to 1.
    """
    at = np.clip((np.arange(n_out) + 0.5) * step - 0.5 + offset, 0, n_in - 1)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(n_in)[None]) / max(1.0, step), 0, None)
    result: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def resample(array: NDArray[Any], weights: Sequence[FloatArray]) -> FloatArray:
    """Resample a volume.

    Args:
        array: Shape (X, Y, Z), any number type.
        weights: One matrix of :func:`axis_weights` an axis.

    Returns:
        Shape (X', Y', Z'), float32.
    """
    out = np.empty([w.shape[0] for w in weights], np.float32)
    for start in range(0, out.shape[0], _SLAB):
        out[start : start + _SLAB] = resample_slab(array, weights, start, min(start + _SLAB, out.shape[0]))
    return out


def resample_slab(array: NDArray[Any], weights: Sequence[FloatArray], start: int, stop: int) -> FloatArray:
    """Return planes ``start`` to ``stop`` along x of what :func:`resample` returns.

    Only the input planes that matter are touched, so memory follows the slab and not the volume.
    """
    rows = weights[0][start:stop]
    used = np.flatnonzero(rows.any(axis=0))
    first, last = int(used[0]), int(used[-1]) + 1
    planes = np.asarray(array[first:last], dtype=np.float32)
    part = np.tensordot(rows[:, first:last], planes, axes=1)
    result: FloatArray = np.matmul(np.matmul(weights[1], part), weights[2].T)
    return result
