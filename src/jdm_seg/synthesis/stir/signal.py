"""The inversion-recovery signal of tissues, relative to muscle and with its sign."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jdm_seg.physics import PROTON_DENSITY, T1_MS, T2_MS
from jdm_seg.synthesis.anatomy.tissue import Tissue

_SILENT = (
    *(Tissue.AIR, Tissue.GAS, Tissue.TABLE, Tissue.CLOTH, Tissue.PLASTIC, Tissue.METAL),
    *(Tissue.TOOTH, Tissue.STONE, Tissue.DENSE),
)
"""No protons whose signal lasts to the echo."""


def inversion_recovery(pd: float, t1: float, t2: float, *, ti: float, te: float, tr: float) -> float:
    """Return the magnitude signal of an inversion recovery spin echo, ideal inversion.

    S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2). All times in ms.

    Args:
        pd: Proton density, relative.
        t1: Longitudinal relaxation time.
        t2: Transverse relaxation time.
        ti: Inversion time.
        te: Echo time.
        tr: Repetition time.

    Source: Haacke et al., Magnetic Resonance Imaging, eq. 8.57.
    """
    return abs(_signed_signal(pd, t1, t2, ti=ti, te=te, tr=tr))


def _signed_signal(pd: float, t1: float, t2: float, *, ti: float, te: float, tr: float) -> float:
    return float(pd * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2))


def fat_null_ti(t1_fat: float, tr: float) -> float:
    """Return the inversion time in ms at which fat gives no signal: T1 ln(2 / (1 + exp(-TR/T1)))."""
    return float(t1_fat * np.log(2 / (1 + np.exp(-tr / t1_fat))))


def relative_signal(tissue: str, field_t: float, *, ti: float, te: float, tr: float) -> float:
    """Return the signal of a substance of :data:`~jdm_seg.physics.T1_MS` relative to muscle, with its sign.

    Args:
        tissue: Its name.
        field_t: Field strength in tesla.
        ti: Inversion time in ms.
        te: Echo time in ms.
        tr: Repetition time in ms.
    """
    column = 0 if field_t == 1.5 else 1
    value, muscle = (
        _signed_signal(PROTON_DENSITY.get(name, 1.0), T1_MS[name][column], T2_MS[name][column], ti=ti, te=te, tr=tr)
        for name in (tissue, "muscle")
    )
    return value / muscle


def tissue_signals(
    field_t: float, *, ti: float, te: float, tr: float, t1_fat: float, red_marrow: tuple[float, float] = (0.5, 0.5)
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the signal of every tissue relative to muscle, and its change per unit of lost inversion.

    Args:
        field_t: 1.5 or 3 T.
        ti: Inversion time in ms.
        te: Echo time in ms.
        tr: Repetition time in ms, less the echo train.
        t1_fat: T1 of fat in ms.
        red_marrow: Share of water in the marrow of shafts and in spongy bone.

    Returns:
        Two dictionaries by tissue name. Signals of muscle's sign are positive.
    """
    column = 0 if field_t == 1.5 else 1
    muscle = _signed_signal(1.0, T1_MS["muscle"][column], T2_MS["muscle"][column], ti=ti, te=te, tr=tr)

    def both(pd: float, t1: float, t2: float) -> NDArray[np.float64]:
        loss = pd * (np.exp(-ti / t1) - np.exp(-tr / t1)) * np.exp(-te / t2)
        return np.array([_signed_signal(pd, t1, t2, ti=ti, te=te, tr=tr), loss]) / muscle

    def of(name: str, share: float = 1.0) -> NDArray[np.float64]:
        return share * both(PROTON_DENSITY.get(name, 1.0), T1_MS[name][column], T2_MS[name][column])

    fat = both(1.0, t1_fat, T2_MS["fat"][column])
    marrow, spongy = (red * of("marrow_water") + (1 - red) * fat for red in red_marrow)
    tissues = {
        **dict.fromkeys(_SILENT, np.zeros(2)),
        Tissue.SKIN: of("skin", 0.9),
        Tissue.FAT: 0.95 * fat + 0.05 * of("muscle"),
        Tissue.VISCERAL_FAT: 0.9 * fat + 0.1 * of("muscle"),
        # collagen gives nothing; a little fluid and fat between its layers does (assumed)
        Tissue.FASCIA: 0.3 * of("muscle") + 0.2 * fat,
        Tissue.MUSCLE: of("muscle"),
        Tissue.BLOOD: of("blood"),
        Tissue.CORTEX: of("cortex"),
        Tissue.MARROW: marrow,
        Tissue.TRABECULA: 0.85 * spongy,
        Tissue.CARTILAGE: of("cartilage", 0.8),
        Tissue.TENDON: of("tendon", 0.7),
        Tissue.LUNG: of("organ", 0.12),
        Tissue.LIVER: of("liver"),
        Tissue.KIDNEY: of("kidney"),
        Tissue.ORGAN: of("organ"),
        Tissue.BOWEL: of("bowel", 0.8),
        Tissue.CONTRAST: of("bowel", 0.8),
        Tissue.FLUID: of("fluid"),
        Tissue.BRAIN: of("brain"),
        Tissue.CAST: of("cortex", 0.5),
    }
    values = {code.name: tissues[code] for code in Tissue}
    return {n: float(v[0]) for n, v in values.items()}, {n: float(v[1]) for n, v in values.items()}
