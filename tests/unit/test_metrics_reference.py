"""The same figures from independent implementations: panoptica, MONAI, and the definition by brute force."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from jdm_seg.components import find_lesions
from jdm_seg.metrics.lesion import LesionCounts, count_lesions, find_both, match_lesions
from jdm_seg.metrics.protocol import PROTOCOLS, LesionProtocol
from jdm_seg.metrics.surface import hd95, surface_dice, surface_distances
from jdm_seg.metrics.voxel import dice
from jdm_seg.volume import Grid

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.9, 2.5)]
PLAIN = LesionProtocol(grouping_mm=0.0, min_volume_mm3=0.0)


def random_pair(seed, shape=(22, 20, 18)):
    """Blobs, sheets and single voxels; some shared, some not."""
    rng = np.random.default_rng(seed)
    shared = ndimage.binary_dilation(rng.random(shape) < 0.002, iterations=int(rng.integers(0, 3)))
    if rng.random() < 0.5:
        shared[:, :, rng.integers(shape[2])] |= rng.random(shape[:2]) < 0.3
    pair = []
    for _ in range(2):
        own = ndimage.binary_dilation(rng.random(shape) < 0.001, iterations=int(rng.integers(0, 2)))
        pair.append((shared & (rng.random(shape) < 0.8)) | own)
    return pair


def structured_pairs():
    """Twenty pairs made to be awkward: touching, nested, split, merged, half overlaps, sheets, single voxels, empty."""
    shape = (18, 16, 14)

    def boxes(*corners_and_sizes):
        mask = np.zeros(shape, dtype=bool)
        for (x, y, z), (a, b, c) in corners_and_sizes:
            mask[x : x + a, y : y + b, z : z + c] = True
        return mask

    block = boxes(((4, 4, 4), (6, 6, 6)))
    hollow = block & ~boxes(((5, 5, 5), (4, 4, 4)))
    sheet, line = boxes(((2, 2, 6), (14, 12, 1))), boxes(((1, 8, 8), (16, 1, 1)))
    holes = sheet & (np.indices(shape).sum(axis=0) % 5 > 0)
    checkers = (np.indices(shape).sum(axis=0) % 2 == 0) & block
    diagonal = boxes(*(((i, i, i), (1, 1, 1)) for i in range(2, 12)))
    lattice = boxes(*(((x, y, z), (1, 1, 1)) for x in (2, 6, 10) for y in (2, 6, 10) for z in (2, 6, 10)))
    two, three = boxes(((2, 2, 2), (4, 4, 4)), ((10, 2, 2), (4, 4, 4))), boxes(((2, 2, 2), (12, 4, 4)))
    nothing, everything = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    half = boxes(((4, 4, 4), (3, 6, 6)))
    return [
        (block, block), (np.roll(block, 1, 0), block), (np.roll(block, 3, 1), block), (half, block), (block, half),
        (hollow, block), (block, hollow), (holes, sheet), (sheet, holes), (np.roll(sheet, 1, 2), sheet),
        (line, sheet), (checkers, block), (diagonal, lattice), (two, three), (three, two),
        (two, np.roll(two, 2, 0)), (lattice, block), (everything, lattice), (nothing, two), (two, nothing),
    ]  # fmt: skip


def all_pairs():
    """Two hundred random pairs and twenty structured ones."""
    return [random_pair(seed) for seed in range(200)] + structured_pairs()


def components_by_definition(mask, spacing, grouping_mm):
    """Join foreground voxels whose dilations touch, voxel by voxel: sets of index tuples."""
    voxels = [tuple(v) for v in np.argwhere(mask).tolist()]
    reach = [int(grouping_mm / s + 1e-6) for s in spacing]
    steps = [
        step
        for step in itertools.product(*(range(-n, n + 1) for n in reach))
        if math.dist((0, 0, 0), [a * s for a, s in zip(step, spacing, strict=True)]) <= grouping_mm + 1e-6
    ]
    grown = {tuple(np.add(voxel, step).tolist()) for voxel in voxels for step in steps}
    neighbours = [n for n in itertools.product((-1, 0, 1), repeat=3) if any(n)]
    lesions = []
    while grown:
        queue, part = [grown.pop()], set()
        while queue:
            here = queue.pop()
            part.add(here)
            for step in neighbours:
                there = (here[0] + step[0], here[1] + step[1], here[2] + step[2])
                if there in grown:
                    grown.remove(there)
                    queue.append(there)
        lesions.append(part & set(voxels))
    return lesions


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("grouping_mm", "min_volume_mm3"), [(0.0, 0.0), (1.0, 10.0), (2.0, 4.0)])
def test_lesion_counts_by_definition(spacing, grouping_mm, min_volume_mm3):
    protocol = LesionProtocol(grouping_mm=grouping_mm, min_volume_mm3=min_volume_mm3)
    for seed in range(4):
        prediction, reference = random_pair(seed, (14, 12, 10))
        sides = [components_by_definition(mask, spacing, grouping_mm) for mask in (prediction, reference)]
        counted = [part for part in sides[1] if len(part) * math.prod(spacing) >= min_volume_mm3 - 1e-6]
        found = [part for part in counted if any(part & other for other in sides[0])]
        false = [part for part in sides[0] if not any(part & other for other in sides[1])]
        expected = LesionCounts(len(found), len(false), len(counted) - len(found))
        assert count_lesions(prediction, reference, spacing, protocol) == expected


def test_components_against_scipy_and_scikit_image():
    for place, pair in enumerate(all_pairs()):
        mask = pair[place % 2]
        for rank, connectivity in ((1, 6), (2, 18), (3, 26)):
            lesions = find_lesions(mask, (1.0, 1.0, 1.0), connectivity=connectivity, grouping_mm=0.0)
            theirs_of = [ndimage.label(mask, ndimage.generate_binary_structure(3, rank))[0]]
            if place % 4 == 0:
                theirs_of.append(measure.label(mask, connectivity=rank))
            for labels in theirs_of:
                theirs = labels[mask]
                assert lesions.count == labels.max()
                # the same partition, whatever the numbers
                assert len(np.unique(np.stack([lesions.numbers, theirs]), axis=1).T) == lesions.count
                assert lesions.sizes_vox.tolist() == sorted(np.bincount(theirs)[1:].tolist(), reverse=True)


def test_f1_sq_and_pq_against_panoptica(capsys):
    """Its default evaluator: 26-connected components, one to one, intersection over union of at least one half."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        panoptica = pytest.importorskip("panoptica")
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.SEMANTIC,
            instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
            instance_matcher=panoptica.NaiveThresholdMatching(),
            instance_metrics=[panoptica.Metric.IOU, panoptica.Metric.DSC],
            global_metrics=[panoptica.Metric.DSC],
        )
        protocol, matched_pairs = PROTOCOLS["panoptica"], 0
        for prediction, reference in all_pairs():
            sides = [mask.astype(np.uint8) for mask in (prediction, reference)]
            result = next(iter(evaluator.evaluate(*sides, verbose=False).values()))
            lesions = find_both(prediction, reference, (1.0, 1.0, 1.0), protocol)
            matched = match_lesions(*lesions, Grid(reference.shape, np.eye(4)), protocol)
            counts, quality = matched.count(), matched.quality()
            assert (counts.tp, counts.fp, counts.fn) == (result.tp, result.fp, result.fn)
            for name, ours, theirs in (
                ("F1", counts.f1, result.rq),
                ("RQ", quality.recognition, result.rq),
                ("SQ", quality.segmentation, result.sq if result.tp else math.nan),  # 0 in its policy, see the presets
                ("PQ", quality.panoptic, result.pq),
                ("Dice", dice(prediction, reference), result.global_bin_dsc),
            ):
                assert ours == pytest.approx(theirs, abs=1e-6, nan_ok=True), name
            matched_pairs += result.tp
    capsys.readouterr()
    assert matched_pairs > 100


def test_assignment_against_panoptica(capsys):
    """Below one half the assignment matters: the largest sum of intersection over union, as its bipartite matcher."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        panoptica = pytest.importorskip("panoptica")
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.SEMANTIC,
            instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
            instance_matcher=panoptica.instance_matcher.MaxBipartiteMatching(matching_threshold=0.05),
            instance_metrics=[panoptica.Metric.IOU],
            global_metrics=[],
        )
        protocol = replace(PROTOCOLS["panoptica"], min_iou=0.05, quality_iou=0.05)
        for prediction, reference in all_pairs()[::4] + structured_pairs():
            sides = [mask.astype(np.uint8) for mask in (prediction, reference)]
            result = next(iter(evaluator.evaluate(*sides, verbose=False).values()))
            lesions = find_both(prediction, reference, (1.0, 1.0, 1.0), protocol)
            matched = match_lesions(*lesions, Grid(reference.shape, np.eye(4)), protocol)
            assert (matched.count().tp, matched.count().fp, matched.count().fn) == (result.tp, result.fp, result.fn)
            assert matched.quality().panoptic == pytest.approx(result.pq, abs=1e-6, nan_ok=True)
    capsys.readouterr()


@pytest.fixture(scope="module")
def monai_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.metrics"), pytest.importorskip("torch")


def test_overlap_and_distances_against_monai(monai_metrics):
    metrics, torch = monai_metrics
    for place, (prediction, reference) in enumerate(all_pairs()):
        if not (prediction.any() and reference.any()):
            continue  # its figures of an empty mask follow another policy
        spacing = SPACINGS[place % 2]
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected_dice = metrics.DiceHelper(sigmoid=False, include_background=True)(*tensors)[0]
            expected_hd95, expected_hd = (
                float(
                    metrics.compute_hausdorff_distance(
                        *tensors, include_background=True, percentile=percentile, spacing=spacing
                    )
                )
                for percentile in (95, None)
            )
            expected_surface = metrics.compute_surface_dice(
                *tensors, class_thresholds=[1.0], include_background=True, spacing=spacing
            )
        assert dice(prediction, reference) == pytest.approx(float(expected_dice), abs=1e-6)
        distances = surface_distances(prediction, reference, spacing)
        assert distances.hausdorff(100.0) == pytest.approx(expected_hd, rel=1e-6)
        # MONAI places its percentile in single precision; by brute force it is exact below
        assert hd95(prediction, reference, spacing) == pytest.approx(expected_hd95, abs=2e-4)
        surface = surface_dice(prediction, reference, spacing, tolerance_mm=1.0)
        assert surface == pytest.approx(float(expected_surface), abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_distances_by_brute_force(spacing):
    for seed in range(3):
        masks = random_pair(seed, (12, 11, 10))
        points = []
        for mask in masks:
            padded = np.pad(mask, 1)
            inner = np.logical_and.reduce([np.roll(padded, shift, axis) for axis in range(3) for shift in (-1, 1)])
            points.append(np.argwhere(padded & ~inner) * spacing)
        table = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
        there, back = table.min(axis=1), table.min(axis=0)
        expected = max(np.percentile(there, 95), np.percentile(back, 95))
        assert hd95(*masks, spacing) == pytest.approx(expected)
        near = (there <= 2).sum() + (back <= 2).sum()
        assert surface_dice(*masks, spacing, tolerance_mm=2) == pytest.approx(near / (len(there) + len(back)))
