"""What a STIR scan shows of calcinosis: mineral as a void, paste and fluid as bright, and the oedema around it.

Everything is relative to muscle nearby, which evens out the receive field and the steps between stations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.body_mask import bounding_box
from jdm_seg.synthesis.anatomy.tissue import OUTSIDE, Tissue
from jdm_seg.synthesis.estimate import estimate_stir_tissue
from jdm_seg.volume import Spacing

VOID_BELOW = 0.5
"""Half of muscle: mineral gives no signal. (Signal over muscle at 1.5 T by the signal equation: mineral 0, oedema 3.0,
milk of calcium 5.2, fluid 9.2; borders half-way, assumed.)"""
OEDEMA_FROM, FLUID_FROM = 2.0, 4.0
OEDEMA_MM = 20.0
"""Oedema counts this near a deposit: farther away, marrow, vessels and bowel are as bright."""
_LEVEL_MM = 40.0
_NOISE_SHARE = 0.25
"""Noise over this share of muscle lifts a void to what muscle looks like."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class StirBurden:
    """Volumes in mL.

    Attributes:
        void_ml: Voxels of the mask darker than half of muscle: mineral.
        fluid_ml: Voxels of the mask brighter than :data:`FLUID_FROM` times muscle: paste or fluid.
        other_ml: The rest of the mask.
        oedema_ml: Voxels outside the mask of :data:`OEDEMA_FROM` to :data:`FLUID_FROM` times muscle within
            :data:`OEDEMA_MM` of it.
        noise_share: Noise relative to muscle; None without a mask.
    """

    void_ml: float
    fluid_ml: float
    other_ml: float
    oedema_ml: float
    noise_share: float | None

    def warnings(self) -> list[str]:
        """Say in plain words what limits the volumes."""
        if self.noise_share is None:
            return []
        texts = [
            f"Oedema is what is {OEDEMA_FROM:g} to {FLUID_FROM:g} times as bright as muscle within {OEDEMA_MM:g} mm of "
            "a deposit; marrow and vessels that near count too."
        ]
        if self.noise_share > _NOISE_SHARE:
            texts.append("Noise is so strong that a void cannot be told from muscle; void volume is a lower bound.")
        return texts


def measure_stir(signal: NDArray[Any], mask: NDArray[np.bool_], spacing: Spacing) -> StirBurden:
    """Measure one STIR scan.

    Args:
        signal: Magnitudes, canonical axes, shape (X, Y, Z).
        mask: Calcinosis, same shape; an empty one measures nothing.
        spacing: Voxel size in mm.
    """
    if not mask.any():
        return StirBurden(0.0, 0.0, 0.0, 0.0, None)
    tissue, (level, noise) = estimate_stir_tissue(signal, spacing)
    box = bounding_box(mask, [int(np.ceil((OEDEMA_MM + _LEVEL_MM) / step)) for step in spacing])
    values, inside = signal[box].astype(np.float32), mask[box]
    relative = values / _muscle_level(values, (tissue[box] == Tissue.MUSCLE) & ~inside, level, spacing)
    voxel_ml = float(np.prod(spacing)) / 1000
    void, fluid = inside & (relative < VOID_BELOW), inside & (relative > FLUID_FROM)
    # smoothed: one noisy voxel is no oedema
    smooth = ndimage.uniform_filter(relative, [3 if step < 3 else 1 for step in spacing], mode="nearest")
    near = ndimage.distance_transform_edt(~inside, sampling=spacing) <= OEDEMA_MM
    body = ~np.isin(tissue[box], OUTSIDE)
    oedema = near & ~inside & body & (smooth >= OEDEMA_FROM) & (smooth <= FLUID_FROM)
    return StirBurden(
        void_ml=int(void.sum()) * voxel_ml,
        fluid_ml=int(fluid.sum()) * voxel_ml,
        other_ml=int((inside & ~void & ~fluid).sum()) * voxel_ml,
        oedema_ml=int(oedema.sum()) * voxel_ml,
        noise_share=noise / level if level > 0 else None,
    )


def _muscle_level(values: FloatArray, muscle: NDArray[np.bool_], level: float, spacing: Spacing) -> FloatArray:
    """Return what muscle would give in every voxel: its mean around, the scan's own where there is none near."""
    size = [2 * max(1, round(_LEVEL_MM / 2 / step)) + 1 for step in spacing]
    share = ndimage.uniform_filter(muscle.astype(np.float32), size, mode="nearest")
    total = ndimage.uniform_filter(np.where(muscle, values, np.float32(0)), size, mode="nearest")
    near = share > 0.02
    result: FloatArray = np.full(values.shape, max(level, 1e-3), np.float32)
    np.divide(total, share, out=result, where=near & (total > 0))
    return result
