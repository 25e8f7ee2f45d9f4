"""Batches and trainings through a real Slurm: one node in a scratch folder, started here and ended here."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jdm_seg.volume import Volume, write_volume

pytestmark = pytest.mark.slow

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
CLI = (sys.executable, "-c", "from jdm_seg.cli import main; main()")
CONF = """
ClusterName=scratch
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A running one-node cluster; gives the environment in which its commands find it."""
    pytest.importorskip("submitit")
    if os.geteuid() != 0 or not all(shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") for name in PROGRAMS):
        pytest.skip("needs root and Debian's slurm-wlm and munge")
    base = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (base / name).mkdir(mode=0o700)
    (base / "munge" / "key").write_bytes(os.urandom(1024))
    (base / "munge" / "key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    conf = base / "slurm.conf"
    conf.write_text(
        CONF.format(host=host, base=base, controller=free_port(), daemon=free_port(), cpus=os.cpu_count() or 1)
    )
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    files = [f"--{option}-file={base}/munge/{option}" for option in ("key", "pid", "seed", "log")]
    commands = (
        # --force: the folders above may be anyone's to write in
        ["munged", "--foreground", "--force", f"--socket={base}/munge/socket", *files],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    )
    processes = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            time.sleep(1)
        until = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo"], env=environment, capture_output=True, text=True).stdout:
            if time.monotonic() > until:
                pytest.skip("Slurm does not start on this machine")
            time.sleep(1)
        yield environment
    finally:
        # what still runs would outlive its daemons
        subprocess.run(["scancel", "--user", "root"], env=environment, capture_output=True, check=False, timeout=60)
        time.sleep(2)
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


def run(*arguments: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_two_jobs_do_one_batch(cluster, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        array = np.full((24, 24, 10), -1000, np.int16)
        array[4:20, 4:20] = 50 + rng.normal(0, 8, (16, 16, 10))
        array[10:13, 10:13, 3:6] = 600
        write_volume(tmp_path / "scans" / f"s{number}.nii.gz", array, Volume(array, np.diag([2.0, 2.0, 3.0, 1.0])))
    (tmp_path / "scans" / "bad.nii").write_text("a letter")
    send = ("--launch", "slurm", "--shards", "2", "--slurm", "time=5", "--slurm", "cpus=1", "--slurm", "mem=800")
    done = run(
        "predict", "scans", "out", "--model", "threshold", *send, "--wait", cwd=tmp_path, environment=cluster
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one bad scan, as without a cluster
    assert done.stdout.startswith("2 jobs for 4 scans: ")
    assert "3 of 4 scans segmented" in done.stdout
    rows = list(csv.DictReader((tmp_path / "out" / "cohort.csv").open(newline="")))
    assert {row["case_id"]: row["status"] for row in rows} == {
        "bad": "failed", "s0": "done", "s1": "done", "s2": "done",
    }  # fmt: skip
    logs = [path.read_text() for path in (tmp_path / "out" / ".slurm").glob("*/*log.out")]
    assert len(logs) == 2
    assert sorted("shard 1/2" in text for text in logs) == [False, True]
    refused = run(
        "predict", "scans", "out", "--model", "threshold", "--launch", "slurm", "--slurm", "partition=nope",
        cwd=tmp_path, environment=cluster,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "--launch slurm: expected options that this cluster takes" in refused.stderr


def test_a_training_is_composed_and_run_by_a_job(cluster, tmp_path):
    """The job composes the config and finds its mistake: that is enough, and quick."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = run(
        "train", "-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1",
        "hydra.launcher.timeout_min=5", "data=labelled", "data.root=nowhere", "name=there",
        cwd=tmp_path, environment=cluster,
    )  # fmt: skip
    logs = [path.read_text() for path in tmp_path.glob("runs/there/*/.slurm/*/*log.*")]
    assert logs, done.stderr
    text = "".join(logs) + done.stderr
    assert "expected a manifest at data.root" in text


def test_a_training_whose_time_is_up_is_saved_and_queued_again(cluster, tmp_path):
    """Slurm's warning comes early, by hand; what follows is Slurm's and submitit's own."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(3):
        ball = np.zeros((32, 32, 32), np.int16)
        ball[14:18, 14:18, 12:16] = 1
        leg = np.where(np.hypot(*(np.indices((32, 32)) - 16)) < 12, 40, -1000)[..., None]
        scan = (leg + 400 * ball + rng.normal(0, 9, ball.shape)).astype(np.int16)
        for kind, array in (("images", scan), ("labels", ball)):
            write_volume(tmp_path / kind / f"c{number}.nii.gz", array, Volume(array, np.diag([1.5, 1.5, 1.5, 1.0])))
        rows.append({"image": f"images/c{number}.nii.gz", "label": f"labels/c{number}.nii.gz"})
    manifest = {"modality": "ct", "training": rows[:2], "validation": rows[2:]}
    (tmp_path / "datalist.json").write_text(json.dumps(manifest))
    command = [
        *CLI, "train", "-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1",
        "hydra.launcher.timeout_min=9", "data=labelled", "data.root=.", "name=long", "network.channels=[8,16]",
        "data.patch_size=[32,32,32]", "data.patches_per_epoch=40", "trainer.max_epochs=10", "trainer.validate_every=10",
        "trainer.accelerator=cpu", "data.workers=0",
    ]  # fmt: skip
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(command, cwd=tmp_path, env=cluster, stdout=said, stderr=said)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/long/**/checkpoints/last.ckpt")), 120)
        (run_folder,) = (path.parents[1] for path in tmp_path.glob("runs/long/**/checkpoints/last.ckpt"))

        def jobs(*options: str) -> list[str]:
            command = ["squeue", "-h", "-o", "%A", *options]
            return subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout.split()

        (job,) = jobs()
        subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
        wait_for(lambda: facts_of(run_folder).get("status") == "stopped", 60)
        assert launcher.poll() is None  # it waits for the rest
        stopped_at = facts_of(run_folder)["steps"]
        # a job that was put back waits for a while; here it need not
        wait_for(lambda: job in jobs("-t", "PD"), 60)
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster, check=True)
        assert launcher.wait(180) == 0, (tmp_path / "said").read_text()
    finally:
        launcher.kill()
    assert 0 < stopped_at < 200
    assert facts_of(run_folder)["steps"] == 200


def facts_of(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened in time"
        time.sleep(0.3)
