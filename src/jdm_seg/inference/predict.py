"""One scan to a mask on its own grid."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jdm_seg.cases import Modality, as_modality, check_modality
from jdm_seg.errors import InputError
from jdm_seg.inference.engines import build_engine, resolve_engine
from jdm_seg.inference.prediction import ScanPrediction
from jdm_seg.inference.sliding_window import Predictor, predict_logits
from jdm_seg.model_folder import ModelFolder
from jdm_seg.provenance import sha256_of
from jdm_seg.resample import resample_slab
from jdm_seg.transforms import Placement, intensity_range, normalize, preprocess
from jdm_seg.volume import Volume

_SLAB = 32


@dataclass(frozen=True)
class PredictSettings:
    """How to run a model; None: as the model folder says."""

    engine: str = "auto"
    device: str = "cpu"
    precision: str = "f32"
    threshold: float | None = None
    overlap: float | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(
                "--threshold", expected="between 0 and 1", found=str(self.threshold), remedy="give a probability"
            )
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise InputError("--overlap", expected="0 to below 1", found=str(self.overlap), remedy="give a share")


class ScanPredictor:
    """A model loaded once, for any number of scans."""

    def __init__(self, model: ModelFolder, settings: PredictSettings | None = None) -> None:
        """Load the model into the engine."""
        self.model = model
        self.settings = settings or PredictSettings()
        self.engine = resolve_engine(self.settings.engine, self.settings.device)
        self._model_sha256 = sha256_of(model.onnx)
        self._predict: Predictor = build_engine(
            model, self.engine, device=self.settings.device, precision=self.settings.precision
        )

    @property
    def modality(self) -> Modality:
        """What the model segments."""
        return as_modality(self.model.spec.preprocess.modality)

    @property
    def threshold(self) -> float:
        """The probability from which a voxel counts."""
        own = self.settings.threshold
        return self.model.spec.threshold if own is None else own

    def describe(self) -> dict[str, Any]:
        """Return what was asked and what runs, for ``run.json``."""
        spec = self.model.spec
        return {
            "model": spec.name,
            "model_sha256": self._model_sha256,
            "engine": self.engine,
            "device": self.settings.device,
            "precision": self.settings.precision,
            "threshold": self.threshold,
            "overlap": self._overlap,
            "patch_size": list(spec.patch_size),
            "spacing": list(spec.preprocess.spacing),
        }

    @property
    def _overlap(self) -> float:
        return self.model.spec.overlap if self.settings.overlap is None else self.settings.overlap

    def __call__(self, scan: Volume) -> ScanPrediction:
        """Segment one scan.

        Args:
            scan: Any orientation and spacing.

        Raises:
            InputError: If the scan cannot be of the model's modality.
        """
        clock = _Clock()
        spec = self.model.spec
        check_modality(scan, spec.preprocess.modality)
        image, placement = preprocess(scan, spec.preprocess)
        image = normalize(image, intensity_range(image, spec.preprocess.intensity))
        clock.lap("preprocess")
        logits = predict_logits(
            torch.from_numpy(image),
            self._predict,
            roi_size=spec.patch_size,
            overlap=self._overlap,
            batch_size=self.settings.batch_size,
        ).numpy()
        clock.lap("network")
        mask, probability = to_scan_grid(logits, placement, self.threshold)
        result = ScanPrediction(scan.from_canonical(mask), scan.from_canonical(probability), clock.seconds)
        clock.lap("back_to_scan")
        return result


def to_scan_grid(
    logits: NDArray[np.float32], placement: Placement, threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.float16]]:
    """Bring logits back to the canonical scan, slab by slab, and threshold them on the way.

    One logit volume is interpolated and compared with log(t / (1 - t)); no probability volume at full size is ever
    computed. Outside the body nothing counts.

    Args:
        logits: On the model's grid.
        placement: How that grid lies in the scan.
        threshold: Probability from which a voxel counts.

    Returns:
        The mask, and the probability at its voxels (0 elsewhere: untouched memory).
    """
    mask = np.zeros(placement.canonical_shape, np.bool_)
    probability = np.zeros(placement.canonical_shape, np.float16)
    weights = placement.to_scan()
    cut = math.log(threshold / (1 - threshold))
    for start in range(0, placement.box_shape[0], _SLAB):
        stop = min(start + _SLAB, placement.box_shape[0])
        x = placement.box[0].start
        here = (slice(x + start, x + stop), *placement.box[1:])
        slab = resample_slab(logits, weights, start, stop)
        found = (slab > cut) & placement.body[here]
        if found.any():
            mask[here] = found
            probability[here][found] = 1 / (1 + np.exp(-slab[found]))
    return mask, probability


class _Clock:
    """Wall time a stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
