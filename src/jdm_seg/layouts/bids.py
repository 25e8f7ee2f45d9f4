"""A data set as BIDS: scans as raw data, masks as a derivative.

CT is no modality of BIDS yet (proposal BEP024): its scans lie in ``ct/`` with the suffix ``_ct``, and ``.bidsignore``
tells validators so. STIR is ``anat/…_acq-STIR_T2w``. Masks are named by the standard's templates:
``…_space-orig_label-L_mask`` (L: lesion, of its common labels) and ``…_space-orig_seg-calcinosis_dseg`` with a table.

BIDS labels are letters and digits alone, so the ids of the source stand in the columns ``subject_id`` of
``participants.tsv`` and ``case_id``, ``split``, ``stratum`` of each ``scans.tsv``, and reading takes them from there.

Source: BIDS specification 1.10, common-principles, modality-agnostic-files and derivatives/imaging.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jdm_seg
from jdm_seg.cases import Modality
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.layouts.files import DataSet, Entry, OnCase, labels_of, new_folder, store_image, store_label
from jdm_seg.masks import read_labels
from jdm_seg.volume import NIFTI_SUFFIXES, Volume, case_id_of, write_text

VERSION = "1.10.0"
PIPELINE = "jdm_seg"
_DATATYPE = {"ct": "ct", "stir": "anat"}
_SUFFIX = {"ct": "ct", "stir": "acq-STIR_T2w"}
_OF_DERIVATIVE = {"space", "res", "den", "label", "desc", "seg"}
_IGNORED = "# computed tomography is a proposal (BEP024)\n**/ct\n**/ct/**\n"
_COLUMNS = {
    "case_id": "Name of the scan in the data set this was converted from.",
    "split": "training, validation or testing.",
    "stratum": "Kind of case, by which figures are given apart.",
}


def write_bids(
    data: DataSet, out: Path, *, link: bool = False, instances: bool = False, on_case: OnCase = lambda _: None
) -> Path:
    """Write a data set as BIDS; one without scans becomes a derivative alone.

    Args:
        data: Scans, masks or both. A subject with several scans gets sessions.
        out: New folder.
        link: Link to ``.nii.gz`` scans instead of copying them.
        instances: Write each mask a second time as ``dseg``, with its lesions numbered.
        on_case: Called with the id of each case written.

    Returns:
        ``out``.

    Raises:
        InputError: If the folder holds something, or an id holds a tab or a line break.
    """
    places = _places(data.entries)
    has_scans = any(entry.image is not None for entry in data.entries)
    with new_folder(out) as root:
        masks = root / "derivatives" / PIPELINE if has_scans else root
        scans: dict[str, list[dict[str, str]]] = defaultdict(list)
        for entry in data.entries:
            place = places[entry.case_id]
            name = f"{place.replace('/', '_')}_{_SUFFIX[entry.modality]}"
            stem = Path(place, _DATATYPE[entry.modality], name)
            _write_entry(data, entry, (root, masks), stem, link=link, instances=instances)
            scans[place].append(
                {
                    "filename": f"{stem.relative_to(place).as_posix()}.nii.gz"
                    if entry.image is not None
                    else f"{_prefix(stem.relative_to(place)).as_posix()}_space-orig_label-L_mask.nii.gz",
                    **{key: getattr(entry, key) or "n/a" for key in _COLUMNS},
                }
            )
            on_case(entry.case_id)
        for place, rows in scans.items():
            target = (root if has_scans else masks) / place / f"{place.replace('/', '_')}_scans.tsv"
            _write_tsv(target, ("filename", *_COLUMNS), rows)
        _write_facts(root, data, places, has_scans=has_scans)
        if has_scans and any(entry.label is not None for entry in data.entries):
            _describe(masks, data, derivative=True, of_scans=True)
    return out


def _write_entry(
    data: DataSet, entry: Entry, roots: tuple[Path, Path], stem: Path, *, link: bool, instances: bool
) -> None:
    """Write a scan below the first root and its masks below the second, both at ``stem``."""
    root, masks_root = roots
    like = store_image(entry, root / stem, link=link)[1] if entry.image is not None else None
    mask = masks_root / stem
    prefix = _prefix(mask).name
    masks: list[tuple[str, Volume]] = []
    if entry.label is not None:
        labels = labels_of(entry, data.wanted, None if like is None else like.grid)
        masks.append((f"{prefix}_space-orig_label-L_mask", labels))
        if instances:
            name = f"{prefix}_space-orig_seg-calcinosis_dseg"
            masks.append((name, labels))
            count = int(labels.array.max(initial=0))
            rows = ({"index": str(n), "name": f"calcinosis {n}"} for n in range(1, count + 1))
            _write_tsv(mask.with_name(f"{name}.tsv"), ("index", "name"), rows)
    if entry.ignore is not None:
        ignored = read_labels(entry.ignore, None if like is None else like.grid, name=entry.case_id)
        masks.append((f"{prefix}_space-orig_desc-ignore_mask", ignored))
    for name, labels in masks:
        numbered = instances and name.endswith("_dseg")
        store_label(mask.with_name(name), labels, like or labels, instances=numbered)
        facts: dict[str, Any] = {"SpatialReference": "orig"}
        if like is not None:
            facts["Sources"] = [f"bids:raw:{stem.as_posix()}.nii.gz"]
        if not numbered:
            facts["Type"] = "Lesion" if "label-L" in name else "ROI"
        write_text(mask.with_name(f"{name}.json"), json.dumps(facts) + "\n")


def _prefix(stem: Path) -> Path:
    """Return a scan's path without its suffix: what the names of its masks begin with."""
    return stem.with_name(stem.name.removesuffix("_ct").removesuffix("_T2w"))


def _places(entries: Iterable[Entry]) -> dict[str, str]:
    """Return ``sub-<label>`` or ``sub-<label>/ses-<label>`` by case id: letters and digits, each used once."""
    by_subject: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if re.search(r"[\t\r\n]", f"{entry.case_id}{entry.subject_id}{entry.stratum}"):
            raise InputError(
                f"case {entry.case_id!r}",
                expected="ids that fit into a table",
                found="a tab or a line break",
                remedy="rename it",
            )
        by_subject[entry.subject_id].append(entry.case_id)
    places = {}
    used: set[str] = set()
    for subject, cases in by_subject.items():
        plain = re.sub(r"[^A-Za-z0-9]", "", subject.removeprefix("sub-")) or "x"
        label, number = plain, 1
        while label.lower() in used:  # file systems may not tell capitals apart
            number += 1
            label = f"{plain}x{number}"
        used.add(label.lower())
        for visit, case_id in enumerate(cases, 1):
            places[case_id] = f"sub-{label}" + (f"/ses-{visit:02d}" if len(cases) > 1 else "")
    return places


def _write_facts(root: Path, data: DataSet, places: Mapping[str, str], *, has_scans: bool) -> None:
    _describe(root, data, derivative=not has_scans)
    subjects = {places[entry.case_id].partition("/")[0]: entry.subject_id for entry in data.entries}
    rows = ({"participant_id": label, "subject_id": subject} for label, subject in subjects.items())
    _write_tsv(root / "participants.tsv", ("participant_id", "subject_id"), rows)
    about = {"subject_id": {"Description": "Name of the person in the data set this was converted from."}}
    write_text(root / "participants.json", json.dumps(about, indent=1) + "\n")
    columns = {key: {"Description": text} for key, text in _COLUMNS.items()}
    write_text(root / "scans.json", json.dumps(columns, indent=1) + "\n")


def _describe(root: Path, data: DataSet, *, derivative: bool, of_scans: bool = False) -> None:
    facts: dict[str, Any] = {"Name": "Calcinosis", "BIDSVersion": VERSION, "DatasetType": "raw"}
    if derivative:
        facts |= {
            "Name": "Calcinosis masks",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": PIPELINE, "Version": jdm_seg.__version__}],
        }
    if of_scans:
        facts["DatasetLinks"] = {"raw": "../.."}
    write_text(root / "dataset_description.json", json.dumps(facts, indent=1) + "\n")
    if any(entry.modality == "ct" for entry in data.entries):
        write_text(root / ".bidsignore", _IGNORED)
    write_text(root / "README.md", "Scans or masks of calcinosis, converted by jdm_seg. Research use only.\n")


def read_bids(root: Path, modality: Modality | None = None) -> DataSet:
    """Read a BIDS data set: CT (``_ct``) and STIR scans with the masks of its derivatives, or a derivative alone.

    Args:
        root: The folder of ``dataset_description.json``.
        modality: Read every scan as this one.

    Raises:
        CaseNotFoundError: If there is no scan and no mask that fits.
        InputError: If two pipelines have a mask of one scan.
    """
    people = {row.get("participant_id", ""): row.get("subject_id", "") for row in _read_tsv(root / "participants.tsv")}
    scans = [path for path in _images(root) if not _is_mask(path) and _modality_of(path, modality)]
    folders = sorted((root / "derivatives").glob("*/")) if scans else [root]
    masks = [path for folder in folders for path in _images(folder) if _is_mask(path)]
    entries = []
    alone = not scans
    for path in scans or {str(_entities(path)): path for path in masks}.values():
        entities = _entities(path)
        row = _scan_row(root, path, entities, alone=alone)
        subject = f"sub-{entities['sub']}"
        case_id = row.get("case_id") or "_".join(f"{name}-{value}" for name, value in entities.items())
        fitting = [mask for mask in masks if _entities(mask) == entities]
        entries.append(
            Entry(
                case_id,
                people.get(subject) or subject,
                _modality_of(path, modality) or "ct",
                row.get("split") or "training",
                None if alone else path,
                _chosen_mask([mask for mask in fitting if "_desc-ignore_" not in mask.name], case_id),
                ignore=next((mask for mask in fitting if "_desc-ignore_" in mask.name), None),
                stratum="" if row.get("stratum") in (None, "n/a") else row["stratum"],
            )
        )
    if not entries:
        raise CaseNotFoundError(
            root, expected="scans named …_ct or …STIR…_T2w", found="none", remedy="see data/README.md for the layouts"
        )
    return DataSet(tuple(entries), "BIDS", notes=_notes(root, scans))


def _notes(root: Path, scans: list[Path]) -> tuple[str, ...]:
    left = len(_images(root)) - len(scans)
    return (f"{left} other images of the BIDS data set were left aside",) if scans and left else ()


def _scan_row(root: Path, path: Path, entities: Mapping[str, str], *, alone: bool) -> dict[str, str]:
    place = f"sub-{entities['sub']}" + (f"/ses-{entities['ses']}" if "ses" in entities else "")
    rows = _read_tsv(root / place / f"{place.replace('/', '_')}_scans.tsv")
    if alone:
        return rows[0] if len(rows) == 1 else {}
    name = path.relative_to(root / place).as_posix()
    return next((row for row in rows if row.get("filename") == name), {})


def _chosen_mask(masks: list[Path], case_id: str) -> Path | None:
    plain = [path for path in masks if case_id_of(path).endswith("_dseg")] or masks  # says more than a mask does
    if len(plain) > 1:
        raise InputError(
            case_id,
            expected="one mask",
            found=" and ".join(_pipeline_of(path) for path in plain),
            remedy="keep one of them in derivatives",
        )
    return plain[0] if plain else None


def _pipeline_of(path: Path) -> str:
    folder = next((one for one in path.parents if one.parent.name == "derivatives"), path.parent)
    return f"{path.name} of {folder.name}"


def _images(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("sub-*/**/*.nii*") if path.name.lower().endswith(NIFTI_SUFFIXES))


def _is_mask(path: Path) -> bool:
    return case_id_of(path).endswith(("_mask", "_dseg"))


def _modality_of(path: Path, wanted: Modality | None) -> Modality | None:
    stem = case_id_of(path).lower()
    if path.parent.name == "ct" or stem.endswith("_ct"):
        return wanted or "ct"
    if "stir" in stem:
        return wanted or "stir"
    return None


def _entities(path: Path) -> dict[str, str]:
    pairs = (part.split("-", 1) for part in case_id_of(path).split("_") if "-" in part)
    return {name: value for name, value in pairs if name not in _OF_DERIVATIVE}


def _write_tsv(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, str]]) -> None:
    lines = ["\t".join(columns), *("\t".join(str(row[column]) for column in columns) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def _read_tsv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        header, *lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(path, expected="a table in UTF-8", found="other bytes", remedy="save it as UTF-8") from error
    columns = header.rstrip("\r").split("\t")
    return [dict(zip(columns, line.rstrip("\r").split("\t"), strict=False)) for line in lines]
