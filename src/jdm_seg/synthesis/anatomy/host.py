"""Where deposits may lie, on one grid: from a procedural body or from a real scan, and nothing below it knows which."""

from __future__ import annotations

from dataclasses import dataclass, field

import edt
import numpy as np
from numpy.typing import NDArray

from jdm_seg.synthesis.anatomy.tissue import BONE, OUTSIDE, Tissue, is_soft
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]


_AROUND_LUNG_MM, _UNDER_SKIN_MM = 25.0, 8.0
"""A wall of ribs is thinner, skin with the fat under it is as thick (assumed)."""


@dataclass(frozen=True)
class Host:
    """Tissue and distances on the grid deposits are rendered on. Arrays have shape (X, Y, Z).

    Attributes:
        tissue: :class:`~jdm_seg.synthesis.anatomy.tissue.Tissue` codes.
        spacing: Voxel size in mm.
        depth_mm: Distance to the air around the body, 0 outside.
        muscle_mm: Signed distance to the surface of the nearest muscle compartment, negative inside; bone in a
            compartment has no surface of its own, for no fascia lies there.
        bone_mm: Distance to bone, 0 inside; None where nobody measured it.
        region: :class:`~jdm_seg.synthesis.anatomy.tissue.Region` codes; None where unknown.
        side: :class:`~jdm_seg.synthesis.anatomy.tissue.Side` codes; None where unknown.
        down: Unit vector of gravity in array axes: (0, -1, 0) for a patient on the back.
    """

    tissue: NDArray[np.uint8]
    spacing: Spacing
    depth_mm: FloatArray = field(repr=False)
    muscle_mm: FloatArray = field(repr=False)
    bone_mm: FloatArray | None = field(default=None, repr=False)
    region: NDArray[np.uint8] | None = field(default=None, repr=False)
    side: NDArray[np.uint8] | None = field(default=None, repr=False)
    down: tuple[float, float, float] = (0.0, -1.0, 0.0)

    @property
    def soft(self) -> NDArray[np.bool_]:
        """Voxels that may hold a deposit."""
        return is_soft(self.tissue)


def build_host(tissue: NDArray[np.uint8], spacing: Spacing) -> Host:
    """Measure the distances that deposits are placed by, from tissue codes of shape (X, Y, Z)."""
    inside = ~np.isin(tissue, OUTSIDE)
    bone = np.isin(tissue, BONE)
    muscle = bone | np.isin(tissue, (Tissue.MUSCLE, Tissue.BLOOD, Tissue.TENDON))
    outside, within = distance(~muscle, spacing), distance(muscle, spacing)
    # distances run to the centre of the next voxel of the other class; its surface lies half a voxel before
    half = np.float32(0.5 * min(spacing))
    signed = np.where(muscle, half - within, outside - half).astype(np.float32)
    return Host(tissue, spacing, distance(inside, spacing), signed, bone_mm=distance(~bone, spacing))


def chest_wall(host: Host) -> NDArray[np.bool_]:
    """Tell which voxels lie around the lungs, deeper than the subcutis: ribs, their cartilages, what runs between them.

    Found on every other voxel, for it is a guess of anatomy anyway. Nowhere, where the host knows no lung.

    Returns:
        Mask of the host's grid, (X, Y, Z).
    """
    lung = host.tissue == Tissue.LUNG
    if not lung.any():
        return np.zeros(lung.shape, bool)
    coarse = distance(~lung[::2, ::2, ::2], (2 * host.spacing[0], 2 * host.spacing[1], 2 * host.spacing[2]))
    near = (coarse < _AROUND_LUNG_MM).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    around: NDArray[np.bool_] = near[tuple(slice(n) for n in lung.shape)] & (host.depth_mm > _UNDER_SKIN_MM)
    return around


def distance(mask: NDArray[np.bool_], spacing: Spacing) -> FloatArray:
    """Return the distance in mm from every voxel of a mask to the nearest centre of a voxel outside it, 0 outside."""
    if mask.all():  # nothing to measure to: as far as this grid is wide
        return np.full(mask.shape, float(np.linalg.norm(np.multiply(mask.shape, spacing))), np.float32)
    result: FloatArray = edt.edt(np.ascontiguousarray(mask), anisotropy=spacing, parallel=0)
    return result
