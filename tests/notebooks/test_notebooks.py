"""Every notebook runs from its first cell to its last in a fresh kernel, and follows the house's frame."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS, SECONDS_IN_ALL = 360, 720  # for one notebook, and for all of them together on two cores
TOOK: dict[str, float] = {}  # seconds of each notebook that was run
NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"a notebook works offline, and this one wants to reach {arguments[1][0]}")

sys.addaudithook(refuse)
"""
CELL_LINES, FUNCTION_LINES = 15, 5


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks_numbered_from_zero() -> None:
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert len(numbers) >= 2 and numbers[0] == 0 and len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In its own folder, in a kernel of its own, with the package of this clone, and with the network out of reach."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)  # every Python that starts imports it
    places = [str(tmp_path), str(FOLDER.parent), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(path)
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    start = time.monotonic()
    with ThreadPoolExecutor(1) as apart:  # browser tests leave a running event loop behind in the main thread
        apart.submit(asyncio.run, asyncio.wait_for(client.async_execute(), SECONDS)).result()
    TOOK[path.stem] = time.monotonic() - start
    with capsys.disabled():
        print(f"\n{path.stem}: {TOOK[path.stem]:.0f} s", end=" ")
    warned = [output.text for cell in code_cells(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    assert not warned, "a notebook shows its reader no warnings"


def test_notebooks_together_stay_within_their_time() -> None:
    """Those that this session has run; each has its own limit as well."""
    assert sum(TOOK.values()) <= SECONDS_IN_ALL, TOOK


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert [cell.id for cell in notebook.cells] == [f"cell-{i:02}" for i in range(1, len(notebook.cells) + 1)]
    assert all(cell.execution_count is None and not cell.outputs for cell in code_cells(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_follows_the_frame(path: Path) -> None:
    """A question and how long it takes; imports; parameters; text before code; and at the end what was seen."""
    cells = read(path).cells
    first, last = cells[0], cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ") and "?" in first.source and "Takes about" in first.source
    assert all(part in last.source for part in ("What we saw", "surprised us", "Where the code lives", "Next."))
    assert all("import" in line or not line for line in cells[1].source.splitlines())
    assert all(before.cell_type == "markdown" for before, cell in zip(cells, cells[1:]) if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_claims_asserted(path: Path) -> None:
    """What is longer belongs into the library, where it is tested."""
    sources = [cell.source for cell in code_cells(read(path))]
    assert max(len(source.splitlines()) for source in sources) <= CELL_LINES
    functions = [n for source in sources for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    too_long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= FUNCTION_LINES]
    assert not too_long, f"move to the library: {', '.join(too_long)}"
    assert sum("assert" in source for source in sources) >= len(sources) // 2


def test_what_lies_beside_the_notebooks_is_small_and_theirs() -> None:
    """The README's pictures, see sonarkit/explore/pictures.py for how to make them anew, and the numbers of a study."""
    sources = "".join(cell.source for path in NOTEBOOKS for cell in code_cells(read(path)))
    most = {".png": 120_000, ".json": 1_000_000}
    for file in (FOLDER / "figures").glob("*"):
        named = file.stem if file.suffix == ".png" else file.name
        assert f'"{named}"' in sources and file.stat().st_size < most[file.suffix], file


def test_a_study_that_ships_names_no_folder_of_its_machine() -> None:
    for file in (FOLDER / "figures").glob("*.json"):
        assert not Path(json.loads(file.read_text(encoding="utf-8"))["study"]["out"]).is_absolute(), file
