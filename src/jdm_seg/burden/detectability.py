"""How noisy a scan is, and so how small a deposit it could have shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.volume import Grid

REFERENCE_MG_HA_PER_CM3 = 200.0
"""Density of the deposit that the detectability floor is stated for: soft, about 280 HU at 120 kV."""
_FLOOR_SD = 5.0
_FLOOR_BLUR_VOXELS = 8.0
_FLOOR_MIN_VOXELS = 5.0
_NOISE_PLANES = 24
_NOISE_LAG = 2
_TISSUE_HU = (-50.0, 100.0)
_DEFAULT_NOISE_HU = 25.0
"""Low-dose CT of soft tissue; assumed only where a scan holds too little soft tissue to measure."""


def estimate_noise_hu(image: NDArray[Any], exclude: NDArray[Any], grid: Grid) -> float | None:
    """Estimate the noise SD of soft tissue from differences of nearby voxels.

    In up to 24 axial slices, voxels two apart whose mean lies between -50 and 100 HU are subtracted;
    SD = 1.4826 MAD / √2. Differences cancel anatomy, the median ignores edges, two voxels' distance escapes most of
    the kernel's correlation (what is left makes this a lower bound). Memory: 18 bytes a voxel of those slices.

    Args:
        image: CT numbers in HU, shape (X, Y, Z).
        exclude: Lesions, same shape; non-zero counts, so labels serve too.
        grid: Where they lie.

    Returns:
        SD in HU; None when fewer than 100 pairs qualify.
    """
    axis = next(i for i, code in enumerate(grid.orientation) if code in "SI")
    every = -(-image.shape[axis] // _NOISE_PLANES)
    planes = (slice(None),) * axis + (slice(None, None, every),)  # a view: only these slices are read
    hu, usable = image[planes].astype(np.float32), exclude[planes] == 0
    along = 0 if axis != 0 else 1
    first = tuple(slice(None, -_NOISE_LAG) if i == along else slice(None) for i in range(3))
    second = tuple(slice(_NOISE_LAG, None) if i == along else slice(None) for i in range(3))
    mean = (hu[first] + hu[second]) / 2
    pairs = usable[first] & usable[second] & (mean >= _TISSUE_HU[0]) & (mean <= _TISSUE_HU[1])
    difference = (hu[first] - hu[second])[pairs]
    if difference.size < 100:
        return None
    spread = np.median(np.abs(difference - np.median(difference)))
    return float(1.4826 * spread / np.sqrt(2))


def detectability_floor_mm3(grid: Grid, noise_sd_hu: float | None, slope_hu_per_mg: float | None) -> float:
    """Estimate the smallest deposit that could have been seen: a rule of thumb, not a measurement.

    ``floor = voxel volume x max(5, 8 x 5 SD / contrast)``, where the contrast is that of a soft deposit of 200 mg
    HA/cm³. Blur spreads a small deposit over about 2 x 2 x 2 voxels, so its peak is its contrast times its volume over
    8 voxels, and that must reach 5 noise SDs; whatever the noise, fewer than 5 voxels are no finding. Denser deposits
    are seen smaller, thin sheets along the slices only larger.

    Args:
        grid: The scan's grid.
        noise_sd_hu: Noise of soft tissue; None (not measurable) takes 25 HU on CT.
        slope_hu_per_mg: HU per mg HA / cm³; None on STIR, where only the voxel count decides.

    Returns:
        Volume in mm³.
    """
    voxels = _FLOOR_MIN_VOXELS
    if slope_hu_per_mg is not None:
        noise = _DEFAULT_NOISE_HU if noise_sd_hu is None else noise_sd_hu
        contrast = REFERENCE_MG_HA_PER_CM3 * slope_hu_per_mg
        voxels = max(voxels, _FLOOR_BLUR_VOXELS * _FLOOR_SD * noise / contrast)
    return voxels * grid.voxel_volume_mm3
