from __future__ import annotations

import csv
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from jdm_seg.burden.mass import MATRIX_HU, SHELL_MM, excess_hu
from jdm_seg.errors import InputError
from jdm_seg.lesions import (
    SIZE_STRATA,
    Lesion,
    label_lesions,
    measure_lesions,
    read_mask,
    size_stratum,
    write_lesion_table,
)
from jdm_seg.neighbourhood import ball_steps, distance_to_outside, foreground_indices
from jdm_seg.volume import Grid, Volume, write_volume

ISO = (1.0, 1.0, 1.0)


def grid_of(array, spacing=ISO) -> Grid:
    return Grid(array.shape, np.diag([*spacing, 1.0]))


def line(*voxels, size=12):
    """A mask of shape (size, 3, 3) with single voxels along its first axis."""
    mask = np.zeros((size, 3, 3), dtype=bool)
    mask[list(voxels), 1, 1] = True
    return mask


def rotation(degrees=25.0):
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


def scattered(seed=0, shape=(30, 26, 22), share=0.01):
    rng = np.random.default_rng(seed)
    return ndimage.binary_dilation(rng.random(shape) < share, iterations=1)


class TestLabel:
    # two voxels along a line of 1 mm voxels: each grows by one voxel, so up to two empty voxels are bridged
    @pytest.mark.parametrize(
        ("second", "grouping_mm", "lesions"),
        [(4, 0.0, 1), (5, 0.0, 2), (5, 1.0, 1), (6, 1.0, 1), (7, 1.0, 2), (7, 1.9, 2), (8, 2.0, 1), (9, 2.0, 2)],
    )
    def test_gap_bridged_by_grouping(self, second, grouping_mm, lesions):
        assert label_lesions(line(3, second), ISO, grouping_mm=grouping_mm).max() == lesions

    @pytest.mark.parametrize(("connectivity", "lesions"), [(6, 3), (18, 2), (26, 1)])
    def test_connectivity(self, connectivity, lesions):
        mask = np.zeros((4, 4, 4), dtype=bool)
        mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 2, 2] = True  # an edge neighbour, then a corner neighbour
        assert label_lesions(mask, ISO, connectivity=connectivity, grouping_mm=0).max() == lesions

    def test_grouping_is_in_mm_along_each_axis(self):
        mask = np.zeros((9, 9, 9), dtype=bool)
        mask[1, 4, 4] = mask[4, 4, 4] = True  # 2 empty voxels of 0.5 mm
        mask[4, 4, 7] = True  # 2 empty voxels of 3 mm
        assert label_lesions(mask, (0.5, 0.5, 3.0), grouping_mm=0.5).max() == 2

    def test_labels_stay_inside_the_mask(self):
        mask = scattered()
        assert_array_equal(label_lesions(mask, ISO) > 0, mask)

    def test_numbered_by_falling_volume_then_first_voxel(self):
        mask = np.zeros((20, 3, 3), dtype=bool)
        mask[2, 1, 1] = True
        mask[8:11, 1, 1] = True
        mask[16, 1, 1] = True
        labels = label_lesions(mask, ISO)
        assert [labels[i, 1, 1] for i in (9, 2, 16)] == [1, 2, 3]

    def test_matches_dilation_of_the_whole_array(self):
        """The definition, word for word: dilate everything, label everything, restrict to the mask."""
        for seed, spacing, grouping in [(0, (0.7, 0.9, 1.0), 1.0), (1, (1.0, 1.0, 2.5), 2.6), (2, (0.6,) * 3, 1.8)]:
            mask = scattered(seed, share=0.004)
            far = ndimage.distance_transform_edt(np.pad(~mask, 6, constant_values=True), sampling=spacing)
            whole, n = ndimage.label(far <= grouping + 1e-3, structure=np.ones((3, 3, 3)))
            whole = whole[6:-6, 6:-6, 6:-6] * mask
            labels = label_lesions(mask, spacing, grouping_mm=grouping)
            pairs = {(int(a), int(b)) for a, b in zip(whole[mask], labels[mask], strict=True)}
            assert len(pairs) == labels.max() == len({a for a, _ in pairs}), "one label each way"
            assert n >= labels.max()

    @pytest.mark.parametrize("flip", [(0,), (1,), (2,), (0, 1, 2)])
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
    def test_flips_and_permutations_keep_lesions(self, flip, order):
        mask, spacing = scattered(3), (0.8, 1.0, 1.7)
        turned = np.flip(mask, flip).transpose(order)
        labels = label_lesions(turned, tuple(spacing[axis] for axis in order))
        volumes = np.bincount(labels.ravel())[1:]
        assert_array_equal(volumes, np.bincount(label_lesions(mask, spacing).ravel())[1:])

    def test_memory_order_does_not_matter(self):
        mask = scattered(4)
        labels = label_lesions(mask, ISO)
        fortran = label_lesions(np.asfortranarray(mask), ISO)
        assert_array_equal(labels, fortran)
        assert fortran.flags.f_contiguous
        assert_array_equal(label_lesions(np.flip(np.flip(mask).copy()), ISO), labels)

    def test_rounded_voxel_size_still_groups(self):
        """A rotated affine gives 1.0000000002 mm; a lesion count must not hang on the last digit."""
        spacing = (1 + 1e-7,) * 3
        assert label_lesions(line(3, 6), spacing, grouping_mm=1.0).max() == 1

    def test_touching_the_border(self):
        mask = np.zeros((3, 3, 3), dtype=bool)
        mask[0, 0, 0] = mask[2, 2, 2] = True
        assert label_lesions(mask, ISO, grouping_mm=0).max() == 2
        assert label_lesions(np.ones((3, 3, 3), dtype=bool), ISO).max() == 1

    def test_more_than_65535_lesions(self):
        mask = np.zeros((100, 100, 64), dtype=bool)
        mask[::2, ::2, ::2] = True
        labels = label_lesions(mask, ISO, connectivity=6, grouping_mm=0)
        assert labels.max() == 50 * 50 * 32
        assert labels.dtype == np.uint32

    def test_empty(self):
        labels = label_lesions(np.zeros((3, 4, 5), dtype=bool), ISO)
        assert labels.dtype == np.uint16
        assert labels.shape == (3, 4, 5)
        assert not labels.any()

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="connectivity to be one of"):
            label_lesions(line(3), ISO, connectivity=8)
        with pytest.raises(ValueError, match="grouping_mm to be at least 0"):
            label_lesions(line(3), ISO, grouping_mm=-1)


class TestGeometry:
    def test_hand_worked(self):
        labels = np.zeros((10, 10, 10), dtype=np.uint16)
        labels[2:5, 3, 3] = 1  # 3 voxels, 2 apart
        labels[7, 7, 7] = 2
        affine = np.diag([2.0, 1.0, 0.5, 1.0])
        affine[:3, 3] = [-10, 20, 30]
        first, second = measure_lesions(labels, Grid(labels.shape, affine))
        assert first.volume_mm3 == pytest.approx(3.0)
        assert first.longest_axis_mm == pytest.approx(4.0)
        assert (first.centroid_x_mm, first.centroid_y_mm, first.centroid_z_mm) == pytest.approx((-4.0, 23.0, 31.5))
        assert first.equivalent_diameter_mm == pytest.approx((6 * 3 / np.pi) ** (1 / 3))
        assert second.longest_axis_mm == 0.0
        assert (first.mean_hu, first.mass_mg_ha, first.depth_mm, first.mean_probability) == (None,) * 4
        assert (first.region, first.side) == ("unknown", "unknown")

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((100, 1, 1), 99.0),  # a line
            ((30, 40, 1), np.hypot(29, 39)),  # a sheet
            ((9, 9, 9), np.sqrt(3) * 8),  # a block
        ],
    )
    def test_longest_axis_of_lines_sheets_and_blocks(self, shape, expected):
        labels = np.ones(shape, dtype=np.uint16)
        assert measure_lesions(labels, grid_of(labels))[0].longest_axis_mm == pytest.approx(expected)
        affine = np.eye(4)
        affine[:3, :3] = rotation()
        assert measure_lesions(labels, Grid(shape, affine))[0].longest_axis_mm == pytest.approx(expected)

    def test_longest_axis_against_brute_force(self):
        labels = label_lesions(scattered(5, share=0.05), (0.7, 0.8, 1.3), grouping_mm=2)
        affine = np.diag([0.7, 0.8, 1.3, 1.0])
        for lesion in measure_lesions(labels, Grid(labels.shape, affine))[:5]:
            points = np.argwhere(labels == lesion.lesion) * [0.7, 0.8, 1.3]
            brute = max(np.linalg.norm(points - point, axis=1).max() for point in points)
            assert lesion.longest_axis_mm == pytest.approx(brute)

    def test_flip_permutation_and_rotation_change_no_size(self):
        mask = scattered(6)
        affine = np.diag([0.8, 1.0, 1.7, 1.0])
        labels = label_lesions(mask, (0.8, 1.0, 1.7))
        rows = measure_lesions(labels, Grid(mask.shape, affine))
        flipped = Volume(labels[::-1, :, ::-1].transpose(2, 0, 1), _turned(affine, mask.shape))
        turned = measure_lesions(flipped.array, flipped.grid)
        oblique_affine = affine.copy()
        oblique_affine[:3, :3] = rotation() @ affine[:3, :3]
        oblique = measure_lesions(labels, Grid(mask.shape, oblique_affine))
        for one, two, three in zip(rows, turned, oblique, strict=True):
            for name in ("lesion", "volume_mm3", "longest_axis_mm", "equivalent_diameter_mm"):
                assert getattr(one, name) == pytest.approx(getattr(two, name))
                assert getattr(one, name) == pytest.approx(getattr(three, name))
            assert_allclose(centroid(one), centroid(two), atol=1e-9)
            assert_allclose(rotation() @ centroid(one), centroid(three), atol=1e-9)

    def test_empty(self):
        labels = np.zeros((4, 4, 4), dtype=np.uint16)
        assert measure_lesions(labels, grid_of(labels), image=labels, slope_hu_per_mg=1.0, body=labels > 0) == []

    def test_numbers_may_have_gaps(self):
        labels = np.zeros((6, 3, 3), dtype=np.uint16)
        labels[1, 1, 1], labels[4, 1, 1] = 7, 3
        assert [row.lesion for row in measure_lesions(labels, grid_of(labels))] == [3, 7]


def centroid(lesion: Lesion):
    return np.array([lesion.centroid_x_mm, lesion.centroid_y_mm, lesion.centroid_z_mm])


def _turned(affine, shape):
    """The affine after [::-1, :, ::-1] and transpose(2, 0, 1)."""
    flip = np.diag([-1.0, 1.0, -1.0, 1.0])
    flip[:3, 3] = [shape[0] - 1, 0, shape[2] - 1]
    order = np.eye(4)[[1, 2, 0, 3]]  # new[a, b, c] is old[b, c, a]
    return affine @ flip @ order


class TestIntensity:
    def test_statistics(self):
        labels = np.zeros((9, 9, 9), dtype=np.uint16)
        labels[4, 4, 3:6] = 1
        image = np.full(labels.shape, 50, dtype=np.int16)
        image[4, 4, 3:6] = [200, 400, 3071]
        probability = np.where(labels, 0.75, 0.0)
        lesion = measure_lesions(labels, grid_of(labels), image=image, slope_hu_per_mg=1.42, probability=probability)[0]
        assert lesion.mean_hu == pytest.approx(3671 / 3)
        assert lesion.max_hu == 3071
        assert lesion.clipped_fraction == pytest.approx(1 / 3)
        assert lesion.mean_probability == pytest.approx(0.75)
        # 150 + 350 + 3021 HU over background, in voxels of 0.001 cm³
        assert lesion.mass_mg_ha == pytest.approx(3521 / 1.42 / 1000)

    def test_no_slope_no_mass(self):
        labels = np.ones((1, 1, 1), dtype=np.uint16)
        lesion = measure_lesions(labels, grid_of(labels), image=np.full((1, 1, 1), 300))[0]
        assert lesion.mean_hu == 300
        assert lesion.mass_mg_ha is None

    def test_darker_than_its_surroundings_weighs_nothing(self):
        labels = np.zeros((11, 11, 11), dtype=np.uint16)
        labels[5, 5, 5] = 1
        image = np.where(labels, -50, 50)
        assert measure_lesions(labels, grid_of(labels), image=image, slope_hu_per_mg=1.0)[0].mass_mg_ha == 0.0

    def test_no_background_no_mass(self):
        labels = np.ones((4, 4, 4), dtype=np.uint16)
        image = np.full((4, 4, 4), 500)
        assert measure_lesions(labels, grid_of(labels), image=image, slope_hu_per_mg=1.0)[0].mass_mg_ha is None

    @pytest.mark.parametrize(
        ("spacing", "fwhm_mm", "diameter", "hu", "tolerance"),
        [
            ((1.0, 1.0, 1.0), (1.1, 1.1, 1.1), 2.0, 1500, 0.10),
            ((1.0, 1.0, 1.0), (1.1, 1.1, 1.1), 3.0, 800, 0.05),
            ((1.0, 1.0, 1.0), (1.1, 1.1, 1.1), 5.0, 300, 0.05),
            ((0.6, 0.6, 0.6), (1.2, 1.2, 1.2), 3.0, 300, 0.05),
            ((0.9, 0.9, 3.0), (1.2, 1.2, 3.0), 5.0, 800, 0.05),
            ((1.0, 1.0, 5.0), (1.2, 1.2, 5.0), 10.0, 800, 0.05),
        ],
    )
    def test_mass_of_a_blurred_sphere_is_unbiased(self, spacing, fwhm_mm, diameter, hu, tolerance):
        background, slope = -90.0, 1.42
        # the deposit is water and mineral where fat was: only what exceeds its matrix is mineral
        true_mass = np.pi / 6 * diameter**3 / 1000 * (hu - MATRIX_HU) / slope
        ratios, thresholded = [], []
        for seed in range(4):
            image, occupancy = blurred_sphere(diameter, hu, background, spacing, fwhm_mm, seed)
            labels = (occupancy >= 0.5).astype(np.uint16)
            lesion = measure_lesions(labels, grid_of(labels, spacing), image=image, slope_hu_per_mg=slope)[0]
            ratios.append(lesion.mass_mg_ha / true_mass)
            thresholded.append((image > 130).sum() * np.prod(spacing) / (np.pi / 6 * diameter**3))
        assert np.mean(ratios) == pytest.approx(1.0, abs=tolerance)
        # and the reason for all this: volume by threshold is not
        assert abs(np.mean(thresholded) - 1) > 0.1

    def test_mass_does_not_depend_on_the_mask_edge(self):
        image, occupancy = blurred_sphere(4.0, 900.0, 50.0, ISO, (1.1,) * 3, seed=1)
        masses = [
            measure_lesions(mask.astype(np.uint16), grid_of(image), image=image, slope_hu_per_mg=1.0)[0].mass_mg_ha
            for mask in (occupancy >= 0.5, occupancy >= 0.05, image > 475, image > 200)
        ]
        assert_allclose(masses, masses[0], rtol=0.03)

    def test_mass_scales_with_slope_and_voxel_volume(self):
        image, occupancy = blurred_sphere(4.0, 900.0, 50.0, ISO, (1.1,) * 3, seed=2)
        labels = (occupancy >= 0.5).astype(np.uint16)
        one = measure_lesions(labels, grid_of(labels), image=image, slope_hu_per_mg=1.0)[0].mass_mg_ha
        half = measure_lesions(labels, grid_of(labels), image=image, slope_hu_per_mg=2.0)[0].mass_mg_ha
        assert half == pytest.approx(one / 2)
        sheared = np.eye(4)
        sheared[0, 1] = 0.2
        assert Grid(labels.shape, sheared).voxel_volume_mm3 == pytest.approx(1.0)

    def test_neighbours_do_not_weigh_in(self):
        """Another lesion, air beyond the skin and a touching cortex are not this lesion's mineral."""
        image = np.full((31, 31, 31), 50.0)
        labels = np.zeros(image.shape, dtype=np.uint16)
        labels[14:17, 14:17, 14:17] = 1
        image[labels == 1] = 450.0
        alone = excess_hu(labels, image, np.argwhere(labels == 1), ISO)
        assert alone == pytest.approx(27 * 400)
        image[:, 17:20, :] = 1200.0  # bone against one face
        image[:, :, 20:] = -1000.0  # air 3 voxels off
        labels[8:12, 14:17, 14:17] = 2
        image[labels == 2] = 900.0
        assert excess_hu(labels, image, np.argwhere(labels == 1), ISO) == pytest.approx(alone)

    def test_blur_between_two_lesions_is_counted_once(self):
        image = np.full((31, 21, 21), 50.0)
        image[10:13, 9:12, 9:12] = image[16:19, 9:12, 9:12] = 1050.0
        image = ndimage.gaussian_filter(image, 0.6)
        labels = np.zeros(image.shape, dtype=np.uint16)
        labels[10:13, 9:12, 9:12], labels[15:19, 9:12, 9:12] = 1, 2
        total = sum(excess_hu(labels, image, np.argwhere(labels == n), ISO) for n in (1, 2))
        assert total == pytest.approx(2 * 27 * 1000, rel=0.02)

    def test_background_is_local(self):
        image = np.full((41, 41, 41), 50.0)
        image[20:] = -100.0  # fat beyond a fascia
        labels = np.zeros(image.shape, dtype=np.uint16)
        labels[28, 20, 20] = 1
        image[28, 20, 20] = 300.0
        assert 8 - SHELL_MM[1] > 0
        assert excess_hu(labels, image, np.argwhere(labels == 1), ISO) == pytest.approx(400.0)

    def test_large_lesion_at_the_border(self):
        image = np.full((20, 20, 20), 50.0)
        labels = np.zeros(image.shape, dtype=np.uint16)
        labels[:6, :6, :6] = 1
        image[labels == 1] = 150.0
        assert excess_hu(labels, image, np.argwhere(labels == 1), ISO) == pytest.approx(216 * 100)


def blurred_sphere(diameter, hu, background, spacing, fwhm_mm, seed, fine=4):
    """A sphere at a random place, supersampled, blurred by the scanner, averaged into voxels, 10 HU of noise."""
    rng = np.random.default_rng(seed)
    half = diameter / 2 + 11
    shape = [int(np.ceil(2 * half / step)) for step in spacing]
    axes = [
        (np.arange(n * fine) + 0.5) * step / fine - half - rng.uniform(-0.5, 0.5) * step
        for n, step in zip(shape, spacing, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = (x**2 + y**2 + z**2 <= (diameter / 2) ** 2).astype(np.float32)
    sigma = [fwhm / 2.3548 / (step / fine) for fwhm, step in zip(fwhm_mm, spacing, strict=True)]
    blocks = [size for n in shape for size in (n, fine)]
    blurred = ndimage.gaussian_filter(inside, sigma).reshape(blocks).mean((1, 3, 5))
    image = background + (hu - background) * blurred + rng.normal(0, 10, shape)
    return image, inside.reshape(blocks).mean((1, 3, 5))


class TestDepth:
    def test_hand_worked(self):
        body = np.zeros((20, 30, 20), dtype=bool)
        body[:, 5:25, :] = True
        labels = np.zeros(body.shape, dtype=np.uint16)
        labels[10, 5, 10] = 1  # at the skin: the first voxel outside is one step away
        labels[10, 9:12, 10] = 2
        labels[3, 3, 3] = 3  # outside
        grid = Grid(body.shape, np.diag([1.0, 2.0, 1.0, 1.0]))
        assert [row.depth_mm for row in measure_lesions(labels, grid, body=body)] == [2.0, 10.0, 0.0]

    def test_the_end_of_the_scan_is_not_skin(self):
        body = np.ones((10, 10, 10), dtype=bool)
        labels = np.zeros(body.shape, dtype=np.uint16)
        labels[0, 0, 0] = 1
        assert measure_lesions(labels, grid_of(labels), body=body)[0].depth_mm is None

    def test_against_the_distance_transform(self):
        x, y, z = np.ogrid[:90, :80, :40]
        body = ((x - 45) / 40) ** 2 + ((y - 40) / 30) ** 2 + 0 * z < 1
        spacing = (0.9, 0.9, 2.0)
        exact = ndimage.distance_transform_edt(np.pad(body, ((0, 0), (0, 0), (40, 40)), mode="edge"), sampling=spacing)
        exact = exact[:, :, 40:-40]
        labels = label_lesions(scattered(7, body.shape, 0.001) & body, spacing)
        rows = measure_lesions(labels, grid_of(labels, spacing), body=body)
        assert len(rows) > 30
        for row in rows:
            truth = exact[labels == row.lesion].min()
            assert row.depth_mm == pytest.approx(truth, abs=1e-6 if truth <= 10 else 3.0)

    def test_thin_outside_between_coarse_samples(self):
        body = np.ones((30, 30, 30), dtype=bool)
        body[:, 5, :] = False  # one voxel of air that every fourth sample misses
        assert distance_to_outside(body, np.array([[15, 9, 15]]), ISO)[0] == 4.0


class TestFiles:
    def test_table(self, tmp_path):
        lesion = Lesion(1, 2.5, 1.68, 1.0, -1.0, 2.0, 3.0, mean_hu=400.0)
        write_lesion_table(tmp_path / "lesions.csv", [lesion])
        with (tmp_path / "lesions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert list(rows[0]) == [
            "lesion", "volume_mm3", "equivalent_diameter_mm", "longest_axis_mm",
            "centroid_x_mm", "centroid_y_mm", "centroid_z_mm",
            "mean_hu", "max_hu", "clipped_fraction", "mass_mg_ha", "depth_mm", "region", "side", "mean_probability",
            "volume_integrated_mm3", "volume_sd_mm3", "density_mg_ha_cm3", "density_basis", "bone_mm", "depth_class",
        ]  # fmt: skip
        assert rows[0]["lesion"] == "1"
        assert float(rows[0]["mean_hu"]) == 400.0
        assert rows[0]["max_hu"] == ""

    def test_empty_table_has_a_header(self, tmp_path):
        write_lesion_table(tmp_path / "lesions.csv", [])
        assert (tmp_path / "lesions.csv").read_text().startswith("lesion,volume_mm3,")
        assert len((tmp_path / "lesions.csv").read_text().splitlines()) == 1

    def write(self, path, array):
        write_volume(path, array, Volume(array, np.eye(4)))

    def test_read_mask_takes_any_positive_whole_number(self, tmp_path):
        values = np.array([0, 1, 2, 255]).reshape(2, 2, 1)
        for name, dtype in [("a.nii.gz", np.uint8), ("b.nii", np.float32), ("c.nii.gz", np.int16)]:
            self.write(tmp_path / name, values.astype(dtype))
            mask = read_mask(tmp_path / name)
            assert mask.array.dtype == bool
            assert mask.array.ravel().tolist() == [False, True, True, True]

    @pytest.mark.parametrize(
        ("values", "message"), [([0.0, 0.5], "threshold the probabilities"), ([-1000.0, 40.0], "not the scan")]
    )
    def test_read_mask_refuses_what_is_no_mask(self, tmp_path, values, message):
        self.write(tmp_path / "sub-01.nii.gz", np.array(values, dtype=np.float32).reshape(2, 1, 1))
        with pytest.raises(InputError, match=f"^sub-01: .*{message}"):
            read_mask(tmp_path / "sub-01.nii.gz")


def test_size_strata():
    assert [size_stratum(d) for d in (2.99, 3.0, 10.0, 10.01)] == [
        SIZE_STRATA[0], SIZE_STRATA[1], SIZE_STRATA[1], SIZE_STRATA[2],
    ]  # fmt: skip


def test_ball_steps():
    assert len(ball_steps(1.0, ISO)) == 7
    assert len(ball_steps(1.0, (1.0, 1.0, 3.0))) == 5
    assert len(ball_steps(0.0, ISO)) == 1
    assert len(ball_steps([1.75, 1.75, 1.75], ISO)) == 27


def test_foreground_indices_in_c_order_for_any_memory():
    mask = scattered(10)
    expected = np.argwhere(mask)
    assert_array_equal(foreground_indices(mask), expected)
    assert_array_equal(foreground_indices(np.asfortranarray(mask)), expected)
    assert_array_equal(foreground_indices(mask[::-1, :, ::-1]), np.argwhere(mask[::-1, :, ::-1]))
    assert foreground_indices(np.zeros((2, 2, 2))).shape == (0, 3)


@pytest.mark.slow
def test_cost_follows_the_foreground():
    """Four hundred lesions in a whole-body scan are labelled and measured in seconds, not minutes."""
    rng = np.random.default_rng(0)
    mask = np.zeros((400, 512, 512), dtype=bool)
    for x, y, z in rng.integers(8, 390, (400, 3)):
        mask[x : x + 4, y : y + 3, z : z + 5] = True
    image = np.where(mask, np.int16(600), np.int16(50))
    begin = time.perf_counter()
    labels = label_lesions(mask, ISO)
    rows = measure_lesions(labels, grid_of(labels), image=image, slope_hu_per_mg=1.42)
    assert len(rows) > 300
    assert time.perf_counter() - begin < 15
