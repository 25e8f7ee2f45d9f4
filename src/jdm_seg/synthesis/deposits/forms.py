"""What every deposit shares, whatever its shape: what it fills, its grains, and how uneven its calcium is.

No cortex and no trabeculae: deposits show no bone-like architecture (Arthritis Rheum, art.24391).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from jdm_seg.synthesis.deposits.fields import Axes, Box, Noise, share_inside
from jdm_seg.synthesis.deposits.priors import SOLID_MG, Deposit

FloatArray = NDArray[np.float32]
Where = tuple[slice | NDArray[np.intp], ...]
_SLOPE = 1.2
"""Rise of unit noise over one of its scales, on average."""


@dataclass(frozen=True)
class Filled:
    """What one deposit fills: ``where`` indexes the grid, the arrays have the shape of what it selects.

    Attributes:
        where: Slices, or an open mesh of voxel numbers.
        occupancy: Share of each voxel that the deposit fills, 0 to 1.
        calcium: mg HA / cm³ inside the deposit.
        fluid: Share that is liquid; None without a fluid-calcium level.
    """

    where: Where
    occupancy: FloatArray
    calcium: FloatArray
    fluid: FloatArray | None = None

    @property
    def box(self) -> Box:
        """The smallest box that holds it."""
        x, y, z = (
            side if isinstance(side, slice) else slice(int(side.min()), int(side.max()) + 1) for side in self.where
        )
        return x, y, z


def mineral_share(noise: FloatArray, deposit: Deposit, grain_mm: float, width: float) -> FloatArray:
    """Return the share that is mineral where a deposit is made of grains: noise above the level that ``fill`` sets.

    Args:
        noise: Noise of unit variance.
        deposit: Gives ``fill``.
        grain_mm: Size of a grain.
        width: Of the rim in which the share falls from 1 to 0, in mm.
    """
    distance = (np.float32(ndtri(1 - deposit.fill)) - noise) * np.float32(grain_mm / _SLOPE)
    return share_inside(distance, width)


def calcium_inside(deposit: Deposit, axes: Axes, voxels: tuple[NDArray[np.intp], ...] | None = None) -> FloatArray:
    """Return mg HA / cm³ inside the deposit, uneven, on the axes or at some of their voxels."""
    noise = Noise(deposit.seed + 2, 2.5)
    uneven = noise.on(axes) if voxels is None else noise.at(axes, voxels)
    spread = np.float32(deposit.texture)
    uneven = np.exp(np.clip(uneven, -2, 2) * spread - spread**2 / 2) * np.float32(deposit.calcium)
    result: FloatArray = np.minimum(uneven, np.float32(SOLID_MG), out=uneven)
    return result
