"""The notebook of the Python API is what its script makes, and every cell still runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

DOCS = ROOT / "docs"


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def sources(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path)]


def outputs(path: Path) -> str:
    return json.dumps([cell.get("outputs") for cell in cells(path)])


def test_the_notebook_is_executed_small_and_knows_no_machine() -> None:
    notebook = DOCS / "notebook.ipynb"
    assert notebook.stat().st_size < 300_000
    assert all(cell["execution_count"] for cell in cells(notebook) if cell["cell_type"] == "code")
    assert "image/png" in outputs(notebook)
    for word in ("/tmp/", "/home/", "/Users/", "/root/", "Traceback", "stderr"):
        assert word not in outputs(notebook)


@pytest.mark.slow
def test_every_cell_runs_in_a_new_workspace_and_the_notebook_is_current(tmp_path: Path) -> None:
    target = tmp_path / "notebook.ipynb"
    done = subprocess.run(
        [sys.executable, str(DOCS / "make_notebook.py"), str(target)], capture_output=True, text=True, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sources(target) == sources(DOCS / "notebook.ipynb"), "run `make docs`"
    assert list(tmp_path.iterdir()) == [target]
