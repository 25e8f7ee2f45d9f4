"""Temperature and threshold: known answers are recovered, and the figures are those of a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss, log_loss

from jdm_seg.components import LesionRule
from jdm_seg.export.calibration import (
    BINS,
    ScanLogits,
    calibrate,
    choose_threshold,
    fit_temperature,
    lesion_counts,
    open_voxels,
    reliability,
)
from jdm_seg.metrics.protocol import LesionProtocol

PLAIN = LesionProtocol(grouping_mm=0.0, min_volume_mm3=0.0)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_that_logits_were_spoilt_with_is_found(scale):
    """Truth is drawn by sigmoid(honest logit); the network then says ``scale`` times that logit."""
    rng = np.random.default_rng(0)
    honest = rng.normal(-1, 2, 200_000)
    truth = rng.random(honest.size) < expit(honest)
    assert fit_temperature((scale * honest).astype(np.float32), truth) == pytest.approx(scale, rel=0.03)


def test_figures_are_those_of_scikit_learn_and_of_a_loop():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, 500)
    truth = rng.random(500) < 0.3
    figures = reliability(logits, truth)
    probability = expit(logits)
    assert figures.nll == pytest.approx(log_loss(truth, probability))
    assert figures.brier == pytest.approx(brier_score_loss(truth, probability))
    ece = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (probability >= low) & (probability < low + 1 / BINS)
        if inside.any():
            ece += inside.mean() * abs(probability[inside].mean() - truth[inside].mean())
    assert figures.ece == pytest.approx(ece)


def test_certain_logits_do_not_overflow():
    assert reliability(np.array([800.0, -800.0]), np.array([True, False])).nll == 0.0
    assert reliability(np.array([800.0, -800.0]), np.array([False, True])).nll == pytest.approx(800.0)


def test_only_open_voxels_take_part():
    """One deposit in a row of 40 mm: its 5 mm on both sides, and what the network gives 1 % wherever it lies."""
    logits = np.full((40, 1, 1), -9.0, np.float32)
    label = np.zeros((40, 1, 1), np.uint8)
    label[10] = 1
    logits[30] = logit(0.011)
    logits[32] = logit(0.009)
    logits[35] = 9.0
    counted = np.ones(label.shape, bool)
    counted[35] = False
    taken, truth = open_voxels([ScanLogits(logits, label, counted, (1.0, 1.0, 1.0))])
    assert taken.size == 11 + 1
    assert truth.sum() == 1
    thin, _ = open_voxels([ScanLogits(logits, label, counted, (2.5, 1.0, 1.0))])
    assert thin.size == 5 + 1


@pytest.mark.parametrize(
    ("scores", "expected", "plateau"),
    [
        ([0.1, 0.5, 0.9, 0.5, 0.1], 0.5, (0.5, 0.5)),
        ([0.1, 0.9, 0.895, 0.9, 0.1], 0.5, (0.3, 0.7)),
        ([0.9, 0.9, 0.5, 0.5, 0.5], 0.1, (0.1, 0.3)),
        ([0.9, 0.1, 0.1, 0.9, 0.9], 0.7, (0.7, 0.9)),  # of two plateaus the one nearer to the default
        ([math.nan, math.nan, 0.2, math.nan, 0.0], 0.5, (0.5, 0.5)),
        ([math.nan] * 5, 0.42, (0.42, 0.42)),
        ([0.0] * 5, 0.42, (0.42, 0.42)),
    ],
)
def test_the_middle_of_the_plateau_by_hand(scores, expected, plateau):
    default = 0.42 if max(np.nan_to_num(scores)) <= 0 else 0.5
    assert choose_threshold((0.1, 0.3, 0.5, 0.7, 0.9), scores, default) == (expected, plateau)


def scan_of(*blobs: tuple[int, float, bool]) -> ScanLogits:
    """Cubes of 2 voxels along x: at, probability, and whether a deposit is there."""
    logits = np.full((40, 6, 6), -12.0, np.float32)
    label = np.zeros(logits.shape, np.uint8)
    for at, probability, real in blobs:
        logits[at : at + 2, 2:4, 2:4] = logit(probability)
        label[at : at + 2, 2:4, 2:4] = real
    return ScanLogits(logits, label, np.ones(label.shape, bool), (1.5, 1.5, 1.5))


def numbers(counts, scan: int = 0) -> list[tuple[int, int, int]]:
    return [(one[scan].tp, one[scan].fp, one[scan].fn) for one in counts]


def test_lesions_at_each_threshold_by_hand():
    """Deposits said with 0.9 and 0.3, a false one with 0.6."""
    scan = scan_of((4, 0.9, True), (14, 0.3, True), (24, 0.6, False))
    cuts = [(threshold, LesionRule()) for threshold in (0.2, 0.5, 0.8, 0.95)]
    counts = lesion_counts([scan, scan], PLAIN, 1.0, cuts)
    assert [len(of_scans) for of_scans in counts] == [2] * 4
    for number in range(2):
        assert numbers(counts, number) == [(2, 1, 0), (1, 1, 1), (1, 0, 1), (0, 0, 2)]


def test_lesions_that_never_become_likely_are_dropped_as_told():
    scan = scan_of((4, 0.9, True), (14, 0.3, True), (24, 0.6, False))
    size = float((scan.label[:10] == 1).sum() * np.prod(scan.spacing))
    cuts = [(0.2, LesionRule(min_peak=0.5)), (0.2, LesionRule(min_peak=0.7))]
    cuts += [(0.2, LesionRule(min_volume_mm3=size)), (0.2, LesionRule(min_volume_mm3=size * 1.01))]
    counts = lesion_counts([scan], PLAIN, 1.0, cuts)
    assert numbers(counts) == [(1, 1, 1), (1, 0, 1), (2, 1, 0), (0, 0, 2)]


def test_a_peak_is_asked_for_where_it_parts_true_from_false():
    """True lesions fade towards their border; false ones are pale all over: no threshold parts them as well."""
    logits = np.full((60, 9, 9), -8.0, np.float32)
    label = np.zeros(logits.shape, np.uint8)
    for x in (5, 20, 35):
        logits[x - 3 : x + 4, 2:7, 2:7] = logit(0.6)
        logits[x, 4, 4] = logit(0.99)
        label[x - 3 : x + 4, 2:7, 2:7] = 1
    for x in (12, 27, 42, 50):
        logits[x : x + 2, 2:7, 2:7] = logit(0.75)
    found = calibrate([ScanLogits(logits, label, np.ones(label.shape, bool), (1.0, 1.0, 1.0))], PLAIN)
    assert found.lesion_f1 == 1.0
    assert found.min_peak > found.threshold
    assert found.lesion_f1_default < 1.0


def test_ignored_voxels_are_neither_found_nor_false():
    scan = scan_of((4, 0.9, True), (24, 0.6, False))
    ignored = ScanLogits(scan.logits, scan.label, scan.logits < logit(0.7), scan.spacing)
    assert numbers(lesion_counts([ignored], PLAIN, 1.0, [(0.5, LesionRule())])) == [(0, 1, 0)]


def test_the_calibrated_threshold_parts_true_from_false():
    rng = np.random.default_rng(2)
    scans = [
        scan_of((4, rng.uniform(0.55, 0.9), True), (14, rng.uniform(0.1, 0.35), False), (24, 0.8, True))
        for _ in range(4)
    ]
    found = calibrate(scans, PLAIN, default_threshold=0.9)
    assert found.lesion_f1 == 1.0
    assert found.lesion_f1_default < 1.0
    low, high = found.plateau
    assert low <= found.threshold <= high
    assert found.after.nll <= found.before.nll


def test_nothing_to_find_keeps_what_there_was():
    found = calibrate([scan_of()], PLAIN, default_threshold=0.5)
    assert (found.threshold, found.temperature, found.lesion_f1) == (0.5, 1.0, None)


def test_no_scans_is_said():
    found = calibrate([], PLAIN)
    assert found.temperature == 1.0
    assert found.lesion_f1 is None
    assert "no temperature" in found.note
