"""From a folder of results to its pages, whichever verb made it. Every figure is read from disk; none is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jdm_seg.errors import CaseNotFoundError
from jdm_seg.inference.case_folder import REPORT
from jdm_seg.report.change import write_change_report
from jdm_seg.report.cohort import write_cohort_report, write_single_report
from jdm_seg.report.evaluation import Masks, write_benchmark_report, write_evaluation_report

PAGE = REPORT


def write_report(
    folder: Path,
    scans: Path | None = None,
    *,
    predictions: Path | None = None,
    references: Path | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write ``report.html`` into a folder that another verb made; of a batch and a benchmark also the pages inside.

    Every page is one file that opens from disk without a network.

    Args:
        folder: Of ``predict``, ``burden``, ``track``, ``evaluate`` or ``benchmark``.
        scans: The scans, as ``predict`` took them: adds slices and a viewer to cases, and pictures to an evaluation.
            A benchmark knows its own.
        predictions: For an evaluation: the masks that were scored, for the pictures.
        references: For an evaluation: the reference masks.
        on_case: Called with each case id whose page or picture is done.

    Returns:
        The page.

    Raises:
        CaseNotFoundError: If the folder is none of these, or ``scans`` holds none of its scans.
    """
    if (folder / "cohort.csv").is_file():
        return write_cohort_report(folder, scans, on_case)
    if (folder / "burden.json").is_file():
        return write_single_report(folder, scans)
    if (folder / "change.json").is_file():
        return write_change_report(folder)
    if (folder / "results.json").is_file():
        return write_benchmark_report(folder, on_case)
    if (folder / "summary.json").is_file():
        return write_evaluation_report(folder, Masks(scans, predictions, references), on_case)
    raise CaseNotFoundError(
        folder,
        expected="a folder that jdm-seg predict, burden, track, evaluate or benchmark made",
        found="no cohort.csv, burden.json, change.json, results.json or summary.json in it",
        remedy="run one of them first",
    )
