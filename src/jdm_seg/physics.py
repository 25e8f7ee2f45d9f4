"""Constants of nature and of practice, each with where it comes from. Nothing here draws or decides.

``C``: computed from tube spectra and attenuation data (SpekPy 2.5.4, xraydb 4.5.8; energy-integrating detector,
hydroxyapatite displacing water in 20 cm of water), and within 3 % of the ratios of published Agatston thresholds.
"""

from __future__ import annotations

import math
from itertools import pairwise

HU_PER_MG_HA_BY_PATH: dict[str, tuple[float, float, float]] = {
    "70": (2.55, 2.26, 2.09),
    "80": (2.23, 1.96, 1.81),
    "100": (1.84, 1.62, 1.48),
    "120": (1.62, 1.42, 1.29),
    "140": (1.46, 1.28, 1.16),
    "Sn100": (1.28, 1.24, 1.20),
    "Sn150": (0.92, 0.89, 0.86),
}
"""CT number added per mg hydroxyapatite in a cm³, by tube voltage (``Sn``: tin) in :data:`PATHS_CM` of water. C."""

PATHS_CM = (10.0, 20.0, 30.0)
"""Water around the mineral: a limb, a child's trunk, an adult's trunk. Longer paths harden the beam."""

HU_PER_MG_HA: dict[str, float] = {kv: slopes[1] for kv, slopes in HU_PER_MG_HA_BY_PATH.items()}
"""The same in 20 cm of water, which is assumed where the size of the body is unknown."""

FAT_HU: dict[str, float] = {
    "70": -159.0,
    "80": -144.0,
    "100": -127.0,
    "120": -118.0,
    "140": -111.0,
    "Sn100": -109.0,
    "Sn150": -92.0,
}
"""CT number of pure fat (triolein, 0.92 g/cm³) in 20 cm of water, by tube voltage. C."""

WATER_PER_CM: dict[str, float] = {
    "70": 0.231,
    "80": 0.224,
    "100": 0.211,
    "120": 0.203,
    "140": 0.196,
    "Sn100": 0.193,
    "Sn150": 0.176,
}
"""Linear attenuation of water in 1/cm at an effective energy of 48, 52, 58, 63, 68, 70 and 88 keV.

NIST XCOM for the attenuation; the effective energies are assumed."""

DEFAULT_KV = "120"
"""Assumed when a scan does not say; whoever assumes it says so."""

HU_MAX = 3071
"""Ceiling of 12-bit CT numbers; voxels at it are clipped and their mass is a lower bound."""

HU_AIR = -1000


def hu_per_mg_ha(kv: str | float | None, path_cm: float = 20.0) -> float:
    """Return the CT number added per mg HA / cm³, interpolated between the tabulated voltages and paths.

    Args:
        kv: Tube voltage in kV, or ``Sn100`` / ``Sn150`` for tin-filtered spectra; None means :data:`DEFAULT_KV`.
        path_cm: Water-equivalent diameter of the body around the mineral in cm. Between and beyond the tabulated paths
            the slope follows a power of the path, held constant below 5 and above 50 cm (assumed).

    Raises:
        ValueError: If the voltage is not a known name and not between 70 and 140 kV.
    """
    key = DEFAULT_KV if kv is None else str(kv).removesuffix(".0")
    if key in HU_PER_MG_HA_BY_PATH:
        return _along_path(HU_PER_MG_HA_BY_PATH[key], path_cm)
    plain = sorted((float(name), slopes) for name, slopes in HU_PER_MG_HA_BY_PATH.items() if name.isdigit())
    try:
        voltage = float(key)
    except ValueError as error:
        raise ValueError(f"expected kv to be one of {sorted(HU_PER_MG_HA)} or a number, but got {kv!r}") from error
    if not plain[0][0] <= voltage <= plain[-1][0]:
        raise ValueError(f"expected kv to be between {plain[0][0]:g} and {plain[-1][0]:g}, but got {kv!r}")
    for (low, slopes_low), (high, slopes_high) in pairwise(plain):
        if low <= voltage <= high:
            share = (voltage - low) / (high - low)
            return (1 - share) * _along_path(slopes_low, path_cm) + share * _along_path(slopes_high, path_cm)
    raise AssertionError("the range was checked above")


def _along_path(slopes: tuple[float, float, float], path_cm: float) -> float:
    """Interpolate a slope tabulated at :data:`PATHS_CM` linearly in the logarithms of path and slope."""
    path = min(max(path_cm, 5.0), 50.0)
    first = 0 if path <= PATHS_CM[1] else 1
    near, far = PATHS_CM[first : first + 2]
    if path == near:
        return slopes[first]
    share = math.log(path / near) / math.log(far / near)
    return float(slopes[first] * (slopes[first + 1] / slopes[first]) ** share)


PROTON_DENSITY: dict[str, float] = {"cortex": 0.05, "milk_of_calcium": 0.8}
"""Relative to water, 1 where a tissue is not named. Cortex: SpinSight simulator; milk of calcium: assumed."""

T1_MS: dict[str, tuple[float, float]] = {
    "muscle": (856, 898),
    "blood": (1441, 1932),
    "marrow_water": (856, 898),
    "cortex": (1000, 1000),
    "liver": (586, 809),
    "organ": (1057, 1328),
    "kidney": (1189, 1344),
    "brain": (745, 993),
    "fluid": (3000, 3000),
    "bowel": (1500, 1700),
    "skin": (900, 950),
    "cartilage": (1060, 1240),
    "tendon": (600, 700),
    "oedema": (1100, 1100),
    "milk_of_calcium": (1500, 1500),
}
"""T1 at 1.5 T and 3 T in ms.

SpinSight simulator tissue table for muscle, blood, marrow water, cortex, liver, organ (spleen), kidney (mean of cortex
and medulla) and brain (spinal cord). Assumed: fluid, bowel, skin, cartilage, tendon, oedema, milk of calcium."""

T2_MS: dict[str, tuple[float, float]] = {
    "muscle": (27, 29),
    "fat": (165, 130),
    "marrow_water": (46, 34),
    "blood": (290, 275),
    "cortex": (3, 1),
    "liver": (46, 34),
    "organ": (79, 61),
    "kidney": (86, 78),
    "brain": (74, 78),
    "fluid": (750, 750),
    "bowel": (80, 70),
    "skin": (35, 33),
    "cartilage": (40, 36),
    "tendon": (5, 4),
    "oedema": (50, 50),
    "milk_of_calcium": (120, 120),
}
"""T2 at 1.5 T and 3 T in ms. Sources as for :data:`T1_MS`; fat: SpinSight."""

FAT_T1_MS: dict[float, tuple[float, float]] = {1.5: (205, 240), 3.0: (290, 370)}
"""Effective T1 of fat by field strength in ms. Real scans null fat at TI 140-165 ms at 1.5 T, which the tabulated
290 ms would contradict (null at 201 ms); the lower range follows from TI = T1 ln 2."""
