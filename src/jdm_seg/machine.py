"""What this machine has left: memory and disk, as far as the process may use them; and how it asks a process to go."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""A scheduler's time limit or a closed terminal; SLURM's early warning, as one asks for it by hand, and as submitit
does. Windows has the first alone."""
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Limit and use, version 2 and 1: what a container or a cluster's job may take is less than what the machine has."""


def available_memory() -> int | None:
    """Return how many bytes of memory can still be taken without swapping; None where the system does not say."""
    found = []
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for limit, used in _CGROUPS:
        try:
            found.append(int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return max(0, min(found)) if found else None


def resident_memory() -> int:
    """Return the bytes of memory that this process holds; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def free_disk(folder: Path) -> int:
    """Return how many bytes can still be written into a folder that exists."""
    return shutil.disk_usage(folder).free
