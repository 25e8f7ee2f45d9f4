"""The same figures from independent implementations: panoptica, MONAI, and the definition by brute force."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import ndimage

from jdm_seg.lesions import label_lesions
from jdm_seg.metrics.lesion import LesionCounts, LesionProtocol, count_lesions, match_labels
from jdm_seg.metrics.surface import hd95, surface_dice
from jdm_seg.metrics.voxel import dice

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


def test_lesion_counts_against_panoptica(capsys):
    """Panoptica gives a prediction to one reference at most, so only cases without such a bridge are compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        panoptica = pytest.importorskip("panoptica")
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.SEMANTIC,
            instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
            instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=1e-9, allow_many_to_one=True),
            instance_metrics=[panoptica.Metric.DSC],
            global_metrics=[panoptica.Metric.DSC],
        )
        compared = 0
        for seed in range(60):
            prediction, reference = random_pair(seed)
            labels = [label_lesions(mask, (1, 1, 1), grouping_mm=0.0) for mask in (prediction, reference)]
            matched = match_labels(*labels, 1.0)
            many_to_one = np.bincount(matched.matches.pairs[:, 0]).max(initial=0) <= 1
            one_each = np.bincount(matched.matches.pairs[:, 1]).max(initial=0) <= 1
            if not (many_to_one and one_each and prediction.any() and reference.any()):
                continue
            result = next(
                iter(
                    evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8), verbose=False).values()
                )
            )
            counts = count_lesions(prediction, reference, (1.0, 1.0, 1.0), PLAIN)
            assert (counts.tp, counts.fp, counts.fn) == (result.tp, result.fp, result.fn)
            assert counts.f1 == pytest.approx(result.rq)
            assert dice(prediction, reference) == pytest.approx(result.global_bin_dsc)
            compared += 1
    capsys.readouterr()
    assert compared >= 15


@pytest.fixture(scope="module")
def monai_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.metrics"), pytest.importorskip("torch")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_overlap_and_distances_against_monai(monai_metrics, spacing):
    metrics, torch = monai_metrics
    for seed in range(12):
        prediction, reference = random_pair(seed)
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected_dice = metrics.DiceHelper(sigmoid=False, include_background=True)(*tensors)[0]
            expected_hd95 = metrics.compute_hausdorff_distance(
                *tensors, include_background=True, percentile=95, spacing=spacing
            )
            expected_surface = metrics.compute_surface_dice(
                *tensors, class_thresholds=[1.0], include_background=True, spacing=spacing
            )
        assert dice(prediction, reference) == pytest.approx(float(expected_dice), abs=1e-6)
        assert hd95(prediction, reference, spacing) == pytest.approx(float(expected_hd95), abs=1e-4)
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
