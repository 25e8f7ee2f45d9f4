from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jdm_seg.burden.analysis import (
    AGATSTON_EDGES_HU,
    _warnings,
    agatston_edges_hu,
    agatston_score,
    analyse_mask,
    burden_of_files,
    compute_burden,
    detectability_floor_mm3,
    estimate_noise_hu,
    symmetry_index,
    write_analysis,
    write_probability,
)
from jdm_seg.burden.stir import measure_stir
from jdm_seg.errors import GridMismatchError, InputError
from jdm_seg.lesions import Lesion, measure_lesions
from jdm_seg.volume import Grid, Volume, read_volume, write_volume

KEYS = [
    "schema_version", "case_id", "modality", "lesion_count", "volume_ml", "mass_mg_ha", "agatston", "mean_hu",
    "largest_lesion_ml", "by_region", "by_size", "detectability_floor_mm3", "warnings",
]  # fmt: skip


def limb(affine=None, noise=0.0, shape=(60, 50, 20)):
    """A limb of 50 HU in air with two deposits: 1000 voxels of 450 HU and one of 250 HU. Returns scan and mask."""
    x, y, z = np.ogrid[tuple(slice(0, n) for n in shape)]
    tissue = ((x - 30) / 26) ** 2 + ((y - 25) / 22) ** 2 + 0 * z < 1
    hu = np.where(tissue, 50.0, -1000.0)
    mask = np.zeros(shape, dtype=bool)
    mask[25:35, 20:30, 5:15] = True
    hu[mask] = 450.0
    mask[12, 25, 10] = True
    hu[12, 25, 10] = 250.0
    hu += np.random.default_rng(0).normal(0, noise, shape)
    return Volume(hu.astype(np.int16), np.eye(4) if affine is None else affine, "limb"), mask


class TestFigures:
    def test_hand_worked(self):
        scan, mask = limb()
        burden = analyse_mask(scan, mask, case_id="limb", modality="ct", kv=120).burden
        assert [key for key in burden if key in KEYS] == KEYS
        assert (burden["case_id"], burden["modality"], burden["schema_version"]) == ("limb", "ct", 1)
        assert burden["lesion_count"] == 2
        assert burden["volume_ml"] == pytest.approx(1.001)
        assert burden["largest_lesion_ml"] == pytest.approx(1.0)
        # 1.42 HU in 20 cm of water and 1.62 in 10 cm make 1.62² / 1.42 in 5 cm, the least that is believed
        assert burden["hu_per_mg_ha"] == pytest.approx(1.62**2 / 1.42)
        assert burden["mass_mg_ha"] == pytest.approx((1000 * 400 + 200) / (1.62**2 / 1.42) / 1000)
        assert burden["mean_hu"] == pytest.approx((1000 * 450 + 250) / 1001)
        # ten slices of 100 mm² at weight 4, one of 1 mm² at weight 2, 1 mm slices
        assert burden["agatston"] == pytest.approx((10 * 100 * 4 + 1 * 2) / 3)
        assert burden["by_region"]["unknown"]["lesion_count"] == 2
        assert {name: part["lesion_count"] for name, part in burden["by_size"].items()} == {
            "<3 mm": 1, "3-10 mm": 0, ">10 mm": 1,
        }  # fmt: skip
        assert burden["by_size"][">10 mm"]["volume_ml"] == pytest.approx(1.0)
        assert sum(part["mass_mg_ha"] for part in burden["by_size"].values()) == pytest.approx(burden["mass_mg_ha"])

    def test_lesions_know_their_depth(self):
        scan, mask = limb()
        lesions = analyse_mask(scan, mask, case_id="limb", modality="ct").lesions
        assert lesions[1].depth_mm == pytest.approx(9.0, abs=1)
        assert lesions[0].depth_mm > lesions[1].depth_mm

    def test_empty(self):
        scan, mask = limb()
        analysis = analyse_mask(scan, np.zeros_like(mask), case_id="limb", modality="ct", kv=120)
        burden = analysis.burden
        assert analysis.lesions == []
        assert (burden["lesion_count"], burden["volume_ml"], burden["mass_mg_ha"], burden["agatston"]) == (0, 0, 0, 0)
        assert burden["mean_hu"] is None
        assert burden["largest_lesion_ml"] == 0
        assert burden["by_region"] == {}
        assert burden["detectability_floor_mm3"] > 0

    def test_stir_has_no_hu(self):
        scan, mask = limb()
        signal = Volume((scan.array + 1000).astype(np.int16), scan.affine)
        analysis = analyse_mask(signal, mask, case_id="knee", modality="stir")
        burden = analysis.burden
        assert [burden[name] for name in ("mass_mg_ha", "agatston", "mean_hu", "kv", "noise_sd_hu")] == [None] * 5
        assert burden["by_size"][">10 mm"]["mass_mg_ha"] is None
        assert burden["volume_ml"] == pytest.approx(1.001)
        assert burden["detectability_floor_mm3"] == pytest.approx(5.0)
        assert [analysis.lesions[0].mean_hu, analysis.lesions[0].mass_mg_ha] == [None, None]
        assert not any("kV" in warning for warning in burden["warnings"])
        json.dumps(burden, allow_nan=False)

    def test_probability_reaches_the_table(self):
        scan, mask = limb()
        analysis = analyse_mask(scan, mask, case_id="limb", modality="ct", probability=np.where(mask, 0.8, 0.1))
        assert [lesion.mean_probability for lesion in analysis.lesions] == pytest.approx([0.8, 0.8])

    def test_storage_orientation_changes_nothing(self):
        scan, mask = limb(noise=10)
        expected = analyse_mask(scan, mask, case_id="limb", modality="ct", kv=100)
        flip = np.diag([-1.0, 1.0, -1.0, 1.0])
        flip[[0, 2], 3] = mask.shape[0] - 1, mask.shape[2] - 1
        order = np.eye(4)[[1, 2, 0, 3]]

        def turned(array):
            return np.flip(array, (0, 2)).transpose(2, 0, 1)

        other = analyse_mask(
            Volume(turned(scan.array), scan.affine @ flip @ order), turned(mask), case_id="limb", modality="ct", kv=100
        )
        assert_array_equal(other.labels, turned(expected.labels))
        assert other.lesions == expected.lesions
        assert other.burden == expected.burden

    @pytest.mark.parametrize(("kv", "message"), [("60", "from 70 to 140"), ("fast", "tube voltage")])
    def test_unknown_voltage(self, kv, message):
        scan, mask = limb()
        with pytest.raises(InputError, match=f"kv: .*{message}"):
            analyse_mask(scan, mask, case_id="limb", modality="ct", kv=kv)

    def test_mask_of_another_shape(self):
        scan, mask = limb()
        with pytest.raises(GridMismatchError, match="limb"):
            analyse_mask(scan, mask[1:], case_id="limb", modality="ct")


class TestWarnings:
    def warn(self, **changes):
        scan, mask = limb(affine=changes.pop("affine", None))
        hu = scan.array.copy()
        if changes.pop("clip", False):
            hu[28, 25, 10] = 3071
        return analyse_mask(Volume(hu, scan.affine), mask, case_id="limb", modality="ct", kv=changes.get("kv")).burden[
            "warnings"
        ]

    def test_assumed_voltage(self):
        assert any("120 kV was assumed" in text for text in self.warn())
        assert not any("assumed" in text for text in self.warn(kv=120))

    def test_clipped(self):
        assert any("1 of 2 lesions hold voxels at the scanner's ceiling" in text for text in self.warn(clip=True))
        assert not any("ceiling" in text for text in self.warn())

    def test_thick_slices(self):
        thick = np.diag([1.0, 1.0, 5.0, 1.0])
        assert any("Voxels are 5.0 mm long" in text for text in self.warn(affine=thick))
        assert not any("mm long" in text for text in self.warn())

    def test_smaller_than_the_floor(self):
        assert any("1 of 2 lesions are smaller" in text for text in self.warn())


class TestAgatston:
    def score(self, hu, voxels, spacing=(1.0, 1.0, 3.0), kv="120"):
        """One slice: ``voxels`` of ``hu`` in a row."""
        image = np.zeros((12, 8, 4))
        image[:voxels, 3, 1] = hu
        return agatston_score(image > 0, image, Grid(image.shape, np.diag([*spacing, 1.0])), kv=kv)

    @pytest.mark.parametrize(
        ("hu", "expected"),
        [(129, 0), (130, 4), (199, 4), (200, 8), (299, 8), (300, 12), (399, 12), (400, 16), (3071, 16)],
    )
    def test_weights(self, hu, expected):
        assert self.score(hu, 4) == pytest.approx(expected)

    def test_small_islands_do_not_count(self):
        assert self.score(500, 3, spacing=(0.5, 0.5, 3.0)) == 0.0
        assert self.score(500, 4, spacing=(0.5, 0.5, 3.0)) == pytest.approx(4.0)

    def test_scaled_by_slice_distance(self):
        assert self.score(500, 4, spacing=(1.0, 1.0, 1.5)) == pytest.approx(8.0)

    def test_islands_are_weighed_one_by_one(self):
        image = np.zeros((12, 8, 4))
        image[:2, 3, 1], image[5:7, 3, 1], image[8:10, 3, 2] = 150, 450, 350
        image[0, 4, 1] = 120  # in the mask, under the threshold
        grid = Grid(image.shape, np.diag([1.0, 1.0, 3.0, 1.0]))
        assert agatston_score(image > 0, image, grid) == pytest.approx(2 * 1 + 2 * 4 + 2 * 3)

    def test_axial_axis_follows_the_affine(self):
        image = np.zeros((4, 12, 8))
        image[1, :4, 3] = 450
        superior_first = np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
        assert agatston_score(image > 0, image, Grid(image.shape, superior_first)) == pytest.approx(16)

    def test_voltage(self):
        assert self.score(160, 4, kv="120") == pytest.approx(4)
        assert self.score(160, 4, kv="80") == 0
        assert self.score(120, 4, kv="140") == pytest.approx(4)

    def test_scaling_reproduces_published_rows(self):
        """Rows for voltages without a published one come from the slope; it predicts the published ones within 3 %."""
        for kv in ("70", "80", "100"):
            edges = AGATSTON_EDGES_HU.pop(kv)
            try:
                assert agatston_edges_hu(kv) == pytest.approx(edges, rel=0.035)
            finally:
                AGATSTON_EDGES_HU[kv] = edges
        assert agatston_edges_hu(135)[:3] == pytest.approx((119, 183, 274), rel=0.02)


class TestNoiseAndFloor:
    @pytest.mark.parametrize("sd", [5.0, 15.0, 30.0])
    def test_noise_is_recovered(self, sd):
        scan, mask = limb(noise=sd)
        assert estimate_noise_hu(scan.array, mask, scan.grid) == pytest.approx(sd, rel=0.1)

    def test_noise_ignores_anatomy(self):
        scan, mask = limb(noise=15.0)
        hu = scan.array.astype(float)
        hu[:, 25:] -= 120  # fat on one side, lung in it
        hu[40:45, 30:35] = -850
        assert estimate_noise_hu(hu, mask, scan.grid) == pytest.approx(15.0, rel=0.15)

    def test_too_little_tissue(self):
        air = np.full((10, 10, 10), -1000)
        assert estimate_noise_hu(air, air > 0, Grid(air.shape, np.eye(4))) is None

    def test_floor_by_hand(self):
        grid = Grid((9, 9, 9), np.diag([1.0, 1.0, 2.0, 1.0]))
        # 8 x 5 x 71 HU / (200 x 1.42 HU) = 10 voxels of 2 mm³
        assert detectability_floor_mm3(grid, 71.0, 1.42) == pytest.approx(20.0)
        assert detectability_floor_mm3(grid, 1.0, 1.42) == pytest.approx(10.0)  # never under five voxels
        assert detectability_floor_mm3(grid, None, None) == pytest.approx(10.0)
        assert detectability_floor_mm3(grid, 50.0, 1.42) < detectability_floor_mm3(grid, 50.0, 0.89)


class TestFiles:
    def test_burden_of_files(self, tmp_path):
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = [30, -25, 7]
        scan, mask = limb(affine, noise=5)
        write_volume(tmp_path / "sub-01.nii.gz", scan.array, scan)
        write_volume(tmp_path / "mask.nii.gz", mask.astype(np.uint8) * 3, scan)
        analysis = burden_of_files(
            tmp_path / "sub-01.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "out", modality="ct", kv="100"
        )
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "burden.json", "lesions.csv", "lesions.nii.gz",
        ]  # fmt: skip
        labels = read_volume(tmp_path / "out" / "lesions.nii.gz")
        assert labels.array.dtype == np.uint16
        assert_array_equal(labels.affine, scan.affine)
        assert_array_equal(labels.array > 0, mask)
        burden = json.loads((tmp_path / "out" / "burden.json").read_text())
        assert burden == analysis.burden
        assert burden["case_id"] == "sub-01"
        with (tmp_path / "out" / "lesions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == burden["lesion_count"] == 2
        where = np.argwhere(labels.array == 1).mean(axis=0)
        centre = scan.affine[:3, :3] @ where + scan.affine[:3, 3]
        assert [float(rows[0][f"centroid_{axis}_mm"]) for axis in "xyz"] == pytest.approx(centre)
        assert sum(float(row["volume_mm3"]) for row in rows) / 1000 == pytest.approx(burden["volume_ml"])

    def test_mask_on_another_grid(self, tmp_path):
        scan, mask = limb()
        write_volume(tmp_path / "sub-01.nii.gz", scan.array, scan)
        shifted = Volume(mask.astype(np.uint8), np.diag([1.0, 1.0, 2.0, 1.0]))
        write_volume(tmp_path / "mask.nii.gz", shifted.array, shifted)
        with pytest.raises(GridMismatchError, match=r"sub-01: expected the mask on the image's grid"):
            burden_of_files(tmp_path / "sub-01.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "out", modality="ct")
        assert not (tmp_path / "out").exists()

    def test_empty_case_writes_everything(self, tmp_path):
        scan, mask = limb()
        analysis = analyse_mask(scan, np.zeros_like(mask), case_id="limb", modality="ct")
        write_analysis(tmp_path, scan, analysis)
        assert not read_volume(tmp_path / "lesions.nii.gz").array.any()
        assert len((tmp_path / "lesions.csv").read_text().splitlines()) == 1
        assert json.loads((tmp_path / "burden.json").read_text())["lesion_count"] == 0

    def test_probability_in_percent(self, tmp_path):
        scan, mask = limb()
        probability = np.zeros(mask.shape, np.float16)
        probability[mask] = 0.753
        probability[0, 0, :3] = [1.0, 0.004, 0.0]
        analysis = analyse_mask(scan, mask, case_id="limb", modality="ct", kv=120)
        write_analysis(tmp_path, scan, analysis, probability=probability)
        percent = read_volume(tmp_path / "probability.nii.gz")
        assert percent.array.dtype == np.uint8
        assert_array_equal(percent.affine, scan.affine)
        assert (percent.array[mask] == 75).all()
        assert percent.array[0, 0, :3].tolist() == [100, 1, 0]  # what is above 0 stays visible
        for wrong in (1.2, -0.1, np.nan):
            probability[0, 0, 0] = wrong
            with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
                write_probability(tmp_path, probability, scan)

    def test_blur_is_told(self):
        scan, mask = limb()
        burden = analyse_mask(scan, mask, case_id="limb", modality="ct", kv=120).burden
        assert burden["blur_is_assumed"] is False
        deep = Volume(scan.array[15:45, 15:35], scan.affine)  # no skin in view
        burden = analyse_mask(deep, mask[15:45, 15:35], case_id="deep", modality="ct", kv=120).burden
        assert (burden["blur_fwhm_mm"], burden["blur_is_assumed"]) == (1.3, True)
        assert any("blur is assumed" in text for text in burden["warnings"])

    def test_lesions_without_background_are_named(self):
        labels = np.ones((6, 6, 6), dtype=np.uint16)
        image = np.full((6, 6, 6), 500)
        grid = Grid(labels.shape, np.eye(4))
        lesions = measure_lesions(labels, grid, image=image, slope_hu_per_mg=1.42)
        burden = compute_burden("solid", "ct", lesions, labels, image, grid, kv="120")
        assert burden["mass_mg_ha"] is None
        assert any("mass is missing" in text for text in burden["warnings"])


@pytest.mark.real
def test_real_calcification(real_data):
    """Soft-tissue calcification of 0.2 to 1 mL in adult thighs and calves, 140 kV, 3.27 mm slices."""
    folder = real_data / "ct" / "limbs_calcified"
    for number in ("006", "028", "045"):
        scan = read_volume(folder / f"sts-{number}.nii.gz")
        masks = [read_volume(folder / f"sts-{number}_calc_hu{hu}.nii.gz").array > 0 for hu in (150, 200)]
        low, high = (analyse_mask(scan, mask, case_id=number, modality="ct", kv=140) for mask in masks)
        assert 0.05 < high.burden["volume_ml"] < low.burden["volume_ml"] < 3
        # the mask grows by half and more, the mass by much less: it is what is there, not what the threshold says
        growth = [low.burden[name] / high.burden[name] for name in ("volume_ml", "mass_mg_ha")]
        assert growth[1] < growth[0]
        assert all(lesion.depth_mm > 1 for lesion in low.lesions)
        assert 2 < low.burden["noise_sd_hu"] < 40


class TestWhere:
    def lesion(self, number, region, side, volume):
        return Lesion(number, volume, 1.0, 1.0, 0.0, 0.0, 0.0, region=region, side=side)

    def test_symmetry_by_hand(self):
        lesions = [
            self.lesion(1, "thigh", "left", 300.0),
            self.lesion(2, "thigh", "right", 100.0),
            self.lesion(3, "arm", "right", 200.0),
            self.lesion(4, "chest", "midline", 999.0),
        ]
        # thigh: twice 100 of 400, arm: nothing of 200
        assert symmetry_index(lesions) == pytest.approx(200 / 600)
        assert symmetry_index(lesions[:2] * 1) == pytest.approx(0.5)
        assert symmetry_index(lesions[3:]) is None
        assert symmetry_index([]) is None

    def test_totals_by_side_and_depth(self):
        scan, mask = limb()
        burden = analyse_mask(scan, mask, case_id="limb", modality="ct", kv=120).burden
        assert burden["by_side"]["unknown"]["lesion_count"] == 2
        assert sum(part["lesion_count"] for part in burden["by_depth"].values()) == 2
        assert any("region and side are not known" in text for text in burden["warnings"])
        assert burden["symmetry_index"] is None

    def test_hu_figures_by_hand(self):
        scan, mask = limb()
        hu = scan.array.copy()
        hu[25:35, 20:25, 5:15] = 1200
        hu[25, 20, 5] = 3071
        burden = analyse_mask(Volume(hu, scan.affine), mask, case_id="limb", modality="ct", kv=120).burden
        assert burden["max_hu"] == 3071
        assert burden["clipped_fraction"] == pytest.approx(1 / 1001)
        assert burden["dense_fraction"] == pytest.approx(500 / 1001)
        assert burden["median_hu"] == 450

    def test_integrated_volume_of_a_block(self):
        """Without blur the integrated volume of a large even block is its own."""
        scan, mask = limb()
        lesion = analyse_mask(scan, mask, case_id="limb", modality="ct", kv=120).lesions[0]
        assert lesion.volume_integrated_mm3 == pytest.approx(1000, rel=0.02)
        assert lesion.density_basis == "core"
        assert lesion.density_mg_ha_cm3 == pytest.approx(400 / (1.62**2 / 1.42), rel=0.02)


class TestStir:
    def scan(self):
        """Muscle of 100 in a limb, a void, bright paste, and oedema beside them; all in voxels of 8 mm³."""
        x, y = np.ogrid[:60, :60]
        signal = np.zeros((60, 60, 30))
        signal[np.hypot(x - 30, y - 30) < 26] = 100.0
        mask = np.zeros(signal.shape, bool)
        mask[20:24, 20:24, 10:14] = True
        signal[20:24, 20:24, 10:13] = 5.0
        signal[20:24, 20:24, 13] = 550.0
        signal[30:34, 26:30, 10:16] = 280.0
        noise = np.random.default_rng(0).normal(0, 4, (2, *signal.shape))
        return np.hypot(signal + noise[0], noise[1]), mask

    def test_void_fluid_and_oedema(self):
        signal, mask = self.scan()
        found = measure_stir(signal, mask, (2.0, 2.0, 2.0))
        assert found.void_ml == pytest.approx(48 * 8 / 1000)
        assert found.fluid_ml == pytest.approx(16 * 8 / 1000)
        assert found.other_ml == pytest.approx(0, abs=1e-6)
        assert 0.3 < found.oedema_ml / (96 * 8 / 1000) < 1.1  # its rim is averaged with muscle
        assert found.noise_share == pytest.approx(0.04, rel=0.3)

    def test_far_brightness_is_not_this_deposits_oedema(self):
        signal, mask = self.scan()
        signal[30:34, 26:30, 10:16] = 100.0
        signal[48:52, 30:34, 10:16] = 280.0
        assert measure_stir(signal, mask, (2.0, 2.0, 2.0)).oedema_ml < 0.1

    def test_in_burden(self):
        signal, mask = self.scan()
        scan = Volume(signal.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
        burden = analyse_mask(scan, mask, case_id="thigh", modality="stir").burden
        assert burden["stir"]["void_ml"] == pytest.approx(48 * 8 / 1000)
        assert any("Oedema is what is 2 to 4 times" in text for text in burden["warnings"])
        empty = analyse_mask(scan, np.zeros_like(mask), case_id="thigh", modality="stir").burden
        assert empty["stir"]["void_ml"] == 0
        json.dumps(burden, allow_nan=False)


def test_lesions_at_a_bone_are_named():
    grid = Grid((10, 10, 10), np.eye(4))
    rows = [Lesion(n, 500.0, 1, 1, 0, 0, 0, bone_mm=away, mass_mg_ha=20.0) for n, away in enumerate((0.0, 9.0, 3.3), 1)]
    (text,) = [w for w in _warnings(rows, grid, 1.0, is_ct=True, kv_is_known=True) if "bone" in w]
    assert text.startswith("2 of 3 lesions lie at a bone (number 1, 3; 1.00 mL, 40 mg together)")
    assert not [w for w in _warnings(rows[1:2], grid, 1.0, is_ct=True, kv_is_known=True) if "bone" in w]
