"""One scan to a mask on its own grid, streamed from foot to head."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jdm_seg.cases import Modality, as_modality, check_modality
from jdm_seg.errors import InputError
from jdm_seg.inference.candidates import CandidateClassifier, Outline
from jdm_seg.inference.chest import drop_between_lungs
from jdm_seg.inference.clock import StageClock
from jdm_seg.inference.engines import build_engine, choose_engine
from jdm_seg.inference.memory import scan_memory, window_memory
from jdm_seg.inference.outlines import KNOWN_FROM, OutlineRefiner, measure_voxels
from jdm_seg.inference.prediction import ScanPrediction, TrainingGrid
from jdm_seg.inference.scan_grid import ScanGridMask, logit_of
from jdm_seg.inference.sliding_window import Predictor, stream_logits
from jdm_seg.inference.test_time import with_flips, with_temperature
from jdm_seg.machine import resident_memory
from jdm_seg.model_folder import ModelFolder
from jdm_seg.model_grid import ModelGridScan, Placement, follow_slices, place
from jdm_seg.provenance import sha256_of
from jdm_seg.volume import Volume


@dataclass(frozen=True)
class PredictSettings:
    """How to run a model; None: as the model folder says.

    Attributes:
        engine: ``auto``, ``torch``, ``onnxruntime`` or ``openvino``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``f32`` or what the engine has beside it.
        threshold: Probability from which a voxel counts, 0 to 1.
        overlap: Least share of a window shared with its neighbour.
        batch_size: Windows a call; fewer where the memory limit asks for it.
        compiled: Let torch compile the network: slow to begin, worth it for many scans on a GPU.
        memory_limit_gb: Memory of the whole process in GB (10^9 bytes); a scan that needs more is refused.
        keep_from: Keep probabilities from this one on, for a probability map; None: from the threshold.
        tta: Average the logits of mirrored windows, along the axes that training mirrored.
    """

    engine: str = "auto"
    device: str = "cpu"
    precision: str = "f32"
    threshold: float | None = None
    overlap: float | None = None
    batch_size: int = 1
    compiled: bool = False
    memory_limit_gb: float | None = None
    keep_from: float | None = None
    tta: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(
                "--threshold", expected="between 0 and 1", found=str(self.threshold), remedy="give a probability"
            )
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise InputError("--overlap", expected="0 to below 1", found=str(self.overlap), remedy="give a share")
        if self.memory_limit_gb is not None and not self.memory_limit_gb > 0:
            raise InputError(
                "--memory-limit", expected="more than 0", found=str(self.memory_limit_gb), remedy="give it in GB"
            )


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block.

    Around the network one is best: its steps are short, and threads that wait for each other at the end of every one
    spin. On 2 busy cores, two of them took 3 times the processor time and 4 times as long (a whole body, measured).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_threads(predictor: Predictor, count: int) -> Predictor:
    """Return a predictor that runs with so many torch threads, whatever its caller has."""

    def predict(windows: Tensor) -> Tensor:
        with torch_threads(count):
            return predictor(windows)

    return predict


class ScanPredictor:
    """A model loaded once, for any number of scans."""

    def __init__(self, model: ModelFolder, settings: PredictSettings | None = None) -> None:
        """Load the model into the engine.

        Raises:
            InputError: If the engine cannot do what the settings ask for, or not within the memory limit.
        """
        self.model = model
        self.settings = settings or PredictSettings()
        chosen = choose_engine(model.spec, self.settings.engine, self.settings.device, self.settings.precision)
        self.engine, self._reason = chosen.name, chosen.reason
        self._model_sha256 = sha256_of(model.onnx)
        self._classifier: CandidateClassifier | None = None
        self._judged_by: dict[str, Any] = {"min_peak": model.spec.min_peak}
        if model.candidates.is_file():
            self._classifier = CandidateClassifier.read(model.candidates)
            least = self._classifier.min_score
            self._judged_by = {"min_score": least, "candidates_sha256": sha256_of(model.candidates)}
        self._refiner = OutlineRefiner.read(model.outlines) if model.outlines.is_file() else None
        if self._refiner is not None:
            self._judged_by["outlines_sha256"] = sha256_of(model.outlines)
        network = build_engine(
            model,
            self.engine,
            device=self.settings.device,
            precision=self.settings.precision,
            compiled=self.settings.compiled,
        )
        self._flips = model.spec.flip_axes if self.settings.tta else ""
        self._predict: Predictor = with_flips(with_temperature(network, model.spec.temperature), self._flips)
        self._window_bytes = 0
        if self.settings.memory_limit_gb is not None:
            window = torch.zeros(1, 1, *model.spec.patch_size)
            self._window_bytes = window_memory(lambda: self._predict(window))

    @property
    def modality(self) -> Modality:
        """What the model segments."""
        return as_modality(self.model.spec.preprocess.modality)

    @property
    def training(self) -> TrainingGrid:
        """The model's grid and window."""
        spacing = self.model.spec.preprocess.spacing
        x, y, z = (n * step for n, step in zip(self.model.spec.patch_size, spacing, strict=True))
        return TrainingGrid(spacing, (x, y, z), self.model.spec.caution)

    @property
    def network(self) -> Predictor:
        """What is asked of every window: calibrated logits, mirrorings averaged."""
        return self._predict

    def with_network(self, network: Predictor) -> ScanPredictor:
        """Return the same way from scan to mask around another network on the same grid."""
        other = copy.copy(self)
        other._predict = network
        return other

    def without_outlines(self) -> ScanPredictor:
        """Return the same way from scan to mask, outlines left as the network draws them."""
        other = copy.copy(self)
        other._refiner = None
        return other

    @property
    def threshold(self) -> float:
        """The probability from which a voxel counts."""
        own = self.settings.threshold
        return self.model.spec.threshold if own is None else own

    @property
    def found_from(self) -> float:
        """The probability from which voxels make a lesion: lower than the threshold where lesions are judged."""
        return self.threshold if self._classifier is None else min(self.threshold, self._classifier.threshold)

    @property
    def known_from(self) -> float | None:
        """The probability from which it is kept: lower than asked for where outlines are drawn from it."""
        asked = self.settings.keep_from
        return asked if self._refiner is None else min(KNOWN_FROM, asked or KNOWN_FROM)

    def describe(self) -> dict[str, Any]:
        """Return what was asked and what runs, for ``run.json``."""
        spec = self.model.spec
        return {
            "model": spec.name,
            "model_sha256": self._model_sha256,
            "engine": self.engine,
            "engine_reason": self._reason,
            "device": self.settings.device,
            "precision": self.settings.precision,
            "threshold": self.threshold,
            "min_lesion_mm3": spec.min_lesion_mm3,
            **self._judged_by,
            "between_lungs": "dropped" if self.modality == "ct" else "kept",
            "temperature": spec.temperature,
            "tta": self._flips,
            "overlap": self._overlap,
            "patch_size": list(spec.patch_size),
            "spacing": list(spec.preprocess.spacing),
        }

    def clear(
        self, mask: NDArray[np.bool_], probability: Any, canonical: Volume, placement: Placement | None = None
    ) -> None:
        """Drop what is no deposit by the model's rules from a mask and draw the rest on the scan's grid, in place.

        Args:
            mask: Where the probability exceeds :attr:`found_from`, on the canonical scan.
            probability: Of the same shape; only asked for at the voxels of the mask, and near them to draw outlines.
            canonical: The scan.
            placement: The model's grid in it, if it is known.
        """
        spec = self.model.spec
        if self._classifier is None:
            spec.rule.clear(mask, probability, canonical.spacing)
        else:
            outline = Outline(self.threshold, spec.min_lesion_mm3, spec.min_peak)
            grid = placement or place(canonical, spec.preprocess)
            self._classifier.clear(mask, probability, canonical, grid, outline)
        if self._refiner is not None:
            surer = logit_of(self.threshold) - logit_of(spec.threshold)
            around = measure_voxels(mask, probability, canonical.array, canonical.spacing)
            self._refiner.draw(mask, probability, around, canonical.spacing, spec.rule, shift=surer)

    @property
    def _overlap(self) -> float:
        return self.model.spec.overlap if self.settings.overlap is None else self.settings.overlap

    def __call__(self, scan: Volume) -> ScanPrediction:
        """Segment one scan. Memory is bounded as told in :mod:`jdm_seg.inference.memory`.

        Args:
            scan: Any orientation and spacing.

        Raises:
            InputError: If the scan cannot be of the model's modality, or needs more than the memory limit.
        """
        clock = StageClock()
        spec = self.model.spec
        check_modality(scan, spec.preprocess.modality)
        own, scan = scan, follow_slices(scan, spec.preprocess)
        with clock.stage("preprocess"):
            image = ModelGridScan(scan, spec.preprocess)
        batch_size = self._batch_size(scan, image.placement)
        found = ScanGridMask(
            image.placement,
            self.found_from,
            like=scan.to_canonical().array,
            keep_from=self.known_from,
        )
        image.planes = clock.timed("preprocess", image.planes)  # type: ignore[method-assign]
        network = with_threads(self._predict, torch.get_num_threads())
        with torch_threads(1), clock.stage("windows"):
            for logits in stream_logits(
                image,
                clock.timed("network", network),
                roi_size=spec.patch_size,
                overlap=self._overlap,
                batch_size=batch_size,
            ):
                with clock.stage("back_to_scan"):
                    found.add(logits)
        with clock.stage("back_to_scan"):
            likely = found.probability
            self.clear(found.mask, likely, scan.to_canonical(), image.placement)
            mask, probability = scan.from_canonical(found.mask), likely.from_canonical(scan)
            notes = drop_between_lungs(mask, own) if self.modality == "ct" else ()
        return ScanPrediction(mask, probability, clock.seconds, notes)

    def _batch_size(self, scan: Volume, placement: Placement) -> int:
        """Return how many windows a call may hold.

        Raises:
            InputError: If not even one.
        """
        limit = self.settings.memory_limit_gb
        if limit is None:
            return self.settings.batch_size
        whole = self.model.spec.preprocess.intensity.kind != "window"
        needed = resident_memory() + scan_memory(placement, self.model.spec.patch_size[2], whole=whole)
        fitting = int((limit * 1e9 - needed) // max(1, self._window_bytes))
        if fitting < 1:
            raise InputError(
                scan.name,
                expected=f"a scan that can be segmented in {limit:g} GB",
                found=f"one that needs {(needed + self._window_bytes) / 1e9:.2f} GB",
                remedy="give a higher --memory-limit, or crop the scan",
            )
        return min(self.settings.batch_size, fitting)
