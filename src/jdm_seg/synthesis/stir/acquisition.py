"""Tissue and calcium to short-tau inversion recovery (STIR) signal, and an acquisition of it.

Signals are relative to muscle and keep their sign until the magnitude is taken: near the null of fat, water lies on one
side and residual fat on either, and they add up in a voxel before their size is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.physics import FAT_T1_MS
from jdm_seg.synthesis.anatomy.tissue import Tissue, TissueMap
from jdm_seg.synthesis.coarse import SmoothNoise
from jdm_seg.synthesis.deposits.calcinosis import Calcinosis, Deposit
from jdm_seg.synthesis.stir.oedema import OEDEMA_FROM, Oedema, add_oedema, sample_oedema
from jdm_seg.synthesis.stir.scan import Readout, read_out, sample_readout
from jdm_seg.synthesis.stir.signal import fat_null_ti, relative_signal, tissue_signals
from jdm_seg.synthesis.stir.slices import Slices
from jdm_seg.volume import Spacing

FloatArray = NDArray[np.float32]
PHENOTYPES = ("void", "void_rim", "fluid")
_RIM_MM = 2.5
_FLOW_VOID = np.float32(0.08)
"""What is left of the signal of fast blood: it leaves the slice before its echo (assumed)."""
_SLOW_FLOW_MM, _TEXTURE_MM, _LOSS_MM, _SHADING_MM = 25.0, 7.0, 100.0, 110.0
"""Half of the distance over which blood flow, tissue texture, inversion and shading change (assumed)."""


@dataclass(frozen=True)
class StirAcquisition:
    """One scanner setting. Times in ms, signals relative to muscle = 1.

    Attributes:
        field_t: Field strength in tesla.
        ti: Inversion time.
        te: Effective echo time.
        tr: Time from the last echo of a train to the next inversion: repetition time less the echo train.
        t1_fat: T1 of this patient's fat.
        signal: Signal of each tissue; negative where it has recovered past zero.
        lost: Change of that signal for each unit of inversion that is lost.
        phenotypes: How each deposit shows: dark, dark with a bright rim, or bright fluid.
        fluid: Signal of milk of calcium and of the liquid above a fluid-calcium level.
        rim: Signal of an inflamed rim.
        oedema: Oedema of muscle, fascia and subcutis.
        inversion_loss: Largest loss of inversion over the field of view, which lets fat shine up.
        shading: Strength of dielectric shading.
        flow_void: Share of the vessels' length that is dark from flow.
        uneven: Spread of the tissues' own unevenness.
        slice_gap: Gap between slices as a share of their distance; used where the map is finer than the slices.
        cross_talk: Share of its signal that each slice takes from either neighbour.
        readout: How signal becomes an image.
    """

    field_t: float
    ti: float
    te: float
    tr: float
    t1_fat: float
    signal: dict[str, float]
    lost: dict[str, float]
    phenotypes: tuple[str, ...]
    fluid: float
    rim: float
    oedema: Oedema
    inversion_loss: float
    shading: float
    flow_void: float
    uneven: float
    slice_gap: float
    cross_talk: float
    readout: Readout


def sample_stir(
    rng: np.random.Generator, deposits: Sequence[Deposit], age: float, *, slice_axis: int = 1
) -> StirAcquisition:
    """Draw a setting. TI follows the drawn fat T1 to within 10 %: tables of other origin would leave fat bright.

    Args:
        rng: Draws.
        deposits: Each is given a phenotype; one with a fluid-calcium level is fluid.
        age: In years: marrow turns from red to fatty.
        slice_axis: Axis across the slices: 1 for coronal, 2 for axial, 0 for sagittal.
    """
    field_t = 1.5 if rng.random() < 0.7 else 3.0
    train = float(rng.uniform(60, 250))
    tr, te = float(rng.uniform(3000, 7000)) - train, float(rng.uniform(30, 90))
    t1_fat = float(rng.uniform(*FAT_T1_MS[field_t]))
    ti = fat_null_ti(t1_fat, tr) * float(rng.uniform(0.9, 1.1))
    red = (float(rng.uniform(0.35, 0.6)) if age < 10 else float(rng.uniform(0.1, 0.35)), float(rng.uniform(0.3, 0.65)))
    signal, lost = tissue_signals(field_t, ti=ti, te=te, tr=tr, t1_fat=t1_fat, red_marrow=red)
    drawn = [str(p) for p in rng.choice(PHENOTYPES, size=len(deposits), p=(0.55, 0.30, 0.15))]
    return StirAcquisition(
        field_t=field_t,
        ti=float(ti),
        te=te,
        tr=tr,
        t1_fat=t1_fat,
        signal=signal,
        lost=lost,
        phenotypes=tuple("fluid" if d.fluid_level > 0 else p for d, p in zip(deposits, drawn, strict=True)),
        fluid=float(relative_signal("milk_of_calcium", field_t, ti=ti, te=te, tr=tr) * rng.uniform(0.8, 1.2)),
        rim=float(relative_signal("oedema", field_t, ti=ti, te=te, tr=tr) * rng.uniform(1.0, 2.0)),
        oedema=sample_oedema(
            rng,
            relative_signal("oedema", field_t, ti=ti, te=te, tr=tr),
            relative_signal("fluid", field_t, ti=ti, te=te, tr=tr),
        ),
        inversion_loss=float(rng.uniform(0, 0.12) if field_t == 1.5 else rng.uniform(0.03, 0.25)),
        shading=float(rng.uniform(0, 0.05) if field_t == 1.5 else rng.uniform(0.05, 0.3)),
        flow_void=float(rng.uniform(0.4, 1.0)),
        uneven=float(rng.uniform(0.04, 0.12)),
        slice_gap=float(rng.uniform(0, 0.2)),
        cross_talk=float(rng.uniform(0, 0.08)),
        readout=sample_readout(rng, slice_axis),
    )


def acquire_stir(
    tissue: TissueMap,
    calcinosis: Calcinosis | None,
    acquisition: StirAcquisition,
    rng: np.random.Generator,
    *,
    split: int = 1,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Scan a body.

    Args:
        tissue: The body, shape (X, Y, Z), with ``split`` layers for every slice along ``readout.slice_axis``.
        calcinosis: Deposits on the scan's grid; None without any.
        acquisition: The setting.
        rng: Draws oedema, unevenness, receive fields and noise.
        split: Layers of the tissue map that make one slice; the gap between slices is taken out of them.

    Returns:
        The scan (non-negative int16, muscle near ``readout.scale``) and the oedema in it (uint8: 1 = oedema), on the
        scan's grid.

    Raises:
        ValueError: If ``split`` does not divide the layers, or the deposits lie on another grid.
    """
    slices = Slices(tissue, acquisition.readout.slice_axis, split, acquisition.slice_gap)
    for_tissue, for_readout = rng.spawn(2)
    signal, amount = body_signal(slices, acquisition, for_tissue)
    if calcinosis is not None:
        if calcinosis.occupancy.shape != signal.shape:
            raise ValueError(f"expected deposits of shape {signal.shape}, but got {calcinosis.occupancy.shape}")
        signal = add_deposits(signal, calcinosis, acquisition, slices.spacing)
        amount *= 1 - calcinosis.occupancy
    if acquisition.cross_talk:
        kernel = [acquisition.cross_talk, 1 - 2 * acquisition.cross_talk, acquisition.cross_talk]
        signal = ndimage.correlate1d(signal, kernel, axis=acquisition.readout.slice_axis, mode="nearest")
    image = read_out(signal, slices.spacing, acquisition.readout, for_readout)
    return image, (amount >= OEDEMA_FROM).astype(np.uint8)


def body_signal(
    slices: Slices, acquisition: StirAcquisition, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return the signal of a body without deposits, relative to muscle and with its sign, and the oedema in it.

    Fast blood is dark, oedema bright; inversion that is lost in places lets fat shine up; dielectric shading darkens.

    Args:
        slices: The body.
        acquisition: The setting.
        rng: Draws where all this is.

    Returns:
        The signal, and how far each voxel went from healthy to oedematous (0 to 1), on the scan's grid.
    """
    for_blood, for_oedema, for_loss, for_shading, for_texture = rng.spawn(5)
    still = {name: value for name, value in acquisition.signal.items() if name != Tissue.BLOOD.name}
    signal = slices.mean_of(still)
    signal += acquisition.signal[Tissue.BLOOD.name] * _flowing(slices, acquisition.flow_void, for_blood)
    amount = add_oedema(signal, slices, acquisition.oedema, for_oedema)

    def field(generator: np.random.Generator, step_mm: float) -> FloatArray:
        return SmoothNoise(generator, slices.shape, slices.spacing, step_mm).volume()

    if acquisition.inversion_loss:
        loss = acquisition.inversion_loss / (1 + np.exp(-2 * field(for_loss, _LOSS_MM)))
        signal += loss * slices.mean_of(acquisition.lost)
    if acquisition.shading:
        signal *= 1 - np.float32(acquisition.shading) * np.clip(field(for_shading, _SHADING_MM), 0, 2)
    if acquisition.uneven:
        signal *= 1 + np.float32(acquisition.uneven) * field(for_texture, _TEXTURE_MM)
    return signal, amount


def _flowing(slices: Slices, flow_void: float, rng: np.random.Generator) -> FloatArray:
    """Return the share of each voxel that is blood, weighed with what flow leaves of its signal."""
    share = slices.share_of(Tissue.BLOOD)
    where = np.flatnonzero(share)
    if where.size and flow_void:
        field = SmoothNoise(rng, slices.shape, slices.spacing, _SLOW_FLOW_MM).volume().ravel()[where]
        slow = np.clip((field - np.quantile(field, flow_void)) / 0.4 + 0.5, 0, 1)
        share.reshape(-1)[where] *= _FLOW_VOID + (1 - _FLOW_VOID) * slow
    return share


def add_deposits(
    signal: FloatArray, calcinosis: Calcinosis, acquisition: StirAcquisition, spacing: Spacing
) -> FloatArray:
    """Let deposits show: apatite has neither enough protons nor T2 to give signal; its surroundings or fluid may.

    A void takes the signal of its share of a voxel away: in nulled fat it is as invisible as in a scanner. Where a
    deposit has a fluid-calcium level, the liquid is bright and the sediment below it dark.

    Args:
        signal: Relative to muscle, shape (X, Y, Z).
        calcinosis: Occupancy and instances on the same grid.
        acquisition: Gives each deposit's phenotype.
        spacing: Voxel size in mm.

    Returns:
        Signal with the deposits, same shape.

    Raises:
        ValueError: If the acquisition was drawn for another number of deposits.
    """
    if len(acquisition.phenotypes) != len(calcinosis.deposits):
        raise ValueError(
            f"expected a phenotype for each of {len(calcinosis.deposits)} deposits, "
            f"but got {len(acquisition.phenotypes)}"
        )
    result = signal * (1 - calcinosis.occupancy)
    levels = np.array([False, *[d.fluid_level > 0 for d in calcinosis.deposits]])
    index = np.array([0, *[PHENOTYPES.index(p) + 1 for p in acquisition.phenotypes]], np.uint8)
    kind = index[calcinosis.dominant]  # partial voxels too, or fluid would get a dark rim
    bright = (kind == 3) * calcinosis.occupancy
    if calcinosis.fluid is not None:
        bright = np.where(levels[calcinosis.dominant], (kind == 3) * calcinosis.fluid, bright)
    result += np.float32(acquisition.fluid) * bright
    rimmed = ((kind == 2) * calcinosis.occupancy).astype(np.float32)
    if rimmed.any():
        halo = ndimage.gaussian_filter(rimmed, [_RIM_MM / s for s in spacing]) * (1 - calcinosis.occupancy)
        result += np.float32(acquisition.rim) * np.clip(halo * 3, 0, 1) * (np.abs(signal) > 1e-3)
    return result
