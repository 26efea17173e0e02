"""A run's `config.yaml` that somebody edited is noticed, and what the message says to type works."""

from __future__ import annotations

import json

import pytest
import small_runs

from kbench.commands.ensemble import ensemble
from kbench.commands.score import score
from kbench.commands.train import train
from kbench.errors import ConfigError
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.members import kept_snapshots, load_model
from kbench.runs.opening import open_run
from kbench.workspace import Choice

CPU = TrainOptions(device="cpu")


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Choice:
    choice = Choice("classes", workspace=small_runs.written(tmp_path_factory.mktemp("edited")))
    train(open_experiment(choice), "0", CPU)
    return choice


def test_a_valid_edit_is_named_with_what_it_changes(choice: Choice) -> None:
    run = open_run(choice)
    before, path, kept = score(choice, device="cpu")["score"], run.paths.config, kept_snapshots(run, 0)
    text = path.read_text()
    assert "size: 8" in text
    path.write_text(text.replace("size: 8", "size: 16"))
    for command in (
        lambda: score(choice, device="cpu"),
        lambda: ensemble(choice, [], EnsembleOptions(device="cpu", require_all=False)),
        lambda: load_model(kept[0]),
        lambda: train(open_experiment(choice), "1", CPU),
    ):
        with pytest.raises(ConfigError, match=r"config\.yaml' was changed after kbench wrote it") as caught:
            command()
        assert "input.size: 8 -> 16" in caught.value.what
        assert f"rm '{path}'" in caught.value.todo
    path.unlink()  # what it says to type
    train(open_experiment(choice), "0", CPU)
    assert path.read_text() == text
    assert score(choice, device="cpu")["score"] == before


def test_runs_of_earlier_versions_are_opened(choice: Choice) -> None:
    paths = open_run(choice).paths
    manifest = json.loads(paths.manifest.read_text())
    paths.manifest.write_text(json.dumps({key: value for key, value in manifest.items() if key != "config"}))
    paths.config.write_text(paths.config.read_text() + "\n")
    assert open_run(choice).name == paths.name
