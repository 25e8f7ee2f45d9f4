"""A doctor for scans and data sets: says in plain words what is wrong with each file and what to do about it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jdm_seg.cases import Modality, as_modality
from jdm_seg.checks.files import Prints, check_duplicates, check_header, check_subjects, prints_of
from jdm_seg.checks.findings import SEVERITIES, Finding
from jdm_seg.checks.labels import check_label, finding_of
from jdm_seg.checks.look import Look
from jdm_seg.checks.scan import check_scan
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.layouts.files import Entry, read_image
from jdm_seg.layouts.read import read_layout
from jdm_seg.volume import NIFTI_SUFFIXES, Volume, case_id_of

_SCANS = (*NIFTI_SUFFIXES, ".nrrd")
_GUESSED = ("files", "images/ and labels/", "DICOM")
"""Layouts that do not say what their scans are."""


@dataclass(frozen=True)
class CheckReport:
    """What was looked at and found.

    Attributes:
        layout: What the path was read as, in words.
        cases: How many scans or masks were looked at.
        findings: The worst first, then by file.
        series: DICOM series as :meth:`jdm_seg.dicom.series.Series.listing` tells them.
        entries: The cases themselves.
    """

    layout: str
    cases: int
    findings: tuple[Finding, ...]
    series: tuple[dict[str, Any], ...] = ()
    entries: tuple[Entry, ...] = field(default=(), repr=False)

    @property
    def is_well(self) -> bool:
        """Whether nothing is worse than ``info``."""
        return all(finding.severity == "info" for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """Return how many findings there are of each severity."""
        return {name: sum(finding.severity == name for finding in self.findings) for name in SEVERITIES}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "layout": self.layout,
            "cases": self.cases,
            "counts": self.counts(),
            "findings": [asdict(finding) for finding in self.findings],
            "series": list(self.series),
        }


def check_path(
    path: Path, modality: str | None = None, *, on_case: Callable[[str], None] = lambda _: None
) -> CheckReport:
    """Look at a scan, a folder of scans or a data set in any layout. A bad file becomes a finding and stops nothing.

    Args:
        path: NIfTI or NRRD file, DICOM, folder, or manifest.
        modality: ``ct`` or ``stir``; None: as the data set says, else by the values.
        on_case: Called with each case's name when it has been looked at.

    Raises:
        InputError: For an unknown modality.
        CaseNotFoundError: If there is no such path.
    """
    wanted = None if modality is None else as_modality(modality, "--modality")
    if not path.exists():
        raise CaseNotFoundError(path, expected="a scan or a data set", found="no such path", remedy="check the path")
    findings: list[Finding] = []
    try:
        data = read_layout(path, modality=wanted)
        entries, layout = data.entries, data.layout
    except (InputError, OSError, ValueError) as error:
        entries, layout = _loose_files(path, wanted), "files"
        # scans in folders of folders are no layout, and no fault
        if not entries or not isinstance(error, CaseNotFoundError):
            findings.append(finding_of(path.name, error, "layout"))
    guess = wanted is None and layout in _GUESSED
    prints: list[Prints | None] = []
    names = [_name(entry.image or entry.label, entry, path) for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        found, print_ = check_entry(entry, path, guess=guess)
        findings += found
        prints.append(print_)
        on_case(name)
    findings += check_duplicates(entries, prints, names)
    findings += check_subjects(entries, path.name)
    order = {name: -place for place, name in enumerate(SEVERITIES)}
    findings.sort(key=lambda finding: (order[finding.severity], finding.where))
    return CheckReport(layout, len(entries), tuple(findings), _series(path, entries), tuple(entries))


def check_entry(entry: Entry, root: Path, *, guess: bool = False) -> tuple[list[Finding], Prints | None]:
    """Look at one case: its scan, the scan's header, and its mask.

    Args:
        entry: The case.
        root: Findings call files by their path from here.
        guess: Whether the modality is to be told by the values.

    Returns:
        Findings, and what the scan is known by again.
    """
    findings: list[Finding] = []
    scan, look, print_ = None, None, None
    if entry.image is not None:
        where = _name(entry.image, entry, root)
        try:
            scan = replace(_read(entry, guess=guess), name=where)
            modality = _modality_of(scan) if guess else entry.modality
            if guess and modality == "stir":
                findings.append(_taken_as_stir(where))
            look = Look.at(scan, modality) if scan.array.size else None
            found = check_scan(scan, modality, look=look)
            findings += [*found, *check_header(scan, where)]
            if any(finding.severity == "error" for finding in found):
                look = None
            print_ = prints_of(scan)
        except Exception as error:  # whatever one file does, the others are still to be looked at
            findings.append(finding_of(where, error))
    if entry.label is not None:
        where = _name(entry.label, entry, root)
        try:
            findings += check_label(entry.label, where, look, scan.grid if scan is not None else None)
        except Exception as error:
            findings.append(finding_of(where, error))
    return findings, print_


def _read(entry: Entry, *, guess: bool) -> Volume:
    """Read the scan; of DICOM without a CT series the best for STIR, where the modality is not told."""
    try:
        return read_image(entry)
    except InputError:
        if not (guess and entry.study):
            raise
        return read_image(replace(entry, modality="stir"))


def _modality_of(scan: Volume) -> Modality:
    """Return ``stir`` for values that pass as MR and not as CT, else ``ct``."""

    def fails(modality: str) -> bool:
        return any(finding.severity == "error" for finding in check_scan(scan, modality))

    return "stir" if fails("ct") and not fails("stir") else "ct"


def _taken_as_stir(where: str) -> Finding:
    return Finding(
        where,
        "info",
        "taken_as_stir",
        "The values are no CT numbers, so the scan was judged as STIR",
        "a modality that is told",
        "none",
        "name it with --modality ct or --modality stir",
    )


def _name(path: Path | None, entry: Entry, root: Path) -> str:
    """Return what findings call a file: its path below the root, or the case id."""
    if path is None or entry.study:
        return entry.case_id
    base = root if root.is_dir() else root.parent
    try:
        return path.resolve().relative_to(base.resolve()).as_posix() or path.name
    except ValueError:
        return path.name


def _loose_files(path: Path, modality: Modality | None) -> tuple[Entry, ...]:
    """List every scan file at or below a path, in no layout."""
    if path.is_file():
        files = [path] if path.name.lower().endswith(_SCANS) else []
    else:
        files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
        files = sorted(file for file in files if file.name.lower().endswith(_SCANS) and file.name[0] != ".")
    return tuple(
        Entry(_safe_id(file, number), f"{number}", modality or "ct", "training", file)
        for number, file in enumerate(files)
    )


def _safe_id(file: Path, number: int) -> str:
    return f"{case_id_of(file)}" or f"file-{number}"


def _series(path: Path, entries: Sequence[Entry]) -> tuple[dict[str, Any], ...]:
    """List the DICOM series at a path, if it holds any, and say which of a study would be read."""
    if not any(entry.study for entry in entries):
        return ()
    from jdm_seg.dicom.choose import choose_series
    from jdm_seg.dicom.series import find_series

    try:
        found = find_series(path)
    except InputError:
        return ()
    chosen: dict[tuple[str, int], str] = {}
    for modality in ("ct", "stir"):
        for study in {series.study for series in found}:
            with contextlib.suppress(InputError):
                choice = choose_series([series for series in found if series.study == study], modality)
                chosen |= {(study, series.number): f"as {modality.upper()}" for series in choice.series}
    return tuple(
        {"series": series.number, "read": chosen.get((series.study, series.number), "")} | series.listing()
        for series in found
    )
