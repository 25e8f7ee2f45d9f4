"""Damaged headers and cut files: an answer in words, soon, and in little memory. Every seed is kept: 0 to 249."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
CASES = 250
SECONDS = 10
GROWTH_MB = 150
"""Room for pydicom's tables and one refused slice; the files state at most a few kB but for their damage."""


def originals(folder: Path) -> list[bytes]:
    """One file each: plain, run-length, deflated, big-endian, enhanced."""
    from dicom_phantom import data_set, save, values
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless
    from test_dicom import enhanced

    files = []
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        files.append(save(folder / f"{syntax}.dcm", data_set(values(1)[0], (0, 0, 0), 1), syntax))
    one = data_set(values(1)[0], (0, 0, 0), 1)
    files.append(save(folder / "plain.dcm", one))
    one.compress(RLELossless)
    files.append(save(folder / "rle.dcm", one, RLELossless))
    enhanced(folder)
    files.append(folder / "multi.dcm")
    return [path.read_bytes() for path in files]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, cut or insert bytes behind the magic."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(132, len(changed)))
        kind = rng.integers(5)
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[at : at + 4] = b"\xff" * 4  # an undefined or huge length
        elif kind == 2:
            changed[at : at + 2] = rng.bytes(2)
        elif kind == 3 and len(changed) > 400:
            del changed[max(at, 200) :]
        else:
            changed[at:at] = rng.bytes(int(rng.integers(1, 16)))
        if len(changed) <= 133:
            break
    return bytes(changed)


def read_everything(path: Path) -> str:
    from jdm_seg.dicom.read import read_series
    from jdm_seg.dicom.series import find_series
    from jdm_seg.errors import InputError

    try:
        for series in find_series(path):
            series.listing()
            read_series(series)
    except InputError as error:
        return str(error)
    return ""


def main() -> None:
    """Read every damaged file; write the slowest time, the growth of memory, and how many were refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = originals(folder)
        for n, source in enumerate(sources):
            (folder / "x").write_bytes(source)
            assert not read_everything(folder / "x"), n
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        slowest, refused = 0.0, 0
        for seed in range(CASES):
            (folder / "x").write_bytes(damage(sources[seed % len(sources)], np.random.default_rng(seed)))
            begin = time.monotonic()
            try:
                refused += bool(read_everything(folder / "x"))
            except Exception as error:
                raise AssertionError(f"seed {seed}") from error
            slowest = max(slowest, time.monotonic() - begin)
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        sys.stdout.write(f"{slowest:.2f} {growth / 1024:.0f} {refused}\n")


def test_damage_gets_an_answer_in_words():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    slowest, growth, refused = (float(part) for part in done.stdout.split())
    assert slowest < SECONDS
    assert growth < GROWTH_MB
    assert refused > CASES / 4  # the damage is real


if __name__ == "__main__":
    main()
