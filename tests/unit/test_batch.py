"""Batches: which scans are taken, what is kept and redone, what one bad scan, a full disk or a signal leaves behind."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import signal
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.inference import batch as batch_module
from jdm_seg.inference import plan
from jdm_seg.inference.batch import BatchOptions, predict_batch
from jdm_seg.inference.cohort import Cohort, row_of
from jdm_seg.inference.launch import Stopped, shard_command, slurm_parameters, stop_on_signals
from jdm_seg.inference.plan import Shard, scans_of, shard_of
from jdm_seg.inference.prediction import ScanPrediction, TrainingGrid
from jdm_seg.sparse import SparseArray
from jdm_seg.volume import Volume, read_volume, write_volume

SHAPE = (40, 40, 16)


def write_scan(path: Path, seed: int = 0) -> None:
    """A cylinder of muscle in air with one bright cube."""
    rng = np.random.default_rng(seed)
    x, y, _ = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = np.full(SHAPE, -1000.0)
    hu[np.broadcast_to(np.hypot(x - 20, y - 20) < 17, SHAPE)] = 50
    hu[18:21, 14:17, 4 + seed % 8 : 7 + seed % 8] = 600
    array = (hu + rng.normal(0, 8, SHAPE)).astype(np.int16)
    write_volume(path, array, Volume(array, np.diag([1.0, 1.0, 2.0, 1.0])))


class Bright:
    """A method that takes what is over 300 HU, and remembers which scans it saw."""

    modality = "ct"
    training = None

    def __init__(self, **settings):
        self.settings = settings
        self.seen: list[str] = []
        self.on_scan = lambda name: None

    def describe(self):
        return {"model": "bright", **self.settings}

    def __call__(self, scan):
        self.seen.append(scan.name)
        self.on_scan(scan.name)
        mask = scan.array > 300
        return ScanPrediction(mask, SparseArray.of((mask * 0.75).astype(np.float16)), {"network": 0.0})


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch):
    """Drawing takes most of the time of a tiny scan, and is tested elsewhere."""
    monkeypatch.setattr(batch_module, "write_preview", lambda path, *_, **__: path.write_bytes(b"picture"))


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "scans"
    for number in range(4):
        write_scan(folder / f"s{number}.nii.gz", number)
    return folder


def content(out: Path) -> dict[str, bytes]:
    """Every result, without times."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in ("run.json", ".stamp.json", ".lock"):
            found[path.relative_to(out).as_posix()] = path.read_bytes()
    rows = list(csv.DictReader((out / "cohort.csv").open(newline="")))
    found["cohort.csv"] = repr([{**row, "seconds": ""} for row in rows]).encode()
    return found


class TestPlan:
    def test_folders_are_part_of_the_id(self, tmp_path):
        for name in ("a.nii", "b.NII.GZ", "one/a.nii.gz", "one/two/a.nii", ".hidden.nii", ".git/x.nii"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert [case.case_id for case in scans_of(tmp_path, "ct")] == ["a", "b", "one_a", "one_two_a"]

    def test_results_are_no_scans_and_a_circle_of_links_ends(self, tmp_path):
        for name in ("a.nii", "results/a/mask.nii.gz", "results/a/burden.json", "out/new.nii"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "loop").symlink_to(tmp_path)
        (tmp_path / "self.nii").symlink_to("self.nii")
        found = scans_of(tmp_path, "ct", leave_out=tmp_path / "out")
        assert [case.case_id for case in found] == ["a", "self"]

    def test_one_id_for_two_files_refuses_both(self, tmp_path):
        for name in ("a.nii", "a.nii.gz", "b_c.nii", "b/c.nii", "d.nii"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        found = scans_of(tmp_path, "ct")
        assert [case.case_id for case in found] == ["d"]
        assert [one.reason for one in found.refused] == [
            "a: expected every case id once, found a.nii and a.nii.gz; rename or remove all but one.",
            "b_c: expected every case id once, found b/c.nii and b_c.nii; rename or remove all but one.",
        ]
        assert len(found) == 3

    def test_nothing_to_do_is_said(self, tmp_path):
        with pytest.raises(CaseNotFoundError, match=r"expected a folder of \.nii"):
            scans_of(tmp_path, "ct")
        with pytest.raises(CaseNotFoundError, match="no such file or folder"):
            scans_of(tmp_path / "x", "ct")
        (tmp_path / "x.txt").touch()
        with pytest.raises(InputError, match="found another file"):
            scans_of(tmp_path / "x.txt", "ct")

    def test_shards_take_the_largest_first(self, tmp_path):
        """8 | 7; then 6 to the lighter (7+6), 5 to 8 (8+5), 4 to either (first): 17 | 13, then 3: 17 | 16."""
        for size in (3, 4, 5, 6, 7, 8):
            (tmp_path / f"f{size}.nii").write_bytes(b"x" * size)
        found = scans_of(tmp_path, "ct")
        assert [case.case_id for case in shard_of(found, Shard(1, 2))] == ["f4", "f5", "f8"]
        assert [case.case_id for case in shard_of(found, Shard(2, 2))] == ["f3", "f6", "f7"]
        parts = [case for index in range(1, 9) for case in shard_of(found, Shard(index, 8))]
        assert sorted(case.case_id for case in parts) == [case.case_id for case in found]

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
    def test_a_shard_is_one_of_n(self, text):
        with pytest.raises(InputError, match="--shard: expected i/n"):
            Shard.parse(text)

    def test_out_is_tried_before_the_work(self, scans, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        method = Bright()
        with pytest.raises(InputError, match="expected a folder for the results that can be written"):
            predict_batch(scans, tmp_path / "file" / "out", method)
        monkeypatch.setattr(plan, "free_disk", lambda _: 1_000_000)
        with pytest.raises(InputError, match="about 2 MB of free disk for 4 scans, found 1 MB"):
            predict_batch(scans, tmp_path / "out", method)
        assert method.seen == []


class TestKeeping:
    def test_complete_cases_are_kept_and_others_redone(self, scans, tmp_path):
        out = tmp_path / "out"
        predict_batch(scans, out, Bright())
        (out / "s1" / "mask.nii.gz").write_bytes(b"cut")
        (out / "s2" / "lesions.csv").unlink()
        stale = out / ".s3.0123abcd.part"
        stale.mkdir()
        (out / ".0123abcd.cohort.csv.part").touch()
        again = Bright()
        statuses = [row["status"] for row in predict_batch(scans, out, again).rows]
        assert statuses == ["kept", "done", "done", "kept"]
        assert again.seen == ["s1", "s2"]
        assert not list(out.glob(".*part"))
        assert [row["status"] for row in csv.DictReader((out / "cohort.csv").open(newline=""))] == ["done"] * 4
        assert all(row["seconds"] for row in csv.DictReader((out / "cohort.csv").open(newline="")))

    def test_a_page_of_replaced_results_goes_and_replacing_is_said(self, scans, tmp_path, caplog):
        out, scan = tmp_path / "out", scans / "s0.nii.gz"
        predict_batch(scan, out, Bright())
        (out / "report.html").write_text("6 deposits")
        predict_batch(scan, out, Bright())
        assert (out / "report.html").is_file()
        assert caplog.text == ""
        predict_batch(scan, out, Bright(), kv="100")
        assert not (out / "report.html").exists()
        assert "out holds results of bright with other settings; they are made anew" in caplog.text

    def test_another_time_is_not_another_scan_but_another_content_is(self, scans, tmp_path, monkeypatch):
        out, scan = tmp_path / "out", scans / "s0.nii.gz"
        predict_batch(scan, out, Bright())
        hashed = []
        content_hash = batch_module.content_hash
        monkeypatch.setattr(
            "jdm_seg.inference.case_folder.content_hash", lambda path: hashed.append(path) or content_hash(path)
        )
        assert predict_batch(scan, out, Bright()).rows[0]["status"] == "kept"
        assert hashed == []  # known by size, time and ends
        os.utime(scan, (1, 1))
        assert predict_batch(scan, out, Bright()).rows[0]["status"] == "kept"
        assert len(hashed) == 1
        assert predict_batch(scan, out, Bright()).rows[0]["status"] == "kept"
        assert len(hashed) == 1  # the new time was noted
        write_scan(scan, 5)
        assert predict_batch(scan, out, Bright()).rows[0]["status"] == "done"

    def test_a_probability_map_that_is_missing_is_made(self, scans, tmp_path):
        scan, out = scans / "s0.nii.gz", tmp_path / "out"
        predict_batch(scan, out, Bright())
        options = BatchOptions(probability=True)
        assert predict_batch(scan, out, Bright(), options=options).rows[0]["status"] == "done"
        image = nib.load(out / "s0" / "probability.nii.gz")
        mask = np.asarray(nib.load(out / "s0" / "mask.nii.gz").dataobj) > 0
        values = np.asarray(image.dataobj, dtype=float)
        scale = 75.0 if values.max() > 1 else 0.75
        assert np.allclose(values[mask], scale)
        assert not values[~mask].any()
        assert predict_batch(scan, out, Bright(), options=options).rows[0]["status"] == "kept"

    def test_one_after_the_other_gives_the_same_bytes(self, scans, tmp_path):
        predict_batch(scans, tmp_path / "a", Bright())
        predict_batch(scans, tmp_path / "b", Bright(), options=BatchOptions(overlap=False))
        assert content(tmp_path / "a") == content(tmp_path / "b")

    def test_the_next_scan_is_read_while_the_network_works(self, scans, tmp_path, monkeypatch):
        """Deadlocks (and fails by its time limit) unless both go on at once."""
        read = {f"s{n}": threading.Event() for n in range(4)}
        reader = batch_module.read_volume
        monkeypatch.setattr(batch_module, "read_volume", lambda path: (read[path.name[:2]].set(), reader(path))[1])
        waited = []

        def wait_for_the_next(name):
            following = f"s{int(name[1]) + 1}"
            if following in read:
                waited.append(read[following].wait(20))

        method = Bright()
        method.on_scan = wait_for_the_next
        predict_batch(scans, tmp_path / "out", method)
        assert waited == [True, True, True]

    def test_nothing_is_read_ahead_when_memory_is_short(self, scans, tmp_path, monkeypatch):
        read = []
        reader = batch_module.read_volume
        monkeypatch.setattr(batch_module, "read_volume", lambda path: (read.append(path.name[:2]), reader(path))[1])
        method = Bright()
        seen = []
        method.on_scan = lambda name: (time.sleep(0.05), seen.append((name, list(read))))
        predict_batch(scans, tmp_path / "out", method, options=BatchOptions(memory_limit=1))
        assert seen[0] == ("s0", ["s0"])
        assert seen[1] == ("s1", ["s0", "s1"])

    def test_shards_come_to_what_one_run_comes_to(self, scans, tmp_path):
        (scans / "bad.nii.gz").write_text("a letter")
        predict_batch(scans, tmp_path / "one", Bright())
        for index in (2, 1, 3):
            predict_batch(scans, tmp_path / "parts", Bright(), shard=Shard(index, 3))
        assert content(tmp_path / "one") == content(tmp_path / "parts")
        run = json.loads((tmp_path / "parts" / "run.json").read_text())
        assert (run["cases"], run["failed"], run["status"], sorted(run["parts"])) == (
            5, 1, "complete", ["1/3", "2/3", "3/3"],
        )  # fmt: skip
        assert sorted(run["stage_seconds"]) == ["bad", "s0", "s1", "s2", "s3"]

    def test_tables_written_by_many_at_once_lose_no_row(self, tmp_path):
        ids = [f"c{number}" for number in range(40)]
        for case_id in ids:
            (tmp_path / case_id).mkdir()
            (tmp_path / case_id / "burden.json").touch()
        children = []
        for index in range(4):
            child = os.fork()
            if child == 0:
                try:
                    cohort = Cohort(tmp_path, set(ids), Shard(index + 1, 4), {})
                    for case_id in ids[index::4]:
                        cohort.record(row_of(case_id, "done", {}), {})
                    cohort.close("complete")
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
        rows = list(csv.DictReader((tmp_path / "cohort.csv").open(newline="")))
        assert [row["case_id"] for row in rows] == sorted(ids)
        assert json.loads((tmp_path / "run.json").read_text())["status"] == "complete"


def header_only(shape, dtype=np.int16) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(np.eye(4), 1)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return header.binaryblock + b"\0" * 4


class TestBadScans:
    def test_each_has_its_reason(self, scans, tmp_path):
        good = (scans / "s0.nii.gz").read_bytes()
        affine = np.eye(4)
        noise = np.random.default_rng(0).normal(-200, 400, (8, 8, 8)).astype(np.float32)
        (scans / "b1.nii.gz").write_bytes(good[: len(good) // 2])
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 3), np.int16), affine), scans / "b2.nii")
        (scans / "b3.nii.gz").write_text("a letter")
        (scans / "b4.nii.gz").touch()
        nib.save(nib.Nifti1Image(np.where(noise > 300, np.nan, noise), affine), scans / "b5.nii")
        nib.save(nib.Nifti1Image(noise.astype(np.complex64), affine), scans / "b6.nii")
        rgb = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        nib.save(nib.Nifti1Image(rgb, affine), scans / "b7.nii")
        (scans / "b8.nii").write_bytes(header_only((30000, 30000, 30000)))
        (scans / "b9.nii").symlink_to("b9.nii")
        (scans / "c1.nii").write_bytes(good)
        (scans / "c1.nii.gz").write_bytes(good)
        os.mkfifo(scans / "c2.nii")
        # a gzip file of a megabyte could hold the gigabyte that its header promises: memory decides
        result = predict_batch(scans, tmp_path / "out", Bright())
        reasons = {row["case_id"]: row["error"] for row in result.failed}
        expected = {
            "b1": "damaged|ends early", "b2": "3-D", "b3": "something else", "b4": "an empty file", "b5": "NaN",
            "b6": "complex", "b7": "RGB", "b8": "GB of voxels", "b9": "a link that leads nowhere",
            "c1": "every case id once", "c2": "such as a pipe",
        }  # fmt: skip
        assert sorted(reasons) == sorted(expected)
        for case_id, words in expected.items():
            assert any(word in reasons[case_id] for word in words.split("|")), reasons[case_id]
            assert "expected" in reasons[case_id]
        assert [row["case_id"] for row in result.rows if row["status"] == "done"] == ["s0", "s1", "s2", "s3"]

    def test_a_header_that_promises_more_than_memory_takes_none(self, scans, tmp_path, monkeypatch):
        monkeypatch.setattr(plan, "available_memory", lambda: 50_000)
        (scans / "big.nii.gz").write_bytes(gzip.compress(header_only((100, 100, 100)) + b"\0" * 2_000_000))
        monkeypatch.setattr(batch_module, "read_volume", lambda path: pytest.fail("read"))
        (row,) = predict_batch(scans / "big.nii.gz", tmp_path / "out", Bright()).failed
        assert "found a header that promises 0.0 GB of voxels" in row["error"]

    def test_a_case_that_another_process_works_on_is_left_to_it(self, scans, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                other = Cohort(out, set(), Shard(), {})
                other.locks.take("s1")
                os.write(ready[1], b"x")
                os.read(done[0], 1)
            finally:
                os._exit(0)
        os.read(ready[0], 1)
        try:
            result = predict_batch(scans, out, Bright())
        finally:
            os.write(done[1], b"x")
            os.waitpid(child, 0)
        assert [row["case_id"] for row in result.failed] == ["s1"]
        assert "no other process works on" in result.failed[0]["error"]
        assert "s1" not in (out / "cohort.csv").read_text()  # its row is the other's to write


class TestStopping:
    def test_a_full_disk_stops_with_one_message(self, scans, tmp_path, monkeypatch):
        write = batch_module.write_volume

        def full(path, array, like, dtype=None):
            if "s1" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            write(path, array, like, dtype)

        monkeypatch.setattr(batch_module, "write_volume", full)
        result = predict_batch(scans, tmp_path / "out", Bright())
        assert "expected a disk that takes the results, found OSError: No space left on device" in result.stopped
        assert result.failed[0]["case_id"] == "s1"
        assert len(result.rows) <= 3
        assert "not begun" in result.stopped
        assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["s0"]
        assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "stopped"
        monkeypatch.undo()
        assert not predict_batch(scans, tmp_path / "out", Bright()).failed

    @pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_leaves_whole_cases_and_true_tables(self, scans, tmp_path, request, signum, code):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
        out = tmp_path / "out"
        method = Bright()
        method.on_scan = lambda name: os.kill(os.getpid(), signum) if name == "s2" else None
        with pytest.raises(Stopped) as stopped, stop_on_signals():
            predict_batch(scans, out, method)
        assert stopped.value.exit_code == code
        assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["s0", "s1"]
        rows = list(csv.DictReader((out / "cohort.csv").open(newline="")))
        assert [row["case_id"] for row in rows] == ["s0", "s1"]
        assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
        assert [row["status"] for row in predict_batch(scans, out, Bright()).rows] == ["kept", "kept", "done", "done"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TestLaunch:
    def test_a_shard_runs_what_was_typed(self):
        typed = ["predict", "in", "out", "--model", "m", "--launch", "slurm", "--shards=8", "--slurm", "partition=gpu",
                 "--wait", "--report", "--overwrite", "--workers", "2"]  # fmt: skip
        command = shard_command(typed, Shard(3, 8))
        assert command[3:] == ["predict", "in", "out", "--model", "m", "--overwrite", "--shard", "3/8"]

    def test_slurm_options(self):
        options = ["partition=gpu", "time=90", "mem=16GB", "gpus=1", "cpus=4", "reservation=night"]
        assert slurm_parameters(options) == {
            "partition": "gpu", "time": 90, "mem": "16GB", "gpus_per_node": 1, "cpus_per_task": 4,
            "additional_parameters": {"reservation": "night"},
        }  # fmt: skip
        for wrong in ("gpu", "=x", "time=1h"):
            with pytest.raises(InputError, match="--slurm: expected"):
                slurm_parameters([wrong])


def test_warnings_name_what_the_model_was_trained_on(tmp_path):
    write_scan(tmp_path / "thin.nii.gz")
    thin = read_volume(tmp_path / "thin.nii.gz")
    thick = Volume(thin.array, np.diag([1.0, 1.0, 6.0, 1.0]))
    write_volume(tmp_path / "scans" / "thick.nii.gz", thick.array, thick)
    method = Bright()
    grid = TrainingGrid((1.5, 1.5, 1.5), (96.0, 96.0, 96.0), "look twice")
    for name, training in (("known", grid), ("unknown", None)):
        method.training = training
        predict_batch(tmp_path / "scans", tmp_path / name, method)
        warnings = json.loads((tmp_path / name / "thick" / "burden.json").read_text())["warnings"]
        assert any("the model works at 1.5 mm" in text for text in warnings) == (training is not None)
        assert ("look twice" in warnings) == (training is not None)


def test_a_map_is_written_of_a_method_that_has_one_only(tmp_path, scans):
    method = Bright()
    predict_batch(scans / "s0.nii.gz", tmp_path / "with", method, options=BatchOptions(probability=True))
    percent = read_volume(tmp_path / "with" / "s0" / "probability.nii.gz").array
    assert np.array_equal(percent, 75 * (read_volume(scans / "s0.nii.gz").array > 300))
    result = predict_batch(
        scans / "s0.nii.gz", tmp_path / "without", ThresholdSegmenter("ct"), options=BatchOptions(probability=True)
    )
    assert "expected a method that gives probabilities" in result.failed[0]["error"]
