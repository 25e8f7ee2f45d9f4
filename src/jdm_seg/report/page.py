"""One self-contained HTML page of a predict folder: opens offline, needs no network and no script."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from jdm_seg.errors import CaseNotFoundError
from jdm_seg.pictures import PREVIEW
from jdm_seg.volume import write_text

PAGE = "report.html"
_LESIONS_SHOWN = 30


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a folder that ``jdm-seg predict`` made.

    Args:
        folder: Holds ``cohort.csv``, ``run.json`` and a folder a case.

    Returns:
        The page.

    Raises:
        CaseNotFoundError: If the folder is not one of predict's.
    """
    if not (folder / "cohort.csv").is_file():
        raise CaseNotFoundError(
            folder,
            expected="a folder that jdm-seg predict made",
            found="no cohort.csv in it",
            remedy="run predict first",
        )
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as stream:
        cohort = list(csv.DictReader(stream))
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    cases = [_case(folder / row["case_id"], row) for row in cohort]
    environment = Environment(loader=PackageLoader("jdm_seg.report"), autoescape=True)
    page = environment.get_template("report.html.j2").render(cases=cases, run=run, shown=_LESIONS_SHOWN)
    target = folder / PAGE
    write_text(target, page)
    return target


def _case(folder: Path, row: dict[str, str]) -> dict[str, Any]:
    if row["status"] == "failed":
        return {"row": row, "burden": None, "lesions": [], "preview": None}
    with (folder / "lesions.csv").open(newline="", encoding="utf-8") as stream:
        lesions = list(csv.DictReader(stream))
    preview = folder / PREVIEW
    return {
        "row": row,
        "burden": json.loads((folder / "burden.json").read_text(encoding="utf-8")),
        "lesions": lesions,
        "preview": base64.b64encode(preview.read_bytes()).decode() if preview.is_file() else None,
    }
