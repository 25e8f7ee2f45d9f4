from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The public scans described in data/README.md; tests that need them are skipped where there are none."""
    named = os.environ.get("JDM_SEG_REAL_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real scans: set JDM_SEG_REAL_DATA")
    return folder
