"""Constants of nature and of practice, each with where it comes from. Nothing here draws or decides.

``C``: computed from tube spectra and attenuation data (SpekPy 2.5.4, xraydb 4.5.8; energy-integrating detector,
hydroxyapatite displacing water in 20 cm of water), and within 3 % of the ratios of published Agatston thresholds.
"""

from __future__ import annotations

from itertools import pairwise

HU_PER_MG_HA: dict[str, float] = {
    "70": 2.26,
    "80": 1.96,
    "100": 1.62,
    "120": 1.42,
    "140": 1.28,
    "Sn100": 1.24,
    "Sn150": 0.89,
}
"""CT number added per mg hydroxyapatite in a cm³, by tube voltage (``Sn``: tin filter), in 20 cm of water. C."""

DEFAULT_KV = "120"
"""Assumed when a scan does not say; whoever assumes it says so."""

HU_MAX = 3071
"""Ceiling of 12-bit CT numbers; voxels at it are clipped and their mass is a lower bound."""

HU_AIR = -1000


def hu_per_mg_ha(kv: str | float | None) -> float:
    """Return the CT number added per mg HA / cm³ at a tube voltage, interpolated between the tabulated ones.

    Args:
        kv: Tube voltage in kV, or ``Sn100`` / ``Sn150`` for tin-filtered spectra; None means :data:`DEFAULT_KV`.

    Raises:
        ValueError: If the voltage is not a known name and not between 70 and 140 kV.
    """
    key = DEFAULT_KV if kv is None else str(kv).removesuffix(".0")
    if key in HU_PER_MG_HA:
        return HU_PER_MG_HA[key]
    plain = sorted((float(name), slope) for name, slope in HU_PER_MG_HA.items() if name.isdigit())
    try:
        voltage = float(key)
    except ValueError as error:
        raise ValueError(f"expected kv to be one of {sorted(HU_PER_MG_HA)} or a number, but got {kv!r}") from error
    if not plain[0][0] <= voltage <= plain[-1][0]:
        raise ValueError(f"expected kv to be between {plain[0][0]:g} and {plain[-1][0]:g}, but got {kv!r}")
    for (low, slope_low), (high, slope_high) in pairwise(plain):
        if low <= voltage <= high:
            share = (voltage - low) / (high - low)
            return slope_low + share * (slope_high - slope_low)
    raise AssertionError("the range was checked above")


T1_MS: dict[str, tuple[float, float]] = {"muscle": (856, 898), "blood": (1441, 1932), "marrow_water": (856, 898)}
"""T1 at 1.5 T and 3 T in ms. Source: SpinSight simulator tissue table."""

T2_MS: dict[str, tuple[float, float]] = {
    "muscle": (27, 29),
    "fat": (165, 130),
    "marrow_water": (46, 34),
    "blood": (290, 275),
}
"""T2 at 1.5 T and 3 T in ms. Source: SpinSight simulator tissue table."""

FAT_T1_MS: dict[float, tuple[float, float]] = {1.5: (205, 240), 3.0: (290, 370)}
"""Effective T1 of fat by field strength in ms. Real scans null fat at TI 140-165 ms at 1.5 T, which the tabulated
290 ms would contradict (null at 201 ms); the lower range follows from TI = T1 ln 2."""
