"""Proof that an exported model answers as the trained network: on windows and whole scans, by engine and precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jdm_seg.components import find_lesions
from jdm_seg.errors import InputError
from jdm_seg.export.validation import ValidationScan
from jdm_seg.inference.engines import EngineName, build_engine
from jdm_seg.inference.scan_grid import logit_of
from jdm_seg.inference.sliding_window import Predictor, predict_logits
from jdm_seg.metrics.lesion import match_lesions
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.model_folder import ModelFolder, ModelSpec
from jdm_seg.volume import Grid

LOGIT_TOLERANCE = 1e-3
"""Largest difference between engines in f32 that counts as the same network, of logits divided by the temperature:
a network that is three times as sure has three times the rounding errors at the same probabilities."""
LOGIT_SHARE = 1e-4
"""The same as a share of the largest logit, where that is more: rounding grows with what is rounded."""
LESION_TOLERANCE = 0.99
"""Lesion F1 against the f32 mask from which a lower precision is offered."""
VOXEL_TOLERANCE = 0.9999
"""Share of the body's voxels that must agree in f32: voxels whose probability is the threshold may not."""
REQUIRED = ("torch", "onnxruntime")
"""Engines without which a folder is no model."""
_SAME_LESIONS = LesionProtocol(grouping_mm=0.0, matching="iou", min_iou=0.5, one_to_one=True, match_grown=False)
"""Two lesions are the same if they overlap by half, as in panoptic quality."""

Scores = tuple[float, float, float | None, int]


@dataclass(frozen=True)
class Agreement:
    """How far an engine is from the trained network.

    Attributes:
        window_logit: Largest difference of logits, divided by the temperature, on single windows and a batch of them.
        scan_logit: The same on whole scans; None without scans.
        voxels: Share of the body's voxels whose masks agree.
        lesion_f1: Between the two masks, lesions of at least 10 mm³ on both sides; None where neither has one.
        lesions: Lesions of the trained network's masks, all sizes.
        offered: Whether it passed.
        reason: Why not.
    """

    window_logit: float
    scan_logit: float | None
    voxels: float | None
    lesion_f1: float | None
    lesions: int
    offered: bool
    reason: str = ""


class ParityCheck:
    """Answers of the trained network in torch and float32, and what others are compared with them."""

    def __init__(self, reference: Predictor, windows: Sequence[Tensor], scans: Sequence[ValidationScan]) -> None:
        """Take the trained network, windows (1, 1, X, Y, Z) of one size, and scans; ask it once."""
        self.windows = [*windows, torch.cat([*windows[:2]])]
        self.scans = scans
        self._predictor = reference
        self._answers = [reference(window) for window in self.windows]
        self._scan_answers: list[NDArray[np.float32]] | None = None

    def window_difference(self, predictor: Predictor) -> float:
        """Return the largest logit difference on windows; NaN where an answer is not a number."""
        pairs = zip(self.windows, self._answers, strict=True)
        return max((float((predictor(window) - answer).abs().max()) for window, answer in pairs), key=_nan_last)

    def tolerance(self, temperature: float) -> float:
        """Return the largest difference in f32 that counts as the same network, of logits divided by the temperature.

        Args:
            temperature: Of the model.
        """
        largest = max(float(answer.abs().max()) for answer in self._answers)
        return max(LOGIT_TOLERANCE, LOGIT_SHARE * largest / temperature)

    def compare(self, predictor: Predictor, spec: ModelSpec, precision: str) -> Agreement:
        """Compare an engine on windows and whole scans.

        Args:
            predictor: The engine.
            spec: Window, overlap, temperature and threshold of the model.
            precision: f32 is held to the logits, lower ones to the lesions.
        """
        window = self.window_difference(predictor) / spec.temperature
        if self._scan_answers is None:
            self._scan_answers = [_scan_logits(self._predictor, scan, spec) for scan in self.scans]
        tolerance = self.tolerance(spec.temperature) if precision == "f32" else None
        if tolerance is not None and not window <= tolerance:
            return Agreement(window, None, None, None, 0, False, f"logits differ by {window:.2g}")
        rows = [
            _compare_scan(answer, _scan_logits(predictor, scan, spec), scan, spec)
            for answer, scan in zip(self._scan_answers, self.scans, strict=True)
        ]
        largest = max((row[0] for row in rows), key=_nan_last)
        voxels = min(row[1] for row in rows)
        scores = [row[2] for row in rows if row[2] is not None]
        f1 = min(scores) if scores else None
        reason = _reason(tolerance, max(window, largest, key=_nan_last), voxels, f1)
        return Agreement(window, largest, voxels, f1, sum(row[3] for row in rows), not reason, reason)


def _reason(tolerance: float | None, logit: float, voxels: float, f1: float | None) -> str:
    """Return why an engine is not offered, or nothing; in lower precisions, without a tolerance, lesions decide."""
    if tolerance is not None:
        if not logit <= tolerance:
            return f"logits differ by {logit:.2g}"
        if voxels < VOXEL_TOLERANCE:
            return f"only {voxels:.4%} of voxels agree"
        return "" if f1 is None or f1 == 1 else f"other lesions (F1 {f1:.3f})"
    if f1 is None:
        return "no lesion to compare"
    return "" if f1 >= LESION_TOLERANCE else f"lesion F1 {f1:.3f} against f32"


def measure_parity(check: ParityCheck, model: ModelFolder, extra: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Measure every installed engine in every precision it has on this machine.

    Args:
        check: The trained network's answers.
        model: The folder; its spec's threshold and temperature are used.
        extra: Further precisions that the folder holds a graph of.

    Returns:
        engine → precision → :class:`Agreement` as plain values, or why it was not measured.

    Raises:
        InputError: If torch or ONNX Runtime fails in f32.
    """
    report: dict[str, dict[str, Any]] = {}
    for engine in get_args(EngineName):
        if engine == "auto" or find_spec(engine) is None:
            continue
        report[engine] = {}
        for precision in _precisions(engine, extra):
            try:
                predictor = build_engine(model, engine, precision=precision)
                agreement = check.compare(predictor, model.spec, precision)
            except InputError as error:
                if engine in REQUIRED and precision == "f32":
                    raise
                report[engine][precision] = {"offered": False, "reason": str(error)}
                continue
            report[engine][precision] = asdict(agreement)
            if engine in REQUIRED and precision == "f32" and not agreement.offered:
                within = check.tolerance(model.spec.temperature)
                raise InputError(
                    f"engine {engine}",
                    expected=f"the trained network's logits within {within:.2g}, and its lesions",
                    found=agreement.reason,
                    remedy="this network cannot be exported as it is; please report it",
                )
    return report


def summary_of(report: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what ``model.json`` says of a report: largest logit difference, lesion F1, and whether it is offered."""
    return {
        engine: {
            precision: {
                "offered": row["offered"],
                "max_logit_difference": largest_difference(row),
                "lesion_f1": row.get("lesion_f1"),
            }
            for precision, row in precisions.items()
        }
        for engine, precisions in report.items()
    }


def largest_difference(row: dict[str, Any]) -> float | None:
    """Return the largest logit difference of one row of a report, on windows or scans."""
    values = [row[key] for key in ("window_logit", "scan_logit") if row.get(key) is not None]
    return max(values, key=_nan_last) if values else None


def _precisions(engine: str, extra: Sequence[str]) -> tuple[str, ...]:
    """Return what is worth measuring on this machine's CPU; half precision is for GPUs, where there is one."""
    if engine == "onnxruntime":
        return ("f32", *extra)
    return ("f32", "bf16")


def _scan_logits(predictor: Predictor, scan: ValidationScan, spec: ModelSpec) -> NDArray[np.float32]:
    result: NDArray[np.float32] = predict_logits(
        scan.image, predictor, roi_size=spec.patch_size, overlap=spec.overlap
    ).numpy()
    return result


def _compare_scan(
    reference: NDArray[np.float32], logits: NDArray[np.float32], scan: ValidationScan, spec: ModelSpec
) -> Scores:
    """Return the largest difference of calibrated logits, voxel agreement, lesion F1 and how many reference lesions."""
    cut = spec.temperature * logit_of(spec.threshold)
    body = scan.image.numpy() > -1
    masks = [(values > cut) & body for values in (logits, reference)]
    found, expected = (find_lesions(mask, scan.spacing) for mask in masks)
    x, y, z = reference.shape
    matched = match_lesions(found, expected, Grid((x, y, z), np.diag([*scan.spacing, 1.0])), _SAME_LESIONS)
    # the size cut holds on both sides: of one or two voxels at the threshold either mask may be the one without
    large = matched.protocol.counted(matched.prediction_mm3)
    tp = int((large & matched.prediction_hits).sum())
    fp = int((large & ~matched.prediction_hits).sum())
    fn = matched.count().fn
    difference = float(np.abs(logits - reference).max()) / spec.temperature
    agree = float((masks[0] == masks[1])[body].mean()) if body.any() else 1.0
    return difference, agree, 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None, expected.count


def _nan_last(value: float) -> float:
    """Order values so that NaN is the largest: what is not a number does not agree."""
    return math.inf if math.isnan(value) else value
