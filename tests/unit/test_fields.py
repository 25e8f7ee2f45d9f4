"""The machinery that deposits are drawn with, against SciPy, stereology and hand-worked integrals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from jdm_seg.synthesis.ct.blur import gaussian_weights
from jdm_seg.synthesis.deposits.fields import (
    Noise,
    Walls,
    axes_of,
    block_mean,
    blur_box,
    blur_reach,
    box_around,
    layer_share,
    mean_width,
    parts_for,
    share_inside,
    sub_voxel_values,
)

SPACING = (1.0, 1.0, 1.0)


def test_a_box_holds_what_is_within_reach_and_ends_at_the_grid():
    assert box_around((5.0, 5.0, 5.0), 2.0, (20, 20, 20), SPACING) == (slice(3, 7),) * 3
    assert box_around((1.0, 5.0, 19.5), 2.0, (20, 20, 20), SPACING) == (slice(0, 3), slice(3, 7), slice(17, 20))
    assert box_around((30.0, 5.0, 5.0), 2.0, (20, 20, 20), SPACING) is None
    assert box_around((6.0, 6.0, 6.0), (3.0, 1.0, 6.0), (20, 20, 20), (1.5, 1.5, 3.0)) == (
        slice(2, 6), slice(3, 5), slice(0, 4)
    )  # fmt: skip


def test_axes_are_the_centres_of_the_parts_of_voxels():
    x, y, z = axes_of((slice(2, 4), slice(0, 1), slice(1, 2)), (1.0, 2.0, 3.0), (2, 1, 3))
    assert x.tolist() == [2.25, 2.75, 3.25, 3.75]
    assert y.tolist() == [1.0]
    assert z.tolist() == [3.5, 4.5, 5.5]
    assert parts_for((0.9, 1.0, 5.0), 0.5) == (2, 2, 10)


def test_a_block_mean_is_a_mean_of_blocks():
    values = np.random.default_rng(0).random((4, 6, 9), np.float32)
    found = block_mean(values, (2, 3, 3))
    assert found.shape == (2, 2, 3)
    assert found[1, 0, 2] == pytest.approx(values[2:4, 0:3, 6:9].mean())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0)])
def test_the_mean_width_has_the_variance_of_a_box_seen_from_all_sides(spacing):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = (rng.random((4000, 3)) - 0.5) * spacing
    seen = (points * directions).sum(axis=1)
    assert seen.var() == pytest.approx(mean_width(spacing) ** 2 / 12, rel=0.08)


@pytest.mark.parametrize("thickness", [0.3, 1.0, 2.5])
def test_a_layer_keeps_its_volume_whatever_the_voxel(thickness):
    distance = np.linspace(-6, 6, 4001, dtype=np.float32)
    for width in (0.5, 1.0, 3.0):
        assert np.trapezoid(layer_share(distance, thickness, width), distance) == pytest.approx(thickness, rel=0.01)
        assert share_inside(np.array([-9, 0, width / 4, 9], np.float32), width).tolist() == [1, 0.5, 0.25, 0]


def test_noise_is_the_same_on_every_grid_and_of_unit_variance():
    noise = Noise(3, 4.0)
    values = noise.on(axes_of((slice(10, 74), slice(0, 60), slice(5, 60)), SPACING))
    assert values.mean() == pytest.approx(0, abs=0.15)
    assert values.std() == pytest.approx(1, abs=0.12)
    axes = axes_of((slice(10, 74), slice(0, 60), slice(5, 60)), SPACING)
    some = (np.array([0, 5, 63]), np.array([1, 50, 59]), np.array([3, 7, 50]))
    assert noise.at(axes, some).tolist() == values[some].tolist()
    part = noise.on(axes_of((slice(20, 30), slice(4, 9), slice(5, 9)), SPACING))
    assert (part == values[10:20, 4:9, 0:4]).all()
    assert np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(values[:-16].ravel(), values[16:].ravel())[0, 1]) < 0.2
    other = Noise(4, 4.0).on(axes)
    assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.1


def test_walls_are_as_far_apart_as_asked():
    """A line meets 1.46 walls a cell width in a Poisson-Voronoi foam (stereology), fewer in a more regular one."""
    step = 10.0 * 4 / 64  # as fine as the table
    axes = axes_of((slice(0, 640), slice(0, 1), slice(0, 1)), (step, step, step))
    line = (np.arange(640), np.zeros(640, int), np.zeros(640, int))
    crossings = []
    for seed in range(20):
        values = Walls(seed, 10.0).at(axes, line)
        assert values.min() >= 0
        minima = (values[1:-1] < values[:-2]) & (values[1:-1] <= values[2:]) & (values[1:-1] < 0.7 * step)
        crossings.append(minima.sum() / (640 * step) * 10)
    assert 1.1 < np.mean(crossings) < 1.55


def test_sub_voxels_are_interpolated_linearly():
    values = np.random.default_rng(0).random((6, 7, 8), np.float32)
    voxels = (np.array([2, 0, 5]), np.array([3, 6, 0]), np.array([4, 0, 7]))
    offsets = np.stack(np.meshgrid((-0.25, 0.25), (-1 / 3, 0, 1 / 3), (-0.25, 0.25), indexing="ij"), -1).reshape(-1, 3)
    for array in (values, np.asfortranarray(values), np.repeat(values, 2, axis=0)[::2]):  # whatever lies in memory
        found = sub_voxel_values(array, voxels, (2, 3, 2))
        for row, voxel in zip(found, np.transpose(voxels), strict=True):
            points = (voxel + offsets).T
            assert row == pytest.approx(ndimage.map_coordinates(values, points, order=1, mode="nearest"), abs=1e-5)


@pytest.mark.parametrize("fwhm", [(3.0, 2.0, 4.0), (0.8, 0.8, 0.0), (9.0, 9.0, 9.0)])
def test_blurring_a_box_is_blurring_the_whole(fwhm):
    """Against SciPy, at the border of the grid and inside it."""
    spacing = (1.0, 1.0, 1.5)
    grid = np.zeros((80, 70, 90), np.float32)
    grid[0:4, 30:35, 40:46] = np.random.default_rng(0).random((4, 5, 6))
    reach = blur_reach(fwhm, spacing)
    box = tuple(slice(max(0, a - r), b + r) for (a, b), r in zip(((0, 4), (30, 35), (40, 46)), reach, strict=True))
    blurred = blur_box(grid[box], box, grid.shape, fwhm, spacing)
    for axis in range(3):
        grid = ndimage.correlate1d(grid, gaussian_weights(fwhm[axis], spacing[axis]), axis=axis, mode="nearest")
    assert np.abs(blurred - grid[box]).max() < 1e-6
    outside = grid.copy()
    outside[box] = 0
    assert outside.max() < 1e-6  # nothing reaches farther than it says
