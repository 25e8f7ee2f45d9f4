"""The doctor for files and data sets: one planted fault at a time, copies that are mended, and damaged files."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jdm_seg.checks.files import prints_of
from jdm_seg.checks.fix import fix_copy
from jdm_seg.checks.paths import check_path
from jdm_seg.cli import app
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.volume import Volume, read_volume

SHAPE = (40, 36, 24)
AFFINE = np.diag([-3.0, -3.0, 3.0, 1.0])


def limb(seed=0):
    x, y, _ = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    radius = np.hypot(x, y)
    hu = np.where(radius < 15, -100.0, -1000.0)
    hu[radius < 12] = 55
    hu[radius < 4] = 900
    return (hu + np.random.default_rng(seed).normal(0, 12, SHAPE)).astype(np.int16)


def mask_at(*places):
    mask = np.zeros(SHAPE, np.uint8)
    for x, y, z in places:
        mask[x : x + 3, y : y + 3, z : z + 3] = 1
    return mask


MUSCLE, BONE, AIR = (27, 18, 10), (19, 17, 10), (1, 1, 10)


def save(path, array, affine=AFFINE, **codes):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    for name, value in codes.items():
        image.header[name] = value
    nib.save(image, path)


def pair(root, name, image=None, label=None, affine=AFFINE, seed=0):
    """Write a case of ``images/`` and ``labels/``."""
    save(root / "images" / f"{name}.nii.gz", limb(seed) if image is None else image)
    save(root / "labels" / f"{name}.nii.gz", mask_at(MUSCLE) if label is None else label, affine)


def found_in(root, **options):
    return {(f.where, f.severity, f.code) for f in check_path(root, **options).findings}


def test_a_sound_data_set_is_well(tmp_path):
    pair(tmp_path, "a", seed=1)
    pair(tmp_path, "b", seed=2)
    report = check_path(tmp_path)
    assert report.findings == ()
    assert (report.is_well, report.cases, report.layout) == (True, 2, "images/ and labels/")


SHIFTED, ROUNDED = AFFINE.copy(), AFFINE.copy()
SHIFTED[0, 3] = 9
ROUNDED[0, 3] = 0.05


@pytest.mark.parametrize(
    ("label", "affine", "severity", "code"),
    [
        (mask_at(MUSCLE) * np.uint8(255), AFFINE, "warning", "label_value"),
        (mask_at(MUSCLE).astype(np.float32), AFFINE, "warning", "float_label"),
        (mask_at(MUSCLE) * np.float32(0.4), AFFINE, "error", "probability"),
        (-mask_at(MUSCLE).astype(np.int16), AFFINE, "error", "negative_label"),
        (mask_at(MUSCLE) + np.uint8(1), AFFINE, "error", "no_background"),
        (mask_at(), AFFINE, "info", "label_empty"),
        (mask_at(MUSCLE) + 2 * mask_at((9, 18, 4)), AFFINE, "info", "several_values"),
        (mask_at(AIR), AFFINE, "warning", "outside_body"),
        (mask_at(BONE), AFFINE, "warning", "on_bone"),
        (1 - mask_at(MUSCLE), AFFINE, "warning", "label_huge"),
        (mask_at(MUSCLE), SHIFTED, "error", "grid"),
        (mask_at(MUSCLE)[:, :, :-1], AFFINE, "error", "grid"),
        (mask_at(MUSCLE), ROUNDED, "warning", "grid_rounding"),
    ],
)
def test_a_fault_of_a_mask_is_named_with_its_file(tmp_path, label, affine, severity, code):
    pair(tmp_path, "a", label=label, affine=affine)
    assert ("labels/a.nii.gz", severity, code) in found_in(tmp_path)


def test_a_deposit_as_bright_as_bone_is_not_taken_for_bone(tmp_path):
    image, label = limb(), mask_at(MUSCLE)
    image[label > 0] = 900
    pair(tmp_path, "a", image, label)
    assert found_in(tmp_path) == set()


def test_the_same_scan_twice_is_found_whatever_its_type_or_axes(tmp_path):
    save(tmp_path / "a.nii.gz", limb())
    save(tmp_path / "b.nii", limb().astype(np.float32))
    save(tmp_path / "c.nii.gz", np.asfortranarray(limb()[::-1]), AFFINE)  # mirrored content
    save(tmp_path / "d.nii.gz", limb(seed=5))
    found = {(where, code) for where, _, code in found_in(tmp_path) if code.startswith("duplicate")}
    assert found == {("b.nii", "duplicate"), ("c.nii.gz", "duplicate_flipped")}


def test_prints_do_not_depend_on_how_a_scan_is_stored():
    scan = Volume(limb(), AFFINE, "a")
    same = scan.to_canonical()
    assert prints_of(scan) == prints_of(Volume(same.array.astype(np.float32), same.affine, "b"))
    assert prints_of(scan).values != prints_of(Volume(scan.array + 1, AFFINE, "c")).values


def test_a_person_in_two_splits_and_a_scan_in_two_splits_are_errors(tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        save(tmp_path / f"{name}.nii.gz", limb(seed))
    rows = {
        "training": [{"image": "a.nii.gz", "subject_id": "1"}, {"image": "b.nii.gz", "subject_id": "2"}],
        "validation": [{"image": "c.nii.gz", "subject_id": "2"}],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(rows))
    found = found_in(tmp_path)
    assert (tmp_path.name, "error", "subject_in_two_splits") in found
    assert ("c.nii.gz", "error", "duplicate") in found


def test_bad_files_become_findings_and_stop_nothing(tmp_path):
    save(tmp_path / "good.nii.gz", limb())
    (tmp_path / "text.nii.gz").write_text("no scan")
    (tmp_path / "empty.nii").write_bytes(b"")
    save(tmp_path / "four.nii.gz", np.zeros((4, 4, 4, 2), np.int16))
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:2000])
    report = check_path(tmp_path)
    assert {f.where for f in report.findings} == {"text.nii.gz", "empty.nii", "four.nii.gz", "cut.nii.gz"}
    assert {f.code for f in report.findings} == {"unreadable"}
    assert all(f.remedy and f.expected and f.found for f in report.findings)


def test_scans_in_nested_folders_are_found_and_a_broken_manifest_is_told(tmp_path):
    save(tmp_path / "x" / "y" / "z" / "a.nii.gz", limb())
    assert check_path(tmp_path).cases == 1
    (tmp_path / "datalist.json").write_text("no json")
    assert ("error", "layout") in {(severity, code) for _, severity, code in found_in(tmp_path)}


def test_the_modality_is_told_by_the_values_unless_named(tmp_path):
    signal = np.abs(limb().astype(np.float32) + 1000) / 3
    save(tmp_path / "mr.nii.gz", signal.astype(np.int16))
    assert ("mr.nii.gz", "info", "taken_as_stir") in found_in(tmp_path)
    assert ("mr.nii.gz", "error", "not_hu") in found_in(tmp_path, modality="ct")
    with pytest.raises(InputError, match=r"--modality: expected modality ct or stir, found 'pet'"):
        check_path(tmp_path, "pet")
    with pytest.raises(CaseNotFoundError, match=r"expected a scan or a data set"):
        check_path(tmp_path / "nothing")


def broken_set(root):
    """Write a set with every fault that can be mended, and one that cannot."""
    pair(root, "value", label=mask_at(MUSCLE) * np.uint8(255), seed=1)
    pair(root, "float", label=mask_at(MUSCLE).astype(np.float32), seed=2)
    pair(root, "rounded", affine=ROUNDED, seed=3)
    canonical = Volume(mask_at(MUSCLE), AFFINE, "a").to_canonical()
    pair(root, "axes", label=np.ascontiguousarray(canonical.array), affine=canonical.affine, seed=4)
    pair(root, "grid", affine=SHIFTED, seed=5)
    image = nib.Nifti1Image(limb(6), AFFINE)
    moved = AFFINE.copy()
    moved[:3, 3] = 40
    image.set_qform(moved, code=1)
    nib.save(image, root / "images" / "forms.nii.gz")
    save(root / "labels" / "forms.nii.gz", mask_at(MUSCLE))
    scaled = nib.Nifti1Image(np.zeros(SHAPE, np.uint16), AFFINE)
    path = root / "images" / "scaled.nii"
    nib.save(scaled, path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()
    raw[352:] = (limb(7).clip(-1024).astype(np.int32) + 1024).astype("<u2").tobytes(order="F")
    path.write_bytes(raw)
    (root / "notes.txt").write_text("kept")


def test_the_copy_is_mended_and_the_original_stays(tmp_path):
    root, out = tmp_path / "set", tmp_path / "out"
    broken_set(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report = check_path(root)
    mended = fix_copy(root, report.entries, out)
    assert {line.partition(":")[0] for line in mended} == {
        "labels/value.nii.gz", "labels/float.nii.gz", "labels/rounded.nii.gz", "labels/axes.nii.gz",
        "images/forms.nii.gz", "images/scaled.nii",
    }  # fmt: skip
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert {p.relative_to(out) for p in out.rglob("*")} == {p.relative_to(root) for p in root.rglob("*")}
    left = {(f.where, f.code) for f in check_path(out).findings}
    assert left == {("labels/grid.nii.gz", "grid")}
    for name in ("value", "float", "rounded", "axes"):
        scan, label = read_volume(out / "images" / f"{name}.nii.gz"), read_volume(out / "labels" / f"{name}.nii.gz")
        assert (label.array == mask_at(MUSCLE)).all()
        assert label.array.dtype == np.uint8
        assert np.abs(label.affine - scan.affine).max() == 0 or name in ("value", "float")
    assert (nib.load(out / "images" / "forms.nii.gz").get_qform() == AFFINE).all()
    stored = nib.load(out / "images" / "scaled.nii")
    assert (np.asarray(stored.dataobj.get_unscaled()) == limb(7).clip(-1024)).all()


def test_a_copy_goes_into_a_new_folder_outside_the_data(tmp_path):
    pair(tmp_path / "set", "a")
    with pytest.raises(InputError, match=r"expected a folder outside the data, found one inside"):
        fix_copy(tmp_path / "set", (), tmp_path / "set" / "mended")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(InputError, match=r"expected a new folder, found one with files in it"):
        fix_copy(tmp_path / "set", (), tmp_path / "out")


def test_the_command_leaves_with_one_when_something_is_wrong(tmp_path):
    pair(tmp_path / "good", "a", label=mask_at())  # information only
    pair(tmp_path / "bad", "a", label=mask_at(AIR))
    run = CliRunner().invoke(app, ["check", str(tmp_path / "good")])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["check", str(tmp_path / "bad"), "--json", str(tmp_path / "f.json"), "-q"])
    assert run.exit_code == 1
    assert "warning: labels/a.nii.gz: Part of the mask lies outside the body: found 100%" in run.output
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["counts"] == {"info": 0, "warning": 1, "error": 0}
    assert set(content["findings"][0]) == {"where", "severity", "code", "reason", "expected", "found", "remedy"}
    run = CliRunner().invoke(app, ["check", str(tmp_path / "bad"), "--fix", str(tmp_path / "out"), "-q"])
    assert "0 files mended" in run.output


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "a.nii"
    save(path, limb())
    return path.read_bytes()


def look_at(folder, data, name):
    """Check one file in a folder of its own; return the largest memory that took."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(data)
    tracemalloc.start()
    try:
        report = check_path(folder / name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [path.name for path in folder.iterdir()] == [name]
    assert report.cases == 1
    assert all(finding.remedy for finding in report.findings)
    return peak


FUZZ = settings(
    max_examples=125,
    derandomize=True,  # the seeds are the test's own, the same in every run
    deadline=10_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MEMORY = 2 * 2 * int(np.prod(SHAPE)) + 24_000_000
"""Twice the size of the scan, beside what imports, histograms and tables take."""


@pytest.mark.slow
@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_forged_header_is_answered_in_words(tmp_path, whole_file, changes):
    data = bytearray(whole_file)
    for place, value in changes:
        data[place] = value
    assert look_at(tmp_path / "f", bytes(data), "a.nii") < MEMORY


@FUZZ
@given(data=st.data())
def test_a_cut_or_scrambled_file_is_answered_in_words(tmp_path, whole_file, data):
    import gzip

    zipped = data.draw(st.booleans())
    whole = gzip.compress(whole_file, 1, mtime=0) if zipped else whole_file
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert look_at(tmp_path / "f", bytes(content), "a.nii.gz" if zipped else "a.nii") < MEMORY
