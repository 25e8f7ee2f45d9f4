"""Thick slices keep their resolution on the model's grid, whichever way they lie, and results go back to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jdm_seg.config import IntensityConfig, PreprocessConfig
from jdm_seg.export.bundle import metadata
from jdm_seg.inference.predict import PredictSettings, ScanPredictor
from jdm_seg.model_folder import ModelFolder, ModelSpec
from jdm_seg.model_grid import follow_slices, preprocess, preprocess_label
from jdm_seg.resample import resample
from jdm_seg.volume import Volume

PLANE, BETWEEN = 1.25, 5.0
CONFIG = PreprocessConfig("stir", (PLANE, BETWEEN, PLANE), IntensityConfig("median", 0.0, 8.0), follow_slices=True)
LYING = {"sagittal": 0, "coronal": 1, "axial": 2}


def limb(lying: str, gap: float = BETWEEN) -> Volume:
    """A box of muscle in air, without noise, with a void of two voxels in one slice and a bright rod across slices."""
    signal = np.zeros((60, 14, 70), np.int16)
    signal[8:52, 1:13, 8:62] = 200
    signal[20:22, 6, 30] = 5
    signal[40, 3:11, 50] = 900
    across = LYING[lying]
    spacing = [PLANE] * 3
    spacing[across] = gap
    return Volume(np.asfortranarray(np.swapaxes(signal, 1, across)), np.diag([*spacing, 1.0]))


def same_up_to_order(first, second) -> bool:
    """Tell whether two arrays differ at most in the order of the two directions in the plane."""
    return any(
        np.allclose(first, other, atol=1e-3)
        for other in (second, np.swapaxes(second, 0, 2))
        if other.shape == first.shape
    )


@pytest.mark.parametrize("lying", LYING)
@pytest.mark.parametrize("gap", [4.5, 5.0, 8.5])
def test_slices_are_never_blended(lying, gap):
    """Every voxel on the model's grid is a voxel of the scan, bit for bit."""
    scan = limb(lying, gap)
    image, placement = preprocess(scan, CONFIG)
    assert placement.spacing == pytest.approx((PLANE, gap, PLANE))
    straight, _ = preprocess(limb("coronal", gap), CONFIG)
    assert set(np.unique(image)) == {0, 5, 200, 900}
    assert same_up_to_order(straight, image)


def test_without_it_a_void_of_an_axial_slice_is_gone():
    """The reason for all this: on a grid of coronal slices a void of two voxels keeps a quarter of its contrast."""
    blended, _ = preprocess(limb("axial"), PreprocessConfig("stir", CONFIG.spacing, CONFIG.intensity))
    kept, _ = preprocess(limb("axial"), CONFIG)
    inside = slice(10, -10), slice(3, -3), slice(10, -10)
    assert kept[inside].min() == 5
    assert blended[inside].min() > 100


@pytest.mark.parametrize("lying", LYING)
@pytest.mark.parametrize("turn", [np.eye(4), np.diag([-1.0, -1, 1, 1])], ids=["RAS", "LPS"])
def test_a_mask_comes_back_to_the_scans_own_voxels(lying, turn):
    scan = limb(lying)
    scan = Volume(scan.array, turn @ scan.affine)
    label = Volume((scan.array == 5).view(np.uint8), scan.affine)
    _, placement = preprocess(scan, CONFIG)
    there = preprocess_label(label, placement).astype(np.float32)
    assert there.sum() == 2
    turned = follow_slices(scan, CONFIG)
    canonical = np.zeros(turned.to_canonical().array.shape, bool)
    canonical[placement.box] = resample(there, placement.to_scan()) > 0.5
    assert np.array_equal(turned.from_canonical(canonical), label.array > 0)


def test_an_oblique_scan_is_turned_by_its_nearest_axes():
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scan = limb("axial")
    oblique, _ = preprocess(Volume(scan.array, turn @ scan.affine), CONFIG)
    straight, _ = preprocess(scan, CONFIG)
    assert same_up_to_order(straight, oblique)


def test_voxels_without_slices_and_other_configs_stay():
    scan = limb("axial", gap=1.3)
    assert follow_slices(scan, CONFIG) is scan
    assert preprocess(scan, CONFIG)[1].spacing == CONFIG.spacing
    plain = PreprocessConfig("stir", CONFIG.spacing, CONFIG.intensity)
    axial = limb("axial")
    assert follow_slices(axial, plain) is axial
    assert preprocess(axial, plain)[1].swapped == (0, 0)


def test_turning_twice_is_turning_once():
    once = follow_slices(limb("axial"), CONFIG)
    assert follow_slices(once, CONFIG) is once


@pytest.mark.parametrize("lying", LYING)
def test_a_scan_is_segmented_on_its_own_grid(lying, monkeypatch, tmp_path):
    """With a network that calls bright what is above 500, the mask is that of the scan's own voxels."""
    spec = ModelSpec("m", CONFIG, (32, 16, 32), 0.25, 0.5, {})
    (tmp_path / "model.onnx").write_bytes(b"")
    level = 2 * 500 / (8 * 200) - 1
    monkeypatch.setattr("jdm_seg.inference.predict.build_engine", lambda *a, **k: lambda x: (x - level) * 50)
    predictor = ScanPredictor(ModelFolder(tmp_path, spec), PredictSettings(engine="onnxruntime"))
    scan = limb(lying)
    found = predictor(scan)
    assert np.array_equal(found.mask, scan.array > 500)
    assert found.probability is not None
    assert np.array_equal(found.probability.dense() > 0.5, found.mask)


def test_a_bundle_says_which_slices_it_takes():
    """MONAI's transforms turn nothing: its metadata has to say so."""
    spec = ModelSpec("m", CONFIG, (32, 16, 32), 0.25, 0.5, {})
    assert "follow each other front-back, about 5 mm apart" in metadata(spec)["description"]
    plain = replace(spec, preprocess=replace(CONFIG, follow_slices=False))
    assert "follow each other" not in metadata(plain)["description"]
