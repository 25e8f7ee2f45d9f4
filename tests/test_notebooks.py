"""Every notebook runs, and its paired .ipynb holds the same cells."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

SOURCES = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_runs(source, tmp_path):
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_pair_holds_the_same_cells(source):
    pair = jupytext.read(source.with_suffix(".ipynb"))
    assert [cell.source for cell in pair.cells] == [cell.source for cell in jupytext.read(source).cells]
    assert all(cell.execution_count for cell in pair.cells if cell.cell_type == "code"), "make notebooks"
