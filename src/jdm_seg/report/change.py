"""The page of two time points: both pictures side by side, and what became of every lesion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jdm_seg.inference.case_folder import REPORT
from jdm_seg.report.charts import bars
from jdm_seg.report.drawing import png_url
from jdm_seg.report.html import render
from jdm_seg.report.tables import read_json, read_rows
from jdm_seg.report.words import FATES
from jdm_seg.volume import write_text

_BARS = 30
_UNITS = {"mass_mg_ha": "mg hydroxyapatite", "volume_integrated_mm3": "mm³, by intensity", "volume_mm3": "mm³, by mask"}


def write_change_report(folder: Path) -> Path:
    """Write the page of a folder that ``track`` made: holds ``change.json``, ``changes.csv`` and ``change.png``."""
    change, rows = read_json(folder / "change.json"), read_rows(folder / "changes.csv")
    picture = folder / "change.png"
    seen = [row for row in rows if row["fate"] != "out_of_view"]
    page = render(
        "change.html.j2",
        change=change,
        rows=rows,
        unit=_UNITS.get(str(change["measure"]), ""),
        fates=[(name, meaning, change["fates"].get(name, 0)) for name, meaning in FATES.items()],
        picture=png_url(picture.read_bytes()) if picture.is_file() else None,
        # the picture has bars of its own
        bars=bars([_bar(row) for row in seen[:_BARS]], "Change of each deposit", _UNITS.get(str(change["measure"]), ""))
        if seen and not picture.is_file()
        else None,
        shown=_BARS,
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def _bar(row: dict[str, Any]) -> tuple[str, float, float]:
    name = f"{row['fate'].replace('_', ' ')} {row['baseline'] or '–'} → {row['follow_up'] or '–'}"
    return name, float(row["change"]), float(row["smallest_detectable_change"])
