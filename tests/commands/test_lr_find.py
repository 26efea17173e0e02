"""`kbench lr-find --stage`: a later stage begins with what the fold has left of the one before (F-33)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch

from kbench.commands import lr_find as command
from kbench.commands.train import train
from kbench.models.checkpoint import read_tensors
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import identity, run_paths
from kbench.training.resume import Progress, save_resume
from kbench.workspace import Choice, FoldPaths

LR = ("stages.first.lr=0.02",)


class Bench:
    """A competition of two stages, the head and all layers, and the model a range test begins with."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = small_runs.written(root)
        (root / "competitions" / "classes" / "small.py").write_text(small_runs.SPLIT)
        self.begun: dict[str, torch.Tensor] = {}
        real = command.range_test

        def watched(context: Any, stage: Any, model: torch.nn.Module, **more: Any) -> Any:
            self.begun = {name: value.clone() for name, value in model.state_dict().items()}
            return real(context, stage, model, **more)

        monkeypatch.setattr(command, "range_test", watched)

    def choice(self, *more: str) -> Choice:
        return Choice("classes", assignments=(*LR, *more), workspace=self.root)

    def train(self, *more: str) -> FoldPaths:
        setup = open_experiment(self.choice(*more))
        train(setup, "0", TrainOptions(device="cpu"))
        return run_paths(setup).fold(0)

    def find(self, *more: str) -> None:
        """Run the range test of the second stage."""
        assert 1e-5 < command.lr_find(self.choice(*more), fold=0, stage="all", device="cpu")["suggestion"] < 10


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_head_that_kept_no_snapshot_is_begun_with(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.find()
    assert "nothing left of stage first" in capsys.readouterr().err
    built = bench.begun
    fold = bench.train()
    end = read_tensors(fold.end("first"))
    assert set(end) == {"head.weight", "head.bias"}  # small: the body is that of every model of the kind
    bench.find()
    assert "starting from the end of stage first of fold 0" in capsys.readouterr().err.replace("\n", " ")
    assert torch.equal(bench.begun["head.weight"], end["head.weight"])
    assert not torch.equal(bench.begun["head.weight"], built["head.weight"])
    assert torch.equal(bench.begun["conv.weight"], built["conv.weight"])


def test_a_stage_is_begun_with_as_far_as_it_is_trained(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    fold = bench.train()
    training = identity(open_experiment(bench.choice()))["training"]
    state = {f"model/{name}": torch.full_like(value, 0.5) for name, value in small_model(bench).items()}
    fold.end("first").unlink()
    save_resume(fold, Progress(stage=0, epoch=0, batch=2, step=2), state, training=training)
    bench.find()
    assert "stage first as far as it is trained" in capsys.readouterr().err.replace("\n", " ")
    assert all(bool((value == 0.5).all()) for value in bench.begun.values())


@pytest.mark.parametrize("members", ["null", "[all]"])
def test_a_snapshot_is_begun_with_where_nothing_newer_is_left(
    bench: Bench, capsys: pytest.CaptureFixture[str], members: str
) -> None:
    more = ("stages.first.keep=[last]", f"ensemble.members={members}")
    fold = bench.train(*more)
    fold.end("first").unlink()
    bench.find(*more)
    assert "starting from first-last" in capsys.readouterr().err.replace("\n", " ")


def test_what_another_training_left_is_not_begun_with(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.train()
    bench.find("stages.first.lr=0.03")
    assert "nothing left of stage first" in capsys.readouterr().err


def test_a_fresh_stage_begins_fresh(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("stages.all.start=fresh",)
    bench.train(*more)
    bench.find(*more)
    said = capsys.readouterr().err
    assert "starting from" not in said


def small_model(bench: Bench) -> dict[str, torch.Tensor]:
    """Return the state a range test began with."""
    bench.find()
    return bench.begun
