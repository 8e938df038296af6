"""The walk-through: its notebook is its script, executed; what it says of the tests is true."""

import re
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
SCRIPT, NOTEBOOK = ROOT / "docs/walkthrough.py", ROOT / "docs/walkthrough.ipynb"


def executed(script: Path) -> nbformat.NotebookNode:
    """The script as a notebook with all outputs; numbered cells and no times, so that two of them differ by results."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
    return NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False).execute(cwd=str(ROOT))


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    return [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]


def test_notebook_and_script_have_the_same_cells() -> None:
    ours, theirs = (
        [(cell.cell_type, cell.source) for cell in notebook.cells] for notebook in (jupytext.read(SCRIPT), read())
    )
    assert ours == theirs
    nbformat.validate(read())


def test_notebook_was_committed_as_executed() -> None:
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.get("name", "stdout") for output in outputs(read())} == {"stdout"}, "no warnings"
    assert len(pictures(read())) == len(re.findall(r"^show\(", SCRIPT.read_text(), re.MULTILINE))
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_every_test_that_it_names_exists() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", SCRIPT.read_text())
    assert len({name for _, name in named}) >= 7
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


@pytest.mark.slow
@pytest.mark.long
def test_every_cell_runs() -> None:
    fresh = executed(SCRIPT)
    assert len(pictures(fresh)) == len(pictures(read()))
    assert not [output for output in outputs(fresh) if output.output_type == "error" or output.get("name") == "stderr"]


if __name__ == "__main__":  # make walkthrough
    nbformat.write(executed(SCRIPT), sys.argv[1])
