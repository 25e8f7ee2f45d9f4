from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.evaluate import FIGURES, CaseScore, evaluate_folders, find_masks, score_case, summarize
from jdm_seg.metrics.lesion import LesionProtocol
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
    evaluate_folders(
        *folders, tmp_path / "out", on_case=lambda done, total, case_id: seen.append((done, total, case_id))
    )
    assert seen == [(1, 4, "false"), (2, 4, "half"), (3, 4, "negative"), (4, 4, "perfect")]


def test_protocol_is_used(tmp_path):
    put(tmp_path / "p", "one", blocks(A))
    put(tmp_path / "r", "one", blocks(A, B))
    strict = LesionProtocol(min_volume_mm3=60.0)
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", strict)
    assert summary["figures"]["lesion_fn"]["mean"] == 0
    assert summary["protocol"]["min_volume_mm3"] == 60.0


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
