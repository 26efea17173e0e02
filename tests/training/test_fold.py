from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from drawn_images import ArrayImages, drawn

from kbench import registry
from kbench.data import seeds
from kbench.errors import CheckpointError, ConfigError, Diverged, TrainingError
from kbench.metrics.metric import make_metric
from kbench.models.checkpoint import read_checkpoint, read_tensors
from kbench.runs.fold_job import full_stages
from kbench.training.events import Epoch, Event, Note
from kbench.training.fold import begin, clear, mark, state_of, train_fold
from kbench.training.fold_context import FoldContext, Plan
from kbench.training.loop import Update
from kbench.training.lr_finder import LRCurve
from kbench.training.stage_plan import StagePlan, for_full, with_limit
from kbench.workspace import FoldPaths, RunPaths

TRAINING = toy.IDENTITY["training"]
TWO = ("constant", {"epochs": 2})


pytestmark = pytest.mark.usefixtures("quick_disk")


class Trained:
    """A fold trained to its end, with the model and its state after every update."""

    def __init__(self, folder: Path, stages: Sequence[StagePlan], **changes: Any) -> None:
        self.context: FoldContext = toy.context(folder, **changes)
        self.models: list[toy.TinyNet] = []
        self.starts: list[dict[str, torch.Tensor]] = []
        self.events: list[Event] = []
        self.states: list[dict[str, torch.Tensor]] = []
        for event in train_fold(self.context, stages, self._build, resumed=None):
            self.events.append(event)
            if isinstance(event, Update):
                self.states.append({name: value.clone() for name, value in self.models[-1].state_dict().items()})

    def _build(self) -> toy.TinyNet:
        self.models.append(toy.build())
        self.starts.append({name: value.clone() for name, value in self.models[-1].state_dict().items()})
        return self.models[-1]

    @property
    def epochs(self) -> list[Epoch]:
        return [event for event in self.events if isinstance(event, Epoch)]

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.context.paths.log.read_text().splitlines()]

    def tags(self) -> list[str]:
        return [path.stem.removeprefix("snapshot-") for path in self.context.paths.snapshots()]

    def info(self, stage: str, tag: str) -> dict[str, Any]:
        found = read_checkpoint(self.context.paths.snapshot(stage, tag))
        assert found is not None
        return found.info

    def weights(self, stage: str, tag: str) -> dict[str, torch.Tensor]:
        found = read_checkpoint(self.context.paths.snapshot(stage, tag))
        assert found is not None
        return read_tensors(found.tensors)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def still(name: str, index: int, **changes: Any) -> StagePlan:
    """A stage that changes nothing: what it keeps is what it started from."""
    return toy.stage(name, index=index, groups="head", lr=0.0, schedule=("constant", {"epochs": 1}), **changes)


# -- what is kept --------------------------------------------------------------------------------------------------


def test_a_cycles_snapshot_is_the_state_after_its_last_update(tmp_path: Path) -> None:
    stage = toy.stage(schedule=("sgdr", {"cycles": 2, "cycle_len": 1, "cycle_mult": 2}), keep=frozenset({"cycles"}))
    fold = Trained(tmp_path, [stage])
    per_epoch = len(fold.states) // 3
    assert fold.tags() == ["only-0", "only-1"]
    assert_equal(fold.weights("only", "0"), fold.states[per_epoch - 1])
    assert_equal(fold.weights("only", "1"), fold.states[3 * per_epoch - 1])
    assert [fold.info("only", tag)["step"] for tag in "01"] == [per_epoch, 3 * per_epoch]


def test_with_a_moving_average_the_average_is_kept_and_handed_on(tmp_path: Path) -> None:
    stages = [toy.stage("first", ema=0.7, keep=frozenset({"cycles"})), still("second", 1)]
    fold = Trained(tmp_path, stages)
    average = fold.starts[0]
    for state in fold.states[: fold.info("first", "0")["step"]]:
        for name, value in state.items():
            average[name] = 0.7 * average[name] + 0.3 * value if value.is_floating_point() else value
    kept = fold.weights("first", "0")
    for name, value in average.items():
        torch.testing.assert_close(kept[name], value, atol=1e-6, rtol=1e-5)
    assert_equal(fold.weights("second", "last"), kept)


def test_the_best_epoch_is_kept_and_rewritten_when_a_later_one_is_better(tmp_path: Path) -> None:
    fold = Trained(tmp_path, [toy.stage(schedule=("constant", {"epochs": 5}), keep=frozenset({"best"}), lr=0.2)])
    best = int(np.argmin([epoch.valid_loss for epoch in fold.epochs]))
    assert fold.info("only", "best")["epoch"] == best
    assert [epoch.epoch for epoch in fold.epochs if epoch.best][-1] == best
    per_epoch = len(fold.states) // 5
    assert_equal(fold.weights("only", "best"), fold.states[(best + 1) * per_epoch - 1])


def test_a_better_score_by_less_than_min_delta_is_not_better(tmp_path: Path) -> None:
    fold = Trained(tmp_path, [toy.stage(min_delta=100.0, keep=frozenset({"best"}))])
    assert [epoch.best for epoch in fold.epochs] == [True, False]


def test_the_metric_decides_what_is_best_in_its_own_direction(tmp_path: Path) -> None:
    stage = toy.stage(schedule=("constant", {"epochs": 5}), monitor=make_metric("accuracy"), keep=frozenset({"best"}))
    fold = Trained(tmp_path, [stage])
    scores = [epoch.score for epoch in fold.epochs]
    ranked = [(epoch.score, -epoch.valid_loss) for epoch in fold.epochs]  # equal scores are told apart by their loss
    assert fold.info("only", "best")["epoch"] == ranked.index(max(ranked))
    assert fold.info("only", "best")["monitor"] == "accuracy"
    assert fold.context.plan.get("end/only")["history"] == scores


@pytest.mark.parametrize(("keep", "tags"), [
    ({"last"}, ["only-last"]), ({"cycles", "last"}, ["only-0"]), ({"cycles"}, ["only-0"]), (set(), []),
    ({"best", "last"}, ["only-best", "only-last"]),
])  # fmt: skip
def test_a_state_is_kept_under_one_name(tmp_path: Path, keep: set[str], tags: list[str]) -> None:
    assert Trained(tmp_path, [toy.stage(keep=frozenset(keep))]).tags() == tags


def test_a_snapshot_says_what_it_is(tmp_path: Path) -> None:
    info = Trained(tmp_path, [toy.stage()]).info("only", "last")
    assert {key: info[key] for key in ("fold", "stage", "tag", "epoch", "kept", "subset", "size", "precision")} == {
        "fold": 0, "stage": "only", "tag": "last", "epoch": 1, "kept": True, "subset": "fold", "size": [8, 8],
        "precision": "fp32",
    }  # fmt: skip
    assert {key: info[key] for key in toy.IDENTITY} == toy.IDENTITY
    assert info["scale"] == {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3, "dtype": ""}
    assert info["names"] == ["left", "right"]


# -- stopping early ------------------------------------------------------------------------------------------------


def stopping(**changes: Any) -> StagePlan:
    return toy.stage(
        "first", schedule=("constant", {"epochs": 40}), lr=1.0, early_stop=2, keep=frozenset(), batch_size=9, **changes
    )  # fmt: skip


@pytest.mark.parametrize("ema", [None, 0.3])
def test_a_stage_that_stops_early_hands_over_its_best_weights(tmp_path: Path, ema: float | None) -> None:
    fold = Trained(tmp_path, [stopping(ema=ema), still("second", 1)])
    judged = [epoch.valid_loss for epoch in fold.epochs if epoch.stage == "first"]
    best = int(np.argmin(judged))
    assert len(judged) == best + 3 < 40
    assert fold.info("first", "best")["epoch"] == best
    assert not fold.info("first", "best")["kept"]
    assert_equal(fold.weights("second", "last"), fold.weights("first", "best"))


def test_a_stage_may_run_to_its_end_and_still_hands_over_its_best_weights(tmp_path: Path) -> None:
    fold = Trained(tmp_path, [stopping().with_settings(early_stop=100), still("second", 1)])
    assert len([epoch for epoch in fold.epochs if epoch.stage == "first"]) == 40
    assert_equal(fold.weights("second", "last"), fold.weights("first", "best"))


def test_where_the_stage_ended_is_written_into_the_plan(tmp_path: Path) -> None:
    fold = Trained(tmp_path, [stopping()])
    end = fold.context.plan.get("end/first")
    assert end["epochs"] == len(fold.epochs)
    assert end["best_epoch"] == int(np.argmax(end["history"]))


# -- where a stage starts ------------------------------------------------------------------------------------------


def test_a_stage_goes_on_from_the_one_before(tmp_path: Path) -> None:
    fold = Trained(tmp_path, [toy.stage("first", schedule=TWO), still("second", 1)])
    assert_equal(fold.weights("second", "last"), fold.weights("first", "last"))


def test_a_fresh_stage_begins_with_other_weights_of_the_same_seed(tmp_path: Path) -> None:
    stages = [toy.stage("first"), still("second", 1, start="fresh")]
    fold, again = Trained(tmp_path / "a", stages), Trained(tmp_path / "b", stages)
    assert len(fold.models) == 2
    fresh = fold.weights("second", "last")
    assert not torch.equal(fresh["fc.weight"], fold.weights("first", "last")["fc.weight"])
    assert_equal(again.weights("second", "last"), fresh)


def test_the_first_stage_is_fresh_anyway(tmp_path: Path) -> None:
    one, other = Trained(tmp_path / "a", [toy.stage(start="fresh")]), Trained(tmp_path / "b", [toy.stage()])
    assert_equal(one.weights("only", "last"), other.weights("only", "last"))


def test_a_stage_may_start_from_an_earlier_one_by_name(tmp_path: Path) -> None:
    stages = [toy.stage("first"), toy.stage("second", index=1), still("third", 2, start="first")]
    fold = Trained(tmp_path, stages)
    assert_equal(fold.weights("third", "last"), fold.weights("first", "last"))


def test_a_warm_start_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="stage second starts from stage first") as caught:
        Trained(tmp_path, [still("second", 0, start="first")])
    assert "--force" in caught.value.todo


def test_layer_groups_that_were_frozen_learn_again_in_the_next_stage(tmp_path: Path) -> None:
    fold = Trained(tmp_path, [toy.stage("head", groups="head"), toy.stage("all", index=1)])
    per_stage = len(fold.states) // 2
    assert torch.equal(fold.states[0]["conv.weight"], fold.states[per_stage - 1]["conv.weight"])
    assert torch.equal(fold.states[0]["norm.running_mean"], fold.states[per_stage - 1]["norm.running_mean"])
    assert not torch.equal(fold.states[per_stage]["conv.weight"], fold.states[0]["conv.weight"])
    assert not torch.equal(fold.states[per_stage]["norm.running_mean"], fold.states[0]["norm.running_mean"])


# -- rates ---------------------------------------------------------------------------------------------------------


def rates(fold: Trained) -> list[float]:
    return fold.log[0]["lr"]


def test_earlier_groups_learn_slower(tmp_path: Path) -> None:
    assert rates(Trained(tmp_path, [toy.stage(lr=0.09, lr_decay=3.0)])) == pytest.approx([0.03, 0.09])


def test_rates_may_be_given_per_group_and_must_be_as_many(tmp_path: Path) -> None:
    assert rates(Trained(tmp_path / "a", [toy.stage(lr=[0.01, 0.02])])) == [0.01, 0.02]
    with pytest.raises(ConfigError, match="lr has 3 values"):
        Trained(tmp_path / "b", [toy.stage(lr=[0.01, 0.02, 0.03])])


def test_a_found_rate_is_written_down_and_found_only_once(tmp_path: Path) -> None:
    stage = toy.stage(lr="find", augment=("basic", {}))
    fold = Trained(tmp_path, [stage])
    found = fold.context.plan.get("lr/only")
    assert rates(fold) == [found, found]
    (tmp_path / "lr-find-only.csv").unlink()
    Trained(tmp_path, [stage])
    assert not (tmp_path / "lr-find-only.csv").exists()


def test_a_rate_may_be_that_of_another_fold(tmp_path: Path) -> None:
    paths = FoldPaths(tmp_path / "fold-0")
    stage = toy.stage(lr="find", lr_from_fold=0)

    def plan_of(fold: int) -> Plan:
        return Plan(FoldPaths(tmp_path / f"fold-{fold}"), training=TRAINING)

    with pytest.raises(ConfigError, match="fold 0 has not found a rate"):
        Trained(tmp_path / "fold-1", [stage], fold=1, plan_of=plan_of)
    Plan(paths, training=TRAINING).set("lr/only", 0.0625)
    assert rates(Trained(tmp_path / "fold-1", [stage], fold=1, plan_of=plan_of)) == [0.0625] * 2


# -- all rows ------------------------------------------------------------------------------------------------------


def test_a_rate_another_fold_read_off_a_level_stretch_is_said(tmp_path: Path) -> None:
    plan = Plan(FoldPaths(tmp_path / "fold-0"), training=TRAINING)
    plan.set("lr/only", 0.0625)
    plan.set("level/only", True)
    stage = toy.stage(lr="find", lr_from_fold=0)
    fold = Trained(tmp_path / "fold-1", [stage], fold=1, plan_of=lambda number: plan)
    said = [event.text for event in fold.events if isinstance(event, Note) and "clearly fall" in event.text]
    assert len(said) == 1
    assert "0.0625" in said[0]
    assert fold.context.plan.get("level/only") is True


def test_a_level_range_test_is_said_when_its_fold_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lrs = np.geomspace(1e-5, 10, 60)
    losses = 0.05 + 0.1 * np.maximum(lrs / 0.1 - 1, 0)  # of a trained network: level up to 0.1
    curve = LRCurve(tuple(lrs), tuple(losses))
    monkeypatch.setattr("kbench.training.stage.find_lr", lambda *given, **named: curve)
    fold = Trained(tmp_path, [toy.stage(lr="find")])
    (said,) = [event.text for event in fold.events if isinstance(event, Note) and "clearly fall" in event.text]
    assert f"{curve.suggestion:.3g}" in said
    assert fold.context.plan.get("level/only") is True
    assert 0.005 < curve.suggestion < 0.02


def test_a_stage_of_all_rows_trains_on_them_and_never_judges(tmp_path: Path) -> None:
    full_stage = toy.stage("full", index=1, subset="full", early_stop=1, monitor=make_metric("accuracy"))
    fold = Trained(tmp_path, [toy.stage("fold"), full_stage])
    assert [line["rows"] for line in fold.log if line["event"] == "stage"] == [27, 36]
    last = fold.epochs[-1]
    assert (last.valid_loss, last.score, last.best) == (None, None, False)
    assert fold.tags() == ["fold-last", "full-last"]
    assert fold.info("full", "last")["subset"] == "full"


def test_a_run_of_all_rows_never_judges_either(tmp_path: Path) -> None:
    stage = for_full(toy.stage(early_stop=1, keep=frozenset({"best"})), {"lr": 0.1})
    fold = Trained(tmp_path, [stage], fold="full", train_rows=np.arange(36), valid_rows=np.arange(0))
    assert fold.tags() == ["only-last"]
    assert all(epoch.valid_loss is None for epoch in fold.epochs)


def test_without_scores_the_end_is_kept_in_place_of_the_best() -> None:
    kept = toy.stage(keep={"best", "cycles"})
    assert kept.keep == {"best", "cycles"}
    assert kept.with_settings(subset="full").keep == for_full(kept, {"lr": 0.1}).keep == {"last", "cycles"}


def folds_found(root: Path, values: list[dict[str, Any]]) -> RunPaths:
    run = RunPaths(root)
    for fold, found in enumerate(values):
        plan = Plan(run.fold(fold), training=TRAINING)
        for key, value in found.items():
            plan.set(key, value)
        mark(run.fold(fold), "done", toy.IDENTITY)
    return run


def full(run: RunPaths, stage: StagePlan, folds: int = 3) -> StagePlan:
    trained: Any = SimpleNamespace(
        name="toy", experiment=SimpleNamespace(folds=SimpleNamespace(n=folds)),
        state=lambda fold: state_of(run.fold(fold), training=TRAINING),
        plan=lambda fold: Plan(run.fold(fold), training=TRAINING),
    )  # fmt: skip
    (made,) = full_stages(trained, Plan(run.fold("full"), training=TRAINING), [stage])
    return made


def end(best: int, history: list[float]) -> dict[str, Any]:
    return {"epochs": len(history), "best_epoch": best, "history": history}


def test_all_rows_take_the_geometric_mean_of_the_folds_rates(tmp_path: Path) -> None:
    run = folds_found(tmp_path, [{"lr/only": rate, "end/only": end(0, [1.0])} for rate in (0.01, 0.1, 1.0)])
    made = full(run, toy.stage(lr="find", lr_decay=3.0))
    assert made.stage.lr == pytest.approx(0.1)
    assert made.stage.lr_decay == 3.0
    assert made.stage.subset == "full"


def test_differential_rates_are_those_of_the_folds(tmp_path: Path) -> None:
    run = folds_found(tmp_path, [{"lr/only": 0.09, "end/only": end(0, [1.0])}] * 3)
    fold = Trained(tmp_path / "full", [full(run, toy.stage(lr="find", lr_decay=3.0))], fold="full",
                   train_rows=np.arange(36), valid_rows=np.arange(0))  # fmt: skip
    assert rates(fold) == pytest.approx([0.03, 0.09])


def test_all_rows_train_for_the_mean_best_epoch_of_folds_that_stopped_early(tmp_path: Path) -> None:
    run = folds_found(tmp_path, [{"end/only": end(best, [0.0] * (best + 3))} for best in (3, 4, 6)])
    stage = full(run, toy.stage(schedule=("constant", {"epochs": 50}), early_stop=2))
    assert stage.stop_after == round((4 + 5 + 7) / 3)
    assert stage.stage.early_stop is None
    fold = Trained(tmp_path / "full", [stage], fold="full", train_rows=np.arange(36), valid_rows=np.arange(0))
    assert len(fold.epochs) == 5


def test_a_plateaus_rate_follows_the_geometric_mean_of_the_folds(tmp_path: Path) -> None:
    histories = [[1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 3.0]]  # the first is lowered after each epoch but one
    run = folds_found(tmp_path, [{"end/only": end(0, history)} for history in histories])
    params = {"epochs": 4, "patience": 0, "factor": 0.25}
    stage = full(run, toy.stage(schedule=("plateau", params), lr=0.5), folds=2)
    assert stage.rates == pytest.approx((1.0, 1.0, 0.5, 0.25), rel=1e-6)
    fold = Trained(tmp_path / "full", [stage], fold="full", train_rows=np.arange(36), valid_rows=np.arange(0))
    assert [epoch.lr for epoch in fold.epochs] == pytest.approx([0.5 * factor for factor in stage.rates])


def test_only_folds_that_are_trained_count(tmp_path: Path) -> None:
    run = folds_found(tmp_path, [{"lr/only": rate, "end/only": end(0, [1.0])} for rate in (0.01, 0.04)])
    mark(run.fold(1), "failed", toy.IDENTITY, error="x")
    assert full(run, toy.stage(lr="find")).stage.lr == pytest.approx(0.01)


@pytest.mark.parametrize("changes", [{"lr": "find"}, {"early_stop": 3}, {"schedule": ("plateau", {"epochs": 5})}])
def test_without_a_trained_fold_there_is_no_plan_to_follow(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no fold of"):
        full(RunPaths(tmp_path), toy.stage(**changes))


def test_without_anything_to_find_no_fold_is_needed(tmp_path: Path) -> None:
    assert full(RunPaths(tmp_path), toy.stage(lr=0.3)).stage.lr == 0.3


def test_a_stage_that_was_of_all_rows_in_the_folds_has_no_best_epoch_to_follow(tmp_path: Path) -> None:
    run = folds_found(tmp_path, [{"end/only": {"epochs": 5, "best_epoch": None, "history": []}}] * 2)
    searching = toy.stage(subset="full", early_stop=2, schedule=("plateau", {"epochs": 5}))
    stage = full(run, searching, folds=2)
    assert (stage.stop_after, stage.rates) == (None, None)


# -- failure -------------------------------------------------------------------------------------------------------


def failing(folder: Path, **changes: Any) -> tuple[FoldContext, TrainingError]:
    context = toy.context(folder)
    with pytest.raises(TrainingError) as caught:
        list(train_fold(context, [toy.stage(**changes)], toy.build, resumed=None))
    return context, caught.value


def test_a_loss_that_becomes_nan_marks_the_fold_failed_with_step_and_rate(tmp_path: Path) -> None:
    context, error = failing(tmp_path, lr=1e30)
    assert re.search(r"at step [12], at a learning rate of 1e\+30", error.what)
    state = state_of(context.paths, training=TRAINING)
    assert (state["state"], state["error"]) == ("failed", error.what)
    last = json.loads(context.paths.log.read_text().splitlines()[-1])
    assert last == {"event": "failed", "what": error.what}


def test_a_validation_loss_that_is_not_finite_fails_the_fold_too(tmp_path: Path) -> None:
    _, error = failing(tmp_path, lr=1e38, batch_size=100, schedule=("constant", {"epochs": 1}))
    assert "validation loss" in error.what
    assert "step 0, at a learning rate of 1e+38" in error.what


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    def steep(model, images, target, loss):
        found = loss(model(images), target)
        return found._replace(total=found.total * 1e30)

    context, error = failing(
        tmp_path, lr=1e30, step=steep, batch_size=100, schedule=("constant", {"epochs": 1}), subset="full"
    )  # fmt: skip
    assert "weights are NaN or infinite at step 0" in error.what
    assert not context.paths.snapshots()


def test_an_error_that_may_pass_marks_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    plain = registry.build("step", "supervised", {})
    calls = iter(range(100))

    def crowded(model, images, target, loss):
        if 6 <= next(calls) < 9:  # the second epoch; no halving helps
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, images, target, loss)

    stage = toy.stage(step=crowded, batch_size=9, keep=frozenset({"last"}))
    context = toy.context(tmp_path / "one")
    with pytest.raises(TrainingError, match="single image") as caught:
        list(train_fold(context, [stage.with_settings(batch_size=1)], toy.build, resumed=None))
    assert not isinstance(caught.value, Diverged)
    assert state_of(context.paths, training=TRAINING)["state"] == "none"
    assert "run the same command again" in caught.value.todo

    tight = toy.context(tmp_path / "two", checkpoint_s=0.0)
    calls = iter(range(100))
    with pytest.raises(TrainingError):
        list(train_fold(tight, [stage.with_settings(batch_size=2)], toy.build, resumed=None))
    assert state_of(tight.paths, training=TRAINING)["state"] == "started"
    resumed = begin(tight.paths, training=TRAINING)
    assert resumed is not None
    tight = toy.context(tmp_path / "two", lines=resumed[0].log_lines)
    list(train_fold(tight, [stage.with_settings(batch_size=2)], toy.build, resumed=resumed))
    assert state_of(tight.paths, training=TRAINING)["state"] == "done"


def test_a_failed_fold_is_not_done_and_can_be_cleared(tmp_path: Path) -> None:
    context, _ = failing(tmp_path, lr=1e30)
    clear(context.paths)
    assert state_of(context.paths, training=TRAINING)["state"] == "none"
    assert begin(context.paths, training=TRAINING) is None


def test_a_smoke_run_trains_one_epoch_of_every_stage_on_a_few_batches(tmp_path: Path) -> None:
    stages = with_limit([stopping(), toy.stage("second", index=1, schedule=("constant", {"epochs": 9}), lr="find")])
    fold = Trained(tmp_path, stages, limit=2)
    assert [event.stage for event in fold.epochs] == ["first", "second"]
    assert len(fold.states) == 4
    assert fold.tags() == ["first-last", "second-last"]


class SlowAtLast(ArrayImages):
    """Images that take their time once some of them were read."""

    def __init__(self, images: Sequence[np.ndarray], quick: int) -> None:
        super().__init__(images)
        self.left = quick

    def __getitem__(self, row: int) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            time.sleep(0.02)
        return super().__getitem__(row)


def test_a_loader_that_becomes_the_bottleneck_is_told_of_once_and_logged(tmp_path: Path) -> None:
    images = SlowAtLast(drawn(12), quick=12)  # the first epoch
    step = registry.build("step", "supervised", {})

    def steady(*given: Any) -> Any:
        time.sleep(0.02)  # so that the first epoch does not wait
        return step(*given)

    stages = [toy.stage("first", schedule=("constant", {"epochs": 3}), batch_size=3, step=steady),
              toy.stage("second", index=1, batch_size=3)]  # fmt: skip
    fold = Trained(tmp_path, stages, rows=12, images=lambda resize: images)
    said = [place for place, event in enumerate(fold.events) if isinstance(event, Note) and "waiting" in event.text]
    epochs = [place for place, event in enumerate(fold.events) if isinstance(event, Epoch)]
    assert [sum(epoch < place for epoch in epochs) for place in said] == [2, 4]  # after the epoch that showed it
    logged = [line["verdict"] for line in fold.log if line["event"] == "epoch"]
    assert [text is not None for text in logged] == [False, True, False, True, False]
    assert "`loader: {workers: N}`" in logged[1]


def test_every_update_is_told_with_how_many_there_are(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    stages = [toy.stage("first", schedule=("constant", {"epochs": 3})), toy.stage("second", index=1, stop_after=1)]
    fold = Trained(tmp_path, stages, tell=lambda *what: told.append(what))
    per_epoch = len(fold.states) // 4
    expected = [(step + 1, total) for total in (3 * per_epoch, per_epoch) for step in range(total)]
    assert [(done, total) for _, done, total in told] == expected
    assert told[per_epoch][0].startswith("first 2/3  lr 5.0e-02  ")


def test_of_equal_scores_the_one_with_the_lower_loss_is_best(tmp_path: Path) -> None:
    metric = make_metric("accuracy")
    run = Trained(tmp_path, [toy.stage(schedule=("constant", {"epochs": 8}), monitor=metric, keep=frozenset({"best"}))])
    scores = [(epoch.score, -epoch.valid_loss) for epoch in run.epochs]
    best = max(range(len(scores)), key=lambda place: scores[place])
    assert len({score for score, _ in scores}) < len(scores)  # some are equal
    assert run.info("only", "best")["epoch"] == best
    assert [epoch.best for epoch in run.epochs] == [
        score == max(scores[: place + 1]) for place, score in enumerate(scores)
    ]


# -- which rows train, and what weighs them ------------------------------------------------------------------------


class Watched(ArrayImages):
    """Images that remember which of them were asked for."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        super().__init__(images)
        self.asked: list[int] = []

    def __getitem__(self, row: int) -> np.ndarray:
        self.asked.append(row)
        return super().__getitem__(row)


def rare(rows: int = 36) -> np.ndarray:
    """Classes of which the second has every sixth row."""
    return (np.arange(rows) % 6 == 0).astype(np.int64)


@pytest.mark.parametrize("sampler", [("balanced", {"epoch_size": 50}), ("oversample", {})])
def test_an_epoch_visits_the_rows_its_sampler_draws(tmp_path: Path, sampler: tuple[str, dict[str, Any]]) -> None:
    images, table = Watched(drawn(36)), toy.table(36, targets=rare())
    stage = toy.stage(sampler=sampler)
    fold = Trained(tmp_path, [stage], table=table, images=lambda resize: images)
    train = fold.context.train_rows
    draw = registry.build("sampler", *sampler, table.targets[train], len(train))
    drawn_rows = [train[draw(seeds.generator(seeds.ORDER, 0, 0, 0, epoch))] for epoch in range(2)]
    assert [row for row in images.asked if row in train] == np.concatenate(drawn_rows).tolist()
    share = rare()[np.concatenate(drawn_rows)].mean()
    assert 0.35 < share < 0.65  # 5 of 27 rows have the rare class
    assert fold.log[0]["rows"] == 27


def balance_seen(folder: Path, **changes: Any) -> tuple[FoldContext, list[tuple[list[int], int]]]:
    """Train a fold; return its context and the counts its loss was made with."""
    seen: list[tuple[list[int], int]] = []
    subset = changes.pop("subset", "fold")
    plain = toy.stage(loss=("bce" if "float" in str(changes["table"].targets.dtype) else "cross_entropy", {}))

    def loss(counts: np.ndarray, rows: int, units: Any) -> Any:
        seen.append((np.asarray(counts).tolist(), rows))
        return plain.loss(counts, rows, units)

    fold = Trained(folder, [replace(plain.with_settings(subset=subset), loss=loss)], **changes)
    return fold.context, seen


def test_classes_are_weighed_by_the_rows_that_train_alone(tmp_path: Path) -> None:
    targets = rare()
    targets[27:] = 1  # every held-out row
    table = toy.table(36, targets=targets)
    _, seen = balance_seen(tmp_path / "fold", table=table)
    assert seen == [([22, 5], 27)]
    _, seen = balance_seen(tmp_path / "all", table=table, subset="full")
    assert seen == [([22, 14], 36)]


def test_labels_are_weighed_by_the_known_ones_of_the_rows_that_train_alone(tmp_path: Path) -> None:
    targets = np.zeros((36, 2), dtype=np.float32)
    targets[:9, 0], targets[27:, 1], targets[4, 0], targets[5, 1] = 1, 1, np.nan, 1
    _, seen = balance_seen(tmp_path, table=toy.table(36, task="multi_label", targets=targets))
    assert seen == [([8.0, 1.0], 27)]


def test_pixels_are_counted_in_the_masks_of_the_rows_that_train_alone(tmp_path: Path) -> None:
    masks = [np.zeros((4, 4, 1), dtype=np.uint8) for _ in range(36)]
    masks[0][:2], masks[1][0, 0], masks[30][:] = 1, 255, 1
    table = replace(toy.table(36, task="segmentation", names=("sky", "road")), targets=None)
    context = toy.context(tmp_path, table=table, masks=lambda resize: ArrayImages(masks))
    counts, known = context.balance(context.train_rows)
    assert counts.tolist() == [27 * 16 - 9, 8]
    assert known == 27 * 16 - 1  # but for what is to be ignored
    assert context.plan.get("pixels/27") == [counts.tolist(), known]
    few, _ = replace(context, limit=2).balance(context.train_rows)
    assert few.tolist() == [8 * 16 - 9, 8]
