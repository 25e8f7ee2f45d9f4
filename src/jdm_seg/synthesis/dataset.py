"""Labelled data sets on disk: procedural bodies, or deposits inserted in the scans of a folder.

Every case has its own seed, spawned from (seed, case number), so the bytes of a case depend neither on how many cases
are made nor on how many workers make them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.cases import DATALIST, Case, Manifest, Modality, as_modality, find_scans, write_manifest
from jdm_seg.errors import InputError
from jdm_seg.synthesis import ct, stir
from jdm_seg.synthesis.body import render_body_part, sample_body_part
from jdm_seg.synthesis.calcinosis import (
    LABEL_RULE,
    Calcinosis,
    Priors,
    render_deposits,
    sample_deposits,
)
from jdm_seg.synthesis.host import build_host
from jdm_seg.synthesis.insert import estimate_tissue, insert_ct, sample_scan_blur
from jdm_seg.volume import Spacing, Volume, read_volume, write_text, write_volume

_FINE_MM = 1.1
"""Bodies are drawn at this voxel size or finer and averaged to the scan's: partial volume for free."""


@dataclass(frozen=True)
class Preset:
    """Size of the cases and share without deposits.

    Attributes:
        shape: Range of the voxel counts along x, y, z.
        spacing: Voxel sizes in mm to draw from.
        negatives: Share of cases without a deposit.
        priors: How deposits are drawn.
    """

    shape: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    spacing: tuple[Spacing, ...]
    negatives: float
    priors: Priors


PRESETS: dict[tuple[str, str], Preset] = {
    ("ct", "smoke"): Preset(((88, 104), (88, 104), (64, 80)), ((1.5, 1.5, 1.5), (1.5, 1.5, 2.0)), 0.1, Priors()),
    ("ct", "limb"): Preset(
        ((150, 220), (150, 220), (40, 80)), ((0.98, 0.98, 1.5), (0.98, 0.98, 3.0), (0.8, 0.8, 2.0)), 0.1, Priors()
    ),
    # coronal slices: y is the thick axis
    ("stir", "smoke"): Preset(((88, 104), (18, 24), (88, 104)), ((1.5, 5.0, 1.5), (1.5, 6.0, 1.5)), 0.1, Priors()),
    ("stir", "limb"): Preset(((140, 200), (20, 36), (140, 200)), ((1.25, 5.0, 1.25), (1.4, 6.0, 1.4)), 0.1, Priors()),
}


@dataclass(frozen=True)
class SyntheticCase:
    """A scan with its truth.

    Attributes:
        image: int16, HU or scanner units, shape (X, Y, Z).
        label: uint8 {0, 1} by :data:`LABEL_RULE`, same shape.
        affine: Voxel to RAS mm.
        record: Everything drawn, plain values.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    record: dict[str, Any]


def preset_of(modality: Modality, name: str) -> Preset:
    """Return a preset by modality and name.

    Raises:
        InputError: Naming those that exist.
    """
    if (modality, name) not in PRESETS:
        known = ", ".join(n for m, n in PRESETS if m == modality)
        raise InputError("preset", expected=f"one of {known} for {modality}", found=repr(name), remedy="choose one")
    return PRESETS[modality, name]


def synthesize_body(modality: Modality, preset: Preset, seed: tuple[int, int]) -> SyntheticCase:
    """Make one procedural case.

    Args:
        modality: ``ct`` or ``stir``.
        preset: Size and priors.
        seed: Data set seed and case number.
    """
    rng = np.random.default_rng(seed)
    spacing = preset.spacing[int(rng.integers(len(preset.spacing)))]
    x, y, z = (int(rng.integers(low, high + 1)) for low, high in preset.shape)
    shape = (x, y, z)
    part = sample_body_part(rng, (x * spacing[0], y * spacing[1], z * spacing[2]))
    split = tuple(int(np.ceil(s / _FINE_MM)) for s in spacing)
    fine_shape = (x * split[0], y * split[1], z * split[2])
    fine_spacing = (spacing[0] / split[0], spacing[1] / split[1], spacing[2] / split[2])
    tissue = render_body_part(part, fine_shape, fine_spacing)
    middle = tuple(slice(n // 2, None, n) for n in split)
    host = build_host(np.ascontiguousarray(tissue[middle]), spacing)
    negative = bool(rng.random() < preset.negatives)
    deposits = () if negative else sample_deposits(host, rng, preset.priors)
    calcinosis = render_deposits(deposits, host)
    acquisition: Any
    if modality == "ct":
        acquisition = ct.sample_ct(rng, spacing, part.age)
        hu = ct.blur(_block_mean(ct.tissue_to_hu(tissue, acquisition, rng), split), acquisition, spacing)
        hu += np.where(host.soft, ct.calcium_to_hu(calcinosis.calcium, acquisition, spacing), 0)
        image = ct.quantise(ct.add_noise(hu, acquisition, spacing, rng))
    else:
        acquisition = stir.sample_stir(rng, len(deposits))
        signal = _block_mean(stir.tissue_to_stir(tissue, acquisition, rng), split)
        image = stir.acquire(stir.add_deposits(signal, calcinosis, acquisition, spacing), acquisition, rng)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * np.multiply(shape, spacing)
    record = {"body": asdict(part), "acquisition": asdict(acquisition)}
    return _finish(image, calcinosis, affine, record, spacing)


def synthesize_inserted(scan: Volume, priors: Priors, seed: tuple[int, int]) -> SyntheticCase:
    """Insert deposits in a real CT scan (canonical axes)."""
    rng = np.random.default_rng(seed)
    host = build_host(estimate_tissue(scan.array, scan.spacing), scan.spacing)
    calcinosis = render_deposits(sample_deposits(host, rng, priors), host)
    acquisition = sample_scan_blur(rng, scan.spacing)
    image = insert_ct(scan.array, calcinosis, host, acquisition).astype(np.int16)
    return _finish(image, calcinosis, scan.affine, {"acquisition": asdict(acquisition)}, scan.spacing)


def _finish(
    image: NDArray[np.int16],
    calcinosis: Calcinosis,
    affine: NDArray[np.float64],
    record: dict[str, Any],
    spacing: Spacing,
) -> SyntheticCase:
    voxels = np.bincount(calcinosis.instances.ravel(), minlength=len(calcinosis.deposits) + 1)[1:]
    deposits = [
        {**asdict(deposit), "labelled_mm3": float(count * np.prod(spacing))}
        for deposit, count in zip(calcinosis.deposits, voxels, strict=True)
    ]
    return SyntheticCase(
        image, calcinosis.label, affine, {**record, "label_rule": LABEL_RULE, "spacing": spacing, "deposits": deposits}
    )


def _block_mean(array: NDArray[np.float32], split: tuple[int, ...]) -> NDArray[np.float32]:
    """Average blocks of ``split`` voxels: the slice profile of a scanner, to first order a box."""
    x, y, z = (n // s for n, s in zip(array.shape, split, strict=True))
    blocks = array.reshape(x, split[0], y, split[1], z, split[2])
    result: NDArray[np.float32] = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    return result


@dataclass(frozen=True)
class _Job:
    out: Path
    modality: Modality
    preset: Preset
    seed: int
    number: int
    case_id: str
    background: Path | None


def synthesize_dataset(
    out: Path,
    *,
    modality: Modality,
    cases: int,
    seed: int,
    preset: str = "limb",
    backgrounds: Path | None = None,
    workers: int = 1,
    validation: float = 0.0,
    testing: float = 0.0,
    on_case: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write a labelled data set: ``images/``, ``labels/``, ``records/`` and ``datalist.json``.

    Cases that are complete already are kept, so an interrupted run goes on where it stopped.

    Args:
        out: Folder to write into.
        modality: ``ct`` or ``stir``.
        cases: Number of cases.
        seed: Same seed, same bytes, whatever ``workers`` is.
        preset: Name in :data:`PRESETS`.
        backgrounds: Folder of unlabelled CT scans to insert deposits in, used in turn; None for procedural bodies.
        workers: Processes.
        validation: Share of the subjects, taken from the end.
        testing: The same, behind validation.
        on_case: Called with each finished case id.

    Returns:
        The manifest as written.
    """
    origin = origin_of(modality=modality, seed=seed, preset=preset, backgrounds=backgrounds)
    _check_same_origin(out, origin)
    if cases < 1:
        raise InputError("cases", expected="at least 1", found=str(cases), remedy="ask for one or more cases")
    settings = preset_of(modality, preset)
    scans = find_scans(backgrounds, modality) if backgrounds is not None else []
    if scans and modality != "ct":
        raise InputError(
            "backgrounds", expected="modality ct", found=modality, remedy="leave out --backgrounds for STIR for now"
        )
    name = "inserted" if scans else preset
    jobs = []
    for number in range(cases):
        scan = scans[number % len(scans)] if scans else None
        case_id = f"{modality}-{name}-s{seed}-{number:04d}"
        jobs.append(_Job(out, modality, settings, seed, number, case_id, scan.image if scan else None))
    if workers > 1:
        # spawn: a forked child would inherit locks of threads that do not exist in it
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for case_id in pool.map(_write_case, jobs):
                on_case(case_id)
    else:
        for job in jobs:
            on_case(_write_case(job))
    members = [_case_of(job, scans) for job in jobs]
    manifest = _by_split(members, validation, testing)
    write_manifest(
        out / DATALIST,
        manifest,
        modality=modality,
        labels={"0": "background", "1": "calcinosis"},
        label_rule=LABEL_RULE,
        synthetic={**origin, "cases": cases},
    )
    return manifest


def origin_of(*, modality: str, seed: int, preset: str, backgrounds: Path | None = None) -> dict[str, Any]:
    """Return what a synthetic data set is made from; written into its datalist.

    Backgrounds are named by a hash of their ids and sizes: another folder makes another data set.
    """
    scans = None
    if backgrounds is not None:
        found = find_scans(backgrounds, as_modality(modality))
        names = [f"{case.case_id} {case.image.stat().st_size}" for case in found]
        scans = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    return {"modality": modality, "seed": seed, "preset": preset, "backgrounds": scans}


def _check_same_origin(out: Path, origin: dict[str, Any]) -> None:
    """Refuse a folder that holds another data set: its cases would be orphaned or mixed with the new ones."""
    found = synthetic_origin(out / DATALIST)
    if found is None and not (out / DATALIST).exists():
        return
    if found is None or {key: found.get(key) for key in origin} != origin:
        raise InputError(
            out / DATALIST,
            expected=f"no data set, or one made from {origin}",
            found="a data set of another origin" if found is None else f"one made from {found}",
            remedy="choose another folder",
        )


def synthetic_origin(datalist: Path) -> dict[str, Any] | None:
    """Return what a datalist says it was made from, or None if it is not synthetic or cannot be read."""
    try:
        content = json.loads(datalist.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    origin = content.get("synthetic") if isinstance(content, dict) else None
    return origin if isinstance(origin, dict) else None


def _case_of(job: _Job, scans: list[Case]) -> Case:
    # all cases made from one background share its anatomy, so they are one subject
    subject = f"background-{job.number % len(scans):03d}" if scans else job.case_id
    file = f"{job.case_id}.nii.gz"
    return Case(job.case_id, subject, job.modality, job.out / "images" / file, job.out / "labels" / file)


def _by_split(members: list[Case], validation: float, testing: float) -> Manifest:
    """Part the cases by subject, in order: training, validation, testing."""
    subjects = list(dict.fromkeys(case.subject_id for case in members))
    n_validation, n_testing = round(validation * len(subjects)), round(testing * len(subjects))
    n_training = len(subjects) - n_validation - n_testing
    split_of = {
        subject: "training" if i < n_training else "validation" if i < n_training + n_validation else "testing"
        for i, subject in enumerate(subjects)
    }
    splits: dict[str, tuple[Case, ...]] = {}
    for split in ("training", "validation", "testing"):
        chosen = tuple(case for case in members if split_of[case.subject_id] == split)
        if chosen:
            splits[split] = chosen
    return Manifest(splits)


def _write_case(job: _Job) -> str:
    record_path = job.out / "records" / f"{job.case_id}.json"
    if record_path.is_file():  # written last: the case is complete
        return job.case_id
    seed = (job.seed, job.number)
    if job.background is None:
        case = synthesize_body(job.modality, job.preset, seed)
    else:
        case = synthesize_inserted(read_volume(job.background).to_canonical(), job.preset.priors, seed)
    grid = Volume(case.image, case.affine, job.case_id)
    write_volume(job.out / "images" / f"{job.case_id}.nii.gz", case.image, grid)
    write_volume(job.out / "labels" / f"{job.case_id}.nii.gz", case.label, grid)
    write_text(record_path, json.dumps({"case_id": job.case_id, "seed": seed, **case.record}, indent=1) + "\n")
    return job.case_id
