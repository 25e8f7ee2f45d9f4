"""Verbs that give numbers from files on disk: burden, track, evaluate, benchmark, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from jdm_seg.cli.app import Quiet, app
from jdm_seg.cli.console import progress, say_next, steps


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
    say_next(f"jdm-seg report {out}")


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
    with progress("cases", total, quiet) as advance:
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
    say_next(f"jdm-seg report {out}", quiet=quiet)


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
    with steps(quiet) as step:
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
    say_next(f"jdm-seg report {out}", quiet=quiet)


@app.command(
    epilog="Example: jdm-seg report results/ --scans scans/. "
    "With pictures of the worst cases: jdm-seg report evaluation/ --scans scans/ --predictions results/ "
    "--references labels/"
)
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder that predict, burden, track, evaluate or benchmark made.")
    ],
    scans: Annotated[
        Path | None, typer.Option(help="What was segmented, as predict took it: adds slices and the viewer.")
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="Of evaluate: the masks that were scored.")] = None,
    references: Annotated[Path | None, typer.Option(help="Of evaluate: the reference masks.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write HTML pages of results: pictures, tables, a viewer. They open from disk and need no network."""
    from jdm_seg.report import write_report

    with steps(quiet) as step:
        page = write_report(folder, scans, predictions=predictions, references=references, on_case=step)
    print(f"report: {page}")
