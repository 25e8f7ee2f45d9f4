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
    from jdm_seg.checks.findings import Finding
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

    first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # one of the processes of several devices speaks

    def task(config: TrainConfig, run_dir: Path) -> None:
        from jdm_seg.train import train as run

        folder = run(config, run_dir)
        if first:
            print(f"run folder: {os.path.relpath(folder)}")

    _log_to_stderr(quiet=not first)
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
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="A .nii or .nii.gz scan, DICOM (folder, zip, file), or a folder of either."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the results: one folder a case, cohort.csv, run.json.")],
    model: Annotated[
        list[str],
        typer.Option(
            help="Name of a shipped model, a model folder, or threshold: dense (CT) or dark (STIR) spots. "
            "Given several times, or a folder of model folders: their mean."
        ),
    ],
    engine: Annotated[str, typer.Option(help="auto, torch, onnxruntime or openvino.")] = "auto",
    device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:N; with onnxruntime also tensorrt or tensorrt:N.")
    ] = "cpu",
    precision: Annotated[
        str, typer.Option(help="f32; bf16 (torch, openvino), f16 (torch on cuda, onnxruntime) or int8 (onnxruntime).")
    ] = "f32",
    threshold: Annotated[float | None, typer.Option(help="Probability from which a voxel counts.")] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over mirrored windows: steadier, and up to 8 times slower.")
    ] = False,
    overlap: Annotated[
        float | None, typer.Option(help="Least share of a window shared with its neighbour, 0 to below 1.")
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(help="GB that the process may take; a scan that needs more is refused.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="Tube voltage of the scans in kV, for the mass of calcium.")] = None,
    modality: Annotated[str, typer.Option(help="With --model threshold: ct or stir. A model knows its own.")] = "ct",
    series: Annotated[
        str | None, typer.Option(help="DICOM series to read: number in the listing or UID; stations joined by commas.")
    ] = None,
    hash_ids: Annotated[bool, typer.Option("--hash-ids", help="Call cases by a hash, not by folder or file.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo cases that are complete.")] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Write probability.nii.gz (percent) of every scan too.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Of DICOM scans write segmentation.dcm (DICOM SEG) too.")
    ] = False,
    dicom_sr: Annotated[
        bool, typer.Option("--dicom-sr", help="Likewise, and lesions.dcm and measurements.dcm (structured report).")
    ] = False,
    keep_patient: Annotated[
        bool, typer.Option("--keep-patient", help="Copy the patient's tags into those files, to file them in a PACS.")
    ] = False,
    layout: Annotated[
        str, typer.Option(help="flat, or bids: write derivatives/jdm_seg/sub-.../ into OUT too.")
    ] = "flat",
    report: Annotated[bool, typer.Option("--report", help="Write report.html when all is done.")] = False,
    shard: Annotated[str, typer.Option(help="i/n: do only the i-th of n equal parts.")] = "1/1",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine. Default: one; with cuda one a GPU.")
    ] = None,
    launch: Annotated[str | None, typer.Option(help="slurm: send the work to a cluster as --shards jobs.")] = None,
    shards: Annotated[int, typer.Option(min=1, help="Jobs to send with --launch.")] = 1,
    slurm: Annotated[
        list[str] | None, typer.Option(help="key=value for Slurm: partition, time (minutes), mem, cpus, gpus, ...")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="With --launch: wait for the jobs to end.")] = False,
    quiet: Quiet = False,
) -> None:
    """Segment and measure scans. Complete cases are kept, so an interrupted batch goes on where it stopped."""
    if layout not in ("flat", "bids"):
        raise typer.BadParameter("flat or bids", param_hint="--layout")
    with _stoppable(out):
        if launch is not None:
            _send(source, out, launch, shards, slurm or [], wait, hash_ids)
            return
        count = workers or _worker_count(device, shard)
        if count > 1:
            try:
                _spread(source, out, count, device, report, hash_ids)
            finally:
                if layout == "bids":
                    _write_derivatives(out)
            return
        settings = {
            "engine": engine,
            "device": device,
            "precision": precision,
            "threshold": threshold,
            "overlap": overlap,
            "tta": tta,
            "memory_limit_gb": memory_limit,
            "keep_from": 0.01 if probability else None,  # the map is in percent
        }
        predictor = _segmenter(model, modality, kv, settings)
        from jdm_seg.inference.batch import BatchOptions, predict_batch
        from jdm_seg.inference.plan import Shard, scans_of, shard_of

        part = Shard.parse(shard)
        scans = shard_of(scans_of(source, predictor.modality, leave_out=out, hash_ids=hash_ids), part)
        options = BatchOptions(
            kv=kv,
            overwrite=overwrite,
            probability=probability,
            memory_limit=None if memory_limit is None else round(memory_limit * 1e9),
            series=series,
            hash_ids=hash_ids,
            dicom_seg=dicom_seg,
            dicom_sr=dicom_sr,
            keep_patient=keep_patient,
        )
        with _progress("scans" if part.count == 1 else f"shard {part}", len(scans), quiet) as advance:
            result = predict_batch(
                source, out, predictor, options=options, shard=part, on_case=lambda row: advance(_line_of(row))
            )
        if layout == "bids" and part.count == 1:  # shards would write over each other
            _write_derivatives(out)
        _close_batch(result.rows, out, report, stopped=result.stopped)


def _write_derivatives(out: Path) -> None:
    """Write all results of an OUT once more, as BIDS names them."""
    import shutil

    from jdm_seg.layouts.convert import convert as run

    target = out / "derivatives" / "jdm_seg"
    if any(out.glob("*/mask.nii.gz")):
        shutil.rmtree(target, ignore_errors=True)
        run(out, target, "bids", instances=True)


@contextlib.contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """On Ctrl-C or SIGTERM say how to go on, and leave with 130 or 143."""
    from jdm_seg.inference.launch import Stopped, stop_on_signals

    try:
        with stop_on_signals():
            yield
    except Stopped as stopped:
        done = sum(row["status"] == "done" for row in _cohort(out))
        print(f"stopped: {done} scans are complete in {out}; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(stopped.exit_code) from None


def _worker_count(device: str, shard: str) -> int:
    """Return how many processes a batch is to have when nobody says: one, or one a GPU that may be used."""
    if device != "cuda" or shard != "1/1":
        return 1
    from jdm_seg.inference.launch import visible_gpus

    return max(1, len(visible_gpus()))


def _spread(source: Path, out: Path, workers: int, device: str, report: bool, hash_ids: bool) -> None:
    """Run a batch as several processes on this machine."""
    from jdm_seg.inference.launch import run_workers, visible_gpus
    from jdm_seg.inference.plan import prepare_out, scans_of

    scans = scans_of(source, "ct", leave_out=out, hash_ids=hash_ids)
    prepare_out(out, scans.cases)
    workers = min(workers, max(1, len(scans.cases)))
    codes = run_workers(sys.argv[1:], workers, devices=visible_gpus() if device == "cuda" else ())
    lost = [f"worker {index}/{workers} ended with {code}" for index, code in enumerate(codes, 1) if code not in (0, 1)]
    problem = f"{', '.join(lost)}; run the same command again: complete cases are kept." if lost else None
    _close_batch([row for row in _cohort(out) if row["case_id"] in scans.ids], out, report, stopped=problem)


def _send(source: Path, out: Path, launch: str, shards: int, slurm: list[str], wait: bool, hash_ids: bool) -> None:
    """Send a batch to a cluster."""
    from jdm_seg.inference.launch import submit_slurm, wait_for
    from jdm_seg.inference.plan import prepare_out, scans_of

    if launch != "slurm":
        raise InputError("--launch", expected="slurm", found=repr(launch), remedy="use --workers on this machine")
    scans = scans_of(source, "ct", leave_out=out, hash_ids=hash_ids)
    prepare_out(out, scans.cases)
    jobs = submit_slurm(sys.argv[1:], min(shards, max(1, len(scans.cases))), out / ".slurm", slurm)
    print(f"{len(jobs)} jobs for {len(scans)} scans: {' '.join(job.job_id for job in jobs)}", flush=True)
    if not wait:
        print(f"their messages: {out / '.slurm'}; results: {out / 'cohort.csv'}")
        return
    failed = wait_for(jobs)
    rows = [row for row in _cohort(out) if row["case_id"] in scans.ids]
    _close_batch(rows, out, report=False, stopped="; ".join(failed) or None)


def _cohort(out: Path) -> list[dict[str, Any]]:
    import csv

    path = out / "cohort.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _close_batch(rows: list[dict[str, Any]], out: Path, report: bool, *, stopped: str | None = None) -> None:
    """Say what a batch came to, and leave with 1 if that is not all of it."""
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        print(f"error: {row['error']}", file=sys.stderr)
    done = len(rows) - len(failed)
    print(f"{done} of {len(rows)} scans segmented; tables and masks in {out}, overview in {out / 'cohort.csv'}")
    if report and stopped is None:
        from jdm_seg.report import write_report

        print(f"report: {write_report(out)}")
    if stopped is not None:
        print(f"error: {stopped}", file=sys.stderr)
    if failed or stopped is not None:
        raise typer.Exit(1)


def _segmenter(models: list[str], modality: str, kv: str | None, settings: dict[str, Any]) -> Segmenter:
    """Load the method that ``--model`` names, or the ensemble."""
    from jdm_seg.cases import as_modality

    if models == ["threshold"]:
        from jdm_seg.baseline import ThresholdSegmenter

        return ThresholdSegmenter(as_modality(modality, "--modality"), kv=kv)
    from jdm_seg.model_folder import open_models

    folders = open_models(models)  # before the slow imports: a misspelt name is answered at once
    from jdm_seg.inference.ensemble import build_segmenter
    from jdm_seg.inference.predict import PredictSettings

    return build_segmenter(folders, PredictSettings(**settings))


@app.command(
    epilog="Example: jdm-seg convert data/limbs nnUNet_raw --to nnunet. "
    "Correct masks by hand: jdm-seg convert results/ correct/ --to slicer --images scans/; save over each .seg.nrrd; "
    "jdm-seg convert correct/ corrected/ --to monai"
)
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="MONAI, nnU-Net, BIDS, DICOM, images/ and labels/, or predict's OUT.")
    ],
    out: Annotated[Path, typer.Argument(help="New folder; with nnunet, the folder that gets Dataset501_Calcinosis.")],
    to: Annotated[str, typer.Option("--to", help="nifti, monai, nnunet, bids or slicer.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the scans, for masks that come without; matched by case id.")
    ] = None,
    segment: Annotated[
        str | None, typer.Option(help="Name or number of the segment that is calcinosis, or all of them.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="ct or stir, where SRC does not say.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to .nii.gz scans instead of copying them.")] = False,
    instances: Annotated[bool, typer.Option("--instances", help="Keep the numbers of lesions in masks.")] = False,
    quiet: Quiet = False,
) -> None:
    """Bring a data set into another layout. Ids and splits stay; .nii.gz scans stay byte for byte."""
    from jdm_seg.cases import as_modality
    from jdm_seg.layouts.convert import check_layout, write_layout
    from jdm_seg.layouts.read import read_layout

    check_layout(to)
    named = None if modality is None else as_modality(modality, "--modality")
    data = read_layout(source, images=images, modality=named, wanted=segment)
    with _progress("cases", len(data.entries), quiet) as advance:
        write_layout(data, out, to, link=link, instances=instances, on_case=advance)
    masks = sum(entry.label is not None for entry in data.entries)
    print(f"{len(data.entries)} cases ({data.layout}), {masks} with a mask, written to {out}")
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)


@app.command(epilog="Example: jdm-seg check data/ --json findings.json --fix mended/")
def check(
    path: Annotated[Path, typer.Argument(help="A scan, a folder of scans, DICOM, or a data set in any layout.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file too.")] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Copy everything into this new folder and mend there what is safe to mend.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="ct or stir. Default: as the data say.")] = None,
    quiet: Quiet = False,
) -> None:
    """Say in plain words what is wrong with scans and masks and what to do. Leaves with 1 on a warning or an error."""
    import json

    from jdm_seg.checks.fix import fix_copy
    from jdm_seg.checks.paths import check_path
    from jdm_seg.volume import write_text

    with _steps(quiet) as advance:
        found = check_path(path, modality, on_case=advance)
    for series in found.series:
        print(", ".join(f"{key} {value}" for key, value in series.items() if value not in (None, "", [])))
    _show_findings(found.findings)
    counts = ", ".join(f"{count} {name}" for name, count in reversed(found.counts().items()))
    print(f"{found.cases} cases ({found.layout}): {counts}")
    mended = [] if fix is None else fix_copy(path, found.entries, fix)
    for line in mended:
        print(f"mended {line}")
    if fix is not None:
        print(f"{len(mended)} files mended in the copy {fix}; check it again")
    if json_file is not None:
        write_text(json_file, json.dumps({**found.as_dict(), "mended": mended}, indent=1) + "\n")
    if not found.is_well:
        raise typer.Exit(1)


def _show_findings(findings: tuple[Finding, ...]) -> None:
    """Print a table on a terminal, one line a finding elsewhere."""
    if not sys.stdout.isatty():
        for finding in findings:
            print(f"{finding.severity}: {finding.where}: {finding.sentence()}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"error": "red", "warning": "yellow", "info": "cyan"}
    table = Table("file", "severity", "what", "found", "do")
    for one in findings:
        severity = Text(one.severity, style=colours[one.severity])
        table.add_row(Text(one.where), severity, Text(one.reason), Text(one.found), Text(one.remedy))
    if findings:
        Console().print(table)


@app.command(epilog="Example: jdm-seg burden scan.nii.gz mask.nii.gz results/ --kv 100")
def burden(
    scan: Annotated[Path, typer.Argument(help="The scan.")],
    mask: Annotated[Path, typer.Argument(help="A mask on the same grid, from any source.")],
    out: Annotated[Path, typer.Argument(help="Folder for lesions.csv, lesions.nii.gz and burden.json.")],
    modality: Annotated[str, typer.Option(help="ct or stir.")] = "ct",
    kv: Annotated[str | None, typer.Option(help="Tube voltage in kV.")] = None,
) -> None:
    """Measure one scan with a mask that is there already."""
    from jdm_seg.burden.analysis import burden_of_files
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
    from jdm_seg.tracking.files import track_folders

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
    ignore: Annotated[
        Path | None, typer.Option(help="Folder of masks of what shall not count. Default: ignore/ beside REFERENCES.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score masks against reference masks: Dice, and lesions found, missed and false; or compare two methods."""
    from jdm_seg.evaluate import EvaluateSettings, compare_folders, evaluate_folders, find_masks
    from jdm_seg.metrics.protocol import protocol_named

    settings = EvaluateSettings(protocol_named(protocol), attributes, subjects, ignore)
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


@app.command(
    epilog="Example: jdm-seg benchmark ct_phantom bench/ --method threshold --method models/mine. "
    "Real scans: jdm-seg benchmark ct_negative bench/ --scans scans/"
)
def benchmark(
    name: Annotated[str, typer.Argument(help="ct_phantom, stir_phantom, ct_hybrid, ct_negative, ct_real, or a YAML.")],
    out: Annotated[Path, typer.Argument(help="Folder for data, predictions, results.json, table.csv and table.md.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="threshold, a shipped model or a model folder; repeat it. Default: threshold and shipped."),
    ] = None,
    predictions: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of masks that another tool made; repeat it.")
    ] = None,
    scans: Annotated[Path | None, typer.Option(help="Folder of real scans.")] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of their reference masks (ct_real).")] = None,
    ignore: Annotated[Path | None, typer.Option(help="Folder of masks of what shall not count.")] = None,
    cases: Annotated[int | None, typer.Option(min=1, help="Only so many, for a quick look.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that make synthetic cases.")] = os.cpu_count() or 1,
    record: Annotated[
        bool, typer.Option("--record", help="Write the figures into configs/benchmark/recorded.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure methods on a benchmark and compare with the recorded figures: exit 1 outside their tolerance."""
    from jdm_seg.benchmark.data import Sources
    from jdm_seg.benchmark.records import compare_with_record, read_record, record_path, write_record
    from jdm_seg.benchmark.run import methods_named, run_benchmark
    from jdm_seg.benchmark.spec import benchmark_path, read_benchmark
    from jdm_seg.benchmark.table import table_lines

    file = benchmark_path(name)
    chosen = read_benchmark(file)
    methods = methods_named(chosen.modality, method or [], predictions or [])
    sources = Sources(scans, references, ignore)
    with _steps(quiet) as step:
        results = run_benchmark(chosen, out, methods, sources, cases=cases, workers=workers, on_step=step)
    for line in table_lines(results):
        print(line)
    print(f"\nall figures in {out / 'table.csv'} and {out / 'results.json'}")
    failed = [f"{who}: {reason}" for who, entry in results["methods"].items() for reason in entry["failed"].values()]
    if record:
        write_record(record_path(file), chosen, results)
    verdict = compare_with_record(chosen, results, read_record(record_path(file)))
    for note in verdict.notes:
        print(f"note: {note}")
    if verdict.compared:
        print(f"{verdict.compared - len(verdict.deviations)} of {verdict.compared} recorded figures within tolerance")
    for problem in (*failed, *verdict.deviations):
        print(f"error: {problem}", file=sys.stderr)
    if failed or verdict.deviations:
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


@contextlib.contextmanager
def _steps(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function to call after each step of work whose number nobody knows."""
    yield (lambda _: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))


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
