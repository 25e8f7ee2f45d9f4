"""Execute every notebooks/*.py and write the paired .ipynb beside it."""

from __future__ import annotations

from pathlib import Path

import jupytext
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def main() -> None:
    """Build all notebooks."""
    for source in sorted(FOLDER.glob("*.py")):
        notebook = jupytext.read(source)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day: noise in every diff
        jupytext.write(notebook, source.with_suffix(".ipynb"))
        print(f"built {source.with_suffix('.ipynb').name}")


if __name__ == "__main__":
    main()
