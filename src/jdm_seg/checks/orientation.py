"""Does a CT lie in space as its header says? The liver must be on the right, below the lungs, and the spine behind.

Only scans that show both lungs and what is below them can be judged; every other scan raises no suspicion. People with
mirrored organs exist (about 1 in 10,000), so a suspicion is never more than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.volume import Spacing

_LUNG_HU = -400.0
_LUNG_PART_ML, _LUNGS_ML = 150.0, 400.0
_BASE_SHARE = 0.15
"""Slices with less than this share of the largest lung area are tips of the lungs."""
_REACH_MM = 80.0
_LIVER_HU = (0.0, 220.0)
_LIVER_SD_HU = 45.0
_LIVER_DEPTH_MM = 20.0
"""No other soft organ of the upper abdomen is so thick and even: in five public trunk CTs at least 96 % of such places
lie on the right (stomach and spleen: thinner or uneven; heart: above the slices looked at)."""
_LIVER_ML = 20.0
_ONE_SIDED = 0.85
_BONE_HU = 300
_MIDLINE_MM = 25.0
_ANTERIOR_SHARE = 0.7
"""In the same scans 4 to 28 % of midline bone lies in front of the lungs' middle."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Suspicion:
    """How a scan seems to lie, in words.

    Attributes:
        what: Completes "The scan may be ...".
        expected: What a rightly labelled scan shows.
        found: What this one shows.
    """

    what: str
    expected: str
    found: str


def suspect_orientation(hu: FloatArray, body: NDArray[np.bool_], spacing: Spacing) -> Suspicion | None:
    """Compare liver and spine with where the header says right, front and head are.

    Args:
        hu: A coarse CT (about 4 mm), canonical axes (x to the right, y to the front, z to the head), shape (X, Y, Z).
        body: Body on the same grid.
        spacing: Its voxel size in mm.

    Returns:
        The strongest suspicion; None when all is well or nothing can be told.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    parts = cc3d.connected_components(body & (hu < _LUNG_HU), connectivity=6, binary_image=True)
    sizes = np.bincount(parts.ravel()) * voxel_ml
    sizes[0] = 0
    lung = (sizes >= _LUNG_PART_ML)[parts]
    if lung.sum() * voxel_ml < _LUNGS_ML:
        return None
    area = lung.sum((0, 1))
    levels = np.flatnonzero(area > _BASE_SHARE * area.max())
    first, last = int(levels[0]), int(levels[-1])
    chest = slice(first, last + 1)
    middle = np.argwhere(lung)[:, 1].mean()
    centre = float(np.median(np.argwhere(body[:, :, chest])[:, 0]))
    bone = np.argwhere((hu[:, :, chest] > _BONE_HU) & body[:, :, chest])
    spine = bone[np.abs(bone[:, 0] - centre) * spacing[0] < _MIDLINE_MM]
    front = float((spine[:, 1] > middle).mean()) if len(spine) >= 50 else 0.0
    inward = int(_BASE_SHARE * (last - first))
    reach = round(_REACH_MM / spacing[2])
    below = _liver(hu, body, spacing, slice(max(0, first - reach), first + inward + 1), centre)
    above = _liver(hu, body, spacing, slice(last - inward, last + 1 + reach), centre)
    return _judge(front, below, above)


def _judge(front: float, below: tuple[float, float], above: tuple[float, float]) -> Suspicion | None:
    """Weigh the share of midline bone in front, and volume (mL) and right share of what looks like liver."""
    sided = max(above[1], 1 - above[1]) > _ONE_SIDED
    if above[0] > max(5 * below[0], 5 * _LIVER_ML) and sided:
        return Suspicion(
            "upside down", "the liver below the lungs", f"{above[0]:.0f} mL that look like liver above them"
        )
    if front > _ANTERIOR_SHARE:
        return Suspicion(
            "back to front", "the spine behind the lungs", f"{front:.0%} of the bone along the midline in front"
        )
    if below[0] > _LIVER_ML and below[1] < 1 - _ONE_SIDED:
        return Suspicion(
            "mirrored, left for right",
            "the liver on the patient's right",
            f"{1 - below[1]:.0%} of what looks like liver on the left",
        )
    return None


def _liver(
    hu: FloatArray, body: NDArray[np.bool_], spacing: Spacing, slices: slice, centre: float
) -> tuple[float, float]:
    """Return volume in mL and right share of the places deep inside thick and even soft tissue."""
    here = hu[:, :, slices]
    mean = ndimage.uniform_filter(here, 3)
    variance = ndimage.uniform_filter(here * here, 3) - mean * mean
    soft = (mean > _LIVER_HU[0]) & (mean < _LIVER_HU[1]) & (variance < _LIVER_SD_HU**2) & body[:, :, slices]
    depth = edt.edt(np.ascontiguousarray(soft), anisotropy=spacing, black_border=True)
    places = np.argwhere(depth > _LIVER_DEPTH_MM)
    volume = len(places) * float(np.prod(spacing)) / 1000
    return volume, float((places[:, 0] > centre).mean()) if len(places) else 0.5
