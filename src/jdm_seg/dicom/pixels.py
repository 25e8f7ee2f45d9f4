"""Stored pixel values of frames to HU (CT) or the scanner's units, exactly."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jdm_seg.dicom.files import Reader, decoding, open_source
from jdm_seg.dicom.headers import Frame
from jdm_seg.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

PADDED_HU = -1024
"""What pixels marked as outside the reconstruction become where their own value would look denser than air."""
_AIR_HU = -900
_JPEG_SIZES = tuple(bytes([0xFF, code]) for code in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7))
"""Frame headers of JPEG and JPEG-LS, which state height and width."""


def read_frames(reader: Reader, frames: Sequence[Frame], modality: str, where: str) -> tuple[NDArray[Any], int]:
    """Decode frames and apply each slice's own slope and intercept.

    Integers stay integers where slope and intercept are whole: int16, or int32 where int16 would overflow; otherwise
    float32, computed in float64.

    Args:
        reader: Opens the files.
        frames: Of one shape.
        modality: ``CT`` turns bright padding into air.
        where: What messages call the series.

    Returns:
        Values, shape (columns, rows, frames), and the number of padding pixels that were turned into air.

    Raises:
        InputError: If pixels are missing, cut short, of an unexpected kind, or no decoder is installed for them.
    """
    whole = all(one.slope.is_integer() and one.intercept.is_integer() for one in frames)
    values = np.zeros((0, 0, 0), np.int16 if whole else np.float32)
    padded = 0
    for place, (frame, stored) in enumerate(_stored(reader, frames, where)):
        if not place:  # only when a first slice shows that the stated size is true
            values = np.zeros((len(frames), frame.rows, frame.columns), values.dtype)
        scaled = _rescale(stored, frame, whole)
        padding = _bright_padding(stored, frame) if modality == "CT" else None
        if padding is not None:
            padded += int(padding.sum())
            scaled[padding] = PADDED_HU
        if values.dtype == np.int16 and not _fits(scaled):
            values = values.astype(np.int32)
        values[place] = scaled
    if not np.isfinite(values).all():
        raise _bad_pixels(where, "values that are not finite")
    return values.transpose(2, 1, 0), padded


def _stored(reader: Reader, frames: Sequence[Frame], where: str) -> Iterator[tuple[Frame, NDArray[Any]]]:
    """Decode frame after frame; a file that holds several in a row is parsed once."""
    for file, members in groupby(frames, key=lambda one: one.file):
        dataset = open_source(reader, file)
        with decoding(where, "pixels that cannot be decoded"):
            _check_pixels(dataset, where)
        for frame in members:
            with decoding(where, "pixels that cannot be decoded"):
                stored = _decode(dataset, frame, where)
            yield frame, stored


def _check_pixels(dataset: FileDataset, where: str) -> None:
    """Refuse what cannot be decoded, before anything of the stated size is allocated."""
    if "PixelData" not in dataset:
        raise _bad_pixels(where, "a file without pixel data")
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("BitsAllocated") not in (8, 16, 32):
        raise _bad_pixels(where, f"{dataset.get('BitsAllocated')} bits a pixel")
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        raise _bad_pixels(where, "no transfer syntax")
    if not syntax.is_compressed or syntax.is_deflated:
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        stated = dataset.Rows * dataset.Columns * count * dataset.BitsAllocated // 8
        if len(dataset.PixelData) < stated:
            raise _bad_pixels(where, f"pixel data of {len(dataset.PixelData)} bytes where {stated} are stated")
        return
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
        available = decoder.is_available
    except NotImplementedError:
        available = False
    if not available:
        raise InputError(
            where,
            expected="a compression that can be decoded",
            found=str(syntax.name)[:80],
            remedy='pip install "jdm-seg[dicom]", or decompress the series first, for example with gdcmconv --raw',
        )


def _decode(dataset: FileDataset, frame: Frame, where: str) -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_codestream(dataset, frame, where)
    stored: NDArray[Any] = pixel_array(dataset, index=frame.index, raw=True)
    if stored.shape != (frame.rows, frame.columns):
        raise _bad_pixels(where, "another image size than stated")
    return _significant(stored, dataset)


def _check_codestream(dataset: FileDataset, frame: Frame, where: str) -> None:
    """Compare the size inside a compressed frame with the header's: a decoder allocates what the stream states."""
    from pydicom.encaps import get_frame

    count = int(dataset.get("NumberOfFrames", 1) or 1)
    data = get_frame(dataset.PixelData, frame.index, number_of_frames=count)
    size = _codestream_size(data)
    if size is not None and size != (frame.rows, frame.columns):
        raise _bad_pixels(where, "another image size than stated")


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states, None for run-length or no statement."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at >= 0 and len(data) >= at + 24:
        x, y, x0, y0 = struct.unpack(">4I", data[at + 8 : at + 24])
        return y - y0, x - x0
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at : at + 2] in _JPEG_SIZES:
            rows, columns = struct.unpack(">2H", data[at + 5 : at + 9])
            return rows, columns
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None


def _significant(stored: NDArray[Any], dataset: FileDataset) -> NDArray[Any]:
    """Keep the stored bits alone: unused high bits of old scans hold overlays."""
    allocated, used = int(dataset.BitsAllocated), int(dataset.get("BitsStored") or dataset.BitsAllocated)
    if not 0 < used < allocated:
        return stored
    high = int(dataset.get("HighBit", used - 1))
    low = stored.astype(np.int64) >> max(high - used + 1, 0) & ((1 << used) - 1)
    if dataset.get("PixelRepresentation", 0) == 1:
        low -= (low >> (used - 1)) << used
    return low


def _rescale(stored: NDArray[Any], frame: Frame, whole: bool) -> NDArray[Any]:
    if whole:
        return stored.astype(np.int64) * int(frame.slope) + int(frame.intercept)
    return (stored.astype(np.float64) * frame.slope + frame.intercept).astype(np.float32)


def _bright_padding(stored: NDArray[Any], frame: Frame) -> NDArray[np.bool_] | None:
    """Return where padding lies that would look denser than air; dark padding stays, it harms nobody."""
    if frame.padding is None:
        return None
    wrapped = frame.padding % (1 << 16)  # an unsigned padding value may be read as signed, and the other way round
    for value in {frame.padding, wrapped, wrapped - (1 << 16)}:
        if value * frame.slope + frame.intercept > _AIR_HU:
            found: NDArray[np.bool_] = stored == value
            if value != 0 and found.any():
                return found
    return None


def _fits(values: NDArray[Any]) -> bool:
    limits = np.iinfo(np.int16)
    return bool(limits.min <= values.min() and values.max() <= limits.max)


def _bad_pixels(where: str, found: str) -> InputError:
    return InputError(
        where, expected="whole grey-value images", found=found, remedy="export the series again, whole and unchanged"
    )
