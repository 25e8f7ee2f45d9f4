from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from jdm_seg.components import LesionVoxels
from jdm_seg.metrics.lesion import LesionCounts, count_lesions, match_lesions
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.metrics.surface import cl_dice, hd95, skeleton, surface_dice, surface_distances
from jdm_seg.metrics.voxel import EMPTY_POLICY, check_same_shape, dice, empty_score, ratio, volume_ml
from jdm_seg.volume import Grid

ISO = (1.0, 1.0, 1.0)
PLAIN = LesionProtocol(grouping_mm=0.0, min_volume_mm3=0.0)


def row(text: str):
    """'##..#' as a mask of shape (5, 1, 1)."""
    return np.array([c == "#" for c in text]).reshape(-1, 1, 1)


def case(side: str):
    """Prediction and reference of one of the four empty cases."""
    empty, full = np.zeros((6, 5, 4), dtype=bool), np.zeros((6, 5, 4), dtype=bool)
    full[1:4, 1:4, 1:3] = True
    return {
        "both empty": (empty, empty),
        "prediction empty": (empty, full),
        "reference empty": (full, empty),
        "neither": (full, full),
    }[side]


SIDES = ("both empty", "prediction empty", "reference empty", "neither")
NAN = math.nan


class TestEmptyPolicy:
    @pytest.mark.parametrize(("side", "expected"), list(zip(SIDES, (NAN, 0.0, 0.0, 1.0), strict=True)))
    def test_overlap_scores(self, side, expected):
        prediction, reference = case(side)
        assert dice(prediction, reference) == pytest.approx(expected, nan_ok=True)
        assert surface_dice(prediction, reference, ISO, tolerance_mm=1) == pytest.approx(expected, nan_ok=True)
        assert cl_dice(prediction, reference) == pytest.approx(expected, nan_ok=True)

    @pytest.mark.parametrize(("side", "expected"), list(zip(SIDES, (NAN, NAN, NAN, 0.0), strict=True)))
    def test_distance(self, side, expected):
        assert hd95(*case(side), ISO) == pytest.approx(expected, nan_ok=True)

    @pytest.mark.parametrize(
        ("side", "counts", "precision", "recall", "f1"),
        [
            ("both empty", (0, 0, 0), NAN, NAN, NAN),
            ("prediction empty", (0, 0, 1), NAN, 0.0, 0.0),
            ("reference empty", (0, 1, 0), 0.0, NAN, 0.0),
            ("neither", (1, 0, 0), 1.0, 1.0, 1.0),
        ],
    )
    def test_lesions(self, side, counts, precision, recall, f1):
        found = count_lesions(*case(side), ISO)
        assert (found.tp, found.fp, found.fn) == counts
        assert found.precision == pytest.approx(precision, nan_ok=True)
        assert found.recall == pytest.approx(recall, nan_ok=True)
        assert found.f1 == pytest.approx(f1, nan_ok=True)

    def test_in_one_place(self):
        assert math.isnan(ratio(0, 0))
        assert ratio(0, 3) == 0.0
        some, none = np.ones(2), np.zeros(2)
        assert math.isnan(empty_score(none, none, one_empty=0.0))
        assert empty_score(some, none, one_empty=0.0) == 0.0
        assert math.isnan(empty_score(none, some, one_empty=NAN))
        assert empty_score(some, some, one_empty=0.0) is None
        assert "never replaced" in EMPTY_POLICY


class TestDice:
    @pytest.mark.parametrize(
        ("prediction", "reference", "expected"),
        [("##..", ".##.", 0.5), ("####", "##..", 2 / 3), ("#...", "...#", 0.0), (".##.", ".##.", 1.0)],
    )
    def test_hand_worked(self, prediction, reference, expected):
        assert dice(row(prediction), row(reference)) == pytest.approx(expected)

    def test_volume(self):
        assert volume_ml(row("##.#"), 500.0) == pytest.approx(1.5)
        assert volume_ml(row("...."), 500.0) == 0.0

    def test_shapes_must_agree(self):
        for metric in (check_same_shape, dice, cl_dice):
            with pytest.raises(ValueError, match="masks of one shape"):
                metric(row("#"), row("##"))
        with pytest.raises(ValueError, match="masks of one shape"):
            count_lesions(row("#"), row("##"), ISO)
        with pytest.raises(ValueError, match="masks of one shape"):
            hd95(row("#"), row("##"), ISO)


class TestLesions:
    @pytest.mark.parametrize(
        ("prediction", "reference", "counts"),
        [
            ("##......##", "##......##", (2, 0, 0)),
            ("##........", "##......##", (1, 0, 1)),
            ("##...#..##", "##......##", (2, 1, 0)),
            ("##########", "##......##", (2, 0, 0)),  # one prediction finds two
            ("#.#.....#.", "###.....##", (2, 0, 0)),  # two predictions find one: neither is false
            ("....##....", "##......##", (0, 1, 2)),
            ("..........", "##......##", (0, 0, 2)),
            ("##......##", "..........", (0, 2, 0)),
        ],
    )
    def test_hand_worked(self, prediction, reference, counts):
        found = count_lesions(row(prediction), row(reference), ISO, PLAIN)
        assert (found.tp, found.fp, found.fn) == counts

    def test_figures_of_a_hand_worked_case(self):
        counts = LesionCounts(tp=3, fp=1, fn=2)
        assert (counts.precision, counts.recall, counts.f1) == pytest.approx((0.75, 0.6, 2 / 3))

    # 1 mm³ voxels, cut at 3 mm³: 'a' has 4, 'b' has 2
    @pytest.mark.parametrize(
        ("prediction", "reference", "counts"),
        [
            ("####....##", "####....##", (1, 0, 0)),  # the small one is found: neither tp nor fn, and not false
            ("####......", "####....##", (1, 0, 0)),  # the small one is missed: neither tp nor fn
            ("........##", "####....##", (0, 0, 1)),  # what touches only the small one is not false
            ("####.....#", "####......", (1, 1, 0)),  # a false lesion counts however small
            ("#.......##", "..........", (0, 2, 0)),
        ],
    )
    def test_match_first_filter_after(self, prediction, reference, counts):
        protocol = LesionProtocol(grouping_mm=0.0, min_volume_mm3=3.0)
        found = count_lesions(row(prediction), row(reference), ISO, protocol)
        assert (found.tp, found.fp, found.fn) == counts

    @pytest.mark.parametrize("min_volume_mm3", [0.0, 5.0, 1000.0])
    def test_perfect_prediction_is_perfect_whatever_its_small_lesions(self, min_volume_mm3):
        mask = ndimage.binary_dilation(np.random.default_rng(0).random((30, 30, 30)) < 0.002)
        mask[0, 0, 0] = mask[29, 29, 29] = True
        counts = count_lesions(mask, mask, ISO, LesionProtocol(min_volume_mm3=min_volume_mm3))
        assert (counts.fp, counts.fn) == (0, 0)
        assert counts.f1 == 1.0 or (counts.tp == 0 and math.isnan(counts.f1))

    def test_size_cut_survives_a_rounded_voxel_size(self):
        mask = row("##########")  # 10 mm³, or 9.9999999 by a rotated affine
        assert count_lesions(mask, mask, (1 - 1e-8, 1.0, 1.0)).tp == 1
        assert count_lesions(mask[1:], mask[1:], ISO).tp == 0

    def test_grouping_joins_pieces_of_a_sheet(self):
        reference, prediction = row("####..####"), row("####......")
        assert count_lesions(prediction, reference, ISO, PLAIN) == LesionCounts(1, 0, 1)
        assert count_lesions(prediction, reference, ISO, LesionProtocol(min_volume_mm3=0)) == LesionCounts(1, 0, 0)

    def test_flips_and_permutations_change_nothing(self):
        rng = np.random.default_rng(1)
        prediction, reference = (ndimage.binary_dilation(rng.random((20, 18, 16)) < 0.004) for _ in range(2))
        spacing = (0.8, 1.0, 1.9)
        expected = count_lesions(prediction, reference, spacing)
        for order in [(1, 2, 0), (2, 1, 0)]:
            turned = [np.flip(mask, (0, 2)).transpose(order) for mask in (prediction, reference)]
            turned_spacing = tuple(spacing[axis] for axis in order)
            assert count_lesions(*turned, turned_spacing) == expected
            assert hd95(*turned, turned_spacing) == pytest.approx(hd95(prediction, reference, spacing))
            assert dice(*turned) == dice(prediction, reference)

    def test_false_volumes(self):
        prediction = np.array([1, 1, 1, 0, 2, 0, 3, 3, 0, 0], dtype=np.uint16).reshape(-1, 1, 1)
        reference = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 2], dtype=np.uint16).reshape(-1, 1, 1)
        sides = [LesionVoxels.from_labels(side) for side in (prediction, reference)]
        matched = match_lesions(*sides, Grid(prediction.shape, np.diag([500.0, 1, 1, 1])), PLAIN)
        assert matched.false_positive_ml == pytest.approx(1.5)
        assert matched.false_negative_ml == pytest.approx(0.5)


class TestSurface:
    def test_hand_worked_distances(self):
        # every voxel of a row is surface; distances from the first to the second: 2, 1, 0; back: 0, 1
        distances = surface_distances(row("###.."), row("..##."), (2.0, 1.0, 1.0))
        assert sorted(distances.from_prediction) == [0.0, 2.0, 4.0]
        assert sorted(distances.from_reference) == [0.0, 2.0]
        assert distances.dice(2.0) == pytest.approx(4 / 5)
        assert distances.dice(0.0) == pytest.approx(2 / 5)
        assert distances.hausdorff(100) == 4.0
        assert distances.hausdorff(50) == 2.0

    def test_inner_voxels_are_no_surface(self):
        block = np.ones((5, 5, 5), dtype=bool)
        assert len(surface_distances(block, block, ISO).from_prediction) == 125 - 27

    def test_shifted_block(self):
        first, second = np.zeros((12, 8, 8), dtype=bool), np.zeros((12, 8, 8), dtype=bool)
        first[2:6, 2:6, 2:6], second[5:9, 2:6, 2:6] = True, True
        assert hd95(first, second, (1.0, 1.0, 1.0)) == 3.0
        assert hd95(first, second, (0.5, 1.0, 1.0)) == 1.5
        assert surface_dice(first, second, ISO, tolerance_mm=3.0) == 1.0

    def test_tolerance_holds_on_a_rounded_voxel_size(self):
        assert surface_dice(row("#.."), row(".#."), (1 + 1e-7, 1.0, 1.0), tolerance_mm=1.0) == 1.0


class TestSkeleton:
    @pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 2), (4, 4, 4), (1, 4, 4), (3, 3, 3), (9, 2, 2)])
    def test_every_part_keeps_one(self, size):
        mask = np.zeros((12, 12, 12), dtype=bool)
        mask[1 : 1 + size[0], 1 : 1 + size[1], 1 : 1 + size[2]] = True
        line = skeleton(mask)
        assert line.any()
        assert not (line & ~mask).any()
        assert cl_dice(mask, mask) == 1.0

    def test_part_by_part_is_the_whole(self):
        rng = np.random.default_rng(0)
        mask = ndimage.binary_dilation(rng.random((24, 24, 24)) < 0.004, iterations=2)
        mask |= rng.random(mask.shape) < 0.01
        whole = skeletonize(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
        line = skeleton(mask)
        assert (whole & ~line).sum() == 0
        lost, n = ndimage.label(mask, np.ones((3, 3, 3)))
        kept = set(np.unique(lost[whole])) - {0}
        for number in set(range(1, n + 1)) & kept:
            assert np.array_equal(whole & (lost == number), line & (lost == number))

    def test_broken_sheet_loses_recall(self):
        sheet = np.zeros((20, 20, 5), dtype=bool)
        sheet[:, :, 2] = True
        half = sheet.copy()
        half[10:] = False
        assert 0.5 < cl_dice(half, sheet) < 0.8

    def test_disjoint_is_zero(self):
        assert cl_dice(row("##...."), row("....##")) == 0.0
