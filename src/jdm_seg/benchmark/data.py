"""The cases of a benchmark, made or found, in one layout: scans, references, ignore zones and a datalist."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jdm_seg.benchmark.spec import Benchmark
from jdm_seg.cases import DATALIST, Case, Manifest, find_scans, read_manifest, write_manifest
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.evaluate import find_masks
from jdm_seg.lesions import read_mask
from jdm_seg.synthesis.anatomy.host import distance
from jdm_seg.synthesis.anatomy.tissue import BONE, Tissue
from jdm_seg.synthesis.dataset import CasePlan, write_cases, write_listing
from jdm_seg.synthesis.estimate import estimate_tissue
from jdm_seg.synthesis.recipe import preset_of
from jdm_seg.volume import NIFTI_SUFFIXES, Spacing, Volume, case_id_of, read_volume, write_text, write_volume

ORIGIN = "benchmark.json"
NEEDS = {
    "hybrid": "scans without calcinosis: give their folder with --scans",
    "negative": "scans without calcinosis: give their folder with --scans",
    "real": "scans with calcification and their masks: give their folder with --scans, and --references",
}


@dataclass(frozen=True)
class Sources:
    """Folders that the user gave.

    Attributes:
        scans: Real scans.
        references: Their reference masks; default beside the scans.
        ignore: Masks of what shall not count; default: made where the benchmark has a rule for it.
    """

    scans: Path | None = None
    references: Path | None = None
    ignore: Path | None = None


@dataclass(frozen=True)
class BenchmarkData:
    """A benchmark's cases on disk.

    Attributes:
        scans: Folder of the scans.
        references: Folder of the reference masks; the ignore zones, the datalist and the records lie beside it.
        cases: Number of them.
        sha256: Hash of every voxel of scans, references and ignore zones.
    """

    scans: Path
    references: Path
    cases: int
    sha256: str


def prepare_data(
    benchmark: Benchmark,
    out: Path,
    sources: Sources,
    *,
    cases: int | None = None,
    workers: int = 1,
    on_case: Callable[[str], None] = lambda _: None,
) -> BenchmarkData:
    """Make or link the cases; what is there already is kept.

    Args:
        benchmark: Which.
        out: Folder for them.
        sources: Real scans, where it needs some.
        cases: Only so many, from all strata in turn; None for all. The cases of a smaller number are among those of a
            larger one.
        workers: Processes that make synthetic cases.
        on_case: Called with each finished case id.

    Raises:
        CaseNotFoundError: If there are no scans.
        InputError: If the folder holds the data of something else.
    """
    origin = _origin(benchmark, sources, cases)
    known = _known_origin(out, origin)
    if known is None:
        write_text(out / ORIGIN, json.dumps(origin, indent=1) + "\n")
    if known is None or "sha256" not in known:
        make = _make_synthetic if benchmark.kind in ("phantom", "hybrid") else _link_real
        make(benchmark, out, sources, cases, workers, on_case)
        known = {**origin, "sha256": _hash_of(read_manifest(out / DATALIST))}
        write_text(out / ORIGIN, json.dumps(known, indent=1) + "\n")
    return BenchmarkData(out / "images", out / "labels", len(read_manifest(out / DATALIST).all), known["sha256"])


def scans_for(benchmark: Benchmark, sources: Sources) -> list[Case]:
    """Return the real scans that a benchmark runs on; of ``real``, those that have a reference.

    Raises:
        CaseNotFoundError: If none were given or found.
    """
    if benchmark.kind == "phantom":
        return []
    where = f"benchmark {benchmark.name}"
    if sources.scans is None:
        raise CaseNotFoundError(where, expected=NEEDS[benchmark.kind], found="none given", remedy="see data/README.md")
    scans = find_scans(sources.scans, benchmark.modality)
    if benchmark.kind == "real":
        references = _references(benchmark, sources)
        scans = [case for case in scans if case.case_id in references]
        if not scans:
            raise CaseNotFoundError(
                where,
                expected=f"masks named <scan>{benchmark.reference_suffix}.nii.gz, or as the scans in another folder",
                found="none that belongs to a scan",
                remedy="check --scans and --references",
            )
    return scans


def plans_of(benchmark: Benchmark, scans: list[Case], cases: int | None = None) -> list[CasePlan]:
    """Return what is to be made: one case of each stratum in turn, or one in each scan.

    A case's seed follows the benchmark's, its stratum's name and its number there, so that no stratum disturbs another.
    """
    modality = benchmark.modality
    if benchmark.kind == "hybrid":
        preset = preset_of(modality, benchmark.preset)
        turns = [(number // len(scans), scans[number % len(scans)]) for number in range(benchmark.cases)]
        return [
            CasePlan(
                f"{scan.case_id}-{turn:02d}", scan.subject_id, modality, preset, (benchmark.seed, number), scan.image
            )
            for number, (turn, scan) in enumerate(turns[:cases])
        ]
    by_stratum = []
    for stratum in benchmark.strata:
        seed = (benchmark.seed, zlib.crc32(stratum.name.encode()))
        preset = stratum.preset_for(modality)
        ids = [f"{stratum.name}-{number:02d}" for number in range(stratum.cases)]
        by_stratum.append([CasePlan(i, i, modality, preset, (*seed, n), None, stratum.name) for n, i in enumerate(ids)])
    return [plan for turn in zip_longest(*by_stratum) for plan in turn if plan is not None][:cases]


def ignore_zone(
    hu: NDArray[Any], reference: NDArray[np.bool_], near: NDArray[np.bool_], spacing: Spacing, *, mm: float, over: float
) -> NDArray[np.bool_]:
    """Mark in a CT with real calcification what a reader could call calcium and the reference does not hold.

    Args:
        hu: CT numbers, canonical axes, shape (X, Y, Z).
        reference: What counts, same shape.
        near: A wider mask of the same calcification.
        spacing: Voxel size in mm.
        mm: What lies so near to either mask is unclear: where a deposit ends is a matter of the threshold.
        over: Outside bone everything brighter is unclear, with a voxel of partial volume around: vessel calcium,
            contrast, metal, bone too small to be told from calcium.

    Returns:
        The zone, without the reference.
    """
    around = distance(~(reference | near), spacing) <= mm if (reference | near).any() else np.zeros(hu.shape, bool)
    tissue = estimate_tissue(hu, spacing)
    bright = (hu > over) & ~np.isin(tissue, BONE) & (tissue != Tissue.AIR)
    result: NDArray[np.bool_] = (around | ndimage.binary_dilation(bright)) & ~reference
    return result


def _make_synthetic(
    benchmark: Benchmark,
    out: Path,
    sources: Sources,
    cases: int | None,
    workers: int,
    on_case: Callable[[str], None],
) -> None:
    plans = plans_of(benchmark, scans_for(benchmark, sources), cases)
    write_cases(out, plans, workers=workers, on_case=on_case)
    members = tuple(sorted((plan.case_in(out) for plan in plans), key=lambda case: case.case_id))
    write_listing(out, Manifest({"testing": members}), benchmark.modality, _origin(benchmark, sources, cases))


def _link_real(
    benchmark: Benchmark,
    out: Path,
    sources: Sources,
    cases: int | None,
    workers: int,
    on_case: Callable[[str], None],
) -> None:
    """Link scans, and write references and ignore zones on their grids."""
    del workers
    zones = find_masks(sources.ignore) if sources.ignore is not None else {}
    references = _references(benchmark, sources) if benchmark.kind == "real" else {}
    members = []
    for case in scans_for(benchmark, sources)[:cases]:
        scan = read_volume(case.image)
        reference: NDArray[np.bool_] = np.zeros(scan.grid.shape, bool)
        if case.case_id in references:
            reference = _mask_on(scan, references[case.case_id], "reference")
        zone = _mask_on(scan, zones[case.case_id], "ignore zone") if case.case_id in zones else None
        if zone is None and benchmark.kind == "real":
            zone = _zone_of(benchmark, scan, reference, _near(benchmark, sources, case))
        suffix = "".join(case.image.suffixes[-2:]) if case.image.name.endswith(".gz") else case.image.suffix
        image = out / "images" / f"{case.case_id}{suffix}"
        _link(case.image, image)
        label, ignore = (out / name / f"{case.case_id}.nii.gz" for name in ("labels", "ignore"))
        write_volume(label, reference, scan, np.uint8)
        if zone is not None:
            write_volume(ignore, zone & ~reference, scan, np.uint8)
        members.append(
            Case(case.case_id, case.subject_id, case.modality, image, label, None if zone is None else ignore)
        )
        on_case(case.case_id)
    write_manifest(out / DATALIST, Manifest({"testing": tuple(members)}), modality=benchmark.modality)


def _zone_of(benchmark: Benchmark, scan: Volume, reference: NDArray[np.bool_], near: Path | None) -> NDArray[Any]:
    wider = reference if near is None else _mask_on(scan, near, "wider mask")
    canonical, expected, around = (
        Volume(array, scan.affine, scan.name).to_canonical() for array in (scan.array, reference, wider)
    )
    zone = ignore_zone(
        canonical.array,
        expected.array,
        around.array,
        canonical.spacing,
        mm=benchmark.zone_mm,
        over=benchmark.zone_hu,
    )
    return scan.from_canonical(zone)


def _references(benchmark: Benchmark, sources: Sources) -> dict[str, Path]:
    """Return the reference mask of each scan id: ``<id><suffix>``, or in a folder of their own also ``<id>``."""
    folder = sources.references or sources.scans
    assert folder is not None
    suffix = benchmark.reference_suffix
    masks = find_masks(folder)
    named = {name.removesuffix(suffix): path for name, path in masks.items() if name.endswith(suffix)}
    apart = sources.references is not None and sources.references != sources.scans
    return {**(masks if apart and not named else {}), **named}


def _near(benchmark: Benchmark, sources: Sources, case: Case) -> Path | None:
    for folder in (sources.references, sources.scans):
        for suffix in NIFTI_SUFFIXES:
            path = (folder or Path()) / f"{case.case_id}{benchmark.near_suffix}{suffix}"
            if folder is not None and path.is_file():
                return path
    return None


def _mask_on(scan: Volume, path: Path, role: str) -> NDArray[np.bool_]:
    """Read a mask that lies on a scan's grid, in the scan's own axes."""
    mask = read_mask(path, case_id_of(path))
    scan.check_same_grid(mask, role)
    return scan.from_canonical(mask.to_canonical().array)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _origin(benchmark: Benchmark, sources: Sources, cases: int | None) -> dict[str, Any]:
    """Return what decides the data; scans and masks are named by a hash of their names and sizes."""
    files: list[str] = []
    for case in scans_for(benchmark, sources)[:cases]:
        files.append(f"{case.case_id} {case.image.stat().st_size}")
    for folder in (sources.references, sources.ignore):
        if folder is not None:
            files += [f"{name} {path.stat().st_size}" for name, path in find_masks(folder).items()]
    scans = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16] if files else None
    return {"benchmark": benchmark.name, "definition": benchmark.digest, "cases": cases, "scans": scans}


def _known_origin(out: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the folder says it holds, if that is what is wanted.

    Raises:
        InputError: If it holds anything else.
    """
    path = out / ORIGIN
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise InputError(out, expected="a new folder", found="other files", remedy="choose another OUT")
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        known = {}
    if not isinstance(known, dict) or {key: known.get(key) for key in origin} != origin:
        raise InputError(
            path,
            expected=f"data of {origin}",
            found="data of another benchmark, version, number of cases or scans",
            remedy="choose another OUT",
        )
    return known


def _hash_of(manifest: Manifest) -> str:
    """Return a hash of every voxel: compression and headers differ between versions of libraries."""
    digest = hashlib.sha256()
    for case in manifest.all:
        for path in (case.image, case.label, case.ignore):
            if path is not None:
                volume = read_volume(path).to_canonical()
                digest.update(f"{case.case_id} {volume.array.dtype} {volume.grid.shape}".encode())
                digest.update(np.ascontiguousarray(volume.array).tobytes())
    return digest.hexdigest()
