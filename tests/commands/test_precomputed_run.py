"""A whole run on precomputed activations: every fold in one process, one pass of the body, and what follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_runs

import kbench
from kbench.commands.cache import cache
from kbench.commands.check import check
from kbench.commands.train import train
from kbench.errors import ConfigError
from kbench.inference import activations as module
from kbench.inference.predictions import load
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.runs.results import Rows
from kbench.runs.row_parts import member_predictions
from kbench.workspace import Choice

STAGES = (
    "stages.all=null", "stages.first.precompute=true", "train.augment=none", "stages.first.keep=[cycles]",
    "stages.first.schedule={name: sgdr, cycles: 2}", "tta=none",
)  # fmt: skip


@pytest.fixture
def choice(tmp_path: Path) -> Choice:
    small_runs.written(tmp_path)
    (tmp_path / "competitions" / "classes" / "small.py").write_text(small_runs.SPLIT)
    return Choice("classes", assignments=STAGES, workspace=tmp_path)


def test_folds_train_here_whatever_the_jobs_and_the_body_runs_once(
    choice: Choice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[Path] = []
    build = module._build
    monkeypatch.setattr(module, "_build", lambda *given: (built.append(given[-1]), build(*given))[1])
    made = train(open_experiment(choice), "all", TrainOptions(device="cpu", jobs=2))
    assert made["trained"] == [0, 1]
    assert len(built) == 1  # the out-of-fold rows are looked up too
    run = open_run(choice)
    setup, paths = run.experiment, run.paths
    assert not paths.fold(0).console.exists()  # no process of its own
    assert "--jobs 2 is not used: every stage trains on activations" in capsys.readouterr().err
    member_predictions(run, Rows(setup.test, device="cpu"), [0, 1])
    member_predictions(run, Rows(setup.test, device="cpu", force=True), [0, 1])
    assert len(built) == 2  # of the training and of the test rows
    monkeypatch.chdir(choice.workspace)  # type: ignore[arg-type]
    assert {row["what"] for row in cache(clear=False)["rows"]} == {"activations"}
    assert cache(clear=True)["freed_mb"] >= 0
    assert cache(clear=False)["rows"] == []


def test_predictions_do_not_depend_on_whether_the_cache_was_there(choice: Choice) -> None:
    train(open_experiment(choice), "0", TrainOptions(device="cpu"))
    run = open_run(choice)
    setup, paths = run.experiment, run.paths
    member = paths.fold(0).predictions("test", "first-1")
    values = []
    for _ in range(2):
        member_predictions(run, Rows(setup.test, device="cpu", force=True), [0])
        values.append(np.array(load(member).values))
        kbench.files.remove(setup.workspace.cache())
    np.testing.assert_array_equal(*values)


def test_single_images_are_predicted_while_precompute_is_on(choice: Choice) -> None:
    train(open_experiment(choice), "all", TrainOptions(device="cpu"))
    run = open_run(choice)
    setup, paths = run.experiment, run.paths
    member_predictions(run, Rows(setup.test, device="cpu"), [0, 1])
    run = kbench.open_run("baseline-s0", competition="classes", workspace=choice.workspace)
    found = run.predict([setup.test.root / names[0] for names in setup.test.images])
    parts = [load(paths.fold(fold).predictions("test", f"first-{cycle}")).values for fold in (0, 1) for cycle in (0, 1)]
    if run.config.tta.name == "none":
        np.testing.assert_allclose(found.to_numpy(), np.mean(parts, axis=0), atol=1e-5)
    assert found.shape == (10, 2)


def test_a_model_that_is_not_split_is_named_before_anything_trains(choice: Choice, tmp_path: Path) -> None:
    (tmp_path / "competitions" / "classes" / "small.py").write_text(small_runs.MODEL)
    with pytest.raises(ConfigError, match="cannot be precomputed"):
        check(replace(choice), images=False, every=False)
