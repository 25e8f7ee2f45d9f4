"""Fifty scans, ten of them bad, through the command line; then killed again and again, with nothing lost.

``JDM_SEG_KILLS=20`` kills more often than the default.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.volume import Volume, write_volume

pytestmark = pytest.mark.slow

GOOD = 40
KILLS = int(os.environ.get("JDM_SEG_KILLS", "5"))
SHAPE = (40, 40, 12)
REASONS = {
    "bad_4d": "found 4-D data",
    "bad_cut": "copy the file again",
    "bad_duplicate": "expected every case id once",
    "bad_empty": "an empty file",
    "bad_huge": "a header that promises",
    "bad_link": "a link that leads nowhere",
    "bad_modality": "CT",
    "bad_nan": "NaN",
    "bad_permission": "no permission to read it",
    "bad_text": "something else",
}


def write_scan(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, _ = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = np.full(SHAPE, -1000.0)
    hu[np.broadcast_to(np.hypot(x - 20, y - 20) < 17, SHAPE)] = 50
    x, y, z = rng.integers((12, 12, 1), (26, 26, 8))
    hu[x : x + 3, y : y + 3, z : z + 3] = 600
    array = (hu + rng.normal(0, 8, SHAPE)).astype(np.int16)
    write_volume(path, array, Volume(array, np.diag([1.0, 1.0, 2.0, 1.0])))


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """40 good scans, some in a folder of their own, and one of every bad kind."""
    folder = tmp_path_factory.mktemp("fifty")
    for number in range(GOOD):
        write_scan(folder / ("nested" if number % 8 == 0 else ".") / f"s{number:02d}.nii.gz", number)
    good = (folder / "s01.nii.gz").read_bytes()
    affine = np.eye(4)
    (folder / "bad_cut.nii.gz").write_bytes(good[: len(good) // 2])
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 3), np.int16), affine), folder / "bad_4d.nii.gz")
    (folder / "bad_text.nii.gz").write_text("a letter")
    (folder / "bad_empty.nii.gz").touch()
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), affine), folder / "bad_nan.nii.gz")
    nib.save(nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), affine), folder / "bad_modality.nii")
    (folder / "bad_permission.nii.gz").write_bytes(good)
    (folder / "bad_permission.nii.gz").chmod(0)
    (folder / "bad_duplicate.nii.gz").write_bytes(good)
    (folder / "bad_duplicate.nii").write_bytes(good)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_sform(affine, 1)
    header.set_data_shape((30000, 30000, 30000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (folder / "bad_huge.nii").write_bytes(header.binaryblock + b"\0" * 100_000)
    (folder / "bad_link.nii.gz").symlink_to("bad_link.nii.gz")
    return folder


def start(scans: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from jdm_seg.cli import main; main()"]
    if os.geteuid() == 0:  # root reads everything, unless it gives that right up
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    return subprocess.Popen(
        [*command, "predict", str(scans), str(out), "--model", "threshold", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(out: Path) -> dict[str, Any]:
    """Everything in a results folder but times, the memory that a process took, and how well images were compressed."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "run.json":
            run = json.loads(path.read_text())
            found[name] = {
                key: value
                for key, value in run.items()
                if key not in ("start", "end", "parts", "stage_seconds", "peak_memory_mb", "git_sha")
            } | {"stages of": sorted(run["stage_seconds"])}
        elif path.name == ".stamp.json":
            stamp = json.loads(path.read_text())
            sizes = {file: size for file, size in stamp["files"].items() if not file.endswith(".gz")}
            found[name] = {"scan": stamp["scan"], "sizes": sizes, "files": sorted(stamp["files"])}
        elif path.suffix == ".gz":  # header and voxels: the compressor's choices depend on the processor it finds
            found[name] = gzip.decompress(path.read_bytes())
        elif path.name == "cohort.csv":
            found[name] = [{**row, "seconds": ""} for row in csv.DictReader(path.open(newline=""))]
        else:
            found[name] = path.read_bytes()
    return found


def count_complete(out: Path) -> int:
    return len(list(out.glob("[!.]*/burden.json")))


@pytest.fixture(scope="module")
def undisturbed(scans, tmp_path_factory) -> tuple[Path, float, str]:
    """A run that nobody disturbs: its results, its seconds and what it said."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root without setpriv can read what nobody may read")
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    begin = time.perf_counter()
    process = start(scans, out)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 1, messages
    return out, time.perf_counter() - begin, messages


def test_forty_results_ten_reasons(undisturbed):
    out, _, messages = undisturbed
    assert "Traceback" not in messages
    rows = list(csv.DictReader((out / "cohort.csv").open(newline="")))
    done = [row["case_id"] for row in rows if row["status"] == "done"]
    assert len(done) == GOOD
    assert all((out / case_id / "mask.nii.gz").is_file() for case_id in done)
    assert "nested_s00" in done
    reasons = {row["case_id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert sorted(reasons) == sorted(REASONS)
    for case_id, words in REASONS.items():
        assert words in reasons[case_id]
        assert reasons[case_id] in messages


def test_killed_again_and_again_it_comes_to_the_same(scans, undisturbed, tmp_path):
    reference, seconds, _ = undisturbed
    out = tmp_path / "out"
    rng = np.random.default_rng(20)
    complete = [0]
    for number in range(KILLS):
        process = start(scans, out)
        if number % 4 == 3:  # some kills meet the start, the others the work: some time after one more case is complete
            time.sleep(float(rng.uniform(0.05, seconds / 10)))
        else:
            until = time.monotonic() + 120
            while count_complete(out) <= complete[-1] and process.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(float(rng.uniform(0.0, seconds / GOOD)))
        process.kill()
        process.communicate()
        if (out / "cohort.csv").is_file():  # whole and true whenever it is there
            rows = list(csv.DictReader((out / "cohort.csv").open(newline="")))
            assert all((out / row["case_id"] / "burden.json").is_file() for row in rows if row["status"] == "done")
            json.loads((out / "run.json").read_text())
        complete.append(count_complete(out))
    (tmp_path / "complete_at_every_kill.json").write_text(json.dumps(complete[1:]))
    assert complete == sorted(complete)  # nothing that was complete is lost
    assert 0 < complete[-1] < GOOD  # else the kills proved nothing
    process = start(scans, out)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 1, messages
    found, expected = results(out), results(reference)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
