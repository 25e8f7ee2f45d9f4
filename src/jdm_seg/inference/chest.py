"""Lesions between the lungs are no calcinosis: that lies in skin, fat, fascia and muscle.

Valves, calcified vessels and nodes, contrast medium and vertebrae are what a network trained on few chests takes for
deposits. Where the lungs are can be told without one.
"""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.components import find_lesions
from jdm_seg.volume import Spacing, Volume

_COARSE_MM = 3.0
_GAS_HU = -400
_LUNG_HU = (-950, -500)
"""Median of a lung; gas of the gut and air under an arm are darker. Lungs darker than that (emphysema) are not used."""
_LUNG_MM3 = 60_000.0
"""Of one lung; a toddler's has three times as much."""
_BACK_SHARE = 0.2
"""Of the lungs' extent from back to front, in every slice: muscles beside the spine lie between its last part."""

_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[:, 1, 1] = _IN_PLANE[1, :, 1] = True


def drop_between_lungs(mask: NDArray[np.bool_], scan: Volume) -> tuple[str, ...]:
    """Drop the lesions that lie by more than half between the lungs, in place.

    Args:
        mask: On the scan's own axes.
        scan: CT numbers.

    Returns:
        A note that says how many, if any.
    """
    if not mask.any():
        return ()
    canonical = scan.to_canonical()
    zone, strides = between_lungs(canonical.array, canonical.spacing)
    if not zone.any():
        return ()
    view = Volume(mask, scan.affine, scan.name).to_canonical().array
    lesions = find_lesions(view, canonical.spacing)
    inside = zone[tuple(np.minimum(lesions.indices // strides, np.array(zone.shape) - 1).T)]
    share = np.bincount(lesions.numbers, inside, lesions.count + 1)[1:] / lesions.sizes_vox
    dropped = share > 0.5
    view[tuple(lesions.indices[dropped[lesions.numbers - 1]].T)] = False
    count = int(dropped.sum())
    if not count:
        return ()
    what = "lesion lay" if count == 1 else "lesions lay"
    return (f"{count} {what} between the lungs and went: calcinosis lies in skin, fat, fascia and muscle",)


def between_lungs(hu: NDArray[Any], spacing: Spacing) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Find what lies between the lungs, seen from left and right, and in them; without the fifth at their back.

    Lungs are gas that no slice connects with the air around, large enough and neither as empty as gas in the gut nor
    as dense as what is consolidated. A scan of one lung alone has no such zone beyond that lung.

    Args:
        hu: CT numbers, shape (X, Y, Z), canonical axes (RAS).
        spacing: Voxel size in mm.

    Returns:
        Mask of every n-th voxel, and n for each axis.
    """
    strides = np.array([max(1, round(_COARSE_MM / step)) for step in spacing])
    coarse = np.asarray(hu[:: strides[0], :: strides[1], :: strides[2]])
    voxel = float(np.prod(spacing)) * float(np.prod(strides))
    lung = np.zeros(coarse.shape, bool)
    gas = _enclosed(coarse < _GAS_HU)
    parts = cc3d.connected_components(gas, connectivity=6, binary_image=True)
    for number in np.flatnonzero(np.bincount(parts.ravel()) * voxel >= _LUNG_MM3):
        part = parts == number
        if number and _LUNG_HU[0] < np.median(coarse[part]) < _LUNG_HU[1]:
            lung |= part
    between = np.logical_or.accumulate(lung, axis=0) & np.logical_or.accumulate(lung[::-1], axis=0)[::-1]
    for z in np.flatnonzero(lung.any(axis=(0, 1))):
        rows = np.flatnonzero(lung[..., z].any(axis=0))
        between[:, : int(rows[0] + _BACK_SHARE * (rows[-1] + 1 - rows[0])), z] = False
    return between, strides


def _enclosed(gas: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return gas that does not reach the sides of the scan within an axial slice."""
    parts, count = ndimage.label(gas, _IN_PLANE)
    sides = (parts[0], parts[-1], parts[:, 0], parts[:, -1])
    outer = np.zeros(count + 1, bool)
    outer[np.unique(np.concatenate([side.ravel() for side in sides]))] = True
    outer[0] = True
    result: NDArray[np.bool_] = ~outer[parts]
    return result
