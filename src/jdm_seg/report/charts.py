"""Charts as SVG: no script, sharp in print, and readable without colour. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

DIAMETER_EDGES_MM = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, math.inf)
"""Bins of the size histogram; 3 and 10 mm part the size classes."""
_WIDTH = 560


def number(value: float) -> str:
    """Return a number as the pages show it: four digits at most after which only whole ones stay."""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def svg(content: str, width: float, height: float, label: str, *, css: str = "chart") -> Markup:
    """Wrap shapes into a picture that a screen reader announces by its label.

    Args:
        content: Shapes, escaped.
        width: In units of the shapes.
        height: Likewise.
        label: What is spoken.
        css: Class of the element.
    """
    return Markup(
        f'<svg class="{css}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{content}</svg>'
    )


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def histogram(diameters_mm: Sequence[float]) -> Markup:
    """Draw how many lesions have which equivalent diameter; the bars of each size class have a shade of their own."""
    edges = DIAMETER_EDGES_MM
    bins = list(pairwise(edges))
    counts = [sum(low <= d < high for d in diameters_mm) for low, high in bins]
    height, base, step = 190, 150, _WIDTH / len(counts)
    most = max([*counts, 1])
    parts = [f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{base}" y2="{base}"/>']
    for place, (count, (low, high)) in enumerate(zip(counts, bins, strict=True)):
        tall = 120 * count / most
        shade = 0 if high <= 3 else 1 if high <= 10 else 2
        x = place * step
        if count:
            parts.append(
                f'<rect class="size-{shade}" x="{x + 3:.1f}" y="{base - tall:.1f}" width="{step - 6:.1f}" '
                f'height="{tall:.1f}"/>'
            )
            parts.append(_text(x + step / 2, base - tall - 5, str(count), anchor="middle"))
        name = f"{low:g}–{high:g}" if math.isfinite(high) else f"≥{low:g}"
        parts.append(_text(x + step / 2, base + 17, name, "tick", "middle"))
    parts.append(_text(_WIDTH / 2, base + 36, "equivalent diameter, mm", "tick", "middle"))
    spoken = ", ".join(
        f"{count} of {low:g} to {high:g} mm" for count, (low, high) in zip(counts, bins, strict=True) if count
    )
    return svg("".join(parts), _WIDTH, height, f"Number of deposits by diameter: {spoken or 'none'}")


@dataclass(frozen=True)
class Interval:
    """A figure with its interval; None is undefined.

    Attributes:
        label: What it is of.
        value: Estimate.
        low: Lower end.
        high: Upper end.
        note: Stands behind it.
    """

    label: str
    value: float | None
    low: float | None
    high: float | None
    note: str = ""


def forest(rows: Sequence[Interval], label: str) -> Markup:
    """Draw figures from 0 to 1 as points with their intervals, one below the other."""
    left, right, line = 190, _WIDTH - 110, 26
    span = right - left
    height = line * len(rows) + 34
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + span * tick
        parts.append(f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="6" y2="{height - 26}"/>')
        parts.append(_text(x, height - 10, f"{tick:g}", "tick", "middle"))
    for place, row in enumerate(rows):
        y = 18 + line * place
        parts.append(_text(left - 10, y + 4, row.label, "", "end"))
        if row.value is None:
            parts.append(_text(left + 6, y + 4, "undefined", "tick"))
        else:
            if row.low is not None and row.high is not None:
                parts.append(
                    f'<line class="mark" x1="{left + span * row.low:.1f}" x2="{left + span * row.high:.1f}" '
                    f'y1="{y}" y2="{y}"/>'
                )
            parts.append(f'<circle class="dot" cx="{left + span * row.value:.1f}" cy="{y}" r="5"/>')
            parts.append(_text(right + 10, y + 4, row.note or f"{row.value:.2f}", "tick"))
    spoken = "; ".join(
        f"{row.label} {'undefined' if row.value is None else f'{row.value:.2f}'}"
        + (f" ({row.low:.2f} to {row.high:.2f})" if row.low is not None and row.high is not None else "")
        for row in rows
    )
    return svg("".join(parts), _WIDTH, height, f"{label}: {spoken}")


def bland_altman(
    pairs: Mapping[str, tuple[float, float]], agreement: Mapping[str, Mapping[str, float | None]]
) -> Markup:
    """Draw the difference of two volumes against their mean, with bias and limits.

    Args:
        pairs: Predicted and reference volume in mL by case.
        agreement: ``bias``, ``lower_limit`` and ``upper_limit`` as ``summary.json`` has them, in mL.
    """
    points = {case: ((a + b) / 2, a - b) for case, (a, b) in pairs.items()}
    lines = {name: agreement.get(name, {}).get("value") for name in ("upper_limit", "bias", "lower_limit")}
    ys = [y for _, y in points.values()] + [v for v in lines.values() if v is not None] + [0.0]
    xs = [x for x, _ in points.values()] + [0.0]
    left, right, top, bottom = 60, _WIDTH - 130, 12, 250
    x_most, (low, high) = max(max(xs), 1e-6) * 1.05, _padded(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_most, bottom - (bottom - top) * (y - low) / (high - low)

    parts = [f'<rect class="frame" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>']
    for y in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at(0, y)[1]:.1f}" y2="{at(0, y)[1]:.1f}"/>')
        parts.append(_text(left - 6, at(0, y)[1] + 4, number(y), "tick", "end"))
    for x in _ticks(0.0, x_most):
        parts.append(_text(at(x, 0)[0], bottom + 17, number(x), "tick", "middle"))
    names = {"upper_limit": "upper limit", "bias": "bias", "lower_limit": "lower limit"}
    taken: list[float] = []
    for name, value in lines.items():
        if value is None:
            continue
        y = at(0, value)[1]
        style = "mark" if name == "bias" else "mark dashed"
        parts.append(f'<line class="{style}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        place = max([y + 4, *(t + 14 for t in taken[-1:])])
        taken.append(place)
        parts.append(_text(right + 6, place, f"{names[name]} {number(value)}", "tick"))
    for case, (x, y) in points.items():
        cx, cy = at(x, y)
        parts.append(
            f'<circle class="dot open" cx="{cx:.1f}" cy="{cy:.1f}" r="4"><title>{escape(case)}</title></circle>'
        )
    parts.append(_text((left + right) / 2, bottom + 36, "mean of predicted and reference volume, mL", "tick", "middle"))
    parts.append(_text(left, bottom + 56, "height: predicted minus reference, mL; limits hold 95 % of cases", "tick"))
    spoken = ", ".join(f"{names[n]} {number(v)} mL" for n, v in lines.items() if v is not None)
    return svg("".join(parts), _WIDTH, bottom + 64, f"Bland-Altman plot of {len(points)} cases: {spoken}")


def strip(values: Mapping[str, float], label: str, unit: str) -> Markup:
    """Draw one dot a case on a line, from zero on a square-root scale, on which small and large ones can be told."""
    most = max(values.values(), default=0.0) or 1.0
    left, right, base = 10, _WIDTH - 20, 64
    parts = [f'<line class="axis" x1="{left}" x2="{right}" y1="{base}" y2="{base}"/>']
    for tick in [0.0, *(_round_down(most * share) for share in (0.06, 0.3, 1.0))]:
        x = left + (right - left) * math.sqrt(tick / most)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>')
        parts.append(
            _text(x, base + 20, number(tick), "tick", "start" if tick == 0 else "end" if tick == most else "middle")
        )
    rows: dict[int, int] = {}
    for case, value in values.items():
        x = left + (right - left) * math.sqrt(max(value, 0.0) / most)
        column = round(x / 9)
        rows[column] = rows.get(column, -1) + 1
        y = base - 8 - 9 * min(rows[column], 5)
        parts.append(
            f'<circle class="dot open" cx="{x:.1f}" cy="{y}" r="4">'
            f"<title>{escape(case)}: {number(value)}</title></circle>"
        )
    title = f"{label}, {unit}" if unit else label
    parts.append(_text(left, 14, title))
    return svg("".join(parts), _WIDTH, 92, f"{title} of {len(values)} scans, 0 to {number(most)}")


def bars(rows: Sequence[tuple[str, float, float]], label: str, unit: str) -> Markup:
    """Draw signed changes as bars around zero, each with what measurement alone can make (a bracket).

    Args:
        rows: Name, change and smallest detectable change each.
        label: Of the picture.
        unit: Of the changes.
    """
    left, right, line = 210, _WIDTH - 60, 20
    most = max([abs(v) for row in rows for v in row[1:]] + [1e-9])
    zero, half = (left + right) / 2, (right - left) / 2
    height = line * len(rows) + 30
    parts = [f'<line class="axis" x1="{zero}" x2="{zero}" y1="0" y2="{height - 24}"/>']
    for place, (name, change, detectable) in enumerate(rows):
        y = 4 + line * place
        end = zero + half * change / most
        css = "gain" if change > 0 else "loss"
        parts.append(_text(left - 8, y + 12, name, "tick", "end"))
        parts.append(
            f'<rect class="{css}" x="{min(zero, end):.1f}" y="{y}" width="{abs(end - zero):.1f}" height="14"/>'
        )
        reach = half * detectable / most
        parts.append(f'<path class="bracket" d="M{zero - reach:.1f} {y + 3}v8m0 -4H{zero + reach:.1f}m0 -4v8"/>')
        parts.append(_text(right + 6, y + 12, f"{'+' if change > 0 else ''}{number(change)}", "tick"))
    parts.append(_text(zero, height - 6, f"change, {unit}; bracket: smallest detectable", "tick", "middle"))
    return svg("".join(parts), _WIDTH, height, f"{label}; the table holds the same figures")


def _round_down(value: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is no larger."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(factor for factor in (1, 2, 5) if power * factor <= value * (1 + 1e-9))


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.08 * (high - low) or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step)
    return [round(step * n, 12) for n in range(first, math.floor(high / step) + 1)]
