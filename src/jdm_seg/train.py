"""One training run: the one place where data, module, callbacks and logger meet.

A run folder holds ``config.yaml`` (resolved), ``run.json``, ``splits.json``, ``checkpoints/`` and the logs.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule, Trainer, seed_everything
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch import Tensor

from jdm_seg.callbacks import SafeStop
from jdm_seg.cases import Case
from jdm_seg.config import LAST_CHECKPOINT, TrainConfig, instantiate, plain, preprocess_from
from jdm_seg.data import CaseDataModule
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.inference.engines import torch_weights
from jdm_seg.model_folder import open_model
from jdm_seg.module import SegmentationModule
from jdm_seg.networks import as_levels
from jdm_seg.plan import as_chosen, fingerprint, free_memory, is_open, on_gpu, plan
from jdm_seg.provenance import describe_run, now, sha256_of
from jdm_seg.volume import write_text
from jdm_seg.widening import add_classes, widen

log = logging.getLogger(__name__)

CHECKPOINTS = LAST_CHECKPOINT.parent.name
METRICS = "metrics.csv"
PLAN = "plan.json"


def train(config: TrainConfig, run_dir: Path) -> Path:
    """Train one model.

    Args:
        config: Checked values.
        run_dir: Run folder; made if missing. With ``config.ckpt`` training goes on from that checkpoint.

    Returns:
        The run folder.

    Raises:
        InputError: If data, network or checkpoint do not fit.
        SystemExit: In a job of submitit that was saved and is in the queue again.
    """
    _quiet()
    seed_everything(config.seed, workers=True, verbose=False)
    checkpoint = find_checkpoint(config.ckpt or _requeued(run_dir), run_dir)
    weights = None
    if config.init is not None:
        config, weights = begin_with(config)
    config, planned = _planned(config, None if checkpoint is None else checkpoint.parents[1] / PLAN)
    inference = replace(config.inference, roi_size=config.inference.roi_size or config.data.patch_size)
    module = SegmentationModule(
        network=config.network,
        loss=config.loss,
        optimizer=config.optimizer,
        preprocess=plain(config.preprocess),
        inference=plain(inference),
        evaluation=plain(config.evaluation),
        warmup_steps=config.trainer.warmup_steps,
        schedule=config.trainer.schedule,
    )
    if weights is not None:
        # not strict: heads that only training uses are not in a model folder
        module.network.load_state_dict(weights, strict=False)
    _check_patch_size(module, config.data.patch_size, "data.patch_size")
    _check_patch_size(module, module.hparams["inference"]["roi_size"], "inference.roi_size")
    if config.trainer.compile:
        compile_network(module.network, config.trainer.accelerator)
    data = CaseDataModule(config.data, config.preprocess, config.augment, config.seed)
    data.prepare_data()
    training, validation = data.split()
    if checkpoint is not None:
        _check_same_splits(run_dir, training, validation)
    first = getattr(rank_zero_only, "rank", 0) == 0
    run_dir.mkdir(parents=True, exist_ok=True)
    precision = precision_of(config.trainer.precision, config.trainer.accelerator)
    facts = describe_run(
        name=config.name,
        seed=config.seed,
        start=now(),
        precision=precision,
    )
    if first:
        facts["splits_sha256"] = _write_inputs(run_dir, config, training, validation)
        write_text(run_dir / "run.json", json.dumps({**facts, "status": "running"}, indent=1) + "\n")
        _keep_earlier_metrics(run_dir)
        if planned is not None:
            write_text(run_dir / PLAN, json.dumps(planned, indent=1) + "\n")
    trainer = _build_trainer(config, run_dir)
    # weights_only: the checkpoint holds plain values, so nothing in it can run code
    status = "interrupted"
    try:
        trainer.fit(module, data, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)
        status = _status(trainer, run_dir)
    except Exception:
        status = "failed"
        raise
    finally:
        if first:
            facts |= _outcome(trainer, module, status)
            write_text(run_dir / "run.json", json.dumps(facts, indent=1) + "\n")
    if "SUBMITIT_EXECUTOR" in os.environ and any(one.told_to_go for one in _safe_stops(trainer)):
        # a return would be taken for the job's result, while its other part waits in the queue
        raise SystemExit(f"{run_dir.name}: saved, goes on from the queue")
    return run_dir


def _safe_stops(trainer: Trainer) -> list[SafeStop]:
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    return [callback for callback in callbacks if isinstance(callback, SafeStop)]


def _planned(config: TrainConfig, earlier: Path | None) -> tuple[TrainConfig, dict[str, Any] | None]:
    """Fill in what the config leaves open: by an earlier part's plan, or from the data set and the memory at hand."""
    if not is_open(config):
        return config, None
    if earlier is not None and earlier.is_file():
        planned = json.loads(earlier.read_text(encoding="utf-8"))
        return as_chosen(config, planned["chosen"]), planned
    cases = CaseDataModule(config.data, config.preprocess, config.augment, config.seed).training_cases()
    config, planned = plan(config, fingerprint(cases), free_memory(config.trainer.accelerator))
    log.info("planned for %d cases: %s", len(cases), ", ".join(f"{k} {v}" for k, v in planned["chosen"].items()))
    return config, planned


def _status(trainer: Trainer, run_dir: Path) -> str:
    """Return ``stopped`` and say how to go on where the training was asked to end early, else ``finished``."""
    reasons = [callback.stopped_by for callback in _safe_stops(trainer)]
    if not any(reasons):
        return "finished"
    log.info("stopped by %s after step %d; go on with ckpt=last run_dir=%s", reasons[0], trainer.global_step, run_dir)
    return "stopped"


def _outcome(trainer: Trainer, module: SegmentationModule, status: str) -> dict[str, Any]:
    """Return what a run came to, for ``run.json``."""
    return {
        "end": now(),
        "status": status,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "validation": {
            k: float(v) if torch.isfinite(v) else None  # JSON has no NaN
            for k, v in trainer.callback_metrics.items()
            if k.startswith("val/")
        },
    }


def begin_with(config: TrainConfig) -> tuple[TrainConfig, dict[str, Tensor]]:
    """Return the config with network and preprocessing of ``config.init``, and its weights; changed if so asked.

    Raises:
        InputError: If it is neither a model nor a run folder, or of another modality.
    """
    assert config.init is not None
    run = Path(config.init)
    checkpoint = next((c for c in (run / CHECKPOINTS / "best.ckpt", run / LAST_CHECKPOINT) if c.is_file()), None)
    if checkpoint is not None:
        module = load_module(checkpoint)
        network, weights = module.hparams["network"], dict(module.network.state_dict())
        preprocess = preprocess_from(module.hparams["preprocess"])
    else:
        model = open_model(config.init)
        network, weights, preprocess = model.spec.network, torch_weights(model), model.spec.preprocess
    if preprocess.modality != config.preprocess.modality:
        raise InputError(
            "init",
            expected=f"a model of {config.preprocess.modality}, as preprocess.modality says",
            found=f"one of {preprocess.modality}",
            remedy=f"add preprocess={preprocess.modality}, or choose another model",
        )
    if config.init_channels is not None:
        network, weights = widen(network, weights, config.init_channels, config.seed)
    if config.init_classes is not None:
        network, weights = add_classes(network, weights, config.init_classes)
    if config.init_spacing is not None:
        preprocess = replace(preprocess, spacing=config.init_spacing)
    return replace(config, network=network, preprocess=preprocess), weights


def _requeued(run_dir: Path) -> str | None:
    """Return ``last`` for a SLURM job that was put back into the queue and had saved something."""
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    return "last" if again and (run_dir / LAST_CHECKPOINT).is_file() else None


def find_checkpoint(ckpt: str | None, run_dir: Path) -> Path | None:
    """Return the checkpoint to go on from, or None to start afresh.

    Raises:
        CaseNotFoundError: If one was asked for and is not there.
    """
    if ckpt is None:
        return None
    path = run_dir / LAST_CHECKPOINT if ckpt == "last" else Path(ckpt)
    if not path.is_file():
        raise CaseNotFoundError(
            "ckpt",
            expected="a checkpoint to go on from",
            found=f"none named {path.name} there",
            remedy="leave ckpt out to start afresh, or name a checkpoint or a run_dir that has one",
        )
    return path


def precision_of(setting: str, accelerator: str) -> str:
    """Return Lightning's precision; ``auto`` is bf16 where the hardware computes in it, else float32."""
    if setting != "auto":
        return setting
    if on_gpu(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def _cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies in bf16 (AVX512-BF16 or AMX); elsewhere it is emulated, and slower."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


_COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_network(network: torch.nn.Module, accelerator: str) -> None:
    """Compile what is trained.

    On a CPU a quarter of a step goes into copies between memory layouts. With channels last, compiled code needs few:
    0.43 s a step instead of 0.60 s (2 x 96^3, 32-64-128-192, bf16 with AMX, two cores); uncompiled it gains a tenth.
    Without a C++ compiler nothing can be compiled: training goes on as it is, and says so.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), *_COMPILERS)):
        log.warning("trainer.compile: found no C++ compiler (%s): training without", ", ".join(_COMPILERS))
        return
    if not on_gpu(accelerator):
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network.compile()


def _check_patch_size(module: SegmentationModule, patch_size: Sequence[int], where: str) -> None:
    """Run the network once on an empty patch: a size it cannot halve often enough fails here, in words."""
    module.network.eval()
    try:
        with torch.inference_mode():
            shape = tuple(as_levels(module(torch.zeros(1, 1, *patch_size)))[0].shape[2:])
    except (RuntimeError, ValueError) as error:
        raise InputError(
            where,
            expected="sides that the network can halve as often as it has levels",
            found=f"{patch_size} ({str(error).splitlines()[0]})",
            remedy="use multiples of 16 or 32, or a network of fewer levels",
        ) from error
    finally:
        module.network.train()
    if shape != tuple(patch_size):
        raise InputError(
            "network",
            expected=f"logits of the patch's size {patch_size}",
            found=str(shape),
            remedy="choose another one",
        )


def _splits(training: list[Case], validation: list[Case]) -> dict[str, list[str]]:
    return {"training": [c.case_id for c in training], "validation": [c.case_id for c in validation]}


def _check_same_splits(run_dir: Path, training: list[Case], validation: list[Case]) -> None:
    """Refuse to go on with other splits: validation cases may have been trained on."""
    path = run_dir / "splits.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != _splits(training, validation):
        raise InputError(
            path,
            expected="the same training and validation cases as before",
            found="others",
            remedy="restore data.root, data.fold and seed, or start a new run",
        )


def _write_inputs(run_dir: Path, config: TrainConfig, training: list[Case], validation: list[Case]) -> str:
    """Write the resolved config and the splits; return the hash of the splits."""
    write_text(run_dir / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))
    write_text(run_dir / "splits.json", json.dumps(_splits(training, validation), indent=1) + "\n")
    return sha256_of(run_dir / "splits.json")


def _build_trainer(config: TrainConfig, run_dir: Path) -> Trainer:
    settings = config.trainer
    callbacks: list[Callback] = [instantiate(spec, "callbacks") for spec in config.callbacks.values()]
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run_dir / CHECKPOINTS)
    bar = settings.progress and sys.stderr.isatty()
    callbacks.append(RichProgressBar() if bar else ProgressLines())
    loggers = [instantiate(spec, "logger", save_dir=str(run_dir)) for spec in config.logger.values()]
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        precision=precision_of(settings.precision, settings.accelerator),  # type: ignore[arg-type]
        max_epochs=settings.max_epochs,
        max_time=None if settings.max_minutes is None else timedelta(minutes=settings.max_minutes),
        gradient_clip_val=settings.gradient_clip,
        accumulate_grad_batches=settings.accumulate,
        # a preempted job is saved and put back by SafeStop, which knows where the run folder is
        plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
        check_val_every_n_epoch=settings.validate_every,
        deterministic="warn" if settings.deterministic else False,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run_dir),
        enable_progress_bar=bar,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


class ProgressLines(Callback):
    """One line after each validation, where there is no terminal to draw a bar on."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log epoch, loss and validation figures."""
        figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
        log.info(
            "epoch %d of %s: loss %.3f, validation Dice %.3f, lesion F1 %.3f",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            figures.get("train/loss", float("nan")),
            figures.get("val/dice", float("nan")),
            figures.get("val/lesion_f1", float("nan")),
        )


def _keep_earlier_metrics(run_dir: Path) -> None:
    """Move the metrics of an earlier, resumed part aside: the CSV logger would delete them."""
    current = run_dir / METRICS
    if current.is_file():
        part = sum(1 for _ in run_dir.glob("metrics_part*.csv")) + 1
        current.rename(run_dir / f"metrics_part{part}.csv")


def _quiet() -> None:
    """Keep remarks of the training library that a user can do nothing about off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.`.*")


def load_module(checkpoint: Path) -> SegmentationModule:
    """Load a checkpoint for evaluation on the CPU; ``weights_only``: it cannot run code.

    Raises:
        InputError: If the file is not a checkpoint of this package.
    """
    try:
        module: Any = SegmentationModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, KeyError, TypeError, EOFError, OSError) as error:
        raise InputError(
            checkpoint,
            expected="a checkpoint that jdm-seg train wrote",
            found=str(error).splitlines()[0],
            remedy="point at a run folder",
        ) from error
    module.eval()
    result: SegmentationModule = module
    return result
