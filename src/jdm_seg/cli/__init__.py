"""The command line: a table of verbs. Each imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

# isort: off
from jdm_seg.cli.app import app, main
from jdm_seg.cli import start, data, learn, segment, measure  # noqa: F401  --help lists the verbs in this order
# isort: on

__all__ = ["app", "main"]
