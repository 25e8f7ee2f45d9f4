"""What a batch is to do, known before any work: which scans, under which ids, in which shard, with how much room."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jdm_seg.cases import Case, Modality, as_modality, hashed_id
from jdm_seg.dicom.cases import find_dicom_cases
from jdm_seg.dicom.files import holds_dicom
from jdm_seg.errors import CaseNotFoundError, InputError, reason_of
from jdm_seg.machine import available_memory, free_disk, resident_memory
from jdm_seg.volume import NIFTI_SUFFIXES, case_id_of, stated_size

_RESULT_FILES = ("burden.json", "cohort.csv")
"""A folder that holds one is a result of this package: its masks are no scans."""
_SHARE_OF_SCAN = 0.06
_FLOOR_BYTES = 500_000
"""Results of a case take less than this share of the scan's file plus the floor (both assumed, on the safe side).
Measured with a poor model: mask, lesions, tables and picture of real limbs and trunks of 2 to 6 MB took 0.06 to 0.6 MB
(0.03 to 0.11 of the file), of a whole body of 210 MB with 395 false lesions 1.4 MB (0.007)."""
_PROBABILITY_SHARE = 0.1
"""The map of the same limbs and trunks took 0.006 to 0.04 of the file (measured); this is on the safe side."""
_READING = 3
"""Bytes taken while a scan is read, over the bytes of its voxels: the raw data, a copy in order, one conversion."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Refused:
    """A scan that cannot be taken, known from its name alone."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class ScanList:
    """The scans that a path names, sorted by id."""

    cases: tuple[Case, ...]
    refused: tuple[Refused, ...] = ()

    def __len__(self) -> int:
        """Return how many rows they come to."""
        return len(self.cases) + len(self.refused)

    @property
    def ids(self) -> set[str]:
        """Every id, refused ones too."""
        return {case.case_id for case in self.cases} | {refused.case_id for refused in self.refused}

    def __iter__(self) -> Iterator[Case]:
        """Go through the scans that can be taken."""
        return iter(self.cases)


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of a batch.

    Attributes:
        index: 1 to ``count``.
        count: How many parts there are.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/8``.

        Raises:
            InputError: If it is no such pair.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError("--shard", expected="i/n with i from 1 to n", found=repr(text), remedy="give 1/8, 2/8, …")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Return ``2/8``."""
        return f"{self.index}/{self.count}"


def scans_of(source: Path, modality: str, *, leave_out: Path | None = None, hash_ids: bool = False) -> ScanList:
    """Return the scan or the scans that a path names.

    A scan directly in the folder has its file's name as id, one in a subfolder the names of the folders too:
    ``visit1/leg.nii.gz`` is ``visit1_leg``. Hidden files and folders that hold results of this package are no scans;
    a folder that is reached twice by links counts once. Files that claim one id are refused together: which of them
    would be meant is not guessed. What holds no NIfTI file is looked through for DICOM studies, see
    :func:`~jdm_seg.dicom.cases.find_dicom_cases`.

    Args:
        source: A NIfTI file, a folder, however deep, or DICOM: a file, folder or zip.
        modality: ``ct`` or ``stir``.
        leave_out: A folder that holds no scans: where the results go.
        hash_ids: Call every case by a hash instead of its name.

    Raises:
        CaseNotFoundError: If there is nothing of the kind.
        InputError: If it is a file, but no NIfTI file.
    """
    kind = as_modality(modality)
    if source.is_dir():
        try:
            found = _scans_in(source, kind, leave_out)
        except CaseNotFoundError:
            if not holds_dicom(source):
                raise
            return ScanList(tuple(find_dicom_cases(source, kind, hash_ids=hash_ids)))
        return _hashed(found) if hash_ids else found
    if not os.path.lexists(source):
        raise CaseNotFoundError(
            source,
            expected="a .nii or .nii.gz scan, or a folder of them",
            found="no such file or folder",
            remedy="check the path",
        )
    if not source.name.lower().endswith(NIFTI_SUFFIXES):
        if holds_dicom(source):
            return ScanList(tuple(find_dicom_cases(source, kind, hash_ids=hash_ids)))
        raise InputError(
            source,
            expected="a .nii or .nii.gz file, DICOM, or a folder of either",
            found="another file",
            remedy="convert it",
        )
    case_id = case_id_of(source)
    found = ScanList((Case(case_id, case_id, kind, source),))
    return _hashed(found) if hash_ids else found


def _hashed(scans: ScanList) -> ScanList:
    cases = [replace(case, case_id=hashed_id(case.case_id), subject_id=hashed_id(case.case_id)) for case in scans.cases]
    refused = []
    for one in scans.refused:
        hidden = hashed_id(one.case_id)
        # the reason may name the files, which is what was not to be shown
        refused.append(Refused(hidden, f"{hidden}: its name or file cannot be used; leave --hash-ids out to see why."))
    return ScanList(tuple(sorted(cases, key=lambda case: case.case_id)), tuple(refused))


def _scans_in(folder: Path, modality: Modality, leave_out: Path | None) -> ScanList:
    files: dict[str, list[Path]] = {}
    refused = []
    for path, error in _walk(folder, leave_out):
        case_id = _id_of(path, folder)
        if error is None:
            files.setdefault(case_id, []).append(path)
        else:
            refused.append(Refused(case_id, f"{case_id}: {reason_of(error)}"))
    cases = []
    for case_id, paths in files.items():
        if len(paths) > 1:
            names = " and ".join(sorted(path.relative_to(folder).as_posix() for path in paths))
            twice = InputError(
                case_id, expected="every case id once", found=names, remedy="rename or remove all but one"
            )
            refused.append(Refused(case_id, str(twice)))
            continue
        try:
            cases.append(Case(case_id, case_id, modality, paths[0]))
        except InputError as unusable:
            refused.append(Refused(re.sub(r"[\x00-\x1f]", "?", case_id), str(unusable)))
    if not cases and not refused:
        raise CaseNotFoundError(
            folder,
            expected="a folder of .nii, .nii.gz or DICOM scans",
            found="none in it",
            remedy="point at the folder that holds the scans",
        )
    return ScanList(
        tuple(sorted(cases, key=lambda case: case.case_id)), tuple(sorted(refused, key=lambda one: one.case_id))
    )


def _walk(folder: Path, leave_out: Path | None) -> Iterator[tuple[Path, OSError | None]]:
    """Give every NIfTI file below a folder, and every subfolder that cannot be listed with its error."""
    left_out = None if leave_out is None else leave_out.resolve()
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            entries = sorted(here.iterdir())
        except OSError as error:
            yield here, error
            continue
        if (status.st_dev, status.st_ino) in seen:  # links can lead in a circle
            continue
        seen.add((status.st_dev, status.st_ino))
        is_result = here != folder and any(entry.name in _RESULT_FILES for entry in entries)
        if is_result or (here != folder and here.resolve() == left_out):
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append(entry)
            elif entry.name.lower().endswith(NIFTI_SUFFIXES):
                yield entry, None


def _id_of(path: Path, folder: Path) -> str:
    return case_id_of(path.with_name("_".join(path.relative_to(folder).parts)))


def shard_of(scans: ScanList, shard: Shard) -> ScanList:
    """Return one shard's scans: the largest file first, each to the shard that has the least so far.

    Every process that sees the same files comes to the same shards. Refused scans are the first shard's.
    """
    sizes = {case.case_id: _size(case.image) for case in scans.cases}
    load = [0] * shard.count
    mine = []
    for case in sorted(scans.cases, key=lambda case: (-sizes[case.case_id], case.case_id)):
        target = load.index(min(load))
        load[target] += max(1, sizes[case.case_id])
        if target == shard.index - 1:
            mine.append(case)
    return replace(
        scans,
        cases=tuple(sorted(mine, key=lambda case: case.case_id)),
        refused=scans.refused if shard.index == 1 else (),
    )


def _size(path: Path) -> int:
    try:
        if path.is_dir():  # a series of slices
            return sum(file.stat().st_size for file in path.iterdir())
        return path.stat().st_size
    except OSError:
        return 0  # its reason comes when it is read


def prepare_out(out: Path, cases: Sequence[Case], *, with_probability: bool = False) -> None:
    """Make the folder for the results and find out now, not after hours, whether it can hold them.

    Raises:
        InputError: If nothing can be written there, or the disk is too small for the results of ``cases``.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".probe"):
            pass
    except OSError as error:
        raise InputError(
            out,
            expected="a folder for the results that can be written",
            found=error.strerror or "another one",
            remedy="choose another OUT, or ask for the right to write there",
        ) from error
    share = _SHARE_OF_SCAN + (_PROBABILITY_SHARE if with_probability else 0.0)
    needed = sum(int(share * _size(case.image)) + _FLOOR_BYTES for case in cases)
    free = free_disk(out)
    if needed > free:
        raise InputError(
            out,
            expected=f"about {needed / 1e6:.0f} MB of free disk for {len(cases)} scans",
            found=f"{free / 1e6:.0f} MB",
            remedy="free some, or choose an OUT on another disk",
        )


def is_disk_error(error: BaseException) -> bool:
    """Tell whether an error is of the disk and so will meet every later scan: full, read-only or broken."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def check_readable(path: Path) -> None:
    """Refuse what would hang or bring down the process, before memory is taken for it.

    Raises:
        InputError: A link to nowhere or in a circle, no regular file, an empty one, or one whose header promises more
            voxels than memory can hold.
        OSError: If the file cannot be opened for another reason than its rights.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(
            path,
            expected="a scan",
            found="a link that leads nowhere or in a circle",
            remedy="mend the link or remove it",
        )
    if not path.is_file():
        raise InputError(path, expected="a file", found="something else, such as a pipe", remedy="remove it")
    if path.stat().st_size == 0:
        raise InputError(path, expected="a scan", found="an empty file", remedy="copy or export the file again")
    try:
        stated = stated_size(path)
    except PermissionError as error:
        raise InputError(
            path,
            expected="a file that may be read",
            found="no permission to read it",
            remedy="ask for the right, or copy the file as its owner",
        ) from error
    available = available_memory()
    if available is not None and stated > available:
        raise InputError(
            path,
            expected="a scan that fits into the memory that is free",
            found=f"a header that promises {stated / 1e9:.1f} GB of voxels",
            remedy="export the file again if that is wrong, or crop the scan",
        )


def fits_beside(path: Path, limit: int | None = None) -> bool:
    """Tell whether a scan can be read while another is worked on: it takes three times its voxels for a moment.

    Args:
        path: The scan that is next.
        limit: Bytes that the process may take; None: what the machine has left.
    """
    if not path.is_file():
        return True  # a folder of slices, or a pipe that would wait for ever
    try:
        needed = _READING * stated_size(path)
    except (OSError, ValueError):
        return True  # nothing will be read
    available = available_memory()
    if limit is not None:
        left = limit - resident_memory()
        available = left if available is None else min(available, left)
    return available is None or needed <= available
