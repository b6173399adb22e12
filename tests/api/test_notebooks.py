"""The notebooks of examples/ run from their first cell to their last, offline, in a folder of their own."""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def manager_of_this_python() -> AsyncKernelManager:
    """A kernel of the interpreter that runs the tests, whatever kernels are installed."""
    manager = AsyncKernelManager()
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=argv, display_name="tests", language="python")
    return manager


def executed(notebook: str, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in ``folder``."""
    client = NotebookClient(
        nbformat.read(FOLDER / notebook, as_version=4),
        km=manager_of_this_python(),
        timeout=600,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def outputs(cell: nbformat.NotebookNode) -> str:
    """Everything that a cell shows, as text."""
    parts = []
    for output in cell.get("outputs", []):
        parts += [output.get("text", ""), *(str(value) for value in output.get("data", {}).values())]
    return "".join(parts)


def test_notebooks_are_kept_without_outputs():
    for notebook in NOTEBOOKS:
        cells = nbformat.read(FOLDER / notebook, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), notebook


@pytest.mark.real
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs(notebook, tmp_path, request, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    here = tmp_path / "examples" / "notebooks"
    here.mkdir(parents=True)
    if "../../runs/demo" in (FOLDER / notebook).read_text():
        demo = request.getfixturevalue("demo")
        (tmp_path / "runs").symlink_to(demo.parent)
    cells = executed(notebook, here).cells
    shown = [outputs(cell) for cell in cells if cell.cell_type == "code"]
    assert "Warning" not in "".join(shown).replace("TqdmWarning: IProgress not found", "")  # no ipywidgets
    drawings = sum("srcdoc=" in text for text in shown)
    assert drawings == {"1": 1, "3": 2, "6": 1}.get(notebook[0], 0)
    silent = [cell.source for cell in cells if cell.cell_type == "code" and not outputs(cell)]
    assert len(silent) <= 1, silent
