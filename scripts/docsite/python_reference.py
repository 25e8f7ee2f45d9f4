"""The Python reference: one page a module, from docstrings and signatures, read without importing anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import griffe
from links import PYTHON, relative
from text import code, escape, fence, items, line, prose, table

log = logging.getLogger("mkdocs.plugins.python_reference")
WIDTH = 100
"""Longer signatures are broken, one parameter a line."""
VALUE = 120
"""Longer values of constants are left to the source."""
SECTION = griffe.DocstringSectionKind


def load(source: Path) -> griffe.Module:
    """Read the package below a folder.

    Raises:
        TypeError: If what is found is no module.
    """
    logging.getLogger("griffe").setLevel(logging.ERROR)  # scripts/check_docstrings.py looks at docstrings
    found = griffe.load("jdm_seg", search_paths=[source], docstring_parser="google", allow_inspection=False)
    if not isinstance(found, griffe.Module):
        raise TypeError(f"jdm_seg is no module: {found!r}")
    return found


def modules_of(package: griffe.Module) -> Iterator[griffe.Module]:
    """Yield a package and every public module below it, by name."""
    yield package
    for name in sorted(package.modules):
        module = package.modules[name]
        if not module.is_alias and not name.startswith("_"):
            yield from modules_of(module)


def first_sentence(member: griffe.Object) -> str:
    """Return the first paragraph of a docstring up to its first full stop."""
    text = member.docstring.value.split("\n\n")[0] if member.docstring else ""
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def page(module: griffe.Module) -> str:
    """Return the page of a module."""
    resolve = partial(link, module)
    path = f"src/{module.relative_package_filepath.as_posix()}"
    out = [f"# {module.path} {{#{module.path}}}\n", f"<p class=source>{path}</p>\n"]
    out.append(_docstring(module, resolve))
    inner = [one for one in modules_of(module) if one is not module and one.parent is module]
    out.append(
        table(
            ("module", "about"),
            [
                (f"[{code(one.name)}]({one.path}.md)", line(first_sentence(one), partial(link, one, folder="")))
                for one in inner
            ],
        )
    )
    constants = [one for one in _public(module) if isinstance(one, griffe.Attribute)]
    if constants:
        out.append("## Constants and types {#constants}\n")
        out.append("\n".join(_constant(one, resolve) for one in constants) + "\n")
    for member in _public(module):
        if isinstance(member, griffe.Class):
            out.append(_class(member, resolve))
        elif isinstance(member, griffe.Function):
            out.append(_function(member, resolve, level=2))
    return "\n".join(out)


def _public(owner: griffe.Module | griffe.Class) -> list[griffe.Object]:
    """Return what an owner defines under a public name, in the order of the source."""
    own = [one for name, one in owner.members.items() if not one.is_alias and not name.startswith("_")]
    return [one for one in own if isinstance(one, griffe.Object) and not one.is_module]


def _constant(constant: griffe.Attribute, resolve: partial[str]) -> str:
    value = "" if constant.value is None else str(constant.value)
    shown = f"{constant.name} = {value}" if value and len(value) <= VALUE and "\n" not in value else constant.name
    about = line(constant.docstring.value, resolve) if constant.docstring else ""
    return f'- <a id="{constant.path}"></a>{code(shown)}  \n    {about}'.rstrip()


def _class(cls: griffe.Class, resolve: partial[str]) -> str:
    bases = ", ".join(str(base) for base in cls.bases)
    decorators = "".join(f"@{one.value}\n" for one in cls.decorators)
    out = [f"## {escape(cls.name)} {{#{cls.path}}}\n"]
    out.append(fence(f"{decorators}class {cls.name}" + (f"({bases})" if bases else ""), "python"))
    out.append(_docstring(cls, resolve))
    out.append(_fields(cls, resolve))
    for member in _public(cls):
        if isinstance(member, griffe.Function):
            out.append(_function(member, resolve, level=3))
        elif "property" in member.labels:
            out.append(_property(member, resolve))
    return "\n".join(out)


def _fields(cls: griffe.Class, resolve: partial[str]) -> str:
    """Return the table of a class's fields: from its Attributes section, else from the strings below them."""
    told = {one.name: one.description for one in entries(cls, SECTION.attributes)}
    real = {one.name: one for one in _public(cls) if isinstance(one, griffe.Attribute) and "property" not in one.labels}
    rows = []
    for name in [*real, *(one for one in told if one not in real)]:
        field = real.get(name)
        declared = "" if field is None or field.annotation is None else str(field.annotation)
        default = "" if field is None or field.value is None else f" = {field.value}"
        below = field.docstring.value if field is not None and field.docstring else ""
        shown = f'<a id="{cls.path}.{name}"></a>{code(name)}'
        kind = code((declared + default).strip()) if declared or default else ""
        rows.append((shown, kind, line(told.get(name, below), resolve)))
    return table(("field", "type and default", "meaning"), rows)


def _property(member: griffe.Object, resolve: partial[str]) -> str:
    returns = f" -> {member.annotation}" if isinstance(member, griffe.Attribute) and member.annotation else ""
    title = member.path.removeprefix(f"{member.module.path}.")
    out = [f"### {escape(title)} {{#{member.path}}}\n"]
    out.append(fence(f"@property\ndef {member.name}(self){returns}", "python"))
    out.append(_docstring(member, resolve))
    return "\n".join(out)


def _function(function: griffe.Function, resolve: partial[str], level: int) -> str:
    title = function.path.removeprefix(f"{function.module.path}.")
    out = [f"{'#' * level} {escape(title)} {{#{function.path}}}\n"]
    out.append(fence(signature(function), "python"))
    out.append(_docstring(function, resolve))
    return "\n".join(out)


def signature(function: griffe.Function) -> str:
    """Return ``def name(parameters) -> result``, on one line where it fits."""
    words, starred = [], False
    for one in function.parameters:
        kind = one.kind
        if kind is griffe.ParameterKind.keyword_only and not starred:
            words.append("*")
            starred = True
        stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
        starred = starred or stars == "*"
        declared = f": {one.annotation}" if one.annotation else ""
        gap = " " if declared else ""
        default = f"{gap}={gap}{one.default}" if one.default is not None and not stars else ""
        words.append(f"{stars}{one.name}{declared}{default}")
    result = f" -> {function.returns}" if function.returns else ""
    flat = f"def {function.name}({', '.join(words)}){result}"
    if len(flat) <= WIDTH:
        return flat
    return f"def {function.name}(\n" + "".join(f"    {word},\n" for word in words) + f"){result}"


def entries(member: griffe.Object, kind: griffe.DocstringSectionKind) -> list[griffe.DocstringNamedElement]:
    """Return what a section of a docstring lists, such as its attributes."""
    parsed = member.docstring.parsed if member.docstring else []
    return [entry for section in parsed if section.kind is kind for entry in section.value]


def _docstring(member: griffe.Object, resolve: partial[str]) -> str:
    """Return a docstring without its Attributes section, which :func:`_fields` shows."""
    out = []
    for section in member.docstring.parsed if member.docstring else []:
        if section.kind is SECTION.text:
            out.append(prose(section.value, resolve) + "\n")
        elif section.kind is SECTION.parameters:
            rows = [(code(one.name), line(one.description, resolve)) for one in section.value]
            out.append(table(("parameter", "meaning"), rows))
        elif section.kind in (SECTION.returns, SECTION.yields):
            word = section.kind.value.capitalize()
            out.append(f"**{word}** " + " ".join(line(one.description, resolve) for one in section.value) + "\n")
        elif section.kind is SECTION.raises:
            rows = [(code(one.annotation), line(one.description, resolve)) for one in section.value]
            out.append(table(("raises", "when"), rows))
        elif section.kind is SECTION.admonition:
            out.append(f"**{section.title}:**\n\n{items(section.value.description, resolve)}\n")
    return "\n".join(out)


def link(module: griffe.Module, name: str, folder: str | None = None) -> str:
    """Return the link to what a docstring names; code for what has no page, as private names and other packages.

    A public name of this package that is not there is a broken link, and fails a strict build.

    Args:
        module: Where the docstring stands.
        name: As it stands there.
        folder: Of the modules' pages, as seen from a page that is not the module's own.
    """
    found = _find(module, name)
    if found is not None and not any(part.startswith("_") for part in found.path.split(".")):
        own = found if isinstance(found, griffe.Module) else found.module
        page_path = "" if own is module and folder is None else f"{folder or ''}{own.path}.md"
        target = page_path + ("" if found is own and page_path else f"#{found.path}")
        return f"[{code(name.rpartition('.')[2] if name.startswith('jdm_seg.') else name)}]({target})"
    if found is None and name.startswith("jdm_seg."):
        log.warning("%s: a docstring refers to %s, which is not there", module.path, name)
    return code(name)


def _find(module: griffe.Module, name: str) -> griffe.Object | None:
    """Find a name as seen from a module: full, a member of it, or a member of one of its classes."""
    package = module.package
    if name.startswith("jdm_seg."):
        return _member(package, name.removeprefix("jdm_seg."))
    owners = [module, *(one for one in module.classes.values() if not one.is_alias)]
    return next((found for owner in owners if (found := _member(owner, name)) is not None), None)


def _member(owner: griffe.Object, name: str) -> griffe.Object | None:
    try:
        found = owner[name]
        return found.final_target if found.is_alias else found
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


def overview(package: griffe.Module) -> str:
    """Return the first page: every module with what it is about."""
    page_path = f"{PYTHON}/index.md"
    out = ["# Python\n", "Every public module, from its docstrings.\n"]
    groups: dict[str, list[griffe.Module]] = {}
    for module in modules_of(package):
        if module is not package:
            groups.setdefault(module.path if module.is_init_module else module.parent.path, []).append(module)
    for name, members in sorted(groups.items()):
        rows = [
            (
                f"[{code(one.path.removeprefix('jdm_seg.'))}]({relative(f'{PYTHON}/{one.path}.md', page_path)})",
                line(first_sentence(one), partial(link, one, folder="")),
            )
            for one in members
        ]
        out.append(f"## {name}\n\n{table(('module', 'about'), rows)}")
    return "\n".join(out)
