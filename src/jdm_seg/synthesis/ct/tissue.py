"""CT numbers of tissues and of what lies on, in and around a patient.

Soft tissue: textbook values (assumed ranges). Spongy bone in children: 227 ± 50 HU, falling from 2 to 10 years and
rising again (Spine 2024;49(3):214-219). Fat and minerals follow the tube voltage by the tables of
:mod:`jdm_seg.physics`; iodine and metal, for which there is no such table, by a power of hydroxyapatite's (assumed).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jdm_seg.physics import FAT_HU, HU_AIR, HU_PER_MG_HA, hu_per_mg_ha
from jdm_seg.synthesis.anatomy.tissue import Tissue

FloatArray = NDArray[np.float32]

_MINERAL = (Tissue.CORTEX, Tissue.TRABECULA, Tissue.TOOTH, Tissue.STONE, Tissue.CAST, Tissue.CONTRAST, Tissue.DENSE)
"""Tissues whose CT number changes with the length of water around them, as calcium's does."""
_MATRIX_HU = 40.0
"""What of a mineral tissue's CT number does not come from mineral."""
_IODINE_POWER = 1.5
"""Iodine gains more at low voltage than calcium: 1.6 times from 120 to 80 kV (assumed; published 1.6 to 1.7)."""
_SMOOTH_HU = {
    Tissue.MUSCLE: 5,
    Tissue.FAT: 6,
    Tissue.VISCERAL_FAT: 9,
    Tissue.ORGAN: 6,
    Tissue.LIVER: 4,
    Tissue.BOWEL: 12,
    Tissue.MARROW: 12,
    Tissue.TRABECULA: 25,
    Tissue.LUNG: 25,
    Tissue.CONTRAST: 40,
    Tissue.CLOTH: 60,
    Tissue.CAST: 60,
}
"""Standard deviation of a tissue's slow unevenness in HU (assumed)."""
_FINE_HU = {
    Tissue.TRABECULA: 60,
    Tissue.CORTEX: 60,
    Tissue.LUNG: 110,
    Tissue.BOWEL: 20,
    Tissue.CLOTH: 120,
    Tissue.STONE: 60,
}
"""Standard deviation of a tissue's grain from voxel to voxel in HU before blur (assumed)."""


def sample_hu(rng: np.random.Generator, kv: str, age: float) -> dict[str, float]:
    """Draw the CT number of every tissue in 20 cm of water.

    Args:
        rng: Draws.
        kv: Tube voltage, a key of :data:`~jdm_seg.physics.HU_PER_MG_HA`.
        age: In years.

    Returns:
        HU by name of :class:`~jdm_seg.synthesis.anatomy.tissue.Tissue`.
    """
    mineral = HU_PER_MG_HA[kv] / HU_PER_MG_HA["120"]
    iodine = mineral**_IODINE_POWER
    # fat tissue is four fifths fat or more, the rest is water and connective tissue (assumed)
    fat = FAT_HU[kv] * rng.uniform(0.78, 1.0)
    enhanced = bool(rng.random() < 0.15)
    hu = {
        Tissue.AIR: HU_AIR,
        Tissue.SKIN: rng.uniform(10, 70),
        Tissue.FAT: fat,
        Tissue.VISCERAL_FAT: fat * rng.uniform(0.85, 1.0),
        Tissue.FASCIA: rng.uniform(0.7 * fat, 30),
        Tissue.MUSCLE: rng.uniform(42, 68),
        Tissue.TENDON: rng.uniform(70, 120),
        Tissue.CARTILAGE: rng.uniform(60, 120),
        Tissue.CORTEX: mineral * rng.uniform(800, 1700),
        Tissue.MARROW: rng.uniform(20, 110) if age < 10 else rng.uniform(0.9 * fat, 40),
        Tissue.TRABECULA: mineral * _trabecular_hu(rng, age),
        Tissue.TOOTH: mineral * rng.uniform(1500, 2700),
        Tissue.STONE: mineral * rng.uniform(180, 900),
        Tissue.DENSE: mineral * 300,
        Tissue.LUNG: rng.uniform(-900, -720),
        Tissue.GAS: rng.uniform(-1000, -940),
        Tissue.BOWEL: rng.uniform(0, 55),
        Tissue.FLUID: rng.uniform(-5, 20),
        Tissue.BRAIN: rng.uniform(28, 40),
        Tissue.CONTRAST: iodine * rng.uniform(120, 700),
        Tissue.METAL: mineral**2 * rng.choice([rng.uniform(4000, 9000), rng.uniform(10000, 22000)]),
        Tissue.PLASTIC: rng.uniform(-100, 500),
        Tissue.CLOTH: rng.uniform(-960, -700),
        Tissue.CAST: rng.choice([rng.uniform(-400, -100), mineral * rng.uniform(200, 900)]),
        Tissue.TABLE: rng.uniform(-800, -150),
    }
    gain = iodine if enhanced else 0.0
    hu[Tissue.BLOOD] = rng.uniform(32, 52) + gain * rng.uniform(80, 260)
    hu[Tissue.KIDNEY] = rng.uniform(25, 38) + gain * rng.uniform(80, 180)
    hu[Tissue.LIVER] = rng.uniform(48, 66) + gain * rng.uniform(20, 60)
    hu[Tissue.ORGAN] = rng.uniform(35, 58) + gain * rng.uniform(20, 70)
    return {code.name: float(hu[code]) for code in Tissue}


def _trabecular_hu(rng: np.random.Generator, age: float) -> float:
    """Draw spongy bone at 120 kV: the published mean and spread in childhood, falling in adults (assumed)."""
    mean = float(np.interp(age, [2, 10, 17, 25, 80], [250, 205, 235, 230, 110]))
    return float(np.clip(rng.normal(mean, 45), 90, 400))


@lru_cache(maxsize=64)
def _mineral_codes() -> NDArray[np.intp]:
    return np.array([int(code) for code in _MINERAL], np.intp)


def table_at(hu: dict[str, float], kv: str, diameter_cm: float) -> FloatArray:
    """Return the CT number of every tissue code in a body of a water-equivalent diameter.

    Args:
        hu: CT numbers in 20 cm of water, by tissue name; what is not named is air.
        kv: Tube voltage.
        diameter_cm: Size of the body.

    Returns:
        Shape (256,), float32.
    """
    table = np.full(256, HU_AIR, np.float32)
    for code in Tissue:
        if code.name in hu:
            table[code] = hu[code.name]
    ratio = hu_per_mg_ha(kv, diameter_cm) / HU_PER_MG_HA[kv]
    mineral = _mineral_codes()
    table[mineral] += np.maximum(table[mineral] - _MATRIX_HU, 0) * np.float32(ratio - 1)
    return table


def unevenness_of(strength: float) -> tuple[FloatArray, FloatArray]:
    """Return the slow and the fine unevenness of every tissue code in HU, shape (256,) each."""
    smooth, fine = np.zeros(256, np.float32), np.zeros(256, np.float32)
    for table, known in ((smooth, _SMOOTH_HU), (fine, _FINE_HU)):
        for code, spread in known.items():
            table[code] = strength * spread
    return smooth, fine
