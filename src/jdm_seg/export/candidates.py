"""Fit the classifier that tells deposits from other lesions, on what a trained network finds in its training scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jdm_seg.components import LesionRule, LesionVoxels, find_lesions
from jdm_seg.errors import InputError
from jdm_seg.export.calibration import MATCHED_IOU, ScanLogits, lesion_counts, lesion_score
from jdm_seg.inference.candidates import CandidateClassifier, Outline, Perceptron, WholeImage, measure_candidates
from jdm_seg.inference.scan_grid import logit_of
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.model_grid import denormalize
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.floating[Any]]

DRAWS = 4
"""Times that deposits are put into each scan, elsewhere each time."""
FOUND_FROM = 0.5
"""Of the model's threshold: from half of it on voxels make candidates, for the second stage can only judge what is
found."""
MIN_DEPOSITS = 30
"""Found ones to learn from. With fewer the classifier would learn these by heart."""
SCORES = tuple(round(0.05 * i, 2) for i in range(1, 15))
_LEAST_SCALE = 1e-3
"""Of a feature that never varies, such as a kind of tissue that no scan shows."""
_HIDDEN = 16
_MEMBERS = 4
_DECAY = 10.0
_STEPS = 600
_LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Candidates:
    """What a network found in one scan, and whether it is there.

    Attributes:
        features: Shape (n, F).
        deposit: Whether intersection over union with a deposit reaches :data:`MATCHED_IOU`, shape (n,).
        clear: Whether that, or nothing of a deposit; from what lies between, or is too large, nothing is learned.
    """

    features: FloatArray
    deposit: NDArray[np.bool_]
    clear: NDArray[np.bool_]


@dataclass(frozen=True)
class CandidateRule:
    """How candidates are made from logits.

    Attributes:
        temperature: Logits are divided by it.
        threshold: Probability from which voxels make a candidate.
        outline: How those that stay are drawn.
        window: The CT numbers that became -1 and 1.
    """

    temperature: float
    threshold: float
    outline: Outline
    window: tuple[float, float]

    def find(self, scan: ScanLogits) -> LesionVoxels:
        """Return the candidates of a scan."""
        mask = (scan.logits > self.temperature * logit_of(self.threshold)) & scan.counted
        LesionRule(self.outline.min_volume_mm3).clear(mask, scan.logits, scan.spacing)
        return find_lesions(mask, scan.spacing)


def gather(scan: ScanLogits, image: NDArray[np.float32], rule: CandidateRule) -> Candidates:
    """Measure the candidates of one scan and look which are deposits.

    Args:
        scan: What the network said, and what is there.
        image: The scan as the network saw it, shape (X, Y, Z).
        rule: How candidates are made.
    """
    lesions = rule.find(scan)
    logits = scan.logits[tuple(lesions.indices.T)] / rule.temperature
    whole = WholeImage(denormalize(image, rule.window), scan.spacing)
    features = measure_candidates(lesions, logits, scan.spacing, whole, lesions.parts())
    deposits = find_lesions((scan.label == 1) & scan.counted, scan.spacing)
    overlap = np.zeros(lesions.count)
    for number, part in enumerate(lesions.parts()):
        hits = deposits.at(part)
        if hits.any():
            shared = np.bincount(hits[hits > 0], minlength=deposits.count + 1)[1:]
            overlap[number] = (shared / (len(part) + deposits.sizes_vox - shared)).max()
    clear = ((overlap == 0) | (overlap >= MATCHED_IOU)) & np.isfinite(features).all(axis=1)
    return Candidates(features, overlap >= MATCHED_IOU, clear)


def fit_classifier(scans: Sequence[Candidates], threshold: float) -> CandidateClassifier:
    """Fit perceptrons to the candidates of several scans; nothing is dropped before a score is chosen.

    Full-batch Adam on cross-entropy with weight decay: the same candidates give the same classifier.

    Args:
        scans: Candidates of each.
        threshold: Probability from which voxels made them.

    Raises:
        InputError: If there are not :data:`MIN_DEPOSITS` deposits and as many other lesions.
    """
    features = np.concatenate([scan.features[scan.clear] for scan in scans]).astype(np.float64)
    deposit = np.concatenate([scan.deposit[scan.clear] for scan in scans])
    fewer = min(int(deposit.sum()), int((~deposit).sum()))
    if fewer < MIN_DEPOSITS:
        raise InputError(
            "--candidates",
            expected=f"at least {MIN_DEPOSITS} deposits and {MIN_DEPOSITS} false lesions among what the network finds",
            found=f"{int(deposit.sum())} and {int((~deposit).sum())}",
            remedy="export without it, or give the run more scans",
        )
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), _LEAST_SCALE)
    standard = np.clip((features - mean) / scale, -5, 5)
    members = tuple(_perceptron(standard, deposit, seed) for seed in range(_MEMBERS))
    facts = {"scans": len(scans), "deposits": int(deposit.sum()), "false": int((~deposit).sum())}
    return CandidateClassifier(mean, scale, members, threshold, 0.0, facts)


def choose_score(
    classifier: CandidateClassifier,
    scans: Sequence[ScanLogits],
    candidates: Sequence[Candidates],
    rule: CandidateRule,
    min_peak: float,
    protocol: LesionProtocol,
) -> CandidateClassifier:
    """Return the classifier with the score below which dropping lesions scores best, by what calibration goes by.

    Args:
        classifier: To be asked.
        scans: Not trained on.
        candidates: Of each of them.
        rule: How candidates were made.
        min_peak: What the peak of a lesion must reach without the classifier, for comparison.
        protocol: How lesions are counted.
    """
    counts: list[list[Any]] = [[] for _ in SCORES]
    for scan, found in zip(scans, candidates, strict=True):
        score = classifier.score(found.features)
        cuts: list[Any] = [(rule.threshold, _ScoreRule(rule, score, least)) for least in SCORES]
        for row, of_scan in zip(counts, lesion_counts([scan], protocol, rule.temperature, cuts), strict=True):
            row += of_scan
    peak = LesionRule(rule.outline.min_volume_mm3, min_peak)
    before = lesion_score(lesion_counts(scans, protocol, rule.temperature, [(rule.outline.threshold, peak)])[0])
    scores = [lesion_score(of_scans) for of_scans in counts]
    best = int(np.argmax(scores))
    facts = {
        **classifier.fitted,
        "chosen_on": len(scans),
        "lesion_f1": round(scores[best], 4),
        "lesion_f1_by_peak": round(before, 4),
    }
    return replace(classifier, min_score=SCORES[best], fitted=facts)


@dataclass(frozen=True)
class _ScoreRule:
    """Drops candidates of one scan by scores that are known."""

    rule: CandidateRule
    score: FloatArray
    least: float

    def clear(self, mask: NDArray[np.bool_], probability: Any, spacing: Spacing) -> None:
        LesionRule(self.rule.outline.min_volume_mm3).clear(mask, probability, spacing)
        lesions = find_lesions(mask, spacing)  # in the order of the scores: largest first, ties in C order
        likely = probability[tuple(lesions.indices.T)]
        self.rule.outline.draw(mask, lesions, likely, ~(self.score < self.least), spacing)


def _perceptron(standard: FloatArray, deposit: NDArray[np.bool_], seed: int) -> Perceptron:
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor(standard, dtype=torch.float32)
    y = torch.tensor(deposit, dtype=torch.float32)
    count = x.shape[1]
    inward = (torch.randn(count, _HIDDEN, generator=generator) / count**0.5).requires_grad_()
    outward = (torch.randn(_HIDDEN, generator=generator) / _HIDDEN**0.5).requires_grad_()
    bias, offset = torch.zeros(_HIDDEN, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([inward, bias, outward, offset], lr=_LEARNING_RATE)
    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 - step / _STEPS)
        logit = torch.tanh(x @ inward + bias) @ outward + offset
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, y)
        loss = loss + _DECAY / 2 * (inward.square().sum() + outward.square().sum()) / len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    w, b, v = (tensor.detach().numpy().astype(np.float64) for tensor in (inward, bias, outward))
    return Perceptron(w, b, v, float(offset.detach()))
