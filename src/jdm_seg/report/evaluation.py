"""The pages of an evaluation and of a benchmark: figures with intervals, agreement of volumes, worst cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from jdm_seg.errors import InputError, reason_of
from jdm_seg.evaluate import find_masks
from jdm_seg.inference.case_folder import REPORT
from jdm_seg.lesions import SIZE_STRATA, read_mask
from jdm_seg.pictures import project
from jdm_seg.report.charts import Interval, bland_altman, forest, svg
from jdm_seg.report.drawing import encode_png, outline_path, png_url, to_grey, window_of
from jdm_seg.report.html import render
from jdm_seg.report.tables import Row, as_float, read_json, read_rows
from jdm_seg.report.words import SCORES
from jdm_seg.volume import read_volume, write_text

WORST = 6
"""Cases with pictures: those of the lowest lesion F1, and where there is none, of the most false lesions."""
_SHARES = ("lesion_f1", "lesion_recall", "lesion_precision", "dice", "surface_dice_1mm", "cl_dice", "scan_specificity")
_CASE_COLUMNS = (
    "lesion_f1",
    "dice",
    "lesion_tp",
    "lesion_fn",
    "lesion_fp",
    "volume_prediction_ml",
    "volume_reference_ml",
)


@dataclass(frozen=True)
class Masks:
    """Where the masks and scans of an evaluation lie; None where they are not at hand.

    Attributes:
        scans: Folder of scans, for the background.
        predictions: Folder of masks that were scored.
        references: Folder of reference masks.
    """

    scans: Path | None = None
    predictions: Path | None = None
    references: Path | None = None


@dataclass(frozen=True)
class WorstCase:
    """A case that went badly.

    Attributes:
        row: Of ``cases.csv``.
        picture: Where its lesions lie, found, missed and false.
        note: Why there is no background, if there is none.
    """

    row: Row
    picture: Markup
    note: str


def write_evaluation_report(folder: Path, masks: Masks, on_case: Callable[[str], None] = lambda _: None) -> Path:
    """Write the page of a folder that ``evaluate`` made.

    Args:
        folder: Holds ``summary.json``, ``cases.csv``, ``lesions.csv`` and maybe ``comparison.json``.
        masks: For the pictures; without them the places of the lesions are drawn alone.
        on_case: Called with each case id whose picture is done.

    Returns:
        Path of the page.
    """
    summary, cases = read_json(folder / "summary.json"), read_rows(folder / "cases.csv")
    lesions = read_rows(folder / "lesions.csv")
    worst = []
    for row in worst_cases(cases):
        own = [one for one in lesions if one["case_id"] == row["case_id"]]
        worst.append(_worst(row, own, masks))
        on_case(row["case_id"])
    comparison = folder / "comparison.json"
    page = render(
        "evaluation.html.j2",
        name=folder.resolve().name,
        summary=summary,
        cases=cases,
        columns=[(key, _label(key)) for key in _CASE_COLUMNS],
        worst=worst,
        comparison=read_json(comparison) if comparison.is_file() else None,
        labels={one.key: one.label for one in SCORES},
        **_plots(summary, cases),
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def worst_cases(cases: list[Row]) -> list[Row]:
    """Return the rows of the cases that went worst: failed ones first, then by lesion F1, then by false lesions."""

    def badness(row: Row) -> tuple[bool, float, float]:
        f1, false = as_float(row["lesion_f1"]), as_float(row["lesion_fp"]) or 0.0
        return row["status"] != "failed", 1.0 if f1 is None else f1, -false

    return sorted(cases, key=badness)[:WORST]


def write_benchmark_report(folder: Path, on_case: Callable[[str], None] = lambda _: None) -> Path:
    """Write the page of a folder that ``benchmark`` made, and of every method's evaluation inside it."""
    results = read_json(folder / "results.json")
    pages = {}
    for name in results["methods"]:
        evaluation = folder / name / "evaluation"
        if not (evaluation / "summary.json").is_file():
            continue
        data = folder / "data"
        made = folder / name / "predictions"
        places = [path if path.is_dir() else None for path in (data / "images", made, data / "labels")]
        write_evaluation_report(evaluation, Masks(*places), on_case)
        pages[name] = f"{name}/evaluation/{REPORT}"
    page = render(
        "benchmark.html.j2",
        results=results,
        pages=pages,
        scores=[
            one for one in SCORES if any(_mean(method, one.key) is not None for method in results["methods"].values())
        ],
        forests=_forests(results["methods"]),
        strata=SIZE_STRATA,
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def _mean(method: dict[str, Any], key: str) -> float | None:
    value: float | None = method["figures"].get(key, {}).get("mean")
    return value


def _forests(methods: dict[str, Any]) -> list[tuple[str, Markup]]:
    plots = []
    for one in (score for key in _SHARES for score in SCORES if score.key == key):
        rows = [
            _interval(name, method["figures"][one.key])
            for name, method in methods.items()
            if one.key in method["figures"]
        ]
        if any(row.value is not None for row in rows):
            plots.append((one.label, forest(rows, one.label)))
    return plots


def _interval(label: str, figure: dict[str, Any]) -> Interval:
    return Interval(label, figure["mean"], figure["ci_low"], figure["ci_high"])


def _plots(summary: dict[str, Any], cases: list[Row]) -> dict[str, Any]:
    figures = summary["figures"]
    known = [one for one in SCORES if figures.get(one.key, {}).get("mean") is not None]
    pairs = {
        row["case_id"]: (a, b)
        for row in cases
        if (a := as_float(row["volume_prediction_ml"])) is not None
        and (b := as_float(row["volume_reference_ml"])) is not None
    }
    agreement = summary.get("volume_agreement", {}).get("ml", {})
    return {
        "scores": known,
        "shares": forest([_interval(one.label, figures[one.key]) for one in known if one.key in _SHARES], "Scores"),
        "sizes": _recall_plot(summary["recall_by_size"], "Share found by size"),
        "attributes": [
            (name, _recall_plot(values, f"Share found by {name}")) for name, values in summary["recall_by"].items()
        ],
        "agreement": bland_altman(pairs, agreement) if len(pairs) > 1 else None,
    }


def _recall_plot(strata: dict[str, Any], label: str) -> Markup:
    rows = [
        Interval(
            name.lower().replace("_", " "),
            one["pooled"]["value"],
            one["pooled"]["ci_low"],
            one["pooled"]["ci_high"],
            f"{one['found']} of {one['lesions']}",
        )
        for name, one in strata.items()
    ]
    return forest(rows, label)


def _label(key: str) -> str:
    others = {"volume_prediction_ml": "Predicted, mL", "volume_reference_ml": "Reference, mL"}
    return next((one.label for one in SCORES if one.key == key), others.get(key, key))


def _worst(row: Row, lesions: list[Row], masks: Masks) -> WorstCase:
    case_id = row["case_id"]
    try:
        return WorstCase(row, _mask_picture(case_id, masks), "")
    except (InputError, OSError, KeyError) as error:
        known = masks.predictions is not None or masks.references is not None
        return WorstCase(row, lesion_map(case_id, lesions), reason_of(error) if known else "")


def _mask_picture(case_id: str, masks: Masks) -> Markup:
    """Draw predicted and reference outlines over the scan, from the front.

    Raises:
        KeyError: If a mask is not there.
    """
    if masks.references is None:
        raise KeyError(case_id)
    reference = read_mask(find_masks(masks.references)[case_id], case_id).to_canonical()
    files = {} if masks.predictions is None else find_masks(masks.predictions)
    found = read_mask(files[case_id], case_id).to_canonical() if case_id in files else None
    columns, rows = reference.array.shape[0], reference.array.shape[2]
    background = ""
    scan = _scan_file(masks.scans, case_id)
    if scan is not None:
        volume = read_volume(scan).to_canonical()
        volume.check_same_grid(reference, "reference")
        picture, _ = project(volume.array, reference.array, 1, maximum=True)
        url = png_url(encode_png(to_grey(picture, window_of(picture, "ct" if volume.array.min() < -200 else "stir"))))
        background = f'<image href="{url}" width="{columns}" height="{rows}" preserveAspectRatio="none"/>'
    sides = []
    for name, side in (("reference", reference), ("prediction", found)):
        if side is not None:
            shadow = np.asarray(side.array.any(axis=1))[::-1].T[::-1]
            sides.append(f'<path class="outline {name}" d="{outline_path(np.ascontiguousarray(shadow))}"/>')
    dx, _, dz = reference.spacing
    film = '<rect class="film" width="100%" height="100%"/>'
    content = f'{film}<g transform="scale({dx:g} {dz:g})">{background}{"".join(sides)}</g>'
    return svg(
        content, columns * dx, rows * dz, f"{case_id} from the front: reference and prediction outlined", css="scan"
    )


def _scan_file(folder: Path | None, case_id: str) -> Path | None:
    if folder is None:
        return None
    return next((path for end in (".nii.gz", ".nii") if (path := folder / f"{case_id}{end}").is_file()), None)


def lesion_map(case_id: str, lesions: list[Row]) -> Markup:
    """Draw the lesions of ``lesions.csv`` from the front: a ring is found, a triangle missed, a cross false."""
    marks = []
    for row in lesions:
        x, z = float(row["centroid_x_mm"]), float(row["centroid_z_mm"])
        is_reference, is_matched = row["role"] == "reference", row["matched"] == "true"
        kind = ("found" if is_matched else "missed") if is_reference else ("" if is_matched else "false")
        if kind:
            marks.append((-x, -z, float(row["equivalent_diameter_mm"]), kind))
    if not marks:
        return svg(
            '<text x="10" y="24">no lesion on either side</text>', 240, 40, f"{case_id}: no lesion on either side"
        )
    left, top = min(m[0] for m in marks) - 25, min(m[1] for m in marks) - 25
    width, height = max(m[0] for m in marks) - left + 25, max(m[1] for m in marks) - top + 25
    shapes = "".join(_mark(x - left, z - top, size, kind) for x, z, size, kind in marks)
    counts = ", ".join(f"{sum(m[3] == kind for m in marks)} {kind}" for kind in ("found", "missed", "false"))
    return svg(shapes, width, height, f"Places of the lesions of {case_id} from the front: {counts}", css="map")


def _mark(x: float, y: float, diameter: float, kind: str) -> str:
    r = max(2.5, min(diameter / 2, 12.0))
    if kind == "found":
        return f'<circle class="map-found" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
    if kind == "missed":
        side = r * math.sqrt(3)
        return (
            f'<path class="map-missed" d="M{x:.1f} {y - r:.1f}l{side / 1.5:.1f} {1.6 * r:.1f}h{-2 * side / 1.5:.1f}z"/>'
        )
    across = f"l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}"
    return f'<path class="map-false" d="M{x - r:.1f} {y - r:.1f}{across}"/>'
