"""What every layout is made of: entries with an image and a mask, and how the two are copied."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from jdm_seg.cases import SPLITS, Case, Manifest, Modality
from jdm_seg.errors import InputError
from jdm_seg.masks import read_labels
from jdm_seg.nrrd import SUFFIXES as NRRD_SUFFIXES
from jdm_seg.nrrd import read_nrrd
from jdm_seg.volume import NIFTI_SUFFIXES, Grid, Volume, atomic_write, read_volume, write_volume

OnCase = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One scan of a data set, whatever its layout.

    Attributes:
        case_id: As the data set calls it.
        subject_id: The person.
        modality: ``ct`` or ``stir``.
        split: ``training``, ``validation`` or ``testing``.
        image: NIfTI or NRRD file, or a folder of DICOM; None where only masks are at hand.
        label: Mask file, or None.
        ignore: Mask of what neither teaches nor counts, or None.
        stratum: Kind of case.
        study: Of DICOM, see :class:`~jdm_seg.cases.Case`.
    """

    case_id: str
    subject_id: str
    modality: Modality
    split: str
    image: Path | None
    label: Path | None = None
    ignore: Path | None = None
    stratum: str = ""
    study: str = ""

    def as_case(self) -> Case:
        """Return the entry as a case.

        Raises:
            InputError: If it has no image, or an id that cannot be a file's name.
        """
        if self.image is None:
            raise InputError(
                self.case_id, expected="a scan beside the mask", found="none", remedy="name its folder with --images"
            )
        return Case(
            self.case_id,
            self.subject_id,
            self.modality,
            self.image,
            self.label,
            ignore=self.ignore,
            stratum=self.stratum,
            study=self.study,
        )


@dataclass(frozen=True)
class DataSet:
    """Entries in the order of their source.

    Attributes:
        entries: The scans.
        layout: What it was read as, in words.
        wanted: Which segments of its masks are calcinosis, see :func:`~jdm_seg.masks.read_labels`.
        fields: Further facts of a datalist, such as ``label_rule``.
        notes: What a reader should know.
    """

    entries: tuple[Entry, ...]
    layout: str = ""
    wanted: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest, layout: str = "MONAI datalist", **fields: Any) -> DataSet:
        """Return the cases of a manifest."""
        entries = tuple(
            Entry(
                case.case_id,
                case.subject_id,
                case.modality,
                split,
                case.image,
                case.label,
                ignore=case.ignore,
                stratum=case.stratum,
                study=case.study,
            )
            for split in SPLITS
            for case in manifest.cases.get(split, ())
        )
        return cls(entries, layout, fields=fields)

    def manifest(self) -> Manifest:
        """Return the entries as a manifest.

        Raises:
            InputError: If one has no image.
        """
        cases: dict[str, tuple[Case, ...]] = {}
        for split in SPLITS:
            members = tuple(entry.as_case() for entry in self.entries if entry.split == split)
            if members:
                cases[split] = members
        return Manifest(cases)


def read_image(entry: Entry) -> Volume:
    """Read the scan of an entry: NIfTI, NRRD, or the best series of a DICOM folder.

    Raises:
        InputError: If there is none or it cannot be read.
    """
    case = entry.as_case()
    name = case.image.name.lower()
    if name.endswith(NRRD_SUFFIXES):
        layers = read_nrrd(case.image, entry.case_id).layers
        if len(layers) != 1:
            raise InputError(entry.case_id, expected="a scan", found=f"{len(layers)} layers", remedy="export the scan")
        return replace(layers[0], array=_smallest(layers[0].array))
    if name.endswith(NIFTI_SUFFIXES):
        return read_volume(case.image)
    from jdm_seg.dicom.cases import read_case

    return read_case(case).scan.volume


def store_image(entry: Entry, target: Path, *, link: bool = False) -> tuple[Path, Volume]:
    """Put the scan of an entry into a data set: its bytes where it is NIfTI, else written as ``.nii.gz``.

    Args:
        entry: With an image.
        target: Path without an ending; ``.nii.gz`` is added.
        link: A symbolic link instead of a copy, where the bytes can stay as they are.

    Returns:
        The file, and the scan, whose grid the mask must share.
    """
    scan = read_image(entry)
    source = entry.as_case().image
    target = target.with_name(f"{target.name}.nii.gz")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name.lower().endswith(".nii.gz"):
        copy_file(source, target, link=link)
    elif source.name.lower().endswith(".nii"):
        _pack(source, target)
    else:
        write_volume(target, scan.array, scan)
    return target, scan


def _pack(source: Path, target: Path) -> None:
    """Compress the bytes of a file as they are: nothing is decoded, and no time goes in."""
    with (
        atomic_write(target) as temporary,
        source.open("rb") as stream,
        temporary.open("wb") as sink,
        igzip.IGzipFile("", "wb", 1, sink, mtime=0) as packed,
    ):
        shutil.copyfileobj(stream, packed, 1 << 22)


def copy_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy a file byte for byte, or link to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


def labels_of(entry: Entry, wanted: str | None, grid: Grid | None) -> Volume:
    """Read an entry's mask on the scan's grid; the caller has checked that there is one."""
    assert entry.label is not None
    return read_labels(entry.label, grid, wanted=wanted, name=entry.case_id)


def store_label(target: Path, labels: Volume, like: Volume, *, instances: bool = False) -> Path:
    """Write a mask as ``.nii.gz`` with the header of its scan: uint8 0 and 1, or with its lesions' numbers as uint16.

    Args:
        target: Path without an ending.
        labels: On the grid of ``like``.
        like: The scan, or the mask itself where there is no scan.
        instances: Keep the numbers.

    Returns:
        Path of the file, with its ending.
    """
    target = target.with_name(f"{target.name}.nii.gz")
    array: NDArray[Any] = labels.array if instances else labels.array > 0
    write_volume(target, array, like, np.uint16 if instances else np.uint8)
    return target


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside ``folder`` and move it there when the block ends well, else remove it.

    Raises:
        InputError: If the folder is there and holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            folder, expected="a new or empty folder", found="one that holds files", remedy="choose another OUT"
        )
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _smallest(array: NDArray[Any]) -> NDArray[Any]:
    """Return 64-bit integers, which NRRD files of scans are often stored as, in a type that NIfTI readers know."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return array.astype(np.int32)
    return array
