"""One synthetic case: everything that is drawn for it, and the deterministic way from there to a scan with its truth.

A :class:`Recipe` is plain values and travels in a case's record, so :func:`replay` makes the same bytes again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import cattrs
import numpy as np
from numpy.typing import NDArray

from jdm_seg.cases import Modality
from jdm_seg.errors import InputError
from jdm_seg.synthesis.anatomy.scene import RenderedScene, Scene, render_scene, sample_scene
from jdm_seg.synthesis.anatomy.tissue import Tissue
from jdm_seg.synthesis.conditions import Conditions, Range, draw_body, draw_ct, draw_stir
from jdm_seg.synthesis.ct.acquisition import CtAcquisition, acquire_ct
from jdm_seg.synthesis.deposits.calcinosis import LABEL_RULE, Calcinosis, render_deposits, sample_deposits
from jdm_seg.synthesis.deposits.lookalikes import AMBIGUOUS, LookAlike, sample_lookalikes
from jdm_seg.synthesis.deposits.overlay import render_lookalike
from jdm_seg.synthesis.deposits.priors import Deposit, Priors
from jdm_seg.synthesis.stir.acquisition import StirAcquisition, acquire_stir
from jdm_seg.synthesis.visibility import seen_on_ct, seen_on_stir
from jdm_seg.volume import Spacing


@dataclass(frozen=True)
class Preset:
    """What kind of cases are made.

    Attributes:
        view: One of :data:`~jdm_seg.synthesis.anatomy.scene.VIEWS`.
        extent_mm: Range of the field of view along x, y, z; None fits the whole body.
        spacing: Voxel sizes in mm to draw from; the largest is the slice thickness.
        negatives: Share of cases without a deposit.
        lookalikes: Mean number of look-alikes in a case.
        priors: How deposits are drawn.
        conditions: What is held of body and scanner.
        least_body: Share of the voxels that the body fills at least; where it does not, another view is drawn.
    """

    view: str
    extent_mm: tuple[Range, Range, Range] | None
    spacing: tuple[Spacing, ...]
    negatives: float = 0.1
    lookalikes: float = 1.5
    priors: Priors = field(default_factory=Priors)
    conditions: Conditions = field(default_factory=Conditions)
    least_body: float = 0.02  # a small field of view may fall between the legs


_VIEWS = 20
_LIMB = ((180.0, 260.0), (150.0, 220.0), (120.0, 260.0))
_TRUNK = ((300.0, 440.0), (240.0, 320.0), (180.0, 360.0))
_SMOKE = ((130.0, 160.0), (130.0, 160.0), (100.0, 125.0))
_CT_SPACING = ((0.98, 0.98, 1.0), (0.98, 0.98, 1.5), (0.8, 0.8, 2.0), (0.98, 0.98, 3.0), (1.1, 1.1, 5.0))
_STIR_LIMB = ((260.0, 360.0), (130.0, 200.0), (220.0, 340.0))
_STIR_SPACING = ((1.25, 5.0, 1.25), (1.4, 6.0, 1.4), (1.6, 4.5, 1.6), (1.2, 7.0, 1.2))
_STIR_AXIAL = ((0.9, 0.9, 5.0), (1.2, 1.2, 6.0))
_DENSE = Priors(count_mean=25.0, count_dispersion=4.0)
"""Far more than anyone has: for training, where a scan with one deposit teaches little."""

PRESETS: dict[tuple[str, str], Preset] = {
    ("ct", "smoke"): Preset("limb", _SMOKE, ((1.5, 1.5, 1.5), (1.5, 1.5, 2.0)), lookalikes=1.0),
    ("ct", "limb"): Preset("limb", _LIMB, _CT_SPACING),
    ("ct", "trunk"): Preset("trunk", _TRUNK, _CT_SPACING),
    ("ct", "whole"): Preset("whole", None, ((1.5, 1.5, 1.5),), priors=Priors(count_mean=15.0), lookalikes=4.0),
    ("ct", "benchmark"): Preset("limb", _LIMB, ((0.98, 0.98, 1.5), (0.98, 0.98, 3.0)), 0.2),
    ("stir", "smoke"): Preset("limb", _SMOKE, ((1.5, 5.0, 1.5), (1.5, 6.0, 1.5)), lookalikes=1.0),
    ("stir", "limb"): Preset("limb", _STIR_LIMB, _STIR_SPACING + _STIR_AXIAL),
    ("stir", "limb-dense"): Preset(
        "limb",
        _STIR_LIMB,
        _STIR_SPACING + _STIR_AXIAL,
        priors=_DENSE,
        least_body=0.3,
    ),
    # for deposits to be inserted on the fly, other ones every time
    ("stir", "limb-clear"): Preset("limb", _STIR_LIMB, _STIR_SPACING + _STIR_AXIAL, 1.0, least_body=0.2),
    ("stir", "trunk"): Preset("trunk", ((340.0, 440.0), (160.0, 220.0), (280.0, 420.0)), _STIR_SPACING),
    ("stir", "whole"): Preset("whole", None, _STIR_SPACING[:3], priors=Priors(count_mean=15.0), lookalikes=4.0),
    ("stir", "benchmark"): Preset("limb", ((260.0, 340.0), (130.0, 180.0), (220.0, 300.0)), _STIR_SPACING[:2], 0.2),
}
"""Presets by modality and name. Sizes and voxel sizes: what is usual in practice, assumed."""


def preset_of(modality: Modality, name: str) -> Preset:
    """Return a preset by modality and name.

    Raises:
        InputError: Naming those that exist.
    """
    if (modality, name) not in PRESETS:
        known = ", ".join(n for m, n in PRESETS if m == modality)
        raise InputError("preset", expected=f"one of {known} for {modality}", found=repr(name), remedy="choose one")
    return PRESETS[modality, name]


@dataclass(frozen=True)
class Recipe:
    """Everything drawn for one procedural case.

    Attributes:
        modality: ``ct`` or ``stir``.
        spacing: Voxel size in mm.
        shape: Voxels along x, y, z; None fits the whole body.
        scene: Body, surroundings and field of view.
        deposits: Calcinosis.
        lookalikes: What resembles it and is not labelled.
        ct, stir: The acquisition, of the one modality.
        seed: Draws noise and unevenness of the acquisition.
    """

    modality: Modality
    spacing: Spacing
    shape: tuple[int, int, int] | None
    scene: Scene
    deposits: tuple[Deposit, ...]
    lookalikes: tuple[LookAlike, ...]
    ct: CtAcquisition | None
    stir: StirAcquisition | None
    seed: int


@dataclass(frozen=True)
class SyntheticCase:
    """A scan with its truth. Arrays have shape (X, Y, Z).

    Attributes:
        image: int16, HU or scanner units.
        label: uint8 {0, 1} by :data:`~jdm_seg.synthesis.deposits.calcinosis.LABEL_RULE`.
        instances: uint16, number of the deposit, 0 elsewhere.
        anatomy: uint8, :class:`~jdm_seg.synthesis.anatomy.tissue.Tissue` codes; None for deposits in a real scan.
        oedema: uint8 {0, 1}; None on CT.
        affine: Voxel to RAS mm.
        record: Everything drawn, plain values.
        ignore: uint8 {0, 1}: what neither teaches nor counts in a real scan; None for procedural bodies.
        faint: uint8 {0, 1}: labelled deposits of a procedural body that nobody can see; None where all can be seen.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    anatomy: NDArray[np.uint8] | None
    oedema: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    record: dict[str, Any]
    ignore: NDArray[np.uint8] | None = None
    faint: NDArray[np.uint8] | None = None


def synthesize_body(modality: Modality, preset: Preset, seed: tuple[int, ...]) -> SyntheticCase:
    """Make one procedural case.

    Args:
        modality: ``ct`` or ``stir``.
        preset: Size and priors.
        seed: Data set seed and case number.
    """
    rng = np.random.default_rng(seed)
    spacing = preset.spacing[int(rng.integers(len(preset.spacing)))]
    shape = None
    if preset.extent_mm is not None:
        x, y, z = (round(float(rng.uniform(*mm)) / s) for mm, s in zip(preset.extent_mm, spacing, strict=True))
        shape = (x, y, z)
    held = preset.conditions
    for _ in range(_VIEWS):
        scene = sample_scene(rng, preset.view, draw_body(rng, held))
        rendered = render_scene(scene, spacing, shape)
        if (rendered.host.depth_mm > 0).mean() >= preset.least_body:
            break
    deposits = () if rng.random() < preset.negatives else sample_deposits(rendered.host, rng, preset.priors)
    lookalikes = tuple(
        item
        for item in sample_lookalikes(rendered.host, rng, max(1.0, preset.lookalikes))
        if item.kind not in AMBIGUOUS  # on disk every voxel is 0 or 1
    )
    age = scene.body.age
    ct = draw_ct(rng, spacing, age, held) if modality == "ct" else None
    stir = draw_stir(rng, deposits, age, held, slice_axis=rendered.axis) if modality == "stir" else None
    recipe = Recipe(modality, spacing, shape, scene, deposits, lookalikes, ct, stir, int(rng.integers(2**31)))
    return _scan(recipe, rendered)


def replay(record: dict[str, Any]) -> SyntheticCase:
    """Make a procedural case again from its record.

    Args:
        record: As in ``records/<case_id>.json``.

    Raises:
        InputError: If the record is not of a procedural case.
    """
    try:
        recipe = cattrs.structure(record["recipe"], Recipe)
    except (KeyError, TypeError, cattrs.BaseValidationError) as error:
        raise InputError(
            "record",
            expected="a record of a procedural case, written by this version",
            found=f"{type(error).__name__} while reading it",
            remedy="give records/<case_id>.json as jdm-seg synthesize wrote it; inserted cases need their background",
        ) from error
    return _scan(recipe, render_scene(recipe.scene, recipe.spacing, recipe.shape))


def _scan(recipe: Recipe, rendered: RenderedScene) -> SyntheticCase:
    host, tissue = rendered.host, rendered.tissue
    calcinosis = render_deposits(recipe.deposits, host)
    instances = calcinosis.instances
    for item in recipe.lookalikes:
        _add_lookalike(item, rendered)
    anatomy = np.ascontiguousarray(host.tissue)
    rng = np.random.default_rng(recipe.seed)
    oedema = None
    if recipe.ct is not None:
        calcium, occupancy = (calcinosis.calcium, calcinosis.occupancy) if recipe.deposits else (None, None)
        image = acquire_ct(tissue, calcium, occupancy, recipe.ct, rng, split_z=rendered.split)
        seen = seen_on_ct(calcinosis.label, image)
    elif recipe.stir is not None:
        stir, split = recipe.stir, rendered.split
        image, oedema = acquire_stir(tissue, calcinosis, stir, rng, split=split)
        before = image
        if recipe.deposits:
            before, _ = acquire_stir(tissue, None, stir, np.random.default_rng(recipe.seed), split=split)
        levels = (stir.readout.scale, stir.readout.scale / stir.readout.snr)
        seen = seen_on_stir(calcinosis.label, image, before, *levels, recipe.spacing)
    else:
        raise ValueError("expected an acquisition of CT or STIR, but found neither")
    affine = np.diag([*recipe.spacing, 1.0])
    affine[:3, 3] = rendered.origin
    record = {
        "modality": recipe.modality,
        "recipe": asdict(recipe),
        **describe(calcinosis, recipe.spacing, anatomy, recipe.stir),
    }
    faint = ((instances > 0) & ~seen).view(np.uint8)
    label = calcinosis.label
    return SyntheticCase(image, label, instances, anatomy, oedema, affine, record, faint=faint if faint.any() else None)


def _add_lookalike(item: LookAlike, rendered: RenderedScene) -> None:
    overlay = render_lookalike(item, rendered.host)
    if overlay is None:
        return
    first = overlay.box[rendered.axis].start * rendered.split
    height = overlay.box[rendered.axis].stop - overlay.box[rendered.axis].start
    box = [*overlay.box]
    box[rendered.axis] = slice(first, first + height * rendered.split)
    for tissue, share in overlay.layers:
        cover = np.repeat(share, rendered.split, axis=rendered.axis)
        rendered.tissue.blend((box[0], box[1], box[2]), cover, tissue)


def describe(
    calcinosis: Calcinosis,
    spacing: Spacing,
    anatomy: NDArray[np.uint8],
    stir: StirAcquisition | None = None,
) -> dict[str, Any]:
    """Return what a record says of its truth: the label rule, and one row a deposit with what became of it.

    Args:
        calcinosis: Rendered deposits.
        spacing: Voxel size in mm.
        anatomy: Tissue codes, shape (X, Y, Z).
        stir: With it a row also says how its deposit shows.
    """
    instances = calcinosis.instances
    where = np.flatnonzero(instances)
    numbers = instances.ravel()[where]
    voxels = np.bincount(numbers, minlength=len(calcinosis.deposits) + 1)
    hosts = np.zeros((len(calcinosis.deposits) + 1, 256), np.int64)
    np.add.at(hosts, (numbers, anatomy.ravel()[where]), 1)
    rows = [
        {
            "instance": number,
            "labelled_mm3": float(voxels[number] * np.prod(spacing)),
            "host": Tissue(int(hosts[number].argmax())).name if voxels[number] else "NONE",
            "pattern": deposit.pattern,
            "region": deposit.region,
            "centre": deposit.centre,
            "radius": deposit.radius,
            "calcium": deposit.calcium,
        }
        for number, deposit in enumerate(calcinosis.deposits, start=1)
    ]
    if stir is not None:
        for row, phenotype in zip(rows, stir.phenotypes, strict=True):
            row["phenotype"] = phenotype
    return {"label_rule": LABEL_RULE, "spacing": spacing, "deposits": rows}
