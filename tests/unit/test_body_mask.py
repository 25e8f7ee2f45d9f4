from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage

from jdm_seg.body_mask import MARGIN_MM, BodyOutline, CoarseMask, bounding_box, find_body, locate_body, outline_body
from jdm_seg.errors import InputError
from jdm_seg.volume import read_volume

ISO = (1.0, 1.0, 1.0)


def phantom(shape=(160, 140, 60), noise=20.0, seed=0):
    """A trunk with lungs in air, as HU; and where its tissue is."""
    x, y, z = np.ogrid[tuple(slice(0, n) for n in shape)]
    trunk = ((x - 80) / 60) ** 2 + ((y - 80) / 40) ** 2 + 0 * z < 1
    lungs = ((abs(x - 80) - 25) / 16) ** 2 + ((y - 80) / 20) ** 2 + 0 * z < 1
    hu = np.where(trunk, 40.0, -1000.0)
    hu[lungs] = -850.0
    return hu + np.random.default_rng(seed).normal(0, noise, shape), trunk


class TestBoundingBox:
    def test_hand_worked(self):
        mask = np.zeros((10, 12, 14), dtype=bool)
        mask[2:4, 5, 7:12] = True
        assert bounding_box(mask) == (slice(2, 4), slice(5, 6), slice(7, 12))
        assert bounding_box(mask, 3) == (slice(0, 7), slice(2, 9), slice(4, 14))
        assert bounding_box(mask, [0, 1, 2]) == (slice(2, 4), slice(4, 7), slice(5, 14))

    def test_any_number_and_memory_order(self):
        mask = np.zeros((4, 5, 6), dtype=np.int16, order="F")
        mask[1, 2, 3] = -7
        assert bounding_box(mask) == (slice(1, 2), slice(2, 3), slice(3, 4))

    def test_empty(self):
        assert bounding_box(np.zeros((3, 3, 3)), 5) == (slice(0, 0),) * 3


class TestCoarseMask:
    def test_hand_worked(self):
        """Samples at voxels 0, 2, 4 and 0, 3, ...: sample (1, 1, 1) stands for x 2-3, y 3-5, z 1."""
        samples = np.zeros((3, 3, 4), dtype=bool)
        samples[1, 1, 1] = True
        mask = CoarseMask(samples, (2, 3, 1), (5, 8, 4))
        assert mask.box() == (slice(2, 4), slice(3, 6), slice(1, 2))
        assert mask.box([2, 1, 9]) == (slice(0, 5), slice(2, 7), slice(0, 4))
        whole = mask.at(np.arange(5), np.arange(8), np.arange(4))
        assert np.argwhere(whole).tolist() == [[x, y, 1] for x in (2, 3) for y in (3, 4, 5)]
        assert CoarseMask(np.zeros((3, 3, 4), dtype=bool), (2, 3, 1), (5, 8, 4)).box(3) == (slice(0, 0),) * 3

    def test_says_what_the_full_mask_says(self):
        hu, _ = phantom((161, 139, 61))
        coarse, full = locate_body(hu, ISO, "ct"), find_body(hu, ISO, "ct")
        assert np.array_equal(coarse.at(*(np.arange(n) for n in hu.shape)), full)
        assert coarse.box() == bounding_box(full)


class TestFindBody:
    def test_keeps_all_tissue_and_fills_lungs(self):
        hu, trunk = phantom()
        body = find_body(hu, ISO, "ct")
        assert body[trunk].all()
        assert body.mean() < 0.75

    def test_margin_lies_beyond_the_skin(self):
        hu, trunk = phantom()
        body = find_body(hu, ISO, "ct")
        around = ndimage.distance_transform_edt(~trunk) <= MARGIN_MM["ct"]
        assert body[around].all()
        assert not find_body(hu, ISO, "ct", margin_mm=0)[ndimage.distance_transform_edt(~trunk) > 16].any()

    def test_removes_a_table_that_does_not_touch(self):
        hu, trunk = phantom((160, 140, 150))
        hu[10:150, 20:23, :] = 0.0
        body = find_body(hu, ISO, "ct")
        assert body[trunk].all()
        assert bounding_box(body)[1].start > 20

    def test_keeps_a_second_leg_and_a_lone_finger(self):
        hu = np.full((140, 60, 100), -1000.0)
        x, y = np.ogrid[:140, :60]
        legs = np.repeat((np.hypot(abs(x - 70) - 35, y - 30) < 20)[:, :, None], 100, axis=2)
        finger = np.zeros_like(legs)
        finger[66:74, 26:34, 20:75] = True
        hu[legs | finger] = 40.0
        assert find_body(hu, ISO, "ct")[legs | finger].all()

    def test_drops_specks(self):
        hu, _ = phantom()
        hu[2:6, 2:6, 2:6] = 500.0
        assert not find_body(hu, ISO, "ct")[:6, :6].any()

    @pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.98, 0.98, 3.27), (2.0, 2.0, 6.0)])
    def test_any_voxel_size(self, spacing):
        hu, trunk = phantom()
        assert find_body(hu, spacing, "ct")[trunk].all()

    @pytest.mark.parametrize("modality", ["ct", "stir"])
    def test_nothing_found_means_everything(self, modality):
        assert find_body(np.full((20, 20, 20), -1000.0), ISO, modality).all()
        assert outline_body(np.full((20, 20, 20), -1000.0), ISO, modality).all()

    def test_stir_keeps_dark_fat_under_bright_skin(self):
        x, y, z = np.ogrid[:200, :200, :20]
        radius = np.hypot(x - 100, y - 100) + 0 * z
        signal = np.select([radius < 35, radius < 47, radius < 50], [200.0, 25.0, 120.0], 0.0)
        rng = np.random.default_rng(0)
        signal = np.hypot(signal + rng.normal(0, 8, signal.shape), rng.normal(0, 8, signal.shape))
        body = find_body(signal, (1.0, 1.0, 5.0), "stir")
        assert body[radius < 50].all()
        assert body.mean() < 0.5

    def test_unknown_modality(self):
        with pytest.raises(InputError, match="modality ct or stir"):
            find_body(np.zeros((4, 4, 4)), ISO, "pet")

    def test_under_a_second_for_a_whole_scan(self):
        hu = np.full((512, 512, 300), -1000, dtype=np.int16, order="F")
        hu[100:400, 120:380] = 50
        begin = time.perf_counter()
        body = find_body(hu, (0.8, 0.8, 1.0), "ct")
        assert time.perf_counter() - begin < 3  # 0.4 s alone on one core; other work may share it
        assert body.flags.f_contiguous


class TestOutlineBody:
    def test_follows_the_skin_and_fills_lungs(self):
        hu, trunk = phantom()
        assert np.array_equal(outline_body(hu, ISO, "ct"), trunk)

    def test_thick_slices(self):
        hu, trunk = phantom()
        assert np.array_equal(outline_body(hu, (0.98, 0.98, 3.27), "ct"), trunk)

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("spacing", [ISO, (0.98, 0.98, 3.27)])
    def test_any_part_is_that_of_the_whole(self, order, spacing):
        hu = np.asarray(phantom()[0], order=order)
        whole, outline = outline_body(hu, spacing, "ct"), BodyOutline(hu, spacing, "ct")
        assert outline.shape == whole.shape
        rng = np.random.default_rng(0)
        for _ in range(20):
            low, high = np.sort([rng.integers(0, n + 1, 2) for n in hu.shape]).T
            x, y, z = (slice(a, b, int(rng.integers(1, 4))) for a, b in zip(low, high, strict=True))
            assert np.array_equal(outline[x, y, z], whole[x, y, z])
            level = int(rng.integers(hu.shape[2]))
            assert np.array_equal(outline[x, y, level], whole[x, y, level])
            points = tuple(rng.integers(0, n, 30) for n in hu.shape)
            assert np.array_equal(outline[points], whole[points])

    def test_tells_whether_there_is_an_outside(self):
        hu, _ = phantom()
        assert not BodyOutline(hu, ISO, "ct").all()
        assert BodyOutline(np.full((20, 20, 20), 50.0), ISO, "ct").all()
        assert BodyOutline(np.full((20, 20, 20), -1000.0), ISO, "ct").all()  # no body is found


@pytest.mark.real
@pytest.mark.parametrize("folder", ["limbs", "limbs_calcified", "trunk"])
def test_no_real_skin_is_lost(real_data, folder):
    """Whatever is thicker than a table top and lies at fat density or above is inside, in every scan."""
    scans = [path for path in sorted((real_data / "ct" / folder).glob("*.nii.gz")) if path.name.count("_") == 0]
    assert scans
    for path in scans:
        scan = read_volume(path).to_canonical()
        body = find_body(scan.array, scan.spacing, "ct")
        tissue = scan.array > -300
        size = [max(3, round(9.0 / step) // 2 * 2 + 1) for step in scan.spacing]
        # opened by 9 mm: what is left is no table, line or sheet, but every limb
        opened = ndimage.maximum_filter(ndimage.minimum_filter(tissue, size), size) & tissue
        sizes = ndimage.sum_labels(opened, *ndimage.label(opened)[:1], index=1) if opened.any() else 0
        assert sizes > 0
        assert (opened & ~body).sum() < 1e-3 * opened.sum(), path.name
        assert body.mean() < 0.97, path.name


@pytest.mark.real
def test_real_table_is_removed(real_data):
    scan = read_volume(real_data / "ct" / "limbs" / "sts-004.nii.gz").to_canonical()
    assert bounding_box(find_body(scan.array, scan.spacing, "ct"))[1].start > 15


@pytest.mark.real
def test_real_mr(real_data):
    scan = read_volume(real_data / "mr" / "other" / "qmri-legs_thighs.nii.gz").to_canonical()
    body = find_body(scan.array, scan.spacing, "stir")
    assert body[scan.array > 100].all()
    assert body.mean() < 0.4
