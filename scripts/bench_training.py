"""What data cost a training step: the same network with patches made as it trains, and with one patch again and again.

    python scripts/bench_training.py [--backgrounds FOLDER] [--workers 1] [--rounds 3] [OVERRIDE ...]

Both ways run in turn in one process, so only the ratio is to be read: step time with data over step time without. On a
CPU workers share the cores with the network; on a GPU they do not. Overrides are those of ``jdm-seg train``, such as
``network=space_to_depth_unet``, ``data.patch_size=[96,96,96]`` or ``trainer.compile=true``. Without ``--backgrounds``
two procedural limbs stand in.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jdm-seg train does; read when torch loads

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jdm_seg.config import TrainConfig, compose
from jdm_seg.data import CaseDataModule
from jdm_seg.losses import build_loss
from jdm_seg.networks import as_levels, build_network
from jdm_seg.synthesis.dataset import synthesize_dataset
from jdm_seg.train import compile_network, precision_of

_STEPS = 20
_WARM = 4


def main() -> None:
    """Prepare the scans, train both ways in turn, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backgrounds", type=Path, help="folder of unlabelled CT scans")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scans = arguments.backgrounds
        if scans is None:
            synthesize_dataset(Path(scratch) / "set", modality="ct", cases=2, seed=1, preset="limb", workers=2)
            scans = Path(scratch) / "set" / "images"
        given = [f"data.backgrounds={scans}", f"data.cache={scratch}/cache", "data.synthesize=null", "data.folds=2"]
        config = compose(["experiment=ct", *given, f"data.workers={arguments.workers}", *arguments.overrides])
        ways = {"made as it trains": Run(config), "one patch repeated": Run(_repeated(config))}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, run in ways.items():
                seconds[name].append(run.step_seconds())
    patches = config.data.batch_size
    for name, times in seconds.items():
        step = statistics.median(times)
        print(f"{name:20} {step:7.3f} s a step of {patches} patches, {patches / step:5.2f} patches/s")
    made, repeated = seconds.values()
    ratio = statistics.median(a / b for a, b in zip(made, repeated, strict=True))
    print(f"with data {ratio:.2f} times the step time without")


class Run:
    """A network that trains on one source of patches; goes on where it stopped."""

    def __init__(self, config: TrainConfig) -> None:
        data = CaseDataModule(config.data, config.preprocess, config.augment, config.seed)
        data.prepare_data()
        data.setup()
        self._network = build_network(config.network).train()
        if config.trainer.compile:
            compile_network(self._network, "cpu")
        self._loss = build_loss(config.loss)
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=1e-3)
        self._batches = _endless(data)
        self._bf16 = precision_of("auto", "cpu") == "bf16-mixed"

    def step_seconds(self) -> float:
        """Return the mean time of a step, its batch included, after some that do not count."""
        for step in range(_WARM + _STEPS):
            if step == _WARM:
                begin = time.perf_counter()
            self.step()
        return (time.perf_counter() - begin) / _STEPS

    def step(self) -> None:
        """Take the next batch and learn from it."""
        batch = next(self._batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            levels = as_levels(self._network(batch["image"]))
        loss = self._loss(levels, batch["label"])
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def _repeated(config: TrainConfig) -> TrainConfig:
    return replace(config, data=replace(config.data, repeat_one=True, workers=0))


def _endless(data: CaseDataModule) -> Iterator[dict[str, Any]]:
    loader = data.train_dataloader()
    while True:
        yield from (data.on_after_batch_transfer(batch, 0) for batch in loader)


if __name__ == "__main__":
    main()
