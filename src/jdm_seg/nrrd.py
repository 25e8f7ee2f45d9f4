"""NRRD images, and the segmentations of 3D Slicer (``.seg.nrrd``) with named, coloured segments.

Source: Slicer documentation, developer_guide/modules/segmentations.md ("Segmentation file format") for the fields
``SegmentN_…``; Teem's nrrd format definition for ``space``. This file alone touches pynrrd.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.errors import InputError
from jdm_seg.segments import Segment
from jdm_seg.volume import Volume, atomic_write

SUFFIXES = (".seg.nrrd", ".nrrd")
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
}
_SHORT = {"ras": "right-anterior-superior", "las": "left-anterior-superior", "lps": "left-posterior-superior"}
_TERMINOLOGY = (
    "Segmentation category and type - DICOM master list~SCT^49755003^Morphologically Altered Structure"
    "~SCT^18115005^Pathologic calcification, calcified structure~^^~Anatomic codes - DICOM master list~^^~^^"
)
"""How Slicer says what a segment is: the codes of :mod:`jdm_seg.dicom.segmentation`."""
_GOLDEN = 0.618034
"""Steps of the golden ratio along the hue circle keep neighbours in number apart in colour."""


@dataclass(frozen=True)
class SegmentedVolume:
    """Layers of labels on one grid, with the segments they hold.

    Attributes:
        layers: Volumes of integers.
        segments: Empty for a plain ``.nrrd`` without names.
    """

    layers: tuple[Volume, ...]
    segments: tuple[Segment, ...]


def read_nrrd(path: Path, name: str | None = None) -> SegmentedVolume:
    """Read an NRRD file: a scan, a mask, or a segmentation of Slicer.

    Args:
        path: File ending in ``.nrrd``.
        name: What messages call it; default the file's name.

    Returns:
        Its layers in RAS; one for everything but overlapping segments.

    Raises:
        InputError: If pynrrd is missing, or the file is no 3-D NRRD with its place in space.
    """
    name = path.name if name is None else name
    array, header = _load(path)
    steps, origin = header.get("space directions"), header.get("space origin")
    space = str(header.get("space", "")).lower()
    space = _SHORT.get(space, space)
    if steps is None or origin is None or space not in _TO_RAS:
        raise InputError(
            name,
            expected="space (LPS, RAS or LAS), space directions and space origin",
            found=f"space {space or 'none'!r}",
            remedy="save it again from 3D Slicer; spacing is never guessed",
        )
    spatial = [axis for axis, step in enumerate(steps) if step is not None and np.isfinite(step).all()]
    if len(spatial) != 3 or array.ndim not in (3, 4):
        raise InputError(
            name, expected="a 3-D image", found=f"shape {array.shape}", remedy="save one 3-D volume from 3D Slicer"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.array([steps[axis] for axis in spatial], dtype=float).T
    affine[:3, 3] = origin
    affine[:3] *= np.array(_TO_RAS[space], dtype=float)[:, None]
    if array.ndim == 4:
        listed = ({0, 1, 2, 3} - set(spatial)).pop()
        arrays = list(np.moveaxis(array, listed, 0))
    else:
        arrays = [array]
    return SegmentedVolume(tuple(Volume(layer, affine, name) for layer in arrays), _segments(header))


def write_seg_nrrd(path: Path, labels: Volume, names: Sequence[str]) -> None:
    """Write labels as a segmentation that 3D Slicer opens with named, coloured segments.

    Args:
        path: File to write, ending in ``.seg.nrrd``, whole or not at all.
        labels: 0 outside, k for the segment ``names[k - 1]``.
        names: One for each segment, also for those without voxels.

    Raises:
        InputError: If pynrrd is missing, or a label has no name.
    """
    top = int(labels.array.max(initial=0))
    if top > len(names):
        raise InputError(labels.name, expected=f"{len(names)} labels", found=f"label {top}", remedy="name every label")
    nrrd = _import_nrrd()
    affine = labels.affine.copy()
    affine[:2] *= -1  # Slicer writes LPS
    dtype = np.uint8 if len(names) < 256 else np.uint16
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "kinds": ["domain"] * 3,
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "encoding": "gzip",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    # one index is saved as Slicer does, inclusive on both ends; the whole array is a valid extent of any segment
    extent = " ".join(f"0 {size - 1}" for size in labels.array.shape)
    for index, name in enumerate(names):
        colour = colorsys.hsv_to_rgb((0.08 + index * _GOLDEN) % 1.0, 0.8, 0.95)
        header |= {
            f"Segment{index}_ID": f"Segment_{index + 1}",
            f"Segment{index}_Name": name,
            f"Segment{index}_NameAutoGenerated": "0",
            f"Segment{index}_Color": " ".join(f"{part:.4f}" for part in colour),
            f"Segment{index}_ColorAutoGenerated": "0",
            f"Segment{index}_LabelValue": str(index + 1),
            f"Segment{index}_Layer": "0",
            f"Segment{index}_Extent": extent,
            f"Segment{index}_Tags": f"Segmentation.Status:inprogress|TerminologyEntry:{_TERMINOLOGY}|",
        }
    with atomic_write(path) as temporary:
        nrrd.write(str(temporary), np.asarray(labels.array, dtype=dtype), header, detached_header=False)


def _segments(header: dict[str, Any]) -> tuple[Segment, ...]:
    indices = sorted(int(match[1]) for key in header if (match := re.fullmatch(r"Segment(\d+)_ID", key)))
    segments = []
    for index in indices:
        tags = str(header.get(f"Segment{index}_Tags", ""))
        coded = tags.partition("TerminologyEntry:")[2].partition("|")[0].split("~")
        meaning = coded[2].split("^")[-1] if len(coded) > 2 else ""
        segments.append(
            Segment(
                number=index + 1,
                name=str(header.get(f"Segment{index}_Name", "")),
                meaning=meaning,
                value=int(header.get(f"Segment{index}_LabelValue", 1)),
                layer=int(header.get(f"Segment{index}_Layer", 0)),
            )
        )
    return tuple(segments)


def _load(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    nrrd = _import_nrrd()
    if not path.is_file():
        raise InputError(path, expected="an NRRD file", found="no such file", remedy="check the path")
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"NRRD":
        raise InputError(path, expected="an NRRD file", found="something else", remedy="save it again from 3D Slicer")
    try:
        array, header = nrrd.read(str(path))
    except Exception as error:  # pynrrd lets zlib, UnicodeDecode, Index and Key errors through on damaged files
        raise InputError(
            path,
            expected="a complete NRRD file",
            found=f"a damaged one ({type(error).__name__})",
            remedy="save it again from 3D Slicer",
        ) from error
    return array, header


def _import_nrrd() -> Any:
    try:
        import nrrd
    except ImportError as error:
        raise InputError(
            ".nrrd", expected="the package pynrrd", found="not installed", remedy="pip install 'jdm-seg[nrrd]'"
        ) from error
    return nrrd
