"""Verbs around a network: train, export, models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from jdm_seg.cli.app import Quiet, app
from jdm_seg.cli.console import log_to_stderr, say_next, steps


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: jdm-seg train experiment=ct_smoke trainer.max_epochs=3 seed=1. "
    "Sweep: jdm-seg train -m seed=1,2,3. Go on after a crash: jdm-seg train experiment=ct_smoke ckpt=last. "
    "Show the config: jdm-seg train --cfg job.",
)
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=value, of Hydra. What to train on: data.root=FOLDER (labelled), data.backgrounds=FOLDER "
            "(unlabelled), or neither (synthetic). A recipe: experiment=auto, ct, ct_inserted, ct_smoke, finetune, "
            "stir or stir_smoke. Then anything, such as trainer.max_epochs=50 run_dir=runs/mine; all of it: "
            "jdm-seg train --cfg job, docs/train.md. -m runs every combination of values."
        ),
    ] = None,
) -> None:
    """Train a network. Writes a run folder."""
    from jdm_seg.config import TrainConfig, run_with_hydra

    # read when torch loads: threads that spin while they wait take the core on which a worker makes the next patch
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # one of the processes of several devices speaks

    def task(config: TrainConfig, run_dir: Path) -> None:
        from jdm_seg.train import train as run

        folder = run(config, run_dir)
        if first:
            print(f"run folder: {os.path.relpath(folder)}")
            say_next(f"jdm-seg export {os.path.relpath(folder)} models/{config.name}")

    log_to_stderr(quiet=not first)
    run_with_hydra(task, overrides or [])


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: jdm-seg sweep runs/search --trials 20 --search optimizer.lr=1e-4:1e-2:log "
    "--search loss=dice_ce,blob experiment=ct_smoke. The same command again goes on, or searches along elsewhere.",
)
def sweep(
    folder: Annotated[Path, typer.Argument(help="Folder for the search: a run folder a trial, trials.csv.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value for every run, as train takes them.")] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(help="key=a,b,c to choose from; key=low:high for a range, :log by magnitude. Repeat it."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Runs in all, those of earlier calls included.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Search for settings: every trial is a training run, bad ones are stopped early (extra sweep)."""
    from jdm_seg.sweep import TABLE, Setting, run_sweep, shown

    settings = [Setting.parse(text) for text in search or ()]
    with steps(quiet) as say:
        best = run_sweep(folder, settings, overrides or [], trials=trials, seed=seed, on_trial=say)
    print(f"best of {trials} trials: {best.value:.3f} with {shown(best)}; all of them in {folder / TABLE}")
    say_next(f"jdm-seg export {folder}/trial-{best.number:04d} models/best", quiet=quiet)


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
    candidates: Annotated[
        bool,
        typer.Option(
            "--candidates", help="Fit a classifier that drops false lesions on the training scans (CT; minutes)."
        ),
    ] = False,
) -> None:
    """Turn a run folder into a model folder: ONNX, calibration, parity report, model card."""
    from jdm_seg.export.run import ExportOptions, export_run

    model = export_run(run, out, ExportOptions(compact, tuple(precision or ()), monai_bundle, candidates))
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
