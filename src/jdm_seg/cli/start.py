"""Verbs for the first hour: is the installation sound, and the whole way once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jdm_seg.cli.app import Quiet, app
from jdm_seg.cli.console import log_to_stderr


@app.command(epilog="Example: jdm-seg doctor")
def doctor(
    self_test: Annotated[bool, typer.Option(help="Work once on a tiny case too: about ten seconds.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what is broken.")] = False,
) -> None:
    """Look at this installation: machine, packages, engines, models, a self test. Exit 1 if something is broken."""
    from jdm_seg.doctor import examine

    group, broken = "", 0
    for check in examine(self_test=self_test):
        broken += check.state == "broken"
        if quiet and check.state != "broken":
            continue
        if check.group != group:
            group = check.group
            print(group)
        mark = {"ok": "ok", "note": "-", "broken": "BROKEN"}[check.state]
        print(f"  {mark:6} {check.name:12} {check.found}{f'; {check.remedy}' if check.remedy else ''}", flush=True)
    if broken:
        print(f"{broken} broken: mend them from the top down, then run jdm-seg doctor again")
        raise typer.Exit(1)
    if not quiet:
        print("all that is needed works; '-' marks what is optional. Next: jdm-seg demo demo/")


@app.command(epilog="Example: jdm-seg demo demo/")
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    quiet: Quiet = False,
) -> None:
    """Run the whole way once, from nothing: synthesise, train, evaluate, export, segment new scans, report."""
    from jdm_seg.demo import run_demo

    log_to_stderr(quiet)
    for line in run_demo(out):
        print(line)
