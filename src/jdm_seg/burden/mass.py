"""How much mineral a lesion holds: the signal above its background, whatever the blur did to its outline.

Blur moves signal but does not change its sum. So integrated intensity is unbiased where a volume by threshold is wrong
by a factor of two; what it needs is the local background, and to know which of the surrounding signal is the lesion's.

A deposit takes the place of tissue. In muscle what lies between its mineral is as dense as what was there before; in
fat it is not, and the signal above fat holds water as well as calcium. :func:`mass_mg` parts the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import BODY_MIN_HU
from jdm_seg.burden.density import Contrast, estimate_contrast
from jdm_seg.neighbourhood import HERE, Indices, ball_steps, dilation, foreground_indices, on_surface, paint
from jdm_seg.sharpness import Blur
from jdm_seg.volume import Spacing

RING_MM = 1.5
"""How far outside its mask a lesion's blur is collected, or the 26 neighbours where they reach farther."""
SHELL_MM = (2.0, 4.0)
"""Where the background is measured; moved outwards as much as the ring is."""
NEIGHBOUR_FRACTION = 0.75
"""Signal this far from background to the lesion's maximum that goes on beyond the ring is bone, vessel or metal, not
blur. Chosen on blurred spheres (voxels of 0.6 to 5 mm): lower values lose lesions, higher ones count a touching
cortex."""
MATRIX_HU = 40.0
"""CT number of what lies between the mineral of a deposit, where it replaces fat (assumed: soft tissue or paste)."""
FAT_BELOW_HU = -25.0
"""Half-way between fat and muscle."""
SOFT_HU = (-200.0, 130.0)
"""What the background is measured on: fat to muscle with noise, neither blurred skin nor bone."""
_GRAIN_VOXELS = 4.0
"""Noise of this many voxels goes up and down together (assumed: soft kernels)."""
_FIELD_VOXELS = 300_000
"""Up to this many voxels the background may vary from place to place; around larger lesions it is one number."""
_FIELD_MM = 5.0

_FAR, _SHELL, _RING, _LESION = range(4)
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Signal:
    """What one lesion adds to a CT scan.

    Attributes:
        excess_hu: CT numbers above background, summed over lesion and blur, in HU times voxels.
        background_hu: Mean CT number of what the lesion lies in.
        fat_share: Share of the soft tissue around it that is fat.
        contrast: CT number of the deposit itself above its background, as far as blur lets it be known; None without.
        noise_hu: Standard deviation of :attr:`excess_hu` by the noise of its surroundings, in HU times voxels.
    """

    excess_hu: float
    background_hu: float
    fat_share: float
    contrast: Contrast | None
    noise_hu: float = 0.0

    def volume_vox(self) -> float | None:
        """Return the volume by integrated intensity in voxels; None where the deposit's own density is unknown."""
        return None if self.contrast is None else max(0.0, self.excess_hu) / self.contrast.hu

    def mineral_hu(self) -> float:
        """Return the part of :attr:`excess_hu` that is mineral, in HU times voxels, at least 0.

        Where the deposit replaces fat, its matrix of :data:`MATRIX_HU` is brighter than what was there; that share of
        the signal is no calcium. Where its density is unknown the signal counts as it is.
        """
        excess = max(0.0, self.excess_hu)
        matrix = max(self.background_hu, MATRIX_HU) - self.background_hu
        if self.contrast is None or matrix == 0.0:
            return excess
        return excess * max(0.0, 1.0 - matrix / self.contrast.hu)


def mass_mg(signal: Signal, voxel_volume_mm3: float, slope_hu_per_mg: float) -> float:
    """Return the mass of a lesion in mg hydroxyapatite.

    Args:
        signal: From :func:`measure_signal`.
        voxel_volume_mm3: Of the scan.
        slope_hu_per_mg: HU per mg HA / cm³, see :func:`jdm_seg.physics.hu_per_mg_ha`.
    """
    return signal.mineral_hu() * voxel_volume_mm3 / 1000.0 / slope_hu_per_mg


def excess_hu(
    foreground: NDArray[Any],
    image: NDArray[Any],
    indices: Indices,
    spacing: Spacing,
    blur: Blur | None = None,
) -> float | None:
    """Return :attr:`Signal.excess_hu` of one lesion, negative when it is darker than its surroundings.

    Arguments and undefined cases as for :func:`measure_signal`.
    """
    signal = measure_signal(foreground, image, indices, spacing, blur)
    return None if signal is None else signal.excess_hu


def measure_signal(
    foreground: NDArray[Any],
    image: NDArray[Any],
    indices: Indices,
    spacing: Spacing,
    blur: Blur | None = None,
) -> Signal | None:
    """Sum the CT numbers above background over one lesion and the ring its blur reaches.

    The background is what the soft tissue of the shell around the lesion suggests for every voxel, without other
    lesions and their rings and without skin blurred into air. A ring voxel shared with another lesion counts half for
    each. Ring voxels in air, or bright ones that belong to something that goes on beyond the ring, do not count. What
    the ring misses of a compact lesion's blur is added by the model that :mod:`jdm_seg.burden.density` fits.

    Args:
        foreground: This lesion and all others, shape (X, Y, Z): a mask or labels; non-zero counts.
        image: CT numbers in HU, same shape.
        indices: The lesion's voxels, shape (N, 3).
        spacing: Voxel size in mm.
        blur: Of the scan, see :func:`jdm_seg.sharpness.estimate_sharpness`; None assumes one.

    Returns:
        The signal; None when there is nothing around it to measure a background on.

    Source: integrated mass without a phantom, doi 10.1002/mp.16326.
    """
    # 1.75 voxels hold all 26 neighbours: in thick slices blur is as wide as a slice
    ring_mm = [max(RING_MM, 1.75 * step) for step in spacing]
    ring_steps = ball_steps(ring_mm, spacing)
    gap_steps, shell_steps = (ball_steps([mm + distance - RING_MM for mm in ring_mm], spacing) for distance in SHELL_MM)
    # room for the shell, and for every other lesion whose ring can reach into it
    margin = np.abs(shell_steps).max(axis=0) + 2 * np.abs(ring_steps).max(axis=0)
    low, high = indices.min(axis=0) - margin, indices.max(axis=0) + 1 + margin
    zone = _zones(indices - low, tuple(high - low), ring_steps, gap_steps, shell_steps)
    scan = tuple(slice(max(0, a), min(size, b)) for a, b, size in zip(low, high, foreground.shape, strict=True))
    inside = tuple(slice(part.start - a, part.stop - a) for part, a in zip(scan, low, strict=True))
    zone, crop, hu = zone[inside], foreground[scan], image[scan].astype(np.float32)

    others = (crop != 0) & (zone != _LESION)
    blurred = _dilated_within(others, ring_steps)
    air = hu <= BODY_MIN_HU
    by_air = ndimage.binary_dilation(air) if air.any() else air
    shell = (zone == _SHELL) & ~blurred & ~by_air
    soft = shell & (hu > SOFT_HU[0]) & (hu < SOFT_HU[1])
    if not soft.any():
        around = (zone == _SHELL) & ~others
        soft = next((part for part in (shell, around & ~air, around) if part.any()), soft)
        if not soft.any():
            return None
    excess = hu - _background(hu, soft, spacing)
    lesion = zone == _LESION
    weight = _ring_weight(zone, excess, others, blurred, air)
    np.maximum(
        excess, 0.0, out=excess, where=by_air & ~lesion
    )  # blur into air hides a deposit's, it does not lessen it
    weight[lesion] = 1.0
    total = float((excess * weight).sum(dtype=np.float64))
    noise = float(excess[soft].std(dtype=np.float64))
    contrast = estimate_contrast(excess, lesion, weight, spacing, noise, blur) if total > 0 else None
    if contrast is not None:
        total /= contrast.captured
    background = float((hu - excess)[lesion].mean(dtype=np.float64))
    grained = noise * float(np.sqrt(_GRAIN_VOXELS * (weight > 0).sum()))
    return Signal(total, background, float((hu[soft] < FAT_BELOW_HU).mean()), contrast, grained)


def _background(hu: FloatArray, known: NDArray[np.bool_], spacing: Spacing) -> FloatArray | np.float32:
    """Carry soft tissue from the shell into lesion and ring: a mean of what is known within some millimetres."""
    mean = np.float32(hu[known].mean(dtype=np.float64))
    if hu.size > _FIELD_VOXELS:
        return mean
    size = [2 * int(np.ceil(_FIELD_MM / step)) + 1 for step in spacing]
    weight = ndimage.uniform_filter(known.astype(np.float32), size, mode="constant")
    values = ndimage.uniform_filter(np.where(known, hu - mean, np.float32(0)), size, mode="constant")
    near = weight > 0.5 / np.prod(size)  # a running sum leaves rounding where nothing is known
    field: FloatArray = mean + np.divide(values, weight, out=np.zeros_like(values), where=near)
    return field


def _ring_weight(
    zone: NDArray[np.uint8],
    excess: FloatArray,
    others: NDArray[np.bool_],
    blurred: NDArray[np.bool_],
    air: NDArray[np.bool_],
) -> FloatArray:
    """Return how much of each ring voxel is this lesion's blur: 1, half where another lesion blurs too, or 0."""
    ring = (zone == _RING) & ~others & ~air
    bright = ~others & (zone != _LESION) & (excess > NEIGHBOUR_FRACTION * excess[zone == _LESION].max())
    if (bright & ring).any():
        parts = cc3d.connected_components(bright, connectivity=26, binary_image=True)
        beyond = np.zeros(int(parts.max()) + 1, dtype=bool)
        beyond[parts[bright & (zone != _RING)]] = True
        beyond[0] = False
        ring &= ~beyond[parts]
    weight: FloatArray = np.where(ring, np.where(blurred, 0.5, 1.0), 0.0).astype(np.float32)
    return weight


def _zones(
    indices: Indices, shape: tuple[int, ...], ring_steps: Indices, gap_steps: Indices, shell_steps: Indices
) -> NDArray[np.uint8]:
    """Paint shell, gap, ring and lesion over one another, the outermost first."""
    mask, origin = dilation(indices, HERE)
    edge = indices[on_surface(mask, indices - origin)]
    zone = np.full(shape, _FAR, dtype=np.uint8)
    for value, steps in ((_SHELL, shell_steps), (_FAR, gap_steps), (_RING, ring_steps)):
        paint(zone, edge, steps, value)
    paint(zone, indices, HERE, _LESION)
    return zone


def _dilated_within(mask: NDArray[np.bool_], steps: Indices) -> NDArray[np.bool_]:
    """Dilate inside a crop; what leaves the crop is dropped."""
    indices = foreground_indices(mask)
    if len(indices) == 0:
        return mask
    dilated, origin = dilation(indices, steps)
    low, high = np.maximum(origin, 0), np.minimum(origin + dilated.shape, mask.shape)
    result = np.zeros(mask.shape, dtype=bool)
    target = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    result[target] = dilated[tuple(slice(a, b) for a, b in zip(low - origin, high - origin, strict=True))]
    return result
