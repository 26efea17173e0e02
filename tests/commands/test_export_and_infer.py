"""A bundle predicts what `kbench ensemble` predicts: the same passes, means, rules and formats."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_runs

from kbench.commands.ensemble import ensemble
from kbench.commands.export import ExportOptions, export
from kbench.commands.infer import infer
from kbench.runs.blend import EnsembleOptions
from kbench.workspace import Choice

CPU = EnsembleOptions(device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a small trained run of each row task."""
    return small_runs.trained(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize("name", ["classes", "labels", "numbers"])
def test_the_file_is_that_of_the_ensemble_byte_by_byte(root: Path, tmp_path: Path, name: str) -> None:
    choice = Choice(name, workspace=root)
    expected = Path(ensemble(choice, [], CPU)["file"]).read_bytes()
    export(choice, [], CPU, ExportOptions(tmp_path / "bundle"))
    data = tmp_path / "data"
    shutil.copytree(root / "data" / name / "test", data / "test")  # no training table, no folds
    shutil.copy(root / "data" / name / "sample_submission.csv", data)
    made = infer(tmp_path / "bundle", data=data, out=tmp_path / "out.csv", work=tmp_path / "work", hours=None,
                 device="cpu")  # fmt: skip
    assert Path(made["file"]).read_bytes() == expected
