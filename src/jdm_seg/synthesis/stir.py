"""Tissue and calcium to short-tau inversion recovery (STIR) signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.physics import FAT_T1_MS, T1_MS, T2_MS
from jdm_seg.synthesis.calcinosis import Calcinosis
from jdm_seg.synthesis.tissue import Tissue
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
PHENOTYPES = ("void", "void_rim", "fluid")


@dataclass(frozen=True)
class StirAcquisition:
    """One scanner setting. Times in ms, signals relative to muscle = 1.

    Attributes:
        field_t: Field strength in tesla.
        ti, te, tr: Inversion, echo and repetition time.
        snr: Signal-to-noise ratio of muscle.
        bias: Strength of the receive field's slow change over the field of view.
        signal: Signal of each tissue relative to muscle.
        phenotypes: How each deposit shows: dark, dark with a bright rim, or bright fluid.
    """

    field_t: float
    ti: float
    te: float
    tr: float
    snr: float
    bias: float
    signal: dict[str, float]
    phenotypes: tuple[str, ...]


def inversion_recovery(pd: float, t1: float, t2: float, *, ti: float, te: float, tr: float) -> float:
    """Return the magnitude signal of an inversion recovery spin echo, ideal inversion.

    S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2). All times in ms.
    Source: Haacke et al., Magnetic Resonance Imaging, eq. 8.57.
    """
    return float(pd * abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2))


def fat_null_ti(t1_fat: float, tr: float) -> float:
    """Return the inversion time in ms at which fat gives no signal: T1 ln(2 / (1 + exp(-TR/T1)))."""
    return float(t1_fat * np.log(2 / (1 + np.exp(-tr / t1_fat))))


def sample_stir(rng: np.random.Generator, deposits: int) -> StirAcquisition:
    """Draw a setting. TI follows the drawn fat T1 to within 10 %: tables of other origin would leave fat bright."""
    field_t = 1.5 if rng.random() < 0.7 else 3.0
    column = 0 if field_t == 1.5 else 1
    tr, te = float(rng.uniform(3000, 7000)), float(rng.uniform(30, 90))
    t1_fat = float(rng.uniform(*FAT_T1_MS[field_t]))
    ti = fat_null_ti(t1_fat, tr) * float(rng.uniform(0.9, 1.1))

    def signal(pd: float, t1: float, t2: float) -> float:
        return inversion_recovery(pd, t1, t2, ti=ti, te=te, tr=tr)

    fat = signal(1.0, t1_fat, T2_MS["fat"][column])
    water = signal(1.0, T1_MS["marrow_water"][column], T2_MS["marrow_water"][column])
    muscle = signal(1.0, T1_MS["muscle"][column], T2_MS["muscle"][column])
    share = float(rng.uniform(0.3, 0.7))
    absolute = {
        Tissue.AIR: 0.0,
        Tissue.SKIN: signal(0.9, 900, 35),
        Tissue.FAT: fat,
        Tissue.FASCIA: 0.4 * muscle,
        Tissue.MUSCLE: muscle,
        # flowing blood leaves the slice before its echo: dark more often than bright
        Tissue.BLOOD: (0.15 if rng.random() < 0.7 else 1.0) * signal(1, T1_MS["blood"][column], T2_MS["blood"][column]),
        Tissue.CORTEX: 0.0,
        Tissue.MARROW: share * fat + (1 - share) * water,
        Tissue.TRABECULA: 0.8 * (share * fat + (1 - share) * water),
        Tissue.CARTILAGE: signal(0.8, 1100, 40),
        Tissue.TABLE: 0.0,
    }
    return StirAcquisition(
        field_t=field_t,
        ti=float(ti),
        te=te,
        tr=tr,
        snr=float(rng.uniform(8, 30)),
        bias=float(rng.uniform(0.05, 0.4)),
        signal={Tissue(code).name: value / muscle for code, value in absolute.items()},
        phenotypes=tuple(str(p) for p in rng.choice(PHENOTYPES, size=deposits, p=(0.55, 0.30, 0.15))),
    )


def tissue_to_stir(tissue: NDArray[np.uint8], acquisition: StirAcquisition, rng: np.random.Generator) -> FloatArray:
    """Look up signals relative to muscle, with patchy muscle oedema in some cases.

    Returns:
        Noise-free signal, shape of ``tissue``.
    """
    table = np.zeros(256, np.float32)
    for code in Tissue:
        table[code] = acquisition.signal.get(code.name, 0.0)
    signal = table[tissue]
    uneven = ndimage.gaussian_filter(rng.standard_normal(tissue.shape, np.float32), 4)
    uneven /= max(float(uneven.std()), 1e-6)
    signal *= 1 + 0.08 * uneven
    if rng.random() < 0.5:  # oedema: T1 and T2 rise, three times the signal of muscle at most
        patches = np.clip(ndimage.gaussian_filter(uneven, 4) * 6 - rng.uniform(0, 2), 0, 1)
        soft = (tissue == Tissue.MUSCLE) | (tissue == Tissue.FASCIA)
        signal += soft * patches * np.float32(rng.uniform(0.3, 2))
    return signal


def add_deposits(
    signal: FloatArray, calcinosis: Calcinosis, acquisition: StirAcquisition, spacing: Spacing
) -> FloatArray:
    """Let deposits show: apatite has neither enough protons nor T2 to give signal; its surroundings or fluid may.

    Args:
        signal: Relative to muscle, shape (X, Y, Z).
        calcinosis: Occupancy and instances on the same grid.
        acquisition: Gives each deposit's phenotype.
        spacing: Voxel size in mm.
    """
    result = signal * (1 - calcinosis.occupancy)
    index = np.array([0, *[PHENOTYPES.index(p) + 1 for p in acquisition.phenotypes]], np.uint8)
    kind = index[calcinosis.dominant]  # partial voxels too, or fluid would get a dark rim
    fluid = (kind == 3) * calcinosis.occupancy
    result += 4.8 * fluid  # milk of calcium, assumed T1 1500, T2 120, PD 0.8
    rimmed = ((kind == 2) * calcinosis.occupancy).astype(np.float32)
    if rimmed.any():
        halo = ndimage.gaussian_filter(rimmed, [2.5 / s for s in spacing]) * (1 - calcinosis.occupancy)
        result += 3.0 * np.clip(halo * 3, 0, 1) * (signal > 0)
    return result


def acquire(signal: FloatArray, acquisition: StirAcquisition, rng: np.random.Generator) -> NDArray[np.int16]:
    """Apply the receive field and Rician noise, and scale to scanner units.

    Returns:
        Non-negative int16, muscle near 200.
    """
    coarse = rng.standard_normal((4, 4, 4), np.float32)
    zoom = [n / 4 for n in signal.shape]
    field = np.exp(acquisition.bias * ndimage.zoom(coarse, zoom, order=1, grid_mode=True, mode="nearest"))
    field = ndimage.gaussian_filter(field, [n / 8 for n in signal.shape])
    sigma = 1 / acquisition.snr
    real = signal * field + sigma * rng.standard_normal(signal.shape, np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, np.float32)
    result: NDArray[np.int16] = np.clip(np.rint(200 * np.hypot(real, imaginary)), 0, 32767).astype(np.int16)
    return result
