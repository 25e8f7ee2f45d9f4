"""Public DICOM series, read as an independent reader reads them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.dicom.files import FileRef
from jdm_seg.dicom.read import read_series
from jdm_seg.dicom.series import find_series
from jdm_seg.errors import InputError

sitk = pytest.importorskip("SimpleITK")
pytestmark = pytest.mark.real

FOLDERS = (
    "cc0-lspine/MR_AIRIS_Vento_s0012",
    "dcm_qa_enh/Siemens/XA10",
    "dcmqi-ct-seg/23x38x3/image",
    "dcmqi-ct-seg/23x38x3/multiframe",
    "dcmqi-ct-seg/24x38x3/image",
    "dcmqi-ct-seg/24x38x3/multiframe",
    "dcmqi-ct-seg/ct-3slice",
    "dicom2nifti/failing/gantrytilting/001",
    "dicom2nifti/failing/slicecount/001",
    "dicom2nifti/failing/sliceorientation/001",
    "dicom2nifti/ge/anatomical/001",
    "dicom2nifti/ge/anatomical/001_implicit",
    "dicom2nifti/ge/fmri/001",
    "dicom2nifti/ge/fmri/001_implicit",
    "dicom2nifti/generic/anatomical/001",
    "dicom2nifti/generic/anatomical/001_implicit",
    "dicom2nifti/generic/anatomical/002_non_isotropic",
    "dicom2nifti/generic/compressed/001",
    "dicom2nifti/generic/compressed_j2k/001",
    "dicom2nifti/generic/compressed_jpeg/001",
    "dicom2nifti/generic/compressed_jpegls/001",
    "dicom2nifti/generic/compressed_rle/001",
    "dicom2nifti/hitachi/anatomical/001",
    "dicom2nifti/hitachi/anatomical/001_implicit",
    "dicom2nifti/siemens_multiframe/anatomical/001",
    "highdicom",
    "pydicom-data",
    "sts-028/CT/image",
    "sts-028/MR_T1/image",
    "sts-028/PET/image",
    "ts-example-ct-j2k",
)
UNPLACED = {
    "dicom2nifti/failing/notavolume/001": "a single slice without",
    "dicom2nifti/failing/sliceincrement/001": "1 of 5 slices missing, the first after slice 3",
    "dicom2nifti/failing/sliceincrement/002": "1 of 5 slices missing, the first after slice 3",
    "dicom2nifti/ge/anatomical/001_single_slice": "a single slice without",
    "dicom2nifti/generic/rgb/001": "colour image|screen capture",
    "pydicom-data/emri_small.dcm": "without position",
    "pydicom-data/parametric_map_float.dcm": "parametric map",
    "pydicom-data/liver.dcm": "a segmentation",
    "pydicom-data/vlut_04.dcm": "screen capture",
    "highdicom/sr_document.dcm": "a report",
    "highdicom/dx_image.dcm": "without position",
    "sts-028/CT/mask": "radiotherapy object",
}


def readable(folder: Path):
    files = [FileRef(path) for path in sorted(folder.iterdir()) if path.is_file()]
    for series in find_series(folder, files):
        if series.set_aside is None:
            try:
                yield read_series(series)
            except InputError:
                assert folder.name == "pydicom-data"  # one file there has no slice distance


@pytest.mark.parametrize("folder", FOLDERS)
def test_values_and_places_are_those_of_simpleitk(real_data, folder):
    """Each slice by itself: every value exactly, three corners to 1e-3 mm."""
    scans = list(readable(real_data / "dicom" / folder))
    assert scans
    for scan in scans:
        columns, rows, _ = scan.volume.array.shape
        images = {frame.file: sitk.ReadImage(str(frame.file.path)) for frame in scan.sources}
        for place, frame in enumerate(scan.sources):
            image = images[frame.file]
            expected = np.atleast_3d(sitk.GetArrayViewFromImage(image))
            expected = expected[frame.index] if expected.ndim == 3 else expected[0, frame.index]
            mine = scan.volume.array[:, :, place].T
            np.testing.assert_array_equal(mine, expected.astype(mine.dtype))
            if len(images) < len(scan.sources):
                continue  # SimpleITK states one place for all frames of a file
            for column, row in ((0, 0), (columns - 1, 0), (0, rows - 1)):
                left_posterior = image.TransformIndexToPhysicalPoint((column, row, 0))
                expected_mm = np.array(left_posterior) * (-1, -1, 1)
                mine_mm = (scan.volume.affine @ (column, row, place, 1))[:3]
                np.testing.assert_allclose(mine_mm, expected_mm, atol=1e-3)


def test_each_frame_has_its_own_scale(real_data):
    """SimpleITK scales all frames of a file by the first one's slope: take that back and apply each frame's own."""
    magnitude, field_map = readable(real_data / "dicom" / "dcm_qa_enh" / "Philips")
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(magnitude.sources[0].file.path)))
    assert (magnitude.sources[0].slope, field_map.sources[0].slope) == (1.27985347985347, 0.24420024420024)
    stored = np.rint(image / magnitude.sources[0].slope)
    for scan, scale, offset in ((magnitude, 1.27985347985347, 0), (field_map, 0.24420024420024, -500)):
        for place, frame in enumerate(scan.sources):
            expected = (stored[frame.index] * scale + offset).astype(np.float32)
            np.testing.assert_array_equal(scan.volume.array[:, :, place].T, expected)


@pytest.mark.parametrize(
    "folder",
    [
        "generic/anatomical/001",
        "generic/compressed_j2k/001",
        "generic/compressed_jpegls/001",
        "ge/anatomical/001",
        "hitachi/anatomical/001",
        "siemens_multiframe/anatomical/001",
    ],
)
def test_the_volume_is_the_published_nifti(real_data, folder):
    source = real_data / "dicom" / "dicom2nifti" / folder
    truth = nib.as_closest_canonical(nib.load(f"{source}_ground_truth.nii.gz"))
    (scan,) = readable(source)
    mine = scan.volume.to_canonical()
    np.testing.assert_array_equal(mine.array, np.asanyarray(truth.dataobj).reshape(mine.array.shape))
    np.testing.assert_allclose(mine.affine, truth.affine, atol=1e-3)


def test_the_stir_series_is_its_nifti(real_data):
    truth = nib.as_closest_canonical(nib.load(real_data / "mr" / "stir" / "cc0-lspine_stir.nii.gz"))
    (scan,) = readable(real_data / "dicom" / "cc0-lspine" / "MR_AIRIS_Vento_s0012")
    mine = scan.volume.to_canonical()
    np.testing.assert_array_equal(mine.array, np.asanyarray(truth.dataobj))
    np.testing.assert_allclose(mine.affine, truth.affine, atol=1e-3)


@pytest.mark.parametrize(("name", "reason"), UNPLACED.items())
def test_what_is_no_volume_says_why(real_data, name, reason):
    for series in find_series(real_data / "dicom" / name):
        with pytest.raises(InputError, match=reason):
            read_series(series)


def test_a_tilted_gantry_is_kept_and_said(real_data):
    (scan,) = readable(real_data / "dicom" / "dicom2nifti" / "failing" / "gantrytilting" / "001")
    assert any("slant of 14.0°" in note for note in scan.notes)
    # the volume of a voxel: pixel area times the distance of the planes, 5 mm times cos 14°
    assert scan.volume.grid.voxel_volume_mm3 == pytest.approx(0.41796875**2 * 5 * np.cos(np.radians(14)), rel=1e-4)


def test_a_cut_codestream_says_so(real_data):
    series = find_series(real_data / "dicom" / "pydicom-data" / "emri_small_jpeg_2k_lossless_too_short.dcm")
    with pytest.raises(InputError, match=r"without position|cannot be decoded|another image size"):
        read_series(series[0])
