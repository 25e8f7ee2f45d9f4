"""Run methods on the cases of a benchmark, score them alike, and put their figures side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jdm_seg.baseline import MODEL as THRESHOLD
from jdm_seg.baseline import ThresholdSegmenter
from jdm_seg.benchmark.data import BenchmarkData, Sources, prepare_data
from jdm_seg.benchmark.spec import Benchmark
from jdm_seg.benchmark.table import TABLE_COLUMNS, table_lines, table_rows
from jdm_seg.cases import DATALIST, Modality, read_manifest
from jdm_seg.errors import CaseNotFoundError, InputError
from jdm_seg.evaluate import EvaluateSettings, score_folder, write_comparison, write_evaluation
from jdm_seg.inference.batch import predict_batch
from jdm_seg.inference.prediction import Segmenter
from jdm_seg.model_folder import ModelFolder, open_model, shipped_models
from jdm_seg.provenance import describe_run
from jdm_seg.scoring import CaseScore
from jdm_seg.volume import write_table, write_text

SCHEMA_VERSION = 1
_RESERVED = ("data", "compare")


@dataclass(frozen=True)
class Method:
    """What is measured: the threshold baseline, a model, or masks that something else made.

    Attributes:
        name: In tables and folders.
        model: To run; None for the threshold, or with ``predictions``.
        predictions: Folder of masks, named ``<id>.nii.gz`` or ``<id>/mask.nii.gz``.
    """

    name: str
    model: ModelFolder | None = None
    predictions: Path | None = None

    def load(self, modality: Modality) -> Segmenter:
        """Load what runs."""
        if self.model is None:
            return ThresholdSegmenter(modality)
        from jdm_seg.inference.predict import ScanPredictor  # torch, which the threshold does not need

        return ScanPredictor(self.model)


def methods_named(modality: Modality, names: Sequence[str], predictions: Sequence[str] = ()) -> list[Method]:
    """Return the methods that a command line names.

    Args:
        modality: Of the benchmark.
        names: ``threshold``, shipped models, model folders; empty: the threshold, and without ``predictions`` of
            others every shipped model of the modality too.
        predictions: ``NAME=DIR`` each.

    Raises:
        InputError: If a model is of the other modality, or two methods have one name.
        CaseNotFoundError: If there is no such model or folder.
    """
    if not names:
        shipped = [name for name in shipped_models() if open_model(name).spec.preprocess.modality == modality]
        names = [THRESHOLD, *shipped]
    methods = [_method(modality, name) for name in names]
    for given in predictions:
        name, found, folder = given.partition("=")
        if not found or not name or name.startswith(".") or {"/", "\\"} & set(name):
            raise InputError(
                "--predictions", expected="NAME=FOLDER", found=repr(given), remedy="give the masks a name for the table"
            )
        if not Path(folder).is_dir():
            raise CaseNotFoundError(
                f"--predictions {name}", expected="a folder of masks", found="no such folder", remedy="check the path"
            )
        methods.append(Method(name, predictions=Path(folder)))
    for method in methods:
        if [m.name for m in methods].count(method.name) > 1 or method.name in _RESERVED:
            raise InputError(
                f"method {method.name}",
                expected=f"a name of its own, and none of {', '.join(_RESERVED)}",
                found="two of one name" if method.name not in _RESERVED else "that name",
                remedy="rename a folder, or give each method once",
            )
    return methods


def _method(modality: Modality, name: str) -> Method:
    if name == THRESHOLD:
        return Method(name)
    model = open_model(name)
    found = model.spec.preprocess.modality
    if found != modality:
        raise InputError(f"model {name}", expected=f"one for {modality}", found=f"one for {found}", remedy="leave out")
    return Method(model.path.resolve().name, model)


def run_benchmark(
    benchmark: Benchmark,
    out: Path,
    methods: Sequence[Method],
    sources: Sources | None = None,
    *,
    cases: int | None = None,
    workers: int = 1,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Make or find the data, run every method, score it, compare the methods in pairs, write the tables.

    Writes ``data/``; for each method ``<name>/predictions/`` and ``<name>/evaluation/``; ``compare/<a>-<b>/``;
    ``results.json``, ``table.csv`` and ``table.md``. What is complete is kept, so an interrupted run goes on.

    Args:
        benchmark: Which.
        out: Folder for everything.
        methods: At least one.
        sources: Real scans, where it needs some.
        cases: Only so many, for a quick look.
        workers: Processes that make synthetic cases.
        on_step: Called with a line for each case that is made, predicted or scored.

    Returns:
        The content of ``results.json``.

    Raises:
        CaseNotFoundError: If the benchmark needs scans and there are none.
        InputError: If ``out`` holds something else.
    """
    data = prepare_data(
        benchmark,
        out / "data",
        sources or Sources(),
        cases=cases,
        workers=workers,
        on_case=lambda case_id: on_step(f"data {case_id}"),
    )
    settings = EvaluateSettings(benchmark.lesion_protocol())
    entries: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[CaseScore]] = {}
    for method in methods:
        entries[method.name], scores[method.name] = _run_method(benchmark, method, data, out, settings, on_step)
    pairs = [
        {
            "first": first,
            "second": second,
            "figures": _compare(first, second, scores, data, out, settings),
        }
        for first, second in combinations(scores, 2)
    ]
    results = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": benchmark.name,
        "kind": benchmark.kind,
        "about": benchmark.about,
        "definition": benchmark.digest,
        "cases_asked": cases,
        "data": {"cases": data.cases, "sha256": data.sha256, "strata": _strata_sizes(data)},
        "provenance": describe_run(),
        "methods": entries,
        "comparisons": pairs,
    }
    write_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_table(out / "table.csv", TABLE_COLUMNS, table_rows(results))
    write_text(out / "table.md", "\n".join(table_lines(results)) + "\n")
    return results


def _run_method(
    benchmark: Benchmark,
    method: Method,
    data: BenchmarkData,
    out: Path,
    settings: EvaluateSettings,
    on_step: Callable[[str], None],
) -> tuple[dict[str, Any], list[CaseScore]]:
    """Predict and score; return the method's entry of ``results.json`` and its scores."""
    folder = out / method.name
    seconds: list[float] = []
    made_by: dict[str, Any] = {"model": "masks made elsewhere"}
    masks = method.predictions
    if masks is None:
        segmenter = method.load(benchmark.modality)
        masks, made_by = folder / "predictions", segmenter.describe()
        batch = predict_batch(
            data.scans, masks, segmenter, on_case=lambda row: on_step(f"{method.name} {row['case_id']} {row['status']}")
        )
        seconds = [float(row["seconds"]) for row in batch.rows if row.get("seconds")]
    scores = score_folder(masks, data.references, settings, lambda case_id: on_step(f"{method.name} {case_id} scored"))
    summary = write_evaluation(scores, masks, data.references, folder / "evaluation", settings)
    kept = ("n_cases", "n_failed", "failed", "figures", "recall_by_size", "recall_by", "lesions_pooled", "by_stratum")
    entry: dict[str, Any] = {"made_by": made_by, **{key: summary[key] for key in kept}}
    entry["seconds_per_scan"] = {
        "mean": float(np.mean(seconds)) if seconds else None,
        "median": float(np.median(seconds)) if seconds else None,
        "n": len(seconds),
    }
    return entry, scores


def _compare(
    first: str,
    second: str,
    scores: Mapping[str, list[CaseScore]],
    data: BenchmarkData,
    out: Path,
    settings: EvaluateSettings,
) -> dict[str, Any]:
    folder = out / "compare" / f"{first}-{second}"
    write_comparison((first, scores[first]), (second, scores[second]), data.references, folder, settings)
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["figures"]
    return content


def _strata_sizes(data: BenchmarkData) -> dict[str, int]:
    members = read_manifest(data.references.parent / DATALIST).all
    names = [case.stratum for case in members if case.stratum]
    return {name: names.count(name) for name in dict.fromkeys(names)}
