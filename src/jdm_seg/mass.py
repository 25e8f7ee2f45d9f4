"""How much mineral a lesion holds: the signal above its background, whatever the blur did to its outline.

Blur moves signal but does not change its sum. So integrated intensity is unbiased where a volume by threshold is wrong
by a factor of two; what it needs is the local background, and to know which of the surrounding signal is the lesion's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.body_mask import BODY_MIN_HU
from jdm_seg.neighbourhood import HERE, Indices, ball_steps, dilation, foreground_indices, on_surface, paint
from jdm_seg.volume import Spacing

RING_MM = 1.5
"""How far outside its mask a lesion's blur is collected, or the 26 neighbours where they reach farther."""
SHELL_MM = (2.0, 4.0)
"""Where the background is measured; moved outwards as much as the ring is."""
NEIGHBOUR_FRACTION = 0.75
"""A ring voxel this far from background to the lesion's maximum is bone, vessel or metal, not blur. Chosen on blurred
spheres (voxels of 0.6 to 5 mm): lower values lose lesions, higher ones count a touching cortex."""

_FAR, _SHELL, _RING, _LESION = range(4)


def excess_hu(
    labels: NDArray[Any], image: NDArray[Any], number: int, indices: Indices, spacing: Spacing
) -> float | None:
    """Sum the CT numbers above background over one lesion and the ring its blur reaches.

    The background is the median of the shell around the lesion, without other lesions and their rings and without air.
    A ring voxel shared with another lesion counts half for each. Ring voxels in air, or as bright as
    :data:`NEIGHBOUR_FRACTION` says, belong to something else and do not count.

    Args:
        labels: Lesion numbers, shape (X, Y, Z), 0 outside.
        image: CT numbers in HU, same shape.
        number: The lesion.
        indices: Its voxels, shape (N, 3).
        spacing: Voxel size in mm.

    Returns:
        Sum in HU times voxels, negative when the lesion is darker than its surroundings; None when there is nothing
        around it to measure a background on.

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
    scan = tuple(slice(max(0, a), min(size, b)) for a, b, size in zip(low, high, labels.shape, strict=True))
    inside = tuple(slice(part.start - a, part.stop - a) for part, a in zip(scan, low, strict=True))
    zone, crop, hu = zone[inside], labels[scan], image[scan]

    others = (crop != 0) & (crop != number)
    blurred = _dilated_within(others, ring_steps)
    tissue = hu > BODY_MIN_HU
    shell = hu[(zone == _SHELL) & ~blurred & tissue]
    if shell.size == 0:
        shell = hu[(zone == _SHELL) & ~others]
    if shell.size == 0:
        return None
    background = float(np.median(shell))
    own = hu[zone == _LESION] - background
    ring = (zone == _RING) & ~others & tissue
    blur = hu[ring] - background
    blur = np.where(blur > NEIGHBOUR_FRACTION * own.max(), 0.0, blur)
    return float(own.sum() + (blur * np.where(blurred[ring], 0.5, 1.0)).sum())


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
