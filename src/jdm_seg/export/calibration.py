"""Confidence that means something: a temperature for probabilities, and the threshold that finds lesions best.

Networks trained with overlap losses answer with probabilities near 0 and 1 whether they are right or not. One number,
fitted on cases that were not trained on, mends that without changing what is found at probability 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from jdm_seg.components import LesionRule
from jdm_seg.inference.scan_grid import logit_of
from jdm_seg.metrics.lesion import LesionCounts, find_both, match_lesions
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.volume import Grid, Spacing

FloatArray = NDArray[np.floating[Any]]

NEAR_MM = 5.0
"""How far from a deposit voxels take part in the fit (assumed: where outlines are open to debate)."""
OPEN_PROBABILITY = 0.01
"""Voxels that the network gives at least this much take part wherever they lie."""
TEMPERATURES = (0.25, 4.0)
"""Bounds of the fit: beyond them a model wants more training, not another scale (assumed)."""
THRESHOLDS = (0.02, 0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95, 0.98)
PEAKS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What the most probable voxel of a lesion may have to reach. A low threshold for outlines and a high one for being a
lesion at all lose fewer pale borders than one threshold that serves both. None above 0.9: on other scans than these
few even true lesions are less sure."""
MATCHED_IOU = 0.1
"""Intersection over union from which a lesion is found, one to one. Under the touching rule of reports one lesion that
fills the body finds all others, and the lowest threshold would win."""
PLATEAU = 0.01
"""Thresholds whose lesion F1 is this close to the best are as good as it."""
BINS = 15
"""Of the expected calibration error, equally wide, as in Guo et al. 2017."""


@dataclass(frozen=True)
class ScanLogits:
    """What a network said about one labelled scan.

    Attributes:
        logits: Foreground logits, shape (X, Y, Z), before any temperature.
        label: 1 where a deposit is, 0 elsewhere.
        counted: Where the label is known: the body, but for zones to ignore.
        spacing: Voxel size in mm.
    """

    logits: NDArray[np.float32]
    label: NDArray[np.uint8]
    counted: NDArray[np.bool_]
    spacing: Spacing


@dataclass(frozen=True)
class Reliability:
    """How well probabilities fit what is there, over the voxels that take part; smaller is better.

    Attributes:
        nll: Mean negative log-likelihood, in nats.
        ece: Expected calibration error: mean distance of confidence from frequency, 0 to 1.
        brier: Mean squared distance of probability from truth, 0 to 1.
    """

    nll: float
    ece: float
    brier: float


@dataclass(frozen=True)
class Calibration:
    """A temperature and a threshold, with how they were found.

    Attributes:
        temperature: Probabilities are sigmoid(logit / temperature).
        threshold: Probability from which a voxel counts: the middle of the plateau.
        min_peak: Lesions of which no voxel has this probability are dropped.
        plateau: Lowest and highest threshold of the grid that are as good as the best, with that ``min_peak``.
        lesion_f1: At ``threshold`` and ``min_peak``, pooled over scans; None where no lesion was there or found.
        lesion_f1_default: The same at the threshold and the rule that the model was trained with.
        before: At temperature 1; None where there was nothing to fit.
        after: At ``temperature``.
        scans: Number of scans.
        voxels: Number of voxels that took part in the fit.
        note: What could not be measured, in words.
    """

    temperature: float
    threshold: float
    min_peak: float
    plateau: tuple[float, float]
    lesion_f1: float | None
    lesion_f1_default: float | None
    before: Reliability | None
    after: Reliability | None
    scans: int
    voxels: int
    note: str = ""

    def describe(self) -> dict[str, Any]:
        """Return plain values for ``model.json``."""
        return asdict(self)


def calibrate(
    scans: Sequence[ScanLogits],
    protocol: LesionProtocol,
    *,
    default_threshold: float = 0.5,
    rule: LesionRule | None = None,
) -> Calibration:
    """Fit temperature, then threshold, then what the peak of a lesion must reach.

    Args:
        scans: Of cases that the network was not trained on.
        protocol: How lesions are counted.
        default_threshold: Kept where lesions cannot tell.
        rule: Which lesions the model was trained to keep.

    Returns:
        Temperature 1 where no voxel is open or all are of one class.
    """
    logits, truth = open_voxels(scans)
    temperature, before, after, note = 1.0, None, None, ""
    if 0 < truth.sum() < truth.size:
        temperature = fit_temperature(logits, truth)
        before, after = reliability(logits, truth), reliability(logits / temperature, truth)
        if not TEMPERATURES[0] * 1.01 < temperature < TEMPERATURES[1] / 1.01:
            note = "the temperature lies on the bound of its range"
    else:
        note = "no temperature: the scans hold no deposit, or nothing else that could be one"
    rule = rule or LesionRule()
    cuts = [(t, replace(rule, min_peak=p)) for p in PEAKS for t in THRESHOLDS if p == 0 or p > t]
    counts = lesion_counts(scans, protocol, temperature, [*cuts, (default_threshold, rule)])
    default = _pooled(counts.pop())
    scores = [lesion_score(of_scans) for of_scans in counts]
    min_peak = cuts[int(np.argmax(scores))][1].min_peak if any(scores) else rule.min_peak
    row = [number for number, (_, kept) in enumerate(cuts) if kept.min_peak == min_peak]
    threshold, plateau = choose_threshold([cuts[n][0] for n in row], [scores[n] for n in row], default_threshold)
    chosen = {cuts[n][0]: _pooled(counts[n]) for n in row}
    best = chosen.get(threshold, default)
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        min_peak=min_peak,
        plateau=plateau,
        lesion_f1=_finite(best.f1),
        lesion_f1_default=_finite(default.f1),
        before=before,
        after=after,
        scans=len(scans),
        voxels=int(truth.size),
        note=note,
    )


def open_voxels(scans: Iterable[ScanLogits]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return logits and truth of the voxels that take part in the fit.

    All that the network gives 1 % or more, and all within 5 mm of a deposit. The rest of a body is 10⁴ times as many
    voxels about which there is no question; in a plain mean they would settle the temperature alone.

    Returns:
        Logits and truth, shape (N,) each.
    """
    logits: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    truth: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    cut = logit_of(OPEN_PROBABILITY)
    for scan in scans:
        deposit = scan.label == 1
        taken = scan.logits >= cut
        if deposit.any():
            # edt measures the distance from the nearest zero
            taken |= edt.edt(~deposit, anisotropy=scan.spacing, black_border=False) <= NEAR_MM
        taken &= scan.counted
        logits.append(scan.logits[taken])
        truth.append(deposit[taken])
    return np.concatenate(logits), np.concatenate(truth)


def fit_temperature(logits: FloatArray, truth: NDArray[np.bool_]) -> float:
    """Return the temperature of the smallest mean negative log-likelihood, within :data:`TEMPERATURES`.

    Args:
        logits: Shape (N,).
        truth: Shape (N,); both classes.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    low, high = (math.log(bound) for bound in TEMPERATURES)
    # one number over a convex loss in 1 / T: bisection-like search on a log scale finds it
    found = minimize_scalar(lambda log_t: _nll(logits / math.exp(log_t), truth), bounds=(low, high), method="bounded")
    return round(math.exp(float(found.x)), 4)


def reliability(logits: FloatArray, truth: NDArray[np.bool_]) -> Reliability:
    """Measure how well sigmoid(logits) fits the truth, shape (N,) each, N > 0.

    Source: ECE over 15 equally wide bins as in Guo et al. 2017, of the foreground's probability; Brier 1950.
    """
    probability = _sigmoid(logits)
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    confidence = np.bincount(bins, probability, BINS)
    frequency = np.bincount(bins, truth.astype(np.float64), BINS)
    return Reliability(
        nll=_nll(logits, truth),
        ece=float(np.abs(confidence - frequency).sum() / truth.size),
        brier=float(np.mean((probability - truth) ** 2)),
    )


def lesion_counts(
    scans: Sequence[ScanLogits],
    protocol: LesionProtocol,
    temperature: float,
    cuts: Sequence[tuple[float, LesionRule]],
) -> list[list[LesionCounts]]:
    """Count lesions at each cut; matched one to one from :data:`MATCHED_IOU`.

    Args:
        scans: Shape (X, Y, Z) each.
        protocol: How lesions are formed, and from which size they count.
        temperature: Logits are divided by it.
        cuts: Probability from which voxels count, and which lesions are kept.

    Returns:
        Counts of each scan, for each cut.
    """
    counts: list[list[LesionCounts]] = [[] for _ in cuts]
    lowest = min(temperature * logit_of(t) for t, _ in cuts)
    for scan in scans:
        deposit = (scan.label == 1) & scan.counted
        box = _box_of(deposit | ((scan.logits > lowest) & scan.counted))
        logits, counted, label = scan.logits[box], scan.counted[box], deposit[box]
        x, y, z = label.shape
        grid = Grid((x, y, z), np.diag([*scan.spacing, 1.0]))
        for row, (threshold, rule) in enumerate(cuts):
            mask = (logits > temperature * logit_of(threshold)) & counted
            rule.clear(mask, _Probability(logits, temperature), scan.spacing)
            prediction, reference = find_both(mask, label, scan.spacing, protocol)
            matched = match_lesions(prediction, reference, grid, protocol)
            counts[row].append(matched.rematched(MATCHED_IOU, one_to_one=True).count())
    return counts


def _pooled(scans: Sequence[LesionCounts]) -> LesionCounts:
    return LesionCounts(*(sum(getattr(scan, name) for scan in scans) for name in ("tp", "fp", "fn")))


def lesion_score(scans: Sequence[LesionCounts]) -> float:
    """Return the mean of pooled lesion F1 and of that of the single scans, 0 where neither is defined.

    Pooled alone, one scan full of contrast would decide for all; the mean of scans alone would forgive it everything.
    """
    single = [scan.f1 for scan in scans if math.isfinite(scan.f1)]
    pooled = _pooled(scans).f1
    return (pooled + float(np.mean(single))) / 2 if single and math.isfinite(pooled) else 0.0


def choose_threshold(
    thresholds: Sequence[float], scores: Sequence[float], default: float
) -> tuple[float, tuple[float, float]]:
    """Return the middle of the plateau around the best score, and the plateau's ends.

    The best threshold itself is where a few validation lesions happen to fall; the middle of all that are as good
    is furthest from being wrong on others.

    Args:
        thresholds: Rising.
        scores: Lesion F1 at each; NaN where undefined.
        default: Returned where no score is above 0; also the one that the best of several equals is nearest to.
    """
    values = np.nan_to_num(np.asarray(scores, dtype=float), nan=0.0)
    if values.max(initial=0.0) <= 0:
        return default, (default, default)
    equals = np.flatnonzero(values == values.max())
    start = int(equals[np.abs(np.asarray(thresholds)[equals] - default).argmin()])
    good = values >= values.max() - PLATEAU
    low = high = start
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(good) and good[high + 1]:
        high += 1
    return thresholds[(low + high) // 2], (thresholds[low], thresholds[high])


@dataclass(frozen=True)
class _Probability:
    """Probabilities of the voxels that are asked for, and of no others."""

    logits: NDArray[np.float32]
    temperature: float

    def __getitem__(self, indices: Any) -> NDArray[np.float64]:
        return _sigmoid(self.logits[indices] / self.temperature)


def _nll(logits: FloatArray, truth: NDArray[np.bool_]) -> float:
    # log(1 + e^x) without overflow; float64 because the mean is over millions
    return float(np.mean(np.logaddexp(0, logits.astype(np.float64)) - logits * truth))


def _sigmoid(logits: FloatArray) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return result


def _box_of(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Return the smallest box around a mask, the first voxel where it is empty."""
    spans = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        spans.append(slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1))
    return spans[0], spans[1], spans[2]


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
