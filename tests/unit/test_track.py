from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import ndimage

from jdm_seg.burden.analysis import analyse_mask, write_analysis
from jdm_seg.errors import CaseNotFoundError, GridMismatchError, InputError
from jdm_seg.lesions import Lesion
from jdm_seg.tracking.correspondence import match_groups
from jdm_seg.tracking.fates import (
    Timepoint,
    common_measure,
    fate_of_pair,
    fates_by_lesion,
    standard_error,
    summarise,
    track_lesions,
)
from jdm_seg.tracking.files import read_timepoint, track_folders
from jdm_seg.tracking.registration import Alignment, align_scans
from jdm_seg.tracking.simulate import TRUE_FATES, score_fates, simulate_pair
from jdm_seg.volume import Volume, read_volume, write_volume

HERE = Alignment(np.eye(4))


def cube(x, y=20, z=20, half=2):
    line = np.arange(-half, half + 1.0)
    return np.stack(np.meshgrid(x + line, y + line, z + line, indexing="ij"), axis=-1).reshape(-1, 3)


class TestGroups:
    def groups(self, before, after):
        numbered = [dict(enumerate(side, start=1)) for side in (before, after)]
        return sorted(match_groups(*numbered))

    def test_hand_worked(self):
        assert self.groups([cube(10)], [cube(13)]) == [((1,), (1,))]
        assert self.groups([cube(10)], [cube(40)]) == [((), (1,)), ((1,), ())]
        assert self.groups([], []) == []
        assert self.groups([cube(10)], []) == [((1,), ())]

    def test_assignment_is_not_greedy(self):
        """The near pair of 2 and 1 would leave 1 and 2 without a partner."""
        before, after = [cube(10), cube(18)], [cube(15), cube(23)]
        assert self.groups(before, after) == [((1,), (1,)), ((2,), (2,))]

    def test_merge_and_split(self):
        two, one = [cube(10), cube(18)], [np.concatenate([cube(10), cube(14), cube(18)])]
        assert self.groups(two, one) == [((1, 2), (1,))]
        assert self.groups(one, two) == [((1,), (1, 2))]

    def test_a_small_one_beside_a_large_one_is_its_own(self):
        large = cube(20, half=8)
        assert self.groups([large], [large, cube(34)]) == [((), (2,)), ((1,), (1,))]

    def test_every_lesion_is_in_one_group(self):
        rng = np.random.default_rng(0)
        sides = [[cube(*rng.uniform(0, 60, 3)) for _ in range(40)] for _ in range(2)]
        groups = self.groups(*sides)
        for side in (0, 1):
            assert sorted(n for group in groups for n in group[side]) == list(range(1, 41))


class TestFates:
    @pytest.mark.parametrize(
        ("before", "after", "detectable", "fate"),
        [
            (100, 125, 5, "stable"),
            (100, 75, 5, "stable"),
            (100, 126, 5, "grown"),
            (100, 74, 5, "shrunk"),
            (100, 140, 50, "uncertain"),
            (100, 110, 50, "stable"),
        ],
    )
    def test_bands(self, before, after, detectable, fate):
        assert fate_of_pair(before, after, detectable) == fate

    def timepoint(self, *lesions, floor=20.0, shape=(60, 40, 40), **burden):
        labels = np.zeros(shape, np.uint16)
        rows = []
        for number, (x, half, mass) in enumerate(lesions, start=1):
            labels[x - half : x + half + 1, 20 - half : 21 + half, 20 - half : 21 + half] = number
            volume = float((2 * half + 1) ** 3)
            rows.append(
                Lesion(number, volume, 1.0, 1.0, float(x), 20.0, 20.0, mass_mg_ha=mass, volume_integrated_mm3=volume,
                       volume_sd_mm3=0.01 * volume, density_basis="core")
            )  # fmt: skip
        facts = {
            "case_id": "a",
            "modality": "ct",
            "kv": "120",
            "kv_is_assumed": False,
            "detectability_floor_mm3": floor,
        }
        return Timepoint(Volume(labels, np.eye(4)), rows, {**facts, **burden})

    def fates(self, baseline, follow_up, alignment=HERE):
        return [change.fate for change in track_lesions(baseline, follow_up, alignment)]

    def test_grown_and_its_row(self):
        (row,) = track_lesions(self.timepoint((20, 2, 50.0)), self.timepoint((21, 2, 80.0)), HERE)
        assert (row.fate, row.baseline, row.follow_up, row.measure) == ("grown", "1", "1", "mass_mg_ha")
        assert (row.before, row.after, row.change) == (50.0, 80.0, 30.0)
        assert row.change_percent == pytest.approx(60)
        assert row.distance_mm == pytest.approx(1)
        # 1.96 times the root of both squared errors, each 1 % noise and 5 % repeatability
        error = np.hypot(0.01, 0.05)
        assert row.smallest_detectable_change == pytest.approx(1.96 * np.hypot(50 * error, 80 * error))

    def test_new_and_resolved(self):
        some, none = self.timepoint((20, 2, 50.0)), self.timepoint()
        assert self.fates(some, none) == ["resolved"]
        assert self.fates(none, some) == ["new"]
        assert self.fates(none, none) == []

    def test_below_the_floor_of_the_noisier_scan(self):
        some = self.timepoint((20, 1, 5.0))
        assert self.fates(some, self.timepoint(floor=28.0)) == ["uncertain"]
        assert self.fates(some, self.timepoint(floor=27.0)) == ["resolved"]
        assert self.fates(self.timepoint(floor=28.0), some) == ["uncertain"]

    def test_out_of_view(self):
        some, small = self.timepoint((50, 2, 50.0)), self.timepoint(shape=(40, 40, 40))
        assert self.fates(some, small) == ["out_of_view"]
        assert self.fates(small, some) == ["out_of_view"]

    def test_alignment_is_used(self):
        moved = np.eye(4)
        moved[0, 3] = 25.0
        assert self.fates(self.timepoint((10, 2, 50.0)), self.timepoint((35, 2, 50.0)), Alignment(moved)) == ["stable"]
        assert sorted(self.fates(self.timepoint((10, 2, 50.0)), self.timepoint((35, 2, 50.0)))) == ["new", "resolved"]

    def test_measure(self):
        known = self.timepoint((20, 2, 50.0))
        assumed = self.timepoint((20, 2, 50.0), kv_is_assumed=True)
        assert common_measure(known, known) == "mass_mg_ha"
        assert common_measure(known, assumed) == "volume_integrated_mm3"
        rows = [replace(row, density_basis="mask") for row in assumed.lesions]
        assert common_measure(known, Timepoint(assumed.labels, rows, assumed.burden)) == "volume_mm3"

    def test_error_without_noise_falls_with_size(self):
        small, large = (Lesion(1, v, 1, 1, 0, 0, 0) for v in (20.0, 2000.0))
        errors = [standard_error(row, "volume_mm3", 1.0) / row.volume_mm3 for row in (small, large)]
        assert errors[0] > errors[1] > 0.05

    def test_summary(self):
        baseline, follow_up = self.timepoint((10, 2, 50.0), (40, 2, 30.0)), self.timepoint((10, 2, 52.0))
        changes = track_lesions(baseline, follow_up, HERE)
        found = summarise(changes, baseline, follow_up, HERE)
        assert (found["fates"]["stable"], found["fates"]["resolved"], found["fates"]["new"]) == (1, 1, 0)
        assert (found["before"], found["after"]) == (80.0, 52.0)
        assert found["change_percent"] == pytest.approx(-35)
        assert any("scanner coordinates" in text for text in found["warnings"])
        json.dumps(found, allow_nan=False)

    def test_what_one_scan_does_not_show_is_no_change(self):
        baseline, follow_up = (
            self.timepoint((10, 2, 50.0), (50, 2, 30.0)),
            self.timepoint((10, 2, 50.0), shape=(40, 40, 40)),
        )
        found = summarise(track_lesions(baseline, follow_up, HERE), baseline, follow_up, HERE)
        assert (found["before"], found["after"], found["fates"]["out_of_view"]) == (50.0, 50.0, 1)
        assert any("1 of 2 findings lie where only one scan looked (30 mg at baseline" in w for w in found["warnings"])

    def test_two_methods_and_two_people_are_warned_of(self):
        point = self.timepoint((10, 2, 50.0))

        def by(**made_by):
            return Timepoint(point.labels, point.lesions, {**point.burden, "prediction": made_by})

        def warnings(one, other, correlation=0.95):
            alignment = replace(HERE, correlation=correlation)
            return summarise(track_lesions(one, other, alignment), one, other, alignment)["warnings"]

        ct = by(model="ct", model_sha256="48b2403fc2", threshold=0.4)
        assert warnings(ct, ct) == []
        (text,) = warnings(ct, by(model="threshold", threshold=200))
        assert "segmented by ct 48b2403f at 0.4, the follow-up by threshold at 200" in text
        (text,) = warnings(ct, by(model="ct", model_sha256="ffff", threshold=0.4))
        assert "may be the method" in text
        (text,) = warnings(ct, ct, correlation=0.63)
        assert "same part of one person" in text


class TestAlignment:
    def test_map_and_back(self):
        affine = np.eye(4)
        affine[:3, 3] = [10, -5, 3]
        alignment = Alignment(affine, np.array([[0.0, 0, 0], [100.0, 0, 0]]), np.array([[2.0, 0, 0], [0.0, 4, 0]]))
        points = np.array([[0.0, 0, 0], [100.0, 0, 0]])
        assert_allclose(alignment.map(points), [[12, -5, 3], [110, -1, 3]], atol=0.01)
        assert_allclose(alignment.unmap(alignment.map(points)), points, atol=1.0)

    def test_without_simpleitk(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "SimpleITK", None)
        noise = np.random.default_rng(0).normal(0, 100, (20, 20, 20)).astype(np.int16)
        scan = Volume(noise, np.diag([4.0, 4.0, 4.0, 1.0]))
        with pytest.raises(InputError, match=r"SimpleITK.*pip install 'jdm-seg\[track\]'"):
            align_scans(scan, scan, "ct", np.zeros((1, 3)))

    def test_another_field_of_view(self):
        """The follow-up shows the lower two thirds, and the scanner's origin lies elsewhere."""
        pair = simulate_pair(3, spacing=(1.5, 1.5, 3.0), deposits=0)
        scan = pair.scans[0]
        cut = scan.array.shape[2] // 3
        affine = scan.affine.copy()
        affine[:3, 3] += [40.0, -25.0, 130.0]
        part = Volume(scan.array[:, :, : scan.array.shape[2] - cut], affine)
        middle = scan.affine[:3, :3] @ (np.array(part.array.shape) / 2) + scan.affine[:3, 3]
        alignment = align_scans(scan, part, "ct", middle[None])
        assert_allclose(alignment.map(middle[None])[0] - middle, [40, -25, 130], atol=3)
        assert alignment.correlation > 0.9


def timepoint_of(scan, mask, kv):
    analysis = analyse_mask(scan, mask, case_id=scan.name, modality="ct", kv=kv)
    return Timepoint(Volume(analysis.labels, scan.affine), analysis.lesions, analysis.burden)


@pytest.mark.slow
def test_true_fates_of_simulated_follow_ups():
    """The bar: of deposits of 5 mm and more, 95 % of the fates are right in patients who moved and bent a joint."""
    rows = []
    for seed, spacing, kv in ((1, (1.0, 1.0, 2.0), ("120", "100")), (5, (0.9, 0.9, 3.0), ("80", "120"))):
        pair = simulate_pair(seed, spacing=spacing, kv=kv)
        points = [timepoint_of(*part) for part in zip(pair.scans, pair.masks, pair.kv, strict=True)]
        places = np.concatenate(list(points[0].points().values()))
        changes = track_lesions(*points, align_scans(*pair.scans, "ct", places))
        rows += score_fates(pair, (points[0].labels.array, points[1].labels.array), fates_by_lesion(changes))
    assert len(rows) >= 30
    assert {row["fate"] for row in rows} == set(TRUE_FATES)
    wrong = [row for row in rows if not row["right"]]
    assert len(wrong) <= 0.05 * len(rows), wrong


class TestFolders:
    @pytest.fixture
    def folders(self, tmp_path):
        """Two visits of one limb: the lesion of the second is twice as dense."""
        x, y, _ = np.ogrid[:60, :50, :24]
        tissue = ((x - 30) / 26) ** 2 + ((y - 25) / 22) ** 2 < 1
        for name, value in (("first", 450.0), ("second", 850.0)):
            hu = np.where(np.broadcast_to(tissue, (60, 50, 24)), 50.0, -1000.0)
            mask = np.zeros(hu.shape, bool)
            mask[25:33, 20:28, 8:16] = True
            hu[mask] = value
            scan = Volume(hu.astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
            write_volume(tmp_path / f"{name}.nii.gz", scan.array, scan)
            write_analysis(tmp_path / name, scan, analyse_mask(scan, mask, case_id=name, modality="ct", kv=120))
        return tmp_path

    def test_writes_table_summary_and_figure(self, folders):
        summary = track_folders(folders / "first", folders / "second", folders / "out")
        assert sorted(path.name for path in (folders / "out").iterdir()) == ["change.json", "change.png", "changes.csv"]
        assert summary == json.loads((folders / "out" / "change.json").read_text())
        assert (summary["baseline"], summary["follow_up"]) == ("first", "second")
        with (folders / "out" / "changes.csv").open(newline="") as stream:
            (row,) = csv.DictReader(stream)
        assert row["fate"] == "grown"
        assert float(row["change_percent"]) == pytest.approx(100, abs=1)

    def test_with_scans(self, folders):
        summary = track_folders(
            folders / "first", folders / "second", folders / "out",
            baseline_scan=folders / "first.nii.gz", follow_up_scan=folders / "second.nii.gz",
        )  # fmt: skip
        assert summary["registration"]["correlation"] > 0.95
        assert not any("scanner coordinates" in text for text in summary["warnings"])

    def test_reads_back_what_was_written(self, folders):
        point = read_timepoint(folders / "first")
        scan = read_volume(folders / "first.nii.gz")
        mask = point.labels.array > 0
        assert point.lesions == analyse_mask(scan, mask, case_id="first", modality="ct", kv=120).lesions

    def test_messages(self, folders):
        with pytest.raises(CaseNotFoundError, match=r"lesions\.nii\.gz"):
            track_folders(folders, folders / "second", folders / "out")
        with pytest.raises(InputError, match="both scans or none"):
            track_folders(
                folders / "first", folders / "second", folders / "out", baseline_scan=folders / "first.nii.gz"
            )
        burden = json.loads((folders / "first" / "burden.json").read_text())
        burden["prediction"] = {"scan_sha256": "0"}
        (folders / "first" / "burden.json").write_text(json.dumps(burden))
        scans = {"baseline_scan": folders / "first.nii.gz", "follow_up_scan": folders / "second.nii.gz"}
        with pytest.raises(InputError, match="the scan that case first was made from"):
            track_folders(folders / "first", folders / "second", folders / "out", **scans)
        burden["modality"] = "stir"
        (folders / "first" / "burden.json").write_text(json.dumps(burden))
        with pytest.raises(InputError, match="a stir case like the baseline"):
            track_folders(folders / "first", folders / "second", folders / "out")
        (folders / "first" / "lesions.csv").write_text("lesion,volume_mm3\n")
        with pytest.raises(InputError, match=r"one row in lesions\.csv"):
            read_timepoint(folders / "first")

    def test_a_scan_of_another_grid(self, folders):
        scan = read_volume(folders / "first.nii.gz")
        write_volume(folders / "other.nii.gz", scan.array[1:], Volume(scan.array[1:], scan.affine))
        with pytest.raises(GridMismatchError):
            track_folders(
                folders / "first", folders / "second", folders / "out",
                baseline_scan=folders / "other.nii.gz", follow_up_scan=folders / "second.nii.gz",
            )  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize("number", ["006", "028", "045"])
def test_a_real_limb_that_was_turned_has_not_changed(real_data, number):
    """Real calcification, the follow-up turned by 6 degrees, shifted and noisier: nothing is new, resolved or grown."""
    folder = real_data / "ct" / "limbs_calcified"
    scan = read_volume(folder / f"sts-{number}.nii.gz").to_canonical()
    mask = read_volume(folder / f"sts-{number}_calc_hu150.nii.gz").to_canonical().array > 0
    angle = np.deg2rad(6.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    middle = np.array(scan.array.shape) / 2
    offset = middle - turn @ middle + [4.0, -3.0, 1.5]
    moved = ndimage.affine_transform(scan.array.astype(np.float32), turn, offset, order=1, cval=-1000.0)
    moved += np.random.default_rng(0).normal(0, 10, moved.shape)
    turned = ndimage.affine_transform(mask.astype(np.float32), turn, offset, order=1) >= 0.5
    later = Volume(moved.astype(np.int16), scan.affine, "later")
    points = [timepoint_of(scan, mask, 140), timepoint_of(later, turned, 140)]
    places = np.concatenate(list(points[0].points().values()))
    changes = track_lesions(*points, align_scans(scan, later, "ct", places))
    large = [change for change in changes if max(change.volume_before_mm3, change.volume_after_mm3) > 65]
    assert large
    assert {change.fate for change in large} <= {"stable", "uncertain", "merged", "split"}, large
