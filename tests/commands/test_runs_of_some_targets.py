"""Runs that cover different targets make one submission, target by target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_runs import written

from kbench.commands.check import check
from kbench.commands.ensemble import ensemble
from kbench.commands.import_run import import_run
from kbench.commands.smoke import smoke
from kbench.commands.train import train
from kbench.errors import KbenchError, PredictionError
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.workspace import Choice


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each target of the regression, and one of both."""
    root = written(tmp_path_factory.mktemp("targets"))
    rows = root / "source" / "numbers" / "train.csv"
    frame = pd.read_csv(rows, dtype=str, keep_default_na=False)
    frame.assign(width=frame["width"].replace("", "1")).to_csv(rows, index=False)  # a run of it alone needs it known
    for run, targets in (("level", "[level]"), ("width", "[width]"), ("both", "[level, width]")):
        choice = Choice("numbers", run=run, assignments=(f"data.target={targets}",), workspace=root)
        train(open_experiment(choice), "all", TrainOptions(device="cpu"))
    return root


def sent(root: Path, *runs: str, competition: str = "numbers", **options: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return what `kbench ensemble` returns, and its file."""
    made = ensemble(Choice(competition, workspace=root), runs, EnsembleOptions(device="cpu", **options))
    return made, pd.read_csv(made["file"])


def scored(root: Path, run: str) -> dict[str, Any]:
    return open_run(Choice("numbers", run=run, workspace=root)).out_of_fold(device="cpu").score


def test_each_target_is_that_of_the_run_that_covers_it(workspace: Path) -> None:
    with pytest.raises(KbenchError, match="width"):
        sent(workspace, "level")
    made, frame = sent(workspace, "width", "level")
    assert list(frame.columns) == ["id", "level", "width"]
    _, of_both = sent(workspace, "both")
    assert not np.allclose(frame["level"], of_both["level"])
    assert made["rows"] == 48
    each = [scored(workspace, run)["score"] for run in ("level", "width")]
    assert min(each) <= made["score"] <= max(each)
    assert {record["adds"] for record in made["gains"]} == {None}  # nothing else predicts its target
    for run in ("level", "width"):
        folder = workspace / "runs" / "numbers" / run
        folds = [
            np.mean([np.load(folder / f"fold-{fold}" / "test" / f"all-{cycle}.npy") for cycle in range(2)], axis=0)
            for fold in range(2)
        ]
        np.testing.assert_allclose(frame[run], np.mean(folds, axis=0)[:, 0], rtol=1e-5)


def test_a_run_of_one_target_is_checked_and_tried_without_the_others(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Choice("numbers", assignments=("data.target=[level]",), workspace=workspace)
    assert check(one, images=False, every=False)["targets"] == 1
    assert "`kbench ensemble` needs runs of the others" in capsys.readouterr().err
    assert smoke(one, device="cpu")["rows"] > 0
    (workspace / "competitions" / "numbers.yaml").write_text(
        (text := (workspace / "competitions" / "numbers.yaml").read_text()).replace("[level, width]", "[level]")
    )
    try:
        with pytest.raises(KbenchError, match="width"):  # the competition itself is to cover the sample
            check(Choice("numbers", workspace=workspace), images=False, every=False)
    finally:
        (workspace / "competitions" / "numbers.yaml").write_text(text)


def test_a_target_of_several_runs_is_their_mean(workspace: Path) -> None:
    _, of_both = sent(workspace, "both")
    _, apart = sent(workspace, "level", "width")
    made, frame = sent(workspace, "level", "both", weights=(1.0, 3.0))
    np.testing.assert_allclose(frame["level"], 0.25 * apart["level"] + 0.75 * of_both["level"], rtol=1e-5)
    np.testing.assert_allclose(frame["width"], of_both["width"], rtol=1e-6)
    assert {record["member"] for record in made["gains"]} == {"level", "both"}
    with pytest.raises(PredictionError, match="predict only some"):
        sent(workspace, "level", "both", combine="weights")


def test_thresholds_of_labels_stay_with_their_labels_whatever_comes_first(workspace: Path) -> None:
    path = workspace / "competitions" / "labels.yaml"
    path.write_text(path.read_text() + "ensemble: {decision: {name: threshold, per_label: true}}\n")
    choice = Choice("labels", workspace=workspace)
    setup = open_experiment(choice)
    names = list(setup.train.target_names)
    rng = np.random.default_rng(0)
    shares = np.array([0.2, 0.5, 0.8])[: len(names)]  # each label is best cut elsewhere
    files = {}
    for part, table in (("oof", setup.train), ("test", setup.test)):
        truth = np.asarray(setup.train.targets)[: len(table)]
        values = np.clip(shares + np.where(truth > 0.5, 0.1, -0.1) + rng.normal(size=truth.shape) * 0.02, 0, 1)
        frame = pd.DataFrame(values, columns=names)
        frame.insert(0, "id", table.ids)
        files[part] = workspace / f"{part}.csv"
        frame.to_csv(files[part], index=False)
    import_run(choice, "whole", oof=str(files["oof"]), test=str(files["test"]), force=False)
    for file in files.values():
        pd.read_csv(file, dtype={"id": str}).drop(columns=names[0]).to_csv(file, index=False)
    import_run(choice, "some", oof=str(files["oof"]), test=str(files["test"]), force=False)
    _, first = sent(workspace, "whole", "some", competition="labels")
    _, last = sent(workspace, "some", "whole", competition="labels")
    truth = np.asarray(setup.train.targets)[: len(setup.test)]
    np.testing.assert_array_equal(first[names].to_numpy(), truth)
    np.testing.assert_array_equal(last[names].to_numpy(), truth)
