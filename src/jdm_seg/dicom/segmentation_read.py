"""DICOM SEG of any tool to a mask: binary, fractional, overlapping, label map, with or without its empty planes.

Frames are placed one by one by their own position, so neither their order nor gaps between them matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.dicom.files import load_pydicom
from jdm_seg.dicom.planes import LPS
from jdm_seg.dicom.segmentation import SEG_CLASSES
from jdm_seg.errors import InputError
from jdm_seg.placement import window_on_grid
from jdm_seg.segments import Segment, choose_segments
from jdm_seg.volume import Grid, Volume

_HALF = 0.5
"""Share of the maximum from which a fractional voxel counts."""
_MAX_PLANES = 20_000
"""More planes than any scan has: a forged position, not a grid."""


@dataclass(frozen=True)
class _Frame:
    segment: int
    affine: NDArray[np.float64]  # of (column, row, slice) indices, RAS mm; its third column is a unit normal


def list_segments(dataset: Any) -> tuple[Segment, ...]:
    """Return the segments that a DICOM SEG describes, without a label map's background."""
    segments = []
    for item in dataset.get("SegmentSequence") or ():
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or ()
        number = int(item.get("SegmentNumber", 0))
        if number > 0:
            meaning = str(next(iter(kinds)).get("CodeMeaning", "")) if len(kinds) else ""
            segments.append(Segment(number, str(item.get("SegmentLabel", "")), meaning, number))
    return tuple(segments)


def referenced_series(dataset: Any) -> tuple[str, ...]:
    """Return the UIDs of the series that a DICOM SEG was made from."""
    return tuple(str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or ())


def read_segmentation(path: Path, grid: Grid | None = None, *, wanted: str | None = None, name: str = "") -> Volume:
    """Read a DICOM SEG as labels.

    Args:
        path: The file.
        grid: The scan's; without it, the smallest grid that holds the frames.
        wanted: Which segments, see :func:`~jdm_seg.segments.choose_segments`.
        name: What messages call it; default the file's name.

    Returns:
        0 outside, k in the k-th segment chosen (the first of those that overlap), uint16.

    Raises:
        InputError: If pydicom is missing, or the file is no segmentation in the patient's coordinates.
        GridMismatchError: If its voxels are not the grid's.
    """
    name = name or path.name
    pydicom = load_pydicom()
    try:
        dataset = pydicom.dcmread(path)
        if dataset.get("SOPClassUID") not in SEG_CLASSES:
            raise _unusable(name, "another DICOM object")
        return _labels(dataset, grid, wanted, name)
    except InputError:
        raise
    except Exception as error:  # pydicom and its decoders raise many kinds on damaged bytes
        raise _unusable(name, f"a damaged one ({type(error).__name__})") from error


def _labels(dataset: Any, grid: Grid | None, wanted: str | None, name: str) -> Volume:
    order = {segment.number: k for k, segment in enumerate(choose_segments(list_segments(dataset), wanted, name), 1)}
    frames = list(_frames(dataset, name))
    grid = _own_grid(frames, dataset, name) if grid is None else grid
    labels = np.zeros(grid.shape, dtype=np.uint16)
    for frame, pixels in zip(frames, _pixels(dataset), strict=True):
        for number, mask in _masks(frame, pixels, dataset, order):
            where, placed = window_on_grid(Volume(mask.T[:, :, None], _thick(frame.affine, grid), name), grid)
            slab = labels[where]
            # the chosen segment that comes first keeps a voxel that several claim
            slab[placed & ((slab == 0) | (slab > number))] = number
    return Volume(labels, grid.affine, name)


def _frames(dataset: Any, name: str) -> Iterator[_Frame]:
    shared = dataset.SharedFunctionalGroupsSequence[0]

    def group(own: Any, keyword: str) -> Any:
        holder = own if keyword in own else shared
        if keyword not in holder:
            raise _unusable(name, f"frames without {keyword}, such as on a slide or a projection")
        return holder[keyword].value[0]

    is_labelmap = dataset.SegmentationType == "LABELMAP"
    for own in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        position = np.array(group(own, "PlanePositionSequence").ImagePositionPatient, dtype=float)
        along = np.array(group(own, "PlaneOrientationSequence").ImageOrientationPatient, dtype=float).reshape(2, 3)
        rows, columns = (float(v) for v in group(own, "PixelMeasuresSequence").PixelSpacing)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 2] = along[0] * columns, along[1] * rows, np.cross(*along)
        affine[:3, 3] = position
        affine[:3] *= LPS[:, None]
        number = 0
        if not is_labelmap:
            number = int(group(own, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        yield _Frame(number, affine)


def _pixels(dataset: Any) -> Iterator[NDArray[Any]]:
    """Decode frame by frame: the bits of a whole-body mask of many segments would not fit into memory as bytes."""
    from pydicom.pixels.utils import iter_pixels

    yield from iter_pixels(dataset, raw=True)


def _masks(
    frame: _Frame, pixels: NDArray[Any], dataset: Any, order: dict[int, int]
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield label and mask, shape (rows, columns), of each chosen segment in a frame."""
    if dataset.SegmentationType == "LABELMAP":
        for value in np.unique(pixels):
            if int(value) in order:
                yield order[int(value)], pixels == value
    elif frame.segment in order:
        if dataset.SegmentationType == "FRACTIONAL":
            yield order[frame.segment], pixels >= _HALF * int(dataset.MaximumFractionalValue)
        else:
            yield order[frame.segment], pixels > 0


def _thick(affine: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Return a frame's affine with the grid's own step between planes, which a single plane cannot know."""
    cosines = (grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)).T @ affine[:3, :2]
    in_plane = np.abs(cosines).argmax(0)
    across = 3 - int(in_plane.sum()) if in_plane[0] != in_plane[1] else 2
    result = affine.copy()
    result[:3, 2] = grid.affine[:3, across]
    return result


def _own_grid(frames: list[_Frame], dataset: Any, name: str) -> Grid:
    """Return the smallest regular grid that holds every frame."""
    if not frames:
        raise _unusable(name, "no frame with its place")
    first = frames[0].affine
    if any(np.abs(frame.affine[:3, :3] - first[:3, :3]).max() > 1e-4 for frame in frames):
        raise _unusable(name, "planes in several directions", "convert it together with its scan")
    normal = first[:3, 2]
    heights = np.array([normal @ frame.affine[:3, 3] for frame in frames])
    order = np.argsort(heights, kind="stable")
    measures = dataset.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
    measures = measures or dataset.PerFrameFunctionalGroupsSequence[0].PixelMeasuresSequence
    stated = float(measures[0].get("SpacingBetweenSlices") or measures[0].get("SliceThickness") or 1.0)
    gaps = np.diff(heights[order])
    gaps = gaps[gaps > 1e-3]
    step_mm = min(float(gaps.min(initial=np.inf)), stated)
    counts = (heights - heights.min()) / step_mm
    if np.abs(counts - np.rint(counts)).max() > 0.05 or counts.max() > _MAX_PLANES:
        raise _unusable(name, "planes at uneven distances", "convert it together with its scan")
    low, high = frames[int(order[0])].affine[:3, 3], frames[int(order[-1])].affine[:3, 3]
    affine = first.copy()
    affine[:3, 2] = (high - low) / max(round(float(counts.max())), 1) if counts.max() > 0.5 else normal * step_mm
    affine[:3, 3] = low
    return Grid((int(dataset.Columns), int(dataset.Rows), round(float(counts.max())) + 1), affine)


def _unusable(name: str, found: str, remedy: str = "export it again from the tool that drew it") -> InputError:
    return InputError(name, expected="a DICOM segmentation (SEG) on a scan", found=found, remedy=remedy)
