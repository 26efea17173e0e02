from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy

from kbench.config.section import Component
from kbench.config.stage import RangeTest
from kbench.models.checkpoint import read_checkpoint, read_tensors, snapshot_tensors
from kbench.models.layer_groups import body_digest, body_state
from kbench.training.events import Epoch, Event, Note
from kbench.training.fold import begin, train_fold
from kbench.training.stage_plan import StagePlan
from kbench.workspace import FoldPaths

ROWS = 28
TRAINING = toy.IDENTITY["training"]


pytestmark = pytest.mark.usefixtures("quick_disk")


def head(name: str = "head", **changes: Any) -> StagePlan:
    given: dict[str, Any] = {
        "groups": "head", "precompute": True, "optimizer": ("adamw", {}), "lr": 0.02, "batch_size": 7,
        "schedule": ("sgdr", {"cycles": 2, "cycle_len": 1, "cycle_mult": 2}), "keep": frozenset({"cycles"}),
    }  # fmt: skip
    return toy.stage(name, **{**given, **changes})


def body_learns(name: str = "all", **changes: Any) -> StagePlan:
    return toy.stage(name, schedule=("constant", {"epochs": 1}), **changes)


def trained(
    folder: Path, stages: Sequence[StagePlan], *, events: int | None = None, seen: list[Any] | None = None,
    models: list[Any] | None = None, **changes: Any,
) -> list[Event]:  # fmt: skip
    """Train a fold on activations, or until it has made some events; return them."""
    stages = [replace(stage, index=index) for index, stage in enumerate(stages)]
    paths = FoldPaths(folder)
    paths.root.mkdir(parents=True, exist_ok=True)
    resumed = begin(paths, training=TRAINING)
    made = toy.context(
        folder, rows=ROWS, lines=resumed[0].log_lines if resumed else 0, **{"checkpoint_s": 0, **changes}
    )
    context = toy.with_activations(made, folder.parent, rows=ROWS, seen=seen)

    def build() -> toy.SplitNet:
        model = toy.SplitNet()
        if models is not None:
            models.append(model)
        return model

    found: list[Event] = []
    running = train_fold(context, stages, build, resumed=resumed)
    for event in running:
        if not (isinstance(event, Note) and event.text.startswith("going on")):
            found.append(event)
        if len(found) == events:
            running.close()
            break
    return found


def states(folder: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    for path in FoldPaths(folder).snapshots():
        checkpoint = read_checkpoint(path)
        assert checkpoint is not None
        found[path.name] = {name: value.numpy().tobytes() for name, value in snapshot_tensors(checkpoint).items()}
    return found


def info(folder: Path, stage: str, tag: str) -> dict[str, Any]:
    found = read_checkpoint(FoldPaths(folder).snapshot(stage, tag))
    assert found is not None
    return found.info


def test_only_the_head_learns_and_the_body_is_kept_once(tmp_path: Path) -> None:
    models: list[Any] = []
    trained(tmp_path / "fold-0", [head()], models=models)
    (model,) = models
    first, second = (read_checkpoint(FoldPaths(tmp_path / "fold-0").snapshot("head", tag)) for tag in "01")
    assert first is not None
    assert second is not None
    assert set(read_tensors(first.tensors)) == {name for name in model.state_dict() if name.startswith("head.")}
    assert first.body == second.body == body_digest(model)
    assert [path.stem for path in (tmp_path / "bodies").glob("*.json")] == [first.body]
    ends = snapshot_tensors(second)
    assert all(torch.equal(ends[name], value) for name, value in model.state_dict().items())
    assert not all(torch.equal(snapshot_tensors(first)[name], ends[name]) for name in ends)


def test_it_learns_what_training_the_head_on_the_images_learns(tmp_path: Path) -> None:
    """Centre crops and a body without dropout: activations are the images' own, to rounding."""
    centre = {"crop": ("centre", {}), "batch_size": 21}  # one batch an epoch: batch norm of the body is in eval mode
    trained(tmp_path / "fold-0", [head(**centre)])
    trained(tmp_path / "fold-1", [head(precompute=False, **centre)])
    ours, theirs = (
        snapshot_tensors(checkpoint)
        for folder in ("fold-0", "fold-1")
        if (checkpoint := read_checkpoint(FoldPaths(tmp_path / folder).snapshot("head", "1")))
    )
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4)
    assert info(tmp_path / "fold-0", "head", "1")["valid_loss"] == pytest.approx(
        info(tmp_path / "fold-1", "head", "1")["valid_loss"], abs=1e-5
    )
    assert [info(tmp_path / name, "head", "1")["precomputed"] for name in ("fold-0", "fold-1")] == [True, False]
    assert info(tmp_path / "fold-0", "head", "1")["body"] == info(tmp_path / "fold-1", "head", "1")["body"]


def test_the_body_runs_once_for_all_folds_and_stages(tmp_path: Path) -> None:
    seen: list[Any] = []
    for fold in range(2):
        torch.manual_seed(0)
        trained(tmp_path / f"fold-{fold}", [head(), head("more", schedule=("constant", {"epochs": 1}))], seen=seen)
    assert [found.fresh for found in seen] == [True, False, False, False]


def test_after_a_stage_that_unfroze_the_body_its_activations_are_new(tmp_path: Path) -> None:
    seen: list[Any] = []
    trained(tmp_path / "fold-0", [head(), body_learns(), head("again")], seen=seen)
    assert [found.fresh for found in seen] == [True, True]
    assert not np.array_equal(seen[0].values, seen[1].values)
    assert info(tmp_path / "fold-0", "head", "0")["body"] != info(tmp_path / "fold-0", "again", "0")["body"]
    assert info(tmp_path / "fold-0", "all", "last")["body"] == ""


RECIPES: dict[str, list[StagePlan]] = {
    "head": [head(lr="find", range_test=RangeTest(steps=40), ema=0.7)],
    "early": [head(early_stop=1, keep=frozenset({"best", "last"}), accumulate=2, weight_decay=[0.0, 0.1])],
    "drawn": [head(draws=3, augment=("side_on", {}), lr="find", range_test=RangeTest(steps=20))],
    "between": [body_learns(), head("second", start="all"), body_learns("third", lr_decay=3.0)],
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("events", [4, 7])
def test_a_fold_stopped_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path, name: str, events: int) -> None:
    trained(tmp_path / "whole" / "fold-0", RECIPES[name])
    expected = states(tmp_path / "whole" / "fold-0")
    folder = tmp_path / "stopped" / "fold-0"
    for _ in range(200):
        if len(trained(folder, RECIPES[name], events=events)) < events:
            break
    assert states(folder) == expected
    assert not list(folder.glob("last*"))


def test_a_head_learns_from_augmented_draws_and_is_judged_by_plain_looks(tmp_path: Path) -> None:
    seen: list[Any] = []
    events = trained(tmp_path / "fold-0", [head(draws=3, augment=("side_on", {}))], seen=seen)
    assert [len(one.values) for one in seen] == [ROWS, 3 * ROWS]
    once = trained(tmp_path / "fold-1", [head()])
    ours, theirs = ([event for event in one if isinstance(event, Epoch)] for one in (events, once))
    assert [one.train_loss for one in ours] != [one.train_loss for one in theirs]
    model = toy.SplitNet()
    model.load_state_dict(snapshot_tensors(read_checkpoint(FoldPaths(tmp_path / "fold-0").snapshot("head", "1"))))
    context = toy.context(tmp_path / "fold-2", rows=ROWS)
    rows = torch.from_numpy(np.array(seen[0].values[context.valid_rows]))
    with torch.inference_mode():
        logits = model.eval().head(rows)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(context.table.targets[context.valid_rows]))
    assert ours[-1].valid_loss == pytest.approx(float(loss), abs=1e-5)


def test_a_stage_whose_epochs_are_short_does_not_write_a_resume_point_after_each(tmp_path: Path) -> None:
    events = trained(tmp_path / "fold-0", [head(schedule=("constant", {"epochs": 4}))], events=14, checkpoint_s=1000.0)
    assert sum(isinstance(event, Epoch) for event in events) >= 2
    assert not FoldPaths(tmp_path / "fold-0").last.exists()


def test_the_log_says_how_fast_body_and_head_went(tmp_path: Path) -> None:
    events = trained(tmp_path / "fold-0", [head()])
    lines = [json.loads(line) for line in FoldPaths(tmp_path / "fold-0").log.read_text().splitlines()]
    (line,) = [line for line in lines if line["event"] == "activations"]
    assert (line["rows"], line["features"]) == (ROWS, 16)
    assert line["images_per_s"] > 0
    assert any("times as fast" in event.text for event in events if isinstance(event, Note))


def test_a_smoke_run_looks_at_its_few_rows_only(tmp_path: Path) -> None:
    seen: list[Any] = []
    trained(tmp_path / "fold-0", [head(keep=frozenset({"last"}))], seen=seen, limit=2)
    assert seen == []
    assert info(tmp_path / "fold-0", "head", "last")["precomputed"] is False


def test_a_frozen_body_is_shared_by_stages_on_images_too(tmp_path: Path) -> None:
    stages = [head(), head("images", precompute=False, augment=("side_on", {}), ema=0.5)]
    models: list[Any] = []
    trained(tmp_path / "fold-0", stages, models=models)
    one, other = (info(tmp_path / "fold-0", name, "1") for name in ("head", "images"))
    assert one["body"] == other["body"]
    kept = read_checkpoint(FoldPaths(tmp_path / "fold-0").body(one["body"]))
    assert kept is not None
    body = body_state(models[0])
    assert all(torch.equal(value, body[name]) for name, value in read_tensors(kept.tensors).items())


def test_a_head_on_images_learns_what_it_learns_inside_the_model(tmp_path: Path) -> None:
    """The body runs apart, without gradients; a step that looks at the whole model is given it."""
    kinds: list[set[str]] = []

    def looking(model: Any, images: torch.Tensor, target: torch.Tensor, loss: Any) -> Any:
        kinds[-1].add(type(model).__name__)
        return loss(model(images), target)

    for number, whole in enumerate((False, True)):
        kinds.append(set())
        named = {} if not whole else {"step": Component(name="looking")}  # the registered one is given a head alone
        stage = head(precompute=False, augment=("side_on", {}), ema=0.5).with_settings(**named)
        trained(tmp_path / f"fold-{number}", [replace(stage, step=looking), body_learns()])
    assert kinds == [{"Sequential"}, {"SplitNet"}]
    ours, theirs = (
        snapshot_tensors(checkpoint)
        for number in range(2)
        if (checkpoint := read_checkpoint(FoldPaths(tmp_path / f"fold-{number}").snapshot("head", "1")))
    )
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("events", [4, 9, 14])
def test_a_head_on_images_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, events: int) -> None:
    stages = [head("images", precompute=False, augment=("side_on", {}), ema=0.5), body_learns()]
    trained(tmp_path / "whole" / "fold-0", stages)
    trained(tmp_path / "cut" / "fold-0", stages, events=events)
    trained(tmp_path / "cut" / "fold-0", stages)
    assert states(tmp_path / "cut" / "fold-0") == states(tmp_path / "whole" / "fold-0")
