"""The command line: a table of verbs. Each imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jdm_seg import __version__
from jdm_seg.errors import InputError, reason_of

if TYPE_CHECKING:
    from jdm_seg.inference.prediction import Segmenter

app = typer.Typer(
    help="Find and measure calcinosis on low-dose whole-body CT and STIR MRI. Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    del version


@app.command(epilog="Example: jdm-seg demo demo/")
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    quiet: Quiet = False,
) -> None:
    """Run the whole way once, from nothing: synthesise, train, evaluate, export, segment new scans, report."""
    from jdm_seg.demo import run_demo

    _log_to_stderr(quiet)
    for line in run_demo(out):
        print(line)


@app.command(epilog="Example: jdm-seg synthesize data/limbs --modality ct --cases 20 --seed 1 --preset limb")
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write images/, labels/, records/ and datalist.json into.")],
    modality: Annotated[str, typer.Option(help="ct or stir.")],
    cases: Annotated[int, typer.Option(min=1, help="How many.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")],
    preset: Annotated[str, typer.Option(help="limb, trunk, whole (body), benchmark, or smoke (small).")] = "limb",
    backgrounds: Annotated[
        Path | None, typer.Option(help="Insert deposits into the scans of this folder instead of drawing bodies.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    quiet: Quiet = False,
) -> None:
    """Make labelled cases: procedural bodies, or deposits inserted in real scans."""
    from jdm_seg.cases import as_modality
    from jdm_seg.pictures import CONTACT_SHEET
    from jdm_seg.synthesis.dataset import synthesize_dataset

    with _progress("cases", cases, quiet) as advance:
        manifest = synthesize_dataset(
            out,
            modality=as_modality(modality, "--modality"),
            cases=cases,
            seed=seed,
            preset=preset,
            backgrounds=backgrounds,
            workers=workers,
            on_case=advance,
        )
    print(f"{len(manifest.all)} cases in {out}, listed in {out / 'datalist.json'}, shown in {out / CONTACT_SHEET}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: jdm-seg train experiment=ct_smoke trainer.max_epochs=3 seed=1. "
    "Sweep: jdm-seg train -m seed=1,2,3. Go on after a crash: jdm-seg train experiment=ct_smoke ckpt=last. "
    "Show the config: jdm-seg train --cfg job.",
)
def train(context: typer.Context) -> None:
    """Train a network; arguments are Hydra overrides. Writes a run folder."""
    from jdm_seg.config import TrainConfig, run_with_hydra

    def task(config: TrainConfig, run_dir: Path) -> None:
        from jdm_seg.train import train as run

        print(f"run folder: {os.path.relpath(run(config, run_dir))}")

    _log_to_stderr(quiet=False)
    run_with_hydra(task, context.args)


@app.command(epilog="Example: jdm-seg export runs/ct_smoke/2026-01-31_12-00-00 models/mine")
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Model folder to make.")],
) -> None:
    """Turn a run folder into a model folder: ONNX, sidecar, model card, parity report."""
    from jdm_seg.export import export_run

    model = export_run(run, out)
    patch = model.spec.parity["patch"]["onnxruntime_max_logit_difference"]
    print(f"model folder: {model.path} (largest logit difference of ONNX Runtime to torch: {patch:.1e})")


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


@app.command(epilog="Example: jdm-seg predict scans/ results/ --model models/mine --engine onnxruntime")
def predict(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A .nii or .nii.gz scan, or a folder of them.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results: one folder a case, cohort.csv, run.json.")],
    model: Annotated[
        str,
        typer.Option(help="Name of a shipped model, a model folder, or threshold: dense (CT) or dark (STIR) spots."),
    ],
    engine: Annotated[str, typer.Option(help="auto, torch, onnxruntime or openvino.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, or cuda with the torch engine.")] = "cpu",
    precision: Annotated[str, typer.Option(help="f32, or bf16 with torch or openvino.")] = "f32",
    threshold: Annotated[float | None, typer.Option(help="Probability from which a voxel counts.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a window shared with its neighbour.")] = None,
    kv: Annotated[str | None, typer.Option(help="Tube voltage of the scans in kV, for the mass of calcium.")] = None,
    modality: Annotated[str, typer.Option(help="With --model threshold: ct or stir. A model knows its own.")] = "ct",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo cases that are complete.")] = False,
    quiet: Quiet = False,
) -> None:
    """Segment and measure scans. Complete cases are kept, so an interrupted batch goes on where it stopped."""
    predictor = _segmenter(model, modality, kv, (engine, device, precision, threshold, overlap))
    from jdm_seg.inference.batch import predict_batch, scans_of

    scans = scans_of(source, predictor.modality)
    with _progress("scans", len(scans), quiet) as advance:
        result = predict_batch(
            source, out, predictor, kv=kv, overwrite=overwrite, on_case=lambda row: advance(_line_of(row))
        )
    for row in result.failed:
        print(f"error: {row['error']}", file=sys.stderr)
    done = len(result.rows) - len(result.failed)
    print(f"{done} of {len(result.rows)} scans segmented; tables and masks in {out}, overview in {out / 'cohort.csv'}")
    if result.failed:
        raise typer.Exit(1)


def _segmenter(
    model: str, modality: str, kv: str | None, settings: tuple[str, str, str, float | None, float | None]
) -> Segmenter:
    """Load the method that ``--model`` names."""
    from jdm_seg.cases import as_modality

    if model == "threshold":
        from jdm_seg.baseline import ThresholdSegmenter

        return ThresholdSegmenter(as_modality(modality, "--modality"), kv=kv)
    from jdm_seg.model_folder import open_model

    folder = open_model(model)  # before the slow imports: a misspelt name is answered at once
    from jdm_seg.inference.predict import PredictSettings, ScanPredictor

    return ScanPredictor(folder, PredictSettings(*settings))


@app.command(epilog="Example: jdm-seg burden scan.nii.gz mask.nii.gz results/ --kv 100")
def burden(
    scan: Annotated[Path, typer.Argument(help="The scan.")],
    mask: Annotated[Path, typer.Argument(help="A mask on the same grid, from any source.")],
    out: Annotated[Path, typer.Argument(help="Folder for lesions.csv, lesions.nii.gz and burden.json.")],
    modality: Annotated[str, typer.Option(help="ct or stir.")] = "ct",
    kv: Annotated[str | None, typer.Option(help="Tube voltage in kV.")] = None,
) -> None:
    """Measure one scan with a mask that is there already."""
    from jdm_seg.burden import burden_of_files
    from jdm_seg.cases import as_modality

    figures = burden_of_files(scan, mask, out, modality=as_modality(modality, "--modality"), kv=kv).burden
    print(f"{figures['lesion_count']} lesions, {figures['volume_ml']:.3f} mL; tables in {out}")


@app.command(
    epilog="Example: jdm-seg track results/visit1 results/visit2 change/ "
    "--baseline-scan scans/visit1.nii.gz --follow-up-scan scans/visit2.nii.gz"
)
def track(
    baseline: Annotated[Path, typer.Argument(help="Folder of the earlier case, made by predict or burden.")],
    follow_up: Annotated[Path, typer.Argument(metavar="FOLLOWUP", help="Folder of the later case.")],
    out: Annotated[Path, typer.Argument(help="Folder for changes.csv, change.json and change.png.")],
    baseline_scan: Annotated[
        Path | None, typer.Option(help="The scan of BASELINE; without both, scanner coordinates are compared.")
    ] = None,
    follow_up_scan: Annotated[
        Path | None, typer.Option("--follow-up-scan", "--followup-scan", help="The scan of FOLLOWUP.")
    ] = None,
) -> None:
    """Tell what became of every lesion between two scans of one subject: new, resolved, grown, shrunk, and so on."""
    from jdm_seg.track_files import track_folders

    summary = track_folders(baseline, follow_up, out, baseline_scan=baseline_scan, follow_up_scan=follow_up_scan)
    counts = ", ".join(f"{count} {fate}" for fate, count in summary["fates"].items() if count) or "no lesions"
    print(f"{counts}; table and figure in {out}")
    for warning in summary["warnings"]:
        print(f"note: {warning}", file=sys.stderr)


@app.command(
    epilog="Example: jdm-seg evaluate results/ labels/ evaluation/ --protocol brats2023. "
    "Two methods: jdm-seg evaluate ours/ labels/ evaluation/ --compare theirs/"
)
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of masks: <id>.nii.gz or <id>/mask.nii.gz.")],
    references: Annotated[Path, typer.Argument(help="Folder of reference masks, named the same way.")],
    out: Annotated[Path, typer.Argument(help="Folder for cases.csv, lesions.csv and summary.json.")],
    protocol: Annotated[
        str, typer.Option(help="default, brats2023, brats2023_met, isles22, autopet or panoptica.")
    ] = "default",
    compare: Annotated[
        Path | None, typer.Option(help="Masks of a second method: writes comparison.csv and comparison.json too.")
    ] = None,
    attributes: Annotated[
        Path | None, typer.Option(help="Folder of <id>.csv or .json with pattern, host, ... of the reference lesions.")
    ] = None,
    subjects: Annotated[
        Path | None, typer.Option(help="datalist.json, or a CSV of case_id and subject_id: who is resampled as one.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score masks against reference masks: Dice, and lesions found, missed and false; or compare two methods."""
    from jdm_seg.evaluate import EvaluateSettings, compare_folders, evaluate_folders, find_masks
    from jdm_seg.metrics.protocol import protocol_named

    settings = EvaluateSettings(protocol_named(protocol), attributes, subjects)
    total = len(find_masks(references)) * (1 if compare is None else 2)
    rows: list[dict[str, Any]] = []
    with _progress("cases", total, quiet) as advance:
        if compare is None:
            summaries = [evaluate_folders(predictions, references, out, settings, on_case=advance)]
        else:
            *summaries, rows = compare_folders(predictions, compare, references, out, settings, on_case=advance)
    for line in (*_figures(summaries[0]), *_differences(rows)):
        print(line)
    print(f"tables in {out}")
    failed = [item for summary in summaries for item in summary["failed"].items()]
    for case_id, reason in failed:
        print(f"error: {reason if case_id in reason else f'{case_id}: {reason}'}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example: jdm-seg report results/")
def report(folder: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that predict made.")]) -> None:
    """Write one HTML page with pictures and tables of a predict folder."""
    from jdm_seg.report import write_report

    print(f"report: {write_report(folder)}")


def main() -> None:
    """Run the command line: exit 0 on success, 1 when work failed, 2 on wrong usage."""
    try:
        app()
    except (InputError, OSError) as error:
        _fail(error)


def _fail(error: Exception) -> None:
    """Print one message and leave with 1; ``JDM_SEG_DEBUG=1`` keeps the traceback."""
    if os.environ.get("JDM_SEG_DEBUG"):
        raise error
    print(f"error: {reason_of(error)}", file=sys.stderr)
    sys.exit(1)


def _log_to_stderr(quiet: bool) -> None:
    logger = logging.getLogger("jdm_seg")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


@contextlib.contextmanager
def _progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function to call after each item: a bar on a terminal, plain lines elsewhere, nothing if quiet."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda text: bar.update(task, advance=1, description=text)
    else:
        done = 0

        def line(text: str) -> None:
            nonlocal done
            done += 1
            print(f"{what} {done}/{total}: {text}", file=sys.stderr, flush=True)

        yield line


def _line_of(row: dict[str, Any]) -> str:
    if row["status"] == "failed":
        return f"{row['case_id']} failed"
    return f"{row['case_id']} {row['status']}, {row['lesion_count']} lesions, {float(row['volume_ml']):.3f} mL"


def _figures(summary: dict[str, Any]) -> Iterator[str]:
    for name in ("dice", "lesion_f1", "lesion_precision", "lesion_recall"):
        figure = summary["figures"][name]
        if figure["mean"] is None:
            yield f"{name:18} undefined in all {figure['n_undefined']} cases"
            continue
        undefined = f", undefined in {figure['n_undefined']}" if figure["n_undefined"] else ""
        yield (
            f"{name:18} {figure['mean']:.3f} (95 % interval {figure['ci_low']:.3f} to {figure['ci_high']:.3f}, "
            f"{figure['n']} cases{undefined})"
        )


def _differences(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["figure"] in ("dice", "lesion_f1", "lesion_precision", "lesion_recall") and row["n"]:
            yield (
                f"{row['figure']:18} {row['difference']:+.3f} against the second method (95 % interval "
                f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}, p {row['p']:.3f}, {row['n']} cases)"
            )
