"""Quantum noise of CT: stronger where rays cross more body, grained by the kernel, streaky where photons run out.

In filtered back-projection the noise of a view enters the image at spatial frequencies along that view's detector.
So noise is made in the frequency plane, cut into sectors of direction, and each sector is scaled in every place by the
noise of the rays that cross there in that direction. Rays from side to side through shoulders or hips are the longest:
their noise makes the horizontal streaks of photon starvation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from jdm_seg.physics import HU_AIR, WATER_PER_CM
from jdm_seg.synthesis.anatomy.tissue import OUTSIDE, Tissue, TissueMap
from jdm_seg.synthesis.coarse import Weights, blend, linear_weights, pooling_weights, spread
from jdm_seg.synthesis.ct.projection import Projector
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]

_STEP_MM = 6.0
"""Cells on which the strength of the noise is computed."""
_VIEWS = 36
_SECTORS_DEG = np.array([0.0, 45.0, 80.0, 90.0, 100.0, 135.0])
"""Detector directions between which the strength is interpolated; 90 degrees: rays from side to side."""
_STRONGEST = 6.0
"""Noise never exceeds this multiple of the asked one: scanners smooth starved rays (assumed)."""
_FLOOR_PER_MM = 0.004
"""Noise power at zero frequency, as a frequency: apodisation keeps it from vanishing (assumed)."""


@dataclass(frozen=True)
class Survey:
    """A coarse look at a body before the scan, as a scanner's topogram takes it. Cells have edges of 6 mm.

    Attributes:
        density: Attenuation relative to water, patient and table, shape (z, x, y).
        muscle: Share of each cell that is muscle, same shape.
        diameter_cm: Water-equivalent diameter of the body (AAPM report 220) of every slice of the map, shape (Z,).
    """

    density: FloatArray
    muscle: FloatArray
    diameter_cm: NDArray[np.float64]


def survey_body(tissue: TissueMap, table: FloatArray) -> Survey:
    """Look at every few voxels of a tissue map.

    Args:
        tissue: What lies in the scanner.
        table: CT number of each tissue code, shape (256,).
    """
    skip = [max(1, int(step // s)) for step, s in zip((3.0, 3.0, _STEP_MM), tissue.spacing, strict=True)]
    every = tuple(
        slice(n // 2 if n // 2 < size else 0, None, n) for n, size in zip(skip, tissue.first.shape, strict=True)
    )
    x, y, z = (n * s for n, s in zip(skip, tissue.spacing, strict=True))
    first, second, share = (np.ascontiguousarray(codes[every]) for codes in (tissue.first, tissue.second, tissue.share))
    thin = TissueMap(first, second, share, (x, y, z))
    density = 1 + thin.mix(table) / np.float32(1000)
    patient = table.copy()
    patient[list(OUTSIDE)] = HU_AIR
    area_mm2 = np.maximum(1 + thin.mix(patient) / 1000, 0).sum(axis=(0, 1), dtype=np.float64) * x * y
    diameters = 2 * np.sqrt(area_mm2 / np.pi) / 10
    at = (np.arange(tissue.first.shape[2]) + 0.5) * tissue.spacing[2]
    diameter = np.interp(at, (np.arange(len(diameters)) + 0.5) * z, diameters)
    weights = [pooling_weights(n, s, _STEP_MM) for n, s in zip(thin.first.shape, (x, y, z), strict=True)]
    return Survey(_pool(density, weights), _pool((thin.first == Tissue.MUSCLE).astype(np.float32), weights), diameter)


def _pool(volume: FloatArray, weights: list[Weights]) -> FloatArray:
    """Average (X, Y, Z) to cells (z, x, y)."""
    layers = weights[2] @ np.ascontiguousarray(volume.reshape(-1, volume.shape[2]).T)
    slices = layers.reshape(-1, *volume.shape[:2])
    return np.stack([spread(one, weights[0], weights[1]) for one in slices])


class NoiseField:
    """The noise of one scan, read in slabs of axial slices; the same whatever the slabs."""

    def __init__(
        self,
        survey: Survey,
        shape: tuple[int, int, int],
        spacing: Spacing,
        *,
        kv: str,
        noise_hu: float,
        grain_mm: float,
        iterative: float,
        modulation: float,
        starvation_cm: float,
        seed: int,
    ) -> None:
        """Set strength and texture.

        Args:
            survey: The body.
            shape: Voxels of the scan along x, y, z.
            spacing: Their size in mm.
            kv: Tube voltage, a key of :data:`~jdm_seg.physics.WATER_PER_CM`.
            noise_hu: Standard deviation in muscle: the median over the body's muscle.
            grain_mm: Standard deviation of the kernel's Gaussian.
            iterative: 0 for filtered back-projection, 1 for strongly iterative: coarse, blobby noise.
            modulation: Share of a longer way through the body that the tube current makes up for.
            starvation_cm: Water on a ray beyond which electronic noise outweighs the photons'.
            seed: Same seed, same noise.
        """
        self._shape, self._seed = shape, seed
        self._size = (fft.next_fast_len(shape[0]), fft.next_fast_len(shape[1], real=True))
        frequency_x = fft.fftfreq(self._size[0], spacing[0])[:, None]
        frequency_y = fft.rfftfreq(self._size[1], spacing[1])
        texture = _texture(np.hypot(frequency_x, frequency_y), grain_mm, iterative)
        shares = _sector_shares(np.degrees(np.arctan2(frequency_y, frequency_x)))
        once = np.full(frequency_y.size, 2.0)  # a real transform stores half of the plane
        once[0] = 1.0
        once[-1] = 1.0 if self._size[1] % 2 == 0 else 2.0
        power = texture**2 * once
        texture *= np.sqrt(self._size[0] * self._size[1] / power.sum())
        self._filters = (shares * texture).astype(np.float32)
        overlap = np.einsum("kxy,lxy,xy->kl", shares, shares, power / power.sum(), optimize=True)
        strength = _strength(survey, kv, modulation, starvation_cm)
        total = np.sqrt(np.einsum("kzxy,kl,lzxy->zxy", strength, overlap, strength, optimize=True))
        muscle = survey.muscle > 0.5
        reference = float(np.median(total[muscle if muscle.any() else survey.density > 0.3 * survey.density.max()]))
        scale = noise_hu / np.maximum(reference, 1e-6) * np.minimum(1, _STRONGEST * reference / np.maximum(total, 1e-6))
        self._strength = (strength * scale).astype(np.float32)
        cells = strength.shape[1:]
        self._z, self._x, self._y = (
            linear_weights(shape[axis], spacing[axis], n, _STEP_MM) for axis, n in zip((2, 0, 1), cells, strict=True)
        )
        # slices share detector rows: neighbours 3.3 mm apart in real low-dose scans of limbs correlate by about 0.25
        neighbour = 0.35 * np.exp(-spacing[2] / 3.3)
        self._along_z = np.array([neighbour, 1, neighbour], np.float32) / np.float32(
            np.hypot(1, np.sqrt(2) * neighbour)
        )

    def slices(self, z: slice) -> FloatArray:
        """Return the noise of axial slices, in HU, shape (slab, X, Y)."""
        white = np.stack([self._white(k) for k in range(z.start - 1, z.stop + 1)])
        before, here, after = self._along_z
        spectrum = fft.rfft2(before * white[:-2] + here * white[1:-1] + after * white[2:], workers=2)
        result = np.zeros((z.stop - z.start, *self._shape[:2]), np.float32)
        for sector, strength in zip(self._filters, self._strength, strict=True):
            grain = fft.irfft2(spectrum * sector, s=self._size, workers=2)[:, : self._shape[0], : self._shape[1]]
            for index in range(len(result)):
                result[index] += grain[index] * spread(blend(self._z, z.start + index, strength), self._x, self._y)
        return result

    def _white(self, z: int) -> FloatArray:
        generator = np.random.Generator(np.random.SFC64((self._seed, z + 1)))
        return generator.standard_normal(self._size, np.float32)


def _texture(frequency: NDArray[np.float64], grain_mm: float, iterative: float) -> NDArray[np.float64]:
    """Return the square root of the noise power by frequency (1/mm), not normalised.

    Filtered back-projection: |f| times the squared transfer function (Riederer, Pelc and Chesler, Phys Med Biol
    1978;23:446). Iterative reconstruction moves power to low frequencies; by how much is assumed.
    """
    width = grain_mm * (1 + 0.6 * iterative)
    transfer = np.exp(-2 * (np.pi * width * frequency) ** 2)
    root: NDArray[np.float64] = np.sqrt(frequency + _FLOOR_PER_MM + 0.05 * iterative) * transfer
    return root


def _sector_shares(angle_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much each sector contributes at a direction: linear between sectors, sum 1. Shape (sectors, ...)."""
    return np.stack([np.interp(angle_deg % 180, _SECTORS_DEG, one, period=180) for one in np.eye(len(_SECTORS_DEG))])


def _strength(survey: Survey, kv: str, modulation: float, starvation_cm: float) -> FloatArray:
    """Return the relative noise of the rays through each cell by sector, shape (sectors, z, x, y)."""
    projector = Projector(survey.density.shape[1:], _STEP_MM, _VIEWS)
    per_mm = WATER_PER_CM[kv] / 10
    depth = per_mm * projector.forward(np.maximum(survey.density, 0))
    longest = depth.max(axis=1, keepdims=True)
    starved = np.exp(np.minimum(depth - per_mm * 10 * starvation_cm, 20))
    variance = np.exp(depth - modulation * longest) * (1 + starved)
    shares = _sector_shares(np.degrees(projector.angles))
    crossing = [projector.back((variance * share[:, None, None]).astype(np.float32)) / share.sum() for share in shares]
    result: FloatArray = np.sqrt(np.maximum(np.stack(crossing), 1e-12)).astype(np.float32)
    return result
