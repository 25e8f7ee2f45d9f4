"""DICOM files in folders and zips, read without trusting what they state. This file starts pydicom."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdm_seg.errors import CaseNotFoundError, InputError

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

MAX_FILES = 200_000
MAX_FILE_BYTES = 4 << 30
"""A larger single file, or zip member, is refused (assumed: a whole-body enhanced CT is under 2 GiB)."""
MAX_ZIP_RATIO = 300
"""Stated size over packed size of a zip member above which it is refused; CT packs 2:1, empty slices 100:1."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_RESULTS = frozenset({"burden.json", "cohort.csv"})
"""A folder with one of them holds results of this package, a DICOM segmentation of the same study among them."""
_GROUPS = (b"\x08\x00", b"\x02\x00", b"\x00\x08")
"""How a file without the 128 byte preamble begins: group 0008 or 0002, little or big endian."""


@dataclass(frozen=True, order=True)
class FileRef:
    """A file, or a member of a zip; printing it shows no path, since folders are often named after people.

    Attributes:
        path: The file, or the zip.
        member: Name inside the zip, None for a plain file.
    """

    path: Path = field(repr=False)
    member: str | None = field(default=None, repr=False)

    @property
    def folder(self) -> tuple[str, ...]:
        """Folders that lead to the file: inside its zip, or in the file system."""
        return tuple(Path(self.member).parts[:-1]) if self.member is not None else self.path.parent.parts


def load_pydicom() -> Any:
    """Import pydicom, silenced: its warnings and log lines quote header values, which may name a person.

    Raises:
        InputError: If the extra is not installed.
    """
    try:
        import pydicom
        import pydicom.config
    except ImportError as error:
        raise InputError(
            "DICOM", expected="pydicom", found="it is not installed", remedy='pip install "jdm-seg[dicom]"'
        ) from error
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    for name in ("pydicom", "pylibjpeg", "libjpeg", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pydicom


def is_zip(path: Path) -> bool:
    """Tell whether a path is a zip archive by its name and content."""
    return path.suffix.lower() == ".zip" and path.is_file() and zipfile.is_zipfile(path)


def may_be_dicom(start: bytes) -> bool:
    """Tell from a file's first 132 bytes whether it is worth parsing."""
    return start[128:132] == b"DICM" or start[:2] in _GROUPS


def holds_dicom(source: Path) -> bool:
    """Tell whether a path is a DICOM file, a zip, or a folder with at least one file that may be DICOM."""
    if source.is_dir():
        return next(_walk(source), None) is not None
    if is_zip(source):
        return True
    try:
        with source.open("rb") as stream:
            return may_be_dicom(stream.read(132))
    except OSError:
        return False


def find_files(source: Path) -> list[FileRef]:
    """List the files under a folder, in a zip, or the one file, that may be DICOM, sorted.

    Links to folders, hidden entries and anything but plain files are left out.

    Raises:
        CaseNotFoundError: If there is nothing at the path.
        InputError: If a zip is damaged, encrypted or states impossible sizes, or there are too many files.
    """
    if is_zip(source):
        return _zip_members(source)
    if source.is_dir():
        found = []
        for path in _walk(source):
            found.append(FileRef(path))
            if len(found) > MAX_FILES:
                raise InputError(
                    source, expected=f"at most {MAX_FILES} files", found="more", remedy="point at fewer scans at a time"
                )
        return sorted(found)
    if not source.is_file():
        raise CaseNotFoundError(
            source, expected="a DICOM file, folder or zip", found="nothing", remedy="check the path"
        )
    return [FileRef(source)]


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        if Path(root) != folder and not _RESULTS.isdisjoint(names):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in names:
            path = Path(root, name)
            try:
                # a pipe or a device would block or never end
                if name.startswith(".") or not stat.S_ISREG(path.stat().st_mode):
                    continue
                with path.open("rb") as stream:
                    start = stream.read(132)
            except OSError:
                continue  # unreadable files show as missing slices, and a folder without any as empty
            if may_be_dicom(start):
                yield path


def _zip_members(path: Path) -> list[FileRef]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if _is_wanted(info)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _bad_zip(path, "a damaged one") from error
    if len(members) > MAX_FILES:
        raise _bad_zip(path, f"{len(members)} files")
    for info in members:
        if info.flag_bits & 1:
            raise InputError(path, expected="an open zip", found="an encrypted one", remedy="unpack it yourself")
        if info.file_size > min(MAX_FILE_BYTES, max(info.compress_size, 1024) * MAX_ZIP_RATIO):
            raise _bad_zip(path, "a member that unpacks to an implausible size")
    return sorted(FileRef(path, info.filename) for info in members)


def _is_wanted(info: zipfile.ZipInfo) -> bool:
    name = Path(info.filename).name
    return not info.is_dir() and not name.startswith(".") and not info.filename.startswith("__MACOSX")


def _bad_zip(path: Path, found: str) -> InputError:
    return InputError(path, expected="a plain zip of DICOM files", found=found, remedy="unpack it and pass the folder")


class Reader:
    """Opens files and zip members; a zip is opened once. Members are never written to disk, so no path can escape."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._archives: dict[Path, zipfile.ZipFile] = {}

    def __enter__(self) -> Reader:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every zip."""
        for archive in self._archives.values():
            archive.close()

    def open(self, file: FileRef) -> io.BufferedReader | io.BytesIO:
        """Open a file for reading.

        Raises:
            InputError: If it cannot be read or is longer than it states.
        """
        try:
            if file.member is None:
                if file.path.stat().st_size > MAX_FILE_BYTES:
                    raise _unreadable("a file over 4 GiB")
                return _Bounded(io.FileIO(file.path))
            if file.path not in self._archives:
                self._archives[file.path] = zipfile.ZipFile(file.path)
            archive = self._archives[file.path]
            stated = archive.getinfo(file.member).file_size
            with archive.open(file.member) as stream:
                data = stream.read(stated + 1)
        except (zipfile.BadZipFile, OSError, zlib.error, EOFError, KeyError, NotImplementedError) as error:
            raise _unreadable("a damaged or missing file") from error
        if len(data) > stated:
            raise _unreadable("a zip member longer than it states")
        return io.BytesIO(data)


class _Bounded(io.BufferedReader):
    """A file that never allocates more than is left in it, whatever length a header states."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def open_source(reader: Reader, file: FileRef, tags: Iterable[str] | None = None) -> FileDataset:
    """Parse one DICOM file.

    Args:
        reader: Opens it.
        file: Which.
        tags: Keywords to read, without pixels; None reads everything.

    Raises:
        InputError: If it is no DICOM file or is damaged; the message quotes nothing of its content.
    """
    pydicom = load_pydicom()
    with reader.open(file) as stream, decoding("a DICOM file"):
        _check_deflated(stream)
        dataset: FileDataset = pydicom.dcmread(
            stream,
            stop_before_pixels=tags is not None,
            specific_tags=None if tags is None else list(tags),
            force=True,
        )
    return dataset


@contextlib.contextmanager
def decoding(where: str, what: str = "a damaged file") -> Iterator[None]:
    """Turn whatever goes wrong inside into an :class:`InputError` that quotes nothing of the file.

    Parsers and decoders fed with damaged bytes raise nearly anything, and the text of what they raise may hold a name.

    Raises:
        InputError: If anything goes wrong inside.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(f"{what} ({type(error).__name__})", where) from error


def _check_deflated(stream: Any) -> None:
    """Refuse a deflated file that would inflate without bound; pydicom inflates the whole of it at once."""
    start = stream.read(1024)
    if _DEFLATED in start:
        # group 0002 states its own length right behind the magic: (0002,0000) UL 4 <length>
        stream.seek(144 + int.from_bytes(start[140:144], "little"))
        inflate, size, chunk = zlib.decompressobj(-zlib.MAX_WBITS), 0, stream.read(1 << 16)
        while chunk and not inflate.eof:
            size += len(inflate.decompress(chunk, 1 << 20))
            if size > MAX_FILE_BYTES // 4:
                raise _unreadable("a deflated file of implausible size")
            chunk = inflate.unconsumed_tail or stream.read(1 << 16)
    stream.seek(0)


def _unreadable(found: str, where: str = "a DICOM file") -> InputError:
    return InputError(where, expected="readable DICOM", found=found, remedy="export the series again, whole")
