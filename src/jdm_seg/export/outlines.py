"""Fit what draws outlines on the scan's own grid, on labelled cases of a trained model's kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jdm_seg.cases import Case
from jdm_seg.components import LesionRule
from jdm_seg.errors import InputError
from jdm_seg.inference.outlines import FEATURES, KNOWN_FROM, OutlineRefiner, measure_voxels
from jdm_seg.inference.predict import PredictSettings, ScanPredictor
from jdm_seg.lesions import read_mask
from jdm_seg.metrics.voxel import dice
from jdm_seg.model_folder import OUTLINES_FILE, ModelFolder
from jdm_seg.volume import Volume, read_volume

FloatArray = NDArray[np.floating[Any]]

SHARES = (0.3, 0.5, 0.7, 1.0)
CUTS = tuple(round(0.2 * step, 1) for step in range(-10, 3))
PLATEAU = 0.005
"""Of mean Dice: shares within it are equals."""
MIN_VOXELS = 1000
"""Of either kind, to learn from."""
_VOXELS_A_CASE = 20_000
_FOUND_FROM = 0.5
"""Of the model's threshold: training looks at what is found only just as well."""
_HIDDEN = (48, 32)
_STEPS = 3000
_BATCH = 8192
_LEARNING_RATE = 0.01
_LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class _Found:
    """What a model found in one case, on the canonical scan.

    Attributes:
        case_id: Which.
        scan: CT numbers.
        mask: Its lesions.
        probability: From :data:`KNOWN_FROM` on, 0 elsewhere.
        truth: The deposits.
        counted: Where the truth is known.
    """

    case_id: str
    scan: Volume
    mask: NDArray[np.bool_]
    probability: Any
    truth: NDArray[np.bool_]
    counted: NDArray[np.bool_]


def fit_outlines(
    model: ModelFolder,
    training: Sequence[Case],
    validation: Sequence[Case],
    on_case: Callable[[str], None] = lambda _: None,
) -> OutlineRefiner:
    """Fit a perceptron to the voxels around what a model finds; its share and its cut are chosen by Dice.

    Args:
        model: Of CT, without outlines of its own (they are not looked at).
        training: Labelled cases on their scans' own grids, as `jdm-seg synthesize --backgrounds` makes them.
        validation: Others, of other people: mean Dice over them decides.
        on_case: Called with each case id that is done.

    Returns:
        What :data:`~jdm_seg.model_folder.OUTLINES_FILE` holds.

    Raises:
        InputError: If the model is not of CT, or there is too little to learn from.
    """
    if model.spec.preprocess.modality != "ct":
        raise InputError(
            model.path.name,
            expected="a model of CT: outlines are drawn by CT numbers",
            found=model.spec.preprocess.modality,
            remedy="leave them as the network draws them",
        )
    predictor = ScanPredictor(model, PredictSettings(keep_from=KNOWN_FROM)).without_outlines()
    rng = np.random.default_rng(0)
    features: list[NDArray[np.float32]] = [np.zeros((0, len(FEATURES)), np.float32)]
    truth: list[NDArray[np.bool_]] = [np.zeros(0, bool)]
    for case in training:
        seen, deposit = _voxels_of(_found_in(case, predictor), _FOUND_FROM * predictor.threshold)
        chosen = rng.permutation(len(deposit))[:_VOXELS_A_CASE]
        features.append(seen[chosen])
        truth.append(deposit[chosen])
        on_case(case.case_id)
    x, y = np.concatenate(features), np.concatenate(truth)
    fewer = min(int(y.sum()), int((~y).sum()))
    if fewer < MIN_VOXELS:
        raise InputError(
            OUTLINES_FILE,
            expected=f"at least {MIN_VOXELS} voxels of deposits, and as many beside them, where the model found some",
            found=str(fewer),
            remedy="give more cases",
        )
    refiner = replace(_perceptron(x, y), fitted={"cases": len(training), "voxels": len(y)})
    return _chosen(refiner, (_found_in(case, predictor) for case in validation), model.spec.rule, on_case)


def _found_in(case: Case, predictor: ScanPredictor) -> _Found:
    scan = read_volume(case.image)
    assert case.label is not None
    said = predictor(scan)
    assert said.probability is not None
    canonical, mask = scan.to_canonical(), Volume(said.mask, scan.affine, scan.name).to_canonical().array
    truth = read_mask(case.label, case.case_id).to_canonical().array > 0
    counted = np.ones(truth.shape, bool)
    if case.ignore is not None:
        counted = read_mask(case.ignore, case.case_id).to_canonical().array == 0
    probability = said.probability.to_canonical(scan)
    return _Found(case.case_id, canonical, mask, probability, truth & counted, counted)


def _voxels_of(one: _Found, threshold: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return features and truth of the voxels near what exceeds a probability, where the truth is known."""
    likely = one.probability.dense() > threshold
    features: list[NDArray[np.float32]] = [np.zeros((0, len(FEATURES)), np.float32)]
    truth: list[NDArray[np.bool_]] = [np.zeros(0, bool)]
    if likely.any():
        for voxels, seen in measure_voxels(likely, one.probability, one.scan.array, one.scan.spacing):
            at = tuple(voxels.T)
            features.append(seen[one.counted[at]])
            truth.append(one.truth[at][one.counted[at]])
    return np.concatenate(features), np.concatenate(truth)


def _chosen(
    refiner: OutlineRefiner,
    cases: Iterator[_Found],
    rule: LesionRule,
    on_case: Callable[[str], None],
) -> OutlineRefiner:
    """Return the refiner with the smallest share that reaches the best mean Dice, and with its best cut."""
    candidates = [replace(refiner, share=share, cut=cut) for share in SHARES for cut in CUTS]
    rows: list[list[float]] = []
    before: list[float] = []
    for one in cases:
        if not one.truth.any():
            continue
        around = []
        if one.mask.any():
            around = list(measure_voxels(one.mask, one.probability, one.scan.array, one.scan.spacing))
        row = []
        for candidate in candidates:
            drawn = one.mask.copy()
            candidate.draw(drawn, one.probability, around, one.scan.spacing, rule)
            row.append(dice(drawn & one.counted, one.truth))
        rows.append(row)
        before.append(dice(one.mask & one.counted, one.truth))
        on_case(one.case_id)
    if not rows:
        raise InputError(
            OUTLINES_FILE, expected="validation cases with deposits", found="none", remedy="give some others"
        )
    means = np.mean(rows, axis=0)
    # the network knows the body, the perceptron a few millimetres of it: of equals, the one that trusts the network
    good = np.flatnonzero(means >= means.max() - PLATEAU)
    share = min(candidates[number].share for number in good)
    best = max((int(n) for n in good if candidates[n].share == share), key=lambda number: float(means[number]))
    facts = {"chosen_on": len(rows), "dice": round(float(means[best]), 4), "dice_before": round(np.mean(before), 4)}
    return replace(candidates[best], fitted={**refiner.fitted, **facts})


def _perceptron(features: NDArray[np.float32], truth: NDArray[np.bool_]) -> OutlineRefiner:
    """Fit by Adam on cross-entropy of random batches; the same voxels give the same perceptron."""
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), _LEAST_SCALE)
    x = torch.from_numpy(np.clip((features - mean) / scale, -6, 6).astype(np.float32))
    y = torch.from_numpy(truth.astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sides = (len(FEATURES), *_HIDDEN, 1)
        linear = [torch.nn.Linear(a, b) for a, b in pairwise(sides)]
        network = torch.nn.Sequential(linear[0], torch.nn.SiLU(), linear[1], torch.nn.SiLU(), linear[2])
        optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS)
        for _ in range(_STEPS):
            chosen = torch.randint(len(x), (_BATCH,))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(x[chosen])[:, 0], y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    layers = tuple((one.weight.detach().numpy().T.copy(), one.bias.detach().numpy()) for one in linear)
    return OutlineRefiner(mean, scale, layers, share=0.5, cut=0.0, fitted={})
