"""DICOM SEG out and in: voxels and corners against the source's own headers, highdicom's reader and dcmqi's files."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from jdm_seg.dicom.segmentation import CATEGORY, TYPE, Method, write_segmentation
from jdm_seg.dicom.segmentation_read import list_segments, read_segmentation, referenced_series
from jdm_seg.dicom.sr import write_structured_report
from jdm_seg.errors import GridMismatchError, InputError
from jdm_seg.lesions import Lesion
from jdm_seg.nrrd import read_nrrd
from jdm_seg.placement import place_on_grid
from jdm_seg.volume import Volume, read_volume

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

METHOD = Method("ct-small", "1.2")
ROWS, COLUMNS, SLICES = 7, 6, 5
ROW_MM, COLUMN_MM = 0.9, 0.7
COS, SIN = np.cos(0.3), np.sin(0.3)
# orientation (direction of growing column, then of growing row) and step from slice to slice, LPS mm
GEOMETRIES = {
    "axial": ((1, 0, 0, 0, 1, 0), (0, 0, 2.5)),
    "axial, head to feet": ((1, 0, 0, 0, 1, 0), (0, 0, -2.5)),
    "axial, feet first": ((-1, 0, 0, 0, 1, 0), (0, 0, 2.5)),
    "axial, prone": ((-1, 0, 0, 0, -1, 0), (0, 0, 2.5)),
    "sagittal": ((0, 1, 0, 0, 0, -1), (3.0, 0, 0)),
    "coronal": ((1, 0, 0, 0, 0, -1), (0, 3.0, 0)),
    "oblique": ((COS, SIN, 0, 0, 0, -1), (-2 * SIN, 2 * COS, 0)),
    "gantry tilt": ((1, 0, 0, 0, COS, SIN), (0, 0, 2.5)),
}


def series(orientation, step, *, first=(-20.0, 30.0, 100.0), patient="") -> list:
    """Headers of a CT series as a scanner writes them, one a slice."""
    headers = []
    uids = [pydicom.uid.generate_uid() for _ in range(3)]
    for number in range(SLICES):
        header = pydicom.Dataset()
        header.SOPClassUID, header.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = uids
        header.Modality, header.Rows, header.Columns = "CT", ROWS, COLUMNS
        header.PatientName, header.PatientID, header.PatientBirthDate = patient, patient, "20110203"
        header.AccessionNumber, header.InstitutionName = f"{patient}-ACC7788", f"{patient}-hospital"
        header.StudyDate, header.StudyTime, header.PatientSex = datetime.date(2020, 1, 2).strftime("%Y%m%d"), "", "F"
        header.ImageOrientationPatient = [round(float(v), 10) for v in orientation]
        header.ImagePositionPatient = [round(float(a + number * b), 10) for a, b in zip(first, step, strict=True)]
        header.PixelSpacing, header.SliceThickness = [ROW_MM, COLUMN_MM], 2.5
        headers.append(header)
    return headers


def affine_of(headers) -> np.ndarray:
    """RAS affine of the array (column, row, slice), from the first and last header by the standard's formula."""
    across, down = np.array(headers[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    first, last = (np.array(headers[end].ImagePositionPatient, dtype=float) for end in (0, -1))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * COLUMN_MM, down * ROW_MM
    affine[:3, 2], affine[:3, 3] = (last - first) / (len(headers) - 1), first
    affine[:2] *= -1
    return affine


def blob(seed: int = 0) -> np.ndarray:
    mask = np.random.default_rng(seed).random((COLUMNS, ROWS, SLICES)) < 0.3
    mask[:, :, 1] = False  # an empty plane between others
    return mask


@pytest.fixture(params=GEOMETRIES, ids=str)
def scan(request):
    headers = series(*GEOMETRIES[request.param])
    return headers, Volume(blob(), affine_of(headers), "case")


class TestRoundTrip:
    @pytest.mark.parametrize("encoding", ["binary", "labelmap", "lesions"])
    @pytest.mark.parametrize("canonical", [False, True])
    def test_the_mask_comes_back_voxel_for_voxel(self, scan, tmp_path, encoding, canonical):
        headers, mask = scan
        labels = Volume(np.cumsum(mask.array).reshape(mask.array.shape) % 3 * mask.array, mask.affine, "case")
        volume = mask if encoding == "binary" else labels
        written = volume.to_canonical() if canonical else volume
        write_segmentation(tmp_path / "s.dcm", written, headers, method=METHOD, encoding=encoding)
        back = read_segmentation(tmp_path / "s.dcm", volume.grid)
        np.testing.assert_array_equal(back.array, volume.array)

    def test_every_frame_lies_on_the_slice_it_refers_to(self, scan, tmp_path):
        headers, mask = scan
        write_segmentation(tmp_path / "s.dcm", mask.to_canonical(), headers, method=METHOD)
        written = pydicom.dcmread(tmp_path / "s.dcm")
        sources = {header.SOPInstanceUID: number for number, header in enumerate(headers)}
        seen = []
        shared = written.SharedFunctionalGroupsSequence[0]
        assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == headers[0].ImageOrientationPatient
        for frame, pixels in zip(written.PerFrameFunctionalGroupsSequence, written.pixel_array, strict=True):
            source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            number = sources[source]
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            assert position == pytest.approx(headers[number].ImagePositionPatient, abs=1e-6)
            # a frame is (row, column), as the scanner's own slice is
            np.testing.assert_array_equal(pixels.astype(bool), mask.array[:, :, number].T)
            seen.append(number)
        assert sorted(seen) == [0, 2, 3, 4], "the empty plane is left out, no other"
        assert referenced_series(written) == (headers[0].SeriesInstanceUID,)
        assert len(written.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SLICES

    @pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "gantry tilt"])
    def test_highdicom_reads_the_same_voxels_at_the_same_place(self, name, tmp_path):
        import highdicom

        headers = series(*GEOMETRIES[name])
        mask = Volume(blob(), affine_of(headers), "case")
        write_segmentation(tmp_path / "s.dcm", mask, headers, method=METHOD)
        volume = highdicom.seg.segread(tmp_path / "s.dcm").get_volume(
            combine_segments=True, allow_missing_positions=True
        )
        affine = volume.affine.copy()
        affine[:2] *= -1
        theirs = Volume(np.asarray(volume.array), affine, "theirs")
        np.testing.assert_array_equal(place_on_grid(theirs, mask.grid) > 0, mask.array)

    def test_without_the_scan_the_grid_is_the_frames_own(self, scan, tmp_path):
        headers, mask = scan
        write_segmentation(tmp_path / "s.dcm", mask, headers, method=METHOD)
        alone = read_segmentation(tmp_path / "s.dcm")
        assert alone.grid.spacing == pytest.approx(mask.spacing, abs=1e-6)
        np.testing.assert_array_equal(place_on_grid(alone, mask.grid) > 0, mask.array)

    def test_an_empty_mask_is_a_valid_segmentation(self, scan, tmp_path):
        headers, mask = scan
        write_segmentation(tmp_path / "s.dcm", Volume(np.zeros_like(mask.array), mask.affine), headers, method=METHOD)
        assert not read_segmentation(tmp_path / "s.dcm", mask.grid).array.any()

    def test_a_grid_of_its_own_keeps_its_place(self, tmp_path):
        # as after stitching stations: other slices, other voxels, same frame of reference
        headers = series(*GEOMETRIES["axial"])
        affine = np.diag([-1.5, -1.5, 2.0, 1])
        affine[:3, 3] = 20, -30, 97
        mask = Volume(blob(3), affine, "joined")
        write_segmentation(tmp_path / "s.dcm", mask, headers, method=METHOD)
        np.testing.assert_array_equal(read_segmentation(tmp_path / "s.dcm", mask.grid).array > 0, mask.array)

    def test_enhanced_multi_frame_source(self, scan, tmp_path):
        headers, mask = scan
        source = enhanced(headers)
        write_segmentation(tmp_path / "s.dcm", mask, [source], method=METHOD)
        np.testing.assert_array_equal(read_segmentation(tmp_path / "s.dcm", mask.grid).array > 0, mask.array)
        frames = pydicom.dcmread(tmp_path / "s.dcm").PerFrameFunctionalGroupsSequence
        numbers = [f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for f in frames]
        assert sorted(numbers) == [1, 3, 4, 5]


def enhanced(headers):
    """The same series as one multi-frame object, its orientation stated frame by frame as some scanners do."""
    source = pydicom.Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "Rows", "Columns"):
        setattr(source, keyword, headers[0][keyword].value)
    source.SOPClassUID, source.SOPInstanceUID = pydicom.uid.EnhancedCTImageStorage, pydicom.uid.generate_uid()
    source.NumberOfFrames = len(headers)
    source.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    frames = []
    for header in headers:
        frame = pydicom.Dataset()
        for group, keywords in {
            "PlanePositionSequence": ["ImagePositionPatient"],
            "PlaneOrientationSequence": ["ImageOrientationPatient"],
            "PixelMeasuresSequence": ["PixelSpacing", "SliceThickness"],
        }.items():
            item = pydicom.Dataset()
            for keyword in keywords:
                setattr(item, keyword, header[keyword].value)
            setattr(frame, group, [item])
        frames.append(frame)
    source.PerFrameFunctionalGroupsSequence = frames
    return source


class TestContent:
    @pytest.fixture
    def written(self, tmp_path):
        headers = series(*GEOMETRIES["axial"], patient="MAGNUS^ANNA")
        mask = Volume(blob(), affine_of(headers), "case")
        write_segmentation(tmp_path / "s.dcm", mask, headers, method=METHOD, patient_id="sub-01")
        return tmp_path / "s.dcm", headers, mask

    def test_codes_and_algorithm(self, written):
        (segment,) = pydicom.dcmread(written[0]).SegmentSequence
        category, kind = segment.SegmentedPropertyCategoryCodeSequence[0], segment.SegmentedPropertyTypeCodeSequence[0]
        assert (category.CodeValue, category.CodingSchemeDesignator, category.CodeMeaning) == CATEGORY
        assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == TYPE
        assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("calcinosis", "AUTOMATIC")
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("ct-small", "1.2")

    def test_the_codes_are_in_the_dictionary_of_the_standard(self):
        from pydicom.sr.codedict import codes

        assert codes.SCT.PathologicCalcificationCalcifiedStructure.value == TYPE[0]
        assert codes.SCT.MorphologicallyAbnormalStructure.value == CATEGORY[0]

    def test_nothing_of_the_person_is_in_it(self, written):
        content = written[0].read_bytes()
        for secret in (b"MAGNUS", b"20110203", b"ACC7788", b"hospital", b"20200102"):
            assert secret not in content
        assert pydicom.dcmread(written[0]).PatientID == "sub-01"

    def test_an_archive_gets_the_patient_on_request(self, written, tmp_path):
        _, headers, mask = written
        write_segmentation(tmp_path / "p.dcm", mask, headers, method=METHOD, keep_patient=True)
        kept = pydicom.dcmread(tmp_path / "p.dcm")
        assert (kept.PatientName, kept.AccessionNumber) == ("MAGNUS^ANNA", "MAGNUS^ANNA-ACC7788")

    def test_same_mask_same_uids_other_mask_other_uids(self, written, tmp_path):
        path, headers, mask = written
        again = write_segmentation(tmp_path / "a.dcm", mask, headers, method=METHOD)
        other = write_segmentation(tmp_path / "b.dcm", Volume(~mask.array, mask.affine), headers, method=METHOD)
        first = pydicom.dcmread(path)
        assert (first.SOPInstanceUID, first.SeriesInstanceUID) == (again.SOPInstanceUID, again.SeriesInstanceUID)
        assert first.SOPInstanceUID != other.SOPInstanceUID

    def test_one_segment_a_lesion(self, written, tmp_path):
        _, headers, mask = written
        labels = Volume(np.where(mask.array, 2, 0), mask.affine)
        labels.array[0, 0, 0] = 1
        write_segmentation(tmp_path / "l.dcm", labels, headers, method=METHOD, encoding="lesions")
        assert [one.name for one in list_segments(pydicom.dcmread(tmp_path / "l.dcm"))] == [
            "calcinosis 1",
            "calcinosis 2",
        ]

    def test_sources_it_cannot_refer_to(self, written, tmp_path):
        _, headers, mask = written
        with pytest.raises(InputError, match="the source series, found no DICOM headers"):
            write_segmentation(tmp_path / "x.dcm", mask, [], method=METHOD)
        del headers[0].FrameOfReferenceUID
        for header in headers[1:]:
            del header.FrameOfReferenceUID
        with pytest.raises(InputError, match="found no FrameOfReferenceUID"):
            write_segmentation(tmp_path / "x.dcm", mask, headers, method=METHOD)
        assert not (tmp_path / "x.dcm").exists()


class TestStructuredReport:
    LESIONS = (
        Lesion(1, 120.5, 6.1, 9.25, 0, 0, 0, mean_hu=431.5),
        Lesion(2, 4.0, 2.0, 2.5, 0, 0, 0),  # from STIR: no HU
    )

    @pytest.fixture
    def segmentation(self, tmp_path):
        headers = series(*GEOMETRIES["axial"], patient="MAGNUS^ANNA")
        labels = np.zeros((COLUMNS, ROWS, SLICES), np.uint16)
        labels[1:3, 1:3, 2:4], labels[5, 5, 0] = 1, 2
        volume = Volume(labels, affine_of(headers), "case")
        return write_segmentation(tmp_path / "s.dcm", volume, headers, method=METHOD, encoding="lesions")

    def test_each_lesion_has_its_measurements_units_and_segment(self, segmentation, tmp_path):
        import highdicom

        write_structured_report(tmp_path / "r.dcm", segmentation, self.LESIONS, method=METHOD)
        assert b"MAGNUS" not in (tmp_path / "r.dcm").read_bytes()
        report = highdicom.sr.srread(tmp_path / "r.dcm").content
        groups = report.get_volumetric_roi_measurement_groups()
        found = [
            {(m.name.value, m.name.scheme_designator, m.unit.value): m.value for m in group.get_measurements()}
            for group in groups
        ]
        volume, axis, hu = (
            ("118565006", "SCT", "mm3"),
            ("103339001", "SCT", "mm"),
            ("112031", "DCM", "[hnsf'U]"),
        )
        assert found == [{volume: 120.5, axis: 9.25, hu: 431.5}, {volume: 4.0, axis: 2.5}]
        references = [group.reference_type.meaning for group in groups]
        assert references == ["Referenced Segment"] * 2
        uids = [group.tracking_uid for group in groups]
        assert len(set(uids)) == 2

    def test_a_lesion_without_a_segment_is_refused(self, segmentation, tmp_path):
        with pytest.raises(InputError, match="a segment for lesion 7"):
            write_structured_report(tmp_path / "r.dcm", segmentation, [Lesion(7, 1, 1, 1, 0, 0, 0)], method=METHOD)


class TestOtherGrids:
    def test_voxels_that_are_not_the_scans_are_refused(self, tmp_path):
        headers = series(*GEOMETRIES["axial"])
        mask = Volume(blob(), affine_of(headers), "case")
        write_segmentation(tmp_path / "s.dcm", mask, headers, method=METHOD)
        moved = mask.affine.copy()
        moved[0, 3] += 0.3 * COLUMN_MM
        with pytest.raises(GridMismatchError, match="a mask on the voxels of the image's grid"):
            read_segmentation(tmp_path / "s.dcm", Volume(mask.array, moved).grid)
        with pytest.raises(GridMismatchError, match="mask voxels outside the image"):
            read_segmentation(tmp_path / "s.dcm", Volume(mask.array[:, :3], mask.affine).grid)


class TestDamaged:
    def test_cut_files_say_so(self, tmp_path):
        headers = series(*GEOMETRIES["axial"])
        mask = Volume(blob(), affine_of(headers), "case")
        write_segmentation(tmp_path / "s.dcm", mask, headers, method=METHOD)
        content = (tmp_path / "s.dcm").read_bytes()
        for length in range(0, len(content) - 8, 97):
            (tmp_path / "cut.dcm").write_bytes(content[:length])
            with pytest.raises(InputError, match=r"cut\.dcm: expected"):
                read_segmentation(tmp_path / "cut.dcm", mask.grid)


@pytest.mark.real
class TestOtherTools:
    """dcmqi wrote each SEG from the NRRD beside it; its labels are the truth."""

    @pytest.mark.parametrize(
        ("segmentation", "truth"),
        [
            ("liver.dcm", {1: ("liver_seg.nrrd", 1)}),
            ("23x38x3/seg/label.seg", {1: ("23x38x3/nrrd/label.nrrd", 1)}),
            ("24x38x3/seg/label.seg", {1: ("24x38x3/nrrd/label.nrrd", 1)}),
            ("sparse-labelmap-noppv.dcm", {1: ("sparse_labelmap_noppv_seg.nrrd", 1)}),
            ("sparse-labelmap-ppv5.dcm", {1: ("sparse_labelmap_ppv5_seg.nrrd", 1)}),
            (
                "partial_overlaps.dcm",
                {
                    number: (f"partial_overlaps-{file}.nrrd", number)
                    for number, file in ((1, 1), (2, 2), (3, 3), (4, 1), (5, 1))
                },
            ),
        ],
    )
    def test_files_of_dcmqi(self, real_data, segmentation, truth):
        folder = real_data / "dicom" / "dcmqi-ct-seg"
        for number, (name, value) in truth.items():
            (expected,) = read_nrrd(folder / name).layers
            found = read_segmentation(folder / segmentation, expected.grid, wanted=str(number))
            np.testing.assert_array_equal(found.array > 0, expected.array == value)

    def test_fractional_and_overlapping_files_of_highdicom(self, real_data):
        import highdicom

        for path in sorted((real_data / "dicom" / "highdicom").glob("seg_image_ct_*.dcm")):
            theirs = highdicom.seg.segread(path)
            for number in theirs.segment_numbers:
                frames = pydicom.dcmread(path).pixel_array.reshape(-1, theirs.Rows, theirs.Columns)
                groups = theirs.PerFrameFunctionalGroupsSequence
                shared = theirs.SharedFunctionalGroupsSequence[0]
                half = theirs.MaximumFractionalValue / 2 if theirs.SegmentationType == "FRACTIONAL" else 1
                voxels = sum(
                    int((frame >= half).sum())
                    for frame, group in zip(frames, groups, strict=True)
                    if (group if "SegmentIdentificationSequence" in group else shared)
                    .SegmentIdentificationSequence[0]
                    .ReferencedSegmentNumber
                    == number
                )
                assert int((read_segmentation(path, wanted=str(number)).array > 0).sum()) == voxels

    def test_a_slide_is_refused(self, real_data):
        path: Path = real_data / "dicom" / "highdicom" / "seg_image_sm_control.dcm"
        with pytest.raises(InputError, match="such as on a slide"):
            read_segmentation(path, wanted="all")

    def test_a_segment_is_chosen_by_name(self, real_data):
        path = real_data / "dicom" / "dcmqi-ct-seg" / "partial_overlaps.dcm"
        with pytest.raises(InputError, match=r"expected a segment named calcinosis, found 1 'GREEN' \(Tissue\), 2 "):
            read_segmentation(path)
        assert read_segmentation(path, wanted="green").array.sum() == read_segmentation(path, wanted="1").array.sum()

    def test_predict_writes_them_beside_its_tables(self, real_data, tmp_path):
        from jdm_seg.baseline import ThresholdSegmenter
        from jdm_seg.inference.batch import BatchOptions, predict_batch

        source = real_data / "dicom" / "sts-028" / "CT"
        alone = BatchOptions(dicom_seg=True)
        (row,) = predict_batch(source, tmp_path, ThresholdSegmenter("ct"), options=alone).rows
        assert not (tmp_path / row["case_id"] / "measurements.dcm").exists()
        options = BatchOptions(dicom_seg=True, dicom_sr=True, keep_patient=True)
        (row,) = predict_batch(source, tmp_path, ThresholdSegmenter("ct"), options=options).rows
        assert row["status"] == "done", row["error"]
        folder = tmp_path / row["case_id"]
        mask = read_volume(folder / "mask.nii.gz")
        back = read_segmentation(folder / "segmentation.dcm", mask.grid)
        np.testing.assert_array_equal(back.array > 0, mask.array > 0)
        lesions = read_segmentation(folder / "lesions.dcm", mask.grid)
        np.testing.assert_array_equal(lesions.array, read_volume(folder / "lesions.nii.gz").array)
        groups = pydicom.dcmread(folder / "measurements.dcm").ContentSequence
        assert groups, "a report with content"
        for fewer in (options, alone):
            (kept,) = predict_batch(source, tmp_path, ThresholdSegmenter("ct"), options=fewer).rows
            assert kept["status"] == "kept"
