"""Which patches a training sees, and what their labels say."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.cases import Case, read_manifest
from jdm_seg.config import PreprocessConfig, compose
from jdm_seg.data import CaseDataModule
from jdm_seg.errors import CaseNotFoundError
from jdm_seg.synthesis.anatomy.tissue import Tissue
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.synthesis.insert import IGNORE, OEDEMA, SKELETON, InsertCalcinosisd
from jdm_seg.transforms import CropPatchd, LoadCase

SHAPE = (200, 100, 100)
SIDE = 20
DRAWS = 800
LARGE, SMALL, BRIGHT = 10, 11, 12


@pytest.fixture(scope="module")
def sample():
    """A large and a small deposit and one bright place, far from each other; their voxels are numbered in the label."""
    label = np.zeros(SHAPE, np.uint8)
    label[20:30, 45:55, 45:55], label[110, 50, 50], label[170, 50, 50] = LARGE, SMALL, BRIGHT
    members = np.argwhere(label == LARGE)[::16]
    points = np.concatenate([np.column_stack([np.zeros(len(members)), members]), [[1, 110, 50, 50]]]).astype(np.int32)
    arrays = {"image": np.zeros((1, *SHAPE), np.float32), "label": label[None]}
    return {**arrays, "points": points, "hard": np.array([[170, 50, 50]], np.int32)}


def patches_of(sample, foreground: float, hard: float):
    crop = CropPatchd((SIDE,) * 3, foreground, -1.0, hard_share=hard).set_random_state(0)
    return [crop(sample)["label"][0] for _ in range(DRAWS)]


def test_patches_hold_deposits_and_bright_places_by_their_shares(sample):
    seen = Counter(int(patch.max()) for patch in patches_of(sample, 0.6, 0.5))
    shares = {what: seen[what] / DRAWS for what in (LARGE, SMALL, BRIGHT)}
    # a deposit is as likely as another, whatever its size; bright places share what is left; chance adds one percent
    assert shares == pytest.approx({LARGE: 0.3, SMALL: 0.3, BRIGHT: 0.2}, abs=0.06)


def test_a_share_of_zero_leaves_it_to_chance(sample):
    assert sum(patch.any() for patch in patches_of(sample, 0.0, 0.0)) < 0.1 * DRAWS


def test_deposits_lie_anywhere_but_at_the_border_of_their_patches(sample):
    where = np.array([np.argwhere(p == SMALL)[0] for p in patches_of(sample, 1.0, 0.0) if (p == SMALL).any()])
    assert where.min() >= 0.15 * SIDE - 1
    assert where.max() <= 0.85 * SIDE + 1
    for axis in range(3):
        counts = np.histogram(where[:, axis], 4, (0.15 * SIDE, 0.85 * SIDE))[0]
        assert counts.min() > 0.15 * len(where)  # of a quarter each


@pytest.mark.parametrize(("by_size", "ratio"), [(True, 8), (False, 1)])
def test_larger_scans_are_visited_more_often_if_so_asked(tmp_path, by_size, ratio):
    rows = []
    for number, side in enumerate((20, 40, 20)):
        for kind, value in (("images", 40), ("labels", 0)):
            (tmp_path / kind).mkdir(exist_ok=True)
            array = np.full((side,) * 3, value, np.int16)
            nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1])), tmp_path / kind / f"c{number}.nii.gz")
        rows.append({"image": f"images/c{number}.nii.gz", "label": f"labels/c{number}.nii.gz"})
    manifest = {"modality": "ct", "training": rows[:2], "validation": rows[2:]}
    (tmp_path / "datalist.json").write_text(json.dumps(manifest))
    given = [f"data.root={tmp_path}", f"data.cache={tmp_path / 'cache'}", f"data.by_size={str(by_size).lower()}"]
    config = compose(["data=labelled", *given])
    data = CaseDataModule(config.data, config.preprocess, config.augment, 0)
    data.setup()
    visits = Counter(data._patches[0, number]["case_id"] for number in range(90))
    assert visits["c1"] / visits["c0"] == pytest.approx(ratio, rel=0.3)


def saved(path, array):
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1])), path)
    return path


def test_bone_is_a_class_beside_deposits(tmp_path):
    """A thigh: bone in muscle in air, and a deposit as dense as bone."""
    x, y = np.meshgrid(np.arange(60) - 30, np.arange(60) - 30, indexing="ij")
    r = np.hypot(x, y)
    column = np.select([r < 5, r < 8, r < 25], [100, 1000, 50], -1000)
    hu = np.repeat(column[..., None], 40, axis=2).astype(np.int16)
    label = np.zeros(hu.shape, np.uint8)
    label[45:49, 28:32, 18:22] = 1
    hu[label == 1] = 900
    case = Case("c", "c", "ct", saved(tmp_path / "i.nii.gz", hu), saved(tmp_path / "l.nii.gz", label))
    made = LoadCase(PreprocessConfig(), skeleton=True)(case)["label"][0]
    assert made.shape == hu.shape
    assert (made[label == 1] == 1).all()
    cortex = np.broadcast_to(((r > 5.5) & (r < 7.5))[..., None], hu.shape)
    assert (made[cortex] == SKELETON).mean() > 0.98
    away = np.broadcast_to((r > 11)[..., None], hu.shape) & (label == 0)
    assert not made[away].any()
    assert SKELETON not in LoadCase(PreprocessConfig())(case)["label"]


def test_oedema_is_a_class_beside_deposits(tmp_path):
    signal = np.full((40, 40, 40), 100, np.int16)
    deposit, oedema = np.zeros((2, *signal.shape), np.uint8)
    deposit[18:22, 18:22, 18:22] = 1
    oedema[14:26, 14:26, 14:26] = 1
    signal[oedema == 1], signal[deposit == 1] = 300, 10
    paths = [saved(tmp_path / f"{n}.nii.gz", a) for n, a in (("i", signal), ("l", deposit), ("o", oedema))]
    case = Case("c", "c", "stir", paths[0], paths[1], oedema=paths[2])
    config = compose(["preprocess=stir", "preprocess.spacing=[1.5,1.5,1.5]", "preprocess.follow_slices=false"])
    made = LoadCase(config.preprocess, oedema=True)(case)["label"][0]
    assert np.array_equal(made, np.where(deposit, 1, oedema * OEDEMA))
    assert np.array_equal(LoadCase(config.preprocess)(case)["label"][0], deposit)


def thigh(tmp_path, **more):
    """A synthetic thigh on STIR by its tissue codes: marrow in cortex in muscle in fat, an artery, and air."""
    x, y = np.meshgrid(np.arange(60) - 30, np.arange(60) - 30, indexing="ij")
    r = np.hypot(x, y)
    codes = np.select([r < 5, r < 8, r < 20, r < 26], [Tissue.MARROW, Tissue.CORTEX, Tissue.MUSCLE, Tissue.FAT], 0)
    codes[np.hypot(x - 14, y) < 3] = Tissue.BLOOD
    codes[np.abs(y - 12) < 1] = np.where(codes == Tissue.MUSCLE, Tissue.FASCIA, codes)[np.abs(y - 12) < 1]
    codes = np.repeat(codes[..., None], 40, axis=2).astype(np.uint8)
    signal = np.select([codes == Tissue.MUSCLE, codes == Tissue.BLOOD], [200, 400], 10).astype(np.int16)
    paths = {name: saved(tmp_path / f"{name}.nii.gz", a) for name, a in (("image", signal), ("anatomy", codes))}
    config = compose(["preprocess=stir", "preprocess.spacing=[1.5,1.5,1.5]", "preprocess.follow_slices=false"])
    return Case("c", "c", "stir", **paths, **more), codes, config.preprocess


def test_tissues_are_classes_beside_deposits(tmp_path):
    deposit = np.zeros((60, 60, 40), np.uint8)
    deposit[12:16, 28:32, 18:22] = 1  # in muscle
    deposit[34:38, 28:32, 18:22] = 1  # across bone
    case, codes, config = thigh(tmp_path, label=saved(tmp_path / "l.nii.gz", deposit))
    expected = np.zeros(codes.shape, np.uint8)
    for number, tissues in ((2, ("MARROW", "CORTEX")), (3, ("FAT",)), (4, ("FASCIA",)), (5, ("BLOOD",))):
        expected[np.isin(codes, [Tissue[name] for name in tissues])] = number
    expected[deposit == 1] = 1
    made = LoadCase(config, anatomy=True)(case)["label"][0]
    assert np.array_equal(made, expected)
    assert set(np.unique(made)) == {0, 1, 2, 3, 4, 5}
    assert np.array_equal(LoadCase(config)(case)["label"][0], deposit)


def test_tissues_stay_beside_deposits_that_are_inserted(tmp_path):
    case, _, config = thigh(tmp_path)
    sample = LoadCase(config, host=True, anatomy=True)(case)
    insert = InsertCalcinosisd(config.spacing, probability=1.0, modality="stir")
    drawn = 0
    for seed in range(6):
        made = insert.set_random_state(seed)(sample)["label"].numpy()
        written = (made == 1) | (made == IGNORE)
        assert np.array_equal(made[~written], sample["label"][~written])
        drawn += bool((made == 1).any())
    assert drawn > 2
    assert set(np.unique(sample["label"])) == {0, 2, 3, 4, 5}  # the prepared case itself is not written to


def test_a_scan_whose_tissues_nobody_knows_teaches_none(tmp_path):
    case, _, config = thigh(tmp_path)
    with pytest.raises(CaseNotFoundError, match=r"c: expected tissue codes \(anatomy\)"):
        LoadCase(config, anatomy=True)(Case("c", "c", "stir", case.image))


def test_a_data_set_can_be_backgrounds(tmp_path):
    """Its labels are left out, and what it knows of tissues comes along; a bare folder of scans knows none."""
    out = tmp_path / "clear"
    synthesize_dataset(out, modality="stir", cases=2, seed=3, preset="smoke")
    assert all(case.anatomy is not None for case in read_manifest(out).all)
    config = compose(
        ["preprocess=stir", "data=backgrounds", f"data.backgrounds={out}", "data.folds=2", f"data.cache={tmp_path}/c"]
    )
    settings = replace(config.data, anatomy=True, patch_size=(32, 16, 32))
    data = CaseDataModule(settings, config.preprocess, config.augment, seed=0)
    training, validation = data.split()
    assert {case.label for case in (*training, *validation)} == {None}
    data.setup()
    assert any((data.train_dataloader().dataset[0, number]["label"] > 1).any() for number in range(4))
    loose = CaseDataModule(replace(settings, backgrounds=str(out / "images")), config.preprocess, config.augment, 0)
    with pytest.raises(CaseNotFoundError, match="none in the manifest"):
        loose.setup()
