"""A folder of scans: one model load, each case whole or not at all, one bad scan stops nothing, finished cases stay."""

from __future__ import annotations

import csv
import json
import logging
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdm_seg.burden import analyse_mask, write_analysis
from jdm_seg.cases import Case, as_modality, find_scans
from jdm_seg.errors import InputError, reason_of
from jdm_seg.inference.prediction import Segmenter
from jdm_seg.physics import hu_per_mg_ha
from jdm_seg.pictures import PREVIEW, write_preview
from jdm_seg.provenance import describe_run, now, sha256_of
from jdm_seg.volume import NIFTI_SUFFIXES, case_id_of, read_volume, write_table, write_text, write_volume

log = logging.getLogger(__name__)

COHORT_COLUMNS = (
    "case_id",
    "status",
    "lesion_count",
    "volume_ml",
    "mass_mg_ha",
    "agatston",
    "mean_hu",
    "largest_lesion_ml",
    "seconds",
    "error",
)
_DONE = "burden.json"
_FILES = (_DONE, "mask.nii.gz", "lesions.nii.gz", "lesions.csv", PREVIEW)
"""Written into a case's folder before the folder gets its name; a folder that has it is complete."""


@dataclass(frozen=True)
class BatchResult:
    """What a batch did: one row a case as in ``cohort.csv``."""

    rows: list[dict[str, Any]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of the cases that have no result."""
        return [row for row in self.rows if row["status"] == "failed"]


def scans_of(source: Path, modality: str) -> list[Case]:
    """Return the scan or scans that a path names.

    Raises:
        InputError: If it is neither a NIfTI file nor a folder of them.
    """
    if source.is_dir() or not source.exists():
        return find_scans(source, as_modality(modality))
    if not source.name.lower().endswith(NIFTI_SUFFIXES):
        raise InputError(
            source, expected="a .nii or .nii.gz file or a folder of them", found="another file", remedy="convert it"
        )
    case_id = case_id_of(source)
    return [Case(case_id, case_id, as_modality(modality), source)]


def predict_batch(
    source: Path,
    out: Path,
    predictor: Segmenter,
    *,
    kv: str | None = None,
    overwrite: bool = False,
    on_case: Callable[[dict[str, Any]], None] = lambda _: None,
) -> BatchResult:
    """Segment and measure every scan of ``source``.

    Args:
        source: A NIfTI file or a folder of them.
        out: Gets a folder a case, ``cohort.csv`` and ``run.json``.
        predictor: The method: a loaded model or the threshold baseline.
        kv: Tube voltage of the scans, if known.
        overwrite: Redo cases that are complete.
        on_case: Called with each case's row as it ends.
    """
    try:
        hu_per_mg_ha(kv)
    except ValueError as error:
        raise InputError("--kv", expected="a tube voltage", found=str(error), remedy="give it in kV") from error
    cases = scans_of(source, predictor.modality)
    out.mkdir(parents=True, exist_ok=True)
    start = now()
    rows = []
    stages: dict[str, dict[str, float]] = {}
    for case in cases:
        row, seconds = _predict_case(case, out, predictor, kv, overwrite)
        rows.append(row)
        stages[case.case_id] = seconds
        on_case(row)
    write_table(out / "cohort.csv", COHORT_COLUMNS, _earlier_rows(out, cases) + rows)
    facts = describe_run(
        **predictor.describe(),
        start=start,
        end=now(),
        kv=kv,
        cases=len(rows),
        failed=sum(row["status"] == "failed" for row in rows),
        stage_seconds=stages,
        peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    )
    write_text(out / "run.json", json.dumps(facts, indent=1) + "\n")
    return BatchResult(rows)


def _earlier_rows(out: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Return the rows of complete cases of earlier calls that this call did not ask for."""
    path = out / "cohort.csv"
    if not path.is_file():
        return []
    asked = {case.case_id for case in cases}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [{name: row.get(name) for name in COHORT_COLUMNS} for row in csv.DictReader(stream)]
    return [row for row in rows if row["case_id"] not in asked and (out / str(row["case_id"]) / _DONE).is_file()]


def _predict_case(
    case: Case, out: Path, predictor: Segmenter, kv: str | None, overwrite: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    folder = out / case.case_id
    begin = time.perf_counter()
    try:
        settings = {**predictor.describe(), "kv": kv, "scan_sha256": sha256_of(case.image)}
        kept = _complete(folder, settings)
        if kept is not None and not overwrite:
            return _row(case.case_id, "kept", kept), {}
        burden, seconds = _write_case(case, folder, predictor, kv, settings)
    except Exception as error:
        # whatever one scan does, the others are still to be done; the reason stands in its row
        log.debug("%s failed", case.case_id, exc_info=True)
        return {**_row(case.case_id, "failed", {}), "error": _named(case, error)}, {}
    total = round(time.perf_counter() - begin, 2)
    return {**_row(case.case_id, "done", burden), "seconds": total}, seconds


def _named(case: Case, error: Exception) -> str:
    reason = reason_of(error)
    return reason if reason.startswith(case.case_id) else f"{case.case_id}: {reason}"


def _complete(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the burden of a folder that these settings made of this scan, else None.

    Raises:
        InputError: If the folder holds something that is no result of this package, which must not be replaced.
    """
    if not folder.exists():
        return None
    foreign = {path.name for path in folder.iterdir()} - set(_FILES) if folder.is_dir() else {folder.name}
    if foreign:
        raise InputError(
            folder,
            expected="a new folder for the case, or an earlier result",
            found=f"other files, such as {min(foreign)}",
            remedy="choose another OUT",
        )
    try:
        burden: dict[str, Any] = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return burden if burden.get("prediction") == settings else None


def _write_case(
    case: Case, folder: Path, predictor: Segmenter, kv: str | None, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Segment one scan into a hidden folder and give it its name when everything is in it."""
    begin = time.perf_counter()
    scan = read_volume(case.image)
    seconds = {"read": round(time.perf_counter() - begin, 3)}
    prediction = predictor(scan)
    seconds |= prediction.seconds
    begin = time.perf_counter()
    analysis = analyse_mask(
        scan,
        prediction.mask,
        case_id=case.case_id,
        modality=case.modality,
        kv=kv,
        probability=prediction.probability,
    )
    analysis.burden["prediction"] = settings
    seconds["measure"] = round(time.perf_counter() - begin, 3)
    begin = time.perf_counter()
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write_volume(partial / "mask.nii.gz", prediction.mask, scan, np.uint8)
        write_analysis(partial, scan, analysis)
        write_preview(partial / PREVIEW, scan, prediction.mask, modality=case.modality)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds["write"] = round(time.perf_counter() - begin, 3)
    return analysis.burden, seconds


def _row(case_id: str, status: str, burden: dict[str, Any]) -> dict[str, Any]:
    return {**dict.fromkeys(COHORT_COLUMNS), **burden_columns(burden), "case_id": case_id, "status": status}


def burden_columns(burden: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one scan that a cohort table shows."""
    return {name: burden[name] for name in COHORT_COLUMNS if name in burden}
