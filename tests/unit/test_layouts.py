"""Data sets between layouts: bytes of scans, voxels of masks, ids and splits."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from jdm_seg.cases import SPLITS, Case, Manifest, read_manifest, write_manifest
from jdm_seg.errors import CaseNotFoundError, GridMismatchError, InputError
from jdm_seg.layouts.convert import LAYOUTS, convert
from jdm_seg.layouts.read import read_layout
from jdm_seg.masks import read_labels
from jdm_seg.nrrd import read_nrrd, write_seg_nrrd
from jdm_seg.placement import place_on_grid
from jdm_seg.segments import Segment, choose_segments
from jdm_seg.volume import Grid, Volume, read_volume, write_volume

nrrd = pytest.importorskip("nrrd")

SHAPE = (6, 5, 4)
AFFINE = np.array([[-0.9, 0.1, 0, 40], [0.1, 0.9, 0, -30], [0, 0, 2.5, 100], [0, 0, 0, 1.0]])


def make_case(folder: Path, case_id: str, subject: str = "", seed: int = 0, ending: str = ".nii.gz") -> Case:
    rng = np.random.default_rng(seed)
    scan = Volume(rng.integers(-900, 900, SHAPE).astype(np.int16), AFFINE)
    image, label = folder / f"{case_id}{ending}", folder / "masks" / f"{case_id}.nii.gz"
    write_volume(image, scan.array, scan)
    labels = np.zeros(SHAPE, np.uint16)
    labels[0, :2, 0], labels[4:, 4, 3] = 1, 2
    write_volume(label, labels, scan)
    return Case(case_id, subject or case_id, "ct", image, label)


@pytest.fixture
def source(tmp_path):
    """A datalist with every split, two scans of one person, and a scan without a mask."""
    folder = tmp_path / "data"
    first = make_case(folder, "a_01", "anna", 1)
    second = make_case(folder, "a_02", "anna", 2)
    third = make_case(folder, "b.3", "b-3", 3, ".nii")
    fourth = make_case(folder, "c 4", "c", 4)
    fourth = Case("c 4", "c", "ct", fourth.image)
    manifest = Manifest({"training": (first, second), "validation": (third,), "testing": (fourth,)})
    write_manifest(folder / "datalist.json", manifest, modality="ct", label_rule="half a voxel")
    return folder


def bytes_of(path: Path) -> bytes:
    """Content of a scan, unpacked: a .nii that had to be packed must still be the same file inside."""
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def facts(data) -> list:
    return sorted((entry.case_id, entry.subject_id, entry.split, entry.modality) for entry in data.entries)


class TestRoundTrip:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("link", [False, True])
    def test_bytes_voxels_ids_and_splits_stay(self, source, tmp_path, layout, link):
        before = read_layout(source)
        convert(source, tmp_path / "out", layout, link=link)
        there = tmp_path / "out" / "Dataset501_Calcinosis" if layout == "nnunet" else tmp_path / "out"
        convert(there, tmp_path / "back", "monai")
        after = read_layout(tmp_path / "back")
        assert facts(after) == facts(before)
        originals = {entry.case_id: entry for entry in before.entries}
        for data in (read_layout(there), after):
            for entry in data.entries:
                original = originals[entry.case_id]
                assert bytes_of(entry.image) == bytes_of(original.image)
                if original.image.name.endswith(".nii.gz"):
                    assert entry.image.read_bytes() == original.image.read_bytes()
                if original.label is None and layout == "slicer":
                    continue  # gets an empty segment to draw into
                assert (entry.label is None) == (original.label is None)
                if entry.label is not None:
                    truth = read_volume(original.label)
                    labels = read_labels(entry.label, truth.grid, wanted=data.wanted)
                    assert_array_equal(labels.array > 0, truth.array > 0)
        assert list(there.rglob("*.part")) == []

    @pytest.mark.parametrize("layout", ["nifti", "monai", "bids", "slicer"])
    def test_numbers_of_lesions_stay_on_request(self, source, tmp_path, layout):
        convert(source, tmp_path / "out", layout, instances=True)
        convert(tmp_path / "out", tmp_path / "back", "nifti", instances=True)
        for case_id in ("a_01", "b.3"):
            back = read_volume(tmp_path / "back" / "labels" / f"{case_id}.nii.gz")
            assert_array_equal(back.array, read_volume(source / "masks" / f"{case_id}.nii.gz").array)

    def test_a_datalist_keeps_its_own_facts(self, source, tmp_path):
        convert(source, tmp_path / "out", "monai")
        assert json.loads((tmp_path / "out" / "datalist.json").read_text())["label_rule"] == "half a voxel"

    def test_links_lead_to_the_scans(self, source, tmp_path):
        convert(source, tmp_path / "out", "nifti", link=True)
        image = tmp_path / "out" / "images" / "a_01.nii.gz"
        assert image.is_symlink()
        assert image.resolve() == (source / "a_01.nii.gz").resolve()

    # what may be an id: no slash, no control character, no dot in front
    names = st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\"), min_size=1, max_size=12
    )

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(names=st.lists(names, min_size=1, max_size=3, unique=True), subject=names, layout=st.sampled_from(LAYOUTS))
    def test_any_name_stays(self, tmp_path_factory, names, subject, layout):
        folder = tmp_path_factory.mktemp("names")
        names = [name for name in names if not name.startswith(".") and len(name.encode()) < 60]
        if not names:
            return
        cases = []
        for number, name in enumerate(names):
            plain = make_case(folder, f"file{number}", seed=number)
            cases.append(Case(name, subject, "ct", plain.image, plain.label))
        write_manifest(folder / "datalist.json", Manifest({"training": tuple(cases)}))
        convert(folder, folder / "out", layout)
        there = folder / "out" / "Dataset501_Calcinosis" if layout == "nnunet" else folder / "out"
        assert facts(read_layout(there)) == facts(read_layout(folder))


class TestNnunet:
    """The checks of nnunetv2/experiment_planning/verify_dataset_integrity.py."""

    def test_integrity(self, source, tmp_path):
        convert(source, tmp_path / "raw", "nnunet")
        folder = tmp_path / "raw" / "Dataset501_Calcinosis"
        about = json.loads((folder / "dataset.json").read_text())
        identifiers = {path.name[: -len("_0000.nii.gz")] for path in (folder / "imagesTr").iterdir()}
        assert about["numTraining"] == len(identifiers)
        assert {path.name for path in (folder / "labelsTr").iterdir()} == {f"{one}.nii.gz" for one in identifiers}
        allowed = set(about["labels"].values())
        assert allowed == set(range(len(allowed)))
        for one in identifiers:
            image = nib.load(folder / "imagesTr" / f"{one}_0000.nii.gz")
            label = nib.load(folder / "labelsTr" / f"{one}.nii.gz")
            assert image.shape == label.shape
            assert_array_equal(image.affine, label.affine)
            assert np.allclose(image.header.get_zooms(), label.header.get_zooms())
            assert set(np.unique(np.asarray(label.dataobj))) <= allowed
            assert not np.isnan(np.asarray(image.dataobj)).any()

    def test_a_foreign_data_set(self, source, tmp_path):
        convert(source, tmp_path / "raw", "nnunet")
        folder = tmp_path / "raw" / "Dataset501_Calcinosis"
        (folder / "cases.csv").unlink()
        data = read_layout(folder)
        assert {(e.case_id, e.subject_id, e.split) for e in data.entries} == {
            ("a_01", "a_01", "training"),
            ("a_02", "a_02", "training"),
            ("b.3", "b.3", "validation"),
            ("c 4", "c 4", "testing"),
        }
        about = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(
            json.dumps({**about, "labels": {"background": 0, "bone": 1, "Calcinosis": 2}})
        )
        assert read_layout(folder).wanted == "2"
        (folder / "dataset.json").write_text(json.dumps({**about, "labels": {"background": 0, "bone": 1, "fat": 2}}))
        with pytest.raises(InputError, match="a segment named calcinosis, found 1 'bone', 2 'fat'"):
            read_layout(folder)
        (folder / "dataset.json").write_text(json.dumps({**about, "channel_names": {"0": "CT", "1": "PET"}}))
        with pytest.raises(InputError, match="one channel, found CT, PET"):
            read_layout(folder)

    def test_what_neither_teaches_nor_counts(self, tmp_path):
        case = make_case(tmp_path, "a")
        ignore = np.zeros(SHAPE, np.uint8)
        ignore[0] = 1
        write_volume(tmp_path / "ignore.nii.gz", ignore, read_volume(case.image))
        case = Case("a", "a", "ct", case.image, case.label, ignore=tmp_path / "ignore.nii.gz")
        write_manifest(tmp_path / "datalist.json", Manifest({"training": (case,)}))
        convert(tmp_path, tmp_path / "raw", "nnunet")
        folder = tmp_path / "raw" / "Dataset501_Calcinosis"
        assert json.loads((folder / "dataset.json").read_text())["labels"] == {
            "background": 0,
            "calcinosis": 1,
            "ignore": 2,
        }
        values = read_volume(folder / "labelsTr" / "a.nii.gz").array
        truth = read_volume(case.label).array > 0
        assert_array_equal(values == 1, truth)
        assert_array_equal(values == 2, (ignore > 0) & ~truth)


class TestBids:
    def test_names_and_tables(self, source, tmp_path):
        convert(source, tmp_path / "out", "bids")
        out = tmp_path / "out"
        names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz"))
        assert names == [
            "derivatives/jdm_seg/sub-anna/ses-01/ct/sub-anna_ses-01_space-orig_label-L_mask.nii.gz",
            "derivatives/jdm_seg/sub-anna/ses-02/ct/sub-anna_ses-02_space-orig_label-L_mask.nii.gz",
            "derivatives/jdm_seg/sub-b3/ct/sub-b3_space-orig_label-L_mask.nii.gz",
            "sub-anna/ses-01/ct/sub-anna_ses-01_ct.nii.gz",
            "sub-anna/ses-02/ct/sub-anna_ses-02_ct.nii.gz",
            "sub-b3/ct/sub-b3_ct.nii.gz",
            "sub-c/ct/sub-c_ct.nii.gz",
        ]
        assert (out / "participants.tsv").read_text() == (
            "participant_id\tsubject_id\nsub-anna\tanna\nsub-b3\tb-3\nsub-c\tc\n"
        )
        scans = (out / "sub-b3" / "sub-b3_scans.tsv").read_text()
        assert scans == "filename\tcase_id\tsplit\tstratum\nct/sub-b3_ct.nii.gz\tb.3\tvalidation\tn/a\n"
        derivative = json.loads((out / "derivatives" / "jdm_seg" / "dataset_description.json").read_text())
        assert derivative["DatasetType"] == "derivative"
        assert derivative["GeneratedBy"][0]["Name"] == "jdm_seg"

    def test_a_derivative_alone(self, source, tmp_path):
        for case_id in ("a_01", "a_02"):
            truth = read_volume(source / "masks" / f"{case_id}.nii.gz")
            write_volume(tmp_path / "results" / case_id / "mask.nii.gz", (truth.array > 0).astype(np.uint8), truth)
            write_volume(tmp_path / "results" / case_id / "lesions.nii.gz", truth.array, truth)
        convert(tmp_path / "results", tmp_path / "out", "bids", instances=True)
        out = tmp_path / "out"
        assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
        names = sorted(path.name for path in out.rglob("*.nii.gz"))
        assert names[:2] == [
            "sub-a01_space-orig_label-L_mask.nii.gz",
            "sub-a01_space-orig_seg-calcinosis_dseg.nii.gz",
        ]
        table = next(out.rglob("sub-a01*_dseg.tsv")).read_text()
        assert table == "index\tname\n1\tcalcinosis 1\n2\tcalcinosis 2\n"
        back = read_layout(out)
        assert [(entry.case_id, entry.image) for entry in back.entries] == [("a_01", None), ("a_02", None)]
        convert(out, tmp_path / "nifti", "nifti", instances=True)
        truth = read_volume(source / "masks" / "a_01.nii.gz").array
        assert_array_equal(read_volume(tmp_path / "nifti" / "labels" / "a_01.nii.gz").array, truth)

    def test_subjects_that_look_alike_stay_apart(self, tmp_path):
        cases = tuple(make_case(tmp_path / "data", name, name, seed) for seed, name in enumerate(("a-1", "a1", "A_1")))
        write_manifest(tmp_path / "data" / "datalist.json", Manifest({"training": cases}))
        convert(tmp_path / "data", tmp_path / "out", "bids")
        labels = [line.split("\t")[0] for line in (tmp_path / "out" / "participants.tsv").read_text().splitlines()[1:]]
        assert len({label.lower() for label in labels}) == 3
        assert all(re.fullmatch(r"sub-[A-Za-z0-9]+", label) for label in labels)

    def test_masks_of_other_pipelines(self, source, tmp_path):
        convert(source, tmp_path / "out", "bids")
        derivatives = tmp_path / "out" / "derivatives"
        ours = derivatives / "jdm_seg" / "sub-b3" / "ct" / "sub-b3_space-orig_label-L_mask.nii.gz"
        theirs = derivatives / "hand" / "sub-b3" / "ct" / "sub-b3_desc-reader1_mask.nii.gz"
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(ours.read_bytes())
        with pytest.raises(InputError, match=r"b\.3: expected one mask, found sub-b3_desc-reader1_mask\S+ of hand and"):
            read_layout(tmp_path / "out")
        ours.unlink()
        (entry,) = [entry for entry in read_layout(tmp_path / "out").entries if entry.case_id == "b.3"]
        assert entry.label == theirs

    def test_stir_is_a_modality_of_bids(self, tmp_path):
        case = make_case(tmp_path / "data", "m")
        write_manifest(
            tmp_path / "data" / "datalist.json",
            Manifest({"training": (Case("m", "m", "stir", case.image, case.label),)}),
        )
        convert(tmp_path / "data", tmp_path / "out", "bids")
        assert (tmp_path / "out" / "sub-m" / "anat" / "sub-m_acq-STIR_T2w.nii.gz").is_file()
        assert not (tmp_path / "out" / ".bidsignore").exists()
        assert facts(read_layout(tmp_path / "out")) == [("m", "m", "training", "stir")]


class TestSlicer:
    def test_segments_are_named_coloured_and_in_place(self, source, tmp_path):
        convert(source, tmp_path / "out", "slicer")
        path = tmp_path / "out" / "a_01" / "a_01.seg.nrrd"
        array, header = nrrd.read(str(path))
        assert [header[f"Segment{n}_Name"] for n in (0, 1)] == ["calcinosis 1", "calcinosis 2"]
        assert header["Segment0_Color"] != header["Segment1_Color"]
        assert header["space"] == "left-posterior-superior"
        truth = read_volume(source / "masks" / "a_01.nii.gz")
        assert_array_equal(array, truth.array)
        # LPS to RAS by hand
        steps = header["space directions"].T * np.array([[-1], [-1], [1]])
        assert_array_equal(steps, truth.affine[:3, :3])
        assert_array_equal(header["space origin"] * [-1, -1, 1], truth.affine[:3, 3])

    def test_simpleitk_puts_every_voxel_at_the_same_place(self, source, tmp_path):
        sitk = pytest.importorskip("SimpleITK")
        convert(source, tmp_path / "out", "slicer")
        image = sitk.ReadImage(str(tmp_path / "out" / "a_01" / "a_01.seg.nrrd"))
        for index in ((0, 0, 0), (5, 4, 3)):
            x, y, z = image.TransformIndexToPhysicalPoint(index)
            assert np.allclose((-x, -y, z, 1), AFFINE @ [*index, 1], atol=1e-4)

    def test_a_corrected_segmentation_comes_back_as_the_label(self, source, tmp_path):
        """As Slicer saves: cropped to the segments, other names, one added, two layers for those that overlap."""
        convert(source, tmp_path / "correct", "slicer")
        path = tmp_path / "correct" / "a_01" / "a_01.seg.nrrd"
        layers = np.zeros((2, 2, 3, 4), np.uint8)
        layers[0, 0, 0, 0], layers[0, 1, 1, 1], layers[1, 1, 1, 1] = 1, 7, 1
        corner = AFFINE @ [3, 1, 0, 1]
        header = {
            "space": "left-posterior-superior",
            "kinds": ["list", "domain", "domain", "domain"],
            "space directions": np.vstack([[np.nan] * 3, (AFFINE[:3, :3] * [[-1], [-1], [1]]).T]),
            "space origin": corner[:3] * [-1, -1, 1],
            **{f"Segment{n}_ID": f"Segment_{n}" for n in range(3)},
            **{f"Segment{n}_Name": name for n, name in enumerate(("calcinosis left", "bone", "Calcification"))},
            **{f"Segment{n}_LabelValue": value for n, value in enumerate(("1", "7", "1"))},
            **{f"Segment{n}_Layer": layer for n, layer in enumerate(("0", "0", "1"))},
        }
        nrrd.write(str(path), layers, header)
        convert(tmp_path / "correct", tmp_path / "new", "monai")
        data = read_layout(tmp_path / "new")
        assert facts(data) == facts(read_layout(source))
        expected = np.zeros(SHAPE, np.uint8)
        expected[3, 1, 0] = expected[4, 2, 1] = 1
        (entry,) = [entry for entry in data.entries if entry.case_id == "a_01"]
        assert_array_equal(read_volume(entry.label).array, expected)

    def test_results_of_predict_without_and_with_scans(self, source, tmp_path):
        for case_id in ("a_01", "a_02"):
            folder = tmp_path / "results" / case_id
            folder.mkdir(parents=True)
            truth = read_volume(source / "masks" / f"{case_id}.nii.gz")
            write_volume(folder / "mask.nii.gz", (truth.array > 0).astype(np.uint8), truth)
            write_volume(folder / "lesions.nii.gz", truth.array, truth)
        convert(tmp_path / "results", tmp_path / "alone", "slicer")
        assert len(read_nrrd(tmp_path / "alone" / "a_01" / "a_01.seg.nrrd").segments) == 2
        with pytest.raises(InputError, match="a_01: expected a scan beside the mask"):
            convert(tmp_path / "results", tmp_path / "x", "nnunet")
        convert(tmp_path / "alone", tmp_path / "monai", "monai", images=source)
        assert {(e.case_id, e.subject_id) for e in read_layout(tmp_path / "monai").entries} == {
            ("a_01", "anna"),
            ("a_02", "anna"),
        }
        with pytest.raises(InputError, match="a scan of that id in --images"):
            convert(tmp_path / "results", tmp_path / "x", "monai", images=source / "b.3.nii")


class TestMasks:
    def test_segments_by_name_number_and_code(self):
        segments = [Segment(1, "bone"), Segment(2, "seg", "Pathologic calcification"), Segment(3, "Calcinosis R")]
        assert [one.number for one in choose_segments(segments, None, "f")] == [2, 3]
        assert [one.number for one in choose_segments(segments, "BONE", "f")] == [1]
        assert [one.number for one in choose_segments(segments, "3", "f")] == [3]
        assert len(choose_segments(segments, "all", "f")) == 3
        assert choose_segments(segments[:1], None, "f") == (segments[0],)
        with pytest.raises(InputError, match="a segment 'skin', found 1 'bone', 2 'seg' "):
            choose_segments(segments, "skin", "f")

    @pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
    @pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
    def test_cropped_flipped_and_permuted_masks_find_their_place(self, axes, flips):
        rng = np.random.default_rng(5)
        truth = np.zeros(SHAPE, np.uint8)
        truth[1:4, 2:5, 1:3] = rng.integers(0, 3, (3, 3, 2))
        crop = Volume(
            truth[1:4, 2:5, 1:3], AFFINE @ np.array([[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 1], [0, 0, 0, 1.0]])
        )
        # permute and flip by brute force: the affine of the new index space
        order = np.zeros((4, 4))
        order[3, 3] = 1
        for new, old in enumerate(axes):
            order[old, new] = flips[new]
            if flips[new] < 0:
                order[old, 3] = crop.array.shape[old] - 1
        array = crop.array.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
        moved = Volume(array, crop.affine @ order)
        assert_array_equal(place_on_grid(moved, Grid(SHAPE, AFFINE)), truth)

    def test_a_resampled_mask_is_refused(self):
        affine = AFFINE.copy()
        affine[:, 2] *= 0.5
        with pytest.raises(GridMismatchError, match="a mask on the voxels of the image's grid"):
            place_on_grid(Volume(np.ones(SHAPE, np.uint8), affine, "m"), Grid(SHAPE, AFFINE))

    def test_a_value_instead_of_a_name(self, source):
        path = source / "masks" / "a_01.nii.gz"
        assert_array_equal(read_labels(path, wanted="2").array, read_volume(path).array == 2)
        with pytest.raises(InputError, match=r"named segments, found values without names \(0, 1, 2\)"):
            read_labels(path, wanted="bone")

    def test_a_scan_is_no_mask(self, source):
        with pytest.raises(InputError, match="check that this is the mask and not the scan"):
            read_labels(source / "a_01.nii.gz")

    def test_damaged_nrrd_files_say_so(self, source, tmp_path):
        write_seg_nrrd(tmp_path / "m.seg.nrrd", Volume(np.ones(SHAPE, np.uint8), AFFINE), ["calcinosis"])
        content = (tmp_path / "m.seg.nrrd").read_bytes()
        for length in range(0, len(content) - 4, 23):
            (tmp_path / "cut.nrrd").write_bytes(content[:length])
            with pytest.raises(InputError, match=r"cut(\.nrrd)?: expected"):
                read_labels(tmp_path / "cut.nrrd")


class TestFolders:
    def test_images_beside_labels(self, source, tmp_path):
        for case_id in ("a_01", "a_02"):
            for folder, origin in (("images", source), ("labels", source / "masks")):
                (tmp_path / "flat" / folder).mkdir(parents=True, exist_ok=True)
                content = (origin / f"{case_id}.nii.gz").read_bytes()
                (tmp_path / "flat" / folder / f"{case_id}.nii.gz").write_bytes(content)
        convert(tmp_path / "flat", tmp_path / "out", "monai")
        assert len(read_manifest(tmp_path / "out").cases["training"]) == 2
        (tmp_path / "flat" / "images" / "a_02.nii.gz").unlink()
        with pytest.raises(InputError, match="a_02: expected a scan of that name"):
            read_layout(tmp_path / "flat")

    def test_out_must_be_new_and_failures_leave_nothing(self, source, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("keep")
        with pytest.raises(InputError, match="out: expected a new or empty folder"):
            convert(source, tmp_path / "out", "monai")
        other = Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4))
        write_volume(source / "masks" / "a_02.nii.gz", other.array, other)
        for layout in ("nifti", "monai", "nnunet", "bids", "slicer"):
            with pytest.raises(GridMismatchError, match="a_02: expected a mask on the voxels"):
                convert(source, tmp_path / "new" / layout, layout)
        assert [path for path in (tmp_path / "new").rglob("*") if path.is_file()] == []

    def test_what_is_no_data_set(self, source, tmp_path):
        with pytest.raises(CaseNotFoundError, match="no such path"):
            read_layout(tmp_path / "none")
        with pytest.raises(InputError, match="--to: expected one of nifti, monai"):
            convert(source, tmp_path / "x", "minc")

    def test_splits_are_those_of_the_package(self, source):
        assert {entry.split for entry in read_layout(source).entries} == set(SPLITS)


@pytest.mark.real
class TestDicom:
    """A CT with the DICOM SEG that dcmqi made of the NRRD beside it."""

    def test_scan_and_segmentation_become_image_and_label(self, real_data, tmp_path):
        pytest.importorskip("pydicom")
        folder = real_data / "dicom" / "dcmqi-ct-seg" / "24x38x3"
        shutil.copytree(folder / "image", tmp_path / "dicom" / "visit" / "image")
        shutil.copytree(folder / "seg", tmp_path / "dicom" / "visit" / "seg")
        data = convert(tmp_path / "dicom", tmp_path / "out", "monai")
        assert [(entry.case_id, data.layout) for entry in data.entries] == [("dicom", "DICOM")]
        (truth,) = read_nrrd(folder / "nrrd" / "label.nrrd").layers
        (entry,) = read_layout(tmp_path / "out").entries
        scan, label = read_volume(entry.image), read_volume(entry.label)
        scan.check_same_grid(label)
        assert_array_equal(place_on_grid(truth, scan.grid), label.array)

    def test_a_segmentation_alone_is_a_reference_mask(self, real_data, tmp_path):
        pytest.importorskip("pydicom")
        folder = real_data / "dicom" / "dcmqi-ct-seg"
        shutil.copytree(folder / "24x38x3" / "seg", tmp_path / "refs" / "a")
        shutil.copytree(folder / "23x38x3" / "seg", tmp_path / "refs" / "b")
        convert(tmp_path / "refs", tmp_path / "out", "nifti")
        for case_id, name in (("a", "24x38x3"), ("b", "23x38x3")):
            (truth,) = read_nrrd(folder / name / "nrrd" / "label.nrrd").layers
            label = read_volume(tmp_path / "out" / "labels" / f"{case_id}.nii.gz")
            assert_array_equal(place_on_grid(label, truth.grid), truth.array)
