"""A mask from any tool as labels on the grid of its scan: NIfTI, NRRD and ``.seg.nrrd``, DICOM SEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.errors import InputError
from jdm_seg.nrrd import SUFFIXES as NRRD_SUFFIXES
from jdm_seg.nrrd import SegmentedVolume, read_nrrd
from jdm_seg.placement import place_on_grid
from jdm_seg.segments import ALL, choose_segments
from jdm_seg.volume import NIFTI_SUFFIXES, Grid, Volume, read_volume

DICOM_SUFFIXES = (".dcm", ".seg")
MASK_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *DICOM_SUFFIXES)
_MAX_LABEL = int(np.iinfo(np.uint16).max)


def mask_id_of(path: Path) -> str:
    """Return the case id that a mask's file name tells: the name without its ending."""
    for suffix in MASK_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def read_labels(path: Path, grid: Grid | None = None, *, wanted: str | None = None, name: str | None = None) -> Volume:
    """Read a mask.

    Args:
        path: A file ending in one of :data:`MASK_SUFFIXES`; any other is tried as DICOM.
        grid: The scan's. A mask that was cropped, flipped or permuted by its tool is put in place; without a grid it
            stays as it is.
        wanted: Which segments, see :func:`~jdm_seg.segments.choose_segments`; of a file without names, which value.
            None takes every value above 0 there.
        name: What messages call it; default the id in the file's name.

    Returns:
        Unsigned labels, 0 outside. Files that number their lesions keep the numbers; chosen segments become 1 to n.

    Raises:
        InputError: If it cannot be read, is no mask, or holds no segment that fits.
        GridMismatchError: If its voxels are not the scan's.
    """
    name = mask_id_of(path) if name is None else name
    lower = path.name.lower()
    if lower.endswith(NIFTI_SUFFIXES):
        labels = _valued(read_volume(path), wanted, name)
    elif lower.endswith(NRRD_SUFFIXES):
        labels = _of_nrrd(read_nrrd(path, name), wanted, name)
    else:
        from jdm_seg.dicom.segmentation_read import read_segmentation

        return read_segmentation(path, grid, wanted=wanted, name=name)
    if grid is None or labels.grid.matches(grid):
        return labels
    return Volume(place_on_grid(labels, grid), grid.affine, name)


def _of_nrrd(content: SegmentedVolume, wanted: str | None, name: str) -> Volume:
    first = content.layers[0]
    if not content.segments:
        if len(content.layers) > 1:
            raise InputError(
                name,
                expected="one mask",
                found=f"{len(content.layers)} unnamed layers",
                remedy="save it as a segmentation from 3D Slicer",
            )
        return _valued(first, wanted, name)
    labels = np.zeros(first.array.shape, dtype=np.uint16)
    chosen = choose_segments(content.segments, wanted, name)
    for number, segment in reversed(list(enumerate(chosen, 1))):
        if segment.layer >= len(content.layers):
            raise InputError(
                name,
                expected=f"a layer {segment.layer} for segment {segment}",
                found=f"{len(content.layers)} layers",
                remedy="save it again from 3D Slicer",
            )
        labels[content.layers[segment.layer].array == segment.value] = number
    return Volume(labels, first.affine, name)


def _valued(volume: Volume, wanted: str | None, name: str) -> Volume:
    """Return the labels of a file without names, or where it holds one value."""
    array: NDArray[Any] = volume.array
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError(
            name, expected="a mask of whole numbers", found="fractions", remedy="threshold the probabilities first"
        )
    if array.size and (array.min() < 0 or array.max() > _MAX_LABEL):
        raise InputError(
            name,
            expected=f"a mask with values of 0 to {_MAX_LABEL}",
            found=f"values of {array.min():g} to {array.max():g}",
            remedy="check that this is the mask and not the scan",
        )
    if wanted not in (None, ALL):
        if not str(wanted).isdecimal():
            raise InputError(
                name,
                expected="named segments",
                found=f"values without names ({', '.join(str(int(v)) for v in np.unique(array)[:10])})",
                remedy="choose one by its value with --segment",
            )
        array = array == int(str(wanted))
    return Volume(array.astype(np.uint16, copy=False), volume.affine, name, volume.header)
