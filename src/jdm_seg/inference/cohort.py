"""``cohort.csv`` and ``run.json``: true after every case, whoever else works on the same folder."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import resource
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jdm_seg.errors import InputError
from jdm_seg.inference.case_folder import DONE
from jdm_seg.inference.plan import Shard
from jdm_seg.provenance import describe_run, now
from jdm_seg.volume import write_table, write_text

log = logging.getLogger(__name__)

COHORT = "cohort.csv"
RUN = "run.json"
LOCK = ".lock"
COHORT_COLUMNS = (
    "case_id",
    "status",
    "lesion_count",
    "volume_ml",
    "mass_mg_ha",
    "agatston",
    "mean_hu",
    "largest_lesion_ml",
    "seconds",
    "error",
)


def row_of(case_id: str, status: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of ``cohort.csv`` with those figures that are columns of it; what is not given stays empty."""
    known = {name: value for name, value in figures.items() if name in COHORT_COLUMNS}
    return {**dict.fromkeys(COHORT_COLUMNS), **known, "case_id": case_id, "status": status}


class Locks:
    """Locks between processes in one file: byte 0 for the tables, one byte a case. A killed process holds none.

    POSIX record locks, which NFS, Lustre and GPFS pass between machines. Where there are none, work goes on without.
    """

    def __init__(self, out: Path) -> None:
        self._file = (out / LOCK).open("ab")
        self._thread = threading.Lock()  # record locks do not part threads
        self._warned = False

    @contextlib.contextmanager
    def tables(self) -> Iterator[None]:
        """Hold the tables, waiting for whoever has them."""
        with self._thread:
            self._lock(0, wait=True)
            try:
                yield
            finally:
                self._unlock(0)

    def take(self, case_id: str) -> bool:
        """Take a case, or tell that another process works on it."""
        return self._lock(_byte(case_id), wait=False)

    def release(self, case_id: str) -> None:
        """Give a case back."""
        self._unlock(_byte(case_id))

    def close(self) -> None:
        """Give everything back."""
        self._file.close()

    def _lock(self, byte: int, *, wait: bool) -> bool:
        try:
            import fcntl

            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except (ImportError, OSError) as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "this disk has no file locks (%s): run one process at a time, or run the command once more at the "
                    "end, which makes the tables anew",
                    type(error).__name__,
                )
        return True

    def _unlock(self, byte: int) -> None:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


def _byte(case_id: str) -> int:
    # two ids on one byte make a process wait for its neighbour's case; nothing else
    return 1 + zlib.crc32(case_id.encode()) % (1 << 30)


class Cohort:
    """The tables of a results folder, brought up to date after every case.

    Rows of other shards and of earlier calls stay: complete ones as long as their folder is there, failed ones as long
    as the scan is in the plan.
    """

    def __init__(self, out: Path, planned: set[str], shard: Shard, settings: dict[str, Any]) -> None:
        """Open the folder.

        Args:
            out: Where the results go; must exist.
            planned: Ids of all shards together.
            shard: Which of them this process does.
            settings: What the results depend on, for ``run.json``.
        """
        self.locks = Locks(out)
        self._out = out
        self._planned = planned
        self._shard = shard
        self._settings = json.loads(json.dumps(settings))
        self._facts = describe_run(**self._settings)
        self._start = now()
        self._rows: dict[str, dict[str, Any]] = {}
        self._stages: dict[str, dict[str, float]] = {}
        with self.locks.tables():  # tables are written under the lock only, so a part of one is a killed run's
            for name in (COHORT, RUN):
                for part in out.glob(f".????????.{name}.part"):
                    part.unlink(missing_ok=True)

    def record(self, row: dict[str, Any], stages: dict[str, float]) -> None:
        """Put one case into the tables. ``kept`` is ``done`` there: how often a batch was started is no result."""
        self._rows[row["case_id"]] = {**row, "status": "done" if row["status"] == "kept" else row["status"]}
        self._stages[row["case_id"]] = stages
        self._write("running")

    def close(self, status: str) -> None:
        """Say in ``run.json`` how it ended: ``complete``, ``interrupted`` or ``stopped``."""
        try:
            self._write(status)
        finally:
            self.locks.close()

    def _write(self, status: str) -> None:
        with self.locks.tables():
            rows = self._merged_rows()
            write_table(self._out / COHORT, COHORT_COLUMNS, rows)
            write_text(self._out / RUN, json.dumps(self._run_facts(rows, status), indent=1) + "\n")

    def _merged_rows(self) -> list[dict[str, Any]]:
        rows = {}
        path = self._out / COHORT
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    case_id = str(row.get("case_id"))
                    failed = row.get("status") == "failed"
                    if case_id in self._planned if failed else (self._out / case_id / DONE).is_file():
                        rows[case_id] = {name: row.get(name) for name in COHORT_COLUMNS}
        rows |= self._rows
        return [rows[case_id] for case_id in sorted(rows)]

    def _run_facts(self, rows: list[dict[str, Any]], status: str) -> dict[str, Any]:
        earlier = self._earlier_run()
        part = {
            "status": status,
            "start": self._start,
            "end": now(),
            "cases": len(self._rows),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        parts = {**earlier.get("parts", {}), str(self._shard): part}
        parts = {name: parts[name] for name in sorted(parts) if name.endswith(f"/{self._shard.count}")}
        known = {row["case_id"] for row in rows}
        stages = {**earlier.get("stage_seconds", {}), **self._stages}
        return {
            **self._facts,
            "status": _status_of(parts, self._shard.count),
            "start": min(one["start"] for one in parts.values()),
            "end": max(one["end"] for one in parts.values()),
            "cases": len(rows),
            "failed": sum(row["status"] == "failed" for row in rows),
            "parts": parts,
            "stage_seconds": {case_id: stages[case_id] for case_id in sorted(stages) if case_id in known},
            "peak_memory_mb": max(one["peak_memory_mb"] for one in parts.values()),
        }

    def _earlier_run(self) -> dict[str, Any]:
        """Return the ``run.json`` that other shards or an interrupted call with the same settings left."""
        try:
            earlier: dict[str, Any] = json.loads((self._out / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        same = isinstance(earlier, dict) and all(earlier.get(key) == value for key, value in self._settings.items())
        return earlier if same else {}


def _status_of(parts: dict[str, dict[str, Any]], count: int) -> str:
    found = {part["status"] for part in parts.values()}
    if "running" in found or len(parts) < count:
        return "running"
    return next((status for status in ("stopped", "interrupted") if status in found), "complete")


def busy(case_id: str) -> InputError:
    """Return the reason why a case was left alone."""
    return InputError(
        case_id,
        expected="a case that no other process works on",
        found="one that does",
        remedy="run the same command again when it has ended",
    )
