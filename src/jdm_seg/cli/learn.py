"""Verbs around a network: train, export, models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from jdm_seg.cli.app import app
from jdm_seg.cli.console import log_to_stderr, say_next


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: jdm-seg train experiment=ct_smoke trainer.max_epochs=3 seed=1. "
    "Sweep: jdm-seg train -m seed=1,2,3. Go on after a crash: jdm-seg train experiment=ct_smoke ckpt=last. "
    "Show the config: jdm-seg train --cfg job.",
)
def train(context: typer.Context) -> None:
    """Train a network; arguments are Hydra overrides. Writes a run folder."""
    from jdm_seg.config import TrainConfig, run_with_hydra

    first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # one of the processes of several devices speaks

    def task(config: TrainConfig, run_dir: Path) -> None:
        from jdm_seg.train import train as run

        folder = run(config, run_dir)
        if first:
            print(f"run folder: {os.path.relpath(folder)}")
            say_next(f"jdm-seg export {os.path.relpath(folder)} models/{config.name}")

    log_to_stderr(quiet=not first)
    run_with_hydra(task, context.args)


@app.command(epilog="Example: jdm-seg export runs/ct_smoke/2026-01-31_12-00-00 models/mine")
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Model folder to make.")],
    precision: Annotated[
        list[str] | None,
        typer.Option(help="f16 or int8: add a graph that computes in it (onnxruntime); refused if it changes lesions."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Store weights in float16: half the size, computed in float32.")
    ] = False,
    monai_bundle: Annotated[
        bool, typer.Option("--monai-bundle", help="Add OUT/monai_bundle for python -m monai.bundle.")
    ] = False,
) -> None:
    """Turn a run folder into a model folder: ONNX, calibration, parity report, model card."""
    from jdm_seg.export.run import ExportOptions, export_run

    model = export_run(run, out, ExportOptions(compact, tuple(precision or ()), monai_bundle))
    spec = model.spec
    for engine, rows in spec.parity["engines"].items():
        for name, row in rows.items():
            largest = row["max_logit_difference"]
            figures = "not measured" if largest is None else f"largest logit difference {largest:.1e}"
            print(f"{engine:12} {name:5} {figures}{'' if row['offered'] else '; not offered'}")
    size = model.onnx.stat().st_size / 1e6
    print(f"model folder: {model.path} ({size:.1f} MB, threshold {spec.threshold:g}, temperature {spec.temperature:g})")
    say_next(f"look at {model.path / 'MODEL_CARD.md'}; jdm-seg predict SCANS OUT --model {model.path}")


@app.command(epilog="Example: jdm-seg models")
def models() -> None:
    """List shipped models and what they were trained on."""
    from jdm_seg.model_folder import open_model, shipped_models

    names = shipped_models()
    for name in names:
        spec = open_model(name).spec
        print(f"{name}\t{spec.preprocess.modality}\t{spec.training_data}")
    if not names:
        print("No model ships with this version. Train one: jdm-seg train experiment=ct_smoke; then jdm-seg export.")
