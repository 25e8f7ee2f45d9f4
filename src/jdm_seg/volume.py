"""One 3-D volume and its place in space. This file alone touches nibabel.

Terms:
    affine: 4x4 matrix from voxel indices (i, j, k) to scanner coordinates in mm, RAS+ (x grows to the patient's right,
        y to anterior, z to superior).
    grid: a shape together with an affine.
    canonical: axes flipped and permuted, never interpolated, so that they run closest to R, A, S. An oblique scan
        stays oblique.

Everything inside the package works on canonical arrays. A result goes back through :meth:`Volume.from_canonical`
and is written with the header fields of the scan it came from, so that its affine is the scan's bit for bit.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import DTypeLike, NDArray

from jdm_seg.errors import GridMismatchError, InputError

Spacing = tuple[float, float, float]
"""Voxel size along the three array axes, in mm."""

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SPACING_RANGE_MM = (0.02, 50.0)
"""Outside this range a voxel size is a unit mistake (metres, micrometres), not a scan."""
_GZIP_MAX_RATIO = 1040
"""Deflate cannot compress better than 1032:1, so a larger stated size means a cut or forged file."""
_GZIP_LEVEL = 1
"""Higher levels cost up to 20 times the time and save 5 % (measured on CT)."""
_RAS = axcodes2ornt(("R", "A", "S"))
_DAMAGED: Any = (EOFError, zlib.error, isal_zlib.error, igzip.BadGzipFile)


@dataclass(frozen=True)
class Grid:
    """A voxel lattice in space.

    Attributes:
        shape: Number of voxels along the three axes.
        affine: Voxel to RAS mm, shape (4, 4), float64.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> Spacing:
        """Voxel size in mm: the lengths of the affine's columns, so rotation cannot change it."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm³ (the determinant: exact for sheared grids too)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Axis codes such as ``LPS``."""
        return "".join(ornt2axcodes(io_orientation(self.affine)))

    def matches(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """Tell whether every voxel of both grids lies at the same place within ``tolerance_mm``."""
        return self.shape == other.shape and self.offset_mm(other) <= tolerance_mm

    def offset_mm(self, other: Grid) -> float:
        """Return how far apart in mm, along one axis, the same voxel of two grids of one shape lies at most."""
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
        corners[:, :3] *= np.array(self.shape) - 1
        return float(np.abs(corners @ (self.affine - other.affine).T).max())

    def beside(self, other: Grid) -> str:
        """Return this grid in words, for a message that names the other one: also where only its place differs."""
        if self.shape != other.shape:
            return str(self)
        return f"{self} at another place, up to {self.offset_mm(other):.3g} mm away"

    def __str__(self) -> str:
        """Return shape, spacing and orientation in one readable phrase."""
        spacing = ", ".join(f"{s:.4g}" for s in self.spacing)
        return f"{self.shape} at ({spacing}) mm, {self.orientation}"


@dataclass(frozen=True)
class Volume:
    """A 3-D array with its affine.

    Attributes:
        array: Voxel values, shape (X, Y, Z). Integers stay integers: CT is int16 HU after reading.
        affine: Voxel to RAS mm, shape (4, 4), float64.
        name: What error messages call this volume: a case id or a file name.
        header: The NIfTI header it was read with, kept to write results on the same grid bit for bit.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    name: str = "volume"
    header: nib.Nifti1Header | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check shape and affine once, so that no later step has to."""
        if self.array.ndim != 3:
            raise InputError(
                self.name, expected="a 3-D volume", found=f"shape {self.array.shape}", remedy="pass one 3-D volume"
            )
        check_affine(self.affine, self.name)

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        x, y, z = self.array.shape
        return Grid((x, y, z), self.affine)

    @property
    def spacing(self) -> Spacing:
        """Voxel size in mm along the array's axes."""
        return self.grid.spacing

    def to_canonical(self) -> Volume:
        """Return the same volume with axes closest to R, A, S; a view, no interpolation."""
        orientation = io_orientation(self.affine)
        array = apply_orientation(self.array, orientation)
        affine = self.affine @ inv_ornt_aff(orientation, self.array.shape)
        return Volume(array, affine, self.name)

    def from_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """Bring an array on :meth:`to_canonical`'s grid back to this volume's own axes; a view.

        Raises:
            GridMismatchError: If the shape is another.
        """
        back = ornt_transform(_RAS, io_orientation(self.affine))
        result: NDArray[Any] = apply_orientation(array, back)
        if result.shape != self.array.shape:
            raise GridMismatchError(
                self.name,
                expected=f"an array of the scan's canonical shape for a scan of shape {self.array.shape}",
                found=f"shape {array.shape}",
                remedy="pass the whole canonical array",
            )
        return result

    @property
    def canonical_axes(self) -> tuple[tuple[int, bool], ...]:
        """Which canonical axis each of the array's axes runs along, and whether against it."""
        return tuple((int(axis), direction < 0) for axis, direction in io_orientation(self.affine))

    def check_same_grid(self, other: Volume, role: str = "label") -> None:
        """Raise unless ``other`` lies on this volume's grid.

        Raises:
            GridMismatchError: With both grids in words.
        """
        if not self.grid.matches(other.grid):
            raise GridMismatchError(
                self.name,
                expected=f"the {role} on the image's grid {self.grid}",
                found=other.grid.beside(self.grid),
                remedy=f"re-export the {role} on the image's grid, see data/README.md#grids",
            )


def slice_axis(spacing: Spacing) -> int:
    """Return the axis across the slices: that of the largest voxel size, of equal ones the last."""
    return 2 - int(np.argmax(np.round(spacing[::-1], 3)))


def check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Raise unless ``affine`` is finite, invertible and of a plausible voxel size.

    Raises:
        InputError: With the offending matrix or spacing.
    """
    remedy = "export the scan again with its geometry; spacing is never guessed"
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputError(name, expected="a finite 4x4 affine", found="NaN or infinite entries", remedy=remedy)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_RANGE_MM
    if (spacing < low).any() or (spacing > high).any():
        raise InputError(
            name,
            expected=f"a voxel size of {low} to {high} mm",
            found="(" + ", ".join(f"{s:.4g}" for s in spacing) + ") mm",
            remedy=remedy,
        )
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * float(np.prod(spacing)):
        raise InputError(name, expected="three independent axes", found="a singular affine", remedy=remedy)


def case_id_of(path: Path) -> str:
    """Return a file's case id: its name without ``.nii`` or ``.nii.gz``."""
    for suffix in NIFTI_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def read_volume(path: Path | str) -> Volume:
    """Read one 3-D NIfTI-1 or NIfTI-2 file, plain or gzipped.

    Integer data stay integer when slope and intercept allow it, otherwise they become float32.
    A 4-D file whose last axis has length 1 counts as 3-D.

    Args:
        path: File ending in ``.nii`` or ``.nii.gz``.

    Returns:
        The volume on its own grid.

    Raises:
        InputError: Not a NIfTI file, cut short, not 3-D, colour or complex, or with an unusable affine or spacing.
    """
    path = Path(path)
    name = case_id_of(path)
    if not path.is_file():
        raise InputError(path, expected="a NIfTI file", found="no such file", remedy="check the path")
    with _opened(path) as stream:
        try:
            image_class, header = _read_header(stream)
        except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
            raise _not_nifti(path) from error
        shape = _check_header(header, path)
        raw = _read_data(stream, header, shape, path)
    affine, slope, intercept = _geometry(header, path)
    check_affine(affine, name)
    return Volume(_scaled(raw, slope, intercept, path), affine, name, image_class.header_class.copy(header))


def stated_size(path: Path) -> int:
    """Return how many bytes of voxels a NIfTI file's header promises, without reading them.

    Raises:
        InputError: If it is no NIfTI file of one 3-D volume.
    """
    with _opened(path) as stream:
        try:
            _, header = _read_header(stream)
        except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
            raise _not_nifti(path) from error
    shape = _check_header(header, path)
    return int(np.prod(shape, dtype=object)) * int(header.get_data_dtype().itemsize)


def write_volume(path: Path | str, array: NDArray[Any], like: Volume, dtype: DTypeLike | None = None) -> None:
    """Write an array on the grid of ``like``, whole or not at all.

    The spatial header fields are copied, not recomputed, so the affine read back is that of ``like`` bit for bit.
    Free-text fields and extensions, which may hold patient data, are not.

    Args:
        path: Target ending in ``.nii`` or ``.nii.gz``.
        array: Values of the shape of ``like``.
        like: The volume whose grid is written.
        dtype: On-disk type; default that of ``array``.

    Raises:
        GridMismatchError: If the shapes differ.
    """
    if array.shape != like.array.shape:
        raise GridMismatchError(
            path, expected=f"shape {like.array.shape}", found=f"{array.shape}", remedy="write on the scan's own grid"
        )
    write_planes(path, np.moveaxis(array, 2, 0), like, array.dtype if dtype is None else dtype)


def write_planes(path: Path | str, planes: Iterable[NDArray[Any]], like: Volume, dtype: DTypeLike) -> None:
    """Write an array that comes in axial planes: :func:`write_volume` without the array in memory.

    Args:
        path: Target ending in ``.nii`` or ``.nii.gz``.
        planes: Z arrays (X, Y) of the shape of ``like``, numbers.
        like: The volume whose grid is written.
        dtype: On-disk type.

    Raises:
        GridMismatchError: If a plane or their number is not that of ``like``; nothing is written then.
    """
    path = Path(path)
    header_class = nib.Nifti1Header if like.header is None else type(like.header)
    header = header_class()
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(like.array.shape)
    header.set_xyzt_units("mm")
    if like.header is None:
        header.set_qform(like.affine, code="scanner", strip_shears=True)
        header.set_sform(like.affine, code="scanner")
    else:
        fields = ["pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"]
        fields += [f"quatern_{axis}" for axis in "bcd"] + [f"qoffset_{axis}" for axis in "xyz"]
        for name in fields:
            header[name] = like.header[name]
        header["pixdim"][4:] = 1
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    with atomic_write(path) as temporary, _sink(temporary, compress=path.name.endswith(".gz")) as sink:
        sink.write(header.binaryblock)
        sink.write(b"\0" * (int(header["vox_offset"]) - len(header.binaryblock)))
        count = 0
        for plane in planes:  # Fortran order on disk: plane by plane needs no second copy
            if plane.shape != like.array.shape[:2]:
                raise _wrong_planes(path, like, f"one of shape {plane.shape}")
            sink.write(np.asarray(plane, dtype=dtype, order="F").tobytes(order="F"))
            count += 1
        if count != like.array.shape[2]:
            raise _wrong_planes(path, like, f"{count}")


def _wrong_planes(path: Path, like: Volume, found: str) -> GridMismatchError:
    x, y, z = like.array.shape
    return GridMismatchError(
        path, expected=f"{z} planes of shape {(x, y)}", found=found, remedy="write on the scan's own grid"
    )


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block ends well, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV table with a header, whole or not at all; what a row lacks stays empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())


@contextlib.contextmanager
def _sink(path: Path, *, compress: bool) -> Iterator[Any]:
    if not compress:
        with path.open("wb") as plain:
            yield plain
        return
    # no name and no time inside: the same volume gives the same bytes on one kind of processor
    with path.open("wb") as target, igzip.IGzipFile("", "wb", _GZIP_LEVEL, target, mtime=0) as g:
        yield g


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open plain or gzipped by content, not by name, and turn a cut stream into a message."""
    with path.open("rb") as probe:
        gzipped = probe.read(2) == b"\x1f\x8b"
    try:
        with igzip.open(path, "rb") if gzipped else path.open("rb") as stream:
            yield stream
    except _DAMAGED as error:
        raise InputError(
            path, expected="a complete gzip file", found=f"a damaged one ({error})", remedy="copy the file again"
        ) from error


def _not_nifti(path: Path) -> InputError:
    return InputError(
        path,
        expected="a single-file NIfTI-1 or NIfTI-2 image",
        found="something else",
        remedy="convert the scan to .nii.gz, for example with dcm2niix",
    )


def _read_header(stream: Any) -> tuple[type[nib.Nifti1Image], nib.Nifti1Header]:
    start = stream.read(540)
    for image_class in (nib.Nifti1Image, nib.Nifti2Image):
        header_class = image_class.header_class
        size = header_class.template_dtype.itemsize
        if len(start) >= size and header_class.may_contain_header(start[:size]):
            header = header_class.from_fileobj(io.BytesIO(start[:size]), check=False)
            if not bytes(header["magic"].item()).startswith(b"n+"):
                break
            stream.seek(0)
            return image_class, header
    raise ValueError("no NIfTI magic")


def _check_header(header: nib.Nifti1Header, path: Path) -> tuple[int, int, int]:
    """Return the 3-D shape, or say what makes this file no scan."""
    rank = int(header["dim"][0])
    dim = tuple(int(n) for n in header["dim"][1 : 1 + max(0, min(rank, 7))])
    if not 1 <= rank <= 7 or any(n < 1 for n in dim):
        raise InputError(path, expected="valid dimensions", found=f"dim {dim}", remedy="export the scan again")
    shape = dim[:3] if all(n == 1 for n in dim[3:]) else dim
    if len(shape) != 3:
        raise InputError(
            path,
            expected="one 3-D volume",
            found=f"{len(dim)}-D data of shape {dim}",
            remedy="split it and pass one volume, for example a single phase or echo",
        )
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise _not_nifti(path) from error
    if dtype.fields is not None or dtype.kind not in "iuf":
        kind = "colour (RGB)" if dtype.fields is not None else "complex or unknown"
        raise InputError(
            path, expected="one number a voxel", found=f"{kind} data", remedy="export the original grey-value scan"
        )
    if (np.abs(header["pixdim"][1:4]) == 0).any() and int(header["sform_code"]) == 0:
        raise InputError(
            path,
            expected="a voxel size along every axis",
            found=f"pixdim {tuple(float(p) for p in header['pixdim'][1:4])}",
            remedy="export the scan again with its geometry; spacing is never guessed",
        )
    return shape[0], shape[1], shape[2]


def _geometry(header: nib.Nifti1Header, path: Path) -> tuple[NDArray[np.float64], float | None, float | None]:
    """Return affine, slope and intercept, or say that the header holds none."""
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        return affine, *header.get_slope_inter()
    except (HeaderDataError, ValueError) as error:
        raise InputError(
            path,
            expected="a header with a valid orientation and scaling",
            found=str(error).partition("\n")[0],
            remedy="export the scan again",
        ) from error


def _read_data(stream: Any, header: nib.Nifti1Header, shape: tuple[int, int, int], path: Path) -> NDArray[Any]:
    dtype = header.get_data_dtype()
    stated = int(np.prod(shape, dtype=object)) * dtype.itemsize
    offset = int(header["vox_offset"]) if np.isfinite(header["vox_offset"]) else -1
    on_disk = path.stat().st_size
    possible = on_disk * _GZIP_MAX_RATIO if isinstance(stream, igzip.IGzipFile) else on_disk
    cut = InputError(
        path,
        expected=f"{stated} bytes of voxel data for shape {shape}",
        found="a file that ends early",
        remedy="copy or export the file again",
    )
    if offset < header.single_vox_offset or stated + offset > possible:
        raise cut
    stream.read(offset)
    data = bytearray(stated)
    view = memoryview(data)
    filled = 0
    while filled < stated:
        count = stream.readinto(view[filled : filled + (1 << 24)])
        if not count:
            raise cut
        filled += count
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F")


def _scaled(raw: NDArray[Any], slope: float | None, intercept: float | None, path: Path) -> NDArray[Any]:
    """Apply slope and intercept; stay in the smallest integer type that holds the result exactly."""
    native = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if native.dtype.kind == "f":
        if native.dtype.itemsize > 4 or (slope, intercept) != (1.0, 0.0):
            native = _by_plane(native, np.float32, lambda plane: plane * slope + intercept)
        finite = np.isfinite(native)
        if not finite.all():
            raise InputError(
                path,
                expected="finite voxel values",
                found=f"{int(finite.size - finite.sum())} NaN or infinite voxels of {finite.size}",
                remedy="replace them, for example by -1024 in CT or 0 in MR",
            )
        return native
    if (slope, intercept) == (1.0, 0.0):
        return native
    if slope.is_integer() and intercept.is_integer():
        ends = [int(end) * int(slope) + int(intercept) for end in (native.min(), native.max())]
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
                return _by_plane(native, dtype, lambda plane: plane.astype(np.int64) * int(slope) + int(intercept))
    return _by_plane(
        native, np.float32, lambda plane: plane.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    )


def _by_plane(array: NDArray[Any], dtype: DTypeLike, change: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Apply a function plane by plane, in place where the result is as large: no second copy of a whole body."""
    fits = np.dtype(dtype).itemsize == array.itemsize and array.flags.writeable
    result = array.view(dtype) if fits else np.empty(array.shape, dtype, order="F")
    for z in range(array.shape[2]):
        result[:, :, z] = change(array[:, :, z])
    return result
