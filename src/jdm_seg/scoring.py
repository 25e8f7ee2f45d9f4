"""The figures of one case: every metric of ``cases.csv``, and the rows of its lesions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.body_mask import bounding_box
from jdm_seg.components import LesionVoxels
from jdm_seg.lesions import SIZE_STRATA, equivalent_diameter_mm, size_stratum
from jdm_seg.metrics.ignore import outside_lesions
from jdm_seg.metrics.lesion import LesionCounts, MatchedLesions, find_both, match_lesions
from jdm_seg.metrics.protocol import LesionProtocol, apply_empty_rules
from jdm_seg.metrics.surface import cl_dice, distances_between, lesion_hd95, on_outline
from jdm_seg.metrics.voxel import check_same_shape, dice, volume_ml
from jdm_seg.volume import Grid

SURFACE_TOLERANCE_MM = 1.0
LENIENT_IOU = 0.1
"""Beside any overlap, the share of overlap at which a sheet or a nodule of two voxels still counts as found."""
FIGURES: dict[str, str] = {
    "dice": "higher",
    "lesion_tp": "",
    "lesion_fp": "lower",
    "lesion_fn": "lower",
    "lesion_precision": "higher",
    "lesion_recall": "higher",
    "lesion_f1": "higher",
    "volume_prediction_ml": "",
    "volume_reference_ml": "",
    "volume_error_ml": "",
    "false_positive_volume_ml": "lower",
    "false_negative_volume_ml": "lower",
    "surface_dice_1mm": "higher",
    "hd95_mm": "lower",
    "cl_dice": "higher",
    "lesion_f1_iou10": "higher",
    "segmentation_quality": "higher",
    "recognition_quality": "higher",
    "panoptic_quality": "higher",
    "lesion_dice": "higher",
    "lesion_hd95_mm": "lower",
    "scan_specificity": "higher",
    "absolute_volume_error_ml": "lower",
    "absolute_count_error": "lower",
}
"""Every figure of a case, in the order of ``cases.csv``, and which way is better; empty where neither is."""
LESION_COLUMNS = (
    "case_id",
    "role",
    "lesion",
    "volume_mm3",
    "equivalent_diameter_mm",
    "size_stratum",
    "counted",
    "matched",
    "matches",
    "dice",
    "centroid_x_mm",
    "centroid_y_mm",
    "centroid_z_mm",
)
FAILED_POLICY = (
    "A reference without a usable prediction scores 0 in every overlap and detection figure, with all its lesions "
    "missed; figures of the absent prediction are NaN. A case whose reference cannot be read is NaN throughout."
)
_FAILED_SCORES = (
    "dice",
    "lesion_precision",
    "lesion_f1",
    "surface_dice_1mm",
    "cl_dice",
    "lesion_f1_iou10",
    "recognition_quality",
    "panoptic_quality",
    "lesion_dice",
)

Describe = Callable[[LesionVoxels], list[dict[str, str]]]
Recalls = dict[str, dict[str, tuple[int, int]]]


@dataclass(frozen=True)
class CaseScore:
    """The figures of one case.

    Attributes:
        case_id: Name of the case.
        figures: One value per name in :data:`FIGURES`; NaN is undefined.
        lesions: Rows of ``lesions.csv``.
        recalls: By ``size`` and each attribute of the truth, then by its values: found and all reference lesions,
            whatever their size.
        error: Why the case failed; empty when it did not.
    """

    case_id: str
    figures: dict[str, float]
    lesions: list[dict[str, Any]]
    recalls: Recalls
    error: str = ""


def score_case(
    case_id: str,
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    grid: Grid,
    protocol: LesionProtocol,
    describe: Describe | None = None,
    ignore: NDArray[np.bool_] | None = None,
) -> CaseScore:
    """Score one case, on the box around what both masks hold.

    Args:
        case_id: Name of the case.
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.
        grid: That grid.
        protocol: How lesions are formed, matched and counted.
        describe: Gives each reference lesion its attributes, see :mod:`jdm_seg.metrics.attributes`.
        ignore: Where nothing counts, on the same grid, see :mod:`jdm_seg.metrics.ignore`; None: everywhere it does.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(prediction, reference)
    if ignore is not None:
        check_same_shape(ignore, reference)
        reference = reference & ~ignore
    box, part = _common_box(prediction, reference, grid)
    reference_shape = reference.shape
    prediction, reference = (np.ascontiguousarray(mask[box]) for mask in (prediction, reference))
    lesions, matched = _matched(prediction, reference, part, protocol, None if ignore is None else ignore[box])
    if ignore is not None:
        prediction = np.zeros_like(prediction)
        prediction[tuple(lesions[0].indices.T)] = True
    counts = matched.count()
    outlines = [side.indices[on_outline(side.indices)] * np.array(part.spacing) for side in lesions]
    distances = distances_between(outlines[0], outlines[1])
    figures = {
        "dice": dice(prediction, reference),
        **count_figures(counts),
        **_volume_figures(prediction, reference, matched),
        "surface_dice_1mm": distances.dice(SURFACE_TOLERANCE_MM),
        "hd95_mm": distances.hausdorff(95.0),
        "cl_dice": cl_dice(prediction, reference),
        **_quality_figures(matched),
        "lesion_dice": matched.mean_dice(),
        "lesion_hd95_mm": lesion_hd95(*lesions, matched, part.spacing),
        "scan_specificity": math.nan if lesions[1].count else float(lesions[0].count == 0),
        "absolute_count_error": abs(lesions[0].count - lesions[1].count),
    }
    figures = apply_empty_rules(
        {name: figures[name] for name in FIGURES},
        protocol,
        prediction_empty=not lesions[0].count,
        reference_empty=not lesions[1].count,
        tp=counts.tp,
        fp=counts.fp,
        fn=counts.fn,
    )
    described = [{}] * lesions[1].count if describe is None else describe(_moved(lesions[1], box, reference_shape))
    rows = lesion_rows(case_id, lesions, matched, part, described)
    return CaseScore(case_id, figures, rows, _recalls(matched, described))


def _matched(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    grid: Grid,
    protocol: LesionProtocol,
    ignore: NDArray[np.bool_] | None,
) -> tuple[tuple[LesionVoxels, LesionVoxels], MatchedLesions]:
    """Find and match the lesions of both masks, by :data:`~jdm_seg.metrics.ignore.IGNORE_RULE` where there is a zone.

    Returns:
        Predicted and reference lesions that count, and their matches.
    """
    whole, expected = find_both(prediction, reference, grid.spacing, protocol)
    outside = outside_lesions(whole, ignore)
    matched = match_lesions(outside.lesions, expected, grid, protocol)
    if ignore is not None:
        outside = outside.without(outside.excused & ~matched.prediction_hits)
        matched = replace(match_lesions(outside.lesions, expected, grid, protocol), excused=outside.excused)
    return (outside.lesions, expected), matched


def failed_case(
    case_id: str,
    reference: NDArray[np.bool_],
    grid: Grid,
    protocol: LesionProtocol,
    error: str,
    describe: Describe | None = None,
    ignore: NDArray[np.bool_] | None = None,
) -> CaseScore:
    """Score a case without prediction, as :data:`FAILED_POLICY` says: leaving hard cases out must not pay.

    Arguments as for :func:`score_case`; ``error`` is the reason.
    """
    score = score_case(case_id, np.zeros_like(reference), reference, grid, protocol, describe, ignore)
    kept = ("lesion_tp", "lesion_fn", "lesion_recall", "volume_reference_ml", "false_negative_volume_ml")
    figures = dict.fromkeys(FIGURES, math.nan) | dict.fromkeys(_FAILED_SCORES, 0.0)
    figures |= {name: score.figures[name] for name in kept}
    if not math.isnan(score.figures["scan_specificity"]):
        figures["scan_specificity"] = 0.0
    return CaseScore(case_id, figures, score.lesions, score.recalls, error)


def count_figures(counts: LesionCounts) -> dict[str, float]:
    """Return counts and what follows from them, by the names of ``cases.csv``."""
    return {
        "lesion_tp": counts.tp,
        "lesion_fp": counts.fp,
        "lesion_fn": counts.fn,
        "lesion_precision": counts.precision,
        "lesion_recall": counts.recall,
        "lesion_f1": counts.f1,
    }


def lesion_rows(
    case_id: str,
    lesions: tuple[LesionVoxels, LesionVoxels],
    matched: MatchedLesions,
    grid: Grid,
    described: Sequence[dict[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """List every lesion of both sides, for ``lesions.csv``.

    Args:
        case_id: Name of the case.
        lesions: Predicted and reference lesions.
        matched: Of the two.
        grid: Where they lie; centroids are in its RAS mm.
        described: Attributes of each reference lesion, added as columns.

    Returns:
        One row per lesion with the keys :data:`LESION_COLUMNS`, reference lesions first.
    """
    everyone = np.ones(lesions[0].count, dtype=bool)
    sides = (
        ("reference", 1, matched.reference_mm3, matched.counted, matched.reference_found),
        ("prediction", 0, matched.prediction_mm3, everyone, matched.prediction_hits),
    )
    overlap = matched.dice_by_reference()
    rows = []
    for role, side, volumes, *flags in sides:
        partners: dict[int, list[str]] = {}
        for pair in matched.pairs.tolist():
            partners.setdefault(pair[side], []).append(str(pair[1 - side]))
        centroids = lesions[side].centroids() @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        diameters = equivalent_diameter_mm(volumes)
        for place, (volume, diameter) in enumerate(zip(volumes, diameters, strict=True)):
            values = [case_id, role, place + 1, volume, diameter, size_stratum(diameter)]
            values += [str(bool(flag[place])).lower() for flag in flags]
            values += [" ".join(partners.get(place + 1, [])), overlap[place] if role == "reference" else ""]
            row = dict(zip(LESION_COLUMNS, (*values, *centroids[place]), strict=True))
            rows.append(row | (described[place] if described and role == "reference" else {}))
    return rows


def _common_box(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], grid: Grid
) -> tuple[tuple[slice, slice, slice], Grid]:
    """Return the box around both foregrounds, one voxel where there is none, and its grid."""
    boxes = [box for mask in (prediction, reference) if (box := bounding_box(mask))[0].stop]
    if not boxes:
        boxes = [(slice(0, 1),) * 3]
    along = [slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True)]
    box = (along[0], along[1], along[2])
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    x, y, z = (side.stop - side.start for side in box)
    return box, Grid((x, y, z), affine)


def _moved(lesions: LesionVoxels, box: tuple[slice, ...], shape: tuple[int, ...]) -> LesionVoxels:
    """Return the lesions of a box in the indices of the whole scan."""
    return LesionVoxels(shape, lesions.indices + [side.start for side in box], lesions.numbers)


def _volume_figures(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], matched: MatchedLesions
) -> dict[str, float]:
    predicted, expected = (volume_ml(mask, matched.voxel_volume_mm3) for mask in (prediction, reference))
    return {
        "volume_prediction_ml": predicted,
        "volume_reference_ml": expected,
        "volume_error_ml": predicted - expected,
        "absolute_volume_error_ml": abs(predicted - expected),
        "false_positive_volume_ml": matched.false_positive_ml,
        "false_negative_volume_ml": matched.false_negative_ml,
    }


def _quality_figures(matched: MatchedLesions) -> dict[str, float]:
    names = ("lesion_f1_iou10", "segmentation_quality", "recognition_quality", "panoptic_quality")
    if not matched.protocol.group_prediction:
        # a group on one side and its pieces on the other are not the same thing: their overlap means nothing
        return dict.fromkeys(names, math.nan)
    quality = matched.quality()
    lenient = matched.rematched(LENIENT_IOU, one_to_one=False).count().f1
    return dict(zip(names, (lenient, quality.segmentation, quality.recognition, quality.panoptic), strict=True))


def _recalls(matched: MatchedLesions, described: Sequence[dict[str, str]]) -> Recalls:
    found = matched.reference_found
    by_size = [size_stratum(diameter) for diameter in equivalent_diameter_mm(matched.reference_mm3)]
    recalls = {"size": _recall_of(by_size, found, SIZE_STRATA)}
    for name in sorted({key for row in described for key in row}):
        values = [row[name] for row in described]
        recalls[name] = _recall_of(values, found, sorted(set(values)))
    return recalls


def _recall_of(values: Sequence[str], found: NDArray[np.bool_], strata: Sequence[str]) -> dict[str, tuple[int, int]]:
    hits = [value for value, hit in zip(values, found, strict=True) if hit]
    return {stratum: (hits.count(stratum), values.count(stratum)) for stratum in strata}
