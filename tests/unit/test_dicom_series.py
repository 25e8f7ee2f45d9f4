"""Which series there are, which one a model gets, how stations are joined, and how folders and zips become cases."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

pytest.importorskip("pydicom")
from dicom_phantom import CORONAL, STUDY, data_set, positions, save, values, write_series

from jdm_seg.dicom.cases import find_dicom_cases, read_case
from jdm_seg.dicom.choose import choose_series, is_sharp
from jdm_seg.dicom.files import find_files
from jdm_seg.dicom.read import read_series
from jdm_seg.dicom.series import find_series
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.inference.plan import scans_of


def add(root, number, slices=20, step=2.0, start=(-20.0, -30.0, 100.0), **tags):
    folder = root / f"{number}"
    stored = values(slices, seed=number)
    facts = {"SeriesInstanceUID": f"1.2.{number}", "SeriesNumber": number, "SliceThickness": step, **tags}
    write_series(folder, stored, positions(slices, step, start), **facts)
    return stored


def chosen(root, modality="ct", wanted=None):
    choice = choose_series(find_series(root), modality, wanted)
    return [one.uid for one in choice.series], choice.reason


def test_the_listing_shows_the_physics(tmp_path):
    add(tmp_path, 3, SeriesDescription="WB low dose")
    (series,) = find_series(tmp_path)
    listing = series.listing()
    assert listing == {
        "series": 1,
        "modality": "CT",
        "description": "WB low dose",
        "kernel": "B30f",
        "kv": 100.0,
        "slices": 20,
        "spacing_mm": [0.7, 0.8, 2.0],
        "field_of_view_mm": [3.5, 4.8, 40.0],
        "orientation": "axial",
        "image_type": "ORIGINAL/PRIMARY/AXIAL",
        "set_aside": None,
        "notes": [],
    }


def test_coverage_comes_before_slices_and_slices_before_kernel(tmp_path):
    add(tmp_path, 1, 10, 2.0)
    add(tmp_path, 2, 20, 2.0, ConvolutionKernel="B70f")
    add(tmp_path, 3, 8, 5.0)
    add(tmp_path, 4, 20, 2.0)
    uids, reason = chosen(tmp_path)
    assert uids == ["1.2.4"]
    assert "series 1 left: covers 20 mm only" in reason
    assert "series 2 left: sharp kernel B70f" in reason
    assert "series 3 left: slices of 5 mm" in reason
    assert "soft kernel B30f" in reason


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "maximum intensity projection"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a screen capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67"}, "a report"),
        ({"Modality": "MR"}, "modality MR"),
        ({"SamplesPerPixel": 3}, "a colour image"),
    ],
)
def test_what_is_no_scan_is_left_with_its_reason(tmp_path, tags, reason):
    add(tmp_path, 1, 40, **tags)
    add(tmp_path, 2, 10)
    uids, words = chosen(tmp_path)
    assert uids == ["1.2.2"]
    assert reason in words


def test_original_before_derived_and_plain_before_contrast(tmp_path):
    add(tmp_path, 1, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    add(tmp_path, 2, ContrastBolusAgent="an agent")
    add(tmp_path, 3)
    uids, words = chosen(tmp_path)
    assert uids == ["1.2.3"]
    assert "series 1 left: derived" in words
    assert "series 2 left: contrast agent given" in words


def test_a_number_or_a_uid_overrides(tmp_path):
    add(tmp_path, 5, 10)
    add(tmp_path, 7, 20)
    assert chosen(tmp_path)[0] == ["1.2.7"]
    assert chosen(tmp_path, wanted="1")[0] == ["1.2.5"]
    assert chosen(tmp_path, wanted="1.2.5")[0] == ["1.2.5"]
    with pytest.raises(InputError, match="a number from 1 to 2"):
        chosen(tmp_path, wanted="3")


def test_stir_is_known_by_name_or_inversion_time(tmp_path):
    mr = {"Modality": "MR"}
    add(tmp_path, 1, SeriesDescription="t1_tse_cor", **mr)
    add(tmp_path, 2, SeriesDescription="FLAIR", InversionTime=2500, **mr)
    add(tmp_path, 3, SeriesDescription="wb cor", InversionTime=160, ScanningSequence=["SE", "IR"], **mr)
    assert chosen(tmp_path, "stir")[0] == ["1.2.3"]
    add(tmp_path, 4, SeriesDescription="t2_tirm", InversionTime=160, **mr)
    assert chosen(tmp_path, "stir")[0] == ["1.2.4"]


def test_no_series_fits_says_all_reasons(tmp_path):
    add(tmp_path, 1)
    with pytest.raises(InputError, match="a series of STIR MR, found series 1: modality CT"):
        chosen(tmp_path, "stir")


@pytest.mark.parametrize(
    ("kernel", "sharp"),
    [
        ("B30f", False),
        ("Br38f+3", False),
        ("I31s", False),
        ("B70s", True),
        ("Bl57", True),
        ("STANDARD", False),
        ("SOFT", False),
        ("BONEPLUS", True),
        ("LUNG", True),
        ("FC08", False),
        ("FC30", True),
        ("FC52", True),
        ("B", False),
        ("YA", True),
        (None, None),
    ],
)
def test_kernels_of_four_vendors(kernel, sharp):
    assert is_sharp(kernel) is sharp


def test_stations_on_one_raster_are_copied_and_blended(tmp_path):
    first = add(tmp_path, 1, 20, 2.0, (-20, -30, 0))
    second = add(tmp_path, 2, 20, 2.0, (-20, -30, 30))  # ends at 38 mm: slices 15 to 19 overlap
    uids, reason = chosen(tmp_path)
    assert uids == ["1.2.1", "1.2.2"]
    assert "70 mm from head to foot" in reason
    assert "2 stations to join" in reason
    scan = read_series(choose_series(find_series(tmp_path), "ct").series)
    array = scan.volume.array
    assert array.shape == (5, 6, 35)
    assert array.dtype == np.int16
    assert scan.sources == ()
    np.testing.assert_array_equal(array[..., :15], first[:15].transpose(2, 1, 0) - 1024)
    np.testing.assert_array_equal(array[..., 20:], second[5:].transpose(2, 1, 0) - 1024)
    # five shared slices: weights of the first 5/6, 4/6, ... and of the second 1/6, 2/6, ...
    for n in range(5):
        expected = ((5 - n) * (first[15 + n] - 1024.0) + (n + 1) * (second[n] - 1024.0)) / 6
        np.testing.assert_allclose(array[..., 15 + n].T, expected, atol=0.51)
    np.testing.assert_allclose(scan.volume.affine[:3, 3], (20, 30, 0))


def test_a_station_off_the_raster_is_interpolated(tmp_path):
    """A field that is linear in space is the same wherever it is sampled."""
    for number, start in ((1, 0.0), (2, 15.3)):
        places = positions(10, 2.0, (-20, -30, start))
        stored = np.stack([np.full((6, 5), round(10 * place[2]), np.int16) for place in places])
        facts = {"SeriesInstanceUID": f"1.2.{number}", "SeriesNumber": number, "RescaleIntercept": 0}
        write_series(tmp_path / str(number), stored, places, **facts)
    scan = read_series(find_series(tmp_path))
    heights = scan.volume.affine[2, 3] + 2.0 * np.arange(scan.volume.array.shape[2])
    inside = heights <= 15.3 + 18
    np.testing.assert_allclose(scan.volume.array[2, 2, inside], 10 * heights[inside], atol=1)
    assert any("1 of 2 stations were interpolated" in note for note in scan.notes)


def test_coronal_stations_follow_each_other_within_the_plane(tmp_path):
    tags = {"Modality": "MR", "ImageOrientationPatient": list(CORONAL), "SeriesDescription": "STIR"}
    columns, rows = 5, 10
    for number, top in ((1, 100.0), (2, 94.4)):  # rows are 0.8 mm: seven rows on, three overlap
        stored = np.full((4, rows, columns), 100 * number, np.int16)
        places = positions(4, (0, 5.0, 0), (0, 0, top))
        facts = {"SeriesInstanceUID": f"1.2.{number}", "SeriesNumber": number, "SliceThickness": 5, **tags}
        write_series(tmp_path / str(number), stored, places, **facts)
    choice = choose_series(find_series(tmp_path), "stir")
    assert len(choice.series) == 2
    scan = read_series(choice.series)
    assert scan.volume.array.shape == (5, 17, 4)
    # blended over three rows in steps of a quarter
    expected = [100.0] * 7 + [125.0, 150.0, 175.0] + [200.0] * 7
    np.testing.assert_allclose(scan.volume.array[2, :, 1], expected, rtol=1e-5)
    assert any("brightness by a factor of 2.00" in note for note in scan.notes)


def test_stations_of_one_series_by_acquisition(tmp_path):
    places = [*positions(6, 2.0, (0, 0, 0)), *positions(6, 2.0, (0, 0, 11))]
    write_series(tmp_path, values(12), places, lambda n: {"AcquisitionNumber": 1 + n // 6})
    assert [len(one.frames) for one in find_series(tmp_path)] == [6, 6]
    scan = read_series(choose_series(find_series(tmp_path), "ct").series)
    assert scan.volume.array.shape[2] == 12


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"FrameOfReferenceUID": "1.9"}, "do not state one frame of reference"),
        ({"start": (-20.0, -30.0, 160.0)}, "20 mm lie between them"),
        ({"Modality": "MR"}, "different modalities"),
        ({"ImageOrientationPatient": list(CORONAL)}, "different directions"),
    ],
)
def test_what_is_no_station_is_not_joined(tmp_path, second, reason):
    add(tmp_path, 1)
    add(tmp_path, 2, **{"start": (-20.0, -30.0, 138.0), **second})
    series = find_series(tmp_path)
    if second.get("Modality") is None and "ImageOrientationPatient" not in second:
        assert len(choose_series(series, "ct").series) == 1
    with pytest.raises(InputError, match=reason):
        read_series(series)


def test_a_series_for_each_reconstruction_is_no_station(tmp_path):
    add(tmp_path, 1)
    add(tmp_path, 2, ConvolutionKernel="B70f", start=(-20, -30, 138.0))
    assert chosen(tmp_path)[0] == ["1.2.1"]


def test_zips_are_read_in_place_and_never_unpacked(tmp_path):
    add(tmp_path / "source", 1)
    archive = tmp_path / "sub-7.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for n, path in enumerate(sorted((tmp_path / "source").rglob("*.dcm"))):
            target.write(path, f"../../../etc/evil/{n}.dcm")
        target.writestr("__MACOSX/x", "x")
        target.writestr("readme.txt", "hello")
    before = sorted(tmp_path.rglob("*"))
    (case,) = find_dicom_cases(archive, "ct")
    assert case.case_id == "sub-7"
    scan = read_case(case).scan
    folder = read_series(find_series(tmp_path / "source")[0])
    np.testing.assert_array_equal(scan.volume.array, folder.volume.array)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a.dcm", b"\0" * 3_000_000)
    with pytest.raises(InputError, match="implausible size"):
        find_files(tmp_path / "bomb.zip")


def test_a_lying_zip_is_refused(tmp_path):
    path = tmp_path / "cut.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a.dcm", b"x" * 1000)
    path.write_bytes(path.read_bytes().replace(b"x" * 1000, b"x" * 10))
    with pytest.raises(InputError):
        find_series(path)


def study(root, uid, person="p", **tags):
    write_series(root, values(4), positions(4, 2), StudyInstanceUID=uid, PatientID=person, **tags)


def test_folders_name_the_cases(tmp_path):
    study(tmp_path / "sub-1" / "DICOM" / "a", "1.1")
    study(tmp_path / "sub-1" / "DICOM" / "b", "1.1", SeriesInstanceUID="1.2.9")
    study(tmp_path / "sub-2" / "visit1", "1.2")
    study(tmp_path / "sub-2" / "visit2", "1.3")
    cases = find_dicom_cases(tmp_path, "ct")
    assert [case.case_id for case in cases] == ["sub-1", "sub-2_visit1", "sub-2_visit2"]
    assert [case.image.name for case in cases] == ["sub-1", "visit1", "visit2"]
    assert [case.case_id for case in find_dicom_cases(tmp_path / "sub-1", "ct")] == ["sub-1"]


def test_studies_that_share_a_folder_get_a_hash(tmp_path):
    for n in (1, 2):
        write_series(tmp_path / "x", values(4), positions(4, 2), name=f"{n}-", StudyInstanceUID=f"1.{n}")
    cases = find_dicom_cases(tmp_path / "x", "ct")
    assert len({case.case_id for case in cases}) == 2
    assert all(case.case_id.startswith("x_") and read_case(case).scan.volume.array.shape[2] == 4 for case in cases)


def test_hashed_ids_show_no_folder_and_stay_the_same(tmp_path):
    study(tmp_path / "miller" / "a", "1.1")
    study(tmp_path / "smith", "1.2")
    ids = [case.case_id for case in find_dicom_cases(tmp_path, "ct", hash_ids=True)]
    assert all(len(one) == 15 and one.startswith("case-") for one in ids)
    (alone,) = find_dicom_cases(tmp_path / "smith", "ct", hash_ids=True)
    assert alone.case_id in ids


def test_results_beside_the_scans_are_no_scans(tmp_path):
    study(tmp_path / "sub-1", "1.1")
    study(tmp_path / "sub-2", "1.2")
    study(tmp_path / "out" / "sub-1", "1.1")
    (tmp_path / "out" / "sub-1" / "burden.json").write_text("{}")
    assert [case.case_id for case in find_dicom_cases(tmp_path, "ct")] == ["sub-1", "sub-2"]


def test_no_dicom_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(CaseNotFoundError, match="expected DICOM"):
        find_dicom_cases(tmp_path, "ct")
    with pytest.raises(CaseNotFoundError, match="DICOM scans"):
        scans_of(tmp_path, "ct")


def test_the_voltage_goes_with_the_case(tmp_path):
    add(tmp_path / "a", 1, KVP=80)
    assert read_case(find_dicom_cases(tmp_path / "a", "ct")[0]).kv == "80"
    add(tmp_path / "tin", 1, KVP=100, FilterMaterial="TIN")
    assert read_case(find_dicom_cases(tmp_path / "tin", "ct")[0]).kv == "Sn100"
    add(tmp_path / "odd", 1, KVP=30)
    odd = read_case(find_dicom_cases(tmp_path / "odd", "ct")[0])
    assert odd.kv is None
    assert any("30 kV" in note for note in odd.scan.notes)


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    study(tmp_path, STUDY)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(InputError, match=r'pip install "jdm-seg\[dicom\]"'):
        find_dicom_cases(tmp_path, "ct")


def test_a_file_alone_is_a_case(tmp_path):
    path = save(tmp_path / "one.dcm", data_set(values(1)[0], (0, 0, 0), 1))
    (case,) = scans_of(path, "ct").cases
    assert read_case(case).scan.volume.array.shape == (5, 6, 1)
