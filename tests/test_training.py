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
from lightning import seed_everything
from lightning.pytorch.callbacks import EarlyStopping, Timer

from jdm_seg.cache import CaseCache, read_sample
from jdm_seg.cases import Case
from jdm_seg.config import PreprocessConfig, _run_dir, compose, plain
from jdm_seg.data import CaseDataModule
from jdm_seg.errors import InputError
from jdm_seg.module import SegmentationModule
from jdm_seg.networks import build_network
from jdm_seg.patches import EpochSampler, PatchDataset, Source
from jdm_seg.train import _build_trainer, begin_with, load_module, train
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

step, name, run, *overrides = sys.argv[1:]
learn = SegmentationModule.training_step


def told_to_go(self, batch, batch_index):
    if self.global_step == int(step) - 1:
        os.killpg(os.getpgrp(), getattr(signal, name))
    return learn(self, batch, batch_index)


SegmentationModule.training_step = told_to_go
train(compose(overrides), Path(run))
"""


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (6, 0), (9, 1), (17, 0)])
def test_a_run_asked_to_stop_anywhere_goes_on_exactly(cases, undisturbed, tmp_path, step, workers):
    """Steps 2, 9 and 17 lie inside an epoch of six, step 6 is its last; every process of the job hears the signal."""
    run = tmp_path / "run"
    overrides = ["data=labelled", f"data.root={cases}", f"data.cache={cases / 'cache'}", *SETTINGS, *LONG]
    command = [sys.executable, "-c", TOLD_TO_GO, str(step), "SIGTERM", str(run), *overrides, f"data.workers={workers}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, start_new_session=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads((run / "run.json").read_text())
    assert (facts["status"], facts["steps"]) == ("stopped", step)
    train(configured(cases, run, *LONG, "ckpt=last"), run)
    assert json.loads((run / "run.json").read_text())["steps"] == 18
    assert_same_weights(run, undisturbed)


FAKE_SLURM = """#!/bin/sh
echo "$@" >> "$ASKED"
"""


@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", 0), ("SIGUSR1", 0), ("SIGUSR2", 1)])
def test_a_job_that_is_warned_goes_back_into_the_queue_and_on_from_there(cases, undisturbed, tmp_path, name, workers):
    """Slurm's part is played by a file that notes what it is asked: requeue the job."""
    run, programs = tmp_path / "run", tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(FAKE_SLURM)
    (programs / "scontrol").chmod(0o755)
    overrides = ["data=labelled", f"data.root={cases}", f"data.cache={cases / 'cache'}", *SETTINGS, *LONG]
    environment = {**os.environ, "SLURM_JOB_ID": "71", "ASKED": str(tmp_path / "asked")}
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"

    def start(step: int, **more: str):
        command = [sys.executable, "-c", TOLD_TO_GO, str(step), name, str(run), *overrides, f"data.workers={workers}"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, start_new_session=True,
            env={**environment, **more},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads((run / "run.json").read_text())

    assert start(4)["status"] == "stopped"
    assert (tmp_path / "asked").read_text() == "requeue 71\n"
    facts = start(0, SLURM_RESTART_COUNT="1")  # the same command; nothing tells it to go this time
    assert (facts["status"], facts["steps"]) == ("finished", 18)
    assert (tmp_path / "asked").read_text() == "requeue 71\n"
    assert_same_weights(run, undisturbed)


def test_a_job_of_several_processes_has_one_folder(monkeypatch, tmp_path):
    def folder(ckpt: str | None = None) -> str:
        return Path(_run_dir(str(tmp_path), "mine", ckpt)).name

    first = tmp_path / "mine" / "slurm-71"
    first.mkdir(parents=True)  # another process of the step was faster
    for key, value in {"SLURM_JOB_ID": "71", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(key, value)
    assert folder() == folder("last") == folder("elsewhere.ckpt") == "slurm-71"
    (first / "checkpoints").mkdir()
    (first / "checkpoints" / "last.ckpt").touch()
    assert folder() == "slurm-71-0-2"  # a second training of the step overwrites nothing
    assert folder("last") == "slurm-71"
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert folder() == "slurm-71-1"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not folder().startswith("slurm")  # taken; nobody else has to know its name
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert folder() == "slurm-71"


STEPS_200 = ("data.patches_per_epoch=136", "trainer.max_epochs=3", "trainer.validate_every=3", "data.workers=0")


def test_a_killed_process_goes_on_exactly(cases, tmp_path):
    """204 steps, saved after each, killed twice while one of the next is under way: what was saved last is whole."""
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()", "train", "data=labelled"]
    command += [f"data.root={cases}", f"data.cache={cases / 'cache'}", *SETTINGS, *STEPS_200]
    command += ["callbacks.safe_stop.every_minutes=0.0001"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    last = run / "checkpoints" / "last.ckpt"
    for more in ([], ["ckpt=last"]):
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen([*command, f"run_dir={run}", *more], stdout=said, stderr=said)
        seen = {last.stat().st_mtime_ns} if more else set()
        deadline = time.monotonic() + 120
        while len(seen) < 20 and process.poll() is None and time.monotonic() < deadline:
            if last.exists():
                seen.add(last.stat().st_mtime_ns)
            time.sleep(0.001)
        assert process.poll() is None, (tmp_path / "said").read_text()
        process.kill()
        process.wait()
    for folder, more in ((run, ["ckpt=last"]), (whole, [])):
        done = subprocess.run(
            [*command, f"run_dir={folder}", *more], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / "run.json").read_text())["steps"] == 204
    assert_same_weights(run, whole)


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


def test_averaged_weights_are_what_is_kept(cases, tmp_path, monkeypatch):
    """Against the mean by hand: it begins with the first step's weights, and each further one halves its distance."""
    seen: list[dict[str, torch.Tensor]] = []

    def after_step(self, outputs, batch, batch_index):
        seen.append({name: weight.detach().clone() for name, weight in self.network.state_dict().items()})

    monkeypatch.setattr(SegmentationModule, "on_train_batch_end", after_step)
    settings = ["callbacks=long", "callbacks.average.decay=0.5", "data.patches_per_epoch=4", "trainer.max_epochs=2"]
    train(configured(cases, tmp_path / "a", *settings, "trainer.validate_every=2"), tmp_path / "a")
    assert len(seen) == 4
    averaged = weights(tmp_path / "a")
    for name, wanted in seen[0].items():
        for later in seen[1:]:
            wanted = 0.5 * wanted + 0.5 * later[name]
        assert torch.allclose(averaged[name], wanted, atol=1e-6), name


def test_averaged_weights_go_on_exactly(cases, tmp_path):
    settings = [*LONG, "callbacks=long", "callbacks.average.decay=0.9"]
    train(configured(cases, tmp_path / "whole", *settings), tmp_path / "whole")
    run = tmp_path / "run"
    given = ["data=labelled", f"data.root={cases}", f"data.cache={cases / 'cache'}", *SETTINGS, *settings]
    command = [sys.executable, "-c", TOLD_TO_GO, "9", "SIGTERM", str(run), *given]
    subprocess.run(command, check=True, capture_output=True, timeout=300, start_new_session=True)
    assert json.loads((run / "run.json").read_text())["steps"] == 9
    train(configured(cases, run, *settings, "ckpt=last"), run)
    assert_same_weights(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("schedule", "at"),
    [("cosine", lambda left: (1 - np.cos(np.pi * left)) / 2), ("poly", lambda left: left**0.9), ("constant", None)],
)
def test_the_learning_rate_rises_and_falls_as_stated(cases, tmp_path, monkeypatch, schedule, at):
    rates = []
    learn = SegmentationModule.training_step

    def step(self, batch, batch_index):
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return learn(self, batch, batch_index)

    monkeypatch.setattr(SegmentationModule, "training_step", step)
    settings = ["data.patches_per_epoch=24", "trainer.max_epochs=1", "trainer.warmup_steps=3", "optimizer.lr=0.01"]
    train(configured(cases, tmp_path / "run", *settings, f"trainer.schedule={schedule}"), tmp_path / "run")
    falling = [1.0 if at is None else at(1 - k / 9) for k in range(9)]
    assert rates == pytest.approx([0.01 * f for f in (1 / 4, 2 / 4, 3 / 4, *falling)])


def test_bf16_is_what_it_computes_in_where_asked(cases, tmp_path, monkeypatch):
    kinds = set()
    learn = SegmentationModule.training_step

    def step(self, batch, batch_index):
        kinds.add(self.network(batch["image"])[0].dtype)
        return learn(self, batch, batch_index)

    monkeypatch.setattr(SegmentationModule, "training_step", step)
    run = tmp_path / "run"
    train(configured(cases, run, *LONG, "trainer.max_epochs=1", "trainer.precision=bf16-mixed"), run)
    assert kinds == {torch.bfloat16}
    assert json.loads((run / "run.json").read_text())["precision"] == "bf16-mixed"
    assert all(torch.isfinite(w).all() and w.dtype == torch.float32 for w in weights(run).values())


def test_settings_reach_the_trainer(cases, tmp_path):
    given = ["trainer.gradient_clip=0.7", "trainer.accumulate=3", "trainer.max_minutes=2"]
    try:
        trainer = _build_trainer(configured(cases, tmp_path, *given, "callbacks=long"), tmp_path)
        assert torch.are_deterministic_algorithms_enabled()  # so it is on CPUs
    finally:
        torch.use_deterministic_algorithms(False)
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (0.7, 3)
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
    assert timer._duration == 120
    (early,) = (callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping))
    assert early.patience == 15
    _build_trainer(configured(cases, tmp_path, "trainer.deterministic=false"), tmp_path)
    assert not torch.are_deterministic_algorithms_enabled()


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
    assert {"train/loss", "val/dice", "val/lesion_f1", "val/recall_3_to_10_mm", "val/f1_3_to_10_mm"} <= set(columns)
    assert sorted(p.name for p in (undisturbed / "examples").iterdir()) == [f"epoch_{n:04d}.png" for n in (1, 2, 3)]


def test_tensorboard_shows_figures_and_slices(cases, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    given = ["logger=tensorboard", "callbacks.throughput.every_steps=2", "trainer.max_epochs=1"]
    train(configured(cases, run, *LONG, *given), run)
    events = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    speeds = {"speed/patches_per_s", "speed/data_wait"}
    assert {"train/loss", "val/lesion_f1", *speeds} <= set(events.Tags()["scalars"])
    assert all(0 <= event.value <= 1 for event in events.Scalars("speed/data_wait"))
    assert events.Images("examples")[0].width > 100
    assert (run / "metrics.csv").is_file()


def test_lesions_are_counted_by_their_size(undisturbed):
    """Two of 6 mm, one of them found, and a false one of 15 mm: found, false and missed of each size by hand."""
    reference, prediction = np.zeros((2, 40, 40, 40), bool)
    reference[4:8, 4:8, 4:8] = reference[4:8, 4:8, 30:34] = True
    prediction[5:8, 4:8, 4:8] = prediction[20:30, 20:30, 20:30] = True
    _, tp, fp, fn, *by_size = load_module(undisturbed / "checkpoints" / "best.ckpt")._score(prediction, reference)
    assert (tp, fp, fn) == (1, 1, 1)
    assert np.reshape(by_size, (3, 3)).tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_two_processes_see_every_patch_once():
    whole = list(EpochSampler(24, 3))
    ranks = [list(EpochSampler(24, 3, rank=rank, world_size=2)) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == sorted(whole)
    assert len(ranks[0]) == len(ranks[1]) == 12
    # the batches of both ranks at one step together are consecutive patches
    assert sorted(ranks[0][:3] + ranks[1][:3]) == whole[:6]


def test_two_processes_train_together(cases, tmp_path):
    """Two processes of two patches learn what one of four does: gradients are averaged over the same patches."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()", "train", "data=labelled"]
    command += [f"data.root={cases}", f"data.cache={cases / 'cache'}", f"run_dir={run}", *SETTINGS]
    given = ["data.patches_per_epoch=8", "trainer.max_epochs=2", "trainer.validate_every=1", "optimizer=sgd"]
    command += [*given, "trainer.devices=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads((run / "run.json").read_text())
    assert (facts["status"], facts["steps"]) == ("finished", 4)
    assert facts["validation"]["val/lesion_f1"] is not None
    alone = tmp_path / "alone"
    train(configured(cases, alone, *given, "data.batch_size=4"), alone)
    together, apart = weights(run), weights(alone)
    config = configured(cases, alone, *given)
    seed_everything(config.seed, workers=True, verbose=False)
    begun = build_network(config.network).state_dict()
    moved = max((weight - begun[name]).abs().max().item() for name, weight in apart.items())
    assert 1e-4 < moved < 0.1  # the same first weights, and something was learnt
    for name, weight in apart.items():
        assert torch.allclose(together[name], weight, atol=1e-2 * moved), name


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
