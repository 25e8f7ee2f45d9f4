"""A run that is disturbed ends where an undisturbed one ends; and what happens around its steps."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from jdm_seg.cache import CaseCache, read_sample
from jdm_seg.cases import Case
from jdm_seg.config import PreprocessConfig, compose, plain
from jdm_seg.data import CaseDataModule
from jdm_seg.errors import InputError
from jdm_seg.module import SegmentationModule
from jdm_seg.patches import EpochSampler, PatchDataset, Source
from jdm_seg.train import begin_with, load_module, train
from jdm_seg.transforms import LoadCase

SETTINGS = [
    "network.channels=[8,16]",
    "data.patch_size=[32,32,32]",
    "data.batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.progress=false",
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    """Six small labelled cases of noise with a bright ball."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    datalist: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    at = np.stack(np.meshgrid(*(np.arange(40),) * 3, indexing="ij"), -1)
    for number in range(6):
        centre = rng.integers(10, 30, 3)
        ball = ((at - centre) ** 2).sum(-1) < 16
        hu = np.where(((at[..., :2] - 20) ** 2).sum(-1) < 300, 40, -1000) + rng.normal(0, 10, ball.shape) + 400 * ball
        for kind, array in (("images", hu.astype(np.int16)), ("labels", ball.astype(np.uint8))):
            (folder / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1])), folder / kind / f"c{number}.nii.gz")
        row = {"image": f"images/c{number}.nii.gz", "label": f"labels/c{number}.nii.gz"}
        datalist["training" if number < 4 else "validation"].append(row)
    (folder / "datalist.json").write_text(json.dumps({"modality": "ct", **datalist}))
    return folder


def configured(cases: Path, run: Path, *overrides: str):
    given = [f"data.root={cases}", f"data.cache={cases / 'cache'}", f"run_dir={run}"]
    return compose(["data=labelled", *given, *SETTINGS, *overrides])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_module(run / "checkpoints" / "last.ckpt").network.state_dict())


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


LONG = ("data.patches_per_epoch=12", "trainer.max_epochs=3", "trainer.validate_every=1", "data.workers=0")


@pytest.fixture(scope="module")
def undisturbed(cases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train(configured(cases, folder, *LONG), folder)


TOLD_TO_GO = """
import os, signal, sys
from pathlib import Path
from jdm_seg.config import compose
from jdm_seg.module import SegmentationModule
from jdm_seg.train import train

step, run, *overrides = sys.argv[1:]
learn = SegmentationModule.training_step


def told_to_go(self, batch, batch_index):
    if self.global_step == int(step) - 1:
        os.killpg(os.getpgrp(), signal.SIGTERM)
    return learn(self, batch, batch_index)


SegmentationModule.training_step = told_to_go
train(compose(overrides), Path(run))
"""


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (6, 0), (9, 1), (17, 0)])
def test_a_run_asked_to_stop_anywhere_goes_on_exactly(cases, undisturbed, tmp_path, step, workers):
    """Steps 2, 9 and 17 lie inside an epoch of six, step 6 is its last; every process of the job hears the signal."""
    run = tmp_path / "run"
    overrides = ["data=labelled", f"data.root={cases}", f"data.cache={cases / 'cache'}", *SETTINGS, *LONG]
    command = [sys.executable, "-c", TOLD_TO_GO, str(step), str(run), *overrides, f"data.workers={workers}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, start_new_session=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads((run / "run.json").read_text())
    assert (facts["status"], facts["steps"]) == ("stopped", step)
    train(configured(cases, run, *LONG, "ckpt=last"), run)
    assert json.loads((run / "run.json").read_text())["steps"] == 18
    assert_same_weights(run, undisturbed)


def test_a_killed_process_goes_on_exactly(cases, undisturbed, tmp_path):
    """SIGKILL at any moment: what was saved last, by time, is whole."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()", "train", "data=labelled"]
    command += [f"data.root={cases}", f"data.cache={cases / 'cache'}", f"run_dir={run}", *SETTINGS, *LONG]
    command += ["callbacks.safe_stop.every_minutes=0.0001"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.kill()
    process.wait()
    done = subprocess.run([*command, "ckpt=last"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same_weights(run, undisturbed)


def test_a_file_named_stop_ends_a_run(cases, tmp_path, monkeypatch):
    learn = SegmentationModule.training_step

    def step(self, batch, batch_index):
        if self.global_step == 3:
            (tmp_path / "run" / "stop").touch()
        return learn(self, batch, batch_index)

    monkeypatch.setattr(SegmentationModule, "training_step", step)
    train(configured(cases, tmp_path / "run", *LONG), tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["status"], facts["steps"]) == ("stopped", 4)


def test_averaged_weights_are_what_is_kept(cases, tmp_path):
    """With a decay of 1 the average never leaves the first step's weights; plain training does."""
    frozen = ["callbacks=long", "callbacks.average.decay=1.0", "data.patches_per_epoch=4", "trainer.max_epochs=2"]
    train(configured(cases, tmp_path / "a", *frozen), tmp_path / "a")
    train(configured(cases, tmp_path / "b", *frozen[2:]), tmp_path / "b")
    train(configured(cases, tmp_path / "c", "data.patches_per_epoch=2", "trainer.max_epochs=1"), tmp_path / "c")
    averaged, plain_end = weights(tmp_path / "a"), weights(tmp_path / "b")
    name = next(n for n, w in averaged.items() if w.ndim == 5)
    assert not torch.equal(averaged[name], plain_end[name])


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_a_compiled_run_learns_the_same(cases, tmp_path):
    losses, kept = {}, {}
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        train(configured(cases, run, *LONG, "trainer.max_epochs=1", f"trainer.compile={compiled}"), run)
        with (run / "metrics.csv").open() as file:
            losses[compiled] = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
        kept[compiled] = weights(run)
    assert len(losses["true"]) == 6
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
    for name, values in kept["false"].items():
        assert torch.allclose(kept["true"][name], values, atol=1e-3), name


def test_without_a_compiler_training_goes_on_and_says_so(cases, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("jdm_seg.train.shutil.which", lambda name: None)
    run = tmp_path / "run"
    train(configured(cases, run, *LONG, "trainer.max_epochs=1", "trainer.compile=true"), run)
    assert "no C++ compiler" in caplog.text
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_what_is_logged(cases, undisturbed):
    with (undisturbed / "metrics.csv").open(newline="") as stream:
        columns = next(csv.reader(stream))
    assert {"train/loss", "val/dice", "val/lesion_f1", "val/recall_3_to_10_mm"} <= set(columns)
    assert sorted(p.name for p in (undisturbed / "examples").iterdir()) == [f"epoch_{n:04d}.png" for n in (1, 2, 3)]


def test_two_processes_see_every_patch_once():
    whole = list(EpochSampler(24, 3))
    ranks = [list(EpochSampler(24, 3, rank=rank, world_size=2)) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == sorted(whole)
    assert len(ranks[0]) == len(ranks[1]) == 12
    # the batches of both ranks at one step together are consecutive patches
    assert sorted(ranks[0][:3] + ranks[1][:3]) == whole[:6]


def test_two_processes_train_together(cases, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()", "train", "data=labelled"]
    command += [f"data.root={cases}", f"data.cache={cases / 'cache'}", f"run_dir={run}", *SETTINGS]
    command += ["data.patches_per_epoch=8", "trainer.max_epochs=2", "trainer.validate_every=1", "trainer.devices=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads((run / "run.json").read_text())
    assert (facts["status"], facts["steps"]) == ("finished", 4)
    assert facts["validation"]["val/lesion_f1"] is not None


def sample_of(cases: Path, number: int, cache: Path):
    case = Case(f"c{number}", f"c{number}", "ct", *(cases / k / f"c{number}.nii.gz" for k in ("images", "labels")))
    return case, CaseCache(cache, LoadCase(PreprocessConfig()), PreprocessConfig())


def test_the_cache_gives_back_what_was_prepared(cases, tmp_path):
    case, cache = sample_of(cases, 0, tmp_path / "cache")
    (folder,) = cache.prepare([case])
    made, wanted = read_sample(folder), LoadCase(PreprocessConfig())(case)
    assert set(made) == set(wanted)
    assert isinstance(made["image"], np.memmap)
    for key, value in wanted.items():
        assert np.array_equal(made[key], value), key


def test_the_cache_makes_a_case_once_and_again_when_its_file_changes(cases, tmp_path):
    case, cache = sample_of(cases, 1, tmp_path / "cache")
    (first,) = cache.prepare([case])
    stamp = (first / "sample.json").stat().st_mtime_ns
    assert cache.prepare([case]) == [first]
    assert (first / "sample.json").stat().st_mtime_ns == stamp
    copy = tmp_path / "c1.nii.gz"
    copy.write_bytes(case.image.read_bytes())
    (other,) = cache.prepare([replace(case, image=copy)])
    assert other != first
    (first / "sample.json").unlink()  # a killed build
    assert cache.prepare([case]) == [first]
    assert (first / "sample.json").is_file()
    assert not list((tmp_path / "cache").glob("*.part"))


def test_sources_take_turns_by_their_shares(cases, tmp_path):
    case, cache = sample_of(cases, 2, tmp_path / "cache")
    folders = cache.prepare([case])
    dataset = PatchDataset([Source(folders, [], share) for share in (3, 0, 5, 2)], seed=0)
    turns = [dataset._turn(number) for number in range(1000)]
    for source, count in ((0, 300), (1, 500), (2, 200)):
        assert [within for turn, within in turns if turn == source] == list(range(count))
    for start in range(0, 990, 10):
        assert 2 <= sum(turn == 0 for turn, _ in turns[start : start + 10]) <= 4


def test_labelled_cases_and_unlabelled_scans_are_mixed(cases, tmp_path):
    overrides = [f"data.backgrounds={cases / 'images'}", "data.folds=3"]
    config = configured(cases, tmp_path / "run", *overrides)
    # the same scans on both sides: the split must keep a person on one side
    data = CaseDataModule(config.data, config.preprocess, config.augment, 0)
    with pytest.raises(Exception, match="expected"):
        data.setup()
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(3):
        (scans / f"s{number}.nii.gz").write_bytes((cases / "images" / f"c{number}.nii.gz").read_bytes())
    config = replace(config, data=replace(config.data, backgrounds=str(scans)))
    data = CaseDataModule(config.data, config.preprocess, config.augment, 0)
    data.setup()
    ids = [data._patches[0, number]["case_id"] for number in range(12)]
    assert sum(i.startswith("s") for i in ids) == 6
    assert sum(i.startswith("c") for i in ids) == 6


def test_validation_cases_are_named_and_nobody_moves_when_cases_are_added(cases, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()

    def split(*names):
        overrides = ["data=backgrounds", f"data.backgrounds={scans}", "data.synthesize=null", *names]
        config = compose([*overrides, f"data.cache={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"])
        data = CaseDataModule(config.data, config.preprocess, config.augment, 0)
        return [[case.case_id for case in part] for part in data.split()]

    for number in range(6):
        (scans / f"s{number}.nii.gz").write_bytes((cases / "images" / f"c{number}.nii.gz").read_bytes())
    assert split("data.validation=[s4,s1]") == [["s0", "s2", "s3", "s5"], ["s1", "s4"]]
    (scans / "s6.nii.gz").write_bytes((scans / "s0.nii.gz").read_bytes())
    assert split("data.validation=[s4,s1]") == [["s0", "s2", "s3", "s5", "s6"], ["s1", "s4"]]
    with pytest.raises(InputError, match=r"data\.validation.*s9"):
        split("data.validation=[s4,s9]")


def test_hard_patches_hold_something_bright(cases, tmp_path):
    config = configured(cases, tmp_path / "run", "data.foreground_share=0", "data.hard_share=1", "augment=none")
    data = CaseDataModule(config.data, config.preprocess, config.augment, 0)
    data.setup()
    sample = read_sample(data._patches.sources[0].folders[0])
    assert (np.asarray(sample["image"])[0][tuple(sample["hard"].T)] > 150).all()
    assert (np.asarray(sample["label"])[0][tuple(sample["hard"].T)] == 0).all()


def test_one_patch_again_and_again(cases, tmp_path):
    config = configured(cases, tmp_path / "run", "data.repeat_one=true")
    data = CaseDataModule(config.data, config.preprocess, config.augment, 0)
    data.setup()
    first = data._patches[0, 0]
    assert all(data._patches[0, number] is first for number in range(5))


def test_the_config_of_a_run_holds_what_it_was_told(undisturbed):
    written = yaml.safe_load((undisturbed / "config.yaml").read_text())
    assert written["data"]["patches_per_epoch"] == 12
    assert written == json.loads(json.dumps(plain(written)))


def test_finetuning_begins_with_a_models_weights_and_mixes_in_synthesis(cases, undisturbed, tmp_path):
    synthetic = tmp_path / "synthetic"
    overrides = [f"init={undisturbed}", f"data.root={cases}", f"data.synthesize.root={synthetic}"]
    overrides += ["data.synthesize.cases=2", "data.synthesize.preset=smoke", f"data.cache={tmp_path / 'cache'}"]
    overrides += [f"run_dir={tmp_path / 'run'}", *SETTINGS[1:], "data.patches_per_epoch=4", "trainer.max_epochs=1"]
    config = compose(["experiment=finetune", *overrides, "optimizer.lr=0.0", "optimizer.weight_decay=0.0"])
    begun, _ = begin_with(config)
    assert begun.network["channels"] == [8, 16]  # the model's own, nobody typed it
    wide, wider = begin_with(replace(config, init_channels=[12, 16], init_spacing=(1.0, 1.0, 2.5)))
    assert wide.network["channels"] == [12, 16]
    assert wide.preprocess == replace(begun.preprocess, spacing=(1.0, 1.0, 2.5))
    assert wider["stem.weight"].shape[0] == 12
    run = train(config, tmp_path / "run")
    # best.ckpt is what init takes; a learning rate of zero leaves it as it was
    wanted = load_module(undisturbed / "checkpoints" / "best.ckpt").network.state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in weights(run).items())
    data = CaseDataModule(config.data, begun.preprocess, config.augment, 0)
    data.setup()
    assert sum(data._patches[0, number]["case_id"].startswith("ct-smoke") for number in range(10)) == 5
    with pytest.raises(InputError, match="init: expected a model of stir"):
        begin_with(replace(config, preprocess=replace(config.preprocess, modality="stir")))
