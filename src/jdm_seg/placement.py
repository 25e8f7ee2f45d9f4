"""Masks drawn in other tools, brought onto the grid of their scan without interpolation.

Tools crop a mask to its content, flip or permute its axes, and round its affine. Its voxels are still the scan's: this
puts each where it belongs, and refuses a mask whose voxels are others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.errors import GridMismatchError
from jdm_seg.volume import Grid, Volume

TOLERANCE_VOXELS = 0.05
"""Largest distance of a mask voxel's centre from a scan voxel's (assumed: tools round affines to about 1e-4)."""

Order = tuple[int, int, int]


def place_on_grid(mask: Volume, grid: Grid) -> NDArray[Any]:
    """Return the voxels of a mask on another grid that shares its lattice.

    Args:
        mask: Values of any type; may be smaller or larger than the grid, with axes in any order and direction.
        grid: The scan's grid.

    Returns:
        Array of the grid's shape and the mask's type, 0 where the mask does not reach.

    Raises:
        GridMismatchError: If the voxels are not the grid's, or values other than 0 lie outside it.
    """
    target = np.zeros(grid.shape, dtype=mask.array.dtype)
    where, values = window_on_grid(mask, grid)
    target[where] = values
    return target


def window_on_grid(mask: Volume, grid: Grid) -> tuple[tuple[slice, slice, slice], NDArray[Any]]:
    """Return where on a grid a mask lies, and its voxels in the grid's order; see :func:`place_on_grid`.

    Raises:
        GridMismatchError: If the mask's voxels are not voxels of the grid, or foreground lies outside it.
    """
    order, signs, first = _steps(mask, grid)
    source = mask.array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    inside, taken = [], []
    for start, length, limit in zip(first, source.shape, grid.shape, strict=True):
        low = min(max(start, 0), limit)
        high = max(min(start + length, limit), low)
        inside.append(slice(low, high))
        taken.append(slice(low - start, high - start))
    kept = source[tuple(taken)]
    if kept.shape != source.shape and np.count_nonzero(kept) != np.count_nonzero(source):
        raise _mismatch(mask, grid, "mask voxels outside the image")
    return (inside[0], inside[1], inside[2]), kept


def shares_lattice(mask: Volume, grid: Grid) -> bool:
    """Tell whether the voxels of a mask are voxels of the grid, apart from how far each reaches."""
    try:
        _steps(mask, grid)
    except GridMismatchError:
        return False
    return True


def _steps(mask: Volume, grid: Grid) -> tuple[Order, Order, Order]:
    """Return, for each axis of the grid, the mask's axis that runs along it, its direction, and its first index."""
    transform = np.linalg.inv(grid.affine) @ mask.affine
    steps = np.rint(transform[:3, :3]).astype(np.int64)
    if not (np.abs(steps).sum(0) == 1).all() or not (np.abs(steps).sum(1) == 1).all():
        raise _mismatch(mask, grid)
    ends = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    ends[:, :3] *= np.array(mask.array.shape) - 1
    indices = (ends @ transform.T)[:, :3]
    origin = np.rint(transform[:3, 3]).astype(np.int64)
    exact = ends[:, :3] @ steps.T + origin
    if np.abs(indices - exact).max() > TOLERANCE_VOXELS:
        raise _mismatch(mask, grid)
    order = np.abs(steps).argmax(1)
    signs = steps[np.arange(3), order]
    return _triple(order), _triple(signs), _triple(exact.min(0))


def _triple(values: NDArray[Any]) -> Order:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _mismatch(mask: Volume, grid: Grid, found: str = "") -> GridMismatchError:
    return GridMismatchError(
        mask.name,
        expected=f"a mask on the voxels of the image's grid {grid}",
        found=found or mask.grid.beside(grid),
        remedy="export it again with the image as the reference volume, see data/README.md#grids",
    )
