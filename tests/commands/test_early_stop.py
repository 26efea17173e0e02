"""Folds that stop early have fewer snapshots than others: what is printed of them is what is sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_runs import written

from kbench.commands.ensemble import ensemble
from kbench.commands.report import report
from kbench.commands.score import score
from kbench.commands.train import train
from kbench.inference.predictions import Predictions, load
from kbench.metrics.metric import make_metric
from kbench.report.subject import ReportOptions
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.runs.results import Rows, Share
from kbench.runs.run import Run
from kbench.workspace import Choice

pytestmark = pytest.mark.slow
NAMES = ["all-0", "all-1", "all-2", "all-3"]
RECIPE = (
    "stages.all.schedule.cycles=4", "stages.all.early_stop=1", "stages.all.min_delta=0.03", "stages.first.lr=0.02",
    'stages.all.monitor="loss"',
)  # fmt: skip


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Choice:
    """A run whose fold 0 has two snapshots, and fold 1 four."""
    root = tmp_path_factory.mktemp("early")
    written(root)
    train(open_experiment(Choice("classes", workspace=root, assignments=RECIPE)), "all", TrainOptions(device="cpu"))
    chosen = Choice("classes", workspace=root)
    run = open_run(chosen)
    assert [[one.member for one in run.checkpoints(fold)] for fold in (0, 1)] == [NAMES[:2], NAMES]
    score(chosen)
    return chosen


def of_fold(run: Run, fold: int, part: str) -> dict[str, Predictions]:
    folder = run.paths.fold(fold).root / part
    return {path.stem: load(path) for path in sorted(folder.glob("all-*.json"))}


def mixed(run: Run, part: str, weights: dict[str, float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (ids, values) of each fold: what a fold lacks is shared by its snapshots alike."""
    parts = []
    for fold in (0, 1):
        own = of_fold(run, fold, part)
        shares = {name: weights[name] + sum(weights[one] for one in NAMES if one not in own) / len(own) for name in own}
        parts.append((next(iter(own.values())).ids, sum(shares[name] * one.values for name, one in own.items())))
    return parts


def out_of_fold(run: Run, weights: dict[str, float]) -> float:
    parts = mixed(run, "oof", weights)
    ids, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(ids)
    return make_metric("log_loss")(run.table.targets, values[order], run.table)


def sent(run: Run, weights: dict[str, float]) -> np.ndarray:
    return np.mean([values for _, values in mixed(run, "test", weights)], axis=0)


@pytest.mark.parametrize("combine", [None, "greedy", "weights"])
def test_the_mean_that_is_printed_is_the_mean_that_is_sent(choice: Choice, combine: str | None) -> None:
    result = ensemble(choice, [], EnsembleOptions(combine=combine, device="cpu", name=combine or "plain"))
    run, alike = open_run(choice), dict.fromkeys(NAMES, 0.25)
    names = {f"baseline-s0/{name}" for name in NAMES}
    assert {record["member"] for record in result["gains"]} == names
    weights = alike if combine is None else {name.rpartition("/")[2]: one for name, one in result["weights"].items()}
    assert sorted(weights) == NAMES
    printed = result["score"] if combine is None else result["plain"]["value"]
    assert printed == pytest.approx(out_of_fold(run, weights), rel=1e-5)
    frame = pd.read_csv(result["file"])
    np.testing.assert_allclose(frame.iloc[:, 1:].to_numpy(), sent(run, weights), atol=1e-5)
    assert sum(record["weight"] for record in result["gains"]) == pytest.approx(1)


def test_weight_of_a_member_only_one_fold_has_is_shared_by_the_others_snapshots(choice: Choice) -> None:
    run = open_run(choice)
    wanted = {"baseline-s0/all-3": 0.75, "baseline-s0/all-0": 0.25}
    share, rows = Share(run, places=(0, 1)), Rows(run.test, device="cpu")
    result = run.results.predict([share], rows, mean="arithmetic", weights=wanted)
    weights = {"all-0": 0.25, "all-1": 0.0, "all-2": 0.0, "all-3": 0.75}
    np.testing.assert_allclose(result.predictions.values, sent(run, weights), atol=1e-6)
    assert sum(result.weights) == pytest.approx(1)


def test_tables_show_what_each_fold_has(choice: Choice) -> None:
    table = score(choice)["table"]
    assert [name for name in table[0] if name.startswith("all")] == NAMES
    assert [[row[name] is None for name in NAMES] for row in table] == [[False, False, True, True], [False] * 4]
    means = score(choice)["cv_mean"]
    assert means["all-3"] == table[1]["all-3"]
    assert means["all-0"] == pytest.approx((table[0]["all-0"] + table[1]["all-0"]) / 2)


def test_the_report_grows_to_the_mean_that_is_sent(choice: Choice) -> None:
    made = report(choice, ReportOptions(device="cpu"))
    assert made["growth"][-1]["ensemble"] == "mean of all"
    assert made["growth"][-1]["score"] == pytest.approx(made["score"]["score"], rel=1e-5)
    assert made["growth"][-1]["members"] == 4


def test_a_best_epoch_at_the_end_of_a_cycle_counts_once(tmp_path: Path) -> None:
    written(tmp_path)
    keep = ("stages.all.keep=[cycles, best]", "stages.first.lr=0.02", 'stages.all.monitor="loss"')
    train(open_experiment(Choice("classes", workspace=tmp_path, assignments=keep)), "0", TrainOptions(device="cpu"))
    run = open_run(Choice("classes", workspace=tmp_path))
    assert run.paths.fold(0).snapshot("all", "best").is_file()
    members = [one.member for one in run.checkpoints(0)]
    assert len(members) == 2  # of two cycles; the best epoch is one of their ends
    assert not any("best" in name for name in members)
    assert [one.member for one in run.checkpoints(0, only=["all-best"])] == ["all-best"]
