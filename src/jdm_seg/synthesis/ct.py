"""Tissue and calcium to CT numbers, and a low-dose acquisition of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.physics import HU_AIR, HU_MAX, HU_PER_MG_HA, hu_per_mg_ha
from jdm_seg.synthesis.tissue import Tissue
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
HU_MIN = -1024

_FWHM_TO_SIGMA = 1 / 2.3548
_KV_SHARE = {"80": 0.15, "100": 0.35, "120": 0.40, "Sn100": 0.10}
"""How often each tube voltage is drawn (assumed: paediatric practice is mostly 70-100 kV)."""


@dataclass(frozen=True)
class CtAcquisition:
    """One scanner setting. Lengths in mm.

    Attributes:
        kv: Tube voltage, a key of :data:`~jdm_seg.physics.HU_PER_MG_HA`.
        psf_mm: Full width at half maximum of the blur along x, y, z.
        noise_hu: Standard deviation in muscle.
        grain_mm: Correlation length of the noise in the axial plane (smooth kernels are coarser).
        overshoot: Edge enhancement of sharp kernels, as a share of the edge.
        hu: CT number of each tissue before noise.
    """

    kv: str
    psf_mm: Spacing
    noise_hu: float
    grain_mm: float
    overshoot: float
    hu: dict[str, float]


def sample_ct(rng: np.random.Generator, spacing: Spacing, age: float) -> CtAcquisition:
    """Draw a scanner setting and the tissues' CT numbers.

    Soft tissue: textbook values at 120 kV. Spongy bone in children: 227 ± 50 HU (Spine 2024;49(3):214-219).
    Noise: 12 to 40 HU (assumed for low dose).
    """
    sharp = rng.random() < 0.3
    in_plane = rng.uniform(0.7, 1.1) if sharp else rng.uniform(1.0, 1.7)
    kv = str(rng.choice(list(_KV_SHARE), p=list(_KV_SHARE.values())))
    ratio = HU_PER_MG_HA[kv] / HU_PER_MG_HA["120"]
    red_marrow = age < 10
    hu = {
        Tissue.AIR: HU_AIR,
        Tissue.SKIN: rng.uniform(10, 70),
        Tissue.FAT: rng.uniform(-120, -85),
        Tissue.FASCIA: rng.uniform(-60, 30),
        Tissue.MUSCLE: rng.uniform(40, 70),
        Tissue.BLOOD: rng.uniform(30, 55) if rng.random() < 0.8 else rng.uniform(120, 300),
        Tissue.CORTEX: ratio * rng.uniform(700, 1700),
        Tissue.MARROW: rng.uniform(20, 120) if red_marrow else rng.uniform(-90, 40),
        Tissue.TRABECULA: ratio * float(np.clip(rng.normal(227, 60), 100, 400)),
        Tissue.CARTILAGE: rng.uniform(50, 110),
        Tissue.TABLE: rng.uniform(-800, -100),
    }
    return CtAcquisition(
        kv=kv,
        psf_mm=(in_plane, in_plane, max(in_plane, 0.5 * spacing[2])),
        noise_hu=float(rng.uniform(12, 40)),
        grain_mm=float(rng.uniform(0.3, 0.6) if sharp else rng.uniform(0.6, 1.4)),
        overshoot=float(rng.uniform(0.1, 0.35)) if sharp else 0.0,
        hu={Tissue(code).name: float(value) for code, value in hu.items()},
    )


def tissue_to_hu(tissue: NDArray[np.uint8], acquisition: CtAcquisition, rng: np.random.Generator) -> FloatArray:
    """Look up CT numbers, with the slow unevenness that real muscle, fat and spongy bone have.

    Args:
        tissue: Codes, shape (X, Y, Z).
        acquisition: The setting to use.
        rng: Draws the unevenness.

    Returns:
        Noise-free HU, shape (X, Y, Z).
    """
    table = np.full(256, HU_AIR, np.float32)
    spread = np.zeros(256, np.float32)
    for code in Tissue:
        if code.name in acquisition.hu:
            table[code] = acquisition.hu[code.name]
    spread[[Tissue.MUSCLE, Tissue.FAT, Tissue.MARROW]] = 8
    spread[[Tissue.TRABECULA, Tissue.CORTEX]] = 45
    uneven = ndimage.gaussian_filter(rng.standard_normal(tissue.shape, np.float32), 2.5)
    uneven /= max(float(uneven.std()), 1e-6)
    result: FloatArray = table[tissue] + spread[tissue] * uneven
    return result


def calcium_to_hu(calcium: FloatArray, acquisition: CtAcquisition, spacing: Spacing) -> FloatArray:
    """Return the CT numbers that calcium adds, blurred as the scanner blurs.

    Args:
        calcium: Mean mg HA / cm³ of each voxel, shape (X, Y, Z).
        acquisition: Gives tube voltage, blur and overshoot.
        spacing: Voxel size in mm.
    """
    return blur(calcium * np.float32(hu_per_mg_ha(acquisition.kv)), acquisition, spacing)


def blur(hu: FloatArray, acquisition: CtAcquisition, spacing: Spacing) -> FloatArray:
    """Apply the point spread function: a Gaussian, and for sharp kernels an unsharp mask on top."""
    sigma = [width * _FWHM_TO_SIGMA / s for width, s in zip(acquisition.psf_mm, spacing, strict=True)]
    blurred: FloatArray = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=3)
    if acquisition.overshoot:
        soft = ndimage.gaussian_filter(blurred, [1.5 * s for s in sigma[:2]] + [0], mode="nearest", truncate=3)
        blurred = blurred + np.float32(acquisition.overshoot) * (blurred - soft)
    return blurred


def add_noise(hu: FloatArray, acquisition: CtAcquisition, spacing: Spacing, rng: np.random.Generator) -> FloatArray:
    """Add noise of the asked standard deviation, correlated in the axial plane as reconstruction leaves it."""
    sigma = [acquisition.grain_mm / s for s in spacing[:2]] + [0.2]
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), sigma, mode="wrap", truncate=3)
    noise *= np.float32(acquisition.noise_hu / max(float(noise.std()), 1e-6))
    result: FloatArray = hu + noise
    return result


def quantise(hu: FloatArray) -> NDArray[np.int16]:
    """Clip to the 12-bit range and round, as a scanner stores it."""
    return np.clip(np.rint(hu), HU_MIN, HU_MAX).astype(np.int16)
