"""Score a folder of masks against a folder of reference masks.

A number here never depends on how a mask was made: both sides are read from disk, so a network, a threshold and a human
reader are scored alike. Undefined figures stay NaN and are counted; a case without a usable prediction is scored as
one that found nothing, and named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.errors import CaseNotFoundError, InputError, reason_of
from jdm_seg.lesions import SIZE_STRATA, equivalent_diameter_mm, label_lesions, read_mask, size_stratum
from jdm_seg.metrics.lesion import LesionCounts, LesionProtocol, MatchedLesions, match_labels
from jdm_seg.metrics.surface import cl_dice, surface_distances
from jdm_seg.metrics.voxel import EMPTY_POLICY, dice, ratio, volume_ml
from jdm_seg.volume import NIFTI_SUFFIXES, Grid, case_id_of, write_table, write_text

SCHEMA_VERSION = 1
SURFACE_TOLERANCE_MM = 1.0
FIGURES = (
    "dice",
    "lesion_tp",
    "lesion_fp",
    "lesion_fn",
    "lesion_precision",
    "lesion_recall",
    "lesion_f1",
    "volume_prediction_ml",
    "volume_reference_ml",
    "volume_error_ml",
    "false_positive_volume_ml",
    "false_negative_volume_ml",
    "surface_dice_1mm",
    "hd95_mm",
    "cl_dice",
)
CASE_COLUMNS = ("case_id", *FIGURES, "status", "error")
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
)
FAILED_POLICY = (
    "A reference without a usable prediction scores 0 in every overlap and detection figure, with all its lesions "
    "missed; figures of the absent prediction are NaN. A case whose reference cannot be read is NaN throughout."
)
_FAILED_SCORES = ("dice", "lesion_precision", "lesion_f1", "surface_dice_1mm", "cl_dice")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CaseScore:
    """The figures of one case.

    Attributes:
        case_id: Name of the case.
        figures: One value per name in :data:`FIGURES`; NaN is undefined.
        lesions: Rows of ``lesions.csv``.
        recalls: Per size stratum, found and all reference lesions, whatever their size.
        error: Why the case failed; empty when it did not.
    """

    case_id: str
    figures: dict[str, float]
    lesions: list[dict[str, Any]]
    recalls: dict[str, tuple[int, int]]
    error: str = ""


def evaluate_folders(
    predictions: Path,
    references: Path,
    out: Path,
    protocol: LesionProtocol | None = None,
    *,
    seed: int = 0,
    n_bootstrap: int = 2000,
    on_case: Progress | None = None,
) -> dict[str, Any]:
    """Score every reference mask, write ``cases.csv``, ``lesions.csv`` and ``summary.json``.

    Masks are matched by case id: ``<id>.nii.gz``, ``<id>.nii`` or ``<id>/mask.nii.gz``. Storage orientation does not
    matter; place does.

    Args:
        predictions: Folder of masks to score.
        references: Folder of reference masks: these are the cases.
        out: Folder for the results.
        protocol: How lesions are formed and counted; default :class:`~jdm_seg.metrics.lesion.LesionProtocol`.
        seed: Of the bootstrap.
        n_bootstrap: Number of resamples of the cases.
        on_case: Called with cases done, cases in all and the case id just finished.

    Returns:
        The content of ``summary.json``; ``failed`` maps each failed case to its reason and is empty when all went well.

    Raises:
        CaseNotFoundError: If a folder does not exist or holds no mask.
        InputError: If two files claim one case id.
    """
    protocol = LesionProtocol() if protocol is None else protocol
    predicted, expected = find_masks(predictions), find_masks(references)
    scores = []
    for done, (case_id, reference) in enumerate(expected.items(), start=1):
        scores.append(_score_files(case_id, predicted.get(case_id), reference, protocol))
        if on_case is not None:
            on_case(done, len(expected), case_id)
    summary = summarize(scores, protocol, seed=seed, n_bootstrap=n_bootstrap)
    summary["ignored_predictions"] = sorted(set(predicted) - set(expected))
    rows = [{"case_id": s.case_id, **s.figures, "status": _status(s), "error": s.error} for s in scores]
    write_table(out / "cases.csv", CASE_COLUMNS, rows)
    write_table(out / "lesions.csv", LESION_COLUMNS, (row for score in scores for row in score.lesions))
    text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(out / "summary.json", text)
    return summary


def find_masks(folder: Path) -> dict[str, Path]:
    """Map case ids to masks, sorted by id.

    Raises:
        CaseNotFoundError: If the folder does not exist or holds no mask.
        InputError: If two files claim one case id.
    """
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            masks = [entry / f"mask{suffix}" for suffix in NIFTI_SUFFIXES if (entry / f"mask{suffix}").is_file()]
            found.setdefault(entry.name, []).extend(masks)
        elif entry.name.lower().endswith(NIFTI_SUFFIXES):
            found.setdefault(case_id_of(entry), []).append(entry)
    found = {case_id: paths for case_id, paths in sorted(found.items()) if paths}
    if not found:
        raise CaseNotFoundError(
            folder,
            expected="masks named <id>.nii.gz or <id>/mask.nii.gz",
            found="none" if folder.is_dir() else "no such folder",
            remedy="check the path",
        )
    for case_id, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(path.relative_to(folder).as_posix() for path in paths)
            raise InputError(case_id, expected="one mask", found=names, remedy="keep one of them")
    return {case_id: paths[0] for case_id, paths in found.items()}


def score_case(
    case_id: str,
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    grid: Grid,
    protocol: LesionProtocol,
) -> CaseScore:
    """Score one case.

    Args:
        case_id: Name of the case.
        prediction: Mask, shape (X, Y, Z).
        reference: Mask on the same grid.
        grid: That grid.
        protocol: How lesions are formed and counted.

    Raises:
        ValueError: If the shapes differ.
    """
    matched = _match(prediction, reference, grid, protocol)
    counts = matched.count(protocol)
    distances = surface_distances(prediction, reference, grid.spacing)
    volumes = [volume_ml(mask, grid.voxel_volume_mm3) for mask in (prediction, reference)]
    figures = {
        "dice": dice(prediction, reference),
        **_count_figures(counts),
        "volume_prediction_ml": volumes[0],
        "volume_reference_ml": volumes[1],
        "volume_error_ml": volumes[0] - volumes[1],
        "false_positive_volume_ml": matched.false_positive_ml,
        "false_negative_volume_ml": matched.false_negative_ml,
        "surface_dice_1mm": distances.dice(SURFACE_TOLERANCE_MM),
        "hd95_mm": distances.hausdorff(95.0),
        "cl_dice": cl_dice(prediction, reference),
    }
    return CaseScore(case_id, figures, _lesion_rows(case_id, matched, protocol), _recalls(matched))


def summarize(
    scores: Sequence[CaseScore], protocol: LesionProtocol, *, seed: int = 0, n_bootstrap: int = 2000
) -> dict[str, Any]:
    """Summarise cases: mean, median and bootstrap interval of each figure, recall by size, and the protocol.

    Args:
        scores: One per case; cases are taken for patients.
        protocol: What the scores were made with.
        seed: Of the bootstrap.
        n_bootstrap: Number of resamples.

    Returns:
        A dictionary ready for JSON; undefined values are None.
    """

    def describe(values: list[float]) -> dict[str, Any]:
        return _describe(np.array(values, dtype=float), seed, n_bootstrap)

    by_size = {}
    for stratum in SIZE_STRATA:
        pairs = [score.recalls.get(stratum, (0, 0)) for score in scores]
        by_size[stratum] = {
            **describe([ratio(*pair) for pair in pairs]),
            "found": sum(found for found, _ in pairs),
            "lesions": sum(total for _, total in pairs),
        }
    totals = [np.nansum([score.figures[f"lesion_{name}"] for score in scores]) for name in ("tp", "fp", "fn")]
    pooled = LesionCounts(*(int(total) for total in totals))
    return {
        "schema_version": SCHEMA_VERSION,
        "n_cases": len(scores),
        "n_failed": sum(1 for score in scores if score.error),
        "failed": {score.case_id: score.error for score in scores if score.error},
        "figures": {name: describe([score.figures[name] for score in scores]) for name in FIGURES},
        "recall_by_size": by_size,
        "lesions_pooled": {name: _json(value) for name, value in _count_figures(pooled).items()},
        "protocol": {
            **asdict(protocol),
            "size_cut": "lesions are matched first; reference lesions under min_volume_mm3 are then neither found nor "
            "missed; false lesions count at any size; recall_by_size counts every reference lesion",
            "surface_tolerance_mm": SURFACE_TOLERANCE_MM,
            "interval": f"95 % percentile bootstrap of the mean over cases, {n_bootstrap} resamples, seed {seed}",
            "empty_policy": EMPTY_POLICY,
            "failed_policy": FAILED_POLICY,
        },
    }


def _score_files(case_id: str, prediction: Path | None, reference: Path, protocol: LesionProtocol) -> CaseScore:
    """Score one case from disk; whatever is wrong with its files ends in its own row."""
    nothing = CaseScore(case_id, dict.fromkeys(FIGURES, math.nan), [], {})
    try:
        expected = read_mask(reference, case_id).to_canonical()
    except (InputError, OSError, ValueError) as error:
        return CaseScore(case_id, nothing.figures, [], {}, reason_of(error))
    try:
        if prediction is None:
            raise CaseNotFoundError(
                case_id, expected="a prediction", found="none", remedy="run the prediction for this case"
            )
        found = read_mask(prediction, case_id).to_canonical()
        expected.check_same_grid(found, "prediction")
    except (InputError, OSError, ValueError) as error:
        return _failed(case_id, expected.array, expected.grid, protocol, reason_of(error))
    return score_case(case_id, found.array, expected.array, expected.grid, protocol)


def _failed(case_id: str, reference: NDArray[np.bool_], grid: Grid, protocol: LesionProtocol, error: str) -> CaseScore:
    """Score a case without prediction, as :data:`FAILED_POLICY` says: leaving hard cases out must not pay."""
    matched = _match(np.zeros_like(reference), reference, grid, protocol)
    counts = matched.count(protocol)
    figures = dict.fromkeys(FIGURES, math.nan) | dict.fromkeys(_FAILED_SCORES, 0.0)
    figures |= {"lesion_tp": 0, "lesion_fn": counts.fn, "lesion_recall": counts.recall}
    figures |= {
        "volume_reference_ml": volume_ml(reference, grid.voxel_volume_mm3),
        "false_negative_volume_ml": matched.false_negative_ml,
    }
    return CaseScore(case_id, figures, _lesion_rows(case_id, matched, protocol), _recalls(matched), error)


def _match(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], grid: Grid, protocol: LesionProtocol
) -> MatchedLesions:
    labels = [
        label_lesions(mask, grid.spacing, connectivity=protocol.connectivity, grouping_mm=protocol.grouping_mm)
        for mask in (prediction, reference)
    ]
    return match_labels(labels[0], labels[1], grid.voxel_volume_mm3)


def _count_figures(counts: LesionCounts) -> dict[str, float]:
    return {
        "lesion_tp": counts.tp,
        "lesion_fp": counts.fp,
        "lesion_fn": counts.fn,
        "lesion_precision": counts.precision,
        "lesion_recall": counts.recall,
        "lesion_f1": counts.f1,
    }


def _recalls(matched: MatchedLesions) -> dict[str, tuple[int, int]]:
    strata = [size_stratum(diameter) for diameter in equivalent_diameter_mm(matched.reference_mm3)]
    found = [stratum for stratum, hit in zip(strata, matched.reference_found, strict=True) if hit]
    return {stratum: (found.count(stratum), strata.count(stratum)) for stratum in SIZE_STRATA}


def _lesion_rows(case_id: str, matched: MatchedLesions, protocol: LesionProtocol) -> list[dict[str, Any]]:
    sides = (
        ("reference", matched.reference_mm3, matched.reference_found, matched.counted(protocol), 1),
        ("prediction", matched.prediction_mm3, matched.prediction_hits, np.ones(len(matched.prediction_mm3), bool), 0),
    )
    rows = []
    for role, volumes, hits, counted, column in sides:
        partners: dict[int, list[str]] = {}
        for pair in matched.matches.pairs:
            partners.setdefault(int(pair[column]), []).append(str(pair[1 - column]))
        for number, (volume, diameter) in enumerate(zip(volumes, equivalent_diameter_mm(volumes), strict=True), 1):
            values = (case_id, role, number, volume, diameter, size_stratum(diameter))
            flags = (str(bool(flag[number - 1])).lower() for flag in (counted, hits))
            rows.append(dict(zip(LESION_COLUMNS, (*values, *flags, " ".join(partners.get(number, []))), strict=True)))
    return rows


def _describe(values: NDArray[np.float64], seed: int, n_bootstrap: int) -> dict[str, Any]:
    """Describe the defined values; with one case the interval is that case's value, there is nothing to resample."""
    defined = values[~np.isnan(values)]
    low = high = mean = median = math.nan
    if defined.size:
        mean, median = float(defined.mean()), float(np.median(defined))
        draws = np.random.default_rng(seed).integers(0, defined.size, (n_bootstrap, defined.size))
        low, high = (float(end) for end in np.percentile(defined[draws].mean(axis=1), (2.5, 97.5)))
    return {
        "mean": _json(mean),
        "median": _json(median),
        "ci_low": _json(low),
        "ci_high": _json(high),
        "n": int(defined.size),
        "n_undefined": int(values.size - defined.size),
    }


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value


def _status(score: CaseScore) -> str:
    return "failed" if score.error else "ok"
