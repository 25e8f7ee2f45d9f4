"""The blur that a scan's skin tells, against scans of known blur."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from jdm_seg.sharpness import FWHM_TO_SIGMA, Blur, estimate_sharpness


def limb(fwhm_mm, pixel, overshoot=0.0, noise=15.0, seed=0):
    """A round limb of fat around muscle, drawn four times as fine, blurred and averaged to voxels; 24 slices."""
    rng = np.random.default_rng(seed)
    step = pixel / 4
    at = (np.arange(round(64 / pixel) * 4) + 0.5) * step - 32
    radius = np.hypot(at[:, None], at)
    fine = np.where(radius < 22, 55.0, np.where(radius < 26, -100.0, -1000.0))
    blurred = ndimage.gaussian_filter(fine, fwhm_mm * FWHM_TO_SIGMA / step)
    blurred += overshoot * (blurred - ndimage.gaussian_filter(blurred, 1.5 * fwhm_mm * FWHM_TO_SIGMA / step))
    n = len(at) // 4
    plane = blurred.reshape(n, 4, n, 4).mean(axis=(1, 3))
    hu = np.repeat(plane[:, :, None], 24, axis=2) + rng.normal(0, noise, (n, n, 24))
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


@pytest.mark.parametrize("pixel", [0.7, 0.98])
@pytest.mark.parametrize("fwhm_mm", [1.0, 1.3, 1.6])
def test_soft_kernels(fwhm_mm, pixel):
    hu = limb(fwhm_mm, pixel)
    blur = estimate_sharpness(hu, hu > -500, (pixel, pixel, 1.5))
    assert blur.is_measured
    assert blur.overshoot < 0.2
    assert blur.fwhm_mm == pytest.approx(fwhm_mm, abs=0.25)


@pytest.mark.parametrize(("fwhm_mm", "overshoot"), [(0.7, 0.7), (0.9, 1.0), (1.1, 1.5)])
def test_sharp_kernels(fwhm_mm, overshoot):
    hu = limb(fwhm_mm, 0.98, overshoot, noise=30)
    blur = estimate_sharpness(hu, hu > -500, (0.98, 0.98, 1.5))
    assert blur.overshoot > 0.6
    assert blur.fwhm_mm == pytest.approx(0.9, abs=0.1)


def test_nothing_to_read():
    inside = np.full((40, 40, 20), 40, np.int16)
    assert estimate_sharpness(inside, inside > 0, (1.0, 1.0, 1.0)) == Blur()
    hu = limb(1.3, 0.98)
    assert not estimate_sharpness(hu, hu > -500, (0.98, 3.0, 0.98)).is_measured  # slices are not axial
    assert not estimate_sharpness(hu, np.zeros(hu.shape, bool), (0.98, 0.98, 1.5)).is_measured


def test_parts_of_a_blur_by_hand():
    soft, sharp = Blur(1.2), Blur(0.9, 1.0)
    assert soft.parts((1.0, 1.0, 3.0))[0][0] == 1
    assert soft.sigmas((1.0, 1.0, 3.0)) == pytest.approx(np.array([1.2, 1.2, 2.7]) / 2.3548)
    (one, narrow), (two, wide) = sharp.parts((1.0, 1.0, 3.0))
    assert one + two == 1
    # twice the image, less the image blurred once more: widths add in squares, 1 + 1.5² = 3.25
    assert wide[:2] / narrow[:2] == pytest.approx(np.sqrt(3.25))
    assert wide[2] == narrow[2]
    # the slope at an edge is that of each Gaussian over its width: 2 - 1 / sqrt(3.25)
    assert sharp.edge_sigmas((1.0, 1.0, 3.0))[0] == pytest.approx(narrow[0] / (2 - 1 / np.sqrt(3.25)))
