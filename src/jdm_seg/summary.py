"""From the scores of cases to the figures of a method, and to the difference between two methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from jdm_seg import statistics
from jdm_seg.lesions import SIZE_STRATA
from jdm_seg.metrics.ignore import IGNORE_RULE
from jdm_seg.metrics.lesion import LesionCounts
from jdm_seg.metrics.protocol import EMPTY_RULES, LesionProtocol
from jdm_seg.metrics.voxel import EMPTY_POLICY, ratio
from jdm_seg.scoring import FAILED_POLICY, FIGURES, LENIENT_IOU, SURFACE_TOLERANCE_MM, CaseScore, count_figures

SCHEMA_VERSION = 1
COMPARISON_COLUMNS = (
    "figure",
    "better",
    "mean_first",
    "mean_second",
    "difference",
    "ci_low",
    "ci_high",
    "effect",
    "p",
    "p_holm",
    "p_wilcoxon",
    "n",
    "n_undefined",
    "n_patients",
)


def summarize(
    scores: Sequence[CaseScore],
    protocol: LesionProtocol,
    *,
    subjects: Mapping[str, str] | None = None,
    strata: Mapping[str, str] | None = None,
    seed: int = 0,
    n_bootstrap: int = 2000,
) -> dict[str, Any]:
    """Summarise cases: mean, median and bootstrap interval of each figure, recall by stratum, agreement of volumes.

    Args:
        scores: One per case.
        protocol: What the scores were made with.
        subjects: Subject by case id; a case that is not in it is a subject of its own.
        strata: Stratum by case id; each is summarised on its own as well, under ``by_stratum``.
        seed: Of the bootstrap.
        n_bootstrap: Number of resamples.

    Returns:
        A dictionary ready for JSON; undefined values are None.
    """
    summary = _summary_of(scores, protocol, subjects, {"seed": seed, "n_resamples": n_bootstrap})
    summary["volume_agreement"] = _volume_agreement(scores)
    parts = {name: [s for s in scores if strata and strata.get(s.case_id) == name] for name in _names_of(strata)}
    kept = ("n_cases", "n_failed", "figures", "recall_by_size", "recall_by", "lesions_pooled")
    summary["by_stratum"] = {
        name: {key: part[key] for key in kept}
        for name, members in parts.items()
        if members
        for part in [_summary_of(members, protocol, subjects, {"seed": seed, "n_resamples": n_bootstrap})]
    }
    return summary


def _names_of(strata: Mapping[str, str] | None) -> list[str]:
    """Return the strata in the order in which cases name them."""
    return list(dict.fromkeys((strata or {}).values()))


def _summary_of(
    scores: Sequence[CaseScore],
    protocol: LesionProtocol,
    subjects: Mapping[str, str] | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    patients = patients_of(scores, subjects)

    def describe(values: list[float]) -> dict[str, Any]:
        return _describe(values, patients, settings)

    def recall(attribute: str, stratum: str) -> dict[str, Any]:
        pairs = [score.recalls.get(attribute, {}).get(stratum, (0, 0)) for score in scores]
        found, lesions = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
        false = [0.0 if score.error else score.figures["lesion_fp"] for score in scores]
        return {
            **describe([ratio(*pair) for pair in pairs]),
            "lesion_f1": describe([ratio(2 * f, f + n + fp) for (f, n), fp in zip(pairs, false, strict=True)]),
            "found": int(found.sum()),
            "lesions": int(lesions.sum()),
            "pooled": _estimate(statistics.bootstrap_ratio(found, lesions, patients, **settings)),
        }

    by_attribute = {
        name: sorted({s for score in scores for s in score.recalls.get(name, {})}) for name in _attributes(scores)
    }
    undefined = {name: [score.case_id for score in scores if math.isnan(score.figures[name])] for name in FIGURES}
    return {
        "schema_version": SCHEMA_VERSION,
        "n_cases": len(scores),
        "n_patients": len(set(patients)),
        "n_failed": sum(1 for score in scores if score.error),
        "failed": {score.case_id: score.error for score in scores if score.error},
        "figures": {name: describe([score.figures[name] for score in scores]) for name in FIGURES},
        "undefined": {name: cases for name, cases in undefined.items() if cases},
        "recall_by_size": {stratum: recall("size", stratum) for stratum in SIZE_STRATA},
        "recall_by": {
            name: {stratum: recall(name, stratum) for stratum in strata} for name, strata in by_attribute.items()
        },
        "lesions_pooled": _pooled(scores, patients, settings),
        "protocol": _protocol(protocol, settings, len(set(patients))),
    }


def compare_scores(
    first: Sequence[CaseScore],
    second: Sequence[CaseScore],
    *,
    subjects: Mapping[str, str] | None = None,
    seed: int = 0,
    n_bootstrap: int = 2000,
) -> list[dict[str, Any]]:
    """Compare two methods on the same cases, figure by figure: rows of ``comparison.csv``.

    Args:
        first: Scores of the first method.
        second: Scores of the second, of the same cases in the same order.
        subjects: Subject by case id.
        seed: Of bootstrap and permutation.
        n_bootstrap: Number of resamples.

    Returns:
        One row per figure with the keys :data:`COMPARISON_COLUMNS`; differences are first minus second. ``p_holm`` is
        adjusted for the number of figures that have a better side.

    Raises:
        ValueError: If the cases differ.
    """
    if [score.case_id for score in first] != [score.case_id for score in second]:
        raise ValueError("expected scores of the same cases in one order, but got others")
    patients = patients_of(first, subjects)
    rows: list[dict[str, Any]] = []
    for name, better in FIGURES.items():
        sides = [[score.figures[name] for score in scores] for scores in (first, second)]
        comparison = statistics.compare_paired(sides[0], sides[1], patients, seed=seed, n_resamples=n_bootstrap)
        rows.append({"figure": name, "better": better, **asdict(comparison)})
    tested = [row for row in rows if row["better"]]
    adjusted = statistics.holm([row["p"] for row in tested])
    for row in rows:
        row["p_holm"] = math.nan
    for row, value in zip(tested, adjusted, strict=True):
        row["p_holm"] = value
    return [{name: row[name] for name in COMPARISON_COLUMNS} for row in rows]


def patients_of(scores: Sequence[CaseScore], subjects: Mapping[str, str] | None) -> list[str]:
    """Return the subject of each case; a case without one is a subject of its own."""
    known = subjects or {}
    # a case id that happens to be another's subject id must not join it
    return [f"subject {known[s.case_id]}" if s.case_id in known else f"case {s.case_id}" for s in scores]


def finite_or_none(value: float) -> float | None:
    """Return what JSON can hold: NaN and infinity become None."""
    return float(value) if math.isfinite(value) else None


def _describe(values: list[float], patients: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    array = np.array(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    mean = statistics.bootstrap_ratio(array, None, patients, **settings)
    described: dict[str, Any] = {
        "mean": finite_or_none(mean.value),
        "median": finite_or_none(float(np.median(defined))) if defined.size else None,
        "ci_low": finite_or_none(mean.ci_low),
        "ci_high": finite_or_none(mean.ci_high),
        "n": int(defined.size),
        "n_undefined": int(array.size - defined.size),
    }
    if np.isinf(defined).any():  # only where a protocol asks for it; the mean is then infinite, which JSON cannot hold
        described["n_infinite"] = int(np.isinf(defined).sum())
    return described


def _attributes(scores: Sequence[CaseScore]) -> list[str]:
    return sorted({name for score in scores for name in score.recalls} - {"size"})


def _pooled(scores: Sequence[CaseScore], patients: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Add up all lesions of all cases; intervals resample patients."""
    counts = np.array([[score.figures[f"lesion_{name}"] for name in ("tp", "fp", "fn")] for score in scores])
    tp, fp, fn = counts.reshape(-1, 3).T
    total = LesionCounts(*(int(np.nansum(side)) for side in (tp, fp, fn)))
    pooled: dict[str, Any] = {
        n: v if isinstance(v, int) else finite_or_none(v) for n, v in count_figures(total).items()
    }
    # a failed case knows what it missed, but not what it would have found falsely
    false = np.nan_to_num(fp)
    for name, above, below in (
        ("lesion_precision", tp, tp + false),
        ("lesion_recall", tp, tp + fn),
        ("lesion_f1", 2 * tp, 2 * tp + false + fn),
    ):
        interval = statistics.bootstrap_ratio(above, below, patients, **settings)
        pooled[f"{name}_ci"] = [finite_or_none(interval.ci_low), finite_or_none(interval.ci_high)]
    return pooled


def _volume_agreement(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Compare predicted with reference volumes over cases: ICC, CCC and Bland-Altman, in mL and log1p(mL)."""
    sides = [
        np.array([score.figures[f"volume_{side}_ml"] for score in scores], dtype=np.float64)
        for side in ("prediction", "reference")
    ]
    agreement: dict[str, Any] = {"n": int(np.isfinite(sides).all(axis=0).sum()), "n_undefined": 0}
    agreement["n_undefined"] = len(scores) - agreement["n"]
    for scale, values in (("ml", sides), ("log1p_ml", [np.log1p(side) for side in sides])):
        limits = statistics.bland_altman(values[0], values[1])
        table = np.stack(values, axis=1)
        agreement[scale] = {
            "icc_2_1": _estimate(statistics.icc(table, model=2)),
            "icc_3_1": _estimate(statistics.icc(table, model=3)),
            "ccc": _estimate(statistics.concordance(values[0], values[1])),
            "bias": _estimate(limits.bias),
            "lower_limit": _estimate(limits.lower_limit),
            "upper_limit": _estimate(limits.upper_limit),
        }
    return agreement


def _estimate(estimate: statistics.Estimate) -> dict[str, float | None]:
    return {name: finite_or_none(value) for name, value in asdict(estimate).items()}


def _protocol(protocol: LesionProtocol, settings: dict[str, Any], n_patients: int) -> dict[str, Any]:
    return {
        "name": protocol.name,
        **asdict(protocol),
        "size_cut": "lesions are matched first; reference lesions under min_volume_mm3 are then neither found nor "
        "missed; false lesions count at any size; recall_by_size and recall_by count every reference lesion",
        "surface_tolerance_mm": SURFACE_TOLERANCE_MM,
        "lenient_iou": LENIENT_IOU,
        "interval": f"95 % percentile bootstrap of the mean over cases, {n_patients} patients resampled, "
        f"{settings['n_resamples']} resamples, seed {settings['seed']}",
        "agreement": "ICC and CCC with 95 % intervals, Bland-Altman bias and 95 % limits, prediction minus reference, "
        "cases taken as independent; on log1p(mL) a limit L reads as a ratio exp(L) of 1 + mL",
        "empty_policy": EMPTY_POLICY,
        "empty_rules": [str(rule) for rule in EMPTY_RULES[protocol.empty]],
        "failed_policy": FAILED_POLICY,
        "ignore_rule": IGNORE_RULE,
    }
