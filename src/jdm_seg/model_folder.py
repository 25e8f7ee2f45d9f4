"""A model folder: ``model.onnx``, ``model.json`` and ``MODEL_CARD.md``; all that inference needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jdm_seg.components import LesionRule
from jdm_seg.config import PreprocessConfig, plain, preprocess_from
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.volume import write_text

SCHEMA_VERSION = 1
ONNX_FILE = "model.onnx"
SPEC_FILE = "model.json"
WEIGHTS_FILE = "weights.pt"
CARD_FILE = "MODEL_CARD.md"
PARITY_FILE = "parity.json"
CANDIDATES_FILE = "candidates.json"
OUTLINES_FILE = "outlines.json"
REDUCED_FILES = {"f16": "model_f16.onnx", "int8": "model_int8.onnx"}
"""Graphs that compute in less than float32, where a model was exported with them."""
FILES = (
    *(ONNX_FILE, SPEC_FILE, WEIGHTS_FILE, CARD_FILE, PARITY_FILE, CANDIDATES_FILE, OUTLINES_FILE),
    *REDUCED_FILES.values(),
)
BUNDLE_FOLDER = "monai_bundle"
SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ModelSpec:
    """What ``model.json`` says.

    Attributes:
        name: Experiment the model comes from.
        preprocess: Modality, spacing and intensity rule; orientation is always RAS, but for thick slices that
            ``follow_slices`` turns.
        patch_size: Window in voxels.
        overlap: Share of a window shared with its neighbour.
        threshold: Probability from which a voxel counts as calcinosis.
        temperature: What logits are divided by before they become probabilities; 1 in folders older than it.
        flip_axes: Axes along which training mirrored patches, and test-time flips may: letters of ``xyz``.
        network: ``_target_`` and arguments that rebuild the network in torch.
        labels: Meaning of mask values.
        training_data: What it was trained on, in words.
        caution: What every result of it should be read with; empty if nothing stands out.
        min_lesion_mm3: Smaller lesions are dropped.
        min_peak: Lesions of which no voxel has this probability are dropped, unless ``candidates.json`` judges them.
        weights: How the network is stored: ``f32``, or ``f16`` for half the size; it computes in f32 either way.
        calibration: How temperature and threshold were found: data, figures before and after.
        parity: How far engines agree with the trained network, measured at export; ``parity.json`` has all of it.
    """

    name: str
    preprocess: PreprocessConfig
    patch_size: tuple[int, int, int]
    overlap: float
    threshold: float
    network: dict[str, Any]
    labels: dict[str, str] = field(default_factory=lambda: {"0": "background", "1": "calcinosis"})
    training_data: str = ""
    caution: str = ""
    temperature: float = 1.0
    flip_axes: str = "xyz"
    min_lesion_mm3: float = 0.0
    min_peak: float = 0.0
    weights: str = "f32"
    calibration: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)

    @property
    def rule(self) -> LesionRule:
        """Which lesions are kept."""
        return LesionRule(self.min_lesion_mm3, self.min_peak)

    def offers(self, engine: str, precision: str) -> bool | None:
        """Tell whether an engine passed parity in a precision when the model was exported; None: not measured then."""
        try:
            return bool(self.parity["engines"][engine][precision]["offered"])
        except (KeyError, TypeError):
            return None


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk with its sidecar read."""

    path: Path
    spec: ModelSpec

    @property
    def onnx(self) -> Path:
        """Path of the network."""
        return self.path / ONNX_FILE

    def graph(self, precision: str) -> Path:
        """Return the path of the network that an ONNX engine runs in a precision.

        Raises:
            InputError: If the model was exported without it.
        """
        path = self.path / REDUCED_FILES.get(precision, ONNX_FILE)
        if not path.is_file():
            raise InputError(
                f"model {self.path.name}",
                expected=f"a graph in {precision}",
                found="none",
                remedy=f"export it with --precision {precision}, or use --precision f32",
            )
        return path

    @property
    def candidates(self) -> Path:
        """Path of the classifier that drops false lesions, where the model was exported with one."""
        return self.path / CANDIDATES_FILE

    @property
    def outlines(self) -> Path:
        """Path of what draws outlines on the scan's own grid, where that was fitted for the model."""
        return self.path / OUTLINES_FILE

    @property
    def weights(self) -> Path:
        """Path of the weights for torch, where the ONNX file cannot give them all."""
        return self.path / WEIGHTS_FILE


def shipped_models() -> list[str]:
    """Return the names of the models inside the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if (folder / SPEC_FILE).is_file())


def open_model(name: str | Path) -> ModelFolder:
    """Open a model folder, or a shipped model by name.

    Raises:
        CaseNotFoundError: If there is no such model.
        InputError: If the sidecar is of another version or incomplete.
    """
    path = Path(name)
    if not path.is_dir() and str(name) in shipped_models():
        path = SHIPPED / str(name)
    if not (path / SPEC_FILE).is_file() or not (path / ONNX_FILE).is_file():
        shipped = ", ".join(shipped_models()) or "none in this version"
        raise CaseNotFoundError(
            f"model {name}",
            expected=f"a model folder with {ONNX_FILE} and {SPEC_FILE}, or a shipped model ({shipped})",
            found="neither",
            remedy="train one with `jdm-seg train` and `jdm-seg export`, or see `jdm-seg models`",
        )
    return ModelFolder(path, read_spec(path / SPEC_FILE))


def open_models(names: Sequence[str | Path]) -> list[ModelFolder]:
    """Open the models that names stand for; a folder of model folders stands for all of them, by name.

    Raises:
        CaseNotFoundError: If there is no such model.
        InputError: If a model is named twice, or they segment different things.
    """
    models: list[ModelFolder] = []
    for name in names:
        try:
            models.append(open_model(name))
        except CaseNotFoundError:
            inside = [path.parent for path in sorted(Path(name).glob("*/model.json"))]
            if not inside:
                raise
            models += [open_model(path) for path in inside]
    if len({model.path.resolve() for model in models}) < len(models):
        raise InputError("--model", expected="different models", found="one of them twice", remedy="name each once")
    modalities = sorted({model.spec.preprocess.modality for model in models})
    if len(modalities) > 1:
        raise InputError(
            "--model",
            expected="models of one modality",
            found=" and ".join(modalities),
            remedy="segment with each on its own",
        )
    return models


def read_spec(path: Path) -> ModelSpec:
    """Read ``model.json``.

    Raises:
        InputError: If it is not one, or of another schema version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("schema_version")
        if version == SCHEMA_VERSION:
            values.pop("orientation")
            preprocess = preprocess_from(values.pop("preprocess"))
            return ModelSpec(**{**values, "preprocess": preprocess, "patch_size": tuple(values["patch_size"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path.parent.name}/{path.name}",
            expected="a complete model sidecar",
            found=f"{type(error).__name__}: {error}",
            remedy="export the model again",
        ) from error
    raise InputError(
        f"{path.parent.name}/{path.name}",
        expected=f"schema version {SCHEMA_VERSION}",
        found=str(version),
        remedy="export the model again, or install the matching jdm-seg",
    )


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write ``model.json``."""
    content = {"schema_version": SCHEMA_VERSION, "orientation": "RAS", **plain(spec)}
    write_text(folder / SPEC_FILE, json.dumps(content, indent=1) + "\n")
