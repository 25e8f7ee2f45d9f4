"""The root of the command line, and what all verbs share."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from jdm_seg import __version__
from jdm_seg.errors import InputError, reason_of

app = typer.Typer(
    help="Find and measure calcinosis on low-dose whole-body CT and STIR MRI. Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="First steps: jdm-seg doctor; jdm-seg demo demo/. Every verb has --help with an example. "
    "Completion of verbs and options by Tab: jdm-seg --install-completion, then open a new shell.",
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
    if not isinstance(error, InputError):  # a system error names no file, which may name a patient
        print("next: JDM_SEG_DEBUG=1 before the same command shows which file it is", file=sys.stderr)
    sys.exit(1)
