"""The reference of the command line, from the program itself."""

from __future__ import annotations

import re
from typing import Any

import typer
from text import code, escape, fence, line, table

from jdm_seg.cli import app

WIDTH = 100
_NOTES = re.compile(r"\s+\[([^\[\]]*(?:default: |required)[^\[\]]*)\]$")
"""What the program adds to an option's help: its default, or that it is needed."""
_COMMAND = re.compile(r"(jdm-seg .*?)(?=\. [A-Z]|;|\.?$)")
"""A command in a sentence ends where the sentence does."""


def page() -> str:
    """Return the page: the help of the program, and a section for every verb.

    Raises:
        TypeError: If the program has no verbs.
    """
    root = typer.main.get_command(app)
    verbs = getattr(root, "commands", None)
    if not verbs:
        raise TypeError("the command line has no verbs")
    out = ["# Command line\n", fence("jdm-seg --help\n\n" + root.get_help(_context(root, "jdm-seg")), "text")]
    out += [_verb(name, command) for name, command in verbs.items() if not command.hidden]
    return "\n".join(out)


def _context(command: Any, name: str) -> Any:
    return command.make_context(name, [], resilient_parsing=True, terminal_width=WIDTH)


def _verb(name: str, command: Any) -> str:
    context = _context(command, f"jdm-seg {name}")
    usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    about = re.sub(r"\n[ \t]+", "\n", (command.help or "").partition("\f")[0])
    out = [f"## {name} {{#{name}}}\n", escape(about) + "\n", fence(usage, "text")]
    if command.epilog:
        out.append(_example(" ".join(command.epilog.split())) + "\n")
    records: dict[str, list[tuple[str, str, str]]] = {"argument": [], "option": []}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            records[parameter.param_type_name].append(_row(*record))
    for kind, rows in records.items():
        out.append(table((kind, "meaning", "default"), rows))
    return "\n".join(out)


def _row(names: str, text: str) -> tuple[str, str, str]:
    """Return name, meaning and default of a parameter, from its line in ``--help``."""
    notes = _NOTES.search(text)
    default = notes[1].removeprefix("default: ") if notes else ""
    shown = "needed" if "required" in default else code(default) if default else ""
    return code(names), line(text[: notes.start()] if notes else text, code), shown


def _example(epilog: str) -> str:
    """Return what stands below a verb's help, with every command in code."""
    pieces = _COMMAND.split(epilog)
    return "".join(code(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces))
