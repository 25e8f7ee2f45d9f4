"""Dark bands and stars around bone, dense deposits and metal.

Scanners correct beam hardening for water. What remains is the error of rays that cross mineral or metal: hardened by
the rest of the body and by the mineral itself, they are attenuated less than assumed, and through metal hardly any
photon arrives. That error of each ray is computed on coarse cells, reconstructed alone, and added to the image.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from jdm_seg.physics import HU_PER_MG_HA_BY_PATH, PATHS_CM, WATER_PER_CM, hu_per_mg_ha
from jdm_seg.synthesis.coarse import linear_weights, pooling_weights, spread
from jdm_seg.synthesis.ct.projection import Projector
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

_STEP_MM = 3.0
_VIEWS = 90
"""Few enough that metal leaves the fine spokes of a star."""
_DENSE_HU = 700.0
"""Slices without a cell above this are left alone: what bone of that size adds is below the noise."""
_MINERAL_HU = 150.0
"""What exceeds this counts as mineral."""
_HARDER = 1.5
"""Mineral hardens the beam like this multiple of the water of the same attenuation (assumed)."""
_DEEPEST = 9.0
"""Logarithmic attenuation beyond which detectors see scatter rather than the beam (assumed)."""
_WORST_HU = 1500.0


class Streaks:
    """Adds the streaks of a scan to slabs of axial slices."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing: Spacing,
        *,
        kv: str,
        hardening: float,
        diameter_cm: NDArray[np.float64],
    ) -> None:
        """Set the scanner and the grid.

        Args:
            shape: Voxels of the scan along x, y, z.
            spacing: Their size in mm.
            kv: Tube voltage, a key of :data:`~jdm_seg.physics.HU_PER_MG_HA`.
            hardening: 1 for what physics gives without correction for bone, less with one, 0 for none.
            diameter_cm: Water-equivalent diameter of each slice, for which its CT numbers hold.
        """
        self._kv, self._hardening, self._diameter = kv, hardening, diameter_cm
        steps = [max(_STEP_MM, s) for s in spacing[:2]]
        self._step = max(steps)
        axes = list(zip(shape[:2], spacing[:2], strict=True))
        self._down = [pooling_weights(n, s, self._step) for n, s in axes]
        self._up = [linear_weights(n, s, w.shape[0], self._step) for (n, s), w in zip(axes, self._down, strict=True)]
        self.group = max(1, round(_STEP_MM / spacing[2]))
        self._projector: Projector | None = None

    def add(self, hu: FloatArray, start: int) -> None:
        """Add the streaks of each group of neighbouring slices in place.

        Args:
            hu: CT numbers before noise and clipping, shape (slab, X, Y).
            start: Number of the slab's first slice, a multiple of ``group``.
        """
        dense = [first for first in range(0, len(hu), self.group) if hu[first : first + self.group].max() > _DENSE_HU]
        groups = [hu[first : first + self.group] for first in dense]
        cells = [spread(group.mean(axis=0), *self._down) for group in groups]
        chosen = [i for i, cell in enumerate(cells) if cell.max() > _DENSE_HU]
        if not chosen or not self._hardening:
            return
        diameters = self._diameter[[start + dense[i] for i in chosen]]
        errors = self._errors(np.stack([cells[i] for i in chosen]), diameters)
        for i, error in zip(chosen, errors, strict=True):
            groups[i] += spread(error, *self._up)

    def _errors(self, cells: FloatArray, diameter_cm: NDArray[np.float64]) -> FloatArray:
        """Return the errors of the CT numbers of coarse slices, shape (slices, x, y)."""
        if self._projector is None:
            self._projector = Projector((cells.shape[1], cells.shape[2]), self._step, _VIEWS)
        density = np.maximum(1 + cells / np.float32(1000), 0)
        mineral = np.maximum(cells - _MINERAL_HU, 0) / np.float32(1000)
        water_cm = self._projector.forward(density - mineral) / np.float32(10)
        mineral_cm = self._projector.forward(mineral) / np.float32(10)
        hardened = water_cm + _HARDER * 0.5 * mineral_cm
        assumed = np.array([hu_per_mg_ha(self._kv, float(d)) for d in diameter_cm], np.float32)
        ratio = np.interp(hardened, _LENGTHS_CM, _slopes(self._kv)).astype(np.float32) / assumed
        per_cm = np.float32(WATER_PER_CM[self._kv])
        seen = (_saturate(per_cm * (water_cm + mineral_cm)) - _saturate(per_cm * water_cm)) / per_cm
        error = self._hardening * mineral_cm * (ratio - 1) + (seen - mineral_cm)
        image = 1000 * self._projector.reconstruct((10 * error).astype(np.float32))
        return np.asarray(np.clip(image, -_WORST_HU, _WORST_HU), np.float32)


_LENGTHS_CM = np.linspace(0, 80, 161)


def _slopes(kv: str) -> NDArray[np.float64]:
    """Return the CT number per mg HA / cm³ along :data:`_LENGTHS_CM`, by one power of the length (assumed)."""
    shortest, _, longest = HU_PER_MG_HA_BY_PATH[kv]
    power = math.log(longest / shortest) / math.log(PATHS_CM[2] / PATHS_CM[0])
    return hu_per_mg_ha(kv) * np.asarray(np.maximum(_LENGTHS_CM, 2) / PATHS_CM[1]) ** power


def _saturate(depth: FloatArray) -> FloatArray:
    """Return what a detector that also sees scatter takes an attenuation for."""
    result: FloatArray = -np.log(np.exp(-depth) + np.float32(math.exp(-_DEEPEST)))
    return result
