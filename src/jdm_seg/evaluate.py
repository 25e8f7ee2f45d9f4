"""Score a folder of masks against a folder of reference masks, or two such folders against each other.

A number here never depends on how a mask was made: both sides are read from disk, so a network, a threshold and a human
reader are scored alike. Undefined figures stay NaN and are counted; a case without a usable prediction is scored as
one that found nothing, and named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jdm_seg.cases import DATALIST, read_strata, read_subjects
from jdm_seg.components import LesionVoxels
from jdm_seg.errors import CaseNotFoundError, InputError, reason_of
from jdm_seg.lesions import read_mask
from jdm_seg.metrics.attributes import lesion_attributes, read_faint, read_instances, read_rows
from jdm_seg.metrics.protocol import LesionProtocol
from jdm_seg.scoring import FIGURES, LESION_COLUMNS, CaseScore, Describe, failed_case, score_case
from jdm_seg.summary import (
    COMPARISON_COLUMNS,
    SCHEMA_VERSION,
    compare_scores,
    finite_or_none,
    patients_of,
    summarize,
)
from jdm_seg.volume import NIFTI_SUFFIXES, Volume, case_id_of, write_table, write_text

CASE_COLUMNS = ("case_id", *FIGURES, "status", "error")
RECORDS = "records"
"""Folder beside the references where ``jdm-seg synthesize`` writes what it knows of each deposit."""
IGNORE = "ignore"
"""Folder beside the references with the zones in which nothing counts."""


@dataclass(frozen=True)
class EvaluateSettings:
    """What an evaluation needs besides the masks.

    Attributes:
        protocol: How lesions are formed, matched and counted.
        attributes: Folder of tables of lesion attributes, see :mod:`jdm_seg.metrics.attributes`; default the
            ``records`` beside the references, if there are any.
        subjects: Manifest, or CSV table of ``case_id`` and ``subject_id``; default the ``datalist.json`` beside the
            references, if there is one. Cases of one subject are resampled together.
        ignore: Folder of masks named as the references: what they mark does not count, see
            :data:`jdm_seg.metrics.ignore.IGNORE_RULE`; default the ``ignore`` beside the references, if there is one.
        seed: Of bootstrap and permutation.
        n_bootstrap: Number of resamples.
    """

    protocol: LesionProtocol = field(default_factory=LesionProtocol)
    attributes: Path | None = None
    subjects: Path | None = None
    ignore: Path | None = None
    seed: int = 0
    n_bootstrap: int = 2000

    def strata_of(self, references: Path) -> dict[str, str]:
        """Return the stratum of each case that a datalist beside the references names."""
        beside = references.parent / DATALIST
        return read_strata(beside) if beside.is_file() else {}

    def zones_of(self, references: Path) -> dict[str, Path]:
        """Return the ignore zone of each case that has one.

        Raises:
            CaseNotFoundError: If the folder that was named does not exist or holds no mask.
        """
        beside = references.parent / IGNORE
        if self.ignore is not None:
            return find_masks(self.ignore)
        return find_masks(beside) if beside.is_dir() and beside.resolve() != references.resolve() else {}

    def subjects_of(self, references: Path) -> dict[str, str]:
        """Return the subject of each case that the table or a datalist beside the references knows."""
        beside = references.parent / DATALIST
        if self.subjects is not None:
            return read_subjects(self.subjects)
        return read_subjects(beside) if beside.is_file() else {}

    def attributes_of(self, references: Path) -> Path | None:
        """Return the folder of lesion attributes, or None.

        Raises:
            CaseNotFoundError: If the folder that was named does not exist.
        """
        if self.attributes is None:
            beside = references.parent / RECORDS
            return beside if beside.is_dir() else None
        if not self.attributes.is_dir():
            raise CaseNotFoundError(
                self.attributes, expected="a folder of tables", found="no such folder", remedy="check --attributes"
            )
        return self.attributes


def evaluate_folders(
    predictions: Path,
    references: Path,
    out: Path,
    settings: EvaluateSettings | None = None,
    *,
    on_case: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Score every reference mask, write ``cases.csv``, ``lesions.csv`` and ``summary.json``.

    Masks are matched by case id: ``<id>.nii.gz``, ``<id>.nii`` or ``<id>/mask.nii.gz``. Storage orientation does not
    matter; place does.

    Args:
        predictions: Folder of masks to score.
        references: Folder of reference masks: these are the cases.
        out: Folder for the results.
        settings: Protocol, attributes, subjects and seed.
        on_case: Called with each case id just finished.

    Returns:
        The content of ``summary.json``; ``failed`` maps each failed case to its reason and is empty when all went well.

    Raises:
        CaseNotFoundError: If a folder does not exist or holds no mask.
        InputError: If two files claim one case id, or a table cannot be read.
    """
    settings = settings or EvaluateSettings()
    scores = score_folder(predictions, references, settings, on_case)
    return write_evaluation(scores, predictions, references, out, settings)


def compare_folders(
    first: Path,
    second: Path,
    references: Path,
    out: Path,
    settings: EvaluateSettings | None = None,
    *,
    on_case: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Score two methods on the same references and compare them case by case.

    Writes what :func:`evaluate_folders` writes for the first method into ``out`` and for the second into
    ``out/compared``, and the paired differences as ``comparison.csv`` and ``comparison.json``.

    Args:
        first: Folder of masks of the first method.
        second: Folder of masks of the second.
        references: Folder of reference masks: these are the cases.
        out: Folder for the results.
        settings: Protocol, attributes, subjects and seed.
        on_case: Called with each case id just finished, twice per case.

    Returns:
        Both summaries and the rows of ``comparison.csv``; differences are first minus second.

    Raises:
        CaseNotFoundError: If a folder does not exist or holds no mask.
        InputError: If two files claim one case id, or a table cannot be read.
    """
    settings = settings or EvaluateSettings()
    folders = ((first, out), (second, out / "compared"))
    both = [score_folder(folder, references, settings, on_case) for folder, _ in folders]
    summaries = [
        write_evaluation(scores, folder, references, target, settings)
        for scores, (folder, target) in zip(both, folders, strict=True)
    ]
    rows = write_comparison((first.name, both[0]), (second.name, both[1]), references, out, settings)
    return summaries[0], summaries[1], rows


def write_comparison(
    first: tuple[str, list[CaseScore]],
    second: tuple[str, list[CaseScore]],
    references: Path,
    out: Path,
    settings: EvaluateSettings,
) -> list[dict[str, Any]]:
    """Compare two scored methods case by case, write ``comparison.csv`` and ``comparison.json``.

    Args:
        first: Name and scores of the first method.
        second: Name and scores of the second, of the same cases in the same order.
        references: Folder of reference masks.
        out: Folder for the two files.
        settings: Subjects and seed.

    Returns:
        The rows of ``comparison.csv``; differences are first minus second.
    """
    rows = compare_scores(
        first[1],
        second[1],
        subjects=settings.subjects_of(references),
        seed=settings.seed,
        n_bootstrap=settings.n_bootstrap,
    )
    write_table(out / "comparison.csv", COMPARISON_COLUMNS, rows)
    _write_json(
        out / "comparison.json",
        {
            "schema_version": SCHEMA_VERSION,
            "first": first[0],
            "second": second[0],
            "n_cases": len(first[1]),
            "n_patients": len(set(patients_of(first[1], settings.subjects_of(references)))),
            "method": "difference: mean of first minus second over cases where both are defined, 95 % percentile "
            "bootstrap over patients; p: two-sided sign-flip permutation over patients; p_holm: the same, adjusted by "
            "Holm for the figures that have a better side; effect: matched-pairs rank-biserial correlation",
            "figures": {row["figure"]: {key: _plain(row[key]) for key in COMPARISON_COLUMNS[1:]} for row in rows},
        },
    )
    return rows


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


def score_folder(
    predictions: Path,
    references: Path,
    settings: EvaluateSettings,
    on_case: Callable[[str], None] = lambda _: None,
) -> list[CaseScore]:
    """Score every reference mask, in the order of the case ids; see :func:`evaluate_folders` for the arguments."""
    predicted, expected = find_masks(predictions), find_masks(references)
    attributes, zones = settings.attributes_of(references), settings.zones_of(references)
    scores = []
    for case_id, reference in expected.items():
        files = (predicted.get(case_id), reference, zones.get(case_id))
        scores.append(_score_files(case_id, *files, settings.protocol, attributes))
        on_case(case_id)
    return scores


def _score_files(
    case_id: str,
    prediction: Path | None,
    reference: Path,
    zone: Path | None,
    protocol: LesionProtocol,
    attributes: Path | None,
) -> CaseScore:
    """Score one case from disk; whatever is wrong with its files ends in its own row."""
    try:
        expected = read_mask(reference, case_id).to_canonical()
        ignore = None
        if zone is not None:
            marked = read_mask(zone, case_id).to_canonical()
            expected.check_same_grid(marked, "ignore zone")
            ignore = marked.array
        describe = _describer(attributes, _root_of(reference), case_id, expected)
    except (InputError, OSError, ValueError) as error:
        return CaseScore(case_id, dict.fromkeys(FIGURES, math.nan), [], {}, reason_of(error))
    try:
        if prediction is None:
            raise CaseNotFoundError(
                case_id, expected="a prediction", found="none", remedy="run the prediction for this case"
            )
        found = read_mask(prediction, case_id).to_canonical()
        expected.check_same_grid(found, "prediction")
    except (InputError, OSError, ValueError) as error:
        return failed_case(case_id, expected.array, expected.grid, protocol, reason_of(error), describe, ignore)
    return score_case(case_id, found.array, expected.array, expected.grid, protocol, describe, ignore)


def _root_of(reference: Path) -> Path:
    """Return the folder of references that ``<id>.nii.gz`` or ``<id>/mask.nii.gz`` lies in."""
    nested = reference.name in {f"mask{suffix}" for suffix in NIFTI_SUFFIXES}
    return reference.parent.parent if nested else reference.parent


def _describer(attributes: Path | None, references: Path, case_id: str, reference: Volume) -> Describe | None:
    rows = read_rows(attributes, case_id) if attributes is not None else []
    faint = read_faint(references, case_id, reference.grid)
    if not rows and faint is None:
        return None
    instances = read_instances(references, case_id, reference.grid) if rows else None

    def describe(lesions: LesionVoxels) -> list[dict[str, str]]:
        return lesion_attributes(lesions, reference.grid, rows, instances, faint)

    return describe


def write_evaluation(
    scores: list[CaseScore], predictions: Path, references: Path, out: Path, settings: EvaluateSettings
) -> dict[str, Any]:
    """Write the scores of one method as :func:`evaluate_folders` does; return the content of ``summary.json``."""
    summary = summarize(
        scores,
        settings.protocol,
        subjects=settings.subjects_of(references),
        strata=settings.strata_of(references),
        seed=settings.seed,
        n_bootstrap=settings.n_bootstrap,
    )
    summary["n_with_ignore_zone"] = len(set(settings.zones_of(references)) & {score.case_id for score in scores})
    summary["ignored_predictions"] = sorted(set(find_masks(predictions)) - {score.case_id for score in scores})
    rows = [{"case_id": s.case_id, **s.figures, "status": _status(s), "error": s.error} for s in scores]
    write_table(out / "cases.csv", CASE_COLUMNS, rows)
    lesions = [row for score in scores for row in score.lesions]
    known = sorted({name for row in lesions for name in row} - set(LESION_COLUMNS))
    write_table(out / "lesions.csv", (*LESION_COLUMNS, *known), lesions)
    _write_json(out / "summary.json", summary)
    return summary


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    return finite_or_none(value) if isinstance(value, float) else value


def _status(score: CaseScore) -> str:
    return "failed" if score.error else "ok"
