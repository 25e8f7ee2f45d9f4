"""A model folder as a MONAI bundle, for MONAI Label, Deploy, 3D Slicer and ``python -m monai.bundle``.

The bundle needs MONAI and PyTorch and nothing of this package: its network is a TorchScript file, its steps are MONAI's
own transforms. Two things are left out for that, so masks are close to those of ``jdm-seg predict`` but not the same:
the search for the body (a bundle also answers on tables and blankets), and resampling with a kernel that widens with
the voxels.
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jdm_seg import __version__
from jdm_seg.config import IntensityConfig
from jdm_seg.export.onnx_graph import ForegroundNetwork
from jdm_seg.model_folder import ModelFolder, ModelSpec
from jdm_seg.volume import write_text

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json"


def write_bundle(folder: Path, model: ModelFolder, network: nn.Module) -> None:
    """Write a bundle.

    Args:
        folder: To make.
        model: The model it is of, its sidecar final.
        network: Its network, on the CPU.

    Source: MONAI Bundle Specification, docs/source/mb_specification.rst of MONAI 1.6.
    """
    spec = model.spec
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    (folder / "models" / "model.onnx").write_bytes(model.onnx.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants only where they are of the network
        example = torch.zeros(1, 1, *spec.patch_size)
        traced: Any = torch.jit.trace(ForegroundNetwork(network).eval(), example)  # type: ignore[no-untyped-call]
        traced.save(str(folder / "models" / "model.ts"))
    for name, content in (("metadata", metadata(spec)), ("inference", inference(spec))):
        write_text(folder / "configs" / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / "docs" / "README.md", _readme(spec))


def metadata(spec: ModelSpec) -> dict[str, Any]:
    """Return ``metadata.json``."""
    modality = "CT" if spec.preprocess.modality == "ct" else "MR"
    image = {
        "type": "image",
        "format": "hounsfield" if modality == "CT" else "magnitude",
        "modality": modality,
        "num_channels": 1,
        "spatial_shape": list(spec.patch_size),
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    }
    answer = {**image, "format": "segmentation", "value_range": [], "channel_def": {"0": "logit of calcinosis"}}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by jdm_seg {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "optional_packages_version": {"nibabel": version("nibabel"), "pytorch-ignite": "0.4.11"},
        "required_packages_version": {"nibabel": version("nibabel"), "pytorch-ignite": "0.4.11"},
        "name": spec.name,
        "task": "Segmentation of calcinosis in juvenile dermatomyositis",
        "description": f"Finds calcinosis on {modality}. {_slices(spec)}{spec.training_data}",
        "authors": "The jdm_seg developers",
        "copyright": "The jdm_seg developers, Apache-2.0",
        "data_type": "nifti",
        "intended_use": "Research only; not a medical device, not for diagnosis",
        "network": spec.network,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": answer}},
    }


def _slices(spec: ModelSpec) -> str:
    """Say which scans MONAI's own transforms bring to the grid as training did; ``jdm-seg predict`` turns others."""
    if not spec.preprocess.follow_slices:
        return ""
    between, axis = max(zip(spec.preprocess.spacing, ("left-right", "front-back", "head-foot"), strict=True))
    return f"For scans whose slices follow each other {axis}, about {between:g} mm apart. "


def inference(spec: ModelSpec) -> dict[str, Any]:
    """Return ``inference.json``: NIfTI files of ``dataset_dir`` to masks in ``output_dir``."""
    return {
        "imports": ["$import glob", "$import os", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/masks'",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))]",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": "$torch.jit.load(os.path.join(@bundle_root, 'models', 'model.ts'), map_location=@device)",
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "image_only": True},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": list(spec.preprocess.spacing), "mode": "bilinear"},
                _intensity(spec.preprocess.intensity),
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(spec.patch_size),
            "sw_batch_size": 1,
            "overlap": spec.overlap,
            "mode": "gaussian",
            "sigma_scale": 0.125,
            "padding_mode": "constant",
            "cval": -1.0,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                # logits are interpolated, and only then become probabilities
                {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda x: torch.sigmoid(x / {spec.temperature!r})"},
                {"_target_": "AsDiscreted", "keys": "pred", "threshold": spec.threshold},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "",
                    "separate_folder": False,
                    "resample": False,
                    "dtype": "$np.uint8",
                    "output_dtype": "$np.uint8",
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _intensity(rule: IntensityConfig) -> dict[str, Any]:
    """Return the transform that maps a scan's values to -1 to 1 as training did."""
    if rule.kind == "window":
        return {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": rule.low,
            "a_max": rule.high,
            "b_min": -1.0,
            "b_max": 1.0,
            "clip": True,
        }
    bright = "np.asarray(x)[np.asarray(x) > float(x.mean())]"
    scale = "lambda low, high: torch.clamp((x - low) * (2 / (high - low)) - 1, -1, 1)"
    if rule.kind == "median":
        limits = f"(lambda m: ({rule.low!r} * m, {rule.high!r} * m))(max(float(np.median({bright})), 1e-3))"
    else:
        ends = f"np.percentile({bright}, ({rule.low!r}, {rule.high!r}))"
        limits = f"(lambda p: (min(0.0, float(p[0])), max(float(p[1]), 1e-3)))({ends})"
    return {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: ({scale})(*{limits})"}


def _readme(spec: ModelSpec) -> str:
    return f"""# {spec.name}

Segments calcinosis on {spec.preprocess.modality.upper()}. Research use only; not a medical device.

    pip install monai nibabel pytorch-ignite fire
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
        --dataset_dir FOLDER_OF_NIFTI --output_dir MASKS

Masks are close to those of `jdm-seg predict`, not the same: MONAI's own transforms are used, the body is not searched
for, and slices are resampled without a widening kernel. `jdm-seg predict` with the model folder is the reference.
"""
