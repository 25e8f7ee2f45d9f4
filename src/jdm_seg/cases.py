"""Cases, the manifests that list them, and splits by subject.

A manifest is a MONAI datalist (``datalist.json``) or a CSV table with a header. Both name image and label relative to
the manifest's folder. Fields: ``image``, ``label`` (may be missing), ``case_id`` (default: the image's file name),
``subject_id`` (default: the case id), ``modality`` (``ct`` or ``stir``; default: the manifest's), ``ignore`` (a mask of
what neither teaches nor counts), ``faint`` (a mask of deposits that nobody can see: they count and do not teach),
``oedema`` (a mask of it, STIR), ``anatomy`` (tissue codes of a synthetic body), ``stratum`` (kind of case), and in CSV
``split``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.volume import NIFTI_SUFFIXES, Volume, case_id_of, write_table, write_text

Modality = Literal["ct", "stir"]
MODALITIES: tuple[str, ...] = get_args(Modality)
SPLITS = ("training", "validation", "testing")
DATALIST = "datalist.json"
_FAT_HU = -50


_FILES = ("image", "label", "ignore", "faint", "oedema", "anatomy")


@dataclass(frozen=True)
class Case:
    """One scan, with its label if there is one.

    Attributes:
        case_id: Unique name; also the folder or file name of its results.
        subject_id: The person; splits never part a person's scans.
        modality: ``ct`` or ``stir``.
        image: Path of the scan.
        label: Path of the mask on the same grid, or None.
        ignore: Path of a mask of what neither teaches nor counts, on the same grid, or None.
        faint: Path of a mask of labelled deposits that do not teach because nobody could see them, or None.
        oedema: Path of a mask of oedema, which a network may learn beside deposits, or None.
        anatomy: Path of the tissue codes of a synthetic body, from which it may learn tissues, or None.
        stratum: Kind of case, by which figures are given apart; empty without one.
        study: Hash of the DICOM study that ``image`` (then a folder, zip or file) holds; empty for NIfTI.
    """

    case_id: str
    subject_id: str
    modality: Modality
    image: Path
    label: Path | None = None
    ignore: Path | None = None
    stratum: str = ""
    study: str = ""
    faint: Path | None = None
    oedema: Path | None = None
    anatomy: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files that there are, by the field that names them."""
        return {name: path for name in _FILES if (path := getattr(self, name)) is not None}

    def __post_init__(self) -> None:
        """Refuse ids that cannot be a file name: they become one."""
        if not re.fullmatch(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*", self.case_id):
            raise InputError(
                f"case {self.case_id!r}",
                expected="an id that can be a folder's name and does not begin with a dot",
                found="another one",
                remedy="rename the case",
            )


@dataclass(frozen=True)
class Manifest:
    """A data set: its cases by split, in the order of the file."""

    cases: dict[str, tuple[Case, ...]]

    @property
    def all(self) -> tuple[Case, ...]:
        """Every case of every split."""
        return tuple(case for split in SPLITS for case in self.cases.get(split, ()))


def as_modality(value: object, where: str | Path = "modality") -> Modality:
    """Return ``value`` as a modality.

    Raises:
        InputError: If it is none.
    """
    text = str(value).lower()
    if text not in MODALITIES:
        raise InputError(where, expected="modality ct or stir", found=repr(value), remedy="name one of the two")
    return cast(Modality, text)


def hashed_id(name: str) -> str:
    """Return a case id that does not show the name it stands for.

    Who has a list of names can still find a name by trying them all; a DICOM study is hashed by its UID, which nobody
    can guess.
    """
    return "case-" + hashlib.sha256(name.encode()).hexdigest()[:10]


def manifest_path(root: Path | str) -> Path:
    """Return the manifest that a path names: a JSON or CSV file itself, or the ``datalist.json`` of a folder."""
    path = Path(root)
    named = path.is_file() or (path.suffix.lower() in (".json", ".csv") and not path.is_dir())
    return path if named else path / DATALIST


def read_manifest(path: Path | str) -> Manifest:
    """Read a MONAI datalist or a CSV table, or the ``datalist.json`` of a folder.

    Raises:
        InputError: If the file is not a manifest, a field is wrong, or an id occurs twice.
        CaseNotFoundError: If the manifest or a file it names does not exist.
    """
    path = manifest_path(path)
    if not path.is_file():
        raise CaseNotFoundError(
            path, expected="a manifest", found="no such file", remedy="see data/README.md for the layouts"
        )
    rows = _rows(path)
    cases: dict[str, list[Case]] = {}
    seen: set[str] = set()
    for split, row in rows:
        case = _case(row, path)
        if case.case_id in seen:
            raise InputError(
                path, expected="every case id once", found=f"{case.case_id} twice", remedy="give the cases distinct ids"
            )
        seen.add(case.case_id)
        cases.setdefault(split, []).append(case)
    if not seen:
        raise InputError(path, expected="at least one case", found="none", remedy="add cases to training or testing")
    return Manifest({split: tuple(members) for split, members in cases.items()})


def read_subjects(path: Path | str) -> dict[str, str]:
    """Read which subject each case belongs to, from a manifest or a CSV table of ``case_id`` and ``subject_id``.

    The scans themselves need not be there.

    Returns:
        Subject by case id; a case without a subject is its own.

    Raises:
        InputError: If the file is neither.
        CaseNotFoundError: If it does not exist.
    """
    path = manifest_path(path)
    if not path.is_file():
        raise CaseNotFoundError(
            path, expected="a manifest or a table of subjects", found="no such file", remedy="check the path"
        )
    subjects = {}
    for _, row in _rows(path):
        case_id = row.get("case_id") or (case_id_of(Path(str(row["image"]))) if row.get("image") else None)
        if case_id is None:
            raise InputError(path, expected="a case_id in every row", found="a row without", remedy="add the ids")
        subjects[str(case_id)] = str(row.get("subject_id") or case_id)
    return subjects


def read_strata(path: Path | str) -> dict[str, str]:
    """Read which stratum each case of a manifest belongs to, in the order of the file.

    Returns:
        Stratum by case id, for the cases that name one.

    Raises:
        InputError: If the file is no manifest.
    """
    rows = [row for _, row in _rows(manifest_path(path)) if row.get("stratum")]
    return {str(row.get("case_id") or case_id_of(Path(str(row["image"])))): str(row["stratum"]) for row in rows}


def write_manifest(path: Path | str, manifest: Manifest, **fields: Any) -> None:
    """Write a manifest whose paths are relative to its own folder.

    Args:
        path: Ending in ``.json`` (datalist) or ``.csv``.
        manifest: The cases.
        fields: Further top-level fields of a datalist, such as ``labels`` or ``label_rule``.
    """
    path = Path(path)
    rows = {split: [_row(case, path.parent) for case in members] for split, members in manifest.cases.items()}
    if path.suffix.lower() == ".csv":
        columns = ("split", "case_id", "subject_id", "modality", *_FILES, "stratum")
        write_table(path, columns, ({"split": split, **row} for split, members in rows.items() for row in members))
        return
    write_text(path, json.dumps({**fields, **rows}, indent=1) + "\n")


def check_modality(scan: Volume, modality: str) -> None:
    """Raise where the values cannot be of the modality: a wrong guess here makes every later figure meaningless.

    Raises:
        InputError: One value everywhere; CT without anything as dark as fat; STIR with values far below 0 (slightly
            negative ones are the ringing of a resampled magnitude image).
    """
    low, high = float(scan.array.min()), float(scan.array.max())
    found = f"values from {low:g} to {high:g}"
    if low == high:
        raise InputError(
            scan.name, expected="a scan", found=f"one value, {low:g}, everywhere", remedy="export it again"
        )
    if modality == "ct" and low > _FAT_HU:
        raise InputError(
            scan.name,
            expected="CT numbers in HU, with air or fat below -50",
            found=found,
            remedy="check that this is CT, and that the rescale slope and intercept were applied",
        )
    if modality == "stir" and low < -0.2 * max(high, 0.0):
        raise InputError(
            scan.name, expected="MR magnitudes, 0 or more", found=found, remedy="check that this is STIR, not CT"
        )


def find_scans(folder: Path | str, modality: Modality) -> list[Case]:
    """List the NIfTI files of a folder as cases, sorted by id.

    Raises:
        CaseNotFoundError: If the folder does not exist or holds no scan.
        InputError: If two files claim one id (``a.nii`` and ``a.nii.gz``).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CaseNotFoundError(
            folder, expected="a folder of .nii or .nii.gz scans", found="no such folder", remedy="check the path"
        )
    files = sorted(
        p for p in folder.iterdir() if p.name.lower().endswith(NIFTI_SUFFIXES) and not p.name.startswith(".")
    )
    if not files:
        raise CaseNotFoundError(
            folder,
            expected="a folder of .nii or .nii.gz scans",
            found="none in it",
            remedy="point at the folder that holds the scans themselves",
        )
    ids = [case_id_of(path) for path in files]
    for case_id in ids:
        if ids.count(case_id) > 1:
            raise InputError(
                folder, expected="every case id once", found=f"{case_id} twice", remedy="rename or remove one file"
            )
    return [Case(case_id, case_id, modality, path) for case_id, path in zip(ids, files, strict=True)]


def split_by_subject(cases: Sequence[Case], fold: int, folds: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Part cases into training and validation so that nobody is in both.

    Subjects are shuffled by ``seed`` and dealt to ``folds`` hands; fold ``fold`` is validation.

    Args:
        cases: All cases.
        fold: 0 to ``folds`` - 1.
        folds: Number of folds, at least 2.
        seed: Shuffles the subjects; the order of ``cases`` does not matter.

    Returns:
        Training and validation cases, each in the order given.

    Raises:
        InputError: With fewer subjects than folds, or a fold out of range.
    """
    subjects = sorted({case.subject_id for case in cases})
    if not 0 <= fold < folds or folds < 2:
        raise InputError("data.fold", expected=f"0 to {folds - 1}", found=str(fold), remedy="set data.fold, data.folds")
    if len(subjects) < folds:
        raise InputError(
            "data.folds",
            expected=f"at least {folds} subjects for {folds} folds",
            found=f"{len(subjects)}",
            remedy="lower data.folds or add subjects",
        )
    random.Random(seed).shuffle(subjects)
    held_out = set(subjects[fold::folds])
    training = [case for case in cases if case.subject_id not in held_out]
    return training, [case for case in cases if case.subject_id in held_out]


def check_disjoint(training: Iterable[Case], validation: Iterable[Case]) -> None:
    """Raise if a subject is on both sides.

    Raises:
        InputError: Naming one such subject's case.
    """
    known = {case.subject_id for case in training}
    for case in validation:
        if case.subject_id in known:
            raise InputError(
                case.case_id,
                expected="every subject in one split only",
                found="its subject in training too",
                remedy="split by subject, or leave the splits out and set data.fold",
            )


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return _csv_rows(path) if path.suffix.lower() == ".csv" else _datalist_rows(path)


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _not_a_manifest(path) from error
    return [(_split(row.get("split") or "training", path), row) for row in rows]


def _datalist_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _not_a_manifest(path) from error
    if not isinstance(content, dict):
        raise _not_a_manifest(path)
    modality = content.get("modality")
    if isinstance(modality, dict):  # the Medical Segmentation Decathlon writes {"0": "CT"}
        modality = next(iter(modality.values()), None)
    rows = []
    for key, members in content.items():
        if key not in (*SPLITS, "test"):
            continue
        for number, entry in enumerate(members if isinstance(members, list) else [members]):
            if not isinstance(entry, str | dict):
                raise InputError(
                    path,
                    expected=f"{key} to list cases",
                    found=f"{type(entry).__name__} at place {number + 1}",
                    remedy="see data/README.md for the form",
                )
            # the Decathlon lists test scans as bare paths
            row = {"image": entry} if isinstance(entry, str) else dict(entry)
            rows.append((_split(key, path), {"modality": modality, **row}))
    return rows


def _split(name: str, path: Path) -> str:
    split = {"test": "testing", "train": "training", "val": "validation"}.get(name, name)
    if split not in SPLITS:
        raise InputError(path, expected=f"a split of {SPLITS}", found=repr(name), remedy="rename the split")
    return split


def _case(row: dict[str, Any], path: Path) -> Case:
    if not row.get("image"):
        raise InputError(
            path, expected="an image in every row", found="a row without", remedy="add the path of the scan"
        )
    image = path.parent / str(row["image"])
    files: dict[str, Any] = {name: path.parent / str(row[name]) for name in _FILES if row.get(name)}
    case_id = str(row.get("case_id") or case_id_of(image))
    for file in files.values():
        if not file.is_file():
            raise CaseNotFoundError(
                case_id,
                expected=f"the file {file.name} that {path.name} names",
                found="no such file",
                remedy="paths are relative to the manifest; check them",
            )
    modality = as_modality(row.get("modality") or "ct", path)
    subject = str(row.get("subject_id") or case_id)
    return Case(case_id, subject, modality, stratum=str(row.get("stratum") or ""), **files)


def _row(case: Case, base: Path) -> dict[str, str]:
    row = {"case_id": case.case_id, "subject_id": case.subject_id, "modality": case.modality}
    row |= {name: Path(os.path.relpath(file, base)).as_posix() for name, file in case.files.items()}
    return row | ({"stratum": case.stratum} if case.stratum else {})


def _not_a_manifest(path: Path) -> InputError:
    return InputError(
        path,
        expected="a MONAI datalist (JSON) or a CSV table with an image column",
        found="something else",
        remedy="see data/README.md for both",
    )
