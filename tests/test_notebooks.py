"""The notebooks run from top to bottom, and are kept without outputs."""

import os
import tempfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parents[1] / "experiments" / "notebooks"
NAMES = ("first_steps", "own_schedule")


def read(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(name: str, folder: Path) -> NotebookNode:
    """Returns the notebook as this interpreter executes it in an empty folder."""
    notebook = read(name)
    # Other kernels may be installed; the native one is this interpreter's.
    specs = KernelSpecManager(kernel_dirs=[])
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory() as sockets:
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=specs,
            transport="ipc",
            ip=f"{sockets}/kernel",
        )
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=600,
            resources={"metadata": {"path": str(folder)}},
        )
        return client.execute(env=environment, cleanup_kc=True)


def outputs(notebook: NotebookNode, kind: str) -> list[str]:
    """Returns all outputs of a mime type, or of a stream."""
    found = [output for cell in code(notebook) for output in cell.outputs]
    return [
        output.data[kind] if "data" in output else output.text
        for output in found
        if kind in output.get("data", ()) or output.get("name") == kind
    ]


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_kept_without_outputs(name: str):
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata == {}
    for cell in code(notebook):
        assert cell.outputs == [], "clear all outputs before a commit"
        assert cell.execution_count is None, "clear all outputs before a commit"
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert text == nbformat.writes(notebook) + "\n", "not as nbformat writes it"


@pytest.mark.slow
def test_first_steps_runs_and_shows_what_it_speaks_of(tmp_path: Path):
    done = execute("first_steps", tmp_path)
    assert outputs(done, "stderr") == []
    assert len(outputs(done, "image/png")) == 2
    tables = outputs(done, "text/html")
    for shown in ("float8_e4m3fn", "ab,bc-&gt;ac", "int4", "test/highest/accuracy"):
        assert any(shown in table for table in tables)
    said, comparison = outputs(done, "stdout")
    assert said.endswith("compilations: 1\n")
    arms = {line.split()[0]: line.split()[1:] for line in comparison.splitlines()[1:]}
    assert set(arms) == {"float32", "cpt", "int3"}
    assert all(float(accuracy) > 0.85 for accuracy, _ in arms.values())
    assert float(arms["float32"][1]) == 1 > float(arms["cpt"][1])
    progress = [text for text in outputs(done, "text/plain") if "320/320" in text]
    assert len(progress) == 3  # one for each run, changed in place
    assert len([*(tmp_path / "runs").iterdir()]) == 3


@pytest.mark.slow
def test_own_schedule_runs_and_its_bits_rise(tmp_path: Path):
    done = execute("own_schedule", tmp_path)
    assert outputs(done, "stderr") == []
    assert len(outputs(done, "image/png")) == 1
    written, kept, comparison = outputs(done, "stdout")
    assert written == "Writing plateau.py\n"
    assert kept == "Every promise is kept.\n"
    costs = {
        line.split()[0]: float(line.split()[2]) for line in comparison.splitlines()[1:]
    }
    assert costs["digits-plateau"] < costs["digits-int8"] == 0.0625
