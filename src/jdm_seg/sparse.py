"""Arrays that are 0 nearly everywhere: what a method says of a few thousandths of a scan's voxels.

A whole body has 200 million voxels. Lesion numbers or probabilities of all of them take 400 MB, those of the voxels
that have any take 10 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from jdm_seg.volume import Volume

Shape3 = tuple[int, int, int]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SparseArray:
    """A 3-D array of which only what is not 0 is kept.

    Attributes:
        shape: Of the array, (X, Y, Z).
        places: Where the values lie, counted along x first, then y, then z (the order of a NIfTI file): ascending,
            each once, shape (N,).
        values: Of these places, shape (N,).
    """

    shape: Shape3
    places: NDArray[np.int64]
    values: NDArray[Any]

    @classmethod
    def at_indices(cls, shape: tuple[int, ...], indices: Indices, values: NDArray[Any]) -> SparseArray:
        """Take values at indices of shape (N, 3), each index once, in any order."""
        x, y, z = shape
        return cls.at_places((x, y, z), np.ravel_multi_index(tuple(indices.T), (x, y, z), order="F"), values)

    @classmethod
    def at_places(cls, shape: Shape3, places: NDArray[np.int64], values: NDArray[Any]) -> SparseArray:
        """Take values at places as in :attr:`places`, each place once, in any order."""
        if (places[1:] > places[:-1]).all():
            return cls(shape, places, values)
        order = np.argsort(places, kind="stable")
        return cls(shape, places[order], values[order])

    @classmethod
    def of(cls, array: NDArray[Any]) -> SparseArray:
        """Keep what is not 0 of an array (X, Y, Z)."""
        x, y, z = array.shape
        found = [np.flatnonzero(plane.ravel(order="F")) + number * x * y for number, plane in _planes_of(array)]
        places = np.concatenate(found) if found else np.zeros(0, np.int64)
        return cls((x, y, z), places, array[np.unravel_index(places, (x, y, z), order="F")])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.values.dtype

    def __getitem__(self, indices: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]) -> NDArray[Any]:
        """Return the values at three arrays of indices of one shape, as numpy indexes an array."""
        return self.take(np.ravel_multi_index(indices, self.shape, order="F"))

    def take(self, asked: NDArray[np.int64]) -> NDArray[Any]:
        """Return the values at places as in :attr:`places`, 0 where there is none."""
        if not len(self.places):
            return np.zeros(np.shape(asked), self.dtype)
        found = np.minimum(np.searchsorted(self.places, asked), len(self.places) - 1)
        return np.where(self.places[found] == asked, self.values[found], self.dtype.type(0))

    def planes(self) -> Iterator[NDArray[Any]]:
        """Give the whole array one axial plane (X, Y) at a time."""
        x, y, z = self.shape
        ends = np.searchsorted(self.places, np.arange(z + 1) * x * y)
        for number in range(z):
            plane = np.zeros(x * y, self.dtype)
            mine = slice(ends[number], ends[number + 1])
            plane[self.places[mine] - number * x * y] = self.values[mine]
            yield plane.reshape(x, y, order="F")

    def dense(self) -> NDArray[Any]:
        """Return the whole array (X, Y, Z), in Fortran order."""
        array = np.zeros(int(np.prod(self.shape)), self.dtype)
        array[self.places] = self.values
        return array.reshape(self.shape, order="F")

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Let numpy take it for :meth:`dense`."""
        del copy  # it is always one
        return self.dense().astype(dtype or self.dtype, copy=False)

    def from_canonical(self, scan: Volume) -> SparseArray:
        """Bring an array on the canonical grid of a scan back to the scan's own axes."""
        return self._turned(scan.canonical_axes)

    def to_canonical(self, scan: Volume) -> SparseArray:
        """Bring an array on a scan's own axes to its canonical grid."""
        own_axis_of = {axis: (own, is_flipped) for own, (axis, is_flipped) in enumerate(scan.canonical_axes)}
        return self._turned(tuple(own_axis_of[axis] for axis in range(3)))

    def _turned(self, axes: tuple[tuple[int, bool], ...]) -> SparseArray:
        """Return the array with other axes: for each the present one, and whether it is turned round."""
        moved = np.zeros_like(self.places)
        step = 1
        for axis, is_flipped in axes:
            size = self.shape[axis]
            index = self.places // int(np.prod(self.shape[:axis])) % size
            moved += step * (size - 1 - index if is_flipped else index)
            step *= size
        x, y, z = (self.shape[axis] for axis, _ in axes)
        return SparseArray.at_places((x, y, z), moved, self.values)


def _planes_of(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    return enumerate(np.moveaxis(array, 2, 0))
