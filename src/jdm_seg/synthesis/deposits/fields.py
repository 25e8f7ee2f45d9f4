"""Boxes, noise, walls and shares of voxels: what deposits and look-alikes are drawn with, fast enough for training.

Everything works on a box of the grid and on axes: three vectors of coordinates in mm whose outer product is the box's
(sub-)voxel centres. Voxel ``i`` has its centre at ``(i + 0.5) * spacing``.

Noise and cell walls are tabulated once, periodic, and looked up at the nearest entry: a table of 8 entries a noise
scale errs by less than a tenth of the noise, and a look-up costs two additions a voxel.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from jdm_seg.synthesis.ct.blur import gaussian_weights
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
Box = tuple[slice, slice, slice]
Axes = tuple[FloatArray, FloatArray, FloatArray]

_NODES = 16
"""Random values along each side of the noise table; it repeats after so many scales."""
_NOISE_SIDE = 128
_CELLS = 4
"""Cells along each side of the wall table; it repeats after so many cells."""
_WALL_SIDE = 64
_BLOCK = 32


def box_around(
    centre: Spacing, reach: float | Spacing | NDArray[np.floating], shape: tuple[int, ...], spacing: Spacing
) -> Box | None:
    """Return the voxels within ``reach`` mm of a point along each axis, or None where the grid holds none of them.

    Args:
        centre: The point in mm from the grid's corner.
        reach: In mm, for all axes or each.
        shape: Voxels of the grid.
        spacing: Voxel size in mm.
    """
    reaches = np.broadcast_to(np.asarray(reach, float), (3,))
    box = []
    for c, r, n, s in zip(centre, reaches, shape, spacing, strict=True):
        start, stop = max(0, int(np.floor((c - r) / s))), min(n, int(np.ceil((c + r) / s)))
        if stop <= start:
            return None
        box.append(slice(start, stop))
    return box[0], box[1], box[2]


def box_shape(box: Box) -> tuple[int, int, int]:
    """Return the voxels along each side of a box."""
    x, y, z = (side.stop - side.start for side in box)
    return x, y, z


def axes_of(box: Box, spacing: Spacing, parts: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    """Return the coordinates in mm of voxel centres, or of the centres of ``parts`` equal parts of each voxel."""
    x, y, z = (
        ((np.arange(side.start * n, side.stop * n, dtype=np.float32) + np.float32(0.5)) * np.float32(s / n))
        for side, s, n in zip(box, spacing, parts, strict=True)
    )
    return x, y, z


def parts_for(spacing: Spacing, step_mm: float, least: int = 1, most: int = 12) -> tuple[int, int, int]:
    """Return into how many parts each side of a voxel must be cut to be no longer than ``step_mm``.

    Args:
        spacing: Voxel size in mm.
        step_mm: Longest part.
        least: Fewest parts of a side.
        most: Most parts of a side.
    """
    x, y, z = (int(np.clip(np.ceil(s / step_mm - 1e-6), least, most)) for s in spacing)
    return x, y, z


def block_mean(values: FloatArray, parts: tuple[int, int, int]) -> FloatArray:
    """Average blocks of ``parts`` sub-voxels: the share of a voxel from the shares of its parts."""
    x, y, z = (n // p for n, p in zip(values.shape, parts, strict=True))
    # the last axis first: it lies together in memory, and what is left to add is small
    rows = values.reshape(-1, parts[2]) @ np.full(parts[2], 1 / np.prod(parts), np.float32)
    result: FloatArray = rows.reshape(x, parts[0], y, parts[1], z).sum(axis=(1, 3))
    return result


def share_inside(distance: FloatArray, width: float) -> FloatArray:
    """Return the share of (sub-)voxels of a width that lies where a signed distance is negative: a linear ramp."""
    share = np.float32(0.5) - distance * np.float32(1 / width)
    result: FloatArray = np.clip(share, 0, 1, out=share)
    return result


def layer_share(distance: FloatArray, thickness: FloatArray | float, width: float) -> FloatArray:
    """Return the share of (sub-)voxels of a width that a layer fills, thinner than the voxel or not.

    The overlap of two intervals along the layer's normal: [-thickness / 2, thickness / 2] and one of ``width`` around
    ``distance``. Summed over all distances it is the thickness exactly.
    """
    thick = np.asarray(thickness, np.float32)
    overlap = (thick + np.float32(width)) / 2 - np.abs(distance)
    result: FloatArray = np.clip(overlap, 0, np.minimum(thick, np.float32(width))) * np.float32(1 / width)
    return result


def mean_width(spacing: Iterable[float]) -> float:
    """Return how wide a box of these sides is, averaged over all directions: the root mean square of its sides.

    The interval of this width has the variance of the box's profile along a direction, averaged over directions; for a
    cube that is its side, whatever the direction.
    """
    sides = np.array(list(spacing))
    return float(np.sqrt(np.mean(sides**2)))


class Noise:
    """Smooth noise of mean 0 and variance 1 in three dimensions, the same for a seed on every grid.

    Its values agree over about ``scale_mm``, and it repeats after 16 of them.
    """

    def __init__(self, seed: int, scale_mm: float) -> None:
        """Draw where in the table the noise begins and which axis runs which way."""
        rng = np.random.default_rng(seed)
        self._start = rng.uniform(0, _NOISE_SIDE, 3)
        self._order = rng.permutation(3)
        self._steps = rng.choice((-1.0, 1.0), 3) * (_NOISE_SIDE / _NODES / scale_mm)

    def _rows(self, axes: Axes) -> tuple[NDArray[np.int32], ...]:
        strides = (_NOISE_SIDE**2, _NOISE_SIDE, 1)
        return tuple(
            (np.floor(a * np.float32(step) + np.float32(start)).astype(np.int32) & (_NOISE_SIDE - 1))
            * np.int32(strides[column])
            for a, step, start, column in zip(axes, self._steps, self._start, self._order, strict=True)
        )

    def on(self, axes: Axes) -> FloatArray:
        """Return the noise on the outer product of the axes, shape (X, Y, Z)."""
        x, y, z = self._rows(axes)
        values: FloatArray = _noise_table().take((x[:, None] + y)[:, :, None] + z)
        return values

    def at(self, axes: Axes, voxels: tuple[NDArray[np.intp], ...]) -> FloatArray:
        """Return the noise at some voxels of the axes, given by their numbers along each, shape (N,)."""
        x, y, z = (rows[number] for rows, number in zip(self._rows(axes), voxels, strict=True))
        values: FloatArray = _noise_table().take(x + y + z)
        return values


@lru_cache(maxsize=1)
def _noise_table() -> FloatArray:
    """Cubic B-spline noise on a periodic lattice, flat, 8 entries a node."""
    nodes = np.random.default_rng(20240501).standard_normal((_NODES,) * 3).astype(np.float32)
    at = np.arange(_NOISE_SIDE) / (_NOISE_SIDE / _NODES)
    apart = np.abs((at[:, None] - np.arange(_NODES) + _NODES / 2) % _NODES - _NODES / 2)
    weight = np.where(apart < 1, 2 / 3 - apart**2 + apart**3 / 2, np.maximum(2 - apart, 0) ** 3 / 6)
    table = np.einsum("ai,bj,ck,ijk->abc", weight, weight, weight, nodes, optimize=True).astype(np.float32)
    table -= table.mean()
    flat: FloatArray = (table / table.std()).ravel()
    return flat


class Walls:
    """Distance to the walls of irregular cells (a foam), the same for a seed on every grid."""

    def __init__(self, seed: int, cell_mm: float) -> None:
        """Draw where in the table the cells begin; they are ``cell_mm`` wide on average."""
        rng = np.random.default_rng(seed)
        self._start = rng.uniform(0, _WALL_SIDE, 3)
        self._step = _WALL_SIDE / _CELLS / cell_mm
        self._cell_mm = np.float32(cell_mm)

    def at(self, axes: Axes, voxels: tuple[NDArray[np.intp], ...]) -> FloatArray:
        """Return the distance in mm at some voxels of the axes, shape (N,)."""
        index = np.zeros(len(voxels[0]), np.int32)
        for a, number, start in zip(axes, voxels, self._start, strict=True):
            rows = np.floor(a * np.float32(self._step) + np.float32(start)).astype(np.int32) & (_WALL_SIDE - 1)
            index = index * np.int32(_WALL_SIDE) + rows[number]
        result: FloatArray = _wall_table().take(index) * self._cell_mm
        return result


@lru_cache(maxsize=1)
def _wall_table() -> FloatArray:
    """Distance, in cells, to the nearest face of the Voronoi cells of a jittered periodic lattice, flat."""
    rng = np.random.default_rng(20240502)
    corners = np.stack(np.meshgrid(*[np.arange(_CELLS)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    seeds = (corners + rng.uniform(0.05, 0.95, corners.shape)) % _CELLS
    at = (np.arange(_WALL_SIDE) + 0.5) * (_CELLS / _WALL_SIDE)
    points = np.stack(np.meshgrid(at, at, at, indexing="ij"), axis=-1).reshape(-1, 3)
    near, which = cKDTree(seeds, boxsize=_CELLS).query(points, k=2)
    between = np.abs(seeds[which[:, 0]] - seeds[which[:, 1]])
    apart = np.linalg.norm(np.minimum(between, _CELLS - between), axis=1)
    wall: FloatArray = ((near[:, 1] ** 2 - near[:, 0] ** 2) / (2 * apart)).astype(np.float32)
    return wall


def sub_voxel_values(
    values: FloatArray, voxels: tuple[NDArray[np.intp], ...], parts: tuple[int, int, int]
) -> FloatArray:
    """Interpolate an array linearly at the parts of some of its voxels, shape (N, parts); its border is repeated.

    Args:
        values: On voxel centres, shape (X, Y, Z).
        voxels: Their numbers along each axis, each (N,).
        parts: Into how many parts each side of a voxel is cut.

    Returns:
        Values at the parts, shape (N, parts).
    """
    weights = []
    for n in parts:
        offset = (np.arange(n) + 0.5) / n - 0.5
        below, above = np.maximum(-offset, 0), np.maximum(offset, 0)
        weights.append(np.stack([below, 1 - below - above, above], axis=1))
    weight = np.einsum("ai,bj,ck->abcijk", *weights).reshape(-1, 27).astype(np.float32)
    offsets, inner = [], np.ones(len(voxels[0]), bool)
    for number, size in zip(voxels, values.shape, strict=True):
        offsets.append(np.clip(number[:, None] + np.arange(-1, 2), 0, size - 1))
        inner &= (number > 0) & (number < size - 1)
    x, y, z = offsets
    strides = np.array(values.strides) // values.itemsize
    if not _is_whole(values):  # a view that leaves out entries has no flat index
        values = np.ascontiguousarray(values)
        strides = np.array(values.strides) // values.itemsize
    flat = ((x * strides[0])[:, :, None] + (y * strides[1])[:, None, :])[..., None] + (z * strides[2])[:, None, None, :]
    near = values.reshape(-1, order="A").take(flat.reshape(-1, 27))
    result: FloatArray = near @ weight.T
    return result


def _is_whole(values: FloatArray) -> bool:
    return bool(values.flags.c_contiguous or values.flags.f_contiguous)


def blur_box(values: FloatArray, box: Box, shape: tuple[int, ...], fwhm_mm: Spacing, spacing: Spacing) -> FloatArray:
    """Blur a box by a Gaussian along each axis; outside the box there is nothing, outside the grid its border.

    Matrix products, which are two to three times as fast as convolving for the boxes of deposits.

    Args:
        values: In the box, shape of the box.
        box: Where it lies; tells which of its sides are sides of the grid.
        shape: Of the grid.
        fwhm_mm: Full width at half maximum along each axis.
        spacing: Voxel size in mm.

    Returns:
        The blurred box, same shape.
    """
    for axis, (side, n, width, s) in enumerate(zip(box, shape, fwhm_mm, spacing, strict=True)):
        blurred = np.empty_like(values)
        for rows, columns, weight in _blur_weights(values.shape[axis], width, s, side.start == 0, side.stop == n):
            if axis == 0:
                near = values[columns]
                blurred[rows] = (weight @ near.reshape(len(near), -1)).reshape(-1, *near.shape[1:])
            elif axis == 1:
                np.matmul(weight, values[:, columns], out=blurred[:, rows])
            else:
                np.matmul(values[:, :, columns], weight.T, out=blurred[:, :, rows])
        values = blurred
    return values


def blur_reach(fwhm_mm: Spacing, spacing: Spacing) -> tuple[int, int, int]:
    """Return how many voxels :func:`blur_box` carries anything along each axis."""
    x, y, z = (len(gaussian_weights(width, step)) // 2 for width, step in zip(fwhm_mm, spacing, strict=True))
    return x, y, z


def _blur_weights(
    n: int, fwhm_mm: float, step: float, repeat_low: bool, repeat_high: bool
) -> list[tuple[slice, slice, FloatArray]]:
    """Weights of a scanner's blur, in blocks of rows with the columns they need."""
    weight = gaussian_weights(fwhm_mm, step)
    reach = len(weight) // 2
    # cutting the flat strip into rows that are one entry shorter moves the kernel one column on in every row
    strip = np.zeros((n, n + 2 * reach + 1), np.float32)
    strip[:, : 2 * reach + 1] = weight
    strip = strip.reshape(-1)[: n * (n + 2 * reach)].reshape(n, n + 2 * reach)
    matrix = strip[:, reach : n + reach].copy()
    if repeat_low:
        matrix[:, 0] += strip[:, :reach].sum(axis=1)
    if repeat_high:
        matrix[:, -1] += strip[:, n + reach :].sum(axis=1)
    blocks = []
    for start in range(0, n, _BLOCK):
        stop = min(n, start + _BLOCK)
        near = slice(max(0, start - reach), min(n, stop + reach))
        blocks.append((slice(start, stop), near, np.ascontiguousarray(matrix[start:stop, near])))
    return blocks
