"""The Agatston score, for comparison with earlier work: capped in density and made for 3 mm slices."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from jdm_seg.body_mask import bounding_box
from jdm_seg.physics import DEFAULT_KV, HU_PER_MG_HA, hu_per_mg_ha
from jdm_seg.volume import Grid

AGATSTON_EDGES_HU: dict[str, tuple[float, float, float, float]] = {
    "70": (207, 318, 477, 636),
    "80": (177, 271, 408, 544),
    "100": (145, 222, 334, 446),
    "120": (130, 199, 299, 399),
}
"""Entry threshold and upper ends of weights 1 to 3, by tube voltage. Source: Gräni et al. 2018, Eur. Heart J.
Cardiovasc. Imaging, doi 10.1093/ehjci/jey019. Other voltages scale the 120 kV row by the slope of hydroxyapatite,
which reproduces the rows above within 3 %."""
AGATSTON_MIN_ISLAND_MM2 = 1.0
AGATSTON_SLICE_MM = 3.0


def agatston_score(mask: NDArray[np.bool_], image: NDArray[Any], grid: Grid, *, kv: str | float | None = None) -> float:
    """Compute the Agatston score of a mask, for comparison with earlier work; it caps density and needs 3 mm slices.

    Per axial slice, each island of masked voxels at or over the entry threshold (8 neighbours, at least 1 mm²) counts
    its area in mm² times a weight of 1 to 4 by its largest CT number. The sum is scaled by slice distance / 3 mm.

    Args:
        mask: Foreground, shape (X, Y, Z).
        image: CT numbers in HU, same shape.
        grid: Where they lie; the axial axis is the one closest to superior.
        kv: Tube voltage; None means 120 kV.

    Returns:
        The score; 0 for an empty mask.

    Source: Agatston et al. 1990, JACC 15:827; thresholds by voltage as :data:`AGATSTON_EDGES_HU` says.
    """
    axis = next(i for i, code in enumerate(grid.orientation) if code in "SI")
    edges = np.array(agatston_edges_hu(kv))
    box = bounding_box(mask)
    values = np.moveaxis(image[box], axis, 0)
    dense = np.moveaxis(mask[box], axis, 0) & (values >= edges[0])
    slice_mm = grid.spacing[axis]
    pixel_mm2 = grid.voxel_volume_mm3 / slice_mm
    score = 0.0
    for plane, hu in zip(dense, values, strict=True):
        if not plane.any():
            continue
        islands = cc3d.connected_components(np.ascontiguousarray(plane), connectivity=8, binary_image=True)[plane]
        peak = np.zeros(int(islands.max()) + 1)
        np.maximum.at(peak, islands, hu[plane])
        area = np.bincount(islands) * pixel_mm2
        area[area < AGATSTON_MIN_ISLAND_MM2 * (1 - 1e-4)] = 0.0
        weight = 1 + (peak[:, None] > edges[1:]).sum(axis=1)
        score += float((area * weight).sum())
    return score * slice_mm / AGATSTON_SLICE_MM


def agatston_edges_hu(kv: str | float | None) -> tuple[float, ...]:
    """Return entry threshold and weight edges in HU, scaled from 120 kV where no published row exists."""
    published = AGATSTON_EDGES_HU.get(kv_name(kv))
    if published is not None:
        return published
    ratio = hu_per_mg_ha(kv) / HU_PER_MG_HA["120"]
    return tuple(round(edge * ratio) for edge in AGATSTON_EDGES_HU["120"])


def kv_name(kv: str | float | None) -> str:
    """Return a tube voltage as tables name it; None is the assumed one."""
    return DEFAULT_KV if kv is None else str(kv).removesuffix(".0")
