"""Bodies and scanners held to some range: strata of a benchmark, or a data set for one kind of scanner.

What is not held is drawn as ever, with the same random numbers; so holding nothing changes no byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jdm_seg.physics import HU_PER_MG_HA
from jdm_seg.synthesis.anatomy.body import Body, sample_body
from jdm_seg.synthesis.ct.acquisition import CtAcquisition, sample_ct
from jdm_seg.synthesis.ct.blur import FWHM_TO_SIGMA
from jdm_seg.synthesis.ct.tissue import sample_hu
from jdm_seg.synthesis.deposits.priors import Deposit
from jdm_seg.synthesis.stir.acquisition import PHENOTYPES, StirAcquisition, sample_stir
from jdm_seg.volume import Spacing

Range = tuple[float, float]
_TRIES = 10_000
FIELDS_T = (1.5, 3.0)


@dataclass(frozen=True)
class Conditions:
    """What is held; None leaves it to its usual distribution. Ranges are drawn from uniformly.

    Attributes:
        age: Range of years.
        bmi: Range of factors on the body mass index that was drawn.
        kv: Tube voltages to choose from, keys of :data:`~jdm_seg.physics.HU_PER_MG_HA`.
        noise_hu: Range of the standard deviation of the noise in muscle.
        psf_mm: Range of the full width at half maximum of the blur in the plane.
        overshoot: Range of the gain of the unsharp mask: 0 soft, usual sharp kernels 0.7 to 1.5.
        field_t: Field strengths to choose from.
        snr: Range of the signal-to-noise ratio of muscle on STIR.
        phenotypes: How deposits may show on STIR, of :data:`~jdm_seg.synthesis.stir.acquisition.PHENOTYPES`.
    """

    age: Range | None = None
    bmi: Range | None = None
    kv: tuple[str, ...] | None = None
    noise_hu: Range | None = None
    psf_mm: Range | None = None
    overshoot: Range | None = None
    field_t: tuple[float, ...] | None = None
    snr: Range | None = None
    phenotypes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Reject what could not be drawn.

        Raises:
            ValueError: Naming the condition.
        """
        for name in ("age", "bmi", "noise_hu", "psf_mm", "overshoot", "snr"):
            held: Range | None = getattr(self, name)
            if held is not None and not 0 <= held[0] <= held[1]:
                raise ValueError(f"expected {name} to be a range from low to high, 0 or more, but got {held}")
        choices: tuple[tuple[str, Sequence[object]], ...] = (
            ("kv", tuple(HU_PER_MG_HA)),
            ("field_t", FIELDS_T),
            ("phenotypes", PHENOTYPES),
        )
        for name, known in choices:
            chosen: Sequence[object] | None = getattr(self, name)
            if chosen is not None and (not chosen or not set(chosen) <= set(known)):
                raise ValueError(f"expected {name} to be some of {tuple(known)}, but got {chosen}")


def draw_body(rng: np.random.Generator, conditions: Conditions) -> Body:
    """Draw a body as :func:`~jdm_seg.synthesis.anatomy.body.sample_body` does, of the ages and builds that are held.

    Raises:
        ValueError: If no body of such an age turns up.
    """
    for _ in range(_TRIES):
        body = sample_body(rng)
        if conditions.age is None or conditions.age[0] <= body.age <= conditions.age[1]:
            break
    else:
        raise ValueError(f"expected an age that is ever drawn, but got {conditions.age}")
    return body if conditions.bmi is None else replace(body, bmi=body.bmi * float(rng.uniform(*conditions.bmi)))


def draw_ct(rng: np.random.Generator, spacing: Spacing, age: float, conditions: Conditions) -> CtAcquisition:
    """Draw a setting as :func:`~jdm_seg.synthesis.ct.acquisition.sample_ct` does, with what is held in its range."""
    ct = sample_ct(rng, spacing, age)
    if conditions.kv is not None:
        kv = str(rng.choice(conditions.kv))
        ct = replace(ct, kv=kv, hu=sample_hu(rng, kv, age))
    if conditions.psf_mm is not None:
        in_plane = float(rng.uniform(*conditions.psf_mm))
        grain = max(in_plane * FWHM_TO_SIGMA * float(rng.uniform(0.6, 1.0)), 0.3 * spacing[0])  # as sample_ct
        ct = replace(ct, psf_mm=(in_plane, in_plane, ct.psf_mm[2]), grain_mm=grain)
    if conditions.overshoot is not None:
        ct = replace(ct, overshoot=float(rng.uniform(*conditions.overshoot)))
    if conditions.noise_hu is not None:
        ct = replace(ct, noise_hu=float(rng.uniform(*conditions.noise_hu)))
    return ct


def draw_stir(
    rng: np.random.Generator, deposits: Sequence[Deposit], age: float, conditions: Conditions, *, slice_axis: int
) -> StirAcquisition:
    """Draw a setting as :func:`~jdm_seg.synthesis.stir.acquisition.sample_stir` does, with what is held in its range.

    A deposit with a fluid-calcium level stays fluid whatever the phenotypes.

    Raises:
        ValueError: If the field strengths that are held are never drawn.
    """
    for _ in range(_TRIES):
        stir = sample_stir(rng, deposits, age, slice_axis=slice_axis)
        if conditions.field_t is None or stir.field_t in conditions.field_t:
            break
    else:
        raise ValueError(f"expected a field strength that is ever drawn, but got {conditions.field_t}")
    if conditions.snr is not None:
        stir = replace(stir, readout=replace(stir.readout, snr=float(rng.uniform(*conditions.snr))))
    if conditions.phenotypes is not None:
        drawn = [str(name) for name in rng.choice(conditions.phenotypes, size=len(deposits))]
        chosen = tuple("fluid" if d.fluid_level > 0 else name for d, name in zip(deposits, drawn, strict=True))
        stir = replace(stir, phenotypes=chosen)
    return stir
