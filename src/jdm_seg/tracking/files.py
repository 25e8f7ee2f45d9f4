"""Change between two predicted cases on disk: reads both folders, writes table, summary and figure."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.lesions import Lesion
from jdm_seg.pictures import project
from jdm_seg.provenance import sha256_of
from jdm_seg.tracking.fates import (
    CHANGE_COLUMNS,
    Change,
    Timepoint,
    change_rows,
    fates_by_lesion,
    summarise,
    track_lesions,
)
from jdm_seg.tracking.registration import Alignment, align_scans
from jdm_seg.volume import Volume, atomic_write, read_volume, write_table, write_text

TABLE, SUMMARY, FIGURE = "changes.csv", "change.json", "change.png"
_NEEDED = ("lesions.nii.gz", "lesions.csv", "burden.json")
_MARKS = {
    "new": ("#d55e00", "^"),
    "grown": ("#e69f00", "o"),
    "stable": ("#bbbbbb", "o"),
    "shrunk": ("#56b4e9", "o"),
    "resolved": ("#009e73", "v"),
    "merged": ("#cc79a7", "s"),
    "split": ("#f0e442", "D"),
    "uncertain": ("#ffffff", "x"),
    "out_of_view": ("#ffffff", "+"),
}
"""Colours that all common colour vision tells apart (Okabe and Ito 2008), and a shape each."""


def track_folders(
    baseline: Path,
    follow_up: Path,
    out: Path,
    *,
    baseline_scan: Path | None = None,
    follow_up_scan: Path | None = None,
) -> dict[str, Any]:
    """Compare two measured cases; write ``changes.csv``, ``change.json`` and ``change.png``.

    Args:
        baseline: Folder of the earlier case: holds ``lesions.nii.gz``, ``lesions.csv`` and ``burden.json``.
        follow_up: Folder of the later case.
        out: Folder for the results.
        baseline_scan: The scan that the baseline folder was made from, to register with; None, like the next, compares
            in scanner coordinates and says so.
        follow_up_scan: The scan of the follow-up folder.

    Returns:
        The content of ``change.json``.

    Raises:
        InputError: If the folders are of two modalities, only one scan is given, or a scan is not the one that was
            segmented.
        CaseNotFoundError: If a folder is no measured case.
    """
    points = (read_timepoint(baseline), read_timepoint(follow_up))
    modalities = [point.burden["modality"] for point in points]
    if modalities[0] != modalities[1]:
        raise InputError(
            follow_up, expected=f"a {modalities[0]} case like the baseline", found=modalities[1], remedy="compare alike"
        )
    if (baseline_scan is None) != (follow_up_scan is None):
        raise InputError(
            "--baseline-scan, --follow-up-scan",
            expected="both scans or none",
            found="one of them",
            remedy="give the other too",
        )
    alignment, scans = Alignment(np.eye(4)), None
    if baseline_scan is not None and follow_up_scan is not None:
        scans = tuple(
            _read_scan(path, point) for path, point in zip((baseline_scan, follow_up_scan), points, strict=True)
        )
        places = np.concatenate([np.zeros((0, 3)), *points[0].points().values()])
        alignment = align_scans(scans[0], scans[1], modalities[0], places)
    changes = track_lesions(*points, alignment)
    summary = summarise(changes, *points, alignment)
    write_table(out / TABLE, CHANGE_COLUMNS, change_rows(changes))
    write_text(out / SUMMARY, json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    write_figure(out / FIGURE, points, changes, scans)
    return summary


def read_timepoint(folder: Path) -> Timepoint:
    """Read a case that ``predict`` or ``burden`` measured.

    Raises:
        CaseNotFoundError: If a file is missing.
        InputError: If the table and the labels do not belong together.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise CaseNotFoundError(
            folder,
            expected="a case folder that jdm-seg predict or burden made",
            found=f"no {', '.join(missing)} in it",
            remedy="point at OUT/<case_id>, or run predict first",
        )
    labels = read_volume(folder / "lesions.nii.gz")
    with (folder / "lesions.csv").open(newline="", encoding="utf-8") as stream:
        lesions = [_lesion(row) for row in csv.DictReader(stream)]
    if sorted(lesion.lesion for lesion in lesions) != np.unique(labels.array[labels.array > 0]).tolist():
        raise InputError(
            folder,
            expected="one row in lesions.csv for every number in lesions.nii.gz",
            found="others",
            remedy="measure the case again",
        )
    return Timepoint(labels, lesions, json.loads((folder / "burden.json").read_text(encoding="utf-8")))


def _lesion(row: dict[str, str]) -> Lesion:
    hints = get_type_hints(Lesion)
    values: dict[str, Any] = {}
    for item in fields(Lesion):
        text = row.get(item.name)
        if text is None or text == "":
            continue  # an older table has fewer columns
        kind = hints[item.name]
        values[item.name] = int(text) if kind is int else text if "str" in str(kind) else float(text)
    return Lesion(**values)


def _read_scan(path: Path, point: Timepoint) -> Volume:
    """Read a scan and make sure that it is the one that was segmented."""
    scan = read_volume(path)
    scan.check_same_grid(point.labels, "lesions")
    known = (point.burden.get("prediction") or {}).get("scan_sha256")
    if known is not None and sha256_of(path) != known:
        raise InputError(
            path,
            expected=f"the scan that case {point.burden['case_id']} was made from",
            found="another one on the same grid",
            remedy="give the scan that was segmented",
        )
    return scan


def write_figure(
    path: Path, points: tuple[Timepoint, Timepoint], changes: list[Change], scans: tuple[Volume, ...] | None
) -> None:
    """Write both scans from the front with every lesion marked by its fate, and the largest changes as bars.

    Args:
        path: PNG to write, whole or not at all.
        points: Baseline and follow-up.
        changes: What became of their lesions.
        scans: The scans, for the background; None shows the lesions alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second that no other verb should pay
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    fates = fates_by_lesion(changes)
    for time, (axes, name) in enumerate(((left, "baseline"), (middle, "follow-up"))):
        _draw_scan(axes, points[time], fates[time], None if scans is None else scans[time])
        axes.set_title(f"{name}: {len(points[time].lesions)} lesions", fontsize=10)
    _draw_bars(right, changes)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_scan(axes: Any, point: Timepoint, fates: dict[int, str], scan: Volume | None) -> None:
    labels = point.labels.to_canonical()
    is_ct = point.burden["modality"] == "ct"
    if scan is None:
        picture: NDArray[Any] = np.zeros((labels.array.shape[2], labels.array.shape[0]))
        limits = (0.0, 1.0)
    else:
        picture, _ = project(scan.to_canonical().array, labels.array > 0, 1, maximum=is_ct)
        limits = (-100.0, 900.0) if is_ct else (0.0, float(np.percentile(picture, 99.5)) or 1.0)
    dx, _, dz = labels.spacing
    extent = (picture.shape[1] * dx, 0.0, 0.0, picture.shape[0] * dz)  # patient's right on the left
    axes.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1], extent=extent, aspect="equal")
    inverse = np.linalg.inv(labels.affine)
    for lesion in point.lesions:
        centre = np.array([lesion.centroid_x_mm, lesion.centroid_y_mm, lesion.centroid_z_mm])
        x, _, z = inverse[:3, :3] @ centre + inverse[:3, 3]
        colour, marker = _MARKS[fates.get(lesion.lesion, "uncertain")]
        size = 12 + 2.5 * lesion.equivalent_diameter_mm
        fill = {"color": colour} if marker in "x+" else {"facecolor": "none", "edgecolor": colour}
        place = ((x + 0.5) * dx, (z + 0.5) * dz)
        axes.scatter(*place, s=size, marker=marker, linewidths=1.1, **fill)
        away = 2 + 0.5 * size**0.5  # points: beside the mark
        axes.annotate(
            str(lesion.lesion), place, xytext=(away, away), textcoords="offset points", fontsize=7, color=colour
        )
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_axis_off()


def _draw_bars(axes: Any, changes: list[Change], most: int = 30) -> None:
    changes = [change for change in changes if change.fate != "out_of_view"]  # that is no change
    shown = changes[:most]
    unit = {"mass_mg_ha": "mg hydroxyapatite", "volume_integrated_mm3": "mm³", "volume_mm3": "mm³"}
    for row, change in enumerate(shown):
        axes.barh(row, change.change, color=_MARKS[change.fate][0], edgecolor="black", linewidth=0.5)
        detectable = change.smallest_detectable_change
        axes.plot([-detectable, detectable], [row, row], color="black", linewidth=0.8)
    names = [f"{c.fate}  {c.baseline or '–'} → {c.follow_up or '–'}" for c in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"change in {unit[shown[0].measure] if shown else 'mm³'}; line: smallest detectable", fontsize=8)
    more = f" (largest {most} of {len(changes)})" if len(changes) > most else ""
    axes.set_title(f"change by lesion{more}", fontsize=10)
