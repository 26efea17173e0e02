from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kbench import files
from kbench.cli.app import app
from kbench.commands.sweep import sweep
from kbench.errors import ConfigError, FoldError
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice

pytestmark = pytest.mark.usefixtures("quick_disk")
CPU = TrainOptions(device="cpu")


def swept(root: Path, *grid: str, folds: str = "0", name: str = "labels") -> dict[str, Any]:
    return sweep(Choice(name, workspace=root), grid, folds, CPU)


def test_a_way_whose_folds_all_diverge_has_a_row_and_does_not_stop_the_others(root: Path) -> None:
    found = swept(root, "stages.all.lr=1e30,0.02", "tta=none,flip", folds="0,1")
    assert found["failed"] == ["stages.all.lr=1e+30"]
    assert [row["failed"] for row in found["rows"]] == [[], [], [0, 1], [0, 1]]
    healthy, broken = found["rows"][:2], found["rows"][2:]
    assert all(row["score"] > 0 for row in healthy)
    assert [row["gain"] is None for row in healthy].count(True) == 1  # the first that has a score is the mark
    assert all(row["score"] is row["gain"] is None for row in broken)
    assert {row["stages.all.lr"] for row in broken} == {"1e+30"}


def test_values_beside_a_grid_of_predictions_hold_for_all_of_it(root: Path) -> None:
    choice = Choice("labels", assignments=("seed=1", "ensemble.mean=geometric"), workspace=root)
    found = sweep(choice, ["tta=none,flip"], "0", CPU)
    assert [row["run"] for row in found["rows"]] == ["baseline-s1"] * 2
    seal, *_ = (root / "runs" / "labels" / "baseline-s1" / "fold-0" / "oof").glob("*.json")
    assert files.read_json(seal)["source"]["mean"] == "geometric"


def test_the_only_fold_that_is_wanted_may_fail_too(root: Path) -> None:
    found = swept(root, "stages.all.lr=0.02,1e30")
    assert [row["failed"] for row in found["rows"]] == [[], [0]]


def test_folds_that_failed_are_told_from_those_that_are_scored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kbench.commands.train as training
    from kbench.errors import Diverged

    one = training.train_one

    def train_one(run: Any, fold: Any, options: Any) -> None:
        if fold == 1:
            raise Diverged("the loss is nan", "finite losses", "lower `lr`")
        one(run, fold, options)

    monkeypatch.setattr(training, "train_one", train_one)
    (row,) = swept(root, "stages.all.lr=0.02", folds="all")["rows"]
    assert row["failed"] == [1]
    assert row["score"] > 0


@pytest.mark.parametrize(("grid", "what"), [
    (["stages.all.schedule.warmup=0.1,2"], "warmup is '2'"),
    (["stages.all.lr=0.02,fast"], "stages.all.lr"),
    (["stages.all.lr=0.02,0.03", "tta.name=flip,flop"], "flop"),
    (["experiment=baseline,missing"], "missing"),
])  # fmt: skip
def test_every_value_is_checked_before_anything_trains(root: Path, grid: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match="the grid: 1 problem") as caught:
        swept(root, *grid)
    assert what in caught.value.what
    assert not (root / "runs" / "labels").exists()


def test_a_fold_that_is_not_there_is_said_before_anything_trains(root: Path) -> None:
    with pytest.raises(FoldError):
        swept(root, "stages.all.lr=0.02,0.03", folds="0,7")
    assert not (root / "runs" / "labels").exists()


def test_failed_ways_end_in_the_exit_code_of_failed_folds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    result = CliRunner().invoke(app, ["sweep", "-c", "labels", "stages.all.lr=1e30,0.02", "--device", "cpu"])
    assert result.exit_code == 4
    assert "1e+30" in result.output
