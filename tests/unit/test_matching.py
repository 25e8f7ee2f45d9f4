"""Every matching rule by hand, the assignment against trying all of them, and the protocols of others."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from jdm_seg.components import LesionVoxels, find_lesions, grouping_steps, grow_lesions
from jdm_seg.errors import InputError
from jdm_seg.metrics.lesion import LesionCounts, count_lesions, find_both, match_lesions
from jdm_seg.metrics.matching import assign, find_overlaps, pairs_by_iou
from jdm_seg.metrics.protocol import EMPTY_RULES, PROTOCOLS, EmptyRule, LesionProtocol, protocol_named
from jdm_seg.scoring import FIGURES, score_case
from jdm_seg.volume import Grid

ISO = (1.0, 1.0, 1.0)
NAN, INF = math.nan, math.inf
PLAIN = {"grouping_mm": 0.0, "min_volume_mm3": 0.0}


def row(text: str):
    """'##..#' as a mask of shape (5, 1, 1)."""
    return np.array([c == "#" for c in text]).reshape(-1, 1, 1)


def grid_of(mask, spacing=ISO) -> Grid:
    return Grid(mask.shape, np.diag([*spacing, 1.0]))


def matched_of(prediction, reference, protocol, spacing=ISO):
    return match_lesions(*find_both(prediction, reference, spacing, protocol), grid_of(reference, spacing), protocol)


def score(prediction, reference, protocol, spacing=ISO):
    return score_case("case", prediction, reference, grid_of(reference, spacing), protocol)


OVERLAP = LesionProtocol(**PLAIN)
ONE_TO_ONE = LesionProtocol(**PLAIN, one_to_one=True)
HALF = LesionProtocol(**PLAIN, matching="iou", min_iou=0.5)
TENTH = LesionProtocol(**PLAIN, matching="iou", min_iou=0.1)
TENTH_ONE = LesionProtocol(**PLAIN, matching="iou", min_iou=0.1, one_to_one=True)
NEAR = LesionProtocol(**PLAIN, matching="centroid", max_distance_mm=2.0)
NEAR_ONE = LesionProtocol(**PLAIN, matching="centroid", max_distance_mm=2.0, one_to_one=True)
RULES = (OVERLAP, ONE_TO_ONE, HALF, TENTH, TENTH_ONE, NEAR, NEAR_ONE)


class TestRules:
    # tp, fp, fn typed in for each rule of RULES, in that order
    @pytest.mark.parametrize(
        ("prediction", "reference", "expected"),
        [
            # the same twice
            ("###.....###", "###.....###", [(2, 0, 0)] * 7),
            # half shifted: intersection 1, union 3
            ("##....", ".##...", [(1, 0, 0), (1, 0, 0), (0, 1, 1), (1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0)]),
            # exactly one half
            ("##....", "####..", [(1, 0, 0)] * 7),
            # one prediction over two references of 2 in 10: IoU 0.2 each; centroids 4 mm off
            ("##########", "##......##",
             [(2, 0, 0), (1, 0, 1), (0, 1, 2), (2, 0, 0), (1, 0, 1), (0, 1, 2), (0, 1, 2)]),
            # two predictions in one reference of 7: IoU 3/7 and 1/7; centroids at 1 and 5 against 3
            ("###..#.", "#######",
             [(1, 0, 0), (1, 1, 0), (0, 2, 1), (1, 0, 0), (1, 1, 0), (1, 0, 0), (1, 1, 0)]),
            # beside each other without a shared voxel: only centroids see them
            ("##....", "..##..", [(0, 1, 1)] * 5 + [(1, 0, 0)] * 2),
            # far apart
            ("##........", "........##", [(0, 1, 1)] * 7),
            # only a twentieth: one voxel in 20
            ("#...................", "####################",
             [(1, 0, 0), (1, 0, 0)] + [(0, 1, 1)] * 5),
            ("....", "##..", [(0, 0, 1)] * 7),
            ("##..", "....", [(0, 1, 0)] * 7),
            ("....", "....", [(0, 0, 0)] * 7),
        ],
    )  # fmt: skip
    def test_hand_worked(self, prediction, reference, expected):
        found = [count_lesions(row(prediction), row(reference), ISO, rule) for rule in RULES]
        assert [(c.tp, c.fp, c.fn) for c in found] == expected

    @pytest.mark.parametrize("protocol", RULES)
    def test_match_first_filter_after(self, protocol):
        """References of 4 and 2 voxels, cut at 3: the small one cannot be missed, and what hits it is not false."""
        cut = LesionProtocol(**{**protocol.__dict__, "min_volume_mm3": 3.0})
        reference = row("####......##")
        assert count_lesions(reference, reference, ISO, cut) == LesionCounts(1, 0, 0)
        assert count_lesions(row("####........"), reference, ISO, cut) == LesionCounts(1, 0, 0)
        assert count_lesions(row("..........##"), reference, ISO, cut) == LesionCounts(0, 0, 1)
        assert count_lesions(row("####...#...."), reference, ISO, cut).fp == 1

    def test_assignment_takes_the_larger_sum_not_the_first_come(self):
        """A greedy choice would take the middle pair (IoU 0.5) and leave two lesions alone (0.4 + 0.4)."""
        pairs = np.array([[1, 1], [2, 1], [2, 2]])
        assert assign(pairs, np.array([0.4, 0.5, 0.4])).tolist() == [[1, 1], [2, 2]]
        assert assign(pairs, np.array([0.2, 0.5, 0.2])).tolist() == [[2, 1]]

    def test_centroids_prefer_more_pairs_to_nearer_ones(self):
        # predictions at 4 and 7, references at 6 and 9: nearest is 7-6 (1 mm), but 4-6 and 7-9 are two pairs of 2 mm
        assert count_lesions(row("....#..#......"), row("......#..#...."), ISO, NEAR_ONE) == LesionCounts(2, 0, 0)

    def test_centroid_distance_is_in_mm(self):
        prediction, reference = row("#..."), row(".#..")
        assert count_lesions(prediction, reference, (2.0, 1.0, 1.0), NEAR).tp == 1
        assert count_lesions(prediction, reference, (2.1, 1.0, 1.0), NEAR).tp == 0

    def test_assignment_by_trying_all(self):
        rng = np.random.default_rng(0)
        for _ in range(60):
            shape = tuple(rng.integers(1, 6, 2).tolist())
            gain = np.where(rng.random(shape) < 0.5, rng.random(shape), 0.0)
            pairs = np.argwhere(gain) + 1
            chosen = assign(pairs, gain[gain > 0])
            small, large = sorted(shape)
            wide = gain if shape[0] <= shape[1] else gain.T
            best = max(wide[range(small), order].sum() for order in itertools.permutations(range(large), small))
            assert gain[tuple((chosen - 1).T)].sum() == pytest.approx(best)
            assert len(set(chosen[:, 0])) == len(set(chosen[:, 1])) == len(chosen)

    def test_none_to_assign(self):
        assert assign(np.zeros((0, 2), dtype=np.int64), np.zeros(0)).shape == (0, 2)


class TestOverlaps:
    def test_hand_worked(self):
        sides = [np.zeros((10, 1, 1), dtype=np.uint16) for _ in range(2)]
        sides[0][[0, 1, 2, 3, 9], 0, 0] = [1, 1, 1, 1, 2]
        sides[1][[0, 1, 3, 6], 0, 0] = [3, 3, 2, 1]
        overlaps = find_overlaps(*(LesionVoxels.from_labels(side) for side in sides))
        assert overlaps.pairs.tolist() == [[1, 2], [1, 3]]
        assert overlaps.shared_vox.tolist() == [1, 2]
        assert overlaps.iou().tolist() == [1 / 4, 2 / 4]
        assert overlaps.of(np.array([[2, 1], [1, 3], [1, 1]])).tolist() == [0, 2, 0]
        assert pairs_by_iou(overlaps, 0.5, one_to_one=False).tolist() == [[1, 3]]

    def test_against_the_full_table(self):
        rng = np.random.default_rng(1)
        masks = [ndimage.binary_dilation(rng.random((20, 18, 16)) < 0.004) for _ in range(2)]
        lesions = [find_lesions(mask, ISO, grouping_mm=0) for mask in (masks[0], np.asfortranarray(masks[1]))]
        first, second = (ndimage.label(mask, np.ones((3, 3, 3)))[0] for mask in masks)
        overlaps = find_overlaps(*lesions)
        expected = sorted(
            int(((first == a) & (second == b)).sum())
            for a in range(1, first.max() + 1)
            for b in np.unique(second[first == a])
            if b
        )
        assert sorted(overlaps.shared_vox.tolist()) == expected
        assert sorted(overlaps.prediction_vox.tolist()) == sorted(np.bincount(first.ravel())[1:].tolist())

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match="masks of one shape"):
            find_overlaps(*(LesionVoxels.from_labels(np.zeros((2, 2, n), np.uint16)) for n in (2, 3)))

    def test_gaps_in_numbers_are_refused(self):
        with pytest.raises(ValueError, match="without gaps"):
            LesionVoxels.from_labels(np.array([[[0, 1, 3]]]))

    def test_lookup_and_centroids(self):
        labels = np.array([0, 2, 2, 0, 1, 2]).reshape(-1, 1, 1)
        lesions = LesionVoxels.from_labels(labels)
        assert lesions.at(np.array([[5, 0, 0], [0, 0, 0], [4, 0, 0]])).tolist() == [2, 0, 1]
        assert lesions.centroids()[:, 0].tolist() == [4.0, pytest.approx(8 / 3)]
        assert [part[:, 0].tolist() for part in lesions.parts()] == [[4], [1, 2, 5]]


class TestGrouping:
    def test_cuboctahedron_is_the_18_neighbourhood_dilated(self):
        for n in (1, 2, 3):
            ball = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 2), n)
            steps = grouping_steps(float(n), ISO, "cuboctahedron")
            assert sorted(map(tuple, steps.tolist())) == sorted(map(tuple, (np.argwhere(ball) - n).tolist()))

    def test_grown_lesions_are_the_dilation(self):
        mask = np.random.default_rng(2).random((16, 15, 14)) < 0.004
        structure = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 2), 2)
        settings = {"grouping_mm": 2.0, "grouping_shape": "cuboctahedron"}
        grown = grow_lesions(find_lesions(mask, ISO, **settings), ISO, **settings)
        dilated = ndimage.binary_dilation(mask, structure)
        assert_array_equal(grown.indices, np.argwhere(dilated))
        expected, count = ndimage.label(dilated, np.ones((3, 3, 3)))
        assert grown.count == count
        assert len(set(zip(grown.numbers.tolist(), expected[dilated].tolist(), strict=True))) == count

    def test_unknown_shape(self):
        with pytest.raises(ValueError, match="grouping_shape to be one of"):
            grouping_steps(1.0, ISO, "cube")


def brats_by_definition(prediction, reference, radius, cut):
    """Lesion-wise counts and Dice as BraTS 2023 defines them, lesion by lesion on whole arrays (1 mm voxels)."""
    near, structure = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 2)
    parts, n_parts = ndimage.label(prediction, near)
    groups, n_groups = ndimage.label(ndimage.binary_dilation(reference, structure, iterations=radius), near)
    hit, scores, tp, fn = set(), [], 0, 0
    for group in range(1, n_groups + 1):
        lesion = (groups == group) & reference
        touching = set(np.unique(parts[ndimage.binary_dilation(lesion, structure, iterations=radius)])) - {0}
        hit |= touching
        if lesion.sum() > cut:
            joined = np.isin(parts, list(touching))
            scores.append(2 * (joined & lesion).sum() / (joined.sum() + lesion.sum()))
            tp, fn = tp + bool(touching), fn + (not touching)
    fp = n_parts - len(hit)
    return (tp, fp, fn), (sum(scores) / (len(scores) + fp) if scores or fp else 1.0)


class TestProtocols:
    @pytest.mark.parametrize(("name", "radius", "cut"), [("brats2023", 3, 50), ("brats2023_met", 1, 2)])
    def test_brats_by_definition(self, name, radius, cut):
        for seed in range(12):
            rng = np.random.default_rng(seed)
            centres = rng.random((32, 30, 28)) < 0.0012
            sides = [
                ndimage.binary_dilation(centres & (rng.random(centres.shape) < 0.8), iterations=int(rng.integers(1, 4)))
                for _ in range(2)
            ]
            counts, lesion_dice = brats_by_definition(*sides, radius, cut)
            figures = score(*sides, PROTOCOLS[name]).figures
            assert tuple(figures[f"lesion_{name}"] for name in ("tp", "fp", "fn")) == counts
            assert figures["lesion_dice"] == pytest.approx(lesion_dice, abs=1e-12)

    def test_brats_hand_worked(self):
        """Reference of 60 mm³ and one of exactly 50: the second does not count. A false voxel counts at any size."""
        reference, prediction = (np.zeros((60, 10, 10), dtype=bool) for _ in range(2))
        reference[2:5, 2:6, 2:7] = True  # 3 × 4 × 5
        reference[30:32, 0:5, 0:5] = True  # 2 × 5 × 5
        prediction[7, 2, 2] = True  # 3 mm from the first: touches only its dilation
        prediction[55, 5, 5] = True
        figures = score(prediction, reference, PROTOCOLS["brats2023"]).figures
        assert [figures[f"lesion_{name}"] for name in ("tp", "fp", "fn")] == [1, 1, 0]
        assert figures["lesion_dice"] == 0.0
        distance = max(
            math.dist((7, 2, 2), (4, 2, 2)),
            np.percentile([math.dist((7, 2, 2), p) for p in np.argwhere(outer_shell(reference[:20]))], 95),
        )
        assert figures["lesion_hd95_mm"] == pytest.approx((distance + 374) / 2)
        assert math.isnan(figures["panoptic_quality"])

    def test_isles_counts_by_definition(self):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            sides = [ndimage.binary_dilation(rng.random((20, 20, 20)) < 0.003) for _ in range(2)]
            (parts, n_parts), (lesions, n_lesions) = (ndimage.label(side, np.ones((3, 3, 3))) for side in sides)
            tp = sum(bool(sides[0][lesions == k].any()) for k in range(1, n_lesions + 1))
            fp = sum(not sides[1][parts == k].any() for k in range(1, n_parts + 1))
            figures = score(*sides, PROTOCOLS["isles22"]).figures
            assert figures["lesion_f1"] == pytest.approx(tp / (tp + (fp + n_lesions - tp) / 2))
            assert figures["absolute_count_error"] == abs(n_parts - n_lesions)

    def test_autopet_volumes_by_definition(self):
        structure = ndimage.generate_binary_structure(3, 2)  # 18 neighbours
        for seed in range(10):
            rng = np.random.default_rng(seed)
            sides = [rng.random((16, 16, 16)) < 0.02 for _ in range(2)]
            false = [0, 0]
            for place, (mine, other) in enumerate((sides, sides[::-1])):
                parts, count = ndimage.label(mine, structure)
                false[place] = sum((parts == k).sum() for k in range(1, count + 1) if not other[parts == k].any())
            figures = score(*sides, PROTOCOLS["autopet"], (1.0, 2.0, 0.5)).figures
            assert figures["false_positive_volume_ml"] == pytest.approx(false[0] / 1000)
            assert figures["false_negative_volume_ml"] == pytest.approx(false[1] / 1000)

    EMPTY = ("both empty", "prediction empty", "reference empty", "disjoint", "same")

    # values typed in from the sources named in metrics/protocol.py, for each case of EMPTY in that order
    @pytest.mark.parametrize(
        ("name", "figure", "expected"),
        [
            ("default", "dice", (NAN, 0, 0, 0, 1)),
            ("default", "lesion_f1", (NAN, 0, 0, 0, 1)),
            ("default", "lesion_precision", (NAN, NAN, 0, 0, 1)),
            ("default", "lesion_recall", (NAN, 0, NAN, 0, 1)),
            ("default", "segmentation_quality", (NAN, NAN, NAN, NAN, 1)),
            ("default", "recognition_quality", (NAN, 0, 0, 0, 1)),
            ("default", "panoptic_quality", (NAN, 0, 0, 0, 1)),
            ("default", "lesion_f1_iou10", (NAN, 0, 0, 0, 1)),
            ("default", "lesion_dice", (NAN, 0, 0, 0, 1)),
            ("default", "lesion_hd95_mm", (NAN, NAN, NAN, NAN, 0)),
            ("default", "hd95_mm", (NAN, NAN, NAN, 10, 0)),
            ("default", "cl_dice", (NAN, 0, 0, 0, 1)),
            ("default", "surface_dice_1mm", (NAN, 0, 0, 0, 1)),
            ("default", "scan_specificity", (1, NAN, 0, NAN, NAN)),
            ("default", "false_negative_volume_ml", (0, 0.027, 0, 0.027, 0)),
            ("default", "false_positive_volume_ml", (0, 0, 0.027, 0.027, 0)),
            ("default", "absolute_volume_error_ml", (0, 0.027, 0.027, 0, 0)),
            ("default", "absolute_count_error", (0, 1, 1, 0, 0)),
            ("isles22", "dice", (1, 0, 0, 0, 1)),
            ("isles22", "lesion_f1", (1, 0, 0, 0, 1)),
            ("isles22", "absolute_volume_error_ml", (0, 0.027, 0.027, 0, 0)),
            ("autopet", "dice", (NAN, 0, NAN, 0, 1)),
            ("autopet", "false_negative_volume_ml", (NAN, 0.027, NAN, 0.027, 0)),
            ("autopet", "false_positive_volume_ml", (0, 0, 0.027, 0.027, 0)),
            ("brats2023_met", "lesion_dice", (1, 0, 0, 0, 1)),
            ("brats2023_met", "lesion_hd95_mm", (0, 374, 374, 374, 0)),
            ("brats2023_met", "dice", (1, 0, 0, 0, 1)),
            ("brats2023_met", "hd95_mm", (0, 374, 374, 10, 0)),
            # the lesion has 27 mm³ and the cut is at 50: only false lesions count
            ("brats2023", "lesion_dice", (1, 1, 0, 0, 1)),
            ("brats2023", "lesion_hd95_mm", (0, 0, 374, 374, 0)),
            ("panoptica", "dice", (NAN, 0, 0, 0, 1)),
            ("panoptica", "recognition_quality", (NAN, 0, 0, 0, 1)),
            ("panoptica", "lesion_f1", (NAN, 0, 0, 0, 1)),
            ("panoptica", "segmentation_quality", (NAN, 0, 0, 0, 1)),
            ("panoptica", "panoptic_quality", (NAN, 0, 0, 0, 1)),
            ("panoptica", "hd95_mm", (NAN, INF, INF, 10, 0)),
        ],
    )
    def test_empty_cases(self, name, figure, expected):
        nothing, here, there = (np.zeros((16, 5, 5), dtype=bool) for _ in range(3))
        here[1:4, 1:4, 1:4] = True
        there[11:14, 1:4, 1:4] = True
        pairs = [(nothing, nothing), (nothing, here), (here, nothing), (there, here), (here, here)]
        found = [score(*pair, PROTOCOLS[name]).figures[figure] for pair in pairs]
        assert found == pytest.approx(list(expected), nan_ok=True)

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_perfect_is_perfect_whatever_its_small_lesions(self, name):
        rng = np.random.default_rng(0)
        mask = ndimage.binary_dilation(rng.random((30, 30, 30)) < 0.002) | (rng.random((30, 30, 30)) < 0.002)
        mask[2:8, 2:8, 2:8] = True
        figures = score(mask, mask, PROTOCOLS[name], (1.0, 0.8, 1.3)).figures
        ones = {
            "dice", "lesion_precision", "lesion_recall", "lesion_f1", "surface_dice_1mm", "cl_dice", "lesion_dice",
            "lesion_f1_iou10", "segmentation_quality", "recognition_quality", "panoptic_quality",
        }  # fmt: skip
        if name.startswith("brats"):
            ones -= {"lesion_f1_iou10", "segmentation_quality", "recognition_quality", "panoptic_quality"}
        assert {figure: figures[figure] for figure in ones} == pytest.approx(dict.fromkeys(ones, 1.0))
        zeros = ("lesion_fp", "lesion_fn", "hd95_mm", "lesion_hd95_mm", "volume_error_ml", "false_positive_volume_ml")
        assert [figures[figure] for figure in zeros] == [0] * len(zeros)

    @pytest.mark.parametrize("protocol", [*PROTOCOLS.values(), NEAR, NEAR_ONE, TENTH_ONE])
    def test_flips_permutations_and_rotations_change_nothing(self, protocol):
        rng = np.random.default_rng(3)
        centres = rng.random((24, 20, 18)) < 0.003
        sides = [ndimage.binary_dilation(centres & (rng.random(centres.shape) < 0.8), iterations=2) for _ in range(2)]
        affine = np.diag([0.8, 1.0, 1.9, 1.0])
        expected = score_case("case", *sides, Grid(centres.shape, affine), protocol).figures
        a, b = np.deg2rad(25), np.deg2rad(-40)
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        oblique = np.eye(4)
        oblique[:3, :3], oblique[:3, 3] = about_z @ about_x @ affine[:3, :3], (-40, 7, 300)
        found = [score_case("case", *sides, Grid(centres.shape, oblique), protocol).figures]
        for order in ((1, 2, 0), (2, 1, 0)):
            turned = [np.flip(side, (0, 2)).transpose(order) for side in sides]
            permuted = np.diag([*np.diag(affine)[list(order)], 1.0])
            found.append(score_case("case", *turned, Grid(turned[0].shape, permuted), protocol).figures)
        for figures in found:
            for name in set(FIGURES) - {"cl_dice"}:  # a skeleton is not the same after a flip
                assert figures[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-9, nan_ok=True), name
            assert figures["cl_dice"] == pytest.approx(expected["cl_dice"], abs=0.05)

    def test_named(self):
        assert protocol_named("panoptica") is PROTOCOLS["panoptica"]
        assert {protocol.name for protocol in PROTOCOLS.values()} == set(PROTOCOLS)
        assert LesionProtocol(min_volume_mm3=3).name == "custom"
        with pytest.raises(InputError, match="protocol: expected one of default, brats2023"):
            protocol_named("brats")

    def test_every_rule_names_a_figure(self):
        assert {rule.figure for rules in EMPTY_RULES.values() for rule in rules} <= set(FIGURES)
        assert str(EmptyRule("both_empty", "dice", 1.0)) == "dice is 1 when both empty"

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("connectivity", 8, "connectivity to be one of"),
            ("matching", "greedy", "matching to be one of"),
            ("grouping_shape", "cube", "grouping_shape to be one of"),
            ("empty", "zero", "empty to be one of"),
            ("grouping_mm", -1.0, "grouping_mm to be at least 0"),
            ("min_volume_mm3", NAN, "min_volume_mm3 to be at least 0"),
            ("max_distance_mm", -1.0, "max_distance_mm to be at least 0"),
            ("min_iou", 0.0, "min_iou to be above 0"),
            ("quality_iou", 1.5, "quality_iou to be above 0"),
        ],
    )
    def test_is_checked(self, field, value, message):
        with pytest.raises(ValueError, match=message):
            LesionProtocol(**{field: value})

    def test_grown_needs_overlap(self):
        with pytest.raises(ValueError, match="'any_overlap' with match_grown"):
            LesionProtocol(match_grown=True, matching="iou")


def outer_shell(mask):
    """Foreground with a background face neighbour; beyond the array is background."""
    return mask & ~ndimage.binary_erosion(mask)


class TestQuality:
    def test_hand_worked(self):
        # IoU 3/4 (counts), 1/3 (too little), one false, one missed: tp 1, fp 2, fn 2
        prediction, reference = row("###....##....#......"), row("####....##........##")
        quality = matched_of(prediction, reference, OVERLAP).quality()
        assert quality.segmentation == pytest.approx(3 / 4)
        assert quality.recognition == pytest.approx(1 / (1 + 0.5 * 2 + 0.5 * 2))
        assert quality.panoptic == pytest.approx(0.75 / 3)

    def test_small_references_drop_out_with_their_match(self):
        prediction, reference = row("###....##"), row("####...##")
        cut = LesionProtocol(grouping_mm=0.0, min_volume_mm3=3.0)
        assert matched_of(prediction, reference, cut).quality().segmentation == pytest.approx(3 / 4)
        assert matched_of(prediction, reference, cut).quality().recognition == 1.0

    def test_dice_by_reference(self):
        # two predictions of 2 and 1 voxels in a reference of 6: 2·3 / (3 + 6); the second reference is missed
        matched = matched_of(row("##.#........"), row("######....##"), OVERLAP)
        assert matched.dice_by_reference().tolist() == [pytest.approx(6 / 9), 0.0]
        assert matched.mean_dice() == pytest.approx(6 / 9 / 2)
        with_false = matched_of(row("##.#...#...."), row("######....##"), OVERLAP)
        assert with_false.mean_dice() == pytest.approx(6 / 9 / 3)
