"""Sparse arrays against the whole arrays they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Volume

SHAPE = (4, 3, 5)


def an_array(seed: int = 0, share: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(SHAPE) < share, rng.integers(1, 100, SHAPE), 0).astype(np.uint16)


def test_places_count_along_x_first():
    array = np.zeros((2, 3, 4), np.uint8)
    array[1, 0, 0], array[0, 1, 0], array[0, 0, 1] = 7, 8, 9
    sparse = SparseArray.of(array)
    assert sparse.places.tolist() == [1, 2, 6]
    assert sparse.values.tolist() == [7, 8, 9]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_there_and_back(order, share):
    array = np.asarray(an_array(share=share), order=order)
    sparse = SparseArray.of(array)
    assert_array_equal(sparse.dense(), array)
    assert_array_equal(np.asarray(sparse), array)
    assert_array_equal(np.stack(list(sparse.planes()), axis=2), array)
    assert sparse.dtype == array.dtype == sparse.dense().dtype


def test_indices_in_any_order():
    array = an_array()
    where = np.random.default_rng(1).permutation(np.argwhere(array))
    sparse = SparseArray.at_indices(SHAPE, where, array[tuple(where.T)])
    assert_array_equal(sparse.dense(), array)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_values_at_indices(share):
    array = an_array(share=share)
    everywhere = tuple(np.indices(SHAPE).reshape(3, -1))
    assert_array_equal(SparseArray.of(array)[everywhere], array[everywhere])


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_back_to_a_scans_own_axes(axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)] * signs
    scan = Volume(an_array(3), affine)
    canonical = scan.to_canonical()
    found = SparseArray.of(canonical.array).from_canonical(scan)
    assert found.shape == scan.array.shape
    assert_array_equal(found.dense(), scan.array)
    assert_array_equal(found.dense(), scan.from_canonical(canonical.array))
    assert_array_equal(found.to_canonical(scan).dense(), canonical.array)
