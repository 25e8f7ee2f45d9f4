"""Nothing of the person leaves a header: planted in every tag that could hold it, and looked for in everything."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("pydicom")
from dicom_phantom import positions, write_series

from jdm_seg.dicom.cases import find_dicom_cases, read_case
from jdm_seg.dicom.choose import choose_series
from jdm_seg.dicom.read import read_series
from jdm_seg.dicom.series import find_series
from jdm_seg.errors import InputError

PLANTED = ("Zyxwinter", "Quintessa", "19871224", "ACC7788123", "PID445566", "Dr Vandermolen", "1.2.840.99.424242")
PERSON = {
    "PatientName": "Zyxwinter^Quintessa",
    "PatientBirthDate": "19871224",
    "AccessionNumber": "ACC7788123",
    "PatientID": "PID445566",
    "ReferringPhysicianName": "Dr Vandermolen",
    "InstitutionName": "Clinic of Dr Vandermolen",
    "StudyDescription": "Zyxwinter Quintessa PID445566",
    "SeriesDescription": "Leg Quintessa zyxwinter PID445566",
    "ProtocolName": "Zyxwinter protocol",
    "ImageComments": "born 19871224, ACC7788123",
    "ContrastBolusAgent": "Zyxwinter mix",
    "StudyInstanceUID": "1.2.840.99.424242",
    "StudyDate": "20200131",
}


def limb() -> np.ndarray:
    """A round limb with fat, muscle and one deposit of 500 HU, stored + 1024; shape (slices, rows, columns)."""
    z, y, x = np.mgrid[:24, :48, :48]
    radius = np.hypot(y - 24, x - 24)
    hu = np.where(radius < 20, -100, -1000)
    hu = np.where(radius < 17, 55, hu)
    hu = np.where((radius < 5), 55, hu)
    hu = np.where((z - 12) ** 2 + (y - 16) ** 2 + (x - 24) ** 2 < 9, 500, hu)
    noise = np.random.default_rng(3).normal(0, 10, hu.shape)
    return np.rint(hu + noise + 1024).astype(np.int16)


@pytest.fixture
def scans(tmp_path):
    root = tmp_path / "scans"
    write_series(root / "sub-1", limb(), positions(24, 2), **PERSON)
    other = {**PERSON, "StudyInstanceUID": "1.2.840.99.424242.2"}
    # this one fails: half of its slices are gone, and one file is damaged
    paths = write_series(root / "sub-2", limb(), positions(24, 2), **other)
    for path in paths[3:9]:
        path.unlink()
    paths[0].write_bytes(paths[0].read_bytes()[:400])
    return root


def check_clean(text: str, source: str) -> None:
    for secret in PLANTED:
        assert secret.lower() not in text.lower(), f"{secret} in {source}"


def test_no_output_log_or_error_holds_the_person(scans, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()", "predict", str(scans), str(out)]
    environment = {**os.environ, "JDM_SEG_DEBUG": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [*command, "--model", "threshold"], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    check_clean(done.stdout, "stdout")
    check_clean(done.stderr, "stderr")
    assert done.returncode == 1
    assert "sub-2: expected every slice, found" in done.stderr
    assert (out / "sub-1" / "mask.nii.gz").is_file()
    files = [path for path in out.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".gz":
            import gzip

            data = gzip.decompress(data)
        check_clean(data.decode("latin-1"), path.name)
        check_clean(path.relative_to(out).as_posix(), "a file's name")


def test_what_is_kept_in_memory_prints_nothing_of_the_person(scans, caplog):
    caplog.set_level(logging.DEBUG)
    cases = find_dicom_cases(scans, "ct")
    series = find_series(scans / "sub-1")
    choice = choose_series(series, "ct")
    scan = read_series(choice.series)
    texts = [repr(cases[0].case_id), repr(series), repr(choice), repr(scan.notes), repr(scan.acquisition)]
    texts += [repr(scan.sources), str(series[0].listing()), repr(read_case(cases[0]).facts), caplog.text]
    for text in texts:
        check_clean(text, text[:60])
    assert series[0].listing()["description"] == "Leg - - -"
    assert scan.acquisition.contrast_agent is True


def test_errors_of_damaged_values_quote_nothing(tmp_path):
    paths = write_series(tmp_path, limb()[:1], positions(1, 2), **PERSON)
    data = paths[0].read_bytes()
    # the name where a number should be
    paths[0].write_bytes(data.replace(b"IS\x02\x001 ", b"IS\x02\x00Qu"))
    for series in find_series(tmp_path):
        check_clean(str(series.listing()), "listing")
    paths[0].write_bytes(data[: len(data) // 3])
    with pytest.raises(InputError) as raised:
        read_series(find_series(tmp_path)[0])
    check_clean(str(raised.value), "the error")


def test_a_folder_named_after_the_person_is_pointed_out(tmp_path):
    write_series(tmp_path / "ZYXWINTER_Q", limb(), positions(24, 2), **PERSON)
    plain = read_case(find_dicom_cases(tmp_path / "ZYXWINTER_Q", "ct")[0])
    assert any("--hash-ids" in note for note in plain.scan.notes)
    check_clean(" ".join(plain.scan.notes), "notes")
    (case,) = find_dicom_cases(tmp_path / "ZYXWINTER_Q", "ct", hash_ids=True)
    assert "zyx" not in case.case_id.lower()
    assert not any("--hash-ids" in note for note in read_case(case).scan.notes)


def test_a_pseudonym_as_folder_is_no_matter(tmp_path):
    write_series(tmp_path / "sub-007", limb(), positions(24, 2), PatientName="sub-007", PatientID="sub-007")
    assert not read_case(find_dicom_cases(tmp_path / "sub-007", "ct")[0]).scan.notes


def test_burden_gets_the_physics(scans, tmp_path):
    import json

    from jdm_seg.baseline import ThresholdSegmenter
    from jdm_seg.inference.batch import predict_batch

    result = predict_batch(scans / "sub-1", tmp_path / "out", ThresholdSegmenter("ct"))
    assert [row["status"] for row in result.rows] == ["done"]
    burden = json.loads((tmp_path / "out" / "sub-1" / "burden.json").read_text(encoding="utf-8"))
    assert (burden["kv"], burden["kv_is_assumed"]) == ("100", False)
    assert burden["acquisition"]["kernel"] == "B30f"
    assert burden["acquisition"]["slice_thickness_mm"] == 2
    assert "series 1 read" in burden["acquisition"]["series"]
    forced = predict_batch(scans / "sub-1", tmp_path / "forced", ThresholdSegmenter("ct"), kv="120")
    assert not forced.failed
    burden = json.loads((tmp_path / "forced" / "sub-1" / "burden.json").read_text(encoding="utf-8"))
    assert burden["kv"] == "120"
