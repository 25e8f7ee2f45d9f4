from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from jdm_seg.cli import app
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.evaluate import EvaluateSettings, compare_folders, evaluate_folders, find_masks
from jdm_seg.metrics.protocol import PROTOCOLS, LesionProtocol
from jdm_seg.scoring import FIGURES, CaseScore, score_case
from jdm_seg.summary import compare_scores, summarize
from jdm_seg.volume import Volume, write_volume

SHAPE = (16, 14, 12)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
AFFINE[:3, 3] = [-8, 4, 100]


def blocks(*corners, size=3):
    """3 × 3 × 3 voxels of 2 mm³ at each corner: 54 mm³, 4.7 mm across."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for x, y, z in corners:
        mask[x : x + size, y : y + size, z : z + size] = 1
    return mask


A, B, C = (1, 1, 1), (1, 9, 1), (10, 1, 7)


def put(folder, case_id, mask, affine=AFFINE, nested=False, dtype=None):
    path = folder / case_id / "mask.nii.gz" if nested else folder / f"{case_id}.nii.gz"
    write_volume(path, mask, Volume(mask, affine), dtype)


def read_rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def folders(tmp_path):
    """Perfect, half right, a false lesion in a negative scan, nothing in a negative scan."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for case_id, prediction, reference in [
        ("perfect", blocks(A, C), blocks(A, C)),
        ("half", blocks(A, C), blocks(A, B)),
        ("false", blocks(B), blocks()),
        ("negative", blocks(), blocks()),
    ]:
        put(predictions, case_id, prediction, nested=case_id in ("half", "false"))
        put(references, case_id, reference)
    return predictions, references


def test_hand_worked(folders, tmp_path):
    summary = evaluate_folders(*folders, tmp_path / "out")
    rows = {row["case_id"]: row for row in read_rows(tmp_path / "out" / "cases.csv")}
    assert list(rows) == ["false", "half", "negative", "perfect"]
    half = rows["half"]
    assert [half[f"lesion_{name}"] for name in ("tp", "fp", "fn")] == ["1", "1", "1"]
    assert [float(half[f"lesion_{name}"]) for name in ("precision", "recall", "f1")] == [0.5, 0.5, 0.5]
    assert float(half["dice"]) == 0.5
    assert float(half["volume_prediction_ml"]) == float(half["volume_reference_ml"]) == pytest.approx(0.108)
    assert float(half["volume_error_ml"]) == 0.0
    assert float(half["false_positive_volume_ml"]) == float(half["false_negative_volume_ml"]) == pytest.approx(0.054)
    assert float(rows["perfect"]["hd95_mm"]) == 0.0
    assert float(rows["perfect"]["cl_dice"]) == float(rows["perfect"]["surface_dice_1mm"]) == 1.0
    assert [rows["false"][name] for name in ("dice", "lesion_f1", "lesion_recall")] == ["0.0", "0.0", "nan"]
    assert {rows["negative"][name] for name in ("dice", "lesion_f1", "hd95_mm", "cl_dice")} == {"nan"}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert summary["figures"]["dice"] | {"ci_low": 0, "ci_high": 0} == {
        "mean": 0.5, "median": 0.5, "ci_low": 0, "ci_high": 0, "n": 3, "n_undefined": 1,
    }  # fmt: skip
    assert summary["failed"] == {}
    assert summary["n_cases"] == 4
    assert summary["lesions_pooled"]["lesion_tp"] == 3
    assert summary["lesions_pooled"]["lesion_f1"] == pytest.approx(6 / 9)


def test_files_follow_the_interface(folders, tmp_path):
    summary = evaluate_folders(*folders, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cases.csv", "lesions.csv", "summary.json"]
    header = (tmp_path / "out" / "cases.csv").read_text().splitlines()[0].split(",")
    assert header[:16] == [
        "case_id", "dice", "lesion_tp", "lesion_fp", "lesion_fn", "lesion_precision", "lesion_recall", "lesion_f1",
        "volume_prediction_ml", "volume_reference_ml", "volume_error_ml", "false_positive_volume_ml",
        "false_negative_volume_ml", "surface_dice_1mm", "hd95_mm", "cl_dice",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    for figure in (*summary["figures"].values(), *summary["recall_by_size"].values()):
        assert {"mean", "median", "ci_low", "ci_high", "n", "n_undefined"} <= set(figure)
    assert set(summary["figures"]) == set(FIGURES)
    assert list(summary["recall_by_size"]) == ["<3 mm", "3-10 mm", ">10 mm"]
    protocol = summary["protocol"]
    assert (protocol["connectivity"], protocol["grouping_mm"], protocol["matching"]) == (26, 1.0, "any_overlap")
    assert protocol["min_volume_mm3"] == 10.0
    assert "NaN" in protocol["empty_policy"]


def test_every_lesion_has_a_row(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "out")
    rows = [row for row in read_rows(tmp_path / "out" / "lesions.csv") if row["case_id"] == "half"]
    assert [(row["role"], row["lesion"], row["matched"], row["matches"]) for row in rows] == [
        ("reference", "1", "true", "1"),
        ("reference", "2", "false", ""),
        ("prediction", "1", "true", "1"),
        ("prediction", "2", "false", ""),
    ]
    assert {row["size_stratum"] for row in rows} == {"3-10 mm"}
    assert {float(row["volume_mm3"]) for row in rows} == {54.0}


def test_recall_by_size_counts_small_lesions_too(tmp_path):
    reference = blocks(A) + blocks(C, size=1)  # 54 mm³, and 2 mm³: under the size cut
    put(tmp_path / "p", "one", blocks(C))
    put(tmp_path / "r", "one", reference)
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out")
    by_size = summary["recall_by_size"]
    assert (by_size["<3 mm"]["found"], by_size["<3 mm"]["lesions"]) == (1, 1)
    assert (by_size["3-10 mm"]["found"], by_size["3-10 mm"]["lesions"]) == (0, 1)
    assert by_size[">10 mm"]["mean"] is None
    assert summary["figures"]["lesion_recall"]["mean"] == 0.0
    rows = read_rows(tmp_path / "out" / "lesions.csv")
    assert [row["counted"] for row in rows if row["role"] == "reference"] == ["true", "false"]


class TestFailures:
    def test_missing_prediction_is_scored_and_named(self, folders, tmp_path):
        predictions, references = folders
        (predictions / "perfect.nii.gz").unlink()
        summary = evaluate_folders(predictions, references, tmp_path / "out")
        row = {row["case_id"]: row for row in read_rows(tmp_path / "out" / "cases.csv")}["perfect"]
        assert row["status"] == "failed"
        assert [row[name] for name in ("dice", "lesion_f1", "lesion_fn", "lesion_tp")] == ["0.0", "0.0", "2", "0"]
        assert [row[name] for name in ("lesion_fp", "volume_prediction_ml", "hd95_mm")] == ["nan"] * 3
        assert list(summary["failed"]) == ["perfect"]
        assert "expected a prediction, found none" in summary["failed"]["perfect"]
        assert summary["n_failed"] == 1
        assert summary["figures"]["dice"]["mean"] == pytest.approx((0 + 0.5 + 0) / 3)

    def test_leaving_out_a_negative_scan_does_not_pay(self, folders, tmp_path):
        predictions, references = folders
        (predictions / "negative.nii.gz").unlink()
        summary = evaluate_folders(predictions, references, tmp_path / "out")
        assert summary["figures"]["dice"]["n"] == 4
        assert summary["figures"]["lesion_fp"]["n_undefined"] == 1

    def test_extra_prediction_is_listed(self, folders, tmp_path):
        put(folders[0], "stranger", blocks(A))
        summary = evaluate_folders(*folders, tmp_path / "out")
        assert summary["ignored_predictions"] == ["stranger"]
        assert summary["n_cases"] == 4
        assert summary["failed"] == {}

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda folder: put(folder, "perfect", np.zeros((5, 5, 5), np.uint8)), "prediction on the image's grid"),
            (lambda folder: put(folder, "perfect", blocks(A), affine=AFFINE + 1), "at another place"),
            (lambda folder: put(folder, "perfect", blocks(A) * 0.5, dtype=np.float32), "threshold the probabilities"),
            (lambda folder: (folder / "perfect.nii.gz").write_bytes(b"no scan"), "perfect.nii.gz"),
        ],
    )
    def test_a_bad_prediction_spoils_its_own_row_only(self, folders, tmp_path, spoil, message):
        spoil(folders[0])
        summary = evaluate_folders(*folders, tmp_path / "out")
        assert list(summary["failed"]) == ["perfect"]
        assert message in summary["failed"]["perfect"]
        assert str(tmp_path) not in json.dumps(summary)
        assert summary["figures"]["dice"]["n"] == 3

    def test_a_bad_reference_cannot_be_scored(self, folders, tmp_path):
        put(folders[1], "half", blocks(A) * 0.25, dtype=np.float32)
        summary = evaluate_folders(*folders, tmp_path / "out")
        assert list(summary["failed"]) == ["half"]
        assert summary["figures"]["dice"]["n"] == 2
        assert summary["figures"]["dice"]["n_undefined"] == 2

    def test_no_folder_or_no_mask(self, folders, tmp_path):
        (tmp_path / "void").mkdir()
        with pytest.raises(CaseNotFoundError, match="found none; check the path"):
            evaluate_folders(tmp_path / "void", folders[1], tmp_path / "out")
        with pytest.raises(CaseNotFoundError, match="found no such folder"):
            evaluate_folders(folders[0], tmp_path / "nowhere", tmp_path / "out")

    def test_two_files_for_one_case(self, folders, tmp_path):
        put(folders[1], "half", blocks(A), nested=True)
        with pytest.raises(
            InputError, match=r"half: expected one mask, found half.nii.gz and half/mask.nii.gz|half/mask"
        ):
            evaluate_folders(*folders, tmp_path / "out")


def test_find_masks_ignores_what_is_none(tmp_path):
    put(tmp_path, "a", blocks(A))
    put(tmp_path, "b", blocks(A), nested=True)
    put(tmp_path, ".c", blocks(A))
    (tmp_path / "d").mkdir()
    (tmp_path / "cohort.csv").write_text("")
    assert list(find_masks(tmp_path)) == ["a", "b"]


def test_instance_labels_and_types_do_not_matter(tmp_path):
    numbered = blocks(A) * 7 + blocks(C) * 3
    put(tmp_path / "p", "one", numbered, dtype=np.uint16)
    put(tmp_path / "r", "one", blocks(A, C), dtype=np.float32)
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out")
    assert summary["figures"]["dice"]["mean"] == 1.0
    assert summary["figures"]["lesion_tp"]["mean"] == 2


def reoriented(mask, affine):
    """The same voxels at the same places, stored back to front with axes exchanged."""
    flip = np.diag([-1.0, 1.0, -1.0, 1.0])
    flip[[0, 2], 3] = mask.shape[0] - 1, mask.shape[2] - 1
    return np.flip(mask, (0, 2)).transpose(2, 0, 1).copy(), affine @ flip @ np.eye(4)[[1, 2, 0, 3]]


def test_storage_orientation_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    prediction, reference = ((rng.random(SHAPE) < 0.05).astype(np.uint8) for _ in range(2))
    for name, turn in (("plain", lambda mask: (mask, AFFINE)), ("turned", lambda mask: reoriented(mask, AFFINE))):
        put(tmp_path / name / "p", "one", *turn(prediction))
        put(tmp_path / name / "r", "one", *turn(reference))
        evaluate_folders(tmp_path / name / "p", tmp_path / name / "r", tmp_path / name / "out")
    put(tmp_path / "turned" / "p", "one", prediction)  # one side turned, the other not
    evaluate_folders(tmp_path / "turned" / "p", tmp_path / "turned" / "r", tmp_path / "mixed")
    expected = (tmp_path / "plain" / "out" / "cases.csv").read_text()
    assert (tmp_path / "turned" / "out" / "cases.csv").read_text() == expected
    assert (tmp_path / "mixed" / "cases.csv").read_text() == expected


def test_oblique_affine_changes_nothing(tmp_path):
    angle = np.deg2rad(17)
    oblique = AFFINE.copy()
    oblique[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]] @ AFFINE[
        :3, :3
    ]
    figures = []
    for name, affine in (("plain", AFFINE), ("oblique", oblique)):
        put(tmp_path / name / "p", "one", blocks(A, C), affine)
        put(tmp_path / name / "r", "one", blocks(A, B), affine)
        figures.append(evaluate_folders(tmp_path / name / "p", tmp_path / name / "r", tmp_path / name / "o")["figures"])
    for name in FIGURES:
        assert figures[0][name]["mean"] == pytest.approx(figures[1][name]["mean"], abs=1e-5)


def test_perfect_prediction_scores_one_whatever_its_small_lesions(tmp_path):
    mask = blocks(A) + blocks(C, (13, 11, 10), size=1)
    for side in ("p", "r"):
        put(tmp_path / side, "one", mask)
    figures = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out")["figures"]
    for name in ("dice", "lesion_precision", "lesion_recall", "lesion_f1", "surface_dice_1mm", "cl_dice"):
        assert figures[name]["mean"] == 1.0


class TestSummary:
    def scores(self, values):
        return [CaseScore(str(i), {**dict.fromkeys(FIGURES, 0.0), "dice": v}, [], {}) for i, v in enumerate(values)]

    def test_interval_is_that_of_the_mean(self):
        values = np.random.default_rng(0).normal(0.7, 0.1, 400).tolist()
        dice = summarize(self.scores(values), LesionProtocol(), seed=3)["figures"]["dice"]
        half = 1.96 * np.std(values) / np.sqrt(400)
        assert dice["ci_low"] == pytest.approx(np.mean(values) - half, abs=2e-3)
        assert dice["ci_high"] == pytest.approx(np.mean(values) + half, abs=2e-3)

    def test_seeded(self):
        scores = self.scores(np.random.default_rng(1).random(30).tolist())
        runs = [summarize(scores, LesionProtocol(), seed=seed)["figures"]["dice"] for seed in (1, 1, 2)]
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    def test_one_case_and_none_defined(self):
        one = summarize(self.scores([0.5, math.nan]), LesionProtocol())["figures"]["dice"]
        assert one == {"mean": 0.5, "median": 0.5, "ci_low": 0.5, "ci_high": 0.5, "n": 1, "n_undefined": 1}
        none = summarize(self.scores([math.nan]), LesionProtocol())["figures"]["dice"]
        assert none == {"mean": None, "median": None, "ci_low": None, "ci_high": None, "n": 0, "n_undefined": 1}


def test_progress_is_told(folders, tmp_path):
    seen = []
    evaluate_folders(*folders, tmp_path / "out", on_case=seen.append)
    assert seen == ["false", "half", "negative", "perfect"]


def test_protocol_is_used(tmp_path):
    put(tmp_path / "p", "one", blocks(A))
    put(tmp_path / "r", "one", blocks(A, B))
    strict = LesionProtocol(min_volume_mm3=60.0)
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", EvaluateSettings(strict))
    assert summary["figures"]["lesion_fn"]["mean"] == 0
    assert summary["protocol"]["min_volume_mm3"] == 60.0


class TestProtocols:
    def test_preset_is_used_and_written(self, folders, tmp_path):
        settings = EvaluateSettings(PROTOCOLS["isles22"])
        summary = evaluate_folders(*folders, tmp_path / "out", settings)
        rows = {row["case_id"]: row for row in read_rows(tmp_path / "out" / "cases.csv")}
        assert [rows["negative"][name] for name in ("dice", "lesion_f1")] == ["1.0", "1.0"]
        assert summary["protocol"]["name"] == "isles22"
        assert summary["protocol"]["empty_rules"] == ["dice is 1 when both empty", "lesion_f1 is 1 when both empty"]
        assert summary["figures"]["dice"]["n_undefined"] == 0

    def test_infinite_figures_are_counted(self, folders, tmp_path):
        summary = evaluate_folders(*folders, tmp_path / "out", EvaluateSettings(PROTOCOLS["panoptica"]))
        figure = summary["figures"]["hd95_mm"]
        assert (figure["mean"], figure["n"], figure["n_undefined"], figure["n_infinite"]) == (None, 3, 1, 1)
        assert "n_infinite" not in summary["figures"]["dice"]
        rows = {row["case_id"]: row for row in read_rows(tmp_path / "out" / "cases.csv")}
        assert rows["false"]["hd95_mm"] == "inf"

    def test_undefined_cases_are_named(self, folders, tmp_path):
        undefined = evaluate_folders(*folders, tmp_path / "out")["undefined"]
        assert undefined["dice"] == ["negative"]
        assert undefined["hd95_mm"] == ["false", "negative"]
        assert undefined["scan_specificity"] == ["half", "perfect"]
        assert "lesion_tp" not in undefined


class TestAgreement:
    def test_volumes(self, folders, tmp_path):
        """mL: prediction 0.054, 0.108, 0, 0.108; reference 0, 0.108, 0, 0.108."""
        agreement = evaluate_folders(*folders, tmp_path / "out")["volume_agreement"]
        assert agreement["n"] == 4
        assert agreement["ml"]["bias"]["value"] == pytest.approx(0.054 / 4)
        sides = [[0.054, 0.108, 0, 0.108], [0, 0.108, 0, 0.108]]
        spread = np.var(sides[0]) + np.var(sides[1]) + (0.054 / 4) ** 2
        assert agreement["ml"]["ccc"]["value"] == pytest.approx(2 * np.cov(*sides, bias=True)[0, 1] / spread)
        assert agreement["log1p_ml"]["bias"]["value"] == pytest.approx(np.log1p(0.054) / 4)
        assert agreement["ml"]["icc_2_1"]["ci_low"] < agreement["ml"]["icc_3_1"]["value"] < 1

    def test_failed_case_is_left_out_and_counted(self, folders, tmp_path):
        (folders[0] / "perfect.nii.gz").unlink()
        agreement = evaluate_folders(*folders, tmp_path / "out")["volume_agreement"]
        assert (agreement["n"], agreement["n_undefined"]) == (3, 1)


def test_specificity_and_pooled_intervals(folders, tmp_path):
    summary = evaluate_folders(*folders, tmp_path / "out")
    assert summary["figures"]["scan_specificity"]["mean"] == 0.5
    pooled = summary["lesions_pooled"]
    assert pooled["lesion_recall"] == pytest.approx(3 / 4)
    low, high = pooled["lesion_recall_ci"]
    assert low <= 3 / 4 <= high <= 1.0
    recall = summary["recall_by_size"]["3-10 mm"]["pooled"]
    assert recall["value"] == pytest.approx(3 / 4)


class TestSubjects:
    def test_cases_of_one_subject_are_resampled_together(self, folders, tmp_path):
        table = tmp_path / "subjects.csv"
        table.write_text("case_id,subject_id\nperfect,a\nhalf,a\nfalse,a\nnegative,a\n")
        alone = evaluate_folders(*folders, tmp_path / "alone")
        summary = evaluate_folders(*folders, tmp_path / "out", EvaluateSettings(subjects=table))
        assert (alone["n_patients"], summary["n_patients"]) == (4, 1)
        dice = summary["figures"]["dice"]
        assert dice["ci_low"] == dice["ci_high"] == dice["mean"] == alone["figures"]["dice"]["mean"]
        assert alone["figures"]["dice"]["ci_low"] < alone["figures"]["dice"]["ci_high"]

    def test_datalist_beside_the_references_is_read(self, folders, tmp_path):
        rows = [{"image": f"images/{case_id}.nii.gz", "subject_id": "a"} for case_id in ("perfect", "half")]
        (tmp_path / "datalist.json").write_text(json.dumps({"training": rows}))
        assert evaluate_folders(*folders, tmp_path / "out")["n_patients"] == 3

    def test_bad_tables(self, folders, tmp_path):
        with pytest.raises(CaseNotFoundError, match="a manifest or a table of subjects"):
            evaluate_folders(*folders, tmp_path / "out", EvaluateSettings(subjects=tmp_path / "nowhere.csv"))
        (tmp_path / "other.csv").write_text("name\nx\n")
        with pytest.raises(InputError, match="expected a case_id in every row"):
            evaluate_folders(*folders, tmp_path / "out", EvaluateSettings(subjects=tmp_path / "other.csv"))


class TestAttributes:
    def test_recall_by_pattern_from_records(self, folders, tmp_path):
        """The block at A is 3 mm from the corner along x and y, 5 mm along z, as the records of synthesize count."""
        for case_id in ("half", "perfect"):
            record = {
                "deposits": [
                    {"pattern": "sheet", "centre": [2.5, 2.5, 5.0]},
                    {"pattern": "nodule", "centre": [2.5, 10.5, 5.0]},
                    {"pattern": "net", "centre": [11.5, 2.5, 17.0]},
                ]
            }
            (tmp_path / "records").mkdir(exist_ok=True)
            (tmp_path / "records" / f"{case_id}.json").write_text(json.dumps(record))
        summary = evaluate_folders(*folders, tmp_path / "out")
        recall = summary["recall_by"]["pattern"]
        assert {name: (row["found"], row["lesions"]) for name, row in recall.items()} == {
            "sheet": (2, 2), "nodule": (0, 1), "net": (1, 1),
        }  # fmt: skip
        # F1 by hand with sheets alone: half has one and a false lesion, perfect one, another case a false lesion alone
        assert recall["sheet"]["lesion_f1"]["mean"] == pytest.approx((2 / 3 + 1 + 0) / 3)
        assert recall["nodule"]["lesion_f1"]["mean"] == 0
        rows = [row for row in read_rows(tmp_path / "out" / "lesions.csv") if row["case_id"] == "half"]
        assert [row["pattern"] for row in rows] == ["sheet", "nodule", "", ""]

    def test_numbered_truth_beside_the_references(self, folders, tmp_path):
        """As synthesize writes it: ``instances/`` holds the numbers that the rows of the record carry."""
        (tmp_path / "records").mkdir()
        rows = [{"instance": 4, "host": "FAT"}, {"instance": 9, "host": "MUSCLE"}]
        (tmp_path / "records" / "half.json").write_text(json.dumps({"deposits": rows}))
        put(tmp_path / "instances", "half", blocks(A) * 9 + blocks(B) * 4)
        host = evaluate_folders(*folders, tmp_path / "out")["recall_by"]["host"]
        assert [(name, row["found"], row["lesions"]) for name, row in host.items()] == [("FAT", 0, 1), ("MUSCLE", 1, 1)]

    def test_named_folder(self, folders, tmp_path):
        (tmp_path / "truth").mkdir()
        lines = "centroid_x_mm,centroid_y_mm,centroid_z_mm,host\n-6,6,104,fat\n-6,14,104,muscle\n"
        (tmp_path / "truth" / "half.csv").write_text(lines)
        settings = EvaluateSettings(attributes=tmp_path / "truth")
        host = evaluate_folders(*folders, tmp_path / "out", settings)["recall_by"]["host"]
        assert [(name, row["found"], row["lesions"]) for name, row in host.items()] == [("fat", 1, 1), ("muscle", 0, 1)]
        with pytest.raises(CaseNotFoundError, match="check --attributes"):
            evaluate_folders(*folders, tmp_path / "out", EvaluateSettings(attributes=tmp_path / "nowhere"))

    def test_a_bad_table_spoils_its_own_row_only(self, folders, tmp_path):
        (tmp_path / "records").mkdir()
        (tmp_path / "records" / "half.json").write_text("{")
        summary = evaluate_folders(*folders, tmp_path / "out")
        assert list(summary["failed"]) == ["half"]
        assert "expected a list of rows" in summary["failed"]["half"]


@pytest.fixture
def three(folders, tmp_path):
    """A second method: misses what the first finds in ``half``, and finds nothing false."""
    other = tmp_path / "other"
    for case_id, mask in [("perfect", blocks(A)), ("half", blocks()), ("false", blocks()), ("negative", blocks())]:
        put(other, case_id, mask)
    return folders[0], other, folders[1]


class TestCompare:
    def test_hand_worked(self, three, tmp_path):
        first, second, rows = compare_folders(*three, tmp_path / "out")
        names = ["cases.csv", "compared", "comparison.csv", "comparison.json", "lesions.csv", "summary.json"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
        assert (tmp_path / "out" / "compared" / "summary.json").is_file()
        by_figure = {row["figure"]: row for row in rows}
        assert list(by_figure) == list(FIGURES)
        # Dice of the first 1, 0.5, 0 and of the second 2/3, 0, undefined
        dice = by_figure["dice"]
        assert (dice["n"], dice["n_undefined"], dice["better"]) == (2, 2, "higher")
        assert dice["difference"] == pytest.approx((1 / 3 + 1 / 2) / 2)
        assert (dice["mean_first"], dice["mean_second"]) == pytest.approx((0.75, 1 / 3))
        assert dice["p"] == 0.5  # two pairs: two of four sign patterns
        assert dice["effect"] == 1.0
        false = by_figure["lesion_fp"]  # 0, 1, 1, 0 against none
        assert (false["difference"], false["n"], false["better"]) == (0.5, 4, "lower")
        assert false["ci_low"] <= 0.5 <= false["ci_high"]
        assert by_figure["lesion_tp"]["p_holm"] != by_figure["lesion_tp"]["p_holm"]  # neither side is better
        assert first["figures"]["dice"]["mean"] > second["figures"]["dice"]["mean"]

    def test_files(self, three, tmp_path):
        _, _, rows = compare_folders(*three, tmp_path / "out")
        table = read_rows(tmp_path / "out" / "comparison.csv")
        assert list(table[0]) == list(rows[0])
        content = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert (content["first"], content["second"], content["n_cases"]) == ("predictions", "other", 4)
        assert content["figures"]["dice"]["difference"] == rows[0]["difference"]
        assert content["figures"]["lesion_tp"]["p_holm"] is None
        assert "first minus second" in content["method"]

    def test_a_method_with_itself(self, folders, tmp_path):
        _, _, rows = compare_folders(folders[0], folders[0], folders[1], tmp_path / "out")
        defined = [row for row in rows if row["n"]]
        assert {(row["difference"], row["p"], row["effect"]) for row in defined} == {(0.0, 1.0, 0.0)}

    def test_cases_must_agree(self):
        scores = TestSummary().scores([0.5, 0.6])
        with pytest.raises(ValueError, match="same cases in one order"):
            compare_scores(scores, scores[::-1])

    def test_progress_covers_both(self, three, tmp_path):
        seen = []
        compare_folders(*three, tmp_path / "out", on_case=seen.append)
        assert len(seen) == 8


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])

    def test_prints_figures_and_progress(self, folders, tmp_path):
        done = self.run(*folders, tmp_path / "out")
        assert done.exit_code == 0
        assert "dice               0.500" in done.stdout
        assert "cases 4/4: perfect" in done.stderr
        assert self.run(*folders, tmp_path / "out", "--quiet").stderr == ""

    def test_protocol_and_comparison(self, three, tmp_path):
        predictions, other, references = three
        options = ("--compare", other, "--protocol", "brats2023_met", "-q")
        done = self.run(predictions, references, tmp_path / "out", *options)
        assert done.exit_code == 0
        assert "lesion_f1" in done.stdout
        assert "against the second method" in done.stdout
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["protocol"]["name"] == "brats2023_met"

    def test_failure_ends_with_1(self, three, tmp_path):
        (three[1] / "half.nii.gz").unlink()
        done = self.run(three[0], three[2], tmp_path / "out", "--compare", three[1])
        assert done.exit_code == 1
        assert "half: expected a prediction, found none" in done.stderr

    def test_unknown_protocol(self, folders, tmp_path):
        done = self.run(*folders, tmp_path / "out", "--protocol", "brats")
        assert done.exit_code == 1
        assert "expected one of default, brats2023" in str(done.exception)


@pytest.mark.real
def test_two_silver_masks_of_real_calcification(real_data):
    """The 150 HU mask contains the 200 HU mask, so every lesion of the latter is found."""
    from jdm_seg.lesions import read_mask

    folder = real_data / "ct" / "limbs_calcified"
    for number in ("006", "028", "045"):
        low, high = (read_mask(folder / f"sts-{number}_calc_hu{hu}.nii.gz") for hu in (150, 200))
        score = score_case(number, low.array, high.array, low.grid, LesionProtocol())
        assert score.figures["lesion_recall"] == 1.0
        assert 0.2 < score.figures["dice"] < 1.0
        assert score.figures["volume_error_ml"] > 0
