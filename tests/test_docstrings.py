"""The check of docstrings finds what it is there to find, on functions written for that."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_docstrings.py"


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location("check_docstrings", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GOOD = '''
"""A module."""

def volume(mask, spacing, *, fill=0):
    """Weigh a mask.

    Args:
        mask: Foreground.
        spacing: Voxel size in mm.
        fill: What is outside.

    Returns:
        Volume.

    Raises:
        ValueError: If it is empty.
    """
    def inner():
        raise KeyError("of the inner function")
    raise ValueError("empty")

def _hidden(a, b, c, d, e):
    pass

class Box:
    """A box.

    Attributes:
        low: Corner.
        high: Corner.
        size: Between them.
    """

    low: int
    high: int

    @property
    def size(self) -> int:
        """Size along each axis."""
        return 0
'''

WRONG = [
    ("mask: Foreground.", "maks: Foreground.", ["does not name mask", "names maks"]),
    ("    fill: What is outside.\n", "", ["Args: does not name fill"]),
    ("\n    Returns:\n        Volume.\n", "", ["no Returns: beside Args:"]),
    ("ValueError: If", "OSError: If", ["Raises: does not name ValueError"]),
    ('    """Weigh a mask.', '    x = """Weigh a mask.', ["volume: no docstring"]),
    ("        high: Corner.\n", "", ["Attributes: does not name high"]),
    ("        high: Corner.\n", "        high: Corner.\n        deep: Corner.\n", ["names deep, which is not there"]),
    ('"""Size along each axis."""', "pass", ["Box.size: no docstring"]),
    ('"""A module."""', "", ["module: no docstring"]),
    ("def _hidden(", "def shown(", ["shown: no docstring"]),
]


def findings(checker, tmp_path, text: str) -> list[str]:
    path = tmp_path / "module.py"
    path.write_text(text.replace("spacing, *, fill=0):", "spacing, *, fill=0) -> float:"), encoding="utf-8")
    return [message for _, message in checker.findings_of(path)]


def test_nothing_is_wrong_where_all_is_told(checker, tmp_path):
    assert findings(checker, tmp_path, GOOD) == []


@pytest.mark.parametrize(("right", "wrong", "expected"), WRONG)
def test_each_mistake_is_found(checker, tmp_path, right, wrong, expected):
    assert right in GOOD
    found = findings(checker, tmp_path, GOOD.replace(right, wrong, 1))
    assert len(found) == len(expected), found
    for part in expected:
        assert any(part in message for message in found), found


def test_an_error_that_a_helper_makes_counts_by_its_type(checker, tmp_path):
    helper = "def _bad(path) -> OSError:\n    return OSError()\n"
    text = f'"""M."""\n\ndef read(path):\n    """Read."""\n    raise _bad(path)\n\n{helper}'
    assert findings(checker, tmp_path, text) == ["read: Raises: does not name OSError"]


def test_the_command_prints_place_and_count(checker, tmp_path, capsys):
    (tmp_path / "one.py").write_text('"""M."""\n\ndef f(a):\n    pass\n', encoding="utf-8")
    assert checker.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path / 'one.py'}:3: f: no docstring", "1 docstrings to mend"]
    (tmp_path / "one.py").write_text('"""M."""\n', encoding="utf-8")
    assert checker.main([str(tmp_path)]) == 0
