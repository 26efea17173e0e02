"""What benchmarks are made of: sides that take turns, a diary of steps, gains with their sign."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import bench_fastai
import gains
import numpy as np
import pytest
from results import Diary, Entry, forget
from sklearn.metrics import log_loss
from turns import Side

from kbench.data.table.table import Table
from kbench.ensemble.bootstrap import Interval
from kbench.metrics.metric import make_metric

BENCHMARKS = Path(bench_fastai.__file__).parent
COUNTING = """
import sys, time
sys.path.insert(0, sys.argv[2])
from turns import Turns
turns = Turns()
for number in range(3):
    print("noise of a library")
    with open(sys.argv[3], "a") as file:
        file.write(f"{sys.argv[1]}{number} ")
    turns.done("count", number=number)
"""


def side(name: str, tmp_path: Path, code: str = COUNTING) -> Side:
    """Start a program that counts to three, one number a turn."""
    command = [sys.executable, "-c", code, name, str(BENCHMARKS), str(tmp_path / "order")]
    return Side(name, command, log=tmp_path / f"{name}.log", env=dict(os.environ), cwd=tmp_path)


def test_two_sides_take_turns(tmp_path) -> None:
    sides = [side("a", tmp_path), side("b", tmp_path)]
    bench_fastai.play(sides, ["count"] * 3)
    for one in sides:
        one.close()
        assert [record["number"] for record in one.records] == [0, 1, 2]
        assert "noise of a library" in (tmp_path / f"{one.name}.log").read_text()
    assert (tmp_path / "order").read_text().split() == ["a0", "b0", "b1", "a1", "a2", "b2"]


def test_a_side_that_stops_says_why(tmp_path) -> None:
    one = side("a", tmp_path, "raise ValueError('no such weights')")
    with pytest.raises(SystemExit, match=r"exit code 1:(.|\n)*no such weights"):
        one.turn()
    one.close()


def test_the_grade_is_that_of_scikit_learn(tmp_path) -> None:
    rng = np.random.default_rng(0)
    truth, given = rng.integers(0, 2, 50), rng.random(50).round(4)
    for name, values in (("truth", truth), ("given", given)):
        lines = [f"{row},{value}" for row, value in enumerate(values)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,label", *lines]))
    graded = bench_fastai.grade(tmp_path / "given.csv", tmp_path / "truth.csv")
    assert graded["log_loss"] == pytest.approx(log_loss(truth, given), abs=1e-9)
    assert graded["accuracy"] == np.mean((given > 0.5) == truth)


def test_a_step_of_the_diary_is_done_once_until_the_recipe_changes(tmp_path) -> None:
    script = tmp_path / "step.py"
    script.write_text("import json, pathlib\nfile = pathlib.Path('count')\n"
                      "file.write_text(file.read_text() + 'x' if file.exists() else 'x')\n"
                      "print(json.dumps(len(file.read_text())))")  # fmt: skip
    path = tmp_path / "diary.json"
    assert Diary(path, "one").step("count", tmp_path, [str(script)]) == 1
    diary = Diary(path, "one")
    assert diary.step("count", tmp_path, [str(script)]) == 1
    assert diary.step("again", tmp_path, [str(script)]) == 2
    assert 0 < diary.seconds("again") < diary.seconds()
    other = Diary(path, "two")
    assert other.outdated
    assert other.step("count", tmp_path, [str(script)]) == 3
    assert list(json.loads(path.read_text())["steps"]) == ["count"]


def test_a_recipe_that_changed_takes_only_its_own_runs_and_folds_away(tmp_path) -> None:
    gone = ["runs/cats/best-s0/run.json", "folds/cats.csv", "folds/cats.json"]
    kept = ["runs/cats/baseline-s0/run.json", "runs/dogs/best-s0/run.json", "folds/dogs.csv"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    forget(tmp_path, Entry("cats", "best"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == sorted(kept)


@pytest.mark.parametrize("name", ["log_loss", "accuracy"])
def test_the_score_of_each_is_the_mean_of_their_scores(name) -> None:
    rng = np.random.default_rng(0)
    ids = np.array([f"{row:03d}" for row in range(40)])
    table = Table(ids, Path(), ((),) * 40, "single_label", ("a", "b", "c"), rng.integers(0, 3, 40))
    folds = rng.dirichlet([1, 1, 1], (40, 5))
    metric = make_metric(name)
    each = gains.of_each(metric)
    expected = np.mean([metric(table.targets, folds[:, fold], table) for fold in range(5)])
    assert each(table.targets, folds, table) == pytest.approx(expected)
    assert each.per_row(table.targets, folds, table).mean() == pytest.approx(expected)


def test_a_gain_is_positive_when_it_helps() -> None:
    lower = gains.helps(Interval(-0.2, -0.3, -0.1), make_metric("log_loss"))
    assert lower == {"value": 0.2, "low": 0.1, "high": 0.3}
    assert gains.helps(Interval(0.2, 0.1, 0.3), make_metric("accuracy")) == lower
