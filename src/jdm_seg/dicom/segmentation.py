"""Masks as DICOM SEG, written so that a viewer lays them on the scan they were made from.

Codes: property category SCT 49755003 "Morphologically Abnormal Structure", property type SCT 18115005 "Pathologic
calcification, calcified structure" (morphologic abnormality), the code of DICOM context groups for calcified lesions
(CID 3802, 6335 to 6338). SNOMED CT's disorder "calcinosis" is a diagnosis, not a structure on an image.

Planes are written where the mask's voxels are. Where that is a slice of the source series (to 0.01 mm), the frame takes
that slice's own numbers and refers to it; stitched, resampled or filled planes stand on their own.

Source: DICOM PS3.3 A.51 and C.8.20 (Segmentation IOD); highdicom writes the file.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jdm_seg
from jdm_seg.dicom.files import load_pydicom
from jdm_seg.dicom.planes import Planes, planes_of
from jdm_seg.errors import InputError
from jdm_seg.volume import Volume, atomic_write

Encoding = Literal["binary", "lesions", "labelmap"]
SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes Segmentation Storage and Label Map Segmentation Storage."""
CATEGORY = ("49755003", "SCT", "Morphologically Abnormal Structure")
TYPE = ("18115005", "SCT", "Pathologic calcification, calcified structure")
_SERIES_NUMBER = 9100
_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyDescription")
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
SOURCE_KEYWORDS = (
    *_PATIENT,
    *_STUDY,
    *_GEOMETRY,
    *_LOSSY,
    *_IDENTITY,
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SpecificCharacterSet",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""All that :func:`write_segmentation` looks at in a source header."""


@dataclass(frozen=True)
class Method:
    """What made a mask.

    Attributes:
        name: Of the model or tool.
        version: Of the model or tool.
        kind: As DICOM tells them apart.
    """

    name: str
    version: str
    kind: Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"] = "AUTOMATIC"


def write_segmentation(
    path: Path,
    mask: Volume,
    sources: Sequence[Any],
    *,
    method: Method,
    encoding: Encoding = "binary",
    patient_id: str = "",
    keep_patient: bool = False,
) -> Any:
    """Write a mask as DICOM SEG, whole or not at all.

    The same mask, source and method give the same UIDs. Empty planes are left out; a mask without any voxel becomes one
    empty frame, since the standard wants one.

    Args:
        path: File to write.
        mask: Volume of booleans, or of lesion numbers 1 to n, on any grid in the source's frame of reference.
        sources: Headers of the source series (pydicom data sets; pixels are not needed), or of several that were
            stitched.
        method: Goes into the algorithm identification.
        encoding: ``binary``: one segment; ``lesions``: one segment a lesion; ``labelmap``: likewise, in a label map,
            which fewer viewers open.
        patient_id: Written as the patient's id, so that a de-identified result still names its case.
        keep_patient: Copy the patient's and the study's tags, as an archive needs to file the object. Otherwise they
            stay empty: nothing of a person leaves the source's header.

    Returns:
        The data set as written.

    Raises:
        InputError: If highdicom is missing, the sources lack what a SEG must refer to, or the grid's rows and columns
            are not at right angles.
    """
    hd = import_highdicom()
    groups = _by_series(sources, mask.name)
    headers = [_reduced(one, patient_id, keep_patient, mask.name) for one in groups[0]]
    further = [_reduced(one, patient_id, keep_patient, mask.name) for group in groups[1:] for one in group]
    labels = mask.array.astype(np.uint8 if mask.array.dtype == np.bool_ else np.uint16, copy=False)
    count = 1 if encoding == "binary" else max(int(labels.max(initial=0)), 1)
    planes = planes_of(Volume(labels, mask.affine, mask.name), headers)
    thickness = _thickness(planes, headers)
    for header in headers:
        _agree(header, headers[0], planes, thickness)
    digest = hashlib.sha256()
    for plane in planes.arrays:
        digest.update(plane.tobytes())
    seed = [str(headers[0].SeriesInstanceUID), digest.hexdigest(), method.name, method.version, encoding, *planes.seed]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the patient's name
        segmentation = _compose(hd, (headers, further), planes, count, thickness, seed, method, encoding)
    organisation = uid_of(seed, "dimensions")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
    with atomic_write(path) as temporary:
        segmentation.save_as(temporary, enforce_file_format=True)
    return segmentation


def _compose(
    hd: Any,
    sources: tuple[list[Any], list[Any]],
    planes: Planes,
    count: int,
    thickness: float,
    seed: list[str],
    method: Method,
    encoding: Encoding,
) -> Any:
    frames = np.stack(planes.arrays)
    return hd.seg.Segmentation(
        source_images=sources[0],
        further_source_images=sources[1] or None,
        pixel_array=(frames > 0).astype(np.uint8) if encoding == "binary" else frames,
        segmentation_type="LABELMAP" if encoding == "labelmap" else "BINARY",
        segment_descriptions=[_description(hd, number, encoding, method, seed) for number in range(1, count + 1)],
        series_instance_uid=uid_of(seed, "series"),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=uid_of(seed, "instance"),
        instance_number=1,
        manufacturer="jdm_seg",
        manufacturer_model_name="jdm_seg",
        software_versions=jdm_seg.__version__,
        device_serial_number="0",
        content_label="CALCINOSIS",
        content_description="Research use only",
        series_description="Calcinosis (jdm_seg)",
        pixel_measures=hd.PixelMeasuresSequence(planes.pixel_spacing, thickness, planes.spacing),
        plane_orientation=hd.PlaneOrientationSequence("PATIENT", planes.orientation),
        plane_positions=[hd.PlanePositionSequence("PATIENT", position) for position in planes.positions],
    )


def _description(hd: Any, number: int, encoding: Encoding, method: Method, seed: list[str]) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    algorithm = None
    if method.kind != "MANUAL":
        family = codes.DCM.ArtificialIntelligence
        algorithm = hd.AlgorithmIdentificationSequence(name=method.name, family=family, version=method.version)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label="calcinosis" if encoding == "binary" else f"calcinosis {number}",
        segmented_property_category=Code(*CATEGORY),
        segmented_property_type=Code(*TYPE),
        algorithm_type=method.kind,
        algorithm_identification=algorithm,
        tracking_uid=uid_of(seed, f"segment {number}"),
        tracking_id="calcinosis" if encoding == "binary" else f"lesion {number}",
        display_color=hd.color.CIELabColor.from_rgb(255, 127, 14),
    )


def _by_series(sources: Sequence[Any], name: str) -> list[list[Any]]:
    """Part headers into series, the one with the most slices first; all lie in one frame of reference."""
    groups: dict[str, list[Any]] = {}
    for source in sources:
        groups.setdefault(str(source.get("SeriesInstanceUID", "")), []).append(source)
    if not groups:
        raise InputError(name, expected="the source series", found="no DICOM headers", remedy="segment a DICOM series")
    frames = {str(source.get("FrameOfReferenceUID", "")) for source in sources}
    if len(frames) > 1:
        raise InputError(
            name,
            expected="source series in one frame of reference",
            found=f"{len(frames)}",
            remedy="write one segmentation for each series",
        )
    return sorted(groups.values(), key=len, reverse=True)


def _reduced(source: Any, patient_id: str, keep_patient: bool, name: str) -> Any:
    """Return what a SEG must take from a source header, and of the person nothing unless asked."""
    from pydicom.dataset import Dataset

    missing = [keyword for keyword in (*_IDENTITY, "Rows", "Columns") if not source.get(keyword)]
    if missing:
        raise InputError(
            name,
            expected="a source series that a segmentation can refer to",
            found=f"no {', '.join(missing)}",
            remedy="use the series as the scanner wrote it",
        )
    header = Dataset()
    for keyword in (*_IDENTITY, "Rows", "Columns"):
        setattr(header, keyword, source[keyword].value)
    header.Modality = source.get("Modality", "CT")
    for keyword in _PATIENT + _STUDY:
        setattr(header, keyword, source.get(keyword, "") if keep_patient else "")
    if not keep_patient:
        header.PatientID = patient_id
    for keyword in (*_GEOMETRY, *_LOSSY, *(("SpecificCharacterSet",) if keep_patient else ())):
        if source.get(keyword) is not None:
            setattr(header, keyword, source[keyword].value)
    if "NumberOfFrames" in source and "PerFrameFunctionalGroupsSequence" in source:
        _reduce_frames(header, source)
    return header


def _reduce_frames(header: Any, source: Any) -> None:
    """Bring a multi-frame header into the one form that highdicom reads: orientation shared, positions by frame."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    shared = source.SharedFunctionalGroupsSequence[0] if source.get("SharedFunctionalGroupsSequence") else Dataset()
    frames = source.PerFrameFunctionalGroupsSequence
    header.NumberOfFrames = len(frames)
    common = Dataset()
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        common[keyword] = (shared if keyword in shared else frames[0])[keyword]
    header.SharedFunctionalGroupsSequence = Items([common])
    items = []
    for frame in frames:
        item = Dataset()
        item.PlanePositionSequence = (frame if "PlanePositionSequence" in frame else shared).PlanePositionSequence
        items.append(item)
    header.PerFrameFunctionalGroupsSequence = Items(items)


def _thickness(planes: Planes, headers: list[Any]) -> float:
    """Return the slice thickness to state: the source's where it has one, else the distance of planes."""
    first = headers[0]
    if "SharedFunctionalGroupsSequence" in first:
        stated = first.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].get("SliceThickness")
    else:
        stated = first.get("SliceThickness")
    return float(stated) if stated else planes.spacing


def _agree(header: Any, first: Any, planes: Planes, thickness: float) -> None:
    """Fill in what highdicom copies from the source when it finds the planes to be the source's own."""
    if "SharedFunctionalGroupsSequence" in header:
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    else:
        measures = header
        if first.get("ImageOrientationPatient") is not None:
            header.ImageOrientationPatient = first.ImageOrientationPatient  # some exports differ in the last digit
    measures.SliceThickness = thickness
    measures.SpacingBetweenSlices = planes.spacing


def uid_of(seed: list[str], purpose: str) -> str:
    """Return a UID that follows from its seed and purpose alone."""
    return str(load_pydicom().uid.generate_uid(entropy_srcs=[*seed, purpose]))


def import_highdicom() -> Any:
    """Import highdicom, or say what to install.

    Raises:
        InputError: If the extra is not installed.
    """
    load_pydicom()
    try:
        import highdicom
    except ImportError as error:
        raise InputError(
            "DICOM SEG", expected="the package highdicom", found="not installed", remedy="pip install 'jdm-seg[dicom]'"
        ) from error
    return highdicom
