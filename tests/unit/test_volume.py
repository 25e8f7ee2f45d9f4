"""Reading and writing volumes: geometry, number types, and everything that can be wrong with a file."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.errors import GridMismatchError, InputError
from jdm_seg.volume import Volume, read_volume, slice_axis, write_planes, write_volume

ANGLE = np.deg2rad(20)
ROTATION = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])


IDENTITY = np.eye(3)


def affine_of(spacing=(0.9, 1.1, 2.5), axes=IDENTITY, rotation=IDENTITY, origin=(3.3, -7.7, 11.1)):
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array(axes, float).T @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "ras": affine_of(),
    "lps": affine_of(axes=((-1, 0, 0), (0, -1, 0), (0, 0, 1))),
    "permuted": affine_of(axes=((0, 0, -1), (1, 0, 0), (0, 1, 0))),
    "oblique": affine_of(rotation=ROTATION),
    "oblique_flipped": affine_of(axes=((-1, 0, 0), (0, 0, 1), (0, -1, 0)), rotation=ROTATION),
}


def ramp(shape=(5, 6, 7), dtype=np.int16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_result_is_written_on_the_scans_grid_bit_for_bit(tmp_path, name, image_class, suffix):
    source = tmp_path / f"scan{suffix}"
    nib.save(image_class(ramp(), AFFINES[name]), source)
    scan = read_volume(source)
    mask = scan.array % 3 == 0
    write_volume(tmp_path / "mask.nii.gz", mask, scan, np.uint8)
    written = nib.load(tmp_path / "mask.nii.gz")
    assert (written.affine == nib.load(source).affine).all()  # exactly, not nearly
    assert type(written) is image_class
    assert written.get_data_dtype() == np.uint8
    assert (np.asarray(written.dataobj) == mask).all()


def test_affine_from_a_quaternion_only_header_survives(tmp_path):
    image = nib.Nifti1Image(ramp(), None)
    image.header.set_qform(AFFINES["oblique_flipped"], code=1)
    image.header["sform_code"] = 0
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = read_volume(tmp_path / "scan.nii.gz")
    write_volume(tmp_path / "mask.nii.gz", scan.array, scan)
    assert (nib.load(tmp_path / "mask.nii.gz").affine == nib.load(tmp_path / "scan.nii.gz").affine).all()


@pytest.mark.parametrize("name", AFFINES)
def test_canonical_keeps_every_voxel_at_its_place(name):
    volume = Volume(ramp(), AFFINES[name])
    canonical = volume.to_canonical()
    # nibabel's own reorientation is the reference
    reference = nib.as_closest_canonical(nib.Nifti1Image(volume.array, volume.affine))
    assert (canonical.array == np.asarray(reference.dataobj)).all()
    assert np.allclose(canonical.affine, reference.affine, atol=1e-12)
    assert (volume.from_canonical(canonical.array) == volume.array).all()


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "expected"),
    [
        (np.int16, 1, 0, np.int16),
        (np.int16, 1, -1024, np.int16),
        (np.uint16, 1, -1024, np.int16),
        (np.int16, 2, 1, np.int16),
        (np.int16, 200, 0, np.int32),
        (np.int16, 0.5, 0.25, np.float32),
        (np.uint8, 1, 0, np.uint8),
        (np.float32, 1, 0, np.float32),
        (np.float64, 1, 0, np.float32),
    ],
)
def test_values_and_types_follow_slope_and_intercept(tmp_path, dtype, slope, intercept, expected):
    stored = ramp(dtype=dtype)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    path = tmp_path / "scan.nii.gz"
    nib.save(image, path)
    with gzip.open(path) as stream:  # set_slope_inter rescales on save; put the raw numbers back
        raw = bytearray(stream.read())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    header.set_slope_inter(slope, intercept)
    raw[:348] = header.binaryblock
    raw[352:] = stored.tobytes(order="F")
    path.write_bytes(gzip.compress(bytes(raw)))
    volume = read_volume(path)
    assert volume.array.dtype == expected
    assert np.allclose(volume.array, stored.astype(np.float64) * slope + intercept)
    assert np.allclose(volume.array, nib.load(path).get_fdata())


def test_big_endian_is_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.save(nib.Nifti1Image(ramp(), np.eye(4), header), tmp_path / "scan.nii")
    assert (read_volume(tmp_path / "scan.nii").array == ramp()).all()


def test_trailing_axes_of_one_count_as_3d(tmp_path):
    nib.save(nib.Nifti1Image(ramp()[..., None], np.eye(4)), tmp_path / "scan.nii")
    assert read_volume(tmp_path / "scan.nii").array.shape == (5, 6, 7)


def test_no_free_text_travels_into_results(tmp_path):
    image = nib.Nifti1Image(ramp(), np.eye(4))
    image.header["descrip"] = b"Doe^Jane 2011-03-04"
    image.header["db_name"] = b"Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nib.save(image, tmp_path / "scan.nii")
    scan = read_volume(tmp_path / "scan.nii")
    write_volume(tmp_path / "mask.nii", scan.array, scan)
    assert b"Doe" not in (tmp_path / "mask.nii").read_bytes()


def test_same_volume_same_bytes(tmp_path):
    volume = Volume(ramp(), np.eye(4))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, volume.array, volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path):
    volume = Volume(ramp(), np.eye(4))
    write_volume(tmp_path / "mask.nii.gz", volume.array, volume)
    before = (tmp_path / "mask.nii.gz").read_bytes()

    def planes():
        yield volume.array[:, :, 0] + 1
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_planes(tmp_path / "mask.nii.gz", planes(), volume, np.int16)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.nii.gz"]
    assert (tmp_path / "mask.nii.gz").read_bytes() == before


def test_planes_make_the_same_file_as_the_array(tmp_path):
    volume = Volume(ramp(), np.eye(4))
    write_volume(tmp_path / "array.nii.gz", volume.array, volume, np.float32)
    write_planes(tmp_path / "planes.nii.gz", np.moveaxis(volume.array, 2, 0), volume, np.float32)
    assert (tmp_path / "array.nii.gz").read_bytes() == (tmp_path / "planes.nii.gz").read_bytes()


@pytest.mark.parametrize("planes", [lambda a: a[:-1], lambda a: a[:, 1:]])
def test_planes_of_another_grid(tmp_path, planes):
    volume = Volume(ramp(), np.eye(4))
    with pytest.raises(GridMismatchError, match="planes of shape"):
        write_planes(tmp_path / "mask.nii.gz", planes(np.moveaxis(volume.array, 2, 0)), volume, np.int16)
    assert not list(tmp_path.iterdir())


def saved(tmp_path, array, affine=None, change=None):
    path = tmp_path / "bad.nii"
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    nib.save(image, path)
    if change is not None:
        raw = bytearray(path.read_bytes())
        header = nib.Nifti1Header(bytes(raw[:348]), check=False)
        change(header)
        raw[:348] = header.binaryblock
        path.write_bytes(bytes(raw))
    return path


def no_spacing(header):
    header["sform_code"] = 0
    header["qform_code"] = 0
    header["pixdim"][2] = 0


def zero_column(header):
    header["srow_x"][1] = header["srow_y"][1] = header["srow_z"][1] = 0


def nan_affine(header):
    header["srow_x"][0] = np.nan


def parallel_axes(header):
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row][1] = header[row][0]


def bad_quaternion(header):
    header["sform_code"] = 0
    header["qform_code"] = 1
    header["quatern_b"] = header["quatern_c"] = 1


def half_a_scaling(header):
    header["scl_slope"], header["scl_inter"] = 1, np.nan


def data_in_the_header(header):
    header["vox_offset"] = 0


def nowhere(header):
    header["vox_offset"] = np.nan


def huge(header):
    header["dim"][1:4] = 30000


def negative(header):
    header["dim"][2] = -4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_spacing, "expected a voxel size along every axis"),
        (zero_column, "expected a voxel size of"),
        (nan_affine, "expected a finite 4x4 affine"),
        (parallel_axes, "expected three independent axes"),
        (huge, "found a file that ends early"),
        (bad_quaternion, "expected a header with a valid orientation and scaling"),
        (half_a_scaling, "expected a header with a valid orientation and scaling"),
        (data_in_the_header, "found a file that ends early"),
        (nowhere, "found a file that ends early"),
        (negative, "expected valid dimensions"),
    ],
)
def test_broken_headers_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_volume(saved(tmp_path, ramp(), change=change))


def test_4d_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"bad\.nii: expected one 3-D volume, found 4-D data of shape \(5, 6, 7, 2\)"):
        read_volume(saved(tmp_path, np.zeros((5, 6, 7, 2), np.int16)))


def test_rgb_is_refused(tmp_path):
    colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match=r"found colour \(RGB\) data"):
        read_volume(saved(tmp_path, colour))


def test_complex_is_refused(tmp_path):
    with pytest.raises(InputError, match="complex"):
        read_volume(saved(tmp_path, np.zeros((4, 4, 4), np.complex64)))


def test_nan_voxels_are_refused(tmp_path):
    array = ramp(dtype=np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="found 1 NaN or infinite voxels of 210"):
        read_volume(saved(tmp_path, array))


@pytest.mark.parametrize("keep", [10, 400, 5000])
def test_a_cut_gzip_is_named(tmp_path, keep):
    path = tmp_path / "cut.nii.gz"
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.integers(-1000, 1000, (20, 20, 20)).astype(np.int16), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cut\.nii\.gz: expected"):
        read_volume(path)


@pytest.mark.parametrize("content", [b"", b"not a scan, a letter", b"\x1f\x8b broken", b"\0" * 1000])
def test_what_is_no_nifti_is_named(tmp_path, content):
    path = tmp_path / "text.nii.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"text\.nii\.gz: expected"):
        read_volume(path)


def test_a_missing_file_is_named_without_its_folder(tmp_path):
    with pytest.raises(InputError, match=r"^gone\.nii: expected a NIfTI file, found no such file"):
        read_volume(tmp_path / "patient-name" / "gone.nii")


def test_a_mask_on_another_grid_is_named():
    scan = Volume(ramp(), AFFINES["ras"], "sub-012")
    shifted = AFFINES["ras"].copy()
    shifted[0, 3] += 1
    with pytest.raises(GridMismatchError, match="at another place, up to 1 mm away"):
        scan.check_same_grid(Volume(ramp(), shifted))
    with pytest.raises(
        GridMismatchError, match=r"sub-012: expected the label on the image's grid .* found \(5, 6, 8\)"
    ):
        scan.check_same_grid(Volume(ramp((5, 6, 8)), AFFINES["ras"]))
    scan.check_same_grid(Volume(ramp(), AFFINES["ras"] + 1e-6))


@pytest.mark.real
def test_real_and_odd_files_read_as_nibabel_reads_them(real_data):
    """Every NIfTI at hand gives nibabel's numbers or a named error, never another exception."""
    read = 0
    for path in sorted(p for folder in ("odd", "mr", "ct/reference") for p in (real_data / folder).rglob("*.nii*")):
        try:
            volume = read_volume(path)
        except InputError:
            continue
        image = nib.load(path)
        assert (volume.affine == image.affine).all(), path.name
        assert np.allclose(volume.array, image.get_fdata().reshape(volume.array.shape), rtol=1e-5), path.name
        read += 1
    assert read > 40


def test_slices_lie_across_the_largest_step():
    assert [slice_axis(s) for s in ((1.0, 4.0, 1.0), (1.0, 1.0, 3.0), (1.0, 1.0, 1.0), (3.0, 1, 1))] == [1, 2, 2, 0]
    assert slice_axis((1.00001, 1.0, 1.0)) == 2  # a hundred-thousandth of a millimetre is rounding
