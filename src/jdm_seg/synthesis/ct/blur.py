"""The point spread function of CT: a Gaussian, and for sharp kernels an unsharp mask on top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

FloatArray = NDArray[np.float32]
FWHM_TO_SIGMA = 1 / 2.3548


def blur_in_plane(
    hu: FloatArray, psf_mm: Sequence[float], overshoot: float, spacing: Sequence[float], *, axes: tuple[int, int]
) -> FloatArray:
    """Blur axial slices as a reconstruction kernel does.

    Args:
        hu: CT numbers, three axes in any order.
        psf_mm: Full widths at half maximum along x and y (mm), and what follows is ignored.
        overshoot: Gain of the unsharp mask; 0.7 raises the rim of an edge by 5 % of it, 1.5 by 15 %.
        spacing: Voxel size along x and y in mm.
        axes: Which axes of ``hu`` are x and y.

    Returns:
        CT numbers of the same shape.
    """
    blurred = _gaussian(hu, psf_mm, spacing, axes)
    if overshoot:
        wide = [1.5 * width for width in psf_mm[:2]]
        blurred += np.float32(overshoot) * (blurred - _gaussian(blurred, wide, spacing, axes))
    return blurred


def _gaussian(
    array: FloatArray, fwhm_mm: Sequence[float], spacing: Sequence[float], axes: tuple[int, int]
) -> FloatArray:
    for axis, width, step in zip(axes, fwhm_mm, spacing, strict=False):
        array = ndimage.correlate1d(array, gaussian_weights(width, step), axis=axis, mode="nearest")
    return array


def gaussian_weights(fwhm_mm: float, spacing: float) -> NDArray[np.float64]:
    """Return the kernel that blurs voxel averages with a Gaussian.

    A Gaussian sampled at voxels has too small a variance where it is narrower than a voxel, as in most scans; averaged
    over voxels it has a little too much, because the map holds averages already. What is taken off was found by
    comparison with finely drawn balls of 2 to 5 mm, whose peaks it keeps within 6 % at 1 mm.

    Args:
        fwhm_mm: Full width at half maximum in mm.
        spacing: Voxel size in mm.
    """
    width = np.sqrt(max((fwhm_mm * FWHM_TO_SIGMA / spacing) ** 2 - 1 / 36, 1e-4))
    reach = max(1, int(np.ceil(3 * width + 0.5)))
    edges = special.erf((np.arange(-reach, reach + 2) - 0.5) / (np.sqrt(2) * width))
    weights: NDArray[np.float64] = np.diff(edges) / np.diff(edges).sum()
    return weights
