"""A model folder: ``model.onnx``, ``model.json`` and ``MODEL_CARD.md``; all that inference needs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jdm_seg.config import PreprocessConfig, plain, preprocess_from
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.volume import write_text

SCHEMA_VERSION = 1
ONNX_FILE = "model.onnx"
SPEC_FILE = "model.json"
WEIGHTS_FILE = "weights.pt"
CARD_FILE = "MODEL_CARD.md"
FILES = (ONNX_FILE, SPEC_FILE, WEIGHTS_FILE, CARD_FILE)
SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ModelSpec:
    """What ``model.json`` says.

    Attributes:
        name: Experiment the model comes from.
        preprocess: Modality, spacing and intensity rule; orientation is always RAS.
        patch_size: Window in voxels.
        overlap: Share of a window shared with its neighbour.
        threshold: Probability from which a voxel counts as calcinosis.
        network: ``_target_`` and arguments that rebuild the network in torch.
        labels: Meaning of mask values.
        training_data: What it was trained on, in words.
        parity: How far engines agree, measured at export.
    """

    name: str
    preprocess: PreprocessConfig
    patch_size: tuple[int, int, int]
    overlap: float
    threshold: float
    network: dict[str, Any]
    labels: dict[str, str] = field(default_factory=lambda: {"0": "background", "1": "calcinosis"})
    training_data: str = ""
    parity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk with its sidecar read."""

    path: Path
    spec: ModelSpec

    @property
    def onnx(self) -> Path:
        """Path of the network."""
        return self.path / ONNX_FILE

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
