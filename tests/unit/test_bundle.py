"""The MONAI bundle, by MONAI's own commands in a process that cannot import this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from jdm_seg.config import IntensityConfig, PreprocessConfig
from jdm_seg.export.bundle import inference, metadata, write_bundle
from jdm_seg.export.onnx_graph import ForegroundNetwork, write_graph
from jdm_seg.inference.predict import PredictSettings, ScanPredictor
from jdm_seg.model_folder import ModelFolder, ModelSpec, write_spec
from jdm_seg.transforms import intensity_range, normalize
from jdm_seg.volume import read_volume

pytest.importorskip("ignite")
pytest.importorskip("fire")

WITHOUT_US = (
    "import runpy, sys; sys.modules['jdm_seg'] = None; sys.argv[0] = 'monai.bundle'; "
    "runpy.run_module('monai.bundle', run_name='__main__')"
)
REQUIRED = (
    "version", "monai_version", "pytorch_version", "numpy_version", "optional_packages_version", "task",
    "description", "authors", "copyright", "network_data_format",
)  # fmt: skip
"""The mandatory keys of MONAI's Bundle Specification."""


class Dense(torch.nn.Module):
    """Says that what is brighter than 400 HU is calcinosis, after a smoothing that needs its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 1, 3, 3, 3), 1 / 27))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        smooth = torch.nn.functional.conv3d(torch.nn.functional.pad(image, (1,) * 6, mode="replicate"), self.weight)
        return 20 * (smooth + 0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("model")
    spec = ModelSpec("dense", PreprocessConfig(), (32, 32, 32), 0.25, 0.4, {"_target_": "n/a"}, temperature=2.0)
    write_graph(ForegroundNetwork(Dense()).eval(), folder / "model.onnx", (32, 32, 32))
    write_spec(folder, spec)
    made = ModelFolder(folder, spec)
    write_bundle(folder / "monai_bundle", made, Dense())
    return made


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A limb with three deposits, stored in LPS at a spacing that is not the model's."""
    folder = tmp_path_factory.mktemp("scans")
    x, y, z = np.meshgrid(*(np.arange(n) for n in (60, 60, 24)), indexing="ij")
    hu = np.where(np.hypot(x - 30, y - 30) < 25, 50, -1000).astype(np.int16)
    for cx, cy, cz in ((40, 30, 6), (20, 25, 12), (30, 42, 18)):
        hu[((x - cx) / 4) ** 2 + ((y - cy) / 4) ** 2 + ((z - cz) / 2) ** 2 < 1] = 900
    nib.save(nib.Nifti1Image(hu, np.diag([-1.2, -1.2, 2.5, 1.0])), folder / "limb.nii.gz")
    return folder


def monai_bundle(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_monai_verifies_metadata_and_network(model, tmp_path):
    """By a schema of the specification's mandatory keys; the published one would have to be downloaded."""
    bundle = model.path / "monai_bundle"
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": list(REQUIRED)}))
    meta, config = "configs/metadata.json", "configs/inference.json"
    said = monai_bundle("verify_metadata", "--meta_file", meta, "--filepath", str(schema), cwd=bundle)
    assert "metadata is verified with no error" in said
    said = monai_bundle("verify_net_in_out", "network_def", "--meta_file", meta, "--config_file", config, cwd=bundle)
    assert "verified with no error" in said


def test_the_bundle_segments_as_predict_does(model, scans, tmp_path):
    bundle = model.path / "monai_bundle"
    monai_bundle(
        "run", "--config_file", "configs/inference.json", "--bundle_root", ".", "--dataset_dir", str(scans),
        "--output_dir", str(tmp_path), cwd=bundle,
    )  # fmt: skip
    (written,) = tmp_path.glob("*.nii.gz")
    theirs = nib.load(written)
    assert theirs.get_data_dtype() == np.uint8
    scan = read_volume(scans / "limb.nii.gz")
    assert np.allclose(theirs.affine, scan.affine)
    mask = np.asarray(theirs.dataobj) > 0
    ours = ScanPredictor(model, PredictSettings(engine="onnxruntime"))(scan).mask
    assert ours.sum() > 100
    assert 2 * (mask & ours).sum() / (mask.sum() + ours.sum()) > 0.9


def test_the_traced_network_takes_other_windows(model):
    network = torch.jit.load(str(model.path / "monai_bundle" / "models" / "model.ts"))
    window = torch.rand(2, 1, 16, 40, 24)
    assert torch.allclose(network(window), Dense()(window), atol=1e-5)


def test_metadata_names_what_goes_in_and_out(model):
    content = metadata(model.spec)
    assert set(REQUIRED) <= set(content)
    assert content["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 32, 32]
    assert "not a medical device" in content["intended_use"]


@pytest.mark.parametrize("rule", [IntensityConfig("percentile", 1.0, 99.5), IntensityConfig("median", 0.0, 8.0)])
def test_rule_of_the_scan_is_the_one_of_training(model, rule):
    """STIR has no units: the expression in the bundle against the function that training uses."""
    spec = ModelSpec("s", PreprocessConfig("stir", intensity=rule), (32, 32, 32), 0.25, 0.5, {})
    (step,) = [t for t in inference(spec)["preprocessing"]["transforms"] if t["_target_"] == "Lambdad"]
    image = np.random.default_rng(0).gamma(2, 100, (1, 20, 20, 20)).astype(np.float32)
    theirs = eval(step["func"].removeprefix("$"), {"np": np, "torch": torch})(torch.from_numpy(image))
    assert np.allclose(theirs.numpy(), normalize(image, intensity_range(image, rule)), atol=1e-5)
