"""One batch by several processes: on one machine, a process a GPU, or as an array of jobs on a Slurm cluster.

All do the same: the command that was typed, once a shard. The shards' results meet in one folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from jdm_seg.errors import InputError
from jdm_seg.inference.plan import Shard

log = logging.getLogger(__name__)

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""What asks a batch to stop: Ctrl-C, a shutdown or ``scancel``, a closed terminal, Slurm before a job's time is up."""
LAUNCH_OPTIONS = {"--launch": 1, "--shards": 1, "--slurm": 1, "--wait": 0, "--workers": 1, "--shard": 1, "--report": 0}
"""Options of ``predict`` that say how a batch is spread, and how many values each takes."""
_SLURM_NAMES = {"cpus": "cpus_per_task", "gpus": "gpus_per_node", "time": "time", "mem": "mem"}
_SLURM_OWN = ("partition", "account", "qos", "constraint", "exclude", "nodelist", "comment", "gres", "mem_per_cpu")
_SLURM_TIMEOUTS = 3


class Stopped(KeyboardInterrupt):
    """A signal asked to stop.

    Attributes:
        exit_code: What a shell expects: 128 and the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.exit_code = 128 + signum


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn the first signal that asks to stop into :class:`Stopped`, raised in the main thread; a second one kills.

    Nothing is lost by that either: results have their names only when they are whole.
    """
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        log.warning("stopping when the scan that is being written is whole; a second signal stops at once")
        raise Stopped(signum)

    earlier = {}
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            earlier[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def shard_command(arguments: Sequence[str], shard: Shard) -> list[str]:
    """Return the command that does one shard of what was typed.

    Args:
        arguments: As typed after ``jdm-seg``; options of :data:`LAUNCH_OPTIONS` are left out.
        shard: The part to do.
    """
    kept, skip = [], 0
    for argument in arguments:
        name = argument.partition("=")[0]
        if skip:
            skip -= 1
        elif name in LAUNCH_OPTIONS:
            skip = 0 if "=" in argument else LAUNCH_OPTIONS[name]
        else:
            kept.append(argument)
    return [sys.executable, "-c", "from jdm_seg.cli import main; main()", *kept, "--shard", str(shard)]


def run_workers(arguments: Sequence[str], workers: int, *, devices: Sequence[str] = ()) -> list[int]:
    """Run one process a shard on this machine and wait for all; a signal is passed on to each.

    Args:
        arguments: As typed after ``jdm-seg``.
        workers: How many.
        devices: What ``CUDA_VISIBLE_DEVICES`` is to be for each; empty: as it is.

    Returns:
        Exit codes; negative where a signal ended a process.

    Raises:
        Stopped: After all have ended, when a signal asked for it.
    """
    cores = _cores_of(workers)
    processes = []
    for index in range(workers):
        environment = dict(os.environ)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
        command = shard_command(arguments, Shard(index + 1, workers))
        # a session of its own: Ctrl-C reaches it once, through this process
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        if cores:
            # threads of every engine follow the cores that a process may use
            with contextlib.suppress(OSError):
                os.sched_setaffinity(process.pid, cores[index])
        processes.append(process)
    try:
        return [process.wait() for process in processes]
    except Stopped as stopped:
        for process in processes:
            process.send_signal(stopped.exit_code - 128)
        for process in processes:
            process.wait()
        raise


def _cores_of(workers: int) -> list[set[int]]:
    """Share this process's cores out; empty where there are fewer than workers, or no such control."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return [] if workers < 2 or len(cores) < workers else [set(cores[index::workers]) for index in range(workers)]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class ShardJob:
    """One job of a cluster: runs a shard's command; sent again when its time was up, because it goes on by itself.

    Attributes:
        command: With its arguments.
    """

    command: tuple[str, ...]

    def __call__(self) -> int:
        """Run the command; return its exit code (1 when scans failed, which is no failure of the job)."""
        process = subprocess.Popen(self.command)
        code = process.wait()
        if code not in (0, 1):
            raise RuntimeError(f"the shard ended with exit code {code}; its messages stand above")
        return code

    def checkpoint(self) -> Any:
        """Return what submitit sends again when the job's time is up: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit_slurm(arguments: Sequence[str], shards: int, logs: Path, options: Sequence[str]) -> list[Any]:
    """Send a batch to Slurm as one array of jobs.

    Args:
        arguments: As typed after ``jdm-seg``; paths must mean the same on the cluster's machines.
        shards: How many jobs.
        logs: Folder for submitit's files and every job's output; on a disk that all machines share.
        options: ``key=value``: ``partition``, ``time`` (minutes), ``mem``, ``cpus``, ``gpus``, ``account``, ``qos``, …;
            anything else becomes a line of ``#SBATCH``.

    Returns:
        submitit's jobs.

    Raises:
        InputError: Without submitit or Slurm, with an option that is no pair, or if Slurm refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "--launch slurm",
            expected="submitit",
            found="it is not installed",
            remedy='pip install "jdm-seg[slurm]"',
        ) from error
    if shutil.which("sbatch") is None:
        raise InputError(
            "--launch slurm",
            expected="a machine from which jobs can be sent",
            found="no sbatch",
            remedy="log in to the cluster, or use --workers on this machine",
        )
    executor = submitit.SlurmExecutor(folder=logs / "%j", max_num_timeout=_SLURM_TIMEOUTS)
    executor.update_parameters(job_name="jdm-seg", stderr_to_stdout=True, **slurm_parameters(options))
    jobs = [ShardJob(tuple(shard_command(arguments, Shard(index + 1, shards)))) for index in range(shards)]
    try:
        with executor.batch():
            return [executor.submit(job) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        raise InputError(
            "--launch slurm",
            expected="options that this cluster takes",
            found=" ".join(str(error).split()),
            remedy="see sinfo for its partitions and set them by --slurm key=value",
        ) from error


def slurm_parameters(options: Sequence[str]) -> dict[str, Any]:
    """Turn ``key=value`` pairs into submitit's parameters.

    Raises:
        InputError: If one is no pair, or ``time`` no number of minutes.
    """
    parameters: dict[str, Any] = {"time": 24 * 60}
    further: dict[str, str] = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or not key or not value:
            raise InputError("--slurm", expected="key=value", found=repr(option), remedy="for example partition=gpu")
        name = _SLURM_NAMES.get(key, key)
        if name in ("time", "cpus_per_task", "gpus_per_node"):
            if not value.isdigit():
                raise InputError("--slurm", expected=f"a whole number for {key}", found=repr(value),
                                 remedy="give time in minutes")  # fmt: skip
            parameters[name] = int(value)
        elif name in (*_SLURM_OWN, "mem"):
            parameters[name] = value
        else:
            further[key] = value
    return {**parameters, **({"additional_parameters": further} if further else {})}


def wait_for(jobs: Sequence[Any], *, every_s: float = 2.0) -> list[str]:
    """Wait until every job has ended; return why one has not, a line a job that failed."""
    while not all(job.done() for job in jobs):
        time.sleep(every_s)
    failed = []
    for number, job in enumerate(jobs, 1):
        error = job.exception()
        if error is not None:
            log.debug("job %s", job.job_id, exc_info=error)
            failed.append(f"shard {number}/{len(jobs)}: job {job.job_id} ended as {job.state}; see {job.paths.stdout}")
    return failed
