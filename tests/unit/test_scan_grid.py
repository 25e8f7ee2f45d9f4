"""Back to the scan's grid: equal to interpolating everything, however the logits come in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from jdm_seg.config import IntensityConfig, PreprocessConfig
from jdm_seg.inference.scan_grid import ScanGridMask, logit_of, zeros_in_order_of
from jdm_seg.model_grid import ModelGridScan, intensity_range, normalize, place, preprocess
from jdm_seg.resample import resample
from jdm_seg.volume import Volume


def limb(shape=(90, 70, 60), spacing=(0.9, 1.1, 2.0)) -> Volume:
    x, y, _ = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    hu = np.where((x - 45) ** 2 + (y - 35) ** 2 < 25**2, 50, -1000)
    hu = hu + np.random.default_rng(0).normal(0, 20, shape)
    return Volume(np.asfortranarray(hu.astype(np.int16)), np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))


def config(kind="window", spacing=(1.5, 1.5, 1.5)) -> PreprocessConfig:
    limits = {"window": (-200.0, 1300.0), "percentile": (0.0, 99.5), "median": (0.0, 3.0)}
    return PreprocessConfig("ct", spacing, IntensityConfig(kind, *limits[kind]))


def smooth_logits(shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    return (ndimage.gaussian_filter(noise, 2) * 60 - 4).astype(np.float32)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.9, 1.1, 2.0), (3.0, 3.0, 5.0)])
@pytest.mark.parametrize("pieces", [[7, 3, 1], [1000]])
def test_equals_interpolating_the_whole_volume(spacing, pieces):
    """The reference interpolates every voxel of the box at once and thresholds sigmoids."""
    canonical = limb().to_canonical()
    placement = place(canonical, config(spacing=spacing))
    logits = smooth_logits(placement.shape)
    found = ScanGridMask(placement, 0.3, like=canonical.array)
    planes = torch.from_numpy(np.ascontiguousarray(logits.T))
    start, turn = 0, 0
    while start < len(planes):
        size = pieces[turn % len(pieces)]
        found.add(planes[start : start + size])
        start, turn = start + size, turn + 1
    probability = 1 / (1 + np.exp(-resample(logits, placement.to_scan())))
    inside = placement.body.at(*(np.arange(s.start, s.stop) for s in placement.box))
    expected = (probability > 0.3) & inside
    clear = np.abs(probability - 0.3) > 1e-4  # rounding may decide the others
    assert expected.sum() > 500
    assert np.array_equal(found.mask[placement.box][clear], expected[clear])
    assert found.mask.sum() == found.mask[placement.box].sum()
    found_probability = found.probability.dense()
    assert np.allclose(found_probability[found.mask], probability[found.mask[placement.box]], atol=1e-3)
    assert not found_probability[~found.mask].any()


def test_lower_probabilities_are_kept_on_request_and_change_no_mask():
    canonical = limb().to_canonical()
    placement = place(canonical, config())
    planes = torch.from_numpy(np.ascontiguousarray(smooth_logits(placement.shape).T))
    plain, wide = (ScanGridMask(placement, 0.5, like=canonical.array, keep_from=k) for k in (None, 0.01))
    plain.add(planes)
    wide.add(planes)
    assert np.array_equal(plain.mask, wide.mask)
    assert len(wide.probability.values) > 2 * len(plain.probability.values)
    assert wide.probability.values.min() >= 0.0099


def test_blocks_without_a_chance_are_not_interpolated(monkeypatch):
    canonical = limb().to_canonical()
    placement = place(canonical, config())
    logits = np.full(placement.shape, -8.0, np.float32)
    logits[20:23, 15:18, 10:13] = 9
    asked = []
    tile = ScanGridMask._tile
    monkeypatch.setattr(ScanGridMask, "_tile", lambda self, *a: (asked.append(a[1:]), tile(self, *a)))
    found = ScanGridMask(placement, 0.5, like=canonical.array)
    found.add(torch.from_numpy(np.ascontiguousarray(logits.T)))
    assert len(asked) == 1
    assert found.mask.sum() > 0


def test_zeros_follow_the_scan_in_memory():
    for array in (np.zeros((3, 4, 5)), np.zeros((3, 4, 5), order="F"), np.zeros((3, 4, 5)).transpose(1, 2, 0)[::-1]):
        zeros = zeros_in_order_of(array, np.bool_)
        assert zeros.shape == array.shape
        assert np.argsort(zeros.strides).tolist() == np.argsort(np.abs(array.strides)).tolist()


def test_logit_by_hand():
    assert logit_of(0.5) == 0
    assert logit_of(0.9) == pytest.approx(np.log(9))


@pytest.mark.parametrize("kind", ["window", "percentile", "median"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_planes_are_what_training_sees(kind, dtype):
    """Streamed planes of a scan equal the whole preprocessing, and leave the scan as it was."""
    scan = limb(spacing=(1.5, 1.5, 1.5))
    scan = Volume(scan.array.astype(dtype), scan.affine)
    before = scan.array.copy()
    image, placement = preprocess(scan, config(kind))
    expected = normalize(image, intensity_range(image, config(kind).intensity))
    streamed = ModelGridScan(scan, config(kind))
    assert streamed.shape == placement.shape == image.shape
    planes = torch.cat([streamed.planes(a, min(a + 7, image.shape[2])) for a in range(0, image.shape[2], 7)])
    assert np.allclose(planes.numpy().T, expected, atol=1e-5)
    assert np.array_equal(scan.array, before)
    body = streamed.body(3, 9)
    assert body.shape == (6, image.shape[1], image.shape[0])
    assert bool(body[:, image.shape[1] // 2, image.shape[0] // 2].all())
