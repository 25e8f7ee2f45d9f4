"""The ignore zone, by hand-worked cases: what lies in it neither counts nor fails."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from jdm_seg.cases import Case, Manifest, read_manifest, read_strata, write_manifest
from jdm_seg.cli import app
from jdm_seg.components import LesionVoxels
from jdm_seg.config import PreprocessConfig
from jdm_seg.errors import CaseNotFoundError
from jdm_seg.evaluate import EvaluateSettings, evaluate_folders
from jdm_seg.metrics.ignore import outside_lesions
from jdm_seg.metrics.protocol import LesionProtocol, protocol_named
from jdm_seg.scoring import failed_case, score_case
from jdm_seg.synthesis.anatomy.tissue import Tissue
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.synthesis.deposits.calcinosis import Calcinosis
from jdm_seg.synthesis.insert import IGNORE, unclear_in_scan
from jdm_seg.synthesis.visibility import seen_on_ct, seen_on_stir
from jdm_seg.transforms import LoadCase
from jdm_seg.volume import Grid, Volume, read_volume, write_volume

PLAIN = LesionProtocol(grouping_mm=0.0, min_volume_mm3=0.0)
SHAPE = (12, 3, 1)
GRID = Grid(SHAPE, np.diag([1.0, 1.0, 1.0, 1.0]))


def row(*columns, y=1):
    """A mask with these columns of one row set; voxels are 1 mm³."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[list(columns), y, 0] = True
    return mask


def figures(prediction, reference, ignore=None, protocol=PLAIN):
    return score_case("x", prediction, reference, GRID, protocol, None, ignore).figures


# prediction, reference, zone, (tp, fp, fn), false mL in voxels
TABLE = {
    "false and wholly inside": (row(1, 2), row(), row(0, 1, 2, 3), (0, 0, 0), 0),
    "false and exactly half inside": (row(1, 2), row(), row(1), (0, 0, 0), 0),
    "false and mostly outside": (row(1, 2, 3), row(), row(1), (0, 1, 0), 2),
    "found, mostly inside": (row(1, 2, 3), row(3), row(1, 2), (1, 0, 0), 0),
    "found, mostly inside, and another outside": (row(1, 2, 3, 8), row(3), row(1, 2), (1, 1, 0), 1),
    "reference wholly inside is no miss": (row(), row(1, 2), row(1, 2), (0, 0, 0), 0),
    "reference inside is no hit either": (row(1, 2), row(1, 2), row(1, 2), (0, 0, 0), 0),
    "reference half inside must be found outside": (row(1), row(1, 2), row(1), (0, 0, 1), 0),
    "one inside, one false, one found, one missed": (
        row(0, 4, 6), row(6, 9), row(0, 1), (1, 1, 1), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_counts_by_hand(name):
    prediction, reference, ignore, counts, false = TABLE[name]
    found = figures(prediction, reference, ignore)
    assert (found["lesion_tp"], found["lesion_fp"], found["lesion_fn"]) == counts
    assert found["false_positive_volume_ml"] == pytest.approx(false / 1000)


def test_voxel_figures_are_of_what_lies_outside():
    # outside columns 4, 5: prediction 2, 3, 6; reference 2, 3, 7: two shared of three each
    found = figures(row(2, 3, 4, 5, 6), row(2, 3, 5, 7), row(4, 5))
    assert found["dice"] == pytest.approx(4 / 6)
    assert found["volume_prediction_ml"] == pytest.approx(0.003)
    assert found["volume_reference_ml"] == pytest.approx(0.003)
    assert found["hd95_mm"] == pytest.approx(np.percentile([0, 0, 1], 95))


def test_an_excused_lesion_leaves_with_its_voxels_outside():
    found = figures(row(1, 2), row(), row(1))
    assert math.isnan(found["dice"])
    assert found["volume_prediction_ml"] == 0
    assert found["scan_specificity"] == 1.0
    assert found["absolute_count_error"] == 0


def test_a_lesion_is_formed_before_the_zone_parts_it():
    # 1 to 5 is one lesion; without it the zone would leave a false one at 1 and 2
    assert figures(row(1, 2, 3, 4, 5), row(5), row(3, 4))["lesion_fp"] == 0
    assert figures(row(1, 2, 5), row(5), row(3, 4))["lesion_fp"] == 1


def test_an_excused_lesion_is_not_false_under_a_stricter_rule():
    # it touches the reference of ten columns in one: found by any overlap, not at an IoU of 0.1 or 0.5
    reference = row(*range(2, 12))
    prediction, zone = row(0, 1, 2, 3), row(0, 1)
    strict = protocol_named("panoptica")
    assert figures(prediction, reference, None, strict)["lesion_fp"] == 1
    found = figures(prediction, reference, zone, strict)
    assert (found["lesion_tp"], found["lesion_fp"], found["lesion_fn"]) == (0, 0, 1)
    assert figures(prediction, reference, zone)["panoptic_quality"] == 0.0
    assert figures(prediction, reference, zone)["recognition_quality"] == 0.0


def test_an_empty_zone_changes_nothing():
    rng = np.random.default_rng(3)
    grid = Grid((9, 8, 7), np.diag([1.0, 2.0, 0.5, 1.0]))
    for _ in range(6):
        a, b = rng.random((2, *grid.shape)) < 0.08
        for protocol in (PLAIN, LesionProtocol(), protocol_named("brats2023"), protocol_named("panoptica")):
            plain = score_case("x", a, b, grid, protocol)
            zoned = score_case("x", a, b, grid, protocol, None, np.zeros(grid.shape, bool))
            np.testing.assert_equal(zoned.figures, plain.figures)
            np.testing.assert_equal(zoned.lesions, plain.lesions)


def test_counts_agree_with_a_loop_over_lesions():
    """An independent way to the same counts: one lesion after the other, with SciPy's components."""
    from scipy import ndimage

    rng = np.random.default_rng(4)
    box = np.ones((3, 3, 3))
    grid = Grid((14, 12, 10), np.eye(4))
    for _ in range(25):
        a, b, zone = (ndimage.gaussian_filter(rng.random(grid.shape), 1.0) > 0.58 for _ in range(3))
        truth = b & ~zone
        predicted, n_predicted = ndimage.label(a, box)
        expected, n_expected = ndimage.label(truth, box)
        parts = [predicted == k for k in range(1, n_predicted + 1)]
        fp = sum(not (p & truth).any() and (p & ~zone).sum() > 0.5 * p.sum() for p in parts)
        tp = sum((a & (expected == k)).any() for k in range(1, n_expected + 1))
        found = score_case("x", a, b, grid, PLAIN, None, zone).figures
        assert (found["lesion_tp"], found["lesion_fp"], found["lesion_fn"]) == (tp, fp, n_expected - tp)


def test_a_failed_case_misses_only_what_lies_outside():
    reference = row(1, 2, 7)
    score = failed_case("x", reference, GRID, PLAIN, "no file", None, row(1, 2))
    assert score.figures["lesion_fn"] == 1


def test_a_zone_of_another_shape_is_refused():
    lesions = LesionVoxels.from_labels(row(1).astype(int))
    with pytest.raises(ValueError, match="expected an ignore zone of shape"):
        outside_lesions(lesions, np.zeros((2, 2, 2), bool))
    with pytest.raises(ValueError, match="masks of one shape"):
        score_case("x", row(1), row(1), GRID, PLAIN, None, np.zeros((2, 2, 2), bool))


class TestFolders:
    @pytest.fixture
    def folders(self, tmp_path):
        """Case a: one found, one false in the zone. Case b: one false, no zone."""
        masks = {
            "predictions": {"a": row(1, 2, 8), "b": row(4)},
            "set/labels": {"a": row(2), "b": row()},
            "set/ignore": {"a": row(7, 8)},
        }
        for folder, members in masks.items():
            for name, mask in members.items():
                grid = Volume(mask, GRID.affine, name)
                write_volume(tmp_path / folder / f"{name}.nii.gz", mask, grid, np.uint8)
        return tmp_path

    def test_the_folder_beside_the_references_is_used(self, folders):
        summary = evaluate_folders(folders / "predictions", folders / "set/labels", folders / "out")
        assert summary["figures"]["lesion_fp"]["mean"] == 0.5
        assert summary["n_with_ignore_zone"] == 1
        assert "more than half" in summary["protocol"]["ignore_rule"]
        assert json.loads((folders / "out/summary.json").read_text()) == summary

    def test_a_named_folder_counts_instead(self, folders):
        settings = EvaluateSettings(ignore=folders / "predictions")
        summary = evaluate_folders(folders / "predictions", folders / "set/labels", folders / "out", settings)
        assert summary["figures"]["lesion_fp"]["mean"] == 0.0
        assert summary["n_with_ignore_zone"] == 2

    def test_from_the_command_line(self, folders):
        given = [str(folders / name) for name in ("predictions", "set/labels", "out")]
        result = CliRunner().invoke(app, ["evaluate", *given, "--ignore", str(folders / "set/ignore"), "-q"])
        assert result.exit_code == 0, result.output
        assert json.loads((folders / "out/summary.json").read_text())["figures"]["lesion_fp"]["mean"] == 0.5

    def test_a_zone_on_another_grid_fails_its_case(self, folders):
        moved = Volume(row(7), np.diag([2.0, 2.0, 2.0, 1.0]), "a")
        write_volume(folders / "set/ignore/a.nii.gz", moved.array, moved, np.uint8)
        summary = evaluate_folders(folders / "predictions", folders / "set/labels", folders / "out")
        assert list(summary["failed"]) == ["a"]
        assert "ignore zone" in summary["failed"]["a"]

    def test_a_folder_that_is_not_there(self, folders):
        settings = EvaluateSettings(ignore=folders / "nothing")
        with pytest.raises(CaseNotFoundError, match="no such folder"):
            evaluate_folders(folders / "predictions", folders / "set/labels", folders / "out", settings)

    def test_strata_of_the_datalist_are_summarised(self, folders):
        members = [{"image": f"labels/{i}.nii.gz", "stratum": s} for i, s in (("a", "noisy"), ("b", "usual"))]
        (folders / "set/datalist.json").write_text(json.dumps({"testing": members}))
        summary = evaluate_folders(folders / "predictions", folders / "set/labels", folders / "out")
        false = {name: part["figures"]["lesion_fp"]["mean"] for name, part in summary["by_stratum"].items()}
        assert false == {"noisy": 0.0, "usual": 1.0}


class TestInsertedDeposits:
    def test_by_hand(self):
        """One deposit adds 300 HU, one 40 HU; one voxel was dense before, beneath the bright deposit another."""
        before = np.full((8, 4, 1), 50, np.int16)
        before[7, 0, 0] = before[1, 1, 0] = 200
        dominant = np.zeros(before.shape, np.uint16)
        dominant[0:2, 0:2], dominant[4:6, 0:2] = 1, 2
        inserted = before + np.where(dominant == 1, 300, np.where(dominant == 2, 40, 0)).astype(np.int16)
        tissue = np.where(before == 200, Tissue.DENSE, Tissue.MUSCLE).astype(np.uint8)
        occupancy = (dominant > 0).astype(np.float32)
        deposits = Calcinosis(occupancy, occupancy * 200, dominant, ())
        expected = (dominant == 2).astype(np.uint8)
        expected[7, 0, 0] = 1
        seen = seen_on_ct(deposits.label, inserted, before)
        np.testing.assert_array_equal(unclear_in_scan(deposits, tissue, seen), expected)
        # on STIR 40 in four voxels is seen over noise of 10 and not over 30
        for noise, expected in ((10.0, True), (30.0, False)):
            seen = seen_on_stir(deposits.label, inserted, before, 100.0, noise, (1.0, 1.0, 5.0))
            zone = unclear_in_scan(deposits, tissue, seen)
            assert zone[4, 0, 0] == (not expected)

    def test_a_data_set_carries_its_zones(self, tmp_path):
        x, y = np.meshgrid(np.arange(50), np.arange(50), indexing="ij")
        radius = np.hypot(x - 25, y - 25)
        hu = np.where(radius < 16, 60, np.where(radius < 22, -100, -1000))[..., None] + np.zeros(30)
        hu += np.random.default_rng(0).normal(0, 8, hu.shape)
        hu[34:37, 25:28, 14:17] = 400  # a vessel's calcium, say
        scan = Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]), "a")
        write_volume(tmp_path / "scans/a.nii.gz", hu.astype(np.int16), scan)
        synthesize_dataset(tmp_path / "set", modality="ct", cases=1, seed=2, backgrounds=tmp_path / "scans")
        case = read_manifest(tmp_path / "set").all[0]
        assert case.ignore == tmp_path / "set/ignore" / f"{case.case_id}.nii.gz"
        zone, label = (read_volume(path).array for path in (case.ignore, case.label))
        assert zone[35, 26, 15] == 1
        assert label.any()
        sample = LoadCase(PreprocessConfig(spacing=(2.0, 2.0, 2.0)))(case)
        # the body's box is cut out of the scan: the same number of voxels of each kind
        assert (sample["label"] == IGNORE).sum() == zone.sum()
        assert (sample["label"] == 1).sum() == ((label == 1) & (zone == 0)).sum()
        assert all(sample["label"][0][tuple(point[1:])] == 1 for point in sample["points"])


def test_manifests_keep_zone_and_stratum(tmp_path):
    for name in ("image", "label", "zone"):
        (tmp_path / f"{name}.nii.gz").touch()
    files = [tmp_path / f"{name}.nii.gz" for name in ("image", "label", "zone")]
    manifest = Manifest({"testing": (Case("c", "s", "ct", *files, stratum="noisy"), Case("d", "s", "ct", files[0]))})
    for ending in ("json", "csv"):
        path = tmp_path / f"list.{ending}"
        write_manifest(path, manifest)
        assert read_manifest(path) == manifest
        assert read_strata(path) == {"c": "noisy"}
