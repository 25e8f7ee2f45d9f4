"""Flips, temperature and ensembles: means worked out by hand, on networks whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from jdm_seg.config import PreprocessConfig
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.export.onnx_graph import ForegroundNetwork, write_graph
from jdm_seg.inference.ensemble import EnsemblePredictor, build_segmenter, mean_of
from jdm_seg.inference.predict import PredictSettings, ScanPredictor
from jdm_seg.inference.test_time import with_flips, with_temperature
from jdm_seg.model_folder import ModelFolder, ModelSpec, open_models, write_spec
from jdm_seg.volume import Volume, read_volume

PLAIN = PredictSettings(engine="onnxruntime")


def ramp(axis: int):
    """A predictor that answers with the index along one axis, whatever it is shown."""

    def predict(windows):
        shape = [1] * 5
        shape[axis] = windows.shape[axis]
        return torch.arange(windows.shape[axis]).float().reshape(shape).expand_as(windows)

    return predict


def test_a_flip_averages_both_ends():
    """Index i and its mirror 7 - i: 3.5 everywhere along a mirrored axis, the index itself along another."""
    windows = torch.zeros(2, 1, 8, 4, 6)
    assert (with_flips(ramp(2), "x")(windows) == 3.5).all()
    assert torch.equal(with_flips(ramp(2), "yz")(windows), ramp(2)(windows))
    assert (with_flips(ramp(4), "xyz")(windows) == 2.5).all()


@pytest.mark.parametrize(("axes", "expected"), [("", 1), ("x", 2), ("xz", 4), ("xyz", 8)])
def test_flips_ask_once_a_mirroring_and_keep_what_mirrors_with_the_image(axes, expected):
    seen = []

    def network(windows):
        assert windows.is_contiguous()
        seen.append(windows)
        return 3 * windows - 1

    windows = torch.rand(1, 1, 4, 5, 6)
    assert torch.allclose(with_flips(network, axes)(windows), 3 * windows - 1, atol=1e-6)
    assert len(seen) == expected
    assert len({tuple(w.flatten().tolist()) for w in seen}) == expected


def test_flips_of_an_unknown_axis_are_refused():
    for axes in ("w", "xx"):
        with pytest.raises(ValueError, match="letters of xyz, each once"):
            with_flips(ramp(2), axes)


def test_a_temperature_divides_and_the_mean_is_the_mean():
    windows = torch.rand(1, 1, 4, 4, 4)
    assert torch.allclose(with_temperature(lambda w: 6 * w, 3.0)(windows), 2 * windows)
    assert torch.allclose(mean_of([lambda w: w, lambda w: w + 3, lambda w: w - 6])(windows), windows - 1, atol=1e-6)
    with pytest.raises(ValueError, match="above 0"):
        with_temperature(ramp(2), 0.0)


class Line(torch.nn.Module):
    """Logit = slope x (normalised value) + offset."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([slope]))
        self.offset = torch.nn.Parameter(torch.tensor([offset]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.slope + self.offset


def write_model(folder: Path, slope: float, offset: float, **changes) -> ModelFolder:
    folder.mkdir(parents=True)
    spec = ModelSpec(folder.name, PreprocessConfig(), (32, 32, 32), 0.25, 0.5, {"_target_": "n/a"})
    spec = replace(spec, **changes)
    write_graph(ForegroundNetwork(Line(slope, offset)).eval(), folder / "model.onnx", (32, 32, 32))
    write_spec(folder, spec)
    return ModelFolder(folder, spec)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """Two models of one grid, that part soft tissue from dense at -0.5 and at 0.1 of the normalised value."""
    folder = tmp_path_factory.mktemp("zoo")
    write_model(folder / "a", 10.0, 5.0)
    write_model(folder / "b", 10.0, -1.0, threshold=0.3)
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Volume:
    """A cylinder whose density rises along z from 0 HU to 1200 HU, at the models' spacing."""
    x, y, z = np.meshgrid(np.arange(48), np.arange(48), np.arange(40), indexing="ij")
    hu = np.where(np.hypot(x - 24, y - 24) < 18, z * 30, -1000).astype(np.int16)
    path = tmp_path_factory.mktemp("scan") / "rod.nii.gz"
    nib.save(nib.Nifti1Image(hu, np.diag([1.5, 1.5, 1.5, 1.0])), path)
    return read_volume(path)


def first_plane(mask) -> int:
    """Return the first plane along z in which the middle of the rod is found."""
    return int(np.argmax(mask[24, 24]))


def test_logits_are_averaged_on_a_common_grid(zoo, scan):
    """Normalised value v = (HU + 200) / 750 - 1; a: 10 v + 5, b: 10 v - 1, mean: 10 v + 2.

    At the mean threshold of 0.4 the mean counts from 10 v + 2 > log(0.4 / 0.6): v > -0.2405, HU > 369.6: z = 13.
    """
    together = EnsemblePredictor(open_models([zoo / "a", zoo / "b"]), PLAIN)
    assert together.same_grid
    assert together.threshold == pytest.approx(0.4)
    said = together(scan)
    assert first_plane(said.mask) == 13
    v = (13 * 30 + 200) / 750 - 1
    assert said.probability.dense()[24, 24, 13] == pytest.approx(1 / (1 + np.exp(-(10 * v + 2))), abs=2e-3)
    facts = together.describe()
    assert facts["averaged"] == "logits"
    assert [member["model"] for member in facts["members"]] == ["a", "b"]
    assert facts["model_sha256"] != ScanPredictor(together.members[0].model, PLAIN).describe()["model_sha256"]


def test_probabilities_are_averaged_where_grids_differ(zoo, scan, tmp_path):
    """The same members, one of them with another window: the mean of their sigmoids, by hand for every plane."""
    other = write_model(tmp_path / "c", 10.0, -1.0, patch_size=(48, 32, 32))
    members = [*open_models([zoo / "a"]), other]
    apart = EnsemblePredictor(members, replace(PLAIN, threshold=0.6))
    assert not apart.same_grid
    said = apart(scan)
    v = (np.arange(40) * 30 + 200) / 750 - 1
    mean = sum(1 / (1 + np.exp(-(10 * np.minimum(v, 1) + offset))) for offset in (5, -1)) / 2
    assert np.array_equal(said.mask[24, 24], mean > 0.6)
    assert np.allclose(said.probability.dense()[24, 24][mean > 0.6], mean[mean > 0.6], atol=2e-3)
    assert (said.probability.dense()[~said.mask] == 0).all()
    assert apart.describe()["averaged"] == "probabilities"


def test_a_temperature_moves_no_voxel_at_one_half_but_moves_probabilities(zoo, scan, tmp_path):
    hot = write_model(tmp_path / "hot", 10.0, 5.0, temperature=4.0)
    plain, calm = (ScanPredictor(model, PLAIN)(scan) for model in (*open_models([zoo / "a"]), hot))
    assert np.array_equal(plain.mask, calm.mask)
    logit = 10 * ((20 * 30 + 200) / 750 - 1) + 5
    assert calm.probability.dense()[24, 24, 20] == pytest.approx(1 / (1 + np.exp(-logit / 4)), abs=2e-3)


def test_results_carry_what_any_member_should_be_read_with(zoo, tmp_path):
    careful = write_model(tmp_path / "c", 10.0, 5.0, caution="look twice")
    plain = open_models([zoo / "a"])[0]
    assert build_segmenter(open_models([careful.path]), PLAIN).training.caution == "look twice"
    assert build_segmenter([plain, careful], PLAIN).training.caution == "look twice"
    assert build_segmenter([plain], PLAIN).training.caution == ""


def test_tta_is_recorded_with_the_axes_of_the_model(tmp_path, zoo):
    only_x = write_model(tmp_path / "x", 10.0, 5.0, flip_axes="x")
    settings = replace(PLAIN, tta=True)
    assert ScanPredictor(only_x, settings).describe()["tta"] == "x"
    (model,) = open_models([zoo / "a"])
    assert ScanPredictor(model, settings).describe()["tta"] == "xyz"
    assert ScanPredictor(model, PLAIN).describe()["tta"] == ""


def test_a_folder_of_models_is_all_of_them(zoo, tmp_path):
    assert [model.path.name for model in open_models([zoo])] == ["a", "b"]
    assert isinstance(build_segmenter(open_models([zoo]), PLAIN), EnsemblePredictor)
    assert isinstance(build_segmenter(open_models([zoo / "b"]), PLAIN), ScanPredictor)
    with pytest.raises(InputError, match="different models, found one of them twice"):
        open_models([zoo, zoo / "a"])
    with pytest.raises(CaseNotFoundError, match="model nowhere"):
        open_models(["nowhere"])
    stir = write_model(tmp_path / "stir", 1.0, 0.0, preprocess=PreprocessConfig("stir"))
    with pytest.raises(InputError, match="models of one modality, found ct and stir"):
        open_models([zoo / "a", stir.path])
