"""How a CT scan blurs: read where the body ends, because the edge from air to skin is the same in everybody.

Terms:
    blur: what the scanner does to a point, a Gaussian along each axis, on top of the average over a voxel.
    overshoot: sharp kernels add an unsharp mask, so edges have a bright rim inside and a dark one outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import Body
from jdm_seg.volume import Spacing, slice_axis

BLUR_FWHM_MM = 1.3
"""Width of the blur in the plane of the slices where it cannot be read (assumed: soft kernels of 1.0 to 1.6 mm)."""
SLICE_FWHM = 0.9
"""Width of the slice profile in slices (assumed; a skin edge says nothing of it); at least 0.8 of the in-plane."""
OVERSHOOT_WIDTH = 1.5
"""The unsharp mask of a sharp kernel is so many times as wide as its blur (assumed)."""
FWHM_TO_SIGMA = 1 / 2.3548

_SHARP_FWHM_MM, _SHARP_OVERSHOOT = 0.9, 1.0
"""What a sharp kernel is taken to be: its width and gain cannot be told apart at an edge (assumed: middle of 0.7 to
1.1 mm and of 0.7 to 1.5)."""
_SHARP_BELOW_MM, _SOFT_FROM_MM = 0.85, 1.05
"""An edge this wide is a sharp kernel's, or a soft one's; in between a mixture. (Sharp kernels of 0.7 to 1.1 mm read
as 0.2 to 0.9 mm, soft ones of 1.0 to 1.2 mm as 1.1 to 1.6.)"""
_SKIN_MM = 0.2
"""Skin is seldom upright, and noise makes the ends of an edge look farther apart: widths read so much too large. The
mean over ten procedural limbs of known blur is 0.15 mm (-0.02 to 0.41), over finely drawn round ones 0.33."""
_RANGE_MM = (0.9, 1.9)
_PLANES = 24
_EDGE_VOXELS = 200

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Blur:
    """What a scanner does to a point.

    Attributes:
        fwhm_mm: Full width at half maximum in the plane of the slices.
        overshoot: Gain of the unsharp mask, 0 for soft kernels.
        is_measured: Whether the scan's own edges told; otherwise the width is assumed.
    """

    fwhm_mm: float = BLUR_FWHM_MM
    overshoot: float = 0.0
    is_measured: bool = False

    def sigmas(self, spacing: Spacing) -> NDArray[np.float64]:
        """Return the standard deviation along each axis in mm, shape (3,); the average over a voxel is not included.

        The axis of the largest voxel is across the slices.
        """
        fwhm = np.full(3, self.fwhm_mm)
        across = slice_axis(spacing)
        fwhm[across] = max(0.8 * self.fwhm_mm, SLICE_FWHM * spacing[across])
        return np.asarray(fwhm * FWHM_TO_SIGMA, dtype=np.float64)

    def parts(self, spacing: Spacing) -> list[tuple[float, NDArray[np.float64]]]:
        """Return the Gaussians that make up the blur: their weights, of sum 1, and standard deviations in mm (3,)."""
        narrow = self.sigmas(spacing)
        if not self.overshoot:
            return [(1.0, narrow)]
        wide = narrow * np.hypot(1, OVERSHOOT_WIDTH)
        across = slice_axis(spacing)
        wide[across] = narrow[across]  # kernels sharpen in the plane
        return [(1 + self.overshoot, narrow), (-self.overshoot, wide)]

    def edge_sigmas(self, spacing: Spacing) -> NDArray[np.float64]:
        """Return the standard deviations in mm (3,) of the Gaussian whose edges are as steep."""
        result = self.sigmas(spacing)
        steeper = (1 + self.overshoot) - self.overshoot / np.hypot(1, OVERSHOOT_WIDTH)
        result[np.arange(3) != slice_axis(spacing)] /= steeper
        return result


def estimate_sharpness(hu: NDArray[Any], body: Body, spacing: Spacing) -> Blur:
    """Read a scan's blur from the edge of the body.

    Works on 24 axial slices at most: beside the scan it needs 24 bytes for each of their voxels.

    Args:
        hu: CT numbers, canonical axes, shape (X, Y, Z).
        body: Body mask, same shape.
        spacing: Voxel size in mm.

    Returns:
        The blur; the assumed one where slices are not axial or too little skin is seen.
    """
    if slice_axis(spacing) != 2:
        return Blur()
    every = axial_sample(hu.shape[2])
    inside = body[:, :, every]
    occupied = [np.flatnonzero(inside.any(axis=(1 - axis, 2))) for axis in (0, 1)]
    if not occupied[0].size:
        return Blur()
    margins = [round(6 / s) for s in spacing[:2]]
    x, y = (slice(max(0, int(o[0]) - m), int(o[-1]) + 1 + m) for o, m in zip(occupied, margins, strict=True))
    inside = np.ascontiguousarray(inside[x, y])
    edge = inside & ~ndimage.binary_erosion(inside, np.ones((3, 3, 1)), border_value=1)
    width = edge_width_mm(hu[x, y, every], edge, spacing)
    if width is None:
        return Blur()
    sharp = float(np.clip((_SOFT_FROM_MM - width) / (_SOFT_FROM_MM - _SHARP_BELOW_MM), 0, 1))
    soft_mm = float(np.clip(width - _SKIN_MM, *_RANGE_MM))
    return Blur((1 - sharp) * soft_mm + sharp * _SHARP_FWHM_MM, sharp * _SHARP_OVERSHOOT, is_measured=True)


def axial_sample(depth: int) -> slice:
    """Return the slices of a scan of ``depth`` slices that its sharpness is read from."""
    return slice(None, None, max(1, depth // _PLANES))


def edge_width_mm(planes: NDArray[Any], skin: NDArray[np.bool_], spacing: Spacing) -> float | None:
    """Measure how wide the edge from air to skin is in the axial plane.

    Args:
        planes: CT numbers of some axial slices, shape (X, Y, K).
        skin: Where skin is, same shape.
        spacing: Voxel size of the scan in mm.

    Returns:
        Full width at half maximum in mm beyond the average over a voxel; None where too little skin is seen.
    """
    hu = planes.astype(np.float32)
    near = ndimage.binary_dilation(skin, np.ones((3, 3, 1)))
    slope = np.hypot(np.gradient(hu, spacing[0], axis=0), np.gradient(hu, spacing[1], axis=1))
    size = [2 * round(4 / s) + 1 for s in spacing[:2]] + [1]
    low, high = ndimage.minimum_filter(hu, size), ndimage.maximum_filter(hu, size)
    steepest = ndimage.maximum_filter(slope, [3, 3, 1])
    clear = near & (low < -850) & (high - low > 750) & (high < 300) & (slope == steepest) & (slope > 0)
    if np.count_nonzero(clear) < _EDGE_VOXELS:
        return None
    # skin that slopes through a thick slice looks blurred: a little under the median
    width = float(np.quantile((high - low)[clear] / steepest[clear], 0.4)) / np.sqrt(2 * np.pi)
    # central differences widen the edge by a box of two voxels, and the image is an average over one
    voxel = float(np.mean(np.square(spacing[:2])))
    return float(np.sqrt(max(width**2 - voxel / 3 - voxel / 12, 0.01 * voxel)) / FWHM_TO_SIGMA)
