"""Synthetic cases and data sets: replay, resumption, the same bytes whatever the workers, and what lies in a folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.cases import read_manifest
from jdm_seg.errors import InputError
from jdm_seg.synthesis.anatomy.tissue import BONE, SOFT_TISSUE, Tissue
from jdm_seg.synthesis.dataset import synthesize_dataset, synthesize_inserted
from jdm_seg.synthesis.deposits.priors import Priors
from jdm_seg.synthesis.insert import host_of_scan
from jdm_seg.synthesis.recipe import PRESETS, replay, synthesize_body
from jdm_seg.volume import read_volume


def smoke(modality):
    return replace(PRESETS[modality, "smoke"], negatives=0.0)


@pytest.fixture(scope="module")
def ct_case():
    return synthesize_body("ct", smoke("ct"), (5, 2))


@pytest.mark.parametrize("modality", ["ct", "stir"])
def test_a_case_is_replayed_from_its_record(modality, tmp_path):
    case = synthesize_body(modality, smoke(modality), (5, 2))
    path = tmp_path / "record.json"
    path.write_text(json.dumps(case.record))
    again = replay(json.loads(path.read_text()))
    for name in ("image", "label", "instances", "anatomy", "affine"):
        assert np.array_equal(getattr(case, name), getattr(again, name)), name
    assert json.loads(json.dumps(again.record)) == json.loads(path.read_text())
    assert (case.oedema is not None) == (modality == "stir")
    other = synthesize_body(modality, smoke(modality), (5, 3))
    assert other.image.shape != case.image.shape or (other.image != case.image).any()


@pytest.mark.parametrize("number", [(31, 1), (21, 1)])
def test_a_body_is_in_view(number):
    """These seeds aim a small field of view at the gap between the legs."""
    case = synthesize_body("ct", smoke("ct"), number)
    assert (case.image > -300).mean() > 0.02


def test_a_record_of_something_else_is_refused(ct_case):
    with pytest.raises(InputError, match="expected a record of a procedural case"):
        replay({"case_id": "x", "drawn": {}})
    broken = json.loads(json.dumps(ct_case.record))
    del broken["recipe"]["scene"]["body"]["height"]
    with pytest.raises(InputError, match="expected a record of a procedural case"):
        replay(broken)


def test_changing_one_value_of_a_record_changes_that_and_nothing_else(ct_case):
    quiet = json.loads(json.dumps(ct_case.record))
    quiet["recipe"]["ct"]["noise_hu"] = 0.0
    clean = replay(quiet)
    assert np.array_equal(clean.label, ct_case.label)
    assert np.array_equal(clean.anatomy, ct_case.anatomy)
    muscle = ct_case.anatomy == Tissue.MUSCLE
    assert clean.image[muscle].std() < ct_case.image[muscle].std()
    empty = json.loads(json.dumps(ct_case.record))
    empty["recipe"]["deposits"] = []
    assert not replay(empty).label.any()


def test_truth_lies_in_soft_tissue_and_every_row_says_what_became_of_it(ct_case):
    label, anatomy = ct_case.label > 0, ct_case.anatomy
    assert label.any()
    hidden = ~np.isin(anatomy, SOFT_TISSUE)
    assert not (label & hidden & np.isin(anatomy, (*BONE, Tissue.AIR, Tissue.GAS, Tissue.LUNG))).any()
    voxel = np.prod(ct_case.record["spacing"])
    for row in ct_case.record["deposits"]:
        assert row["labelled_mm3"] == pytest.approx((ct_case.instances == row["instance"]).sum() * voxel)
        assert row["host"] == "NONE" or Tissue[row["host"]] in SOFT_TISSUE


def test_calcium_is_bright_on_ct_and_a_void_in_muscle_is_dark_on_stir():
    for modality, sign in (("ct", 1), ("stir", -1)):
        changes = []
        for number in range(4):
            record = json.loads(json.dumps(synthesize_body(modality, smoke(modality), (1, number)).record))
            if modality == "stir":
                record["recipe"]["stir"]["phenotypes"] = ["void"] * len(record["recipe"]["deposits"])
            case = replay(record)
            muscle = (case.anatomy == Tissue.MUSCLE) & (case.label == 0)
            inside = (case.anatomy == Tissue.MUSCLE) & (case.label == 1)
            if inside.any():
                changes.append(np.mean(case.image[inside]) - np.mean(case.image[muscle]))
        assert len(changes) > 1
        assert all(sign * change > 0 for change in changes)


@pytest.mark.parametrize(("modality", "view"), [("ct", "trunk"), ("stir", "trunk"), ("stir", "limb")])
def test_every_preset_makes_cases(modality, view):
    preset = PRESETS[modality, view]
    # a coarse and small version of it: the same code, seconds instead of a minute
    small = replace(preset, extent_mm=tuple((low / 2, low / 2) for low, _ in preset.extent_mm), negatives=0.0)
    case = synthesize_body(modality, small, (3, 1))
    assert case.image.shape == case.label.shape == case.instances.shape == case.anatomy.shape
    assert case.image.dtype == np.int16
    assert case.image.std() > 0


def test_bytes_do_not_depend_on_workers_or_on_an_interruption(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        synthesize_dataset(tmp_path / name, modality="ct", cases=3, seed=9, preset="smoke", workers=workers)
    (tmp_path / "two" / "records" / "ct-smoke-s9-0001.json").unlink()  # as if stopped before this case was complete
    synthesize_dataset(tmp_path / "two", modality="ct", cases=3, seed=9, preset="smoke")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    assert folders == {"images", "labels", "instances", "anatomy", "faint", "records"}
    faint = sum(file.parts[0] == "faint" for file in files)  # where a case has any
    assert 0 < faint <= 3
    assert len(files) == 3 * 5 + faint + 2  # and the datalist and the contact sheet
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_data_set_is_a_manifest_with_its_label_rule(tmp_path):
    synthesize_dataset(tmp_path, modality="stir", cases=4, seed=1, preset="smoke", validation=0.25, testing=0.25)
    manifest = read_manifest(tmp_path)
    assert {split: len(cases) for split, cases in manifest.cases.items()} == {
        "training": 2,
        "validation": 1,
        "testing": 1,
    }
    content = json.loads((tmp_path / "datalist.json").read_text())
    assert content["labels"] == {"0": "background", "1": "calcinosis"}
    assert "half of the voxel" in content["label_rule"]
    for case in manifest.all:
        image, label = nib.load(case.image), nib.load(case.label)
        assert image.shape == label.shape
        assert set(np.unique(label.dataobj)) <= {0, 1}
        instances = np.asarray(nib.load(tmp_path / "instances" / case.label.name).dataobj)
        assert ((instances > 0) == (np.asarray(label.dataobj) > 0)).all()
        assert (tmp_path / "oedema" / case.label.name).is_file()


def test_an_unknown_preset_is_named():
    with pytest.raises(InputError, match="expected one of smoke, limb, trunk, whole, benchmark for ct, found 'huge'"):
        synthesize_dataset(Path("unused"), modality="ct", cases=1, seed=0, preset="huge")


def test_a_folder_with_another_data_set_is_left_alone(tmp_path):
    (tmp_path / "datalist.json").write_text('{"training": []}')
    with pytest.raises(InputError, match="found a data set of another origin"):
        synthesize_dataset(tmp_path, modality="ct", cases=1, seed=0, preset="smoke")
    assert (tmp_path / "datalist.json").read_text() == '{"training": []}'
    synthesize_dataset(tmp_path / "a", modality="ct", cases=1, seed=0, preset="smoke")
    with pytest.raises(InputError, match="expected no data set, or one made from"):
        synthesize_dataset(tmp_path / "a", modality="ct", cases=1, seed=1, preset="smoke")


@pytest.mark.real
def test_deposits_are_inserted_in_real_ct(real_data):
    """Bone is found where it is, and deposits change soft tissue alone."""
    for folder, name in (("limbs", "sts-001"), ("limbs", "sts-016"), ("trunk", "crlm-1006")):
        scan = read_volume(real_data / "ct" / folder / f"{name}.nii.gz").to_canonical()
        tissue = host_of_scan(scan.array, scan.spacing).tissue
        assert np.isin(tissue[scan.array > 600], (Tissue.CORTEX, Tissue.DENSE)).mean() > 0.9
        case = synthesize_inserted(scan, "ct", Priors(), (2, 0))
        soft = np.isin(tissue, SOFT_TISSUE)
        assert (case.image == scan.array)[~soft].all()
        assert case.label.any()
        assert not case.label[~soft].any()


@pytest.mark.real
def test_deposits_are_inserted_in_real_stir(real_data):
    scan = read_volume(real_data / "mr" / "stir" / "cc0-lspine_stir.nii.gz").to_canonical()
    case = synthesize_inserted(scan, "stir", Priors(), (2, 0))
    changed = case.image != scan.array
    assert case.label.any()
    assert changed.any()
    assert changed.mean() < 0.5
    assert case.image[changed].min() >= 0  # magnitudes


def test_workers_end_with_the_process_that_is_killed(tmp_path):
    """They hold its output open, which is at its end only when all are gone."""
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()", "synthesize", str(tmp_path / "set")]
    command += ["--modality", "ct", "--cases", "50", "--seed", "1", "--preset", "smoke", "--workers", "2"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("set/records/*.json")):
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.communicate(timeout=60)
