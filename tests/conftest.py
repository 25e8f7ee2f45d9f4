"""Shared fixtures. No test reaches the network, and real scans are used where they are at hand."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")
LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The public scans that ``JDM_SEG_REAL_DATA`` names; tests that need them are skipped where there are none."""
    named = os.environ.get("JDM_SEG_REAL_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real scans: set JDM_SEG_REAL_DATA")
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Refuse every connection but to this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in LOCAL:
            raise OSError(f"a test tried to reach {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how many tests on real scans ran: a suite that skips them all must not look like one that passed them."""
    counts = {
        outcome: sum("real" in getattr(report, "keywords", {}) for report in terminalreporter.stats.get(outcome, []))
        for outcome in ("passed", "failed", "skipped")
    }
    terminalreporter.write_line("tests on real scans: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
