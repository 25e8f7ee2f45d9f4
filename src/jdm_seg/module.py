"""The thing that learns: network, loss, optimizer, one step, logging. No files, no figures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from jdm_seg.components import LesionRule
from jdm_seg.config import instantiate
from jdm_seg.inference.scan_grid import logit_of
from jdm_seg.inference.sliding_window import predict_logits
from jdm_seg.lesions import SIZE_STRATA, equivalent_diameter_mm, size_stratum
from jdm_seg.losses import build_loss
from jdm_seg.metrics.lesion import LesionCounts, find_both, match_lesions
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.metrics.voxel import dice
from jdm_seg.networks import as_levels, build_network, foreground_logit
from jdm_seg.synthesis.insert import IGNORE
from jdm_seg.volume import Grid

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "poly": lambda left: left**0.9,
    "constant": lambda _: 1.0,
}
"""Learning rate as a share of its peak, by the share of steps that are left after the warm-up."""


class SegmentationModule(LightningModule):
    """Trains a network on patches and validates it on whole scans by the sliding window that ``predict`` uses.

    All arguments are plain values, so a checkpoint loads with ``weights_only=True`` and rebuilds itself.
    Logged: ``train/loss``, ``val/dice``, ``val/lesion_f1``, ``val/lesion_precision``, ``val/lesion_recall``, recall and
    F1 of each stratum of size (``val/recall_over_10_mm``, of all lesions there are; ``val/f1_over_10_mm``, of these and
    the false ones of that size), and as ``val/score`` the mean of F1 and Dice: a progress bar, not a result; results
    come from ``jdm-seg evaluate``.
    """

    def __init__(
        self,
        network: dict[str, Any],
        loss: dict[str, Any],
        optimizer: dict[str, Any],
        preprocess: dict[str, Any],
        inference: dict[str, Any],
        evaluation: dict[str, Any],
        warmup_steps: int = 20,
        schedule: str = "cosine",
    ) -> None:
        """Build network and loss.

        Args:
            network: ``_target_`` and arguments.
            loss: The same.
            optimizer: The same.
            preprocess: Plain values of ``PreprocessConfig``.
            inference: ``roi_size``, ``overlap``, ``batch_size``, ``threshold``, ``min_lesion_mm3``, ``min_peak``.
            evaluation: Arguments of ``LesionProtocol``.
            warmup_steps: Steps over which the learning rate rises.
            schedule: How it falls to zero after that: ``cosine``, ``poly`` (power 0.9, as in nnU-Net), or ``constant``.
        """
        super().__init__()
        self.save_hyperparameters()
        self.network = build_network(network)
        self.loss = build_loss(loss)
        self._rule = LesionRule(inference.get("min_lesion_mm3", 0.0), inference.get("min_peak", 0.0))
        self._scores: list[tuple[float, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 1, X, Y, Z) to logits; in training mode with deep supervision to several levels of them."""
        result: Tensor = self.network(image)
        return result

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of one batch of patches."""
        loss: Tensor = self.loss(as_levels(self(batch["image"])), batch["label"])
        size = batch["image"].shape[0]
        self.log("train/loss", loss, on_step=True, on_epoch=False, prog_bar=True, batch_size=size)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the last epoch."""
        self._scores.clear()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Any]:
        """Segment one whole scan, count its lesions, and return ``prediction``, (X, Y, Z) bool."""
        window = self.hparams["inference"]
        logits = predict_logits(
            batch["image"][0, 0],
            lambda image: foreground_logit(as_levels(self(image))[0]),
            roi_size=tuple(window["roi_size"]),
            overlap=window["overlap"],
            batch_size=window["batch_size"],
        )
        counted = (batch["label"][0, 0] != IGNORE).cpu().numpy()
        prediction = (logits > logit_of(window["threshold"])).cpu().numpy() & counted
        self._rule.clear(prediction, torch.sigmoid(logits).cpu().numpy(), tuple(self.hparams["preprocess"]["spacing"]))
        reference = (batch["label"][0, 0] == 1).cpu().numpy()
        self._scores.append(self._score(prediction, reference))
        return {"prediction": prediction}

    def _score(self, prediction: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> tuple[float, ...]:
        """Return Dice, true, false and missed lesions, and these three for each stratum of size."""
        protocol = LesionProtocol(**self.hparams["evaluation"])
        x, y, z = reference.shape
        grid = Grid((x, y, z), np.diag([*self.hparams["preprocess"]["spacing"], 1.0]))
        matched = match_lesions(*find_both(prediction, reference, grid.spacing, protocol), grid, protocol)
        counts, found = matched.count(), matched.reference_found
        size, predicted = (
            np.array([size_stratum(d) for d in equivalent_diameter_mm(mm3)], dtype=object)
            for mm3 in (matched.reference_mm3, matched.prediction_mm3)
        )
        by_size = [
            int(which.sum())
            for stratum in SIZE_STRATA
            for which in (
                found & (size == stratum),
                matched.prediction_false & (predicted == stratum),
                ~found & (size == stratum),
            )
        ]
        return dice(prediction, reference), counts.tp, counts.fp, counts.fn, *by_size

    def on_validation_epoch_end(self) -> None:
        """Log Dice as the mean over scans, and lesion figures pooled over them (steadier with few scans)."""
        scores = self._scores_of_all_ranks()
        if not len(scores):
            return
        tp, fp, fn, *by_size = scores[:, 1:].sum(axis=0)
        counts = LesionCounts(int(tp), int(fp), int(fn))
        defined = scores[np.isfinite(scores[:, 0]), 0]
        figures = {
            "val/dice": defined.mean() if defined.size else math.nan,
            "val/lesion_f1": counts.f1,
            "val/lesion_precision": counts.precision,
            "val/lesion_recall": counts.recall,
        }
        for stratum, row in zip(SIZE_STRATA, np.reshape(by_size, (-1, 3)).astype(int).tolist(), strict=True):
            of_size = LesionCounts(*row)
            figures |= {f"val/recall_{_as_name(stratum)}": of_size.recall, f"val/f1_{_as_name(stratum)}": of_size.f1}
        # what checkpoints are chosen by: lesions first, outlines among equals; nothing to find is nothing to choose by
        figures["val/score"] = np.nan_to_num(figures["val/lesion_f1"] + figures["val/dice"]) / 2
        self.log_dict({name: float(value) for name, value in figures.items()}, prog_bar=True, batch_size=len(scores))

    def _scores_of_all_ranks(self) -> np.ndarray[Any, Any]:
        """Return Dice, true, false and missed lesions of every scan; each rank has segmented its own part."""
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, self._scores)
            return np.array([row for part in parts for row in part], dtype=float)
        return np.array(self._scores, dtype=float)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer with linear warm-up and then the schedule, stepped every batch."""
        optimizer = instantiate(self.hparams["optimizer"], "optimizer", params=list(self.network.parameters()))
        total = max(2, int(self.trainer.estimated_stepping_batches))
        warmup = min(int(self.hparams["warmup_steps"]), total // 4)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            left = 1 - min(1.0, (step - warmup) / max(1, total - warmup))
            return SCHEDULES[self.hparams["schedule"]](left)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _as_name(stratum: str) -> str:
    """Return a stratum as loggers like names: ``>10 mm`` becomes ``over_10_mm``."""
    words = (("<", "under_"), (">", "over_"), ("-", "_to_"), (" ", "_"))
    return functools.reduce(lambda name, pair: name.replace(*pair), words, stratum)
