"""The page of a batch: all scans in one table, how their figures spread, what failed and why, a link to each case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jdm_seg.cases import Case
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.inference.case_folder import REPORT
from jdm_seg.inference.plan import scans_of
from jdm_seg.pictures import PREVIEW
from jdm_seg.report.case import write_case_report
from jdm_seg.report.charts import strip
from jdm_seg.report.drawing import png_url
from jdm_seg.report.html import render
from jdm_seg.report.tables import Row, as_float, read_json, read_rows
from jdm_seg.report.words import BURDEN
from jdm_seg.volume import write_text

MAX_PREVIEWS = 60
"""Cases whose picture stands in the batch's page; with more, the page would take a minute to open."""
_SPREAD = ("volume_ml", "lesion_count", "mass_mg_ha", "agatston")


@dataclass(frozen=True)
class BatchCase:
    """A row of ``cohort.csv`` with what the page adds.

    Attributes:
        row: The row.
        has_page: Whether the case has a page of its own.
        preview: ``preview.png`` as data URL.
        warnings: How many ``burden.json`` holds.
    """

    row: Row
    has_page: bool
    preview: str | None
    warnings: int


def write_cohort_report(folder: Path, scans: Path | None, on_case: Callable[[str], None]) -> Path:
    """Write the page of a predict folder and of every case in it.

    Args:
        folder: Holds ``cohort.csv``, ``run.json`` and a folder a case.
        scans: What was segmented, as ``predict`` took it; None leaves slices and viewers out.
        on_case: Called with each case id whose page is written.

    Returns:
        The batch's page.

    Raises:
        CaseNotFoundError: If there are no scans under ``scans``.
    """
    rows, run = read_rows(folder / "cohort.csv"), read_json(folder / "run.json")
    known = find_scans(scans, {row["case_id"] for row in rows}, str(run.get("modality") or "ct"), folder)
    cases: list[BatchCase] = []
    for row in rows:
        case_id = row["case_id"]
        if row["status"] != "failed":
            write_case_report(folder / case_id, known.get(case_id), run)
        cases.append(_batch_case(folder / case_id, row, len(cases) < MAX_PREVIEWS))
        on_case(case_id)
    page = render(
        "report.html.j2",
        cases=cases,
        failed=[case for case in cases if case.row["status"] == "failed"],
        run=run,
        spreads=_spreads(rows),
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def find_scans(scans: Path | None, wanted: set[str], modality: str, leave_out: Path) -> dict[str, Case]:
    """Return the scan of each case, by id; where no id is known, by hashed id, as ``predict --hash-ids`` names them.

    Args:
        scans: As ``predict`` took them; None: none.
        wanted: Case ids.
        modality: ``ct`` or ``stir``.
        leave_out: Folder of results, which may lie among the scans.

    Raises:
        CaseNotFoundError: If there are no scans, or none of those that are wanted.
    """
    if scans is None:
        return {}
    for hash_ids in (False, True):
        found = {case.case_id: case for case in scans_of(scans, modality, leave_out=leave_out, hash_ids=hash_ids)}
        if wanted & set(found):
            return found
    raise CaseNotFoundError(
        scans,
        expected="the scans of the cases in OUT",
        found="others",
        remedy="give the same path as to predict",
    )


def _batch_case(folder: Path, row: Row, with_preview: bool) -> BatchCase:
    if row["status"] == "failed":
        return BatchCase(row, False, None, 0)
    preview = folder / PREVIEW
    shown = png_url(preview.read_bytes()) if with_preview and preview.is_file() else None
    return BatchCase(row, (folder / REPORT).is_file(), shown, len(read_json(folder / "burden.json")["warnings"]))


def _spreads(rows: list[Row]) -> list[Markup]:
    plots = []
    for one in (figure for key in _SPREAD for figure in BURDEN if figure.key == key):
        values = {row["case_id"]: v for row in rows if (v := as_float(row.get(one.key))) is not None}
        if len(values) > 1:
            plots.append(strip(values, one.label, one.unit))
    return plots


def write_single_report(folder: Path, scans: Path | None) -> Path:
    """Write the page of one case folder, as ``predict`` or ``burden`` makes it; arguments as for a batch.

    Raises:
        InputError: If ``burden.json`` is of no known modality.
        CaseNotFoundError: If the scan is not under ``scans``.
    """
    burden: dict[str, Any] = read_json(folder / "burden.json")
    case_id, modality = str(burden.get("case_id")), str(burden.get("modality"))
    if modality not in ("ct", "stir"):
        raise InputError(
            folder / "burden.json", expected="modality ct or stir", found=modality, remedy="make the folder again"
        )
    return write_case_report(folder, find_scans(scans, {case_id}, modality, folder).get(case_id))
