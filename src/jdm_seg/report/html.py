"""From templates to one file that opens from disk: styles and scripts inside, and no way out to a network."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import jdm_seg
from jdm_seg.report.charts import number
from jdm_seg.report.words import DEPTHS, REGIONS

_ASSETS = "assets"


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; everything that is not marked as HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("jdm_seg.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"figure": figure, "region": _region, "depth": _depth, "interval": shown_interval}
    environment.globals |= {"asset": asset, "script_json": script_json, "version": jdm_seg.__version__}
    return environment.get_template(template).render(**values)


def asset(name: str) -> Markup:
    """Return a style sheet or script of this package to stand in the page itself.

    Raises:
        ValueError: If a script would end the element it stands in.
    """
    text = (resources.files("jdm_seg.report") / _ASSETS / name).read_text(encoding="utf-8")
    if "</script" in text.lower():
        raise ValueError(f"expected a script that can stand in a page, but {name} holds an end of script")
    return Markup(text)


def script_json(value: Any) -> Markup:
    """Return a value as JSON that cannot end the script element it stands in."""
    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def figure(value: Any) -> str:
    """Return a figure from a table or a JSON file as shown; empty where there is none, text as it is."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    try:
        shown = float(value)
    except (TypeError, ValueError):
        return str(value)
    return str(int(shown)) if shown.is_integer() else number(shown)


def _region(name: str) -> str:
    return REGIONS.get(name, name)


def _depth(name: str) -> str:
    return DEPTHS.get(name, name)


def shown_interval(figure: dict[str, Any]) -> str:
    """Return a mean with its interval as text, and how many cases it is of where some are undefined."""
    if figure.get("mean") is None:
        return "undefined"
    text = number(figure["mean"])
    if figure.get("ci_low") is not None and figure["n"] > 1:
        text += f" ({number(figure['ci_low'])} to {number(figure['ci_high'])})"
    return text + (f", n {figure['n']}" if figure.get("n_undefined") else "")
