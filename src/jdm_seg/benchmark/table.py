"""The figures of a benchmark as tables to read: Markdown for people, rows for a CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jdm_seg.benchmark.records import OVERALL
from jdm_seg.lesions import SIZE_STRATA

TABLE_COLUMNS = ("method", "stratum", "figure", "mean", "median", "ci_low", "ci_high", "n", "n_undefined")
SHOWN = (
    ("lesion_f1", "lesion F1", 2),
    ("lesion_precision", "precision", 2),
    ("lesion_recall", "recall", 2),
    ("dice", "Dice", 2),
    ("lesion_fp", "false lesions a scan", 1),
    ("false_positive_volume_ml", "false mL a scan", 3),
)
"""Figures of ``table.md``, their heads and digits."""
SHOWN_OF_NEGATIVES = (*SHOWN[-2:], ("scan_specificity", "share of scans with none", 2))
"""Without a lesion to find there is nothing else to say."""
_ATTRIBUTES = ("contrast", "pattern", "phenotype")
_COMPARED = ("lesion_f1", "dice", "lesion_fp")


def table_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of ``table.csv``: every figure of every method, over all cases and by stratum."""
    return [
        {"method": name, "stratum": stratum, "figure": figure, **{key: values.get(key) for key in TABLE_COLUMNS[3:]}}
        for name, method in results["methods"].items()
        for stratum, part in {OVERALL: method, **method["by_stratum"]}.items()
        for figure, values in part["figures"].items()
    ]


def table_lines(results: dict[str, Any]) -> Iterator[str]:
    """Give the lines of ``table.md``: figures with intervals, recall by size, lesion F1 by stratum, paired tests."""
    methods = results["methods"]
    negative = results["kind"] == "negative"
    shown = SHOWN_OF_NEGATIVES if negative else SHOWN
    yield f"# {results['benchmark']}: {results['data']['cases']} cases"
    yield f"\n{results['about']} Mean over cases (95 % interval); n: cases where the figure is defined.\n"
    yield from _table(
        ["method", *(head for _, head, _ in shown), "s a scan"],
        [
            [name, *(_cell(method["figures"][figure], digits) for figure, _, digits in shown), _seconds(method)]
            for name, method in methods.items()
        ],
    )
    if not negative:
        yield from _recall_lines(methods)
    if results["data"]["strata"]:
        yield "\nBy stratum: lesion F1, then false lesions a scan:\n"
        names = list(methods)
        yield from _table(
            ["stratum", "cases", *names, *(f"{name}: false" for name in names)],
            [
                [stratum, str(size), *_by_stratum(methods, stratum, "lesion_f1", 2), *_false(methods, stratum)]
                for stratum, size in results["data"]["strata"].items()
            ],
        )
    if results["comparisons"]:
        yield "\nPaired differences, first minus second (95 % interval; p by permutation, Holm-adjusted):\n"
        yield from _table(
            ["first", "second", "lesion F1", "Dice", "false lesions a scan"],
            [
                [pair["first"], pair["second"], *(_difference(pair["figures"][f]) for f in _COMPARED)]
                for pair in results["comparisons"]
            ],
        )


def _recall_lines(methods: dict[str, Any]) -> Iterator[str]:
    yield "\nShare of the reference lesions that were found, by equivalent diameter:\n"
    yield from _table(
        ["method", *SIZE_STRATA],
        [[name, *(_share(method["recall_by_size"][s]) for s in SIZE_STRATA)] for name, method in methods.items()],
    )
    for attribute in sorted({key for method in methods.values() for key in method["recall_by"]} & set(_ATTRIBUTES)):
        values = next(m["recall_by"][attribute] for m in methods.values() if attribute in m["recall_by"])
        yield f"\nThe same by {attribute}:\n"
        rows = [
            [name, *(_share(method["recall_by"].get(attribute, {}).get(value)) for value in values)]
            for name, method in methods.items()
        ]
        yield from _table(["method", *values], rows)
        if attribute == "contrast":
            yield "\nLesion F1 with the lesions of one contrast alone, the others neither found nor missed:\n"
            rows = [
                [name, *(_f1(method["recall_by"].get(attribute, {}).get(value)) for value in values)]
                for name, method in methods.items()
            ]
            yield from _table(["method", *values], rows)


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cell(figure: dict[str, Any], digits: int) -> str:
    if figure["mean"] is None:
        return "undefined"
    text = f"{figure['mean']:.{digits}f}"
    if figure["ci_low"] is not None and figure["n"] > 1:
        text += f" ({figure['ci_low']:.{digits}f} to {figure['ci_high']:.{digits}f})"
    return text + (f", n {figure['n']}" if figure["n_undefined"] else "")


def _by_stratum(methods: dict[str, Any], stratum: str, figure: str, digits: int) -> list[str]:
    return [_cell(method["by_stratum"][stratum]["figures"][figure], digits) for method in methods.values()]


def _false(methods: dict[str, Any], stratum: str) -> list[str]:
    return _by_stratum(methods, stratum, "lesion_fp", 1)


def _share(recall: dict[str, Any] | None) -> str:
    if recall is None or not recall["lesions"]:
        return "none there"
    return f"{recall['found']} of {recall['lesions']} ({recall['found'] / recall['lesions']:.2f})"


def _f1(recall: dict[str, Any] | None) -> str:
    return "none there" if recall is None else _cell(recall["lesion_f1"], 2)


def _seconds(method: dict[str, Any]) -> str:
    mean = method["seconds_per_scan"]["mean"]
    return "" if mean is None else f"{mean:.1f}"


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "undefined"
    interval = "" if row["ci_low"] is None else f" ({row['ci_low']:+.2f} to {row['ci_high']:+.2f})"
    p = "" if row["p_holm"] is None else f", p {row['p_holm']:.3f}"
    return f"{row['difference']:+.2f}{interval}{p}"
