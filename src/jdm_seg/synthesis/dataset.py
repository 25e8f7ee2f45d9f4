"""Labelled data sets on disk: procedural bodies, or deposits inserted in the scans of a folder.

Every case has its own seed, spawned from (seed, case number), so the bytes of a case depend neither on how many cases
are made nor on how many workers make them.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from jdm_seg.cases import DATALIST, Case, Manifest, Modality, as_modality, find_scans, write_manifest
from jdm_seg.errors import InputError
from jdm_seg.pictures import CONTACT_SHEET, write_contact_sheet
from jdm_seg.synthesis.blend import estimate_blur, insert_ct, insert_stir, sample_scan_blur
from jdm_seg.synthesis.ct.acquisition import CtAcquisition
from jdm_seg.synthesis.deposits.calcinosis import LABEL_RULE, render_deposits, sample_deposits
from jdm_seg.synthesis.deposits.priors import Priors
from jdm_seg.synthesis.estimate import estimate_stir_tissue
from jdm_seg.synthesis.insert import host_of_scan, unclear_in_scan
from jdm_seg.synthesis.recipe import Preset, SyntheticCase, describe, preset_of, synthesize_body
from jdm_seg.synthesis.stir.acquisition import StirAcquisition, sample_stir
from jdm_seg.synthesis.visibility import seen_on_ct, seen_on_stir
from jdm_seg.volume import Volume, read_volume, slice_axis, write_text, write_volume


@dataclass(frozen=True)
class CasePlan:
    """One case to be made.

    Attributes:
        case_id: Its name.
        subject_id: Whose it is: cases made from one background share its anatomy.
        modality: ``ct`` or ``stir``.
        preset: What kind of case.
        seed: Of everything drawn for it.
        background: Scan to insert deposits in; None for a procedural body.
        stratum: Kind of case, for the datalist.
    """

    case_id: str
    subject_id: str
    modality: Modality
    preset: Preset
    seed: tuple[int, ...]
    background: Path | None = None
    stratum: str = ""

    def case_in(self, out: Path) -> Case:
        """Return the case as it lies, or will lie, in a data set's folder."""
        image, label = (out / name / f"{self.case_id}.nii.gz" for name in ("images", "labels"))
        others = {name: out / name / image.name for name in ("ignore", "faint", "oedema", "anatomy")}
        made: dict[str, Any] = {name: path for name, path in others.items() if path.is_file()}
        return Case(self.case_id, self.subject_id, self.modality, image, label, stratum=self.stratum, **made)


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
    """Write a labelled data set: ``images/``, ``labels/``, ``datalist.json``, and what else is known of every case.

    ``instances/`` numbers the deposits as ``records/`` does; ``anatomy/`` holds tissue codes of procedural bodies,
    ``oedema/`` a second label of STIR, ``ignore/`` what neither teaches nor counts in a real scan with deposits,
    ``faint/`` deposits of procedural bodies that nobody can see: they count and do not teach.
    ``contact_sheet.png`` shows the first cases.

    Cases that are complete already are kept, so an interrupted run goes on where it stopped.

    Args:
        out: Folder to write into.
        modality: ``ct`` or ``stir``.
        cases: Number of cases.
        seed: Same seed, same bytes, whatever ``workers`` is.
        preset: Name in :data:`PRESETS`, or several joined by ``+`` that take turns.
        backgrounds: Folder of unlabelled scans to insert deposits in, used in turn; None for procedural bodies.
        workers: Processes.
        validation: Share of the subjects, taken from the end.
        testing: The same, behind validation.
        on_case: Called with each finished case id.

    Returns:
        The manifest as written.

    Raises:
        InputError: If no case is asked for, preset or modality is unknown, or the folder holds another data set.
    """
    origin = origin_of(modality=modality, seed=seed, preset=preset, backgrounds=backgrounds)
    _check_same_origin(out, origin)
    if cases < 1:
        raise InputError("cases", expected="at least 1", found=str(cases), remedy="ask for one or more cases")
    settings = [preset_of(modality, name) for name in preset.split("+")]
    scans = find_scans(backgrounds, modality) if backgrounds is not None else []
    name = "inserted" if scans else preset
    plans = []
    for number in range(cases):
        scan = scans[number % len(scans)] if scans else None
        case_id = f"{modality}-{name}-s{seed}-{number:04d}"
        subject = f"background-{number % len(scans):03d}" if scans else case_id
        image = scan.image if scan else None
        plans.append(CasePlan(case_id, subject, modality, settings[number % len(settings)], (seed, number), image))
    write_cases(out, plans, workers=workers, on_case=on_case)
    manifest = _by_split([plan.case_in(out) for plan in plans], validation, testing)
    write_listing(out, manifest, modality, {**origin, "cases": cases})
    return manifest


def write_cases(
    out: Path, plans: Sequence[CasePlan], *, workers: int = 1, on_case: Callable[[str], None] = lambda _: None
) -> None:
    """Make cases and write them; those that are complete already are kept.

    Args:
        out: Folder of the data set.
        plans: What to make.
        workers: Processes; the bytes do not depend on how many.
        on_case: Called with each finished case id.
    """
    jobs = [(out, plan) for plan in plans]
    if workers > 1:
        # spawn: a forked child would inherit locks of threads that do not exist in it
        with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
            for case_id in pool.map(_write_case, jobs):
                on_case(case_id)
    else:
        for job in jobs:
            on_case(_write_case(job))


def _end_with_parent() -> None:
    """End a worker when the process that started it is killed: it would wait for jobs for ever, holding its memory."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_listing(out: Path, manifest: Manifest, modality: Modality, origin: dict[str, Any]) -> None:
    """Write the datalist of a synthetic data set, and its contact sheet if there is none.

    Args:
        out: Folder of the data set.
        manifest: Its cases.
        modality: ``ct`` or ``stir``.
        origin: What it was made from.
    """
    write_manifest(
        out / DATALIST,
        manifest,
        modality=modality,
        labels={"0": "background", "1": "calcinosis"},
        label_rule=LABEL_RULE,
        synthetic=origin,
    )
    if not (out / CONTACT_SHEET).is_file():
        shown = ((read_volume(c.image), read_volume(c.label).array) for c in manifest.all if c.label is not None)
        write_contact_sheet(out / CONTACT_SHEET, shown, modality=modality)


def origin_of(*, modality: str, seed: int, preset: str, backgrounds: Path | None = None) -> dict[str, Any]:
    """Return what a synthetic data set is made from; written into its datalist.

    Backgrounds are named by a hash of their ids and sizes: another folder makes another data set.

    Args:
        modality: ``ct`` or ``stir``.
        seed: Of the data set.
        preset: What kind of cases.
        backgrounds: Folder of real scans; None for procedural bodies.
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


def synthesize_inserted(scan: Volume, modality: Modality, priors: Priors, seed: tuple[int, ...]) -> SyntheticCase:
    """Insert deposits in a real scan.

    The label is the whole truth, what is too faint to see as well; the ignore zone says which that is.

    Args:
        scan: CT in HU or STIR, canonical axes.
        modality: Which of the two.
        priors: How deposits are drawn.
        seed: Data set seed and case number.
    """
    rng = np.random.default_rng(seed)
    spacing = scan.spacing
    host = host_of_scan(scan.array, spacing, modality)
    calcinosis = render_deposits(sample_deposits(host, rng, priors), host)
    acquisition: CtAcquisition | StirAcquisition
    levels = None
    if modality == "ct":
        acquisition = sample_scan_blur(rng, spacing, estimate_blur(scan.array, host.tissue, spacing))
        image = insert_ct(scan.array, calcinosis, host, acquisition)
    else:
        acquisition = sample_stir(rng, calcinosis.deposits, float(rng.uniform(3, 30)), slice_axis=slice_axis(spacing))
        levels = estimate_stir_tissue(scan.array, spacing)[1]
        image = insert_stir(scan.array, calcinosis, host, acquisition, levels, rng)
    stir = acquisition if isinstance(acquisition, StirAcquisition) else None
    drawn = {"deposits": [asdict(d) for d in calcinosis.deposits], "acquisition": asdict(acquisition)}
    image = np.clip(np.rint(image), -32768, 32767).astype(np.int16)
    if levels is None:
        seen = seen_on_ct(calcinosis.label, image, scan.array)
    else:
        seen = seen_on_stir(calcinosis.label, image, scan.array, *levels, spacing)
    record = {"modality": modality, "drawn": drawn, **describe(calcinosis, spacing, host.tissue, stir)}
    ignore = unclear_in_scan(calcinosis, host.tissue, seen)
    return SyntheticCase(image, calcinosis.label, calcinosis.instances, None, None, scan.affine, record, ignore)


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


def _write_case(job: tuple[Path, CasePlan]) -> str:
    out, plan = job
    record_path = out / "records" / f"{plan.case_id}.json"
    if record_path.is_file():  # written last: the case is complete
        return plan.case_id
    if plan.background is None:
        case = synthesize_body(plan.modality, plan.preset, plan.seed)
    else:
        scan = read_volume(plan.background).to_canonical()
        case = synthesize_inserted(scan, plan.modality, plan.preset.priors, plan.seed)
    grid = Volume(case.image, case.affine, plan.case_id)
    for folder, array in (
        ("images", case.image),
        ("labels", case.label),
        ("instances", case.instances),
        ("anatomy", case.anatomy),
        ("oedema", case.oedema),
        ("ignore", case.ignore),
        ("faint", case.faint),
    ):
        if array is not None:
            write_volume(out / folder / f"{plan.case_id}.nii.gz", array, grid)
    write_text(record_path, json.dumps({"case_id": plan.case_id, "seed": plan.seed, **case.record}, indent=1) + "\n")
    return plan.case_id
