"""Verbs that make data and look at them: synthesize, check, convert."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jdm_seg.cli.app import Quiet, app
from jdm_seg.cli.console import progress, say_next, steps

if TYPE_CHECKING:
    from jdm_seg.checks.findings import Finding


@app.command(epilog="Example: jdm-seg synthesize data/limbs --modality ct --cases 20 --seed 1 --preset limb")
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write images/, labels/, records/ and datalist.json into.")],
    modality: Annotated[str, typer.Option(help="ct or stir.")],
    cases: Annotated[int, typer.Option(min=1, help="How many.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")],
    preset: Annotated[
        str, typer.Option(help="limb, trunk, whole (body), benchmark, smoke (small); STIR also limb-dense, limb-clear.")
    ] = "limb",
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

    with progress("cases", cases, quiet) as advance:
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
    say_next(f"look at {out / CONTACT_SHEET}; jdm-seg train data=labelled data.root={out} name=mine", quiet=quiet)


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

    with steps(quiet) as advance:
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
    with progress("cases", len(data.entries), quiet) as advance:
        write_layout(data, out, to, link=link, instances=instances, on_case=advance)
    masks = sum(entry.label is not None for entry in data.entries)
    print(f"{len(data.entries)} cases ({data.layout}), {masks} with a mask, written to {out}")
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    say_next(f"jdm-seg check {out}", quiet=quiet)
