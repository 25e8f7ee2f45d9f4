"""Pixels and outlines for a page: PNG images, and masks as SVG paths that stay sharp at every size."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.pictures import grey_limits

CT_WINDOW_HU = (-100.0, 900.0)
"""Window of projections: soft tissue is dark grey, deposits and bone are bright."""
CT_SLICE_WINDOW_HU = (-160.0, 640.0)
"""Window of single slices, in which fat and muscle must be told apart."""
_PNG_LEVEL = 6


def window_of(picture: NDArray[Any], modality: str, *, is_slice: bool = False) -> tuple[float, float]:
    """Return what is shown black and what white: fixed for CT, up to the 99.5th percentile for STIR."""
    return grey_limits(picture, modality, CT_SLICE_WINDOW_HU if is_slice else CT_WINDOW_HU)


def to_grey(values: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Map values to 0 (at or below the lower limit) to 255 (at or above the upper), rounded."""
    low, high = limits
    scaled = (values.astype(np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), dtype=np.uint8)


def encode_png(grey: NDArray[np.uint8]) -> bytes:
    """Return an 8-bit grey picture (rows, columns) as PNG.

    Source: PNG specification, third edition, W3C 2025; every row is filtered by "up", which suits pictures of bodies.
    """
    rows, columns = grey.shape
    above = np.vstack([np.zeros((1, columns), np.uint8), grey[:-1]])
    lines = np.hstack([np.full((rows, 1), 2, np.uint8), grey - above])  # uint8 wraps, as the filter asks
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    data = zlib.compress(np.ascontiguousarray(lines).tobytes(), _PNG_LEVEL)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_url(data: bytes) -> str:
    """Return a PNG file's bytes as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def outline_path(mask: NDArray[np.bool_], origin: tuple[int, int] = (0, 0)) -> str:
    """Return the border of a mask's pixels as an SVG path, one straight line where edges continue.

    Args:
        mask: Shape (rows, columns); a pixel fills the unit square right of and below its indices.
        origin: Row and column of the mask's first pixel in the picture.

    Returns:
        ``M… H…`` and ``M… V…`` commands, empty for an empty mask.
    """
    padded = np.pad(mask, 1)
    row0, column0 = origin
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]
    down = (padded[1:-1, 1:] != padded[1:-1, :-1]).T
    lines = [f"M{begin + column0} {row + row0}H{end + column0}" for row, begin, end in _runs(across)]
    lines += [f"M{column + column0} {begin + row0}V{end + row0}" for column, begin, end in _runs(down)]
    return "".join(lines)


def area_path(mask: NDArray[np.bool_], origin: tuple[int, int] = (0, 0)) -> str:
    """Return a mask's pixels as an SVG path to fill, a rectangle a run; arguments as in :func:`outline_path`."""
    row0, column0 = origin
    return "".join(f"M{b + column0} {row + row0}H{e + column0}v1H{b + column0}z" for row, b, e in _runs(mask))


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Return row, first column and the column after the last one of every run of True."""
    step = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begins = np.nonzero(step == 1)
    ends = np.nonzero(step == -1)[1]
    return list(zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True))
