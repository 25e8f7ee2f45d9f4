"""Resampling: exact coordinates, constants kept, the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from jdm_seg.resample import axis_weights, contract, resample, resample_planes


@pytest.mark.parametrize(
    ("n_in", "n_out", "step"), [(10, 20, 0.5), (10, 5, 2.0), (10, 7, 10 / 7), (3, 9, 1 / 3), (7, 7, 1.0)]
)
def test_rows_sum_to_one(n_in, n_out, step):
    assert np.allclose(axis_weights(n_in, n_out, step).sum(axis=1), 1)


def test_same_spacing_changes_nothing():
    assert (axis_weights(6, 6, 1.0) == np.eye(6)).all()


def test_a_linear_ramp_stays_linear_in_mm():
    """A value equal to its position in mm is resampled to its position in mm, away from the border.

    Exactly upwards; downwards the widened triangle is sampled at few points, which costs 3 % of a voxel.
    """
    spacing, target = 0.8, 1.5
    up = axis_weights(40, 64, 0.5 / spacing) @ ((np.arange(40) + 0.5) * spacing)
    assert np.allclose(up[1:-1], (np.arange(64)[1:-1] + 0.5) * 0.5, atol=1e-4)
    position = (np.arange(40) + 0.5) * spacing
    out = axis_weights(40, 21, target / spacing) @ position
    assert np.allclose(out[1:-1], (np.arange(21)[1:-1] + 0.5) * target, atol=0.03 * target)


def test_upsampling_is_linear_interpolation():
    rng = np.random.default_rng(0)
    values = rng.random((6, 7, 8)).astype(np.float32)
    weights = [axis_weights(n, 3 * n, 1 / 3) for n in values.shape]
    at = np.stack(np.meshgrid(*[(np.arange(3 * n) + 0.5) / 3 - 0.5 for n in values.shape], indexing="ij"))
    expected = ndimage.map_coordinates(values, at, order=1, mode="nearest")
    assert np.allclose(resample(values, weights), expected, atol=1e-6)


def test_downsampling_loses_no_bright_voxel():
    """A single bright voxel between two samples keeps its share: 1 of 2 voxels, three axes, linear weights."""
    for at in range(20):
        values = np.zeros((40, 8, 8), np.float32)
        values[10 + at, 4, 4] = 1000
        weights = [axis_weights(n, n // 2, 2.0) for n in values.shape]
        assert resample(values, weights).sum() == pytest.approx(1000 / 8, rel=0.01)


@pytest.mark.parametrize("order", ["C", "F"])
def test_planes_equal_the_whole(order):
    rng = np.random.default_rng(0)
    values = np.asarray(rng.integers(-1000, 1000, (50, 20, 90)).astype(np.int16), order=order)
    weights = [axis_weights(n, m, n / m) for n, m in zip(values.shape, (81, 13, 147), strict=True)]
    whole = resample(values, weights)
    expected = np.einsum("ai,bj,ck,ijk->abc", *weights, values.astype(np.float64), optimize=True)
    assert np.allclose(whole, expected, atol=1e-2)
    planes = resample_planes(values, weights, 17, 140)
    assert planes.shape == (123, 13, 81)
    assert np.allclose(whole[:, :, 17:140], planes.numpy().T, atol=1e-3)


def test_flipped_views_are_read_right():
    """What an LPS scan looks like after `to_canonical`: negative strides."""
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    weights = [axis_weights(n, 2 * n, 0.5) for n in values.shape]
    flipped = values[::-1, ::-1]
    assert np.array_equal(resample(flipped, weights), resample(flipped.copy(), weights))


def test_cubic_keeps_a_parabola_and_linear_does_not():
    """Keys' kernel reproduces polynomials up to degree 2 exactly."""
    at = np.arange(20.0)
    fine = (np.arange(60) + 0.5) / 3 - 0.5
    inner = slice(9, -9)
    cubic, linear = (axis_weights(20, 60, 1 / 3, order=order) @ at**2 for order in (3, 1))
    assert np.allclose(cubic[inner], fine[inner] ** 2, atol=1e-3)
    assert np.abs(linear - fine**2)[inner].max() > 0.2
    assert np.allclose(axis_weights(20, 7, 20 / 7, order=3).sum(axis=1), 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blocks_of_a_band_equal_the_full_product(axis):
    """More outputs than one block; by NumPy, without blocks."""
    tensor = torch.rand(*[150 if a == axis else 3 for a in range(3)])
    weights = axis_weights(150, 201, 150 / 201)
    expected = np.moveaxis(np.tensordot(weights, tensor.numpy(), axes=(1, axis)), 0, axis)
    assert np.allclose(contract(tensor, weights, axis).numpy(), expected, atol=1e-5)
