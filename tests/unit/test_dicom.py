"""DICOM series of known numbers: values, places, and what is wrong with a series."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydicom")
from dicom_phantom import (
    AXIAL,
    CORONAL,
    FEET_FIRST,
    SAGITTAL,
    data_set,
    positions,
    save,
    values,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless

from jdm_seg.dicom.read import read_series
from jdm_seg.dicom.series import find_series
from jdm_seg.errors import InputError


def read(folder):
    (series,) = find_series(folder)
    return read_series(series)


def world(volume, column, row, place):
    return (volume.affine @ (column, row, place, 1))[:3]


@pytest.mark.parametrize(
    ("orientation", "step"),
    [
        (AXIAL, (0, 0, 2.0)),
        (FEET_FIRST, (0, 0, -2.0)),
        (SAGITTAL, (-3.0, 0, 0)),
        (CORONAL, (0, 2.5, 0)),
        ((0.8, 0.6, 0, 0, 0, -1), (-1.2, 1.6, 0)),
        (AXIAL, (0, 0.5, 2.0)),
    ],
    ids=["axial", "feet first", "sagittal", "coronal", "oblique", "tilted"],
)
def test_every_voxel_lies_where_the_standard_says(tmp_path, orientation, step):
    """PS3.3 C.7.6.2.1.1: position + column index * column spacing * row direction + row index * row spacing * ..."""
    stored, places = values(4), positions(4, step)
    write_series(tmp_path, stored, places, ImageOrientationPatient=list(orientation))
    scan = read(tmp_path)
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    for place, frame in enumerate(scan.sources):
        n = frame.instance - 1
        np.testing.assert_array_equal(scan.volume.array[:, :, place], stored[n].T - 1024)
        for column, row in ((0, 0), (4, 0), (0, 5), (3, 2)):
            patient = places[n] + column * 0.7 * along_row + row * 0.8 * along_column
            np.testing.assert_allclose(world(scan.volume, column, row, place), patient * (-1, -1, 1), atol=1e-6)


def test_the_tilt_is_said(tmp_path):
    write_series(tmp_path, values(4), positions(4, (0, 0.5, 2.0)))
    # atan(0.5 / 2) = 14.04 degrees
    assert any("14.0°" in note and "25 %" in note for note in read(tmp_path).notes)


def test_a_stack_sheared_beyond_belief_is_refused(tmp_path):
    write_series(tmp_path, values(4), positions(4, (0, 3.0, 2.0)))
    with pytest.raises(InputError, match="sheared by 56°"):
        read(tmp_path)


def test_slope_and_intercept_are_the_slices_own(tmp_path):
    stored = values(3)
    write_series(tmp_path, stored, positions(3, 2), lambda n: {"RescaleSlope": n + 1, "RescaleIntercept": -10 * n})
    array = read(tmp_path).volume.array
    assert array.dtype == np.int16
    for n in range(3):
        np.testing.assert_array_equal(array[:, :, n].T, stored[n] * (n + 1) - 10 * n)


def test_values_that_int16_cannot_hold_stay_whole(tmp_path):
    write_series(tmp_path, values(3), positions(3, 2), RescaleSlope=20)
    array = read(tmp_path).volume.array
    assert array.dtype == np.int32
    assert array.max() == 20 * int(values(3).max()) - 1024


def test_a_broken_slope_gives_float(tmp_path):
    write_series(tmp_path, values(3), positions(3, 2), RescaleSlope="0.1", RescaleIntercept="0.05")
    array = read(tmp_path).volume.array
    np.testing.assert_array_equal(array[:, :, 1].T, (values(3)[1] * 0.1 + 0.05).astype(np.float32))


def test_one_missing_slice_of_many_is_filled_and_said(tmp_path):
    stored = values(80)
    keep = [n for n in range(80) if n != 30]
    write_series(tmp_path, stored[keep], [positions(80, 1.5)[n] for n in keep])
    scan = read(tmp_path)
    assert scan.volume.array.shape == (5, 6, 80)
    assert scan.sources[30] is None
    between = np.rint((stored[29].astype(float) + stored[31]) / 2 - 1024)
    np.testing.assert_array_equal(scan.volume.array[:, :, 30].T, between)
    np.testing.assert_array_equal(scan.volume.array[:, :, 31].T, stored[31] - 1024)
    assert any("1 of 80 slices missing" in note for note in scan.notes)


@pytest.mark.parametrize("lost", [(5,), (30, 31, 32)])
def test_too_many_missing_slices_are_refused(tmp_path, lost):
    count = 10 if lost == (5,) else 300
    keep = [n for n in range(count) if n not in lost]
    write_series(tmp_path, values(count, 2, 2)[keep], [positions(count, 1.5)[n] for n in keep])
    with pytest.raises(InputError, match=f"{len(lost)} of {count} slices missing, the first after slice {lost[0]}"):
        read(tmp_path)


def test_uneven_slices_are_refused(tmp_path):
    places = [np.array((0.0, 0.0, z)) for z in (0, 2, 4, 7, 10)]
    write_series(tmp_path, values(5), places)
    with pytest.raises(InputError, match="distances from 2 to 3 mm"):
        read(tmp_path)


def test_slices_shifted_sideways_are_refused(tmp_path):
    places = positions(5, 2)
    places[2] += (5, 0, 0)
    write_series(tmp_path, values(5), places)
    with pytest.raises(InputError, match="shifted sideways by up to 5 mm"):
        read(tmp_path)


def test_a_copy_of_a_file_is_left_out(tmp_path):
    paths = write_series(tmp_path, values(4), positions(4, 2))
    (tmp_path / "copy of it.dcm").write_bytes(paths[0].read_bytes())
    scan = read(tmp_path)
    assert scan.volume.array.shape[2] == 4
    assert "1 files are copies of another and were left out." in scan.notes


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "TriggerTime"])
def test_phases_and_echoes_are_taken_apart(tmp_path, keyword):
    stored = values(8)
    modality = {"Modality": "MR"} if keyword == "EchoTime" else {}
    write_series(tmp_path, stored, [*positions(4, 2)] * 2, lambda n: {keyword: 1 + n // 4}, **modality)
    first, second = find_series(tmp_path)
    assert (len(first.frames), len(second.frames)) == (4, 4)
    parts = [read_series(one).volume.array[:, :, 0].T + (1024 if not modality else 0) for one in (first, second)]
    np.testing.assert_array_equal(sorted(part[0, 0] for part in parts), sorted([stored[0, 0, 0], stored[4, 0, 0]]))


def test_a_time_series_without_a_trait_follows_the_instance_numbers(tmp_path):
    write_series(tmp_path, values(12), [*positions(4, 2)] * 3)
    assert [len(one.frames) for one in find_series(tmp_path)] == [4, 4, 4]


def test_a_scout_within_the_series_is_set_aside(tmp_path):
    write_series(tmp_path, values(4), positions(4, 2))
    scout = {"ImageOrientationPatient": list(CORONAL), "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(tmp_path, values(1), positions(1, 2), name="scout", **scout)
    aside = {one.set_aside: len(one.frames) for one in find_series(tmp_path)}
    assert aside == {None: 4, "a localizer": 1}


def test_without_a_place_there_is_no_volume(tmp_path):
    write_series(tmp_path, values(3), positions(3, 2), ImagePositionPatient=None)
    with pytest.raises(InputError, match="without position"):
        read(tmp_path)


def test_a_lone_slice_needs_a_thickness(tmp_path):
    write_series(tmp_path / "a", values(1), positions(1, 2))
    assert read(tmp_path / "a").volume.spacing == pytest.approx((0.7, 0.8, 2))
    write_series(tmp_path / "b", values(1), positions(1, 2), SliceThickness=None)
    with pytest.raises(InputError, match="a single slice without"):
        read(tmp_path / "b")


def test_gaps_between_thin_slices_are_said(tmp_path):
    write_series(tmp_path, values(4), positions(4, 10), SliceThickness=1)
    assert any("90 % of the body was not scanned" in note for note in read(tmp_path).notes)


def test_bright_padding_becomes_air_and_dark_padding_stays(tmp_path):
    bright = values(3).astype(np.uint16)
    bright[:, 0] = 63536
    write_series(tmp_path / "bright", bright, positions(3, 2), PixelPaddingValue=63536)
    scan = read(tmp_path / "bright")
    assert (scan.volume.array[:, 0] == -1024).all()
    assert any("15 pixels outside" in note for note in scan.notes)
    dark = values(3)
    dark[:, 0] = -2000
    write_series(tmp_path / "dark", dark, positions(3, 2), PixelPaddingValue=-2000)
    assert (read(tmp_path / "dark").volume.array[:, 0] == -3024).all()


def test_overlay_bits_above_the_stored_ones_are_no_values(tmp_path):
    stored = values(3).astype(np.uint16) | 0x8000
    write_series(tmp_path, stored, positions(3, 2), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read(tmp_path).volume.array[:, :, 0].T, (stored[0] & 0xFFF).astype(int) - 1024)


def test_signed_values_of_twelve_bits_keep_their_sign(tmp_path):
    stored = (values(3) - 1500) & 0xFFF
    write_series(tmp_path, stored.astype(np.int16), positions(3, 2), BitsStored=12, HighBit=11, RescaleIntercept=0)
    np.testing.assert_array_equal(read(tmp_path).volume.array[:, :, 2].T, values(3)[2] - 1500)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_other_transfer_syntaxes(tmp_path, syntax):
    stored = values(3)
    for n, place in enumerate(positions(3, 2)):
        one = data_set(stored[n], place, n)
        if syntax == ExplicitVRBigEndian:
            one.PixelData = stored[n].astype(">i2").tobytes()
        if syntax == RLELossless:
            save(tmp_path / f"{n}", one)
            one.compress(RLELossless, generate_instance_uid=False)
        save(tmp_path / f"{n}", one, syntax)
    np.testing.assert_array_equal(read(tmp_path).volume.array, stored.transpose(2, 1, 0) - 1024)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    one = data_set(values(1)[0], (0, 0, 0), 1)
    save(tmp_path / "1", one)
    one.compress(RLELossless)
    save(tmp_path / "1", one, RLELossless)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda self: False))
    with pytest.raises(InputError, match=r'found RLE Lossless; pip install "jdm-seg\[dicom\]"'):
        read(tmp_path)


def test_cut_pixel_data_says_how_much_is_there(tmp_path):
    one = data_set(values(1)[0], (0, 0, 0), 1)
    one.PixelData = one.PixelData[:20]
    save(tmp_path / "1", one)
    with pytest.raises(InputError, match="pixel data of 20 bytes where 60 are stated"):
        read(tmp_path)


def test_a_damaged_file_beside_a_series_is_said(tmp_path):
    write_series(tmp_path, values(4), positions(4, 2))
    (tmp_path / "bad").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0\xff\xff\xff\xff\x08\x00\x05\x00XX")
    scan = read(tmp_path)
    assert scan.volume.array.shape[2] == 4


def enhanced(tmp_path, slopes=(1, 2, 3)):
    stored = values(3)
    one = data_set(stored[0], (0, 0, 0), 1, ImageOrientationPatient=None, ImagePositionPatient=None, PixelSpacing=None)
    one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    one.NumberOfFrames = 3
    one.PixelData = stored.tobytes()
    del one.RescaleSlope, one.RescaleIntercept, one.KVP

    def item(**tags):
        made = Dataset()
        for keyword, value in tags.items():
            setattr(made, keyword, value)
        return made

    shared = item(
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.8, 0.7], SliceThickness=2)]),
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=list(AXIAL))]),
        CTXRayDetailsSequence=Sequence([item(KVP=80)]),
    )
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    order = (2, 0, 1)  # frames in no order
    one.PerFrameFunctionalGroupsSequence = Sequence(
        item(
            PlanePositionSequence=Sequence([item(ImagePositionPatient=[0, 0, 2.0 * order[n]])]),
            PixelValueTransformationSequence=Sequence([item(RescaleSlope=slopes[n], RescaleIntercept=-n)]),
        )
        for n in range(3)
    )
    save(tmp_path / "multi.dcm", one)
    return stored, order


def test_enhanced_frames_have_their_own_place_and_scale(tmp_path):
    stored, order = enhanced(tmp_path)
    scan = read(tmp_path)
    assert scan.acquisition.kv == 80
    for n in range(3):
        np.testing.assert_array_equal(scan.volume.array[:, :, order[n]].T, stored[n].astype(int) * (n + 1) - n)
        assert scan.sources[order[n]].index == n
    np.testing.assert_allclose(world(scan.volume, 0, 0, 2), (0, 0, 4))
