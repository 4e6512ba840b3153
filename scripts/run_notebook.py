"""Run the notebook of the examples in an empty folder, and keep its outputs: python scripts/run_notebook.py"""

import os
import tempfile
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def run(folder: Path) -> nbformat.NotebookNode:
    """Return the notebook with its outputs; what it writes is in the folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    places = {
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": str(ROOT),
    }
    with mock.patch.dict(os.environ, places):
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=600, startup_timeout=300, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]  # has paths in it
    return notebook


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(run(Path(folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
