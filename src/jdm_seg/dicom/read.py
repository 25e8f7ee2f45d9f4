"""One series, or the stations of one body, to a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.dicom.acquisition import Acquisition, summarize
from jdm_seg.dicom.files import Reader
from jdm_seg.dicom.geometry import Stack, stack_frames
from jdm_seg.dicom.headers import Frame
from jdm_seg.dicom.pixels import PADDED_HU, read_frames
from jdm_seg.dicom.series import Series
from jdm_seg.dicom.stations import check_stations, join_stations
from jdm_seg.errors import InputError
from jdm_seg.volume import Volume, check_affine

MAX_VOXELS = 4 << 30
"""More voxels in one scan are a damaged header (assumed; a whole body at 0.5 mm has 1 G)."""


@dataclass(frozen=True)
class DicomScan:
    """A scan read from DICOM.

    Attributes:
        volume: Array (columns, rows, slices) and affine, RAS mm. CT in HU.
        acquisition: How it was taken.
        notes: What a reader of the figures should know, in sentences.
        sources: The frame behind each slice in the order of the third axis, None where one was filled in; empty where
            stations were joined.
        series: The series it was read from.
    """

    volume: Volume
    acquisition: Acquisition
    notes: tuple[str, ...]
    sources: tuple[Frame | None, ...]
    series: tuple[Series, ...]


def read_series(series: Series | Sequence[Series], name: str | None = None) -> DicomScan:
    """Read one series, or join several stations of one body.

    Args:
        series: From :func:`~jdm_seg.dicom.series.find_series`. Several must share modality, orientation and frame of
            reference, and overlap or touch.
        name: What messages call the scan; default ``series N``.

    Returns:
        The scan. A tilted stack keeps its voxels on a sheared grid.

    Raises:
        InputError: If slices do not make a volume, pixels cannot be read, or stations do not belong together.
    """
    stations = [series] if isinstance(series, Series) else list(series)
    where = name or " and ".join(one.name for one in stations)
    if len(stations) > 1:
        check_stations(stations, where)
    volumes, notes, sources = [], [], []
    with Reader() as reader:
        for one in stations:
            volume, stack, found = _read_one(reader, one, where)
            volumes.append(volume)
            notes += [*one.notes, *stack.notes, *found]
            sources.append(stack.frames)
    if len(volumes) == 1:
        joined, order = volumes[0], sources[0]
    else:
        joined, more = join_stations(volumes, stations[0].modality)
        notes += more
        order = ()
    acquisition = summarize([frame.acquisition for one in stations for frame in one.frames])
    return DicomScan(joined, acquisition, tuple(dict.fromkeys(notes)), order, tuple(stations))


def _read_one(reader: Reader, series: Series, where: str) -> tuple[Volume, Stack, list[str]]:
    if series.set_aside is not None:
        raise InputError(
            where, expected="a scan", found=f"{series.name}: {series.set_aside}", remedy="choose another with --series"
        )
    stack = stack_frames(series.frames, where)
    check_affine(stack.affine, where)
    first = series.frames[0]
    if first.rows * first.columns * len(stack.frames) > MAX_VOXELS:
        raise InputError(
            where, expected="a scan of plausible size", found="too many voxels", remedy="export the series again"
        )
    present = [frame for frame in stack.frames if frame is not None]
    array, padded = read_frames(reader, present, series.modality, where)
    if len(present) < len(stack.frames):
        array = _fill(array, stack.frames)
    notes = []
    if padded:
        notes.append(f"{padded} pixels outside the reconstructed field were set to {PADDED_HU} HU.")
    return Volume(array, stack.affine, where), stack, notes


def _fill(array: NDArray[np.generic], frames: Sequence[Frame | None]) -> NDArray[np.generic]:
    """Put missing slices between their neighbours, linearly; the first and last slice are never missing."""
    present = np.flatnonzero([frame is not None for frame in frames])
    filled = np.empty((*array.shape[:2], len(frames)), array.dtype, order="F")
    filled[..., present] = array
    for gap in np.flatnonzero([frame is None for frame in frames]):
        after = int(np.searchsorted(present, gap))
        low, high = present[after - 1], present[after]
        share = (gap - low) / (high - low)
        between = (1 - share) * array[..., after - 1].astype(float) + share * array[..., after].astype(float)
        filled[..., gap] = np.rint(between) if array.dtype.kind == "i" else between
    return filled
