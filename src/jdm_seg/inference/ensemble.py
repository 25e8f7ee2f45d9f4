"""Several models as one: the mean of what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jdm_seg.cases import Modality
from jdm_seg.inference.chest import drop_between_lungs
from jdm_seg.inference.predict import PredictSettings, ScanPredictor
from jdm_seg.inference.prediction import ScanPrediction, TrainingGrid
from jdm_seg.inference.scan_grid import zeros_in_order_of
from jdm_seg.inference.sliding_window import Predictor
from jdm_seg.model_folder import ModelFolder, ModelSpec
from jdm_seg.model_grid import follow_slices
from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Volume

KEEP_FROM = 0.001
"""Members on different grids tell of their probabilities from this one on; below it they say 0."""


def build_segmenter(models: Sequence[ModelFolder], settings: PredictSettings) -> ScanPredictor | EnsemblePredictor:
    """Load one model, or several as an ensemble."""
    return ScanPredictor(models[0], settings) if len(models) == 1 else EnsemblePredictor(models, settings)


def mean_of(predictors: Sequence[Predictor]) -> Predictor:
    """Return a predictor whose logits are the mean of several, (B, 1, X, Y, Z) each."""

    def predict(windows: Tensor) -> Tensor:
        total = predictors[0](windows)
        for predictor in predictors[1:]:
            total = total + predictor(windows)
        return total / len(predictors)

    return predict


class EnsemblePredictor:
    """Models loaded once, for any number of scans.

    Members of one grid (spacing, intensity rule, window, overlap) are asked window by window and their calibrated
    logits averaged, so the ensemble costs its networks and nothing else. Others each go their own way to the scan's
    grid, where their probabilities are averaged; beside a member's own memory that takes two bytes a voxel for the sum
    and 34 for each voxel that a member names. The threshold is the mean of the members' unless one is given.
    """

    def __init__(self, models: Sequence[ModelFolder], settings: PredictSettings | None = None) -> None:
        """Load at least two models of one modality."""
        settings = settings or PredictSettings()
        if settings.threshold is None:
            mean = sum(model.spec.threshold for model in models) / len(models)
            settings = replace(settings, threshold=round(mean, 6))
        self.settings = settings
        self.same_grid = len({_grid_of(model.spec) for model in models}) == 1
        if not self.same_grid:
            settings = replace(settings, keep_from=min(KEEP_FROM, settings.keep_from or KEEP_FROM))
        self.members = [ScanPredictor(model, settings) for model in models]
        self._together = self.members[0].with_network(mean_of([member.network for member in self.members]))

    @property
    def modality(self) -> Modality:
        """What the members segment."""
        return self.members[0].modality

    @property
    def training(self) -> TrainingGrid:
        """The first member's grid and window, and what any member's results should be read with."""
        members = [member.training for member in self.members]
        return replace(members[0], caution=" ".join(dict.fromkeys(m.caution for m in members if m.caution)))

    @property
    def threshold(self) -> float:
        """The probability from which a voxel counts."""
        return self.members[0].threshold

    def describe(self) -> dict[str, Any]:
        """Return what was asked and what runs, for ``run.json``: the first member's settings, and each member."""
        members = [member.describe() for member in self.members]
        return {
            **members[0],
            "model": "ensemble of " + ", ".join(member["model"] for member in members),
            "model_sha256": "+".join(member["model_sha256"] for member in members),
            "averaged": "logits" if self.same_grid else "probabilities",
            "members": members,
        }

    def __call__(self, scan: Volume) -> ScanPrediction:
        """Segment one scan of any orientation and spacing.

        Raises:
            InputError: If the scan cannot be of the models' modality, or needs more than the memory limit.
        """
        return self._together(scan) if self.same_grid else self._on_the_scan(scan)

    def _on_the_scan(self, scan: Volume) -> ScanPrediction:
        seconds: dict[str, float] = {}
        total: NDArray[np.float16] | None = None
        for member in self.members:
            said = member.without_outlines()(scan)  # they are drawn once, from the mean
            assert said.probability is not None
            for stage, time in said.seconds.items():
                seconds[stage] = round(seconds.get(stage, 0.0) + time, 3)
            if total is None:
                total = zeros_in_order_of(scan.array, np.float16)
            places = np.unravel_index(said.probability.places, total.shape, order="F")
            total[places] += said.probability.values / np.float16(len(self.members))
            del said, places
        assert total is not None
        mask = total > self.members[0].found_from
        first = follow_slices(scan, self.members[0].model.spec.preprocess)
        view, likely = (Volume(array, first.affine, scan.name).to_canonical().array for array in (mask, total))
        self.members[0].clear(view, likely, first.to_canonical())
        notes = drop_between_lungs(mask, scan) if self.modality == "ct" else ()
        lowest = self.threshold if self.settings.keep_from is None else min(self.threshold, self.settings.keep_from)
        total[(total < lowest) & ~mask] = 0
        return ScanPrediction(mask, SparseArray.of(total), seconds, notes)


def _grid_of(spec: ModelSpec) -> str:
    return repr((spec.preprocess, spec.patch_size, spec.overlap))
