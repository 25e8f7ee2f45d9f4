"""The verb that segments scans, alone, on several processes or on a cluster: predict."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jdm_seg.cli.app import Quiet, app
from jdm_seg.cli.console import progress, say_next
from jdm_seg.errors import InputError

if TYPE_CHECKING:
    from jdm_seg.inference.prediction import Segmenter


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
            _send(source, out, launch, shards, slurm or [], wait, hash_ids, quiet)
            return
        count = workers or _worker_count(device, shard)
        if count > 1:
            try:
                _spread(source, out, count, device, report, hash_ids, quiet)
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
        with progress("scans" if part.count == 1 else f"shard {part}", len(scans), quiet) as advance:
            result = predict_batch(
                source, out, predictor, options=options, shard=part, on_case=lambda row: advance(_line_of(row))
            )
        if layout == "bids" and part.count == 1:  # shards would write over each other
            _write_derivatives(out)
        _close_batch(result.rows, source, out, report, quiet or part.count > 1, stopped=result.stopped)


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


def _spread(source: Path, out: Path, workers: int, device: str, report: bool, hash_ids: bool, quiet: bool) -> None:
    """Run a batch as several processes on this machine."""
    from jdm_seg.inference.launch import run_workers, visible_gpus
    from jdm_seg.inference.plan import prepare_out, scans_of

    scans = scans_of(source, "ct", leave_out=out, hash_ids=hash_ids)
    prepare_out(out, scans.cases)
    workers = min(workers, max(1, len(scans.cases)))
    codes = run_workers(sys.argv[1:], workers, devices=visible_gpus() if device == "cuda" else ())
    lost = [f"worker {index}/{workers} ended with {code}" for index, code in enumerate(codes, 1) if code not in (0, 1)]
    problem = f"{', '.join(lost)}; run the same command again: complete cases are kept." if lost else None
    _close_batch(
        [row for row in _cohort(out) if row["case_id"] in scans.ids], source, out, report, quiet, stopped=problem
    )


def _send(
    source: Path, out: Path, launch: str, shards: int, slurm: list[str], wait: bool, hash_ids: bool, quiet: bool
) -> None:
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
    _close_batch(rows, source, out, report=False, quiet=quiet, stopped="; ".join(failed) or None)


def _cohort(out: Path) -> list[dict[str, Any]]:
    import csv

    path = out / "cohort.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _line_of(row: dict[str, Any]) -> str:
    if row["status"] == "failed":
        return f"{row['case_id']} failed"
    return f"{row['case_id']} {row['status']}, {row['lesion_count']} lesions, {float(row['volume_ml']):.3f} mL"


def _close_batch(
    rows: list[dict[str, Any]], source: Path, out: Path, report: bool, quiet: bool, *, stopped: str | None = None
) -> None:
    """Say what a batch came to, report on it if asked, and leave with 1 if that is not all of it."""
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        print(f"error: {row['error']}", file=sys.stderr)
    kept = sum(row["status"] == "kept" for row in rows)
    apart = f" ({kept} of them before)" if kept else ""
    done = f"{len(rows) - len(failed)} of {len(rows)} scans segmented{apart}"
    where = f"tables and masks in {out}, overview" if len(failed) < len(rows) else "reasons"
    print(f"{done}; {where} in {out / 'cohort.csv'}")
    if report and stopped is None:
        from jdm_seg.report import write_report

        print(f"report: {write_report(out, source)}")
    if stopped is not None:
        print(f"error: {stopped}", file=sys.stderr)
    elif failed:
        say_next("jdm-seg check on the scans that failed; then the same command, which does only those", quiet=quiet)
    elif not report:
        say_next(f"look at {out}/*/preview.png, or jdm-seg report {out} --scans {source}", quiet=quiet)
    if failed or stopped is not None:
        raise typer.Exit(1)


def _write_derivatives(out: Path) -> None:
    """Write all results of an OUT once more, as BIDS names them."""
    import shutil

    from jdm_seg.layouts.convert import convert as run

    target = out / "derivatives" / "jdm_seg"
    if any(out.glob("*/mask.nii.gz")):
        shutil.rmtree(target, ignore_errors=True)
        run(out, target, "bids", instances=True)
