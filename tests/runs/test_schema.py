"""Runs of an earlier version: told apart, not trained on, and still scored and sent."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_runs

from kbench.commands.ensemble import ensemble
from kbench.commands.train import train
from kbench.config import competition
from kbench.errors import ConfigError
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.workspace import Choice


def test_a_run_of_an_earlier_schema_is_scored_and_sent_but_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_runs.written(tmp_path)
    choice, options = Choice("classes", workspace=tmp_path), TrainOptions(device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(competition, "SCHEMA", 1)
        train(open_experiment(choice), "0", options)
        score = open_run(choice).out_of_fold(device="cpu").score["score"]
    with pytest.raises(ConfigError, match="an earlier version of kbench") as caught:
        train(open_experiment(choice), "1", options)
    assert open_run(choice).out_of_fold(device="cpu").score["score"] == score
    assert ensemble(choice, [], EnsembleOptions(device="cpu"))["score"] == score
    name = "baseline-s0-2"
    assert f"--run {name}" in caught.value.todo  # and what is typed then works
    train(open_experiment(Choice("classes", run=name, workspace=tmp_path)), "1", options)
    train(open_experiment(choice), None, TrainOptions(device="cpu", force=True))
    assert open_run(choice).trained_folds() == [0, 1]
