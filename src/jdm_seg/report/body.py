"""A diagram of the body with the burden of every region written into it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from markupsafe import Markup

from jdm_seg.report.charts import number, svg
from jdm_seg.report.words import REGIONS

# seen from the front: the patient's right is on the left. Width 200, height 400
_SHAPES: dict[str, tuple[str, ...]] = {
    "head_neck": ("M100 8c16 0 24 13 24 29 0 14-6 25-14 30v12h-20v-12c-8-5-14-16-14-30 0-16 8-29 24-29z",),
    "chest": ("M90 79h20c8 4 24 6 32 11l-6 60h-72l-6-60c8-5 24-7 32-11z",),
    "abdomen": ("M64 152h72l2 40h-76z",),
    "hip": ("M62 194h76l6 34-42 6h-4l-42-6z",),
    "arm": (
        "M56 91c-10 4-14 12-16 24l-12 60-8 46 10 2 14-44 14-54 4-20z",
        "M144 91c10 4 14 12 16 24l12 60 8 46-10 2-14-44-14-54-4-20z",
    ),
    "thigh": ("M56 230l42 6-4 56h-32z", "M144 230l-42 6 4 56h32z"),
    "knee": ("M62 294h32l-1 24h-28z", "M138 294h-32l1 24h28z"),
    "lower_leg": ("M65 320h28l-4 54h-19z", "M135 320h-28l4 54h19z"),
    "foot": ("M70 376h19l3 16h-32z", "M130 376h-19l-3 16h32z"),
}
_PARTS = {"trunk": ("chest", "abdomen", "hip"), "leg": ("thigh", "knee", "lower_leg", "foot")}
_LABEL_Y = {
    "head_neck": 40,
    "chest": 116,
    "abdomen": 170,
    "hip": 210,
    "arm": 150,
    "thigh": 258,
    "knee": 306,
    "lower_leg": 346,
    "foot": 386,
    "unknown": 76,
    "trunk": 190,
    "leg": 326,
}
_STEPS = 4


def body_diagram(by_region: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Draw the regions, darker the more volume they hold, each named with its count and volume.

    Args:
        by_region: ``by_region`` of ``burden.json``. Both sides of a region are drawn alike; ``trunk`` and ``leg``,
            which stand where no finer name is known, shade all their parts.
    """
    volume = {name: float(one["volume_ml"]) for name, one in by_region.items()}
    most = max(volume.values(), default=0.0)
    shade: dict[str, int] = {}
    for name, value in volume.items():
        step = 0 if most <= 0 else max(1, min(_STEPS, int(_STEPS * value / most + 0.999)))
        for part in _PARTS.get(name, (name,)):
            shade[part] = max(step, shade.get(part, 0))
    shapes = "".join(
        f'<path class="region shade-{shade.get(name, 0)}" d="{path}"/>'
        for name, paths in _SHAPES.items()
        for path in paths
    )
    labels = []
    for name, y in _LABEL_Y.items():
        if name in by_region and name == "unknown":
            text = f"not known: {by_region[name]['lesion_count']}, {number(volume[name])} mL"
            labels.append(f'<text x="210" y="{y + 4}">{escape(text)}</text>')
        elif name in by_region:
            text = f"{REGIONS[name]}: {by_region[name]['lesion_count']}, {number(volume[name])} mL"
            x = {"arm": 172, "head_neck": 128, "chest": 146}.get(name, 148)
            labels.append(f'<path class="lead" d="M{x - 4} {y}H206"/><text x="210" y="{y + 4}">{escape(text)}</text>')
    spoken = "; ".join(
        f"{REGIONS.get(name, name)} {one['lesion_count']} deposits, {number(volume[name])} mL"
        for name, one in by_region.items()
    )
    sides = '<text class="tick" x="4" y="60">right</text><text class="tick" x="160" y="60">left</text>'
    return svg(shapes + sides + "".join(labels), 400, 400, f"Deposits by region: {spoken or 'none'}", css="body")
