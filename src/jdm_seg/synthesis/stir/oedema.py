"""Oedema of juvenile dermatomyositis: patchy in muscle, linear along fascia, reticular in the subcutis.

Muscle, fascia and subcutis are affected in most, a third and half of children with active disease (whole-body STIR, Ann
Rheum Dis 2014;73(6)); the shapes are the authors' reading of published pictures, their scales are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from jdm_seg.synthesis.anatomy.tissue import OUTSIDE, Tissue
from jdm_seg.synthesis.coarse import SmoothNoise, blend, linear_weights, pooling_weights, spread
from jdm_seg.synthesis.stir.slices import Slices

FloatArray = NDArray[np.float32]

OEDEMA_FROM = 0.35
"""Share of a voxel's signal rise from which it is labelled as oedema."""

_RAGGED = 0.35
"""Share of fine noise in the outline of patches (assumed)."""
_FADE = 1.2
"""Standard deviations of the noise over which a patch fades out (assumed)."""
_SURFACE_MM = 12.0
_COARSE_MM = 6.0


@dataclass(frozen=True)
class Oedema:
    """How much of a scan is oedematous, and how it looks.

    Attributes:
        muscle: Share of the muscles that is affected.
        fascia: Share of the fascia.
        subcutis: Share of the subcutis.
        patch_mm: Width of the patches.
        symmetry: 0 for independent sides, 1 for mirror images.
        muscle_signal: Signal of oedematous muscle, relative to healthy muscle.
        fluid_signal: Signal along fascia and in the subcutis, relative to healthy muscle.
    """

    muscle: float
    fascia: float
    subcutis: float
    patch_mm: float
    symmetry: float
    muscle_signal: float
    fluid_signal: float


def sample_oedema(rng: np.random.Generator, muscle_signal: float, free_fluid_signal: float) -> Oedema:
    """Draw how much oedema a scan shows; 40 % show none, as after treatment (assumed).

    Args:
        rng: Draws.
        muscle_signal: Signal of oedematous muscle at this scan's times, relative to muscle.
        free_fluid_signal: The same of free fluid.
    """
    active = rng.random() > 0.4
    return Oedema(
        muscle=float(rng.uniform(0.03, 0.5)) if active and rng.random() < 0.85 else 0.0,
        fascia=float(rng.uniform(0.05, 0.6)) if active and rng.random() < 0.35 else 0.0,
        subcutis=float(rng.uniform(0.05, 0.5)) if active and rng.random() < 0.55 else 0.0,
        patch_mm=float(rng.uniform(25, 90)),
        symmetry=float(rng.uniform(0.3, 0.9)),
        muscle_signal=float(1 + (muscle_signal - 1) * rng.uniform(0.5, 1.2)),
        fluid_signal=float(free_fluid_signal * rng.uniform(0.35, 0.75)),
    )


def add_oedema(signal: FloatArray, slices: Slices, oedema: Oedema, rng: np.random.Generator) -> FloatArray:
    """Raise the signal where tissue is oedematous, in place.

    Args:
        signal: Relative to muscle, shape (X, Y, Z).
        slices: The body on the same grid.
        oedema: What to show.
        rng: Draws where.

    Returns:
        How far each voxel's signal went from healthy to oedematous, 0 to 1, shape (X, Y, Z).
    """
    amount = np.zeros(signal.shape, np.float32)
    for share, peak, shape, generator in (
        (oedema.muscle, oedema.muscle_signal, _in_muscle, rng.spawn(1)[0]),
        (oedema.fascia, oedema.fluid_signal, _along_fascia, rng.spawn(1)[0]),
        (oedema.subcutis, oedema.fluid_signal, _net_under_skin, rng.spawn(1)[0]),
    ):
        if share:
            wet = shape(slices, generator)
            wet *= _patches(slices, oedema, share, generator)
            signal += wet * np.maximum(peak - signal, 0)
            np.maximum(amount, wet, out=amount)
    return amount


def _patches(slices: Slices, oedema: Oedema, share: float, rng: np.random.Generator) -> FloatArray:
    """Return smooth patches that cover about ``share`` of the volume, 0 to 1, alike on both sides."""
    noise = SmoothNoise(rng, slices.shape, slices.spacing, oedema.patch_mm / 2).volume()
    noise *= np.float32(np.sqrt(1 - _RAGGED**2))
    noise += np.float32(_RAGGED) * SmoothNoise(rng, slices.shape, slices.spacing, 4.0).volume()
    noise += np.float32(oedema.symmetry) * noise[::-1]
    noise /= np.float32(np.hypot(1, oedema.symmetry))
    border = np.float32(special.ndtri(1 - share))
    return np.clip((noise - border) / _FADE + 0.5, 0, 1)


def _in_muscle(slices: Slices, rng: np.random.Generator) -> FloatArray:
    del rng  # its place is given
    return slices.share_of(Tissue.MUSCLE)


def _along_fascia(slices: Slices, rng: np.random.Generator) -> FloatArray:
    """Return 1 along fascia and a little beside it: fluid fills the plane between muscles."""
    del rng  # its place is given
    wide = ndimage.gaussian_filter(slices.share_of(Tissue.FASCIA), [1.0 / s for s in slices.spacing], truncate=2)
    wide = np.clip(2 * wide, 0, 1)
    wide *= 1 - slices.share_of(*OUTSIDE)
    return np.asarray(wide, np.float32)


def _net_under_skin(slices: Slices, rng: np.random.Generator) -> FloatArray:
    """Return the septa between fat lobules near the skin: where a noise of lobule size passes zero."""
    net = np.clip(1.6 - np.abs(SmoothNoise(rng, slices.shape, slices.spacing, 5.0).volume()) / 0.22, 0, 1)
    net *= slices.share_of(Tissue.FAT)
    # the outside, blurred over centimetres on coarse cells
    down = [pooling_weights(n, s, _COARSE_MM) for n, s in zip(slices.shape, slices.spacing, strict=True)]
    up = [
        linear_weights(n, s, w.shape[0], _COARSE_MM) for n, s, w in zip(slices.shape, slices.spacing, down, strict=True)
    ]
    cells = np.stack([spread(plane, down[1], down[2]) for plane in slices.share_of(*OUTSIDE)])
    cells = (down[0] @ cells.reshape(len(cells), -1)).reshape(-1, *cells.shape[1:])
    cells = ndimage.gaussian_filter(cells, _SURFACE_MM / _COARSE_MM, mode="nearest")
    for index in range(len(net)):
        near = spread(blend(up[0], index, cells), up[1], up[2])
        net[index] *= np.clip(5 * near - 0.3, 0, 1)
    return np.asarray(net, np.float32)
