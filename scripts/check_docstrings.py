"""Hold docstrings to what they promise: parameters, results and errors, as they are in the code. `make check` runs it.

Ruff's rule D asks that there is a docstring; this asks what is in it, of everything public in a folder:

- an ``Args:`` section names every parameter and no other; from four parameters on there is one, or the text names each
  or refers to the function that explains them;
- beside ``Args:`` there is ``Returns:`` or ``Yields:``, unless the first sentence begins with what is returned, or the
  result is of a class of ours, which explains itself;
- a ``raise`` in the function itself is named under ``Raises:``;
- ``Attributes:`` of a class names every public field and no other; from three fields on there is such a section, or a
  string below fields.

Verbs of the command line explain their options by ``help=``, and hooks of Lightning are explained there.

Usage: python scripts/check_docstrings.py [FOLDER ...]   (default: src/jdm_seg); exit 1 with one line a finding.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Container, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FROM_PARAMETERS = 4
"""From so many on, their names alone do not say enough."""
FROM_FIELDS = 3
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Source|Sources|Note|Notes|Example|Examples):", re.M)
_ENTRY = re.compile(r"^ {4}(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*)(?: \([^)]*\))?:", re.M)
_TELLS_RESULT = re.compile(
    r"^(Return|Yield|Tell|Give|Build|Make|Read|Load|Open|List|Compute|Measure|Count|Draw|Find|Choose|Estimate|Describe)\b"
)
"""First words whose object is the result: "Return the voxels ...", "List the files of ..."."""
_HOOK = re.compile(r"^on_[a-z_]+$|^(training|validation)_step$")
_PLAIN = ("Any", "FloatArray", "Path", "Tensor", "Indices", "Points", "Spacing", "NoReturn")
"""Capitalised types that say nothing of what is in them."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sections(docstring: str) -> dict[str, str]:
    """Return the sections of a Google-style docstring by name; what stands before them under an empty name."""
    found: dict[str, str] = {}
    name, begin = "", 0
    for match in _SECTION.finditer(docstring):
        found[name] = docstring[begin : match.start()]
        name, begin = match.group(1), match.end()
    found[name] = docstring[begin:]
    return found


def entries(section: str) -> list[str]:
    """Return the names that a section explains, without stars."""
    return [name.strip().lstrip("*") for names in _ENTRY.findall(section) for name in names.split(",")]


def findings_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and message of everything that is wrong in one file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if ast.get_docstring(tree) is None:
        yield 1, "module: no docstring"
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    # `raise _unreadable(path)`: the error is what the helper is annotated to return
    makers = {node.name: ast.unparse(node.returns) for node in functions if node.returns is not None}
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield from _of_function(node, node.name, makers, is_method=False)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _of_class(node, makers)


def _of_class(node: ast.ClassDef, makers: dict[str, str]) -> Iterator[tuple[int, str]]:
    docstring = ast.get_docstring(node)
    if docstring is None:
        yield node.lineno, f"{node.name}: no docstring"
        return
    fields = list(_fields(node))
    explained = sections(docstring).get("Attributes")
    if explained is not None:
        yield from _differences(
            node.lineno, node.name, "Attributes", entries(explained), [name for name, _ in fields], _set_on_self(node)
        )
    elif len(fields) >= FROM_FIELDS and not any(below for _, below in fields) and not _is_exempt(node):
        yield node.lineno, f"{node.name}: no Attributes: section for {len(fields)} fields"
    for member in node.body:
        if isinstance(member, Function) and not member.name.startswith("_") and not _overrides(member):
            yield from _of_function(member, f"{node.name}.{member.name}", makers, is_method=True)


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """Yield public fields of a dataclass or protocol, and whether a string stands below."""
    for member, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            if "ClassVar" in ast.unparse(member.annotation) or member.target.id.startswith("_"):
                continue
            below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield member.target.id, below and isinstance(after.value.value, str)


def _set_on_self(node: ast.ClassDef) -> set[str]:
    """Return what a class has beside annotated fields: what its methods set on self, and properties."""
    methods = [member for member in node.body if isinstance(member, Function)]
    inner = [one for method in methods for one in ast.walk(method)]
    stored = {one.attr for one in inner if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)}
    return stored | {method.name for method in methods}


def _is_exempt(node: ast.ClassDef) -> bool:
    """Tell whether a class is no record: an enumeration or a typed dict says its fields by their values."""
    return any(
        ast.unparse(base).rpartition(".")[2] in ("Enum", "StrEnum", "IntEnum", "TypedDict") for base in node.bases
    )


def _overrides(node: Function) -> bool:
    """Tell whether a decorator makes a function speak through another: a property's setter, an overload."""
    names = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name.endswith((".setter", "overload", "override")) for name in names)


def _of_function(node: Function, name: str, makers: dict[str, str], *, is_method: bool) -> Iterator[tuple[int, str]]:
    docstring = ast.get_docstring(node)
    if docstring is None:
        yield node.lineno, f"{name}: no docstring"
        return
    found = sections(docstring)
    parameters = _parameters(node, is_method)
    if "Args" in found:
        yield from _differences(node.lineno, name, "Args", entries(found["Args"]), parameters)
        if not {"Returns", "Yields"} & set(found) and _has_result(node) and not _TELLS_RESULT.match(docstring):
            yield node.lineno, f"{name}: no Returns: beside Args:"
    elif len(parameters) >= FROM_PARAMETERS and not _is_explained_elsewhere(node, docstring, parameters):
        yield node.lineno, f"{name}: no Args: section for {len(parameters)} parameters"
    raised, told = {makers.get(error, error) for error in _raised(node)}, entries(found.get("Raises", ""))
    for error in sorted(raised - set(told)):
        yield node.lineno, f"{name}: Raises: does not name {error}"


def _is_explained_elsewhere(node: Function, docstring: str, parameters: list[str]) -> bool:
    """Tell whether parameters need no section: verbs have help texts, Lightning tells of hooks, or the text does."""
    is_verb = any(ast.unparse(one).startswith(("app.command", "app.callback")) for one in node.decorator_list)
    in_text = all(re.search(rf"\b{one}\b", docstring) for one in parameters)
    return is_verb or in_text or bool(_HOOK.match(node.name)) or ":func:" in docstring


def _differences(
    line: int, name: str, section: str, told: list[str], real: list[str], also: Container[str] = ()
) -> Iterator[tuple[int, str]]:
    for missing in [one for one in real if one not in told]:
        yield line, f"{name}: {section}: does not name {missing}"
    for extra in [one for one in told if one not in real and one not in also]:
        yield line, f"{name}: {section}: names {extra}, which is not there"


def _parameters(node: Function, is_method: bool) -> list[str]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if is_method and not any(ast.unparse(one) == "staticmethod" for one in node.decorator_list):
        named = named[1:]
    stars = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [one.arg for one in (*named, *stars) if not one.arg.startswith("_")]


def _has_result(node: Function) -> bool:
    """Tell whether a function returns something that its annotation's own docstring does not explain."""
    annotation = "" if node.returns is None else ast.unparse(node.returns)
    if any(ast.unparse(one).endswith("property") for one in node.decorator_list):
        return False
    is_class = re.fullmatch(r"[A-Z][A-Za-z]+( \| None)?", annotation) is not None
    return annotation not in ("", "None") and (not is_class or annotation.startswith(_PLAIN))


def _raised(node: Function) -> Iterator[str]:
    """Yield the errors that the function's own statements raise anew, not those of functions inside it."""
    todo: list[ast.AST] = list(node.body)
    while todo:
        statement = todo.pop()
        if isinstance(statement, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(statement, ast.Raise) and isinstance(statement.exc, ast.Call):
            name = ast.unparse(statement.exc.func).rpartition(".")[2]
            if name not in ("Exit", "BadParameter", "AssertionError", "NotImplementedError"):
                yield name
        todo.extend(ast.iter_child_nodes(statement))


def main(folders: list[str]) -> int:
    """Print every finding; return the exit code."""
    count = 0
    for folder in folders or [str(ROOT / "src" / "jdm_seg")]:
        for path in sorted(Path(folder).rglob("*.py")):
            for line, message in findings_of(path):
                count += 1
                print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {message}")
    if count:
        print(f"{count} docstrings to mend")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
