"""Where a stack of slices lies in space: order, distances, tilt, and what is wrong with them.

DICOM counts in LPS mm (x to the patient's left, y to posterior), this package in RAS; the affine is turned once, here.
Source of the equations: DICOM PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jdm_seg.dicom.headers import Frame
from jdm_seg.errors import InputError

SAME_PLACE_MM = 1e-3
TILT_DEG = 0.25
"""From this angle between the stack and the slices' normal a scan counts as tilted; rounded positions reach 0.1."""
MAX_TILT_DEG = 45.0
MAX_FILLED = 0.02
"""Share of missing slices up to which they are filled between their neighbours (assumed)."""
MAX_RUN = 2
"""Neighbouring missing slices that are still filled (assumed)."""
_AGAIN = "export the series again, whole and as it came from the scanner"


@dataclass(frozen=True)
class Stack:
    """Slices in order.

    Attributes:
        frames: Along the normal, one a position; None where a slice is missing and is to be filled.
        affine: Voxel (column, row, slice) to RAS mm, shape (4, 4).
        notes: What a reader of the figures should know.
    """

    frames: tuple[Frame | None, ...]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()


def along_normal(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Return each frame's place along the first frame's normal in mm, shape (N,)."""
    normal = frames[0].directions[2]
    return np.array([np.dot(np.array(frame.position, dtype=float), normal) for frame in frames])


def is_even(places: NDArray[np.float64]) -> bool:
    """Tell whether sorted places in mm lie at one distance, but for the few missing slices that would be filled."""
    steps = np.diff(places)
    if len(steps) < 2:
        return True
    step = slice_step(steps)
    if step <= SAME_PLACE_MM or _off_grid(steps, step) > _tolerance(step):
        return False
    total = float(np.rint(steps / step).sum())
    return total - len(steps) <= MAX_FILLED * total


def stack_frames(frames: Sequence[Frame], where: str) -> Stack:
    """Put slices in order and find their affine.

    Args:
        frames: Of one orientation, matrix and pixel size, every position once.
        where: What messages call the series.

    Raises:
        InputError: If a slice has no place, all have no distance, distances vary, too many slices are missing, the
            stack is tilted by more than 45°, or its slices are shifted against each other.
    """
    first = frames[0]
    if any(one.position is None or one.orientation is None or one.spacing is None for one in frames):
        raise InputError(
            where,
            expected="slices with position, orientation and pixel size",
            found="some without",
            remedy="such images cannot be placed in space; " + _AGAIN,
        )
    if len(frames) == 1:
        return Stack(tuple(frames), _affine(first, first.directions[2] * _single_step(first, where)))
    places = along_normal(frames)
    order = np.argsort(places, kind="stable")
    ordered, places = [frames[n] for n in order], places[order]
    steps = np.diff(places)
    _check_steps(steps, where)
    step = slice_step(steps)
    counts = np.rint(steps / step).astype(int)
    total = int(counts.sum())
    positions = np.array([one.position for one in ordered])
    vector = (positions[-1] - positions[0]) / total
    at = np.concatenate([[0], np.cumsum(counts)])
    _check_line(positions - positions[0] - at[:, None] * vector, where)
    filled: list[Frame | None] = [None] * (total + 1)
    for number, one in zip(at, ordered, strict=True):
        filled[number] = one
    notes = [*_missing(counts, where), *_tilt(vector, first, where), *_thickness(first, step)]
    return Stack(tuple(filled), _affine(ordered[0], vector), tuple(notes))


def slice_step(steps: NDArray[np.float64]) -> float:
    """Return the distance of neighbours: the median of the steps that are not whole multiples of a smaller one."""
    if not len(steps):
        return 0.0
    small = steps[steps <= 1.5 * max(float(steps.min()), SAME_PLACE_MM)]
    return float(np.median(small)) if len(small) else 0.0


def _off_grid(steps: NDArray[np.float64], step: float) -> float:
    return float(np.abs(steps - np.rint(steps / step) * step).max())


def _tolerance(step: float) -> float:
    """Positions are written with few digits, and tables step in whole encoder counts (assumed)."""
    return max(0.02, 0.02 * step)


def _check_steps(steps: NDArray[np.float64], where: str) -> None:
    step = slice_step(steps)
    if step <= SAME_PLACE_MM:
        raise InputError(
            where,
            expected="every slice at its own place",
            found=f"{int((steps <= SAME_PLACE_MM).sum()) + 1} slices at the place of another",
            remedy="the series holds several phases, echoes or copies; choose one with --series",
        )
    if _off_grid(steps, step) > _tolerance(step):
        raise InputError(
            where,
            expected="slices at one distance",
            found=f"distances from {steps.min():.3g} to {steps.max():.3g} mm",
            remedy="choose another reconstruction with --series, or " + _AGAIN,
        )


def _check_line(residual: NDArray[np.float64], where: str) -> None:
    shift = float(np.linalg.norm(residual, axis=1).max())
    if shift > 0.1:
        raise InputError(
            where,
            expected="slices behind each other",
            found=f"some shifted sideways by up to {shift:.3g} mm",
            remedy="choose another reconstruction with --series, or " + _AGAIN,
        )


def _missing(counts: NDArray[np.intp], where: str) -> list[str]:
    gaps = counts - 1
    missing = int(gaps.sum())
    if not missing:
        return []
    found = f"{missing} of {int(counts.sum()) + 1} slices missing"
    if missing > MAX_FILLED * counts.sum() or int(gaps.max()) > MAX_RUN:
        after = int(np.argmax(gaps > 0)) + 1
        raise InputError(where, expected="every slice", found=f"{found}, the first after slice {after}", remedy=_AGAIN)
    return [f"{found} in the DICOM series; they were filled between their neighbours."]


def _tilt(vector: NDArray[np.float64], frame: Frame, where: str) -> list[str]:
    cosine = float(np.dot(vector, frame.directions[2]) / np.linalg.norm(vector))
    angle = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
    if angle > MAX_TILT_DEG:
        raise InputError(
            where, expected="slices behind each other", found=f"a stack sheared by {angle:.0f}°", remedy=_AGAIN
        )
    if angle < TILT_DEG:
        return []
    off = 100 * math.tan(math.radians(angle))
    return [
        f"The slices are stacked at a slant of {angle:.1f}° (in CT: a tilted gantry). Voxels were kept as they are on "
        f"a sheared grid: volumes and places are exact, distances that cross slices are off by up to {off:.0f} %."
    ]


def _thickness(frame: Frame, step: float) -> list[str]:
    thickness = frame.acquisition.slice_thickness_mm
    if thickness is None or step <= 1.5 * thickness:
        return []
    return [
        f"Slices {thickness:g} mm thick lie {step:.3g} mm apart: {100 * (1 - thickness / step):.0f} % of the body was "
        "not scanned, and volumes assume that it looks like its neighbours."
    ]


def _single_step(frame: Frame, where: str) -> float:
    step = frame.acquisition.slice_spacing_mm or frame.acquisition.slice_thickness_mm
    if step is None:
        raise InputError(
            where,
            expected="several slices, or one that states its thickness",
            found="a single slice without",
            remedy="choose another series with --series; spacing is never guessed",
        )
    return step


def _affine(first: Frame, step: NDArray[np.float64]) -> NDArray[np.float64]:
    spacing = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * spacing[0]
    affine[:3, 1] = first.directions[1] * spacing[1]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    affine[:2] *= -1  # LPS to RAS
    return affine
