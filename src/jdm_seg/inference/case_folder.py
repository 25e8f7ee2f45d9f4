"""The results of one scan in a folder of their own: whole or not there, and known again without reading the scan."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdm_seg.burden.analysis import PROBABILITY as PROBABILITY
from jdm_seg.dicom.objects import LESIONS, MEASUREMENTS, SEGMENTATION
from jdm_seg.errors import InputError
from jdm_seg.pictures import PREVIEW
from jdm_seg.provenance import sha256_of
from jdm_seg.volume import write_text

DONE = "burden.json"
STAMP = ".stamp.json"
"""What made the folder: the scan file's size, time and ends, the size of every result, and how long it took."""
REPORT = "report.html"
"""Written by ``jdm-seg report`` once the case is complete; gone when the case is made anew."""
PATIENT, REPORTED = "--keep-patient", "--dicom-sr"
"""In the stamp among the files: options of which the files alone do not tell that they were given."""
DICOM_FILES = (SEGMENTATION, LESIONS, MEASUREMENTS)
FILES = (DONE, STAMP, PROBABILITY, "mask.nii.gz", "lesions.nii.gz", "lesions.csv", PREVIEW, REPORT, *DICOM_FILES)
"""Everything that a case's folder may hold; one with other files is somebody else's."""
_ENDS = 1 << 16


@dataclass(frozen=True)
class Result:
    """A complete result that was found.

    Attributes:
        burden: ``burden.json``.
        stages: Seconds of every stage when it was made.
    """

    burden: dict[str, Any]
    stages: dict[str, float]


def find_result(folder: Path, image: Path, settings: dict[str, Any], needed: tuple[str, ...] = ()) -> Result | None:
    """Return what a folder holds if these settings made it of this scan and every file is there in full, else None.

    The scan is known again by size, time and a hash of its two ends; where those differ, for example after a copy,
    its content decides.

    Args:
        folder: Of the case.
        image: The scan.
        settings: What the method's ``describe`` says, and the voltage.
        needed: Names of files that must be among the results.

    Raises:
        InputError: If the folder holds something that is no result of this package, which must not be replaced.
    """
    if not os.path.lexists(folder):
        return None
    _check_own(folder)
    try:
        burden: dict[str, Any] = json.loads((folder / DONE).read_text(encoding="utf-8"))
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        if not _is_whole(folder, stamp["files"], needed):
            return None
        made_by = dict(burden["prediction"])
        scan_sha256 = made_by.pop("scan_sha256")
        result = Result(burden, stamp["stages"])
        earlier = stamp["scan"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if made_by != json.loads(json.dumps(settings)):
        return None
    known = fingerprint(image)
    if earlier != known:
        if scan_sha256 != content_hash(image):
            return None
        write_text(folder / STAMP, _json({**stamp, "scan": known}))
    return result


def names_other_method(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return what made the result in a folder, in words, if these settings did not; None without a result."""
    try:
        made_by = dict(json.loads((folder / DONE).read_text(encoding="utf-8"))["prediction"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    made_by.pop("scan_sha256", None)
    wanted = json.loads(json.dumps(settings))
    if made_by == wanted:
        return None
    model = made_by.get("model", "another method")
    return str(model) if model != wanted.get("model") else f"{model} with other settings"


def _check_own(folder: Path) -> None:
    foreign = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    # what a kill left of a file that was being written is ours too
    foreign = {name for name in foreign if name not in FILES and not (name[0] == "." and name.endswith(".part"))}
    if foreign:
        raise InputError(
            folder,
            expected="a new folder for the case, or an earlier result",
            found=f"other files, such as {min(foreign)}",
            remedy="choose another OUT",
        )


def _is_whole(folder: Path, sizes: dict[str, int], needed: tuple[str, ...]) -> bool:
    options = (PATIENT, REPORTED)
    whole = all((folder / name).stat().st_size == size for name, size in sizes.items() if name not in options)
    return whole and DONE in sizes and all(name in sizes for name in needed)


def fingerprint(image: Path) -> dict[str, Any]:
    """Return what tells a scan's file apart without reading gigabytes: size, time of change, hash of both ends.

    For a folder of slices: of their names, sizes and times.
    """
    if image.is_dir():
        status = [(path, path.stat()) for path in _files_below(image)]
        digest = hashlib.sha256()
        for path, one in status:
            digest.update(f"{path.relative_to(image).as_posix()} {one.st_size} {one.st_mtime_ns}\n".encode())
        return {"size": sum(one.st_size for _, one in status), "mtime_ns": 0, "ends_sha256": digest.hexdigest()}
    with image.open("rb") as stream:
        status_of_file = os.fstat(stream.fileno())
        digest = hashlib.sha256(stream.read(_ENDS))
        stream.seek(max(0, status_of_file.st_size - _ENDS))
        digest.update(stream.read(_ENDS))
    return {
        "size": status_of_file.st_size,
        "mtime_ns": status_of_file.st_mtime_ns,
        "ends_sha256": digest.hexdigest(),
    }


def content_hash(image: Path) -> str:
    """Return the SHA-256 of a scan's file; of a folder of slices, of their hashes in the order of their names."""
    if not image.is_dir():
        return sha256_of(image)
    digest = hashlib.sha256()
    for path in _files_below(image):
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def whole_folder(
    folder: Path, scan: dict[str, Any], stages: dict[str, float], options: Sequence[str] = ()
) -> Iterator[Path]:
    """Give a hidden folder to fill, and give it its name when the block ends well; else nothing of it stays.

    Its bytes are on the disk before the name is: after a power cut there is no folder with empty files either.

    Args:
        folder: The name; what it held is replaced.
        scan: :func:`fingerprint` of the scan.
        stages: Seconds of every stage, read when the block has ended.
        options: Those of :data:`PATIENT` and :data:`REPORTED` that were given.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    partial.mkdir(parents=True)
    try:
        yield partial
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        sizes |= dict.fromkeys(options, 0)
        (partial / STAMP).write_text(_json({"scan": scan, "files": sizes, "stages": stages}), encoding="utf-8")
        for path in partial.iterdir():
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left of one case. Only who holds the case's lock may."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.????????.part"):
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file's, or a folder's, bytes are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows flushes no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"
