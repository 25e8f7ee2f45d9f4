"""Studies in folders and zips as cases, and a case as a scan."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jdm_seg.cases import Case, Modality, hashed_id
from jdm_seg.dicom.choose import choose_series
from jdm_seg.dicom.files import FileRef, Reader, find_files, is_zip
from jdm_seg.dicom.headers import read_study
from jdm_seg.dicom.read import DicomScan, read_series
from jdm_seg.dicom.series import find_series
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.physics import hu_per_mg_ha

log = logging.getLogger(__name__)

_REVEALS = (
    "The name of the scan's folder holds a word that its header gives as the patient's name, number or birth date, and "
    "the case id repeats it: rename the folder or use --hash-ids."
)


@dataclass(frozen=True)
class CaseScan:
    """A case's scan with what its header says.

    Attributes:
        scan: Volume, acquisition, notes and sources.
        kv: Tube voltage for :func:`~jdm_seg.physics.hu_per_mg_ha`; None where it is not known or not usable.
        facts: ``acquisition`` of ``burden.json``: physics, and which series was read and why.
    """

    scan: DicomScan
    kv: str | None
    facts: dict[str, Any]


def find_dicom_cases(source: Path, modality: Modality, *, hash_ids: bool = False) -> list[Case]:
    """List the studies of a folder, a zip or a file as cases, sorted by id.

    A study alone is called after the folder or zip given. Of several, each is called after the highest folder that
    holds it alone, joined to the folders above it by ``_``; studies that share a folder get a hash behind its name.

    Args:
        source: Folder, zip or file.
        modality: What the model segments.
        hash_ids: Call every case by a hash instead.

    Raises:
        CaseNotFoundError: If there is no DICOM study.
        InputError: If the zip is refused or the extra ``dicom`` is missing.
    """
    studies: dict[str, list[FileRef]] = defaultdict(list)
    with Reader() as reader:
        for file in find_files(source):
            try:
                study = read_study(reader, file)
            except InputError as error:
                if "pydicom" in str(error):
                    raise
                continue  # its series says how many files are damaged when it is read
            if study is not None:
                studies[study].append(file)
    if not studies:
        raise CaseNotFoundError(
            source, expected="DICOM scans", found="none that can be read", remedy="check the path, or export them again"
        )
    root = _root(source)
    folders = {study: _common([file.folder for file in files]) for study, files in studies.items()}
    cases = []
    for study in studies:
        own, shared = _own_folder(study, studies, folders, root)
        name = "_".join(own) or (source.stem if is_zip(source) else source.resolve().name)
        case_id = hashed_id(study) if hash_ids else f"{name}_{study[:8]}" if shared else name
        image = source if is_zip(source) or not source.is_dir() else source.joinpath(*own)
        cases.append(Case(case_id.lstrip("."), case_id.lstrip("."), modality, image, study=study))
    return sorted(cases, key=lambda case: case.case_id)


def read_case(case: Case, wanted: str | None = None) -> CaseScan:
    """Read the best series of a case's study for its modality, stations joined.

    Args:
        case: From :func:`find_dicom_cases`.
        wanted: Series to read instead, see :func:`~jdm_seg.dicom.choose.choose_series`.

    Raises:
        InputError: If no series fits or the chosen one cannot be read.
    """
    found = [one for one in find_series(case.image) if one.study == case.study]
    try:
        choice = choose_series(found, case.modality, wanted)
        scan = read_series(choice.series, case.case_id)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(case.case_id) else f"{case.case_id}: {text}") from error
    log.info("%s: %s", case.case_id, choice.reason)
    notes = list(scan.notes)
    if any(one.names_folder for one in choice.series) and not case.case_id.startswith("case-"):
        notes.append(_REVEALS)
    kv = scan.acquisition.kv_name
    try:
        hu_per_mg_ha(kv)
    except ValueError:
        notes.append(f"The header states {kv} kV, for which no calibration is known; give the voltage with --kv.")
        kv = None
    facts = {**asdict(scan.acquisition), "series": choice.reason}
    return CaseScan(replace(scan, notes=tuple(notes)), kv if case.modality == "ct" else None, facts)


def _root(source: Path) -> tuple[str, ...]:
    return () if is_zip(source) else source.parts if source.is_dir() else source.parent.parts


def _common(folders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    shortest, longest = min(folders), max(folders)
    count = next((n for n, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    return shortest[:count]


def _own_folder(
    study: str, studies: dict[str, list[FileRef]], folders: dict[str, tuple[str, ...]], root: tuple[str, ...]
) -> tuple[tuple[str, ...], bool]:
    """Return the highest folder below the root that holds a study alone, and whether there is none."""
    if len(studies) == 1:
        return (), False
    foreign = {file.folder for other, files in studies.items() if other != study for file in files}
    mine = folders[study]
    for depth in range(len(root) + 1, len(mine) + 1):
        if not any(folder[:depth] == mine[:depth] for folder in foreign):
            return mine[len(root) : depth], False
    return mine[len(root) :], True
