"""A mask on a RAS grid cut into the planes that DICOM writes, in the patient's coordinates (LPS).

A plane is rows by columns. The image position is the centre of its first pixel; the image orientation holds the
direction in which the column number grows, then that in which the row number grows.

Source: DICOM PS3.3 C.7.6.2.1.1 (image position and orientation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.errors import InputError
from jdm_seg.volume import Volume

LPS = np.array([-1.0, -1.0, 1.0])
"""Times this, LPS becomes RAS, and RAS becomes LPS."""
_SAME_DIRECTION = 1e-3
"""Largest difference of two unit vectors that count as one: 0.5 mm at the far end of 500 mm."""


@dataclass(frozen=True)
class Planes:
    """The planes of a mask that hold anything; one empty plane if none does.

    Attributes:
        arrays: One (rows, columns) array a plane.
        positions: Centre of each plane's first pixel, LPS mm.
        orientation: Directions of growing column and row number, LPS.
        pixel_spacing: Distance between rows and between columns, mm.
        spacing: Distance between neighbouring planes of the whole grid along their normal, mm.
        on_source: Whether rows and columns run as in the source series.
    """

    arrays: tuple[NDArray[Any], ...]
    positions: tuple[tuple[float, ...], ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]
    spacing: float
    on_source: bool

    @property
    def seed(self) -> list[str]:
        """The geometry in words, for UIDs."""
        return [str(value) for value in (*self.positions, self.orientation, self.pixel_spacing)]


def planes_of(labels: Volume, headers: Sequence[Any]) -> Planes:
    """Cut a mask into planes, along the slices of the source series where the grid allows.

    Args:
        labels: Integers on any grid.
        headers: Of the source series.

    Raises:
        InputError: If the grid's rows and columns are not at right angles.
    """
    directions = labels.affine[:3, :3] / np.linalg.norm(labels.affine[:3, :3], axis=0) * LPS[:, None]
    source = _orientation_of(headers[0])
    cosines = np.array(source).reshape(2, 3) @ directions if source is not None else np.zeros((2, 3))
    on_source = bool((np.abs(cosines).max(1) > 1 - _SAME_DIRECTION**2).all())
    if on_source:
        column, row = (int(axis) for axis in np.abs(cosines).argmax(1))
        signs = {column: np.sign(cosines[0, column]), row: np.sign(cosines[1, row])}
    else:  # a resampled or stitched grid: its own first two axes are columns and rows
        column, row = 0, 1
        signs = {column: 1.0, row: 1.0}
    slices = 3 - column - row
    affine = labels.affine.copy()
    array = labels.array
    for axis, sign in signs.items():
        if sign < 0:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    affine[:3] *= LPS[:, None]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    across, down = affine[:3, column] / spacing[column], affine[:3, row] / spacing[row]
    if abs(across @ down) > _SAME_DIRECTION:
        raise InputError(
            labels.name,
            expected="rows and columns at right angles",
            found="a sheared grid",
            remedy="write the mask on the grid of its scan",
        )
    stack = np.moveaxis(array, (slices, row, column), (0, 1, 2))
    kept = [index for index, plane in enumerate(stack) if plane.any()] or [0]
    step = affine[:3, slices]
    return Planes(
        arrays=tuple(stack[index] for index in kept),
        positions=tuple(tuple(float(v) for v in affine[:3, 3] + index * step) for index in kept),
        orientation=source if on_source and source is not None else tuple(float(v) for v in (*across, *down)),
        pixel_spacing=(float(spacing[row]), float(spacing[column])),
        spacing=float(abs(step @ np.cross(across, down))),
        on_source=on_source,
    )


def _orientation_of(header: Any) -> tuple[float, ...] | None:
    if "SharedFunctionalGroupsSequence" in header:
        header = header.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    stated = header.get("ImageOrientationPatient")
    return tuple(float(value) for value in stated) if stated is not None and len(stated) == 6 else None
