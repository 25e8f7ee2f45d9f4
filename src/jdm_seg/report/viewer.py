"""What the viewer in a case's page shows: scan, lesions and probability on one grid, small enough to travel in it."""

from __future__ import annotations

import base64
import gzip
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.burden.body_map import block_means
from jdm_seg.report.drawing import to_grey
from jdm_seg.report.pictures import LesionPoints
from jdm_seg.volume import Spacing, Volume

MAX_VOXELS = 16_000_000
"""At one byte a voxel, even noise that gzip cannot shrink stays under 22 MB of page after base64."""
CT_RANGE_HU = (-250.0, 1025.0)
"""What one byte holds of CT, in steps of 5 HU."""
_LEVEL = 6
_TYPES = {np.dtype(np.uint8): (2, 8), np.dtype(np.uint16): (512, 16), np.dtype(np.uint32): (768, 32)}
"""NIfTI-1 code and bits of a data type."""


@dataclass(frozen=True)
class ViewerData:
    """Compressed NIfTI files as base64, all on one grid.

    Attributes:
        scan: One byte a voxel.
        lesions: Lesion numbers; no lesion is lost however coarse the grid is.
        probability: In percent; None where the case has none.
        shown: What the viewer shows black and white at first.
        shape: Of the grid.
        spacing: Its voxel size in mm.
    """

    scan: str
    lesions: str
    probability: str | None
    shown: tuple[float, float]
    shape: tuple[int, int, int]
    spacing: Spacing


def viewer_data(
    scan: Volume, lesions: LesionPoints, modality: str, probability: Volume | None = None, max_voxels: int = MAX_VOXELS
) -> ViewerData:
    """Make them, coarser by whole multiples of voxels where the scan is large.

    A coarse voxel is the mean of what it covers; where a lesion lies in it, the lesion's brightest voxel, so that small
    deposits do not fade, and the number of the smallest lesion in it.

    Args:
        scan: On canonical axes.
        lesions: On the same grid.
        modality: ``ct`` or ``stir``.
        probability: Percents on the same grid.
        max_voxels: Most voxels of the coarse grid.
    """
    strides = strides_for(scan.grid.shape, scan.spacing, max_voxels)
    coarse = block_means(scan.array, strides) if strides.max() > 1 else scan.array.astype(np.float32)
    numbers = np.zeros(coarse.shape, np.uint16 if len(lesions.voxels) < 2**16 else np.uint32)
    for number, voxels in lesions.voxels.items():  # by falling size: the smaller one stays visible
        cells = tuple((voxels // strides).T)
        numbers[cells] = number
        if modality == "ct":
            np.maximum.at(coarse, cells, scan.array[tuple(voxels.T)].astype(np.float32))
    limits = CT_RANGE_HU if modality == "ct" else (0.0, float(np.percentile(coarse, 99.9)) or 1.0)
    affine = coarse_affine(scan.affine, strides)
    grey = to_grey(coarse, limits)
    scale = ((limits[1] - limits[0]) / 255.0, limits[0])
    x, y, z = coarse.shape
    dx, dy, dz = (float(s * n) for s, n in zip(scan.spacing, strides, strict=True))
    return ViewerData(
        scan=_packed(grey, affine, scale),
        lesions=_packed(numbers, affine),
        probability=None if probability is None else _packed(_block_max(probability.array, strides), affine),
        shown=(-160.0, 640.0) if modality == "ct" else limits,
        shape=(x, y, z),
        spacing=(dx, dy, dz),
    )


def strides_for(shape: tuple[int, int, int], spacing: Spacing, max_voxels: int) -> NDArray[np.int64]:
    """Return how many voxels to merge along each axis: as cubic as can be, and no more than needed, shape (3,)."""
    target = min(spacing)
    while True:
        strides: NDArray[np.int64] = np.maximum(1, np.rint(target / np.array(spacing))).astype(np.int64)
        if np.prod(-(-np.array(shape) // strides)) <= max_voxels:
            return strides
        target *= 1.05


def coarse_affine(affine: NDArray[np.float64], strides: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return voxel to RAS mm (4, 4) of the coarse grid: a coarse voxel's centre is that of its whole block."""
    result = affine.copy()
    result[:3, :3] = affine[:3, :3] * strides
    result[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((strides - 1) / 2)
    return result


def _block_max(array: NDArray[Any], strides: NDArray[np.int64]) -> NDArray[np.uint8]:
    result = array
    for axis, step in enumerate(strides):
        if step > 1:
            result = np.maximum.reduceat(result, np.arange(0, result.shape[axis], step), axis=axis)
    return np.asarray(np.clip(result, 0, 100), dtype=np.uint8)


def _packed(array: NDArray[Any], affine: NDArray[np.float64], scale: tuple[float, float] = (1.0, 0.0)) -> str:
    content = nifti_header(array.shape, array.dtype, affine, scale) + array.tobytes(order="F")
    return base64.b64encode(gzip.compress(content, _LEVEL, mtime=0)).decode("ascii")


def nifti_header(
    shape: tuple[int, ...], dtype: np.dtype[Any], affine: NDArray[np.float64], scale: tuple[float, float] = (1.0, 0.0)
) -> bytes:
    """Return the 352 bytes before the voxels of a NIfTI-1 file, with the affine as sform and no name of anyone.

    Args:
        shape: Voxels along x, y, z.
        dtype: Of the voxels.
        affine: From voxels to mm.
        scale: Slope and intercept of the values.

    Source: nifti1.h, NIH 2007.
    """
    code, bits = _TYPES[np.dtype(dtype)]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, 352.0, *scale)
    struct.pack_into("<B", header, 123, 2)  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # no qform; sform: scanner coordinates
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)
