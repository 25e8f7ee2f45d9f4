"""Bodies, deposits, physics and insertion: truth known by construction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.cases import read_manifest
from jdm_seg.errors import InputError
from jdm_seg.synthesis.body import render_body_part, sample_body_part
from jdm_seg.synthesis.calcinosis import (
    PATTERNS,
    Deposit,
    _candidates,
    _occupancy,
    render_deposits,
    sample_deposits,
)
from jdm_seg.synthesis.ct import CtAcquisition
from jdm_seg.synthesis.dataset import PRESETS, synthesize_body, synthesize_dataset, synthesize_inserted
from jdm_seg.synthesis.host import build_host
from jdm_seg.synthesis.insert import estimate_tissue, insert_ct
from jdm_seg.synthesis.tissue import Tissue
from jdm_seg.volume import read_volume

SPACING = (1.0, 1.0, 1.0)


def fat_block(shape=(40, 40, 40), spacing=SPACING):
    """A block of fat with a muscle half below y = 20 and air around."""
    tissue = np.full(shape, Tissue.FAT, np.uint8)
    tissue[:, : shape[1] // 2] = Tissue.MUSCLE
    for axis in range(3):
        np.moveaxis(tissue, axis, 0)[[0, -1]] = Tissue.AIR
    return build_host(tissue, spacing)


def deposit(**changes):
    base = Deposit("nodule", (20.0, 30.0, 20.0), radius=6, thickness=2, level=0, calcium=400, texture=0, seed=4)
    return replace(base, **changes)


def acquisition(**changes):
    return replace(CtAcquisition("120", (1.2, 1.2, 1.2), 20.0, 0.8, 0.0, {}), **changes)


def test_a_limb_has_every_tissue_and_is_wrapped_in_skin():
    rng = np.random.default_rng(3)
    tissue = render_body_part(sample_body_part(rng, (140.0, 140.0, 90.0)), (140, 140, 90), SPACING)
    assert {Tissue.AIR, Tissue.SKIN, Tissue.FAT, Tissue.FASCIA, Tissue.MUSCLE, Tissue.CORTEX} <= set(np.unique(tissue))
    body = (tissue != Tissue.AIR) & (tissue != Tissue.TABLE)
    for axis in (0, 1):
        edge = body & ~np.roll(body, 1, axis)
        assert (tissue[edge] == Tissue.SKIN).mean() > 0.99


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_fills_soft_tissue_only_and_follows_its_label_rule(pattern):
    host = fat_block()
    level = {"plaque": 5.0, "sheet": 0.0}.get(pattern, 0.0)
    centre = (
        (20.0, 34.0, 20.0) if pattern == "plaque" else (20.0, 20.0, 20.0) if pattern == "sheet" else (20.0, 29.0, 20.0)
    )
    calcinosis = render_deposits((deposit(pattern=pattern, centre=centre, level=level, radius=8),), host)
    assert calcinosis.label.sum() > 5
    assert (calcinosis.occupancy[~host.soft] == 0).all()
    assert ((calcinosis.occupancy >= 0.5) == (calcinosis.label == 1)).all()
    assert ((calcinosis.instances > 0) == (calcinosis.label == 1)).all()
    assert (calcinosis.calcium[calcinosis.occupancy == 0] == 0).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (2.0, 2.0, 2.0), (0.7, 0.9, 5.0)])
@pytest.mark.parametrize("radius", [1.5, 4.0, 9.0])
def test_occupancy_measures_a_ball(spacing, radius):
    """Its sum times the voxel volume is the ball's volume, on coarse and anisotropic voxels too."""
    box = tuple(slice(0, int(24 / s)) for s in spacing)
    filled = _occupancy(lambda p: np.linalg.norm(p - np.float32(11.9), axis=1) - radius, box, spacing)
    assert filled.sum() * np.prod(spacing) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)
    assert filled.min() == 0
    assert filled.max() <= 1


def test_a_sheet_follows_the_muscle_surface():
    host = fat_block()
    rendered = render_deposits((deposit(pattern="sheet", centre=(20.0, 20.0, 20.0), radius=12, thickness=2),), host)
    assert np.abs(host.muscle_mm[rendered.label == 1]).max() <= 2.5
    extent = np.ptp(np.argwhere(rendered.label), axis=0)
    assert extent[0] > 12
    assert extent[1] <= 5


@pytest.mark.parametrize(
    "spacing", [(0.5, 0.5, 0.5), (1.0, 1.0, 3.0), (1.5, 1.5, 1.5), (1.5, 5.0, 1.5), (2.0, 2.0, 2.0)]
)
def test_sheets_lie_on_the_muscle_surface_at_every_spacing(spacing):
    shape = tuple(round(60 / s) for s in spacing)
    tissue = np.full(shape, Tissue.FAT, np.uint8)
    tissue[: shape[0] // 2] = Tissue.MUSCLE
    host = build_host(tissue, spacing)
    where = np.unravel_index(_candidates(host, "sheet"), shape)[0]
    assert set(where) >= {shape[0] // 2 - 1, shape[0] // 2}
    assert np.abs((where + 0.5) * spacing[0] - shape[0] // 2 * spacing[0]).max() < 3


@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_a_sheet_is_as_thick_as_asked(step):
    tissue = np.full((round(60 / step),) * 3, Tissue.FAT, np.uint8)
    tissue[: round(30 / step)] = Tissue.MUSCLE
    host = build_host(tissue, (step, step, step))
    thicknesses = []
    for seed in range(8):  # the thickness varies along a sheet; its mean does not
        sheet = deposit(pattern="sheet", centre=(30.0, 30.0, 30.0), radius=20, thickness=2, seed=seed)
        rendered = render_deposits((sheet,), host).occupancy
        columns = rendered.sum(axis=0) * step
        middle = slice(round(25 / step), round(35 / step))
        thicknesses.append(columns[middle, middle].mean())
    assert np.mean(thicknesses) == pytest.approx(2, rel=0.15)


def test_same_seed_same_deposits():
    host = fat_block()
    first, second = (sample_deposits(host, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert sample_deposits(host, np.random.default_rng(8)) != first


def test_four_of_five_scans_mix_patterns():
    host = fat_block()
    drawn = [sample_deposits(host, np.random.default_rng(s)) for s in range(400)]
    several = [d for d in drawn if len(d) > 1]
    mixed = np.mean([len({x.pattern for x in d}) > 1 for d in several])
    assert 0.73 < mixed < 0.87
    assert all(drawn)
    volumes = [4 / 3 * np.pi * x.radius**3 for d in drawn for x in d if x.pattern == "nodule"]
    assert np.median(volumes) == pytest.approx(210, rel=0.2)


@pytest.mark.parametrize("modality", ["ct", "stir"])
def test_a_case_is_replayed_by_its_seed(modality):
    preset = replace(PRESETS[modality, "smoke"], negatives=0.0)
    first, second = (synthesize_body(modality, preset, (5, 2)) for _ in range(2))
    assert (first.image == second.image).all()
    assert (first.label == second.label).all()
    assert first.image.dtype == np.int16
    assert json.loads(json.dumps(first.record)) == json.loads(json.dumps(second.record))
    other = synthesize_body(modality, preset, (5, 3))
    assert other.image.shape != first.image.shape or (other.image != first.image).any()


def test_deposits_are_brighter_on_ct_and_voids_darker_on_stir():
    for modality, sign in (("ct", 1), ("stir", -1)):
        contrast = []
        for number in range(3):
            case = synthesize_body(modality, replace(PRESETS[modality, "smoke"], negatives=0.0), (1, number))
            if case.label.any():
                tissue = case.image > (-200 if modality == "ct" else 20)
                contrast.append(
                    np.median(case.image[case.label == 1]) - np.median(case.image[tissue & (case.label == 0)])
                )
        assert sign * np.median(contrast) > 0


def test_bytes_do_not_depend_on_workers_or_on_an_interruption(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        synthesize_dataset(tmp_path / name, modality="ct", cases=3, seed=9, preset="smoke", workers=workers)
    (tmp_path / "two" / "records" / "ct-smoke-s9-0001.json").unlink()  # as if stopped before this case was complete
    synthesize_dataset(tmp_path / "two", modality="ct", cases=3, seed=9, preset="smoke")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 10
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


def test_an_unknown_preset_is_named():
    with pytest.raises(InputError, match="expected one of smoke, limb for ct, found 'whole'"):
        synthesize_dataset(Path("unused"), modality="ct", cases=1, seed=0, preset="whole")


def phantom_ct():
    """Fat cylinder with a muscle core and a bone rod, as HU."""
    x, y = np.meshgrid(np.arange(80) - 40, np.arange(80) - 40, indexing="ij")
    r = np.hypot(x, y)[..., None] * np.ones(40)
    hu = np.select([r < 6, r < 8, r < 25, r < 34], [30, 900, 55, -100], -1000).astype(np.int16)
    return hu + np.random.default_rng(0).normal(0, 12, hu.shape).astype(np.int16)


def test_tissue_is_told_apart_by_itself():
    hu = phantom_ct()
    tissue = estimate_tissue(hu, SPACING)
    middle = tissue[40, :, 20]
    assert middle[40] == Tissue.CORTEX  # marrow enclosed by cortex counts as bone
    assert middle[40 + 15] == Tissue.MUSCLE
    assert middle[40 + 29] == Tissue.FAT
    assert middle[40 + 33] == Tissue.SKIN
    assert middle[2] == Tissue.AIR


def test_insertion_leaves_bone_air_and_untouched_voxels_exactly_as_they_were():
    hu = phantom_ct()
    host = build_host(estimate_tissue(hu, SPACING), SPACING)
    deposits = (deposit(centre=(40.0, 62.0, 20.0)), deposit(centre=(47.0, 47.0, 12.0), radius=5))
    calcinosis = render_deposits(deposits, host)
    result = insert_ct(hu, calcinosis, host, acquisition())
    changed = result != hu
    assert changed.sum() > 300
    assert not changed[~host.soft].any()
    assert (result[calcinosis.occupancy == 1] > 400).mean() > 0.9
    nothing = render_deposits((), host)
    assert (insert_ct(hu, nothing, host, acquisition()) == hu).all()


def test_nothing_is_placed_on_the_table():
    hu = np.full((100, 100, 60), -1000, np.int16)
    hu[30:90, 20:24] = -50  # a padded table top, thin and long
    hu[:, 20:24] = np.where(np.arange(60) >= 0, -50, -1000)
    x, y = np.meshgrid(np.arange(100) - 50, np.arange(100) - 60, indexing="ij")
    hu[np.hypot(x, y) < 30] = 40
    tissue = estimate_tissue(hu, (2.0, 2.0, 3.0))
    assert (tissue[:, 20:24] == Tissue.AIR).all()
    assert (tissue[50, 60] == Tissue.MUSCLE).all()


def test_a_folder_with_another_data_set_is_left_alone(tmp_path):
    (tmp_path / "datalist.json").write_text('{"training": []}')
    with pytest.raises(InputError, match="found a data set of another origin"):
        synthesize_dataset(tmp_path, modality="ct", cases=1, seed=0, preset="smoke")
    assert (tmp_path / "datalist.json").read_text() == '{"training": []}'
    synthesize_dataset(tmp_path / "a", modality="ct", cases=1, seed=0, preset="smoke")
    with pytest.raises(InputError, match="expected no data set, or one made from"):
        synthesize_dataset(tmp_path / "a", modality="ct", cases=1, seed=1, preset="smoke")


@pytest.mark.real
def test_insertion_in_real_limbs(real_data):
    """Bone is found where it is, and deposits change soft tissue alone."""
    for name in ("sts-001", "sts-009", "sts-016"):
        scan = read_volume(real_data / "ct" / "limbs" / f"{name}.nii.gz").to_canonical()
        tissue = estimate_tissue(scan.array, scan.spacing)
        assert (tissue[scan.array > 600] == Tissue.CORTEX).mean() > 0.9
        assert (tissue == Tissue.DENSE).mean() < 0.01
        case = synthesize_inserted(scan, PRESETS["ct", "limb"].priors, (2, 0))
        soft = np.isin(tissue, (Tissue.SKIN, Tissue.FAT, Tissue.MUSCLE))
        assert (case.image == scan.array)[~soft].all()
        assert case.label.any()
