"""Outlines on the scan's grid: features by hand, whatever the tiles; no lesion comes or goes; fitted, they help."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from jdm_seg.components import LesionRule
from jdm_seg.errors import InputError
from jdm_seg.export import outlines as fitting
from jdm_seg.export.model_card import with_outlines
from jdm_seg.export.outlines import fit_outlines
from jdm_seg.inference import outlines
from jdm_seg.inference.outlines import FEATURES, OutlineRefiner, measure_voxels
from jdm_seg.inference.predict import ScanPredictor
from jdm_seg.metrics.voxel import dice
from jdm_seg.model_folder import ModelFolder, open_model
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.volume import read_volume

SPACING = (1.0, 1.0, 3.0)
RULE = LesionRule(10.0, 0.8)
EVERYWHERE = OutlineRefiner(
    np.zeros(len(FEATURES)), np.ones(len(FEATURES)), ((np.zeros((len(FEATURES), 1)), np.zeros(1)),), 0.0, 0.0, {}
)
"""A share of 0: the network's own logit from 0 on."""


def by_hu(cut_hu: float) -> OutlineRefiner:
    """Return a refiner whose logit is how far a voxel lies above a CT number."""
    weights = np.zeros((len(FEATURES), 1))
    weights[FEATURES.index("hu"), 0] = 1
    layers = ((weights, np.array([-cut_hu / 300])),)
    return OutlineRefiner(np.zeros(len(FEATURES)), np.ones(len(FEATURES)), layers, 1.0, 0.0, {})


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return CT numbers with two blocks of 600 HU, the blocks, and a probability of 0.9 in two thirds of each."""
    hu = np.full((40, 40, 12), -100, np.int16)
    blocks = np.zeros(hu.shape, bool)
    blocks[8:14, 8:14, 4:7] = blocks[28:34, 28:32, 5:8] = True
    hu[blocks] = 600
    probability = np.where(blocks & np.roll(blocks, 2, axis=0), 0.9, 0.0).astype(np.float16)
    return hu, blocks, probability


def named(features: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, features.tolist(), strict=True))


def test_features_by_hand():
    """One bright voxel of 500 HU in 200 HU: every neighbour is a step of -1, in units of 300 HU."""
    hu = np.full((31, 31, 15), 200, np.int16)
    hu[15, 15, 7] = 500
    mask = hu == 500
    around = list(measure_voxels(mask, np.where(mask, 0.9, 0), hu, SPACING))
    voxels = np.concatenate([one for one, _ in around])
    seen = np.concatenate([two for _, two in around])
    # within 3 mm of it: 29 voxels of its plane, and one above and below
    assert len(voxels) == 31
    centre = named(seen[(voxels == (15, 15, 7)).all(axis=1)][0])
    assert centre["hu"] == pytest.approx(5 / 3)
    assert [centre[f"step_{axis}{side}"] for axis in "xyz" for side in "-+"] == pytest.approx([-1.0] * 6)
    assert centre["highest_2mm"] == pytest.approx(5 / 3)
    assert centre["lowest_2mm"] == pytest.approx(2 / 3)
    assert centre["height_2mm"] == pytest.approx(300 / 330)
    assert centre["logit"] == pytest.approx(np.log(9), abs=0.01)
    assert centre["spacing_z"] == pytest.approx(np.log(3))
    gaussian = ndimage.gaussian_filter(hu.astype(float), [4, 4, 4 / 3], truncate=2.5)[15, 15, 7]
    assert centre["mean_4mm"] == pytest.approx(gaussian / 300, rel=1e-4)
    beside = named(seen[(voxels == (16, 15, 7)).all(axis=1)][0])
    assert beside["step_x-"] == pytest.approx(1.0)
    assert beside["logit"] == pytest.approx(-3.9)
    assert beside["logit_highest"] == pytest.approx(np.log(9), abs=0.01)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch):
    hu = np.random.default_rng(0).normal(0, 100, (50, 44, 20)).astype(np.int16)
    mask = np.zeros(hu.shape, bool)
    mask[3:45, 5:40, 2:18] = np.random.default_rng(1).random((42, 35, 16)) > 0.99
    likely = np.where(mask, 0.8, 0.1)

    def whole() -> np.ndarray:
        parts = list(measure_voxels(mask, likely, hu, SPACING))
        voxels = np.concatenate([one for one, _ in parts])
        assert len(np.unique(voxels, axis=0)) == len(voxels)
        return np.concatenate([two for _, two in parts])[np.lexsort(voxels.T)]

    once = whole()
    monkeypatch.setattr(outlines, "_TILE", 16)
    np.testing.assert_allclose(whole(), once, atol=1e-5)


def test_what_was_found_in_part_is_drawn_whole():
    hu, blocks, probability = scene()
    mask = probability > 0.5
    by_hu(250).draw(mask, probability, measure_voxels(mask, probability, hu, SPACING), SPACING, RULE)
    np.testing.assert_array_equal(mask, blocks)


def test_no_lesion_vanishes_and_none_appears():
    """What is bright beside the second block but does not touch it is no part of it; the first one stays as it was."""
    hu, blocks, probability = scene()
    hu[8:14, 8:14, 4:7] = 100  # faint: nothing of it is left over the cut
    hu[37, 30, 6] = 600  # 2.8 mm beside the second: more than what is grouped
    fine = (0.7, 0.7, 3.0)
    mask = probability > 0.5
    first = mask.copy()
    first[20:] = False
    by_hu(250).draw(mask, probability, measure_voxels(mask, probability, hu, fine), fine, RULE)
    np.testing.assert_array_equal(mask[:20], first[:20])
    np.testing.assert_array_equal(mask[20:], blocks[20:])


def test_of_pieces_the_likeliest_and_the_likely_stay():
    """A found block is grey in its middle and falls into three: of 0.9, of 0.85, and of 0.5, which goes."""
    hu, _, probability = scene()
    hu[8:14, 8:14, 4:7] = -100
    hu[8:12, 28:32, 5:7] = hu[16:20, 28:32, 5:7] = hu[24:27, 28:32, 5:7] = 600
    probability[:] = 0
    probability[8:12, 28:32, 5:7], probability[12:20, 28:32, 5:7], probability[20:27, 28:32, 5:7] = 0.9, 0.85, 0.5
    hu[28:34] = -100
    mask = probability > 0.4
    by_hu(250).draw(mask, probability, measure_voxels(mask, probability, hu, SPACING), SPACING, RULE)
    expected = np.zeros(mask.shape, bool)
    expected[8:12, 28:32, 5:7] = expected[16:20, 28:32, 5:7] = True
    np.testing.assert_array_equal(mask, expected)


def test_share_of_nothing_leaves_the_network_alone():
    hu, _, probability = scene()
    mask = probability > 0.5
    before = mask.copy()
    EVERYWHERE.draw(mask, probability, measure_voxels(mask, probability, hu, SPACING), SPACING, RULE)
    np.testing.assert_array_equal(mask, before)


def test_an_empty_mask_stays_empty():
    hu, _, probability = scene()
    mask = np.zeros(hu.shape, bool)
    EVERYWHERE.draw(mask, probability, measure_voxels(mask, probability, hu, SPACING), SPACING, RULE)
    assert not mask.any()


def test_a_file_gives_the_same_answers(tmp_path: Path):
    hu, _, probability = scene()
    rng = np.random.default_rng(0)
    layers = ((rng.normal(size=(len(FEATURES), 5)), rng.normal(size=5)), (rng.normal(size=(5, 1)), rng.normal(size=1)))
    refiner = OutlineRefiner(rng.normal(size=len(FEATURES)), np.ones(len(FEATURES)), layers, 0.5, -0.2, {"cases": 3})
    refiner.write(tmp_path / "outlines.json")
    again = OutlineRefiner.read(tmp_path / "outlines.json")
    (_, seen), *_ = measure_voxels(probability > 0.5, probability, hu, SPACING)
    np.testing.assert_allclose(again.mixed(seen), refiner.mixed(seen), rtol=1e-4, atol=1e-4)
    assert again.fitted == {"cases": 3}


def test_a_broken_file_is_told(tmp_path: Path):
    path = tmp_path / "outlines.json"
    path.write_text('{"features": []}')
    with pytest.raises(InputError, match="fit it again"):
        OutlineRefiner.read(path)


def test_a_card_tells_of_the_last_fit_alone():
    card = (open_model("ct").path / "MODEL_CARD.md").read_text(encoding="utf-8")
    fitted = {"cases": 3, "voxels": 12345, "chosen_on": 2, "dice": 0.5, "dice_before": 0.4}
    refiner = OutlineRefiner(np.zeros(1), np.ones(1), (), 0.7, -1.2, fitted)
    told = with_outlines(card, refiner)
    assert with_outlines(told, replace(refiner, share=0.3)) == told.replace("share\n0.7", "share\n0.3")
    (paragraph,) = (part for part in told.split("\n\n") if "`outlines.json`" in part)
    assert paragraph.startswith("**Outlines**")
    assert "12,345 voxels of 3 cases" in paragraph
    assert "0.400 before, 0.500 after" in paragraph
    # the rest of the card is as it was
    others = [[part for part in text.split("\n\n") if "`outlines.json`" not in part] for text in (card, told)]
    assert others[0] == others[1]


def test_perceptron_equals_torch():
    """The numpy answer against torch's own layers."""
    rng = np.random.default_rng(0)
    sides = (len(FEATURES), 7, 3, 1)
    linear = [torch.nn.Linear(a, b) for a, b in pairwise(sides)]
    network = torch.nn.Sequential(linear[0], torch.nn.SiLU(), linear[1], torch.nn.SiLU(), linear[2])
    layers = tuple((one.weight.detach().numpy().T, one.bias.detach().numpy()) for one in linear)
    refiner = OutlineRefiner(np.zeros(sides[0]), np.ones(sides[0]), layers, 1.0, 0.0, {})
    rows = rng.normal(size=(20, sides[0])).astype(np.float32)
    expected = network(torch.from_numpy(rows)).detach().numpy()[:, 0]
    np.testing.assert_allclose(refiner.logits(rows), expected, rtol=1e-4, atol=1e-5)


def test_fitted_outlines_are_better_on_cases_they_were_not_fitted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The shipped network without its own outlines, and with those fitted here, briefly, on four synthetic limbs."""
    monkeypatch.setattr(fitting, "_STEPS", 300)
    monkeypatch.setattr(fitting, "_BATCH", 1024)
    cases = synthesize_dataset(tmp_path / "set", modality="ct", cases=8, seed=7, preset="smoke").all
    shipped = open_model("ct")
    bare = ModelFolder(Path(shutil.copytree(shipped.path, tmp_path / "model")), shipped.spec)
    bare.outlines.unlink(missing_ok=True)
    refiner = fit_outlines(bare, cases[:4], cases[4:6])
    refiner.write(bare.outlines)
    assert refiner.fitted["dice"] > refiner.fitted["dice_before"]
    predictor = ScanPredictor(bare)
    scores = []
    for case in cases[6:]:
        assert case.label is not None
        truth = read_volume(case.label).array > 0
        masks = (one(read_volume(case.image)).mask for one in (predictor, predictor.without_outlines()))
        scores.append([dice(mask, truth) for mask in masks])
    after, before = np.nanmean(scores, axis=0)
    assert after > before


def test_outlines_are_of_ct(tmp_path: Path):
    with pytest.raises(InputError, match="a model of CT"):
        fit_outlines(open_model("stir"), [], [])
