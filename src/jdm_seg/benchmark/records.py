"""Figures of a benchmark that are kept in the repository, and whether a new run agrees with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jdm_seg.benchmark.spec import Benchmark
from jdm_seg.errors import InputError
from jdm_seg.volume import write_text

SCHEMA_VERSION = 1
OVERALL = "all"
TOLERANCES: dict[str, float] = {
    "lesion_f1": 0.005,
    "lesion_precision": 0.005,
    "lesion_recall": 0.005,
    "dice": 0.005,
    "surface_dice_1mm": 0.005,
    "recall": 0.005,
    "lesion_fp": 0.1,
    "false_positive_volume_ml": 0.01,
    "volume_reference_ml": 0.001,
}
"""How far the mean over all cases may lie from the recorded one; these are the figures that are recorded.

Measured: synthetic cases are the same bytes with one thread and two. Without AVX and fused multiplication, as on an old
processor, labels are the same and one voxel in 40,000 to 75,000 of a scan differs by 1. Ten times as many such voxels,
drawn twice, move no mean of the threshold on ``ct_phantom`` by more than 0.00002. What is left is one lesion that turns
over in one case: 0.003 of a mean of 30 cases. Other versions of NumPy or SciPy were not measured.
"""
_DECIDING = ("numpy", "scipy", "torch", "onnxruntime")
STRATUM_FACTOR = 6.0
"""A stratum has two to five cases: one lesion weighs more in its mean."""


@dataclass(frozen=True)
class Deviation:
    """A figure that lies outside its tolerance.

    Attributes:
        method: Whose.
        figure: Its name, with the stratum before a slash.
        recorded: What the record holds; None is undefined.
        found: What this run found.
        tolerance: How far apart they may be.
    """

    method: str
    figure: str
    recorded: float | None
    found: float | None
    tolerance: float

    def __str__(self) -> str:
        """Return it in words."""
        values = [f"{value:.4g}" if value is not None else "undefined" for value in (self.recorded, self.found)]
        return f"{self.method}: {self.figure} expected {values[0]} within {self.tolerance:g}, found {values[1]}"


@dataclass(frozen=True)
class Verdict:
    """What the comparison with a record says.

    Attributes:
        deviations: Figures outside their tolerance.
        notes: What was not compared, and why; and whether the data are the recorded ones bit for bit.
        compared: Number of figures that were compared.
    """

    deviations: tuple[Deviation, ...]
    notes: tuple[str, ...]
    compared: int


def record_path(benchmark_file: Path) -> Path:
    """Return where the recorded figures of a benchmark's file lie."""
    return benchmark_file.parent / "recorded" / f"{benchmark_file.stem}.json"


def figures_of(method: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures of one method that a record holds: means by ``stratum/figure``, pooled recall by size.

    Args:
        method: Its entry in ``results.json``.
    """
    parts = {OVERALL: method, **method["by_stratum"]}
    figures = {
        f"{stratum}/{name}": part["figures"][name]["mean"]
        for stratum, part in parts.items()
        for name in TOLERANCES
        if name in part["figures"]
    }
    return figures | {
        f"{OVERALL}/recall {size}": values["pooled"]["value"] for size, values in method["recall_by_size"].items()
    }


def tolerance_of(figure: str) -> float:
    """Return how far a figure, named as in :func:`figures_of`, may lie from its record."""
    stratum, _, name = figure.partition("/")
    return TOLERANCES[name.partition(" ")[0]] * (1.0 if stratum == OVERALL else STRATUM_FACTOR)


def write_record(path: Path, benchmark: Benchmark, results: dict[str, Any]) -> None:
    """Record the figures of a run; methods that it did not run keep theirs.

    Raises:
        InputError: If the run was of a part of the cases.
    """
    if results["cases_asked"] is not None:
        raise InputError(
            "--record", expected="a run of all cases", found=f"--cases {results['cases_asked']}", remedy="leave it out"
        )
    known = read_record(path)
    if known is not None and known["definition"] != benchmark.digest:
        known = None
    versions = results["provenance"]["packages"]
    made_by = {
        **{key: results["provenance"][key] for key in ("jdm_seg", "python")},
        **{name: versions[name] for name in _DECIDING if name in versions},
    }
    methods = {
        name: {
            "method": _identity(method),
            "recorded_with": made_by,
            "figures": {
                figure: {"value": value, "tolerance": tolerance_of(figure)}
                for figure, value in figures_of(method).items()
            },
        }
        for name, method in results["methods"].items()
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": benchmark.name,
        "definition": benchmark.digest,
        "data_sha256": results["data"]["sha256"],
        "methods": {**(known["methods"] if known else {}), **methods},
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """Read recorded figures; None where there are none.

    Raises:
        InputError: If the file is no record of this schema.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] == SCHEMA_VERSION and isinstance(content["methods"], dict):
            record: dict[str, Any] = content
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(path, expected="recorded figures", found="something else", remedy="record them again: --record")


def compare_with_record(benchmark: Benchmark, results: dict[str, Any], record: dict[str, Any] | None) -> Verdict:
    """Compare the figures of a run with the recorded ones.

    Synthetic data are compared even if their bytes differ, which other versions of libraries may cause; figures on
    scans that the user brings only where the scans are the recorded ones.

    Args:
        benchmark: Which.
        results: The content of ``results.json``.
        record: Recorded figures, if there are any.

    Raises:
        InputError: If the record is of another definition of the benchmark.
    """
    if record is None:
        return Verdict((), ("no figures are recorded for this benchmark",), 0)
    if record["definition"] != benchmark.digest:
        raise InputError(
            f"recorded figures of {benchmark.name}",
            expected=f"those of its definition {benchmark.digest}",
            found=f"of another one, {record['definition']}",
            remedy="record them again: --record",
        )
    if results["cases_asked"] is not None:
        return Verdict((), ("recorded figures are of all cases; not compared with a part of them",), 0)
    same = record["data_sha256"] == results["data"]["sha256"]
    if not same and benchmark.kind != "phantom":
        return Verdict((), ("recorded figures are of other scans; not compared",), 0)
    notes = ["the data are the recorded ones bit for bit" if same else "the data differ from the recorded ones in bits"]
    deviations: list[Deviation] = []
    compared = 0
    for name, method in results["methods"].items():
        known = record["methods"].get(name)
        if known is None or known["method"] != _identity(method):
            notes.append(f"{name}: " + ("not recorded" if known is None else "recorded of another model or settings"))
            continue
        deviations += _deviations(name, figures_of(method), known["figures"])
        compared += len(known["figures"])
    return Verdict(tuple(deviations), tuple(notes), compared)


def _deviations(
    method: str, found: dict[str, float | None], recorded: dict[str, dict[str, Any]]
) -> Iterator[Deviation]:
    for figure, entry in recorded.items():
        value, expected, tolerance = found.get(figure), entry["value"], entry["tolerance"]
        undefined = value is None or expected is None
        if (value is not expected) if undefined else abs(value - expected) > tolerance:
            yield Deviation(method, figure, expected, value, tolerance)


def _identity(method: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a method this one: name and hash of a model, or the name alone of what the code itself is.

    A change of the baseline's settings must show as a deviation, not hide as another method.
    """
    made_by = method["made_by"]
    return {key: made_by[key] for key in ("model", "model_sha256") if key in made_by}
