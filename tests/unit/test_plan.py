"""What follows from a data set and a memory; figures by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from jdm_seg.cases import Case
from jdm_seg.config import compose
from jdm_seg.errors import InputError
from jdm_seg.networks import as_levels, build_network
from jdm_seg.plan import Fingerprint, as_chosen, fingerprint, is_open, plan, training_memory
from jdm_seg.train import train

GB = 10**9


def auto(*overrides: str):
    return compose(["experiment=auto", "data.root=anywhere", "trainer.accelerator=cpu", *overrides])


def like(spacing, extent) -> Fingerprint:
    return Fingerprint(10, (spacing, spacing, spacing), extent, 5, (20.0, 100.0, 900.0), (150.0, 300.0, 800.0))


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    """Two scans of other axes and voxels; one ball of 33 voxels and one voxel."""
    made = []
    for number, (spacing, axes) in enumerate(((1.0, (1, 1, 1)), (2.0, (-1, 1, 1)))):
        hu = np.full((30, 40, 50), -50, np.int16)
        mask = np.zeros(hu.shape, np.uint8)
        at = np.stack(np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij"), -1)
        mask[((at - 15) ** 2).sum(-1) <= 4] = 1
        mask[25, 35, 45] = 1
        hu[mask == 1] = 400
        affine = np.diag([*(spacing * a for a in axes), 1.0])
        paths = [tmp_path / f"{kind}{number}.nii.gz" for kind in ("image", "label")]
        for path, array in zip(paths, (hu, mask), strict=True):
            nib.save(nib.Nifti1Image(array, affine), path)
        made.append(Case(f"c{number}", f"c{number}", "ct", *paths))
    return made


def test_a_fingerprint_by_hand(cases):
    found = fingerprint(cases)
    assert found.spacing_mm[1] == (1.5, 1.5, 1.5)
    assert found.extent_mm == (45.0, 60.0, 75.0)
    assert found.lesions == 4
    assert found.lesion_mm3[1] == pytest.approx(np.median([1, 33, 8, 264]))
    assert found.lesion_values == (400.0, 400.0, 400.0)


def test_what_is_given_stays():
    given = ("preprocess.spacing=[2,2,2]", "data.batch_size=3")
    full, _ = plan(auto(*given), like((1.0, 1.0, 1.0), (300.0, 300.0, 300.0)), 16 * GB)
    assert (full.preprocess.spacing, full.data.batch_size) == ((2.0, 2.0, 2.0), 3)
    assert not is_open(full)
    assert not is_open(compose(["experiment=ct_smoke"]))


def test_windows_show_as_much_along_each_axis():
    full, _ = plan(auto(), like((1.5, 5.0, 1.5), (400.0, 200.0, 400.0)), 64 * GB)
    assert full.preprocess.spacing == (1.5, 5.0, 1.5)
    sides = np.multiply(full.data.patch_size, full.preprocess.spacing)
    assert sides.max() <= 144 + 16 * 5
    assert full.data.patch_size[0] == full.data.patch_size[2] > 2 * full.data.patch_size[1]


def test_a_thin_scan_is_halved_less_often():
    full, facts = plan(auto(), like((1.0, 1.0, 6.0), (200.0, 200.0, 60.0)), 64 * GB)
    assert len(full.network["channels"]) == 3
    assert full.data.patch_size[2] == 16  # ten slices, and what is beyond them
    assert facts["chosen"]["channels"] == [32, 64, 128]


def test_slices_much_thicker_than_pixels_are_those_of_the_finer_scans():
    rows = ((1.0, 1.0, 3.0), (1.0, 1.0, 5.0), (1.0, 1.0, 8.0))
    found = replace(like((1.0, 1.0, 5.0), (200.0, 200.0, 200.0)), spacing_mm=rows)
    assert plan(auto(), found, 64 * GB)[0].preprocess.spacing == (1.0, 1.0, 3.0)


def test_slices_that_lie_in_two_ways_are_followed(tmp_path):
    """Two axial scans and a coronal one, by hand: the third is described as an axial one."""
    made = []
    for number, spacing in enumerate(((1.0, 1.0, 5.0), (1.0, 1.0, 6.0), (1.5, 5.0, 1.5))):
        path = tmp_path / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((20, 30, 40), np.int16), np.diag([*spacing, 1.0])), path)
        made.append(Case(f"c{number}", f"c{number}", "stir", path))
    found = fingerprint(made)
    assert found.slices_across == (0, 1, 2)
    assert found.spacing_mm[1] == (1.0, 1.0, 5.0)
    assert found.extent_mm == (20.0, 30.0, 200.0)  # of 20 x 30 x 200, 20 x 30 x 240 and 30 x 60 x 150
    full, facts = plan(auto(), found, 64 * GB)
    assert full.preprocess.follow_slices
    assert facts["chosen"]["follow_slices"]
    assert not plan(auto(), fingerprint(made[:2]), 64 * GB)[0].preprocess.follow_slices
    given, _ = plan(auto("preprocess.spacing=[1,1,1]"), found, 64 * GB)
    assert not given.preprocess.follow_slices


@pytest.mark.parametrize("memory", [4 * GB, 8 * GB, 32 * GB])
def test_less_memory_gives_a_smaller_step(memory):
    """The prediction is compared with what autograd keeps at the size that was chosen."""
    full, facts = plan(auto(), like((1.0, 1.0, 1.0), (400.0, 400.0, 1500.0)), memory)
    assert facts["memory"]["expected_bytes"] <= 0.6 * memory
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network = build_network(full.network).train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        as_levels(network(torch.zeros(full.data.batch_size, 1, *full.data.patch_size)))
    assert sum(kept.values()) < facts["memory"]["expected_bytes"] < 4 * sum(kept.values())


def test_a_large_memory_is_used_and_a_small_one_is_not_overrun():
    wide = like((1.0, 1.0, 1.0), (400.0, 400.0, 1500.0))
    (small, facts), (large, _) = (plan(auto(), wide, memory) for memory in (GB // 3, 64 * GB))
    voxels = [int(np.prod(config.data.patch_size)) * config.data.batch_size for config in (small, large)]
    assert voxels[0] < 0.5 * voxels[1]
    assert facts["memory"]["expected_bytes"] <= GB // 3


def test_little_memory_gives_a_shallower_network_and_a_window_that_shows_more():
    wide = like((1.0, 1.0, 1.0), (400.0, 400.0, 1500.0))
    depths = {}
    for memory in (GB // 5, 64 * GB):
        config, facts = plan(auto(), wide, memory)
        depths[memory] = len(config.network["channels"])
        assert min(config.data.patch_size) >= 4 * 2 ** depths[memory]
        assert facts["memory"]["expected_bytes"] <= 0.6 * memory
    assert depths == {GB // 5: 3, 64 * GB: 4}
    # nor are scans of few slices, which no memory makes more of
    thick, _ = plan(auto(), like((1.0, 1.0, 5.0), (400.0, 400.0, 200.0)), 64 * GB)
    assert len(thick.network["channels"]) == 4
    # a window that is given is no reason to go less deep
    given, _ = plan(auto("data.patch_size=[32,32,32]"), wide, 64 * GB)
    assert len(given.network["channels"]) == 4


def test_a_run_that_goes_on_keeps_its_plan_but_for_what_is_given_now():
    chosen = {"spacing": [1.2, 1.2, 3.0], "follow_slices": True, "patch_size": [96, 96, 32], "batch_size": 4}
    assert as_chosen(auto(), chosen).data.batch_size == 4
    given = as_chosen(auto("data.batch_size=1", "preprocess.spacing=[1,1,1]"), chosen)
    assert given.data.batch_size == 1
    assert given.preprocess.spacing == (1, 1, 1)
    assert not given.preprocess.follow_slices
    assert given.data.patch_size == (96, 96, 32)


def test_a_memory_that_is_too_small_is_said():
    with pytest.raises(InputError, match=r"data.patch_size: expected a window that is trained in 0.0 GB"):
        plan(auto(), like((1.0, 1.0, 1.0), (400.0, 400.0, 400.0)), GB // 25)


def test_memory_grows_with_the_network():
    small, large = (
        training_memory({"_target_": "jdm_seg.networks.SpaceToDepthUNet", "channels": channels}, 16)
        for channels in ([16, 32, 64, 128], [32, 64, 128, 192])
    )
    assert 1.5 < large[0] / small[0] < 2.1
    assert large[1] > 2 * small[1]


def test_a_data_set_trains_without_a_number_set_by_hand(cases, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"image": str(c.image), "label": str(c.label), "case_id": c.case_id} for c in cases]
    (folder / "datalist.json").write_text(json.dumps({"modality": "ct", "training": rows[:1], "validation": rows[1:]}))
    given = [f"data.root={folder}", f"data.cache={tmp_path / 'cache'}", "data.patches_per_epoch=2"]
    config = auto(*given, "trainer.max_epochs=1", "network.channels=[8,8,16]", "trainer.precision=32-true")
    run = train(config, tmp_path / "run")
    planned = json.loads((run / "plan.json").read_text())
    assert planned["fingerprint"]["lesions"] == 2
    assert planned["chosen"]["spacing"] == [1.0, 1.0, 1.0]
    assert planned["chosen"]["patch_size"] == [32, 40, 56]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    # with less memory than the first part had: it goes on with the same windows all the same
    monkeypatch.setattr("jdm_seg.train.free_memory", lambda _: 10**6)
    train(replace(config, ckpt="last", trainer=replace(config.trainer, max_epochs=2)), run)
    assert json.loads((run / "plan.json").read_text())["chosen"] == planned["chosen"]
    assert json.loads((run / "run.json").read_text())["epochs"] == 2
    elsewhere = replace(config, ckpt=str(run / "checkpoints" / "last.ckpt"))
    train(replace(elsewhere, trainer=replace(config.trainer, max_epochs=3)), tmp_path / "elsewhere")
    assert json.loads((tmp_path / "elsewhere" / "plan.json").read_text()) == planned
    with pytest.raises(InputError, match=r"data.patch_size: expected"):  # a new run would not
        train(config, tmp_path / "other")
