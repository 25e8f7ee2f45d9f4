"""Which series a folder holds, from headers alone, and which of them are no scans.

A DICOM series may hold a scout, several phases, echoes or stations at once. Here such a series is taken apart, and each
part is a :class:`Series` of its own: one orientation, one matrix, every place once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.dicom.acquisition import Acquisition, summarize
from jdm_seg.dicom.files import FileRef, Reader, find_files
from jdm_seg.dicom.geometry import SAME_PLACE_MM, along_normal, is_even, slice_step
from jdm_seg.dicom.headers import Frame, Header, read_header
from jdm_seg.errors import CaseNotFoundError, InputError

_SOP = "1.2.840.10008.5.1.4.1.1."
_OTHER_OBJECTS = {
    "66": "raw data or a spatial registration, not a scan",
    "66.4": "a segmentation, not a scan",
    "66.7": "a label map, not a scan",
    "88": "a report (such as a dose report), not a scan",
    "481": "a radiotherapy object, not a scan",
    "11": "a presentation state, not a scan",
    "104": "an encapsulated document, not a scan",
    "7": "a screen capture, not a scan",
    "30": "a parametric map, not a scan",
}
_ASIDE_TYPES = {
    "LOCALIZER": "a localizer",
    "SCOUT": "a localizer",
    "TOPOGRAM": "a localizer",
    "MIP": "a maximum intensity projection",
    "MAX_IP": "a maximum intensity projection",
    "MIN_IP": "a minimum intensity projection",
    "MINIP": "a minimum intensity projection",
    "PROJECTION IMAGE": "a projection",
    "VOLUME_RENDER": "a rendering",
    "VRT": "a rendering",
    "SCREEN SAVE": "a screen capture",
    "SUBTRACTION": "a subtraction",
    "PERFUSION": "a perfusion map",
    "ADC": "a diffusion map",
    "PHASE MAP": "a phase map",
}


@dataclass(frozen=True)
class Series:
    """Slices that can be one volume.

    Attributes:
        number: Place in the listing of its study, from 1; what ``--series`` takes.
        uid: Series instance UID; ``--series`` takes it too.
        study: Hash of the study.
        frame_of_reference: Coordinates of two series can be compared only if it is the same.
        modality: ``CT``, ``MR`` and so on.
        description: Without any word of the person's names and numbers.
        hints: Words to choose by; never shown.
        image_type: In capitals.
        frames: The slices in no order.
        notes: What was taken apart or left out.
        set_aside: Why it is no candidate, None if it is one.
        names_folder: Whether a folder above it holds a word of the person's names and numbers.
    """

    number: int
    uid: str = field(repr=False)
    study: str
    frame_of_reference: str = field(repr=False)
    modality: str
    description: str
    hints: str = field(repr=False)
    image_type: tuple[str, ...]
    frames: tuple[Frame, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    set_aside: str | None = None
    names_folder: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"series {self.number}"

    @cached_property
    def acquisition(self) -> Acquisition:
        """The physics of all its slices."""
        return summarize([frame.acquisition for frame in self.frames])

    @cached_property
    def extent_mm(self) -> tuple[float, float] | None:
        """First and last place along the normal; None without geometry."""
        if any(frame.position is None or frame.orientation is None for frame in self.frames):
            return None
        places = along_normal(self.frames)
        return float(places.min()), float(places.max())

    @property
    def step_mm(self) -> float | None:
        """Median distance of slices, or the stated one of a single slice."""
        if self.extent_mm is None or len(self.frames) < 2:
            return self.acquisition.slice_spacing_mm or self.acquisition.slice_thickness_mm
        return float(np.median(np.diff(np.sort(along_normal(self.frames)))))

    @property
    def coverage_mm(self) -> float:
        """How far the slices reach along their normal."""
        return 0.0 if self.extent_mm is None else self.extent_mm[1] - self.extent_mm[0] + (self.step_mm or 0.0)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Voxel size in mm: between columns, rows and slices."""
        first = self.frames[0].spacing if self.frames else None
        return None if first is None or self.step_mm is None else (*first, self.step_mm)

    @cached_property
    def box_mm(self) -> NDArray[np.float64]:
        """First and last border along row, column and slice direction in mm, shape (3, 2); needs geometry."""
        first = self.frames[0]
        corners = np.array([one.position for one in self.frames], dtype=float) @ first.directions.T
        spacing = np.array(self.spacing or (1.0, 1.0, 1.0))
        reach = np.array([first.columns - 1, first.rows - 1, 0]) * spacing
        return np.stack([corners.min(axis=0) - spacing / 2, corners.max(axis=0) + reach + spacing / 2], axis=1)

    @property
    def height_mm(self) -> float:
        """How far the scan reaches from head to foot."""
        if self.extent_mm is None:
            return 0.0
        sides = self.box_mm[:, 1] - self.box_mm[:, 0]
        return float(np.abs(self.frames[0].directions[:, 2]) @ sides)

    @property
    def field_of_view_mm(self) -> tuple[float, float, float] | None:
        """Size of the box that the voxels fill."""
        if self.spacing is None:
            return None
        first = self.frames[0]
        return first.columns * self.spacing[0], first.rows * self.spacing[1], self.coverage_mm

    @property
    def orientation(self) -> str:
        """Closest anatomical plane of the slices."""
        if not self.frames or self.frames[0].orientation is None:
            return "unknown"
        return ("sagittal", "coronal", "axial")[int(np.abs(self.frames[0].directions[2]).argmax())]

    def listing(self) -> dict[str, Any]:
        """Return what ``check`` and messages show of it; plain values, nothing of the person."""
        return {
            "series": self.number,
            "modality": self.modality,
            "description": self.description,
            "kernel": self.acquisition.kernel,
            "kv": self.acquisition.kv,
            "slices": len(self.frames),
            "spacing_mm": None if self.spacing is None else [round(side, 4) for side in self.spacing],
            "field_of_view_mm": None if self.field_of_view_mm is None else [round(s, 1) for s in self.field_of_view_mm],
            "orientation": self.orientation,
            "image_type": "/".join(self.image_type),
            "set_aside": self.set_aside,
            "notes": list(self.notes),
        }


def find_series(source: Path | str, files: Iterable[FileRef] | None = None) -> list[Series]:
    """List the series of a folder (nested ones too), a zip or a file, by headers only.

    Damaged files are left out, and every series says so: any of them may have lost a slice.

    Args:
        source: The folder, zip or file.
        files: Some of its files only.

    Returns:
        Series by study and series number, numbered from 1 within each study.

    Raises:
        CaseNotFoundError: If there is no DICOM file.
        InputError: If every file is damaged, or the extra ``dicom`` is missing.
    """
    source = Path(source)
    headers, damaged = [], []
    with Reader() as reader:
        for file in find_files(source) if files is None else files:
            try:
                header = read_header(reader, file)
            except InputError as error:
                if "pydicom" in str(error):
                    raise
                damaged.append(error)
                continue
            if header is not None:
                headers.append(header)
    if not headers:
        if damaged:
            raise InputError(
                source, expected="DICOM files", found=f"{len(damaged)} damaged ones", remedy="export the series again"
            ) from damaged[0]
        raise CaseNotFoundError(source, expected="DICOM files", found="none", remedy="check the path")
    note = [f"{len(damaged)} damaged files beside it were left out."] if damaged else []
    return [replace(one, notes=(*one.notes, *note)) for one in series_of(headers)]


def series_of(headers: Sequence[Header]) -> list[Series]:
    """Group headers into series, take apart what is no single volume, and number the result."""
    grouped = _grouped(headers, lambda one: (one.study, one.number, one.series_uid, one.sop_class, one.modality))
    found = [part for key in sorted(grouped, key=str) for part in _parts(grouped[key])]
    found.sort(key=lambda one: (one.study, one.number, one.uid))
    places: dict[str, int] = defaultdict(int)
    numbered = []
    for one in found:
        places[one.study] += 1
        numbered.append(replace(one, number=places[one.study]))
    return numbered


def _parts(headers: list[Header]) -> list[Series]:
    """Take one DICOM series apart by kind of image, matrix and orientation, and then by phase or station."""
    kinds: dict[Hashable, list[tuple[Header, Frame]]] = defaultdict(list)
    dropped, seen = 0, set()
    for header in headers:
        for frame in header.frames:
            if frame.uid and (frame.uid, frame.index) in seen:
                dropped += 1
                continue
            seen.add((frame.uid, frame.index))
            kinds[_kind(header, frame)].append((header, frame))
    if not kinds:
        return [_series(headers[0], [], [])]
    copies = [f"{dropped} files are copies of another and were left out."] if dropped else []
    parts = [(members[0][0], part) for members in kinds.values() for part in _split([one for _, one in members])]
    note = [f"The DICOM series was taken apart into {len(parts)} volumes."] if len(parts) > 1 else []
    return [_series(header, frames, [*copies, *note, *extra]) for header, (frames, extra) in parts]


def _kind(header: Header, frame: Frame) -> Hashable:
    around = None if frame.orientation is None else tuple(round(value, 2) + 0.0 for value in frame.orientation)
    pixel = None if frame.spacing is None else tuple(round(side, 4) for side in frame.spacing)
    echo = frame.acquisition.echo_time_ms if header.modality == "MR" else None
    return header.image_type, frame.rows, frame.columns, around, pixel, echo


def _split(frames: list[Frame]) -> list[tuple[list[Frame], list[str]]]:
    """Part slices so that no place occurs twice and distances are even, as far as the headers tell how."""
    if len(frames) < 2 or any(one.position is None or one.orientation is None for one in frames):
        return [(frames, [])]
    if _is_volume(frames):
        return [(frames, [])]
    for trait in range(len(frames[0].traits)):
        groups = _grouped(frames, lambda one, n=trait: one.traits[n])  # type: ignore[misc]
        if len(groups) > 1 and all(_is_volume(group) for group in groups.values()) and _alike(groups.values()):
            return [(group, []) for group in groups.values()]
    if not _repeats(frames):
        return [(frames, [])]
    stations = _grouped(frames, _place_in_plane)
    if len(stations) > 1 and all(len(group) > 1 and _is_volume(group) for group in stations.values()):
        return [(group, []) for group in stations.values()]
    return _in_turn(frames)


def _place_in_plane(frame: Frame) -> Hashable:
    """Return where a slice lies within its plane to the mm: stations of coronal slices differ in nothing else."""
    row, column, _ = frame.directions @ np.array(frame.position, dtype=float)
    return round(row), round(column)


def _alike(groups: Iterable[list[Frame]]) -> bool:
    """Tell whether groups have one distance of slices: parts of a series with a lost slice have not."""
    steps = [slice_step(np.diff(np.sort(along_normal(group)))) for group in groups]
    return max(steps) - min(steps) <= 0.05 * max(steps)


def _is_volume(frames: list[Frame]) -> bool:
    return not _repeats(frames) and is_even(np.sort(along_normal(frames)))


def _repeats(frames: list[Frame]) -> bool:
    return bool((np.diff(np.sort(along_normal(frames))) <= SAME_PLACE_MM).any())


def _in_turn(frames: list[Frame]) -> list[tuple[list[Frame], list[str]]]:
    """Deal slices at one place to volumes in the order of their numbers, as in a time series."""
    turns: list[list[Frame]] = []
    places: dict[int, int] = defaultdict(int)
    ordered = sorted(frames, key=lambda one: (one.instance, one.file, one.index))
    for frame, place in zip(ordered, along_normal(ordered), strict=True):
        key = round(float(place) / (10 * SAME_PLACE_MM))
        if places[key] == len(turns):
            turns.append([])
        turns[places[key]].append(frame)
        places[key] += 1
    if len({len(turn) for turn in turns}) == 1:
        return [(turn, []) for turn in turns]
    extra = len(frames) - len(turns[0])
    return [(turns[0], [f"{extra} slices lie at the place of another; the first of each was read."])]


def _series(header: Header, frames: list[Frame], notes: list[str]) -> Series:
    return Series(
        number=header.number,
        uid=header.series_uid,
        study=header.study,
        frame_of_reference=header.frame_of_reference,
        modality=header.modality,
        description=header.description,
        hints=header.hints,
        image_type=header.image_type,
        frames=tuple(frames),
        notes=tuple(notes),
        set_aside=_why_aside(header, frames),
        names_folder=header.names_folder,
    )


def _why_aside(header: Header, frames: list[Frame]) -> str | None:
    kind = header.sop_class.removeprefix(_SOP)
    for prefix in (kind, kind.partition(".")[0]):
        if header.sop_class.startswith(_SOP) and prefix in _OTHER_OBJECTS:
            return _OTHER_OBJECTS[prefix]
    if not frames:
        return "no image"
    if header.colour:
        return "a colour image"
    for word, reason in _ASIDE_TYPES.items():
        if word in header.image_type:
            return reason
    if any(one.position is None or one.orientation is None or one.spacing is None for one in frames):
        return "slices without position, orientation or pixel size"
    return None


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
