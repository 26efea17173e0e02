"""A snapshot of a trained fold that is gone, cut off, changed or unreadable is an error that names its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import small_runs

from kbench.commands.ensemble import ensemble
from kbench.commands.score import score
from kbench.commands.train import train
from kbench.errors import CheckpointError
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.workspace import Choice


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)


def _rescale(path: Path) -> None:
    """Halve what a snapshot says pixels were multiplied by: valid, and wrong."""
    content = json.loads(path.read_text())
    content["scale"]["scale"] /= 2
    path.write_text(json.dumps(content, indent=2))


SPOILT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "json gone": (".json", Path.unlink),
    "json cut": (".json", lambda path: path.write_text(path.read_text()[:-20])),
    "json edited": (".json", _rescale),
    "weights gone": (".safetensors", Path.unlink),
    "weights cut": (".safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "weights changed": (".safetensors", _flip),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = small_runs.written(tmp_path_factory.mktemp("lost"))
    train(open_experiment(Choice("classes", workspace=root)), "0", TrainOptions(device="cpu"))
    return root


@pytest.mark.parametrize("how", SPOILT)
def test_a_lost_snapshot_is_an_error_and_what_it_says_works(workspace: Path, how: str) -> None:
    choice = Choice("classes", workspace=workspace)
    before = open_run(choice).out_of_fold(device="cpu").score["score"]
    suffix, spoil = SPOILT[how]
    path = open_run(choice).paths.fold(0).snapshots()[0].with_suffix(suffix)
    spoil(path)
    for command in (
        lambda: score(choice, device="cpu"),
        lambda: ensemble(choice, [], EnsembleOptions(device="cpu", require_all=False)),
    ):
        with pytest.raises(CheckpointError, match=r"its snapshot '.*snapshot-all-0\.json'") as caught:
            command()
        assert "`kbench train --fold 0 --force`" in caught.value.todo
    train(open_experiment(choice), "0", TrainOptions(device="cpu", force=True))
    assert open_run(choice).out_of_fold(device="cpu").score["score"] == before
