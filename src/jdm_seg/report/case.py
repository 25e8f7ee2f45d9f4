"""The page of one case: pictures, lesions, viewer, and every figure of ``burden.json`` in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdm_seg.cases import Case
from jdm_seg.dicom.cases import read_case
from jdm_seg.errors import CaseNotFoundError, InputError, reason_of
from jdm_seg.inference.case_folder import PROBABILITY, REPORT, content_hash
from jdm_seg.lesions import SIZE_STRATA
from jdm_seg.pictures import PREVIEW
from jdm_seg.report.body import body_diagram
from jdm_seg.report.charts import histogram
from jdm_seg.report.drawing import png_url
from jdm_seg.report.html import render
from jdm_seg.report.pictures import LesionPoints, LesionSlice, Picture, lesion_slices, projections
from jdm_seg.report.tables import Row, as_float, read_json, read_rows
from jdm_seg.report.viewer import ViewerData, viewer_data
from jdm_seg.report.words import BURDEN, COLUMNS, STIR, TILES
from jdm_seg.volume import Volume, read_volume, write_text

_NEEDED = ("burden.json", "lesions.csv", "lesions.nii.gz")
_NUMBERED = 40
"""So many of the largest lesions carry their number in the pictures; more would hide what they are in."""
_BY = (("by_side", "Side"), ("by_depth", "Layer"), ("by_size", "Equivalent diameter"))


@dataclass(frozen=True)
class Look:
    """What of a case can be seen; without the scan only the lesions' shadows.

    Attributes:
        pictures: Coronal and sagittal.
        places: A voxel centre in the middle of each lesion, RAS mm, by number: where the viewer goes.
        slices: Three of each lesion, by number.
        viewer: None without the scan.
        preview: ``preview.png`` as data URL, where the scan is not at hand but the picture is.
        note: Why there is no scan; empty when there is.
    """

    pictures: list[Picture]
    places: dict[int, tuple[float, ...]]
    slices: dict[int, tuple[LesionSlice, ...]]
    viewer: ViewerData | None
    preview: str | None
    note: str


def write_case_report(folder: Path, scan: Case | None = None, run: dict[str, Any] | None = None) -> Path:
    """Write ``report.html`` into the folder of a case.

    Args:
        folder: Holds ``burden.json``, ``lesions.csv`` and ``lesions.nii.gz``, and maybe ``probability.nii.gz``.
        scan: What was segmented; None shows the lesions without it. One that is not the same file is not used, and the
            page says so.
        run: ``run.json`` of the batch.

    Returns:
        The page.

    Raises:
        CaseNotFoundError: If a file is missing.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise CaseNotFoundError(
            folder,
            expected="a case folder that jdm-seg predict or burden made",
            found=f"no {', '.join(missing)} in it",
            remedy="run predict first",
        )
    burden, lesions = read_json(folder / "burden.json"), read_rows(folder / "lesions.csv")
    look = look_at(folder, burden, lesions, scan)
    page = render(
        "case.html.j2",
        burden=burden,
        lesions=[_with_class(row) for row in lesions],
        look=look,
        numbered=_NUMBERED,
        tiles=[one for key in TILES for one in BURDEN if one.key == key and burden.get(key) is not None],
        columns=[one for one in COLUMNS if any(row.get(one.key) for row in lesions)],
        figures=[(one, value) for one in BURDEN if (value := burden.get(one.key)) is not None]
        + [(one, value) for one in STIR if (value := (burden.get("stir") or {}).get(one.key)) is not None],
        body=body_diagram(burden.get("by_region") or {}),
        histogram=histogram([d for row in lesions if (d := as_float(row["equivalent_diameter_mm"])) is not None]),
        groups=[(title, burden[key]) for key, title in _BY if burden.get(key)],
        strata=SIZE_STRATA,
        made_by=_made_by(burden, run or {}),
        has_batch=run is not None,
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def look_at(folder: Path, burden: dict[str, Any], lesions: list[Row], scan: Case | None) -> Look:
    """Make every picture of a case; arguments as in :func:`write_case_report`."""
    labels = read_volume(folder / "lesions.nii.gz")
    volume, note = _scan_of(scan, burden, labels)
    labels = labels.to_canonical()
    points = LesionPoints.of(labels)
    places = {number: tuple((labels.affine @ [*points.middle(number), 1])[:3].tolist()) for number in points.voxels}
    if volume is None:
        preview = folder / PREVIEW
        shown = png_url(preview.read_bytes()) if preview.is_file() else None
        return Look(projections(None, points, burden["modality"]), places, {}, None, shown, note)
    canonical = volume.to_canonical()
    longest = {int(row["lesion"]): as_float(row["longest_axis_mm"]) or 0.0 for row in lesions}
    probability = folder / PROBABILITY
    percent = read_volume(probability).to_canonical() if probability.is_file() else None
    return Look(
        projections(canonical.array, points, burden["modality"]),
        places,
        lesion_slices(canonical.array, labels.array, points, longest, burden["modality"]),
        viewer_data(canonical, points, burden["modality"], percent),
        None,
        "",
    )


def _scan_of(scan: Case | None, burden: dict[str, Any], labels: Volume) -> tuple[Volume | None, str]:
    """Return the scan if it is the one that was segmented, else why there is none."""
    if scan is None:
        return None, (
            "The scan was not given, so its slices and the viewer are left out: "
            "jdm-seg report OUT --scans FOLDER adds them."
        )
    try:
        known = (burden.get("prediction") or {}).get("scan_sha256")
        if known is not None and content_hash(scan.image) != known:
            return None, "The scan that was given is not the one that was segmented; it is not shown."
        volume = read_case(scan).scan.volume if scan.study else read_volume(scan.image)
        volume.check_same_grid(labels, "lesions")
    except (InputError, OSError) as error:
        return None, f"The scan cannot be shown. {reason_of(error)}"
    return volume, ""


def _with_class(row: Row) -> dict[str, Any]:
    """Add the size class to a row of ``lesions.csv``, as ``size_stratum`` defines it."""
    diameter = as_float(row["equivalent_diameter_mm"]) or 0.0
    return {**row, "size": 0 if diameter < 3 else 1 if diameter <= 10 else 2}


def _made_by(burden: dict[str, Any], run: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what made the result, as rows: model, version, settings, time."""
    made = dict(burden.get("prediction") or {"model": "a mask made elsewhere"})
    scan = made.pop("scan_sha256", None)
    rows = [("model", made.pop("model", None)), ("jdm_seg", run.get("jdm_seg")), ("made", run.get("end"))]
    rows += [(name.replace("_", " "), value) for name, value in made.items()]
    rows += [("SHA-256 of the scan", scan)]
    return [(name, _plain(value)) for name, value in rows if value not in (None, "", [])]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return ", ".join(str(_plain(one)) for one in value) if isinstance(value, list) else value
