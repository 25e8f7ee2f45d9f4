"""Pages of results: what they say is what is on disk, and pictures show it at the right place."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.errors import CaseNotFoundError
from jdm_seg.evaluate import compare_folders
from jdm_seg.inference.batch import predict_batch
from jdm_seg.report import write_report
from jdm_seg.report.drawing import area_path, encode_png, outline_path, to_grey
from jdm_seg.report.pictures import AXIAL, CORONAL, SAGITTAL, LesionPoints, lesion_slices, projections, slice_of
from jdm_seg.report.tables import read_json
from jdm_seg.report.viewer import coarse_affine, strides_for, viewer_data
from jdm_seg.tracking.files import track_folders
from jdm_seg.volume import Volume, write_volume

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])
AFFINE[:3, 3] = (-40.0, -30.0, 100.0)
BALLS = (((20, 20, 20), 4), ((34, 24, 45), 3), ((15, 28, 60), 2))
"""Centre and radius in voxels: three deposits in a cylinder of tissue, away from any bone."""


def phantom() -> np.ndarray:
    x, y, z = np.ogrid[:54, :44, :80]
    scan = np.full((54, 44, 80), -1000, np.int16)
    scan[np.broadcast_to((x - 27) ** 2 / 22**2 + (y - 22) ** 2 / 18**2 < 1, scan.shape)] = 50
    scan += np.random.default_rng(0).integers(-10, 11, scan.shape).astype(np.int16)
    for (i, j, k), radius in BALLS:
        scan[(x - i) ** 2 + (y - j) ** 2 + (z - k) ** 2 <= radius**2] = 600
    return scan


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two scans, one of them unreadable, segmented; evaluated; tracked against itself."""
    root = tmp_path_factory.mktemp("report")
    (root / "scans").mkdir()
    write_volume(root / "scans" / "a & <b>.nii.gz", phantom(), Volume(phantom(), AFFINE))
    write_volume(root / "scans" / "second.nii.gz", phantom()[::-1], Volume(phantom(), AFFINE))
    (root / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    predict_batch(root / "scans", root / "out", ThresholdSegmenter("ct"))
    return root


@pytest.fixture(scope="module")
def case_page(made) -> str:
    write_report(made / "out", made / "scans")
    return (made / "out" / "second" / "report.html").read_text(encoding="utf-8")


def test_png_holds_the_pixels():
    grey = np.random.default_rng(1).integers(0, 256, (7, 5), dtype=np.uint8)
    data = encode_png(grey)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    begin = data.index(b"IDAT") + 4
    lines = np.frombuffer(zlib.decompress(data[begin : data.index(b"IEND") - 8]), np.uint8).reshape(7, 6)
    assert (lines[:, 0] == 2).all()
    assert np.array_equal(np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8), grey)
    assert np.array_equal(np.rint(imread(io.BytesIO(data)) * 255).astype(np.uint8), grey)


def test_windows_clip_and_round():
    assert to_grey(np.array([-200.0, -100.0, 400.0, 900.0, 5000.0]), (-100.0, 900.0)).tolist() == [0, 0, 128, 255, 255]


def test_outline_of_an_l_by_hand():
    mask = np.array([[1, 0], [1, 1]], bool)
    drawn = sorted(re.findall(r"M[^M]+", outline_path(mask)))
    # edges of the three unit squares, joined where they continue
    assert drawn == sorted(["M0 0H1", "M1 1H2", "M0 2H2", "M0 0V2", "M1 0V1", "M2 1V2"])
    assert area_path(mask, (10, 20)) == "M20 10H21v1H20zM20 11H22v1H20z"
    assert outline_path(np.zeros((3, 3), bool)) == ""


def test_planes_are_seen_as_radiologists_do():
    """One bright voxel at the patient's right, front and head must show left, up (axial) and up."""
    scan = np.zeros((3, 4, 5))
    scan[2, 3, 4] = 1  # RAS: right, anterior, superior
    assert np.argwhere(slice_of(scan, AXIAL, 4)).tolist() == [[0, 0]]
    assert np.argwhere(slice_of(scan, CORONAL, 3)).tolist() == [[0, 0]]
    assert np.argwhere(slice_of(scan, SAGITTAL, 2)).tolist() == [[0, 3]]  # front on the right


def test_shadows_lie_where_the_lesion_is():
    labels = np.zeros((10, 12, 14), np.uint16)
    labels[7:9, 2:5, 10:12] = 1
    labels[1, 1, 1] = 2
    points = LesionPoints.of(Volume(labels, np.diag([1.0, 2.0, 3.0, 1.0])))
    coronal, sagittal = projections(None, points, "ct")
    assert [s.number for s in coronal.shadows] == [1, 2]
    # columns 10-1-8 .. 10-1-7, rows 14-1-11 .. 14-1-10
    assert coronal.shadows[0].area == "M1 2H3v1H1zM1 3H3v1H1z"
    assert (coronal.shadows[0].column, coronal.shadows[0].row) == (2.0, 3.0)
    assert sagittal.shadows[0].area == "M2 2H5v1H2zM2 3H5v1H2z"
    assert coronal.size_mm == (10.0, 42.0)
    assert coronal.url is None


def test_the_middle_of_a_ring_is_on_the_ring():
    labels = np.zeros((9, 9, 3), np.uint16)
    labels[0, :, 1] = labels[8, :, 1] = labels[:, 0, 1] = 1
    points = LesionPoints.of(Volume(labels, np.eye(4)))
    assert labels[points.middle(1)] == 1


def test_slices_go_through_the_lesion_and_show_its_outline():
    scan = phantom()
    labels = np.zeros(scan.shape, np.uint16)
    labels[(scan > 400)] = 1
    points = LesionPoints.of(Volume(labels, AFFINE))
    for one in lesion_slices(scan, labels, points, {1: 5.0}, "ct")[1]:
        rows, columns = one.picture.rows, one.picture.columns
        data = base64.b64decode(one.picture.url.split(",")[1])
        begin = data.index(b"IDAT") + 4
        lines = np.frombuffer(zlib.decompress(data[begin : data.index(b"IEND") - 8]), np.uint8)
        grey = np.cumsum(lines.reshape(rows, columns + 1)[:, 1:], axis=0, dtype=np.uint8)
        column, row = one.cross
        # 600 HU in a window of -160 to 640
        assert grey[int(row), int(column)] == round(255 * 760 / 800)
        assert one.picture.shadows[0].outline
        assert 44 <= columns * one.picture.pixel_mm[0] <= 50


@pytest.mark.parametrize("most", [200_000, 30_000, 2_000])
def test_no_lesion_is_lost_in_a_coarse_viewer(most):
    scan = phantom()
    labels = np.zeros(scan.shape, np.uint16)
    labels[20, 20, 20] = 2
    labels[30:36, 20:26, 40:46] = 1
    scan[20, 20, 20] = 900
    volume = Volume(scan, AFFINE)
    data = viewer_data(volume, LesionPoints.of(Volume(labels, AFFINE)), "ct", max_voxels=most)
    assert np.prod(data.shape) <= most
    images = [nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text))) for text in (data.scan, data.lesions)]
    grey, numbers = images[0].get_fdata(), np.asarray(images[1].dataobj)
    assert set(np.unique(numbers)) == {0, 1, 2}
    where = tuple(np.argwhere(numbers == 2)[0])
    assert grey[where] == pytest.approx(900, abs=2.6)  # the lesion does not fade; half a step of one byte
    place = images[1].affine @ [*where, 1]
    true = AFFINE @ [20, 20, 20, 1]
    assert (np.abs(place - true)[:3] <= np.array(data.spacing) / 2 + 1e-5).all()
    assert images[0].header.get_zooms() == pytest.approx(data.spacing)


def test_strides_make_voxels_as_cubic_as_can_be():
    assert strides_for((512, 512, 300), (0.75, 0.75, 3.0), 20_000_000).tolist() == [2, 2, 1]
    assert strides_for((100, 100, 100), (1.0, 1.0, 1.0), 10**6).tolist() == [1, 1, 1]


def test_a_coarse_voxel_lies_in_the_middle_of_its_block():
    coarse = coarse_affine(AFFINE, np.array([2, 3, 1]))
    assert (coarse @ [0, 0, 0, 1])[:3] == pytest.approx((AFFINE @ [0.5, 1.0, 0.0, 1])[:3])


def test_a_case_page_says_what_is_on_disk(made, case_page):
    folder = made / "out" / "second"
    with (folder / "lesions.csv").open() as stream:
        lesions = list(csv.DictReader(stream))
    burden = read_json(folder / "burden.json")
    assert burden["lesion_count"] == len(lesions) == 3
    assert len(re.findall(r'<tr data-lesion="\d+"', case_page)) == 3
    for row in lesions:
        assert f'data-value="{row["volume_mm3"]}"' in case_page
    assert all(warning.split("'")[0] in case_page for warning in burden["warnings"])
    assert "not a medical device" in case_page
    assert "Detectability floor" in case_page
    assert burden["prediction"]["scan_sha256"] in case_page
    assert case_page.count("<template id=") == 3
    assert len(case_page) < 25e6


def test_places_of_the_viewer_are_in_the_lesion(made, case_page):
    image = nib.load(made / "out" / "second" / "lesions.nii.gz")
    labels = np.asarray(image.dataobj)
    for number, place in re.findall(r'<tr data-lesion="(\d+)" data-place="([^"]+)"', case_page):
        index = np.rint(np.linalg.inv(image.affine) @ [*map(float, place.split()), 1])[:3].astype(int)
        assert labels[tuple(index)] == int(number)


def test_the_batch_page_links_every_case_and_names_what_failed(made, case_page):
    page = (made / "out" / "report.html").read_text(encoding="utf-8")
    assert 'href="second/report.html"' in page
    assert 'href="a%20%26%20%3Cb%3E/report.html"' in page
    assert "<b>" not in page.split("</style>")[1]
    assert "broken" in page
    assert "1 failed" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"https?://", page)


def test_complete_cases_stay_complete_with_their_page(made, case_page):
    rows = predict_batch(made / "scans", made / "out", ThresholdSegmenter("ct")).rows
    assert {row["case_id"]: row["status"] for row in rows} == {
        "a & <b>": "kept",
        "broken": "failed",
        "second": "kept",
    }
    assert (made / "out" / "second" / "report.html").is_file()


def test_without_the_scan_the_page_says_so(made, tmp_path):
    page = write_report(made / "out" / "second").read_text(encoding="utf-8")
    assert "--scans" in page
    assert 'id="viewer"' not in page
    assert "data:image/png" in page  # the preview that predict made


def test_another_scan_is_not_shown(made, tmp_path):
    write_volume(tmp_path / "second.nii.gz", phantom(), Volume(phantom(), AFFINE))
    page = write_report(made / "out" / "second", tmp_path).read_text(encoding="utf-8")
    assert "not the one that was segmented" in page
    assert 'id="viewer"' not in page


def test_scans_of_other_cases_are_refused(made, tmp_path):
    write_volume(tmp_path / "other.nii.gz", phantom(), Volume(phantom(), AFFINE))
    with pytest.raises(CaseNotFoundError, match="give the same path as to predict"):
        write_report(made / "out", tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CaseNotFoundError, match="run one of them first"):
        write_report(tmp_path)


def test_the_change_page(made, tmp_path):
    track_folders(made / "out" / "second", made / "out" / "second", tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    change = read_json(tmp_path / "change.json")
    assert change["fates"]["stable"] == 3
    assert "<dt>stable</dt><dd>3</dd>" in page
    assert page.count('<th scope="row" class="text">stable</th>') == 3
    assert "data:image/png" in page


def test_the_evaluation_page(made, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name, end in (("second", 50), ("a & <b>", 65)):
        image = nib.load(made / "out" / name / "mask.nii.gz")
        array = np.asarray(image.dataobj).copy()
        array[:, :, 40:end] = 0  # one ball, and in the other case two, are no lesions there: false
        nib.save(nib.Nifti1Image(array, image.affine), masks / f"{name}.nii.gz")
    compare_folders(made / "out", masks, masks, tmp_path / "evaluation")
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    bare = write_report(tmp_path / "evaluation").read_text(encoding="utf-8")
    assert "2 found, 0 missed, 1 false" in bare  # of the maps of lesions
    assert "1 found, 0 missed, 2 false" in bare
    full = write_report(tmp_path / "evaluation", made / "scans", predictions=made / "out", references=masks).read_text(
        encoding="utf-8"
    )
    assert full.count('<image href="data:image/png') == 2
    assert full.count("Bland-Altman plot of 2 cases") == 1
    found = summary["recall_by_size"]["3-10 mm"]
    assert f"{found['found']} of {found['lesions']}" in full
    assert "against" in full
    assert summary["figures"]["lesion_fp"]["mean"] == 1.5
