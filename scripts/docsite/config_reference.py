"""The reference of configs: every field of the dataclasses of one run, and every YAML as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import griffe
from links import CONFIGS, config_anchor, page_of, relative
from python_reference import entries, link
from text import code, fence, line, table

import jdm_seg.config
from jdm_seg.config import plain

FIELDS = "reference/configuration.md"
VARIES = {"run_dir"}
"""Fields whose composed value differs from run to run."""


def fields_page(config: griffe.Module, configs: Path) -> str:
    """Return the page of every field, under the key that overrides it.

    Args:
        config: The module ``jdm_seg.config``.
        configs: Folder of the YAML.
    """
    composed = plain(jdm_seg.config.compose([]))
    out = [
        "# Configuration of a training run\n",
        "Every value can be overridden as `jdm-seg train key=value`. Where the files in "
        f"[configs]({relative(CONFIGS, FIELDS)}) set another value than the default, it is named. "
        f"What options do, in words: [training, option by option]({relative('train.md', FIELDS)}).\n",
    ]
    for key, cls in _classes(config, config.classes["TrainConfig"], ""):
        about = line(cls.docstring.value.split("\n\nAttributes:")[0] if cls.docstring else "", partial(_link, config))
        out.append(f"## {key or 'Run'} {{#{key or 'run'}}}\n\n{about}\n")
        rows = [_row(key, field, cls, configs, composed) for field in _fields(cls)]
        out.append(table(("key", "type and default", "meaning"), rows))
    return "\n".join(out)


def _link(config: griffe.Module, name: str) -> str:
    return link(config, name, folder="python/")


def _at(values: Any, key: str) -> dict[str, Any]:
    """Return the composed values below a key; none below a group that is not set."""
    for part in filter(None, key.split(".")):
        values = (values or {}).get(part)
    return values or {}


def _fields(cls: griffe.Class) -> list[griffe.Attribute]:
    return [one for one in cls.attributes.values() if one.annotation is not None]


def _class_of(config: griffe.Module, field: griffe.Attribute) -> griffe.Class | None:
    """Return the dataclass that a field holds, or None for a plain value."""
    return config.classes.get(str(field.annotation).removesuffix(" | None"))


def _classes(config: griffe.Module, cls: griffe.Class, key: str) -> Iterator[tuple[str, griffe.Class]]:
    yield key, cls
    for field in _fields(cls):
        inner = _class_of(config, field)
        if inner is not None:
            yield from _classes(config, inner, f"{key}.{field.name}".lstrip("."))


def _meaning(field: griffe.Attribute, cls: griffe.Class) -> str:
    """Return what stands below a field, or in the Attributes section of its class."""
    if field.docstring:
        return field.docstring.value
    told = {one.name: one.description for one in entries(cls, griffe.DocstringSectionKind.attributes)}
    return told.get(field.name, "")


def _row(key: str, field: griffe.Attribute, cls: griffe.Class, configs: Path, composed: Any) -> tuple[str, str, str]:
    """Return key, type with default, and meaning of a field."""
    full = f"{key}.{field.name}".lstrip(".")
    own = {one.name: one.default for one in dataclasses.fields(getattr(jdm_seg.config, cls.name))}[field.name]
    declared = code(field.annotation if own is dataclasses.MISSING else f"{field.annotation} = {plain(own)!r}")
    about = line(_meaning(field, cls), partial(_link, cls.module))
    values = _at(composed, key)
    if own is dataclasses.MISSING or _class_of(cls.module, field):
        where = f"{relative(CONFIGS, FIELDS)}#{full}" if isinstance(values.get(field.name), dict) else ""
        target = where if where and (configs / full).is_dir() and "dict" in str(field.annotation) else f"#{full}"
        about = f"{about} See [{full}]({target}).".strip()
    elif full not in VARIES and field.name in values and values[field.name] != plain(own):
        about = f"{about} `jdm-seg train` sets {code(repr(values[field.name]))}.".strip()
    # a group that is a class has a section, which is its anchor
    anchor = "" if _class_of(cls.module, field) else f'<a id="{full}"></a>'
    return anchor + code(full), declared, about


def files_page(configs: Path) -> str:
    """Return the page of every YAML, group by group, with links to recorded figures beside them."""
    out = [
        "# Configuration files\n",
        "What ships in `configs`: `GROUP=NAME` chooses a file of a group, `key=value` overrides a value in it. Fields, "
        f"types and defaults: [configuration]({relative(FIELDS, CONFIGS)}).\n",
    ]
    groups = sorted({path.parent for path in configs.rglob("*.yaml")}, key=lambda one: one.as_posix())
    for group in groups:
        name = group.relative_to(configs).as_posix()
        if name != ".":
            for parent in Path(name).parents:
                if parent != Path() and configs / parent not in groups:
                    out.append(f'<a id="{config_anchor(parent.as_posix())}"></a>\n')
            out.append(f"## {name} {{#{config_anchor(name)}}}\n")
        for path in sorted(group.glob("*.yaml")):
            inner = path.relative_to(configs).as_posix()
            level = "##" if name == "." else "###"
            out.append(f"{level} {path.stem} {{#{config_anchor(inner)}}}\n")
            out.append(fence(path.read_text(encoding="utf-8"), "yaml"))
    out.append(_recorded(configs))
    return "\n".join(out)


def recorded(configs: Path) -> list[str]:
    """Return the files beside the YAML, by their path in the repository."""
    return [f"configs/{path.relative_to(configs).as_posix()}" for path in sorted(configs.rglob("*.json"))]


def _recorded(configs: Path) -> str:
    out = ["## Recorded figures of benchmarks {#benchmark-recorded}\n"]
    out += [f"- [{Path(path).stem}]({relative(page_of(path), CONFIGS)})" for path in recorded(configs)]
    return "\n".join(out) + "\n"
