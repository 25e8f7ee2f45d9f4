"""Pictures of one case: projections with every lesion's shadow, and three slices through each lesion.

All arrays here have canonical axes (X, Y, Z). Pictures are seen as radiologists see them: the patient's right is on the
left, the head is up, and in axial slices the front is up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.neighbourhood import Indices, foreground_indices
from jdm_seg.pictures import project
from jdm_seg.report.drawing import area_path, encode_png, outline_path, png_url, to_grey, window_of
from jdm_seg.volume import Spacing, Volume

MAX_SLICED = 200
"""The largest lesions have their slices in the page; the others are seen in the projections and in the viewer."""
_HALF_MM, _MAX_HALF_MM = 22.0, 90.0
"""Half the width of a slice is at least, and at most, so much."""
_MARGIN = 0.8
"""Between them, half the width is this share of the lesion's longest axis, plus a centimetre."""
_MAX_PIXELS = 192


@dataclass(frozen=True)
class Plane:
    """One of the three directions of view.

    Attributes:
        name: In words.
        normal: Axis along which one looks.
        across: Axis that runs along a row.
        up: Axis that runs against the rows.
        mirrored: Whether the first index along ``across`` is on the right.
        sides: Letters at the left, right, upper and lower edge.
    """

    name: str
    normal: int
    across: int
    up: int
    mirrored: bool
    sides: tuple[str, str, str, str]


CORONAL = Plane("coronal", 1, 0, 2, True, ("R", "L", "H", "F"))
SAGITTAL = Plane("sagittal", 0, 1, 2, False, ("P", "A", "H", "F"))
AXIAL = Plane("axial", 2, 0, 1, True, ("R", "L", "A", "P"))


@dataclass(frozen=True)
class Shadow:
    """A lesion in a picture: its number, the paths of its pixels, and its middle in pixels.

    Attributes:
        number: Of the lesion.
        area: SVG path of its pixels.
        outline: SVG path around them.
        column: Of its middle.
        row: Of its middle.
    """

    number: int
    area: str
    outline: str
    column: float
    row: float


@dataclass(frozen=True)
class Picture:
    """A grey picture with what is drawn over it.

    Attributes:
        plane: Direction of view.
        url: PNG as data URL; None where the scan was not at hand.
        columns: Pixels a row.
        rows: Rows.
        pixel_mm: Width and height of a pixel.
        shadows: Lesions, the largest first.
    """

    plane: Plane
    url: str | None
    columns: int
    rows: int
    pixel_mm: tuple[float, float]
    shadows: tuple[Shadow, ...]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        return self.columns * self.pixel_mm[0], self.rows * self.pixel_mm[1]


@dataclass(frozen=True)
class LesionPoints:
    """The voxels of every lesion of a case.

    Attributes:
        shape: Of the canonical grid.
        spacing: Voxel size in mm.
        voxels: Indices (N, 3) by lesion number, in the order of the numbers.
    """

    shape: tuple[int, int, int]
    spacing: Spacing
    voxels: Mapping[int, Indices]

    @classmethod
    def of(cls, labels: Volume) -> LesionPoints:
        """Read them from a canonical label volume."""
        indices = foreground_indices(labels.array)
        numbers = labels.array[tuple(indices.T)].astype(np.int64)
        order = np.argsort(numbers, kind="stable")
        values, starts = np.unique(numbers[order], return_index=True)
        parts = np.split(indices[order], starts[1:]) if len(values) else []
        return cls(labels.grid.shape, labels.spacing, dict(zip(values.tolist(), parts, strict=True)))

    def middle(self, number: int) -> tuple[int, int, int]:
        """Return the lesion's voxel that is nearest to its centre: a curved sheet's centre lies outside of it."""
        voxels = self.voxels[number]
        away = ((voxels - voxels.mean(axis=0)) * self.spacing) ** 2
        x, y, z = voxels[int(away.sum(axis=1).argmin())].tolist()
        return x, y, z


def projections(scan: NDArray[Any] | None, lesions: LesionPoints, modality: str) -> list[Picture]:
    """Return the coronal and the sagittal picture with the shadow of every lesion.

    Args:
        scan: Canonical axes; None: lesions alone. CT is projected by its maximum; of STIR, where deposits are dark, the
            slice that holds most lesion voxels is shown.
        lesions: On the same grid.
        modality: ``ct`` or ``stir``.
    """
    pictures = []
    for plane in (CORONAL, SAGITTAL):
        url = None
        if scan is not None:
            grey = _background(scan, lesions, plane, modality)
            url = png_url(encode_png(to_grey(grey, window_of(grey, modality))))
        columns, rows = lesions.shape[plane.across], lesions.shape[plane.up]
        pixel = (lesions.spacing[plane.across], lesions.spacing[plane.up])
        shadows = tuple(_shadow(number, part, lesions.shape, plane) for number, part in lesions.voxels.items())
        pictures.append(Picture(plane, url, columns, rows, pixel, shadows))
    return pictures


def _background(scan: NDArray[Any], lesions: LesionPoints, plane: Plane, modality: str) -> NDArray[Any]:
    if modality == "ct":
        return project(scan, np.zeros((1, 1, 1), bool), plane.normal, maximum=True)[0]
    depth = [part[:, plane.normal] for part in lesions.voxels.values()]
    index = int(np.bincount(np.concatenate(depth)).argmax()) if depth else scan.shape[plane.normal] // 2
    return slice_of(scan, plane, index)


def slice_of(array: NDArray[Any], plane: Plane, index: int) -> NDArray[Any]:
    """Return one slice as rows from top to bottom."""
    picture: NDArray[Any] = array.take(index, axis=plane.normal)
    return picture[:: -1 if plane.mirrored else 1].T[::-1]


def _shadow(number: int, voxels: Indices, shape: tuple[int, int, int], plane: Plane) -> Shadow:
    columns, rows = _pixels(voxels, shape, plane)
    origin = (int(rows.min()), int(columns.min()))
    mask = np.zeros((int(rows.max()) - origin[0] + 1, int(columns.max()) - origin[1] + 1), bool)
    mask[rows - origin[0], columns - origin[1]] = True
    middle = (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5)
    return Shadow(number, area_path(mask, origin), outline_path(mask, origin), *middle)


def _pixels(voxels: Indices, shape: tuple[int, int, int], plane: Plane) -> tuple[Any, Any]:
    columns = voxels[:, plane.across]
    if plane.mirrored:
        columns = shape[plane.across] - 1 - columns
    return columns, shape[plane.up] - 1 - voxels[:, plane.up]


@dataclass(frozen=True)
class LesionSlice:
    """A slice through the middle of a lesion, cut to its surroundings.

    Attributes:
        picture: Of the scan; its shadow is the lesion's outline in this slice.
        others: Outline of the other lesions in view.
        cross: Column and row of the lesion's middle.
    """

    picture: Picture
    others: str
    cross: tuple[float, float]


def lesion_slices(
    scan: NDArray[Any], labels: NDArray[Any], lesions: LesionPoints, longest_mm: Mapping[int, float], modality: str
) -> dict[int, tuple[LesionSlice, ...]]:
    """Return an axial, a coronal and a sagittal slice through each of the :data:`MAX_SLICED` largest lesions.

    Args:
        scan: Canonical axes, shape (X, Y, Z).
        labels: Lesion numbers, same shape.
        lesions: The same as points.
        longest_mm: Longest axis by number: how wide the slices have to be.
        modality: ``ct`` or ``stir``.
    """
    limits = window_of(scan[::8, ::8, ::8], modality, is_slice=True)
    result = {}
    for number in list(lesions.voxels)[:MAX_SLICED]:
        middle = lesions.middle(number)
        half = min(max(_HALF_MM, _MARGIN * longest_mm.get(number, 0.0) + 10.0), _MAX_HALF_MM)
        result[number] = tuple(
            _cut(scan, labels, number, middle, half, plane, lesions.spacing, limits)
            for plane in (AXIAL, CORONAL, SAGITTAL)
        )
    return result


def _cut(
    scan: NDArray[Any],
    labels: NDArray[Any],
    number: int,
    middle: Sequence[int],
    half_mm: float,
    plane: Plane,
    spacing: Spacing,
    limits: tuple[float, float],
) -> LesionSlice:
    box, strides, before = [], [1.0, 1.0], [0.0, 0.0]
    for axis, (centre, size, step) in enumerate(zip(middle, scan.shape, spacing, strict=True)):
        reach = 0 if axis == plane.normal else int(np.ceil(half_mm / step))
        begin, end = max(0, centre - reach), min(size, centre + reach + 1)
        # whole multiples keep a large lesion's picture small; single voxels matter in small ones only
        stride = max(1, -(-(end - begin) // _MAX_PIXELS))
        box.append(slice(begin, end, stride))
        for place, which in enumerate((plane.across, plane.up)):
            if axis == which:
                strides[place] = step * stride
                before[place] = (centre - begin) // stride
    part, numbers = slice_of(scan[tuple(box)], plane, 0), slice_of(labels[tuple(box)], plane, 0)
    rows, columns = part.shape
    column = columns - 1 - before[0] if plane.mirrored else before[0]
    own = numbers == number
    cross = (column + 0.5, rows - 1 - before[1] + 0.5)
    shadow = Shadow(number, "", outline_path(own), *cross)
    url = png_url(encode_png(to_grey(part, limits)))
    picture = Picture(plane, url, columns, rows, (strides[0], strides[1]), (shadow,))
    return LesionSlice(picture, outline_path((numbers > 0) & ~own), cross)
