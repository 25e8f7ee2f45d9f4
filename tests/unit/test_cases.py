"""Manifests in both forms, ids, and splits by subject."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jdm_seg.cases import (
    Case,
    Manifest,
    check_disjoint,
    check_modality,
    find_scans,
    read_manifest,
    split_by_subject,
    write_manifest,
)
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.volume import Volume


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def cases_of(tmp_path, subjects):
    return [Case(f"c{i}", subject, "ct", tmp_path / f"c{i}.nii.gz") for i, subject in enumerate(subjects)]


@pytest.mark.parametrize("name", ["datalist.json", "cases.csv"])
def test_a_manifest_comes_back_as_it_was_written(tmp_path, name):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "images/b, c.nii.gz")
    manifest = Manifest(
        {
            "training": (Case("a", "s1", "stir", tmp_path / "images/a.nii.gz", tmp_path / "labels/a.nii.gz"),),
            "testing": (Case("b", "s2", "ct", tmp_path / "images/b, c.nii.gz"),),
        }
    )
    write_manifest(tmp_path / name, manifest)
    assert read_manifest(tmp_path / name) == manifest
    assert str(tmp_path) not in (tmp_path / name).read_text()  # relative paths: the data set can move


def test_a_monai_datalist_needs_no_field_of_ours(tmp_path):
    touch(tmp_path, "imagesTr/x_1.nii.gz", "labelsTr/x_1.nii.gz", "imagesTs/x_2.nii.gz")
    content = {
        "name": "task",
        "modality": {"0": "CT"},
        "training": [{"image": "./imagesTr/x_1.nii.gz", "label": "./labelsTr/x_1.nii.gz", "fold": 0}],
        "test": ["./imagesTs/x_2.nii.gz"],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    manifest = read_manifest(tmp_path)
    assert [(c.case_id, c.subject_id, c.modality) for c in manifest.all] == [("x_1", "x_1", "ct"), ("x_2", "x_2", "ct")]
    assert manifest.cases["testing"][0].label is None


def test_a_scan_elsewhere_is_named_by_a_relative_path(tmp_path, monkeypatch):
    touch(tmp_path, "scans/a.nii.gz")
    monkeypatch.chdir(tmp_path)
    case = Case("a", "a", "ct", Path("scans/a.nii.gz"))
    write_manifest(tmp_path / "sets" / "datalist.json", Manifest({"training": (case,)}))
    found = read_manifest(tmp_path / "sets").cases["training"][0].image
    assert found.resolve() == (tmp_path / "scans" / "a.nii.gz").resolve()


@pytest.mark.parametrize(
    ("values", "modality", "message"),
    [
        ((0, 900), "ct", "expected CT numbers in HU"),
        ((-1000, 900), "stir", "expected MR magnitudes"),
        ((7, 7), "ct", "one value, 7, everywhere"),
    ],
)
def test_values_that_cannot_be_of_the_modality_are_named(values, modality, message):
    scan = Volume(np.array(values, np.int16).reshape(1, 1, 2), np.eye(4), "sub-1")
    with pytest.raises(InputError, match=f"^sub-1: .*{message}"):
        check_modality(scan, modality)


def test_a_csv_with_an_image_column_is_enough(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "cases.csv").write_text("image\na.nii.gz\n")
    assert read_manifest(tmp_path / "cases.csv").cases["training"][0].case_id == "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "expected a MONAI datalist"),
        ("[]", "expected a MONAI datalist"),
        ('{"training": 5}', "expected training to list cases, found int at place 1"),
        ('{"training": [3]}', "expected training to list cases, found int at place 1"),
        ("{}", "expected at least one case"),
        ('{"training": [{"label": "a.nii.gz"}]}', "expected an image in every row"),
        ('{"training": [{"image": "a.nii.gz"}, {"image": "a.nii.gz"}]}', "found a twice"),
        ('{"training": [{"image": "a.nii.gz", "modality": "pet"}]}', "expected modality ct or stir, found 'pet'"),
        ('{"training": [{"image": "a.nii.gz", "case_id": "../a"}]}', "expected an id that can be a folder's name"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path, content, message):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "datalist.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_a_missing_file_names_case_and_file(tmp_path):
    (tmp_path / "datalist.json").write_text('{"training": [{"image": "scans/a.nii.gz", "case_id": "sub-1"}]}')
    with pytest.raises(CaseNotFoundError, match=r"^sub-1: expected the file a\.nii\.gz that datalist\.json names"):
        read_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a manifest"):
        read_manifest(tmp_path / "gone.json")


def test_an_unknown_split_is_named(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "cases.csv").write_text("image,split\na.nii.gz,holdout\n")
    with pytest.raises(InputError, match=r"expected a split of .* found 'holdout'"):
        read_manifest(tmp_path / "cases.csv")


def test_a_folder_of_scans(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.nii", "notes.txt", ".hidden.nii.gz", "sub/c.nii.gz")
    assert [c.case_id for c in find_scans(tmp_path, "ct")] == ["a", "b"]
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(InputError, match="found a twice"):
        find_scans(tmp_path, "ct")


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(CaseNotFoundError, match="found none in it"):
        find_scans(tmp_path, "ct")
    with pytest.raises(CaseNotFoundError, match="found no such folder"):
        find_scans(tmp_path / "gone", "ct")


@pytest.mark.parametrize("seed", range(5))
def test_splits_never_part_a_subject(tmp_path, seed):
    cases = cases_of(tmp_path, ["a", "b", "a", "c", "d", "b", "e", "a", "f"])
    held_out = []
    for fold in range(3):
        training, validation = split_by_subject(cases, fold, 3, seed)
        assert {c.subject_id for c in training}.isdisjoint(c.subject_id for c in validation)
        assert sorted(c.case_id for c in training + validation) == sorted(c.case_id for c in cases)
        held_out += [c.case_id for c in validation]
        check_disjoint(training, validation)
    assert sorted(held_out) == sorted(c.case_id for c in cases)  # each case is validated once


def test_splits_do_not_depend_on_the_order_of_cases(tmp_path):
    cases = cases_of(tmp_path, ["a", "b", "c", "d"])
    forward = {c.case_id for c in split_by_subject(cases, 0, 2, 3)[1]}
    assert forward == {c.case_id for c in split_by_subject(cases[::-1], 0, 2, 3)[1]}


@pytest.mark.parametrize(("fold", "folds", "message"), [(2, 2, "expected 0 to 1"), (0, 9, "at least 9 subjects")])
def test_impossible_splits_are_named(tmp_path, fold, folds, message):
    with pytest.raises(InputError, match=message):
        split_by_subject(cases_of(tmp_path, ["a", "b", "c"]), fold, folds, 0)


def test_a_subject_on_both_sides_is_named(tmp_path):
    first, second = cases_of(tmp_path, ["a", "a"])
    with pytest.raises(InputError, match=r"^c1: expected every subject in one split only"):
        check_disjoint([first], [second])
