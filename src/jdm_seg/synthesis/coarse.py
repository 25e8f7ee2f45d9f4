"""Smooth fields on coarse grids, and sparse matrices that bring them to a scan's grid one axis at a time.

A field that changes over centimetres is drawn, computed and kept on a coarse grid; a slice takes its part with two
products. They are sparse rather than dense: that is as fast, and neither its rounding nor its speed depends on how many
slices are asked for at once, or on threads that other processes need.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
Weights = Any
"""A sparse matrix, ``scipy.sparse.csr_matrix``, float32."""


def linear_weights(points: int, spacing: float, nodes: int, step: float) -> Weights:
    """Return the matrix, shape (points, nodes), that interpolates linearly from nodes to points.

    Both are centres of cells that start at the same border; beyond the last node its value holds.

    Args:
        points: Number of points asked for.
        spacing: Their distance in mm.
        nodes: Number of known points.
        step: Their distance in mm.
    """
    at = np.clip(((np.arange(points) + 0.5) * spacing) / step - 0.5, 0, nodes - 1)
    return _sparse(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(nodes))))


def pooling_weights(points: int, spacing: float, step: float) -> Weights:
    """Return the matrix, shape (cells, points), that averages points over cells of ``step`` mm by their overlap."""
    cells = max(1, int(np.ceil(points * spacing / step - 1e-6)))
    low, start = np.arange(points) * spacing, np.arange(cells)[:, None] * step
    overlap = np.maximum(np.minimum(low + spacing, start + step) - np.maximum(low, start), 0)
    return _sparse(overlap / overlap.sum(axis=1, keepdims=True))


def smooth_weights(points: int, spacing: float, step: float) -> Weights:
    """Return the matrix, shape (points, nodes), that makes white noise at nodes a smooth field of the same variance.

    Rows are cubic B-splines of unit square sum, so the field keeps its variance between nodes; it forgets itself over
    about two steps.
    """
    at = (np.arange(points) + 0.5) * spacing / step + 1
    nodes = int(np.ceil(at[-1])) + 2
    t = np.abs(at[:, None] - np.arange(nodes))
    spline = np.where(t < 1, 4 - 6 * t**2 + 3 * t**3, np.where(t < 2, (2 - t) ** 3, 0))
    return _sparse(spline / np.linalg.norm(spline, axis=1, keepdims=True))


def _sparse(weights: NDArray[np.float64]) -> Weights:
    return sparse.csr_matrix(weights.astype(np.float32))


class SmoothNoise:
    """Gaussian noise of zero mean and unit variance that changes over about two ``step_mm``.

    Drawn once at coarse nodes; read as a whole or slab by slab with the same result.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], spacing: Spacing, step_mm: float) -> None:
        """Draw the nodes for a grid of ``shape`` (X, Y, Z) and ``spacing`` (mm)."""
        self._weights = [smooth_weights(n, s, step_mm) for n, s in zip(shape, spacing, strict=True)]
        self._nodes = rng.standard_normal([w.shape[1] for w in self._weights], np.float32)

    def slices(self, z: slice) -> FloatArray:
        """Return axial slices, shape (slab, X, Y)."""
        along_x, along_y, along_z = self._weights
        layers = self._nodes.transpose(2, 0, 1)
        return np.stack([spread(blend(along_z, k, layers), along_x, along_y) for k in range(z.start, z.stop)])

    def volume(self) -> FloatArray:
        """Return the whole field, shape (X, Y, Z)."""
        along_x, along_y, along_z = self._weights
        x, y, z = self._nodes.shape
        depth, width, height = (w.shape[0] for w in self._weights)
        columns = np.ascontiguousarray((along_z @ self._nodes.reshape(-1, z).T).T)
        planes = (along_x @ columns.reshape(x, -1)).reshape(depth, y, height)
        result = np.empty((depth, width, height), np.float32)
        for index, plane in enumerate(planes):
            result[index] = along_y @ plane
        return result


def blend(weights: Weights, row: int, layers: FloatArray) -> FloatArray:
    """Return the sum of layers, shape (layers, ...), with the weights of one row."""
    known = slice(weights.indptr[row], weights.indptr[row + 1])
    result = np.zeros(layers.shape[1:], np.float32)
    for index, weight in zip(weights.indices[known], weights.data[known], strict=True):
        result += weight * layers[index]
    return result


def spread(cells: FloatArray, x: Weights, y: Weights) -> FloatArray:
    """Bring a coarse slice (i, j) to (X, Y) with weights of shape (X, i) and (Y, j); pool the same way back."""
    result: FloatArray = x @ np.ascontiguousarray((y @ np.ascontiguousarray(cells.T)).T)
    return result
