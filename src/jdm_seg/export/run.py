"""A run folder to a model folder, with proof that the exported network answers as the trained one."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from jdm_seg import __version__
from jdm_seg.cases import manifest_path
from jdm_seg.config import LAST_CHECKPOINT, preprocess_from
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.export.bundle import write_bundle
from jdm_seg.export.calibration import Calibration, ScanLogits, calibrate
from jdm_seg.export.candidates import DRAWS, FOUND_FROM, CandidateRule, choose_score, fit_classifier, gather
from jdm_seg.export.model_card import model_card
from jdm_seg.export.onnx_graph import (
    OPSET,
    ForegroundNetwork,
    compact_graph,
    round_weights,
    stamp,
    weights_sha256,
    write_graph,
    write_half_graph,
    write_int8_graph,
)
from jdm_seg.export.parity import ParityCheck, measure_parity, summary_of
from jdm_seg.export.validation import SYNTHETIC, ValidationScan, drawn_scans, random_windows, validation_scans
from jdm_seg.inference.candidates import CandidateClassifier, Outline
from jdm_seg.inference.chest import between_lungs
from jdm_seg.inference.engines import build_engine
from jdm_seg.inference.sliding_window import Predictor, predict_logits
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.model_folder import (
    BUNDLE_FOLDER,
    CARD_FILE,
    FILES,
    PARITY_FILE,
    REDUCED_FILES,
    ModelFolder,
    ModelSpec,
    write_spec,
)
from jdm_seg.model_grid import denormalize
from jdm_seg.module import SegmentationModule
from jdm_seg.synthesis.dataset import synthetic_origin
from jdm_seg.train import load_module
from jdm_seg.volume import write_text

CALIBRATION_SCANS = 8
PARITY_SCANS = 2
"""Whole scans a report; each is segmented by every engine in every precision."""
PARITY_WINDOWS = 4
_QUANTISATION_WINDOWS = 16
_LUNG_HU = -800.0


@dataclass(frozen=True)
class ExportOptions:
    """What to make besides the float32 network.

    Attributes:
        compact: Store weights in float16, for half the size; computing stays in float32.
        precisions: Graphs that compute in less: ``f16``, ``int8``.
        monai_bundle: Add a folder that ``python -m monai.bundle`` runs.
        candidates: Fit a classifier that drops false lesions, on what the network finds in its training scans (CT).
    """

    compact: bool = False
    precisions: tuple[str, ...] = ()
    monai_bundle: bool = False
    candidates: bool = False

    def __post_init__(self) -> None:
        """Check names."""
        for precision in self.precisions:
            if precision not in ("f32", *REDUCED_FILES):
                raise InputError(
                    "--precision", expected="f32, f16 or int8", found=repr(precision), remedy="choose among them"
                )


def export_run(run: Path, out: Path, options: ExportOptions | None = None) -> ModelFolder:
    """Export the best checkpoint of a run (by validation), or its last where none was best yet.

    The model is calibrated on the run's validation scans, and every engine and precision is compared with the trained
    network on windows and whole scans.

    Args:
        run: Run folder of ``jdm-seg train``.
        out: Model folder to make; appears whole or not at all.
        options: What else to make.

    Returns:
        The model folder.

    Raises:
        CaseNotFoundError: If the run has no checkpoint.
        InputError: If torch or ONNX Runtime disagrees with the trained network in f32, a precision that was asked for
            does not pass, or ``out`` holds something that is no model.
    """
    options = options or ExportOptions()
    _check_out(out)
    module = load_module(_checkpoint_of(run))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    spec = _spec_of(module, record, run, options)
    scans = validation_scans(run, spec.preprocess, CALIBRATION_SCANS)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        model = _write_model(ModelFolder(folder, spec), module, scans, options)
        if options.candidates:
            _classifier_of(model, module, run, scans).write(model.candidates)
        write_text(folder / CARD_FILE, model_card(model, record))
        if out.exists():
            shutil.rmtree(out)
        shutil.move(folder, out)
    return ModelFolder(out, model.spec)


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {*FILES, BUNDLE_FOLDER}):
        raise InputError(
            out, expected="a new folder or a model folder", found="other files", remedy="choose another one"
        )


def _checkpoint_of(run: Path) -> Path:
    for checkpoint in (run / "checkpoints" / "best.ckpt", run / LAST_CHECKPOINT):
        if checkpoint.is_file():
            return checkpoint
    raise CaseNotFoundError(
        run,
        expected="a run folder with a checkpoint",
        found="none",
        remedy="point at a folder that jdm-seg train made",
    )


def _spec_of(module: SegmentationModule, record: dict[str, Any], run: Path, options: ExportOptions) -> ModelSpec:
    hparams: Any = module.hparams
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return ModelSpec(
        name=record["name"],
        preprocess=preprocess_from(hparams["preprocess"]),
        patch_size=tuple(hparams["inference"]["roi_size"]),
        overlap=hparams["inference"]["overlap"],
        threshold=hparams["inference"]["threshold"],
        min_lesion_mm3=hparams["inference"].get("min_lesion_mm3", 0.0),
        min_peak=hparams["inference"].get("min_peak", 0.0),
        network=hparams["network"],
        training_data=_training_data(run, config["data"]),
        # a body's left and right look alike; its other sides only to a network that has seen it mirrored
        flip_axes="xyz" if config.get("augment", {}).get("flip", 0) > 0 else "x",
        weights="f16" if options.compact else "f32",
    )


def _write_model(
    model: ModelFolder,
    module: SegmentationModule,
    scans: list[ValidationScan],
    options: ExportOptions,
) -> ModelFolder:
    """Write everything into an empty folder; return it with the final sidecar."""
    size = model.spec.patch_size
    windows = random_windows(scans, size, PARITY_WINDOWS)
    trained = _torch_predictor(copy.deepcopy(module) if options.compact else module)
    if options.compact:
        round_weights(module.network)
    stored = _torch_predictor(module)
    parity_scans = sorted(scans, key=lambda scan: (not (scan.label == 1).any(), scan.image.numel()))[:PARITY_SCANS]
    check = ParityCheck(stored, windows, parity_scans)
    free = write_graph(ForegroundNetwork(module.network).eval(), model.onnx, size)
    _keep_what_the_graph_lost(model, module, check)
    for precision in options.precisions:
        _write_reduced(model, precision, scans)
    if options.compact:
        compact_graph(model.onnx)
    calibration = _calibrate(model, module, scans)
    spec = replace(
        model.spec,
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        min_peak=calibration.min_peak,
        calibration={**calibration.describe(), "data": sorted({scan.origin for scan in scans})},
    )
    model = ModelFolder(model.path, spec)
    report = measure_parity(check, model, [p for p in options.precisions if p in REDUCED_FILES])
    _check_reduced(report, options.precisions)
    rounding = asdict(ParityCheck(trained, windows, parity_scans).compare(stored, spec, "f16"))
    _check_rounding(rounding, options.compact)
    full = {
        "reference": "the trained network in torch, f32" + (", weights rounded to f16" if options.compact else ""),
        "logit_tolerance": check.tolerance(spec.temperature),
        "windows": PARITY_WINDOWS,
        "scans": [{"case_id": s.case_id, "origin": s.origin, "voxels": s.image.numel()} for s in parity_scans],
        "any_window": free,
        "opset": OPSET,
        "weights": {"stored": spec.weights, "against_trained": rounding},
        "engines": report,
    }
    brief = {"any_window": free, "opset": OPSET, "scans": len(parity_scans), "engines": summary_of(report)}
    if options.compact:
        brief["weights"] = {key: rounding[key] for key in ("window_logit", "scan_logit", "lesion_f1")}
    spec = replace(spec, parity=brief)
    model = ModelFolder(model.path, spec)
    facts = _stamp_of(spec, weights_sha256(module.network))
    for path in (model.onnx, *(model.graph(p) for p in options.precisions if p in REDUCED_FILES)):
        stamp(path, facts)
    write_text(model.path / PARITY_FILE, json.dumps(full, indent=1) + "\n")
    write_spec(model.path, spec)
    if options.monai_bundle:
        write_bundle(model.path / BUNDLE_FOLDER, model, module.network)
    return model


def _torch_predictor(module: SegmentationModule) -> Predictor:
    network = ForegroundNetwork(module.network).eval()

    def predict(windows: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = network(windows)
            return result

    return predict


def _keep_what_the_graph_lost(model: ModelFolder, module: SegmentationModule, check: ParityCheck) -> None:
    """Write a second copy of the weights for torch where the graph's optimiser has folded some away."""
    if check.window_difference(build_engine(model, "torch")) <= check.tolerance(1.0):
        return
    state = module.network.state_dict()
    if model.spec.weights == "f16":
        half = {name: tensor.to(torch.float16) for name, tensor in state.items() if tensor.is_floating_point()}
        # only what is exact in float16: the rest was not rounded
        state = {k: half[k] if k in half and torch.equal(half[k].to(v.dtype), v) else v for k, v in state.items()}
    torch.save(state, model.weights)


def _write_reduced(model: ModelFolder, precision: str, scans: list[ValidationScan]) -> None:
    if precision == "f32":
        return
    target = model.path / REDUCED_FILES[precision]
    if precision == "f16":
        write_half_graph(model.onnx, target)
    else:
        windows = random_windows(scans, model.spec.patch_size, _QUANTISATION_WINDOWS, seed=1)
        write_int8_graph(model.onnx, target, windows)


def _check_reduced(report: dict[str, dict[str, Any]], precisions: Sequence[str]) -> None:
    """Refuse a precision that was asked for and changes lesions."""
    for precision in precisions:
        row = report["onnxruntime"].get(precision, {"offered": True})
        if not row["offered"]:
            figures = f"largest logit difference {row.get('scan_logit') or row.get('window_logit') or float('nan'):.2g}"
            raise InputError(
                f"--precision {precision}",
                expected="the lesions of f32 (F1 at least 0.99)",
                found=f"{row['reason']}; {figures}",
                remedy="export without it",
            )


def _check_rounding(row: dict[str, Any], compact: bool) -> None:
    """Refuse a compact model whose rounded weights find other lesions than the trained ones."""
    if compact and not row["offered"] and row["lesion_f1"] is not None:
        raise InputError(
            "--compact",
            expected="the trained network's lesions with weights in float16 (F1 at least 0.99)",
            found=row["reason"],
            remedy="export without it",
        )


def _calibrate(model: ModelFolder, module: SegmentationModule, scans: list[ValidationScan]) -> Calibration:
    predictor = build_engine(model, "onnxruntime")
    spec = model.spec
    said = [_said(predictor, spec, scan) for scan in scans]
    return calibrate(said, _protocol_of(module), default_threshold=spec.threshold, rule=spec.rule)


def _said(predictor: Predictor, spec: ModelSpec, scan: ValidationScan) -> ScanLogits:
    """Ask the network about a scan; what predictions never hold is not counted."""
    logits = predict_logits(scan.image, predictor, roi_size=spec.patch_size, overlap=spec.overlap).numpy()
    counted = scan.counted
    intensity = spec.preprocess.intensity
    if spec.preprocess.modality == "ct" and intensity.kind == "window":
        hu = denormalize(scan.image.numpy(), (intensity.low, intensity.high))
        hu[hu <= intensity.low] = _LUNG_HU  # the window does not tell gas of one kind from another
        zone, strides = between_lungs(hu, scan.spacing)
        sides = zip(hu.shape, strides, zone.shape, strict=True)
        counted &= ~zone[np.ix_(*(np.minimum(np.arange(size) // n, last - 1) for size, n, last in sides))]
    return ScanLogits(logits, scan.label, counted, scan.spacing)


def _protocol_of(module: SegmentationModule) -> LesionProtocol:
    hparams: Any = module.hparams
    return LesionProtocol(**hparams["evaluation"])


def _classifier_of(
    model: ModelFolder, module: SegmentationModule, run: Path, scans: list[ValidationScan]
) -> CandidateClassifier:
    """Fit a classifier on the run's training scans, and choose its score on validation scans."""
    spec = model.spec
    if spec.preprocess.modality != "ct" or spec.preprocess.intensity.kind != "window":
        raise InputError(
            "--candidates",
            expected="a model of CT with a window of CT numbers",
            found=f"{spec.preprocess.modality} with {spec.preprocess.intensity.kind}",
            remedy="export without it",
        )
    predictor = build_engine(model, "onnxruntime")
    window = (spec.preprocess.intensity.low, spec.preprocess.intensity.high)
    outline = Outline(spec.threshold, spec.min_lesion_mm3, spec.min_peak)
    rule = CandidateRule(spec.temperature, FOUND_FROM * spec.threshold, outline, window)
    training = drawn_scans(run, spec.preprocess, "training", DRAWS)
    classifier = fit_classifier(
        [gather(_said(predictor, spec, scan), scan.image.numpy(), rule) for scan in training], rule.threshold
    )
    drawn = drawn_scans(run, spec.preprocess, "validation", DRAWS)
    kept = [*drawn, *(scan for scan in scans if scan.origin == SYNTHETIC)]
    said = [_said(predictor, spec, scan) for scan in kept]
    candidates = [gather(one, scan.image.numpy(), rule) for one, scan in zip(said, kept, strict=True)]
    return choose_score(classifier, said, candidates, rule, spec.min_peak, _protocol_of(module))


def _stamp_of(spec: ModelSpec, weights: str) -> dict[str, str]:
    """Return what the ONNX file says of itself: all that a runner without the sidecar must know."""
    rule = spec.preprocess.intensity
    values = {
        "name": spec.name,
        "made_by": f"jdm_seg {__version__}",
        "task": "calcinosis segmentation; research use only, not a medical device",
        "modality": spec.preprocess.modality,
        "orientation": "RAS",
        "spacing_mm": list(spec.preprocess.spacing),
        "intensity": {"kind": rule.kind, "low": rule.low, "high": rule.high, "maps_to": [-1, 1]},
        "window": list(spec.patch_size),
        "overlap": spec.overlap,
        "temperature": spec.temperature,
        "threshold": spec.threshold,
        "output": "logit of the foreground; probability = sigmoid(logit / temperature)",
        "weights_sha256": weights,
    }
    return {f"jdm_seg.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def _training_data(run: Path, data: dict[str, Any]) -> str:
    splits = json.loads((run / "splits.json").read_text(encoding="utf-8"))
    made: dict[str, Any] = data.get("synthesize") or {}
    alone = data["root"] is None and data["backgrounds"] is None
    beside = made["cases"] if made.get("root") is not None and not alone else 0
    count = f"{len(splits['training']) - beside} training and {len(splits['validation'])} validation"
    more = f", beside {beside} procedural cases ({made['preset']}, seed {made['seed']})" if beside else ""
    if data["backgrounds"] is not None and data["root"] is not None:
        return f"Labelled cases, and synthetic deposits inserted on the fly into unlabelled scans: {count} scans{more}."
    if data["backgrounds"] is not None:
        return f"Synthetic deposits inserted on the fly into unlabelled scans: {count} scans{more}."
    origin = synthetic_origin(manifest_path(made["root"] if alone else data["root"]))
    if origin is not None and origin["backgrounds"] is None:
        return f"Procedural bodies with synthetic deposits: {count} cases. No real scan was seen."
    if origin is not None:
        return f"Synthetic deposits inserted into unlabelled CT scans: {count} cases."
    return f"Labelled cases of the user: {count}{more}."
