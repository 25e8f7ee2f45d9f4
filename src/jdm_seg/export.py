"""A run folder to a model folder, with proof that the exported network answers as the trained one."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from jdm_seg.cases import manifest_path, read_manifest
from jdm_seg.config import LAST_CHECKPOINT, preprocess_from
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.inference.engines import EngineName, build_engine
from jdm_seg.inference.predict import PredictSettings, ScanPredictor
from jdm_seg.model_folder import FILES, ModelFolder, ModelSpec, write_spec
from jdm_seg.module import SegmentationModule
from jdm_seg.networks import as_levels, foreground_logit
from jdm_seg.synthesis.dataset import synthetic_origin
from jdm_seg.train import load_module
from jdm_seg.volume import case_id_of, read_volume, write_text

OPSET = 20
MASK_TOLERANCE = 0.01
"""Largest share of a whole scan's mask in which engines may differ: voxels whose probability is the threshold."""
LOGIT_TOLERANCE = 1e-3
"""Largest difference between engines in f32 that counts as the same network; logits span about ±10."""


class ForegroundNetwork(nn.Module):
    """A network that answers with one logit, that of the foreground, so that one volume leaves the graph."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network of one or several classes."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 1, X, Y, Z) to (B, 1, X, Y, Z)."""
        return foreground_logit(as_levels(self.network(image))[0])


def export_run(run: Path, out: Path) -> ModelFolder:
    """Export the best checkpoint of a run (by validation), or its last where none was best yet.

    Args:
        run: Run folder of ``jdm-seg train``.
        out: Model folder to make; appears whole or not at all.

    Returns:
        The model folder.

    Raises:
        CaseNotFoundError: If the run has no checkpoint.
        InputError: If ONNX Runtime and torch disagree, or ``out`` holds something that is no model.
    """
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - set(FILES)):
        raise InputError(
            out, expected="a new folder or a model folder", found="other files", remedy="choose another one"
        )
    checkpoint = next((c for c in (run / "checkpoints" / "best.ckpt", run / LAST_CHECKPOINT) if c.is_file()), None)
    if checkpoint is None:
        raise CaseNotFoundError(
            run,
            expected="a run folder with a checkpoint",
            found="none",
            remedy="point at a folder that jdm-seg train made",
        )
    module = load_module(checkpoint)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    hparams: Any = module.hparams
    spec = ModelSpec(
        name=record["name"],
        preprocess=preprocess_from(hparams["preprocess"]),
        patch_size=tuple(hparams["inference"]["roi_size"]),
        overlap=hparams["inference"]["overlap"],
        threshold=hparams["inference"]["threshold"],
        network=hparams["network"],
        training_data=_training_data(run),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        model = ModelFolder(folder, spec)
        _export_onnx(module, model)
        parity = {"patch": _patch_parity(module, model), **_scan_parity(model, run)}
        spec = ModelSpec(**{**vars(spec), "parity": parity})
        write_spec(folder, spec)
        write_text(folder / "MODEL_CARD.md", _model_card(spec, record))
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder, out)
    return ModelFolder(out, spec)


def _export_onnx(module: SegmentationModule, model: ModelFolder) -> None:
    network = ForegroundNetwork(module.network).eval()
    example = torch.zeros(2, 1, *model.spec.patch_size)  # batch of 2: a batch of 1 would be taken for a constant
    with _silent():
        torch.onnx.export(
            network,
            (example,),
            str(model.onnx),
            input_names=["image"],
            output_names=["logit"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=True,
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's progress remarks off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _patch_parity(module: SegmentationModule, model: ModelFolder) -> dict[str, float]:
    """Compare ONNX Runtime, and torch rebuilt from the ONNX weights, with the trained network on a random window."""
    windows = torch.rand(2, 1, *model.spec.patch_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        reference = ForegroundNetwork(module.network).eval()(windows)
    if _difference(model, "torch", windows, reference) > LOGIT_TOLERANCE:
        torch.save(module.network.state_dict(), model.weights)
    report = {}
    engines: list[EngineName] = ["onnxruntime", "torch"]
    if find_spec("openvino"):
        engines.append("openvino")
    for engine in engines:
        largest = _difference(model, engine, windows, reference)
        report[f"{engine}_max_logit_difference"] = largest
        if not largest <= LOGIT_TOLERANCE:
            raise InputError(
                f"engine {engine}",
                expected=f"the trained network's logits within {LOGIT_TOLERANCE:g}",
                found=f"a difference of {largest:.3g}",
                remedy="this network cannot be exported as it is; please report it",
            )
    return report


def _difference(model: ModelFolder, engine: EngineName, windows: Tensor, reference: Tensor) -> float:
    return float((build_engine(model, engine)(windows) - reference).abs().max())


def _scan_parity(model: ModelFolder, run: Path) -> dict[str, Any]:
    """Compare the masks of both engines on one whole validation scan, where the run's scans are at hand."""
    image = _validation_image(run)
    if image is None:
        return {"scan": "not measured: no validation scan at hand"}
    scan = read_volume(image)
    masks = [ScanPredictor(model, PredictSettings(engine=engine))(scan).mask for engine in ("torch", "onnxruntime")]
    different = int(np.count_nonzero(masks[0] != masks[1]))
    if different > MASK_TOLERANCE * max(1, int(masks[0].sum())):
        raise InputError(
            "ONNX Runtime",
            expected="the mask of torch on a whole scan",
            found=f"{different} voxels different of {int(masks[0].sum())}",
            remedy="this network cannot be exported as it is; please report it",
        )
    return {"scan": {"voxels": int(masks[0].size), "foreground": int(masks[0].sum()), "different": different}}


def _validation_image(run: Path) -> Path | None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    validation = set(json.loads((run / "splits.json").read_text(encoding="utf-8"))["validation"])
    root = config["data"]["root"]
    if root is None:
        folder = Path(config["data"]["backgrounds"])
        return next((p for p in sorted(folder.glob("*.nii*")) if case_id_of(p) in validation), None)
    try:
        return next((case.image for case in read_manifest(root).all if case.case_id in validation), None)
    except InputError:
        return None


def _training_data(run: Path) -> str:
    splits = json.loads((run / "splits.json").read_text(encoding="utf-8"))
    data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    count = f"{len(splits['training'])} training and {len(splits['validation'])} validation"
    if data["backgrounds"] is not None:
        return f"Synthetic deposits inserted on the fly into unlabelled CT scans: {count} scans."
    origin = synthetic_origin(manifest_path(data["root"]))
    if origin is not None and origin["backgrounds"] is None:
        return f"Procedural bodies with synthetic deposits: {count} cases. No real scan was seen."
    if origin is not None:
        return f"Synthetic deposits inserted into unlabelled CT scans: {count} cases."
    return f"Labelled cases of the user: {count}."


def _model_card(spec: ModelSpec, record: dict[str, Any]) -> str:
    validation = "\n".join(
        f"| {name} | {'undefined' if value is None else f'{value:.3f}'} |"
        for name, value in record.get("validation", {}).items()
    )
    patch = spec.parity["patch"]
    return f"""# {spec.name}

Segments calcinosis on {spec.preprocess.modality.upper()}. Research use only; not a medical device.

**Trained on.** {spec.training_data}

**Input.** One channel, RAS, {" x ".join(f"{s:g}" for s in spec.preprocess.spacing)} mm, windows of
{" x ".join(map(str, spec.patch_size))} voxels. A voxel counts from a probability of {spec.threshold:g}.

**Figures while training** (a progress bar, not a benchmark):

| figure | value |
| --- | --- |
{validation}

**Parity in float32.** Largest logit difference to the trained network: ONNX Runtime
{patch["onnxruntime_max_logit_difference"]:.1e}, torch {patch["torch_max_logit_difference"]:.1e}.

Made by jdm_seg {record["jdm_seg"]}, seed {record["seed"]}, {record.get("steps", "?")} steps.
"""
