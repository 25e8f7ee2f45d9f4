"""One header to the frames it holds: where each slice lies, how its numbers become HU, and what tells it apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.dicom.acquisition import KEYWORDS as ACQUISITION_KEYWORDS
from jdm_seg.dicom.acquisition import Acquisition, acquisition_of, code_of, number_of, numbers_of, value_of
from jdm_seg.dicom.files import FileRef, Reader, decoding, open_source
from jdm_seg.errors import InputError

MAX_SIDE = 8192
"""Rows or columns beyond it are a damaged header, not a scan (assumed)."""
MAX_FRAMES = 100_000
_TRAITS = ("AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue", "AcquisitionTime")
_PERSON = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "AccessionNumber",
    "OtherPatientIDs",
    "ReferringPhysicianName",
)
KEYWORDS = (
    *ACQUISITION_KEYWORDS,
    *_TRAITS,
    *_PERSON,
    "SpecificCharacterSet",
    "Modality",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "InstanceNumber",
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)


@dataclass(frozen=True)
class Frame:
    """One slice of a file.

    Attributes:
        file: Where it is.
        index: Number of the frame in its file, from 0.
        uid: The file's SOP instance UID, to reference it.
        instance: Its number in the series.
        rows: Number of rows.
        columns: Number of columns.
        spacing: Distance between columns and between rows in mm; None where the header does not say.
        orientation: Unit vectors along a row and along a column, patient coordinates (LPS); None where not stated.
        position: Centre of the first pixel, LPS mm; None where not stated.
        slope: Of the rescale.
        intercept: Of the rescale.
        padding: Stored value that marks pixels outside the reconstruction.
        traits: Acquisition number, phase, trigger, b-value and time, which part slices at one place.
        acquisition: Its physics.
    """

    file: FileRef
    index: int
    uid: str = field(repr=False)
    instance: int
    rows: int
    columns: int
    spacing: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    slope: float
    intercept: float
    padding: float | None
    traits: tuple[float | None, ...]
    acquisition: Acquisition

    @property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors along a row, along a column and their normal, as rows of a (3, 3) array, LPS."""
        along_row, along_column = np.array(self.orientation or (1, 0, 0, 0, 1, 0)).reshape(2, 3)
        return np.stack([along_row, along_column, np.cross(along_row, along_column)])


@dataclass(frozen=True)
class Header:
    """What one file says of its series, with its frames. Identifiers are kept out of its printed form.

    Attributes:
        study: Hash of the study, see :func:`read_study`.
        series_uid: To group by.
        frame_of_reference: Stations of one examination share it.
        sop_class: Kind of object.
        modality: ``CT``, ``MR`` and so on.
        number: Of the series.
        image_type: In capitals.
        description: Without any word of the person's names and numbers.
        hints: Words of description, protocol and sequence name, to choose by; never shown.
        colour: Whether a pixel has several samples.
        frames: The slices.
        names_folder: Whether a folder above the file holds a word of the person's names and numbers.
    """

    study: str
    series_uid: str = field(repr=False)
    frame_of_reference: str = field(repr=False)
    sop_class: str
    modality: str
    number: int
    image_type: tuple[str, ...]
    description: str
    hints: str = field(repr=False)
    colour: bool
    frames: tuple[Frame, ...]
    names_folder: bool = False


def read_study(reader: Reader, file: FileRef) -> str | None:
    """Return a hash that the scans of one study of one person share, and that leads to nobody; None without a scan.

    Raises:
        InputError: If the file is damaged.
    """
    dataset = open_source(reader, file, ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality"))
    with decoding("a DICOM file"):
        if _text(dataset, "Modality") in ("SEG", "SR"):  # refers to a scan; where it hides the patient it is no study
            return None
        study, series = _text(dataset, "StudyInstanceUID"), _text(dataset, "SeriesInstanceUID")
        return _hash(study, _text(dataset, "PatientID")) if study or series else None


def read_header(reader: Reader, file: FileRef) -> Header | None:
    """Read one file's header.

    Returns:
        The header, or None if the file is no DICOM object of a series.

    Raises:
        InputError: If it is damaged.
    """
    dataset = open_source(reader, file, KEYWORDS)
    with decoding("a DICOM file"):
        return _header(dataset, file)


def _header(dataset: Any, file: FileRef) -> Header | None:
    series = _text(dataset, "SeriesInstanceUID")
    sop_class = _text(dataset, "SOPClassUID") or str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", ""))
    if not (series or sop_class) or sop_class == "1.2.840.10008.1.3.10":  # a DICOMDIR
        return None
    person = " ".join(_text(dataset, keyword) for keyword in _PERSON)
    description = _text(dataset, "SeriesDescription")
    hints = " ".join([description, _text(dataset, "ProtocolName"), _text(dataset, "SequenceName")])
    words = _words(person)
    return Header(
        study=_hash(_text(dataset, "StudyInstanceUID"), _text(dataset, "PatientID")),
        series_uid=series,
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        sop_class=sop_class,
        modality=(code_of(dataset, "Modality", 16) or "").upper(),
        number=int(number_of(dataset, "SeriesNumber") or 0),
        image_type=_image_type(dataset),
        description=_without(description, words)[:64],
        hints=hints.upper(),
        colour=(number_of(dataset, "SamplesPerPixel") or 1) > 1 or _is_palette(dataset),
        frames=tuple(_frames(dataset, file)),
        names_folder=any(_names_of(dataset) & _words(part) for part in file.folder[-3:]),
    )


def _frames(dataset: Any, file: FileRef) -> Iterator[Frame]:
    count = int(number_of(dataset, "NumberOfFrames") or 1)
    rows, columns = (int(number_of(dataset, keyword) or 0) for keyword in ("Rows", "Columns"))
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE and 0 < count <= MAX_FRAMES):
        return
    shared = _items(dataset, "SharedFunctionalGroupsSequence")[:1]
    single = _items(dataset, "PerFrameFunctionalGroupsSequence")
    if single and len(single) != count:
        raise InputError(
            "a DICOM file",
            expected=f"{count} frames",
            found=f"the places of {len(single)}",
            remedy="export the series again",
        )
    count = len(single) or 1  # frames without places of their own (a cine loop) make no volume: one stands for them
    common = [group for item in shared for group in _groups(item)]
    for index in range(count):
        groups = [*(_groups(single[index]) if index < len(single) else []), *common]
        yield _frame(dataset, file, index, (rows, columns), groups)


def _frame(dataset: Any, file: FileRef, index: int, shape: tuple[int, int], groups: list[Any]) -> Frame:
    layers = [*groups, dataset]

    def numbers(keyword: str, count: int) -> tuple[float, ...] | None:
        found = (numbers_of(layer, keyword, count) for layer in layers)
        return next((value for value in found if value is not None), None)

    def number(keyword: str) -> float | None:
        found = (number_of(layer, keyword) for layer in layers)
        return next((value for value in found if value is not None), None)

    spacing = numbers("PixelSpacing", 2)
    slope = number("RescaleSlope")
    return Frame(
        file=file,
        index=index,
        uid=_text(dataset, "SOPInstanceUID"),
        instance=int(number_of(dataset, "InstanceNumber") or 0),
        rows=shape[0],
        columns=shape[1],
        # DICOM states the distance between rows first
        spacing=(spacing[1], spacing[0]) if spacing is not None and min(spacing) > 0 else None,
        orientation=_unit(numbers("ImageOrientationPatient", 6)),
        position=numbers("ImagePositionPatient", 3),
        slope=1.0 if slope is None else slope,
        intercept=number("RescaleIntercept") or 0.0,
        padding=number("PixelPaddingValue"),
        traits=(*(number(keyword) for keyword in _TRAITS), number("TemporalPositionIndex"), number("StackID")),
        acquisition=acquisition_of(dataset, groups),
    )


def _unit(orientation: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Return the two directions if they are of length 1 and at right angles, as the standard demands, else None."""
    if orientation is None:
        return None
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(row @ column)) > 1e-2:
        return None
    return orientation


def _items(dataset: Any, keyword: str) -> list[Any]:
    value = value_of(dataset, keyword)
    return list(value) if value is not None and not isinstance(value, str | bytes | int | float) else []


def _groups(item: Any) -> list[Any]:
    """Return the macros of a functional group item: each is a sequence of one item."""
    groups = []
    for element in item.keys():  # noqa: SIM118 - iterating a data set decodes every value
        value = value_of(item, element) if isinstance(element, str) else item[element].value
        if (
            hasattr(value, "__getitem__")
            and not isinstance(value, str | bytes)
            and len(value)
            and hasattr(value[0], "get")
        ):
            groups.append(value[0])
    return groups


def _image_type(dataset: Any) -> tuple[str, ...]:
    value = value_of(dataset, "ImageType")
    if value is None or isinstance(value, str | bytes):
        value = [] if value is None else [value]
    return tuple(re.sub(r"[^A-Z0-9_ ]", "", str(part).upper()).strip() for part in value)


def _is_palette(dataset: Any) -> bool:
    return not (code_of(dataset, "PhotometricInterpretation") or "MONOCHROME").startswith("MONOCHROME")


def _text(dataset: Any, keyword: str) -> str:
    value = value_of(dataset, keyword)
    return "" if value is None else str(value).strip()


def _words(text: str) -> set[str]:
    """Return the parts of a text that could point at a person: three letters or digits and more."""
    return {word for word in re.split(r"[^\w]|_", text.casefold()) if len(word) >= 3}


def _names_of(dataset: Any) -> set[str]:
    """Return words that must not be in a case id. A name that only repeats the number is a pseudonym, and may be."""
    names = " ".join(_text(dataset, keyword) for keyword in ("PatientName", "PatientBirthDate", "AccessionNumber"))
    return _words(names) - _words(_text(dataset, "PatientID"))


def _without(text: str, words: set[str]) -> str:
    """Return printable text with every word of ``words`` replaced by a dash, inside other words too."""
    plain = "".join(letter for letter in text if letter.isprintable())
    for word in sorted(words, key=len, reverse=True):
        plain = re.sub(re.escape(word), "-", plain, flags=re.IGNORECASE)
    return plain


def _hash(study: str, person: str) -> str:
    # the study UID is long and unguessable: a person's number alone could be found by trying all of them
    return hashlib.sha256(f"{study}\n{person}".encode()).hexdigest()[:12]
