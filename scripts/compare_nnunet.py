"""nnU-Net v2 beside this package: on the same cases for the same time, and step for step on the same network.

    python scripts/compare_nnunet.py prepare SET WORK [--spacing 1.5] [--memory 2]
    python scripts/compare_nnunet.py train WORK --minutes 25
    python scripts/compare_nnunet.py predict WORK SCANS MASKS [--step 0.5]
    python scripts/compare_nnunet.py speed SET WORK [--rounds 3] [OVERRIDE ...]

``pip install nnunetv2`` first, in an environment that has jdm_seg. SET is a data set of jdm-seg; masks are scored by
``jdm-seg benchmark … --predictions nnunet=MASKS``. ``speed`` trains the network of ``experiment=ct`` by the trainer of
nnU-Net (its loader, augmentation, loss, optimizer; our patch and batch) and by ours in turn, each with one worker, in
one process; read the ratios. nnU-Net uses no autocast on a CPU; it is measured with it as well, so that what differs
is loader, augmentation and loss. ``train`` and ``predict`` always use it, as nnU-Net itself does on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_training import Run  # beside this script

from jdm_seg.cases import read_manifest
from jdm_seg.config import TrainConfig, compose
from jdm_seg.networks import build_network
from jdm_seg.nnunet import write_nnunet
from jdm_seg.train import precision_of

DATASET = 501
CONFIGURATION = "3d_fullres"
_STEPS = 10
_WARM = 3


def main() -> None:
    """Do one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("prepare")
    task.add_argument("set", type=Path)
    task.add_argument("work", type=Path)
    task.add_argument("--spacing", type=float, help="mm; default: what nnU-Net plans")
    task.add_argument("--memory", type=float, help="GB that nnU-Net plans its patch for; default: its own, 8")
    task = tasks.add_parser("train")
    task.add_argument("work", type=Path)
    task.add_argument("--minutes", type=float, required=True)
    task = tasks.add_parser("predict")
    task.add_argument("work", type=Path)
    task.add_argument("scans", type=Path)
    task.add_argument("masks", type=Path)
    task.add_argument("--step", type=float, default=0.5, help="share of a window to the next one")
    task = tasks.add_parser("speed")
    task.add_argument("set", type=Path)
    task.add_argument("work", type=Path)
    task.add_argument("--rounds", type=int, default=3)
    task.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    for name in ("raw", "preprocessed", "results"):  # read when nnunetv2 is imported
        os.environ[f"nnUNet_{name}"] = str(work / name)
        (work / name).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    if arguments.task == "prepare":
        prepare(arguments.set, work, arguments.spacing, arguments.memory)
    elif arguments.task == "train":
        train(work, arguments.minutes)
    elif arguments.task == "predict":
        predict(work, arguments.scans, arguments.masks, arguments.step)
    else:
        speed(arguments.set, work, arguments.rounds, arguments.overrides)


def prepare(data: Path, work: Path, spacing: float | None, memory: float | None) -> None:
    """Convert, plan and preprocess."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    made = write_nnunet(read_manifest(data), work / "raw", dataset_id=DATASET)
    extract_fingerprints([DATASET], num_processes=1)
    target = None if spacing is None else (spacing,) * 3
    name = None if spacing is None and memory is None else "nnUNetPlans"
    plan_experiments(
        [DATASET], gpu_memory_target_in_gb=memory, overwrite_target_spacing=target, overwrite_plans_name=name
    )
    preprocess([DATASET], configurations=[CONFIGURATION], num_processes=[1])
    splits = made / "splits_final.json"
    if splits.is_file():
        (work / "preprocessed" / made.name / splits.name).write_bytes(splits.read_bytes())


def trainer_of(work: Path, kind: type[Any], changes: dict[str, Any] | None = None) -> Any:
    """Return a trainer of nnU-Net for the prepared data set."""
    folder = next((work / "preprocessed").glob(f"Dataset{DATASET}_*"))
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"][CONFIGURATION] |= changes or {}
    plans["continue_training"] = False
    facts = json.loads((folder / "dataset.json").read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return kind(plans, CONFIGURATION, 0, facts, device)


def _autocast() -> torch.autocast:
    """Return what nnU-Net does by itself on a GPU alone."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision_of("auto", "cpu") == "bf16-mixed")


def train(work: Path, minutes: float) -> None:
    """Train as nnU-Net does by default, its schedule fitted to the time, and say how many steps that were."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = trainer_of(work, nnUNetTrainer)
    trainer.initialize()
    trainer.on_train_start()
    begin = time.monotonic()
    steps = 0
    while (spent := time.monotonic() - begin) < 60 * minutes:
        # polynomial decay over the time there is instead of over 1000 epochs of 250 steps
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - spent / (60 * minutes)) ** 0.9
        trainer.network.train()
        with _autocast():
            loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        if steps % 10 == 0:
            print(f"{steps} steps in {spent / 60:.1f} min, loss {float(loss):.3f}", flush=True)
    patch, batch = trainer.configuration_manager.patch_size, trainer.batch_size
    print(f"{steps} steps of {batch} patches of {'x'.join(map(str, patch))} in {minutes:g} min")
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()


def predict(work: Path, scans: Path, masks: Path, step: float) -> None:
    """Segment a folder of scans. On a CPU windows are not mirrored, which would take eight times as long."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = next((work / "results").glob(f"Dataset{DATASET}_*/nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"))
    cuda = torch.cuda.is_available()
    predictor = nnUNetPredictor(
        tile_step_size=step, use_mirroring=cuda, device=torch.device("cuda" if cuda else "cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    masks.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name.removesuffix(".nii.gz") for path in scans.glob("*.nii.gz"))
    for name in names:
        begin = time.monotonic()
        with _autocast():
            predictor.predict_from_files_sequential([[str(scans / f"{name}.nii.gz")]], [str(masks / name)])
        print(f"{name} {time.monotonic() - begin:.1f} s", flush=True)


def speed(data: Path, work: Path, rounds: int, overrides: list[str]) -> None:
    """Train one network on the same cases by nnU-Net's trainer and by ours, in turn."""
    given = [
        f"data.root={data}",
        "data.synthesize=null",
        f"data.cache={work / 'cache'}",
        "data.workers=1",
        "data.folds=4",
    ]
    two = ["data.skeleton=false", "network.out_channels=2", "network.deep_supervision=false", "loss=dice_ce_classes"]
    config = compose(["experiment=ct", "data=labelled", *two, *given, *overrides])
    half = precision_of("auto", "cpu") == "bf16-mixed"
    theirs = _their_step(config, work)
    ways = {
        "nnU-Net's trainer": lambda: theirs(False),
        "the same under bf16": lambda: theirs(half),
        "jdm_seg": Run(config).step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            seconds[name].append(_seconds(step))
    patch = "x".join(map(str, config.data.patch_size))
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["jdm_seg"], strict=True))
        rate = config.data.batch_size / statistics.median(times)
        print(f"{name:20} {rate:6.2f} patches of {patch} a second; jdm_seg is {ratio:.2f} times as fast", flush=True)
    os._exit(0)  # nnU-Net's loaders do not end by themselves


def _seconds(step: Callable[[], None]) -> float:
    for number in range(_WARM + _STEPS):
        if number == _WARM:
            begin = time.perf_counter()
        step()
    return (time.perf_counter() - begin) / _STEPS


def _their_step(config: TrainConfig, work: Path) -> Callable[[bool], None]:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class SameNetwork(nnUNetTrainer):  # type: ignore[misc]
        @staticmethod
        def build_network_architecture(*_: Any, **__: Any) -> torch.nn.Module:
            return build_network(config.network)

    sizes = {"patch_size": list(config.data.patch_size), "batch_size": config.data.batch_size}
    trainer = trainer_of(work, SameNetwork, sizes)
    trainer.enable_deep_supervision = False
    trainer.initialize()
    batches = trainer.get_dataloaders()[0]

    def step(autocast: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            trainer.train_step(next(batches))

    return step


if __name__ == "__main__":
    main()
