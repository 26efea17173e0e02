"""A fold on several ranks against the same fold on one: the same numbers but for the order of sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from several_ranks import on_ranks

from kbench.config.stage import Average, RangeTest
from kbench.errors import Diverged
from kbench.metrics.metric import make_metric
from kbench.models.checkpoint import Tensors, read_checkpoint, read_tensors
from kbench.training.fold import begin, state_of, train_fold
from kbench.training.loop import Update
from kbench.training.ranks import ALONE, Ranks
from kbench.training.resume import load_resume
from kbench.training.stage_plan import StagePlan
from kbench.workspace import FoldPaths

TRAINING = toy.IDENTITY["training"]
SAME = 1e-5  # relative
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_disk"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def session(
    folder: Path,
    stages: Sequence[StagePlan],
    ranks: Ranks = ALONE,
    *,
    norm: bool = False,
    pictures: Path | None = None,
    updates: int | None = None,
    rows: int = 29,
) -> int:
    """Train a fold as one of its ranks, or until it has made some updates; return how many there were."""
    paths = FoldPaths(folder)
    if ranks.first:
        paths.root.mkdir(parents=True, exist_ok=True)
    resumed = begin(paths, training=TRAINING, ranks=ranks)
    lines = resumed[0].log_lines if resumed else 0
    context = toy.context(folder, lines=lines, ranks=ranks, checkpoint_s=0.0, rows=rows)
    build: Callable[[], torch.nn.Module] = partial(toy.TinyNet, norm=norm, dropout=0.0)
    if pictures is not None:
        context, build = toy.with_activations(context, pictures, rows=rows), split
    running = train_fold(context, stages, build, resumed=resumed)
    count = 0
    for event in running:
        count += isinstance(event, Update)
        if count == updates:
            running.close()
            break
    return count


def split() -> toy.SplitNet:
    """Return a network of a body and a head, without dropout."""
    model = toy.SplitNet()
    model.head[1] = torch.nn.Identity()
    return model


def on(folder: Path, count: int, stages: Sequence[StagePlan], **how: Any) -> None:
    """Train a fold on so many ranks; one is this process."""
    if count == 1:
        session(folder, stages, **how)
        return
    number = len(list(folder.parent.glob(f"{folder.name}-ranks-*")))
    work: Callable[[Ranks], int] = lambda ranks: session(folder, stages, ranks, **how)  # noqa: E731
    on_ranks(folder.parent / f"{folder.name}-ranks-{number}", count, work)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in FoldPaths(folder).log.read_text().splitlines()]


def assert_alike(folder: Path, expected: Path, *, same: float = SAME) -> None:
    """Hold everything a fold leaves against that of another one."""
    one, other = log_of(folder), log_of(expected)
    assert [(line["event"], line.get("stage"), line.get("epoch")) for line in one] == [
        (line["event"], line.get("stage"), line.get("epoch")) for line in other
    ]
    for line, right in zip(one, other, strict=True):
        if line["event"] == "epoch":
            for key in ("step", "best", "lr", "train_loss", "valid_loss", "score"):
                assert line[key] == pytest.approx(right[key], rel=same, abs=1e-9), (key, line)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in expected.iterdir()}
    weights = list(FoldPaths(expected).snapshots())
    assert weights
    for path in weights:
        ours, theirs = read_checkpoint(folder / path.name), read_checkpoint(path)
        assert ours is not None
        assert theirs is not None
        tensors, right_tensors = read_tensors(ours.tensors), read_tensors(theirs.tensors)
        for name, tensor in right_tensors.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=10 * same, atol=10 * same, msg=f"{path.name} {name}")
    assert state_of(FoldPaths(folder), training=TRAINING)["state"] == "done"


def end_of(folder: Path) -> Tensors:
    """Return the weights of a fold's last snapshot."""
    checkpoint = read_checkpoint(FoldPaths(folder).snapshot("only", "last"))
    assert checkpoint is not None
    return read_tensors(checkpoint.tensors)


def everything() -> list[StagePlan]:
    """Two stages with mixing, accumulated batches, clipped gradients, averages, momentum and augmentation."""
    head = toy.stage(
        "head", groups="head", schedule=("constant", {"epochs": 1}), optimizer=("adamw", {}), lr=0.01, batch_size=7,
        augment=("side_on", {}), mix=("cutmix", {}), keep=frozenset(),
    )  # fmt: skip
    whole = toy.stage(
        "all", index=1, schedule=("sgdr", {"cycles": 2, "cycle_len": 1}), optimizer=("sgd", {"momentum": 0.9}),
        lr_decay=3.0, weight_decay=0.01, augment=("top_down", {}), mix=("mixup", {}), ema=0.8, accumulate=2,
        batch_size=5, clip=0.1, keep=frozenset({"cycles", "best"}), monitor=make_metric("accuracy"),
    )  # fmt: skip
    return [head, whole]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fold of `everything`, trained on one device without a break."""
    folder = tmp_path_factory.mktemp("alone") / "fold"
    on(folder, 1, everything())
    return folder


def test_two_devices_train_as_one(tmp_path: Path, alone: Path) -> None:
    on(tmp_path / "fold", 2, everything())
    assert_alike(tmp_path / "fold", alone)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_fold_goes_on_with_another_number_of_devices(tmp_path: Path, alone: Path, first: int, then: int) -> None:
    stages = everything()
    on(tmp_path / "fold", first, stages, updates=5)  # in the middle of the second stage's first epoch
    resumed = load_resume(FoldPaths(tmp_path / "fold"), training=TRAINING)
    assert resumed is not None
    assert (resumed[0].stage, resumed[0].epoch, resumed[0].batch > 0) == (1, 0, True)
    on(tmp_path / "fold", then, stages)
    assert_alike(tmp_path / "fold", alone)


def test_batch_norm_of_the_whole_batch_and_a_device_without_a_row(tmp_path: Path) -> None:
    """22 rows in batches of 4 leave 2 rows for 3 devices; the mean of weights has its statistics measured anew."""
    stages = [toy.stage(
        batch_size=4, batch_norm="sync", keep=frozenset({"last", "average"}), average=Average(of="epochs"), lr=0.02,
    )]  # fmt: skip
    on(tmp_path / "one", 1, stages, norm=True)
    on(tmp_path / "three", 3, stages, norm=True)
    assert_alike(tmp_path / "three", tmp_path / "one", same=3e-5)


def test_batch_norm_of_each_device_is_averaged_and_a_fold_goes_on_bit_for_bit(tmp_path: Path) -> None:
    stages = [toy.stage(batch_size=4, keep=frozenset({"last", "average"}), average=Average(of="epochs"), lr=0.02)]
    on(tmp_path / "whole", 3, stages, norm=True)
    on(tmp_path / "broken", 3, stages, norm=True, updates=4)
    on(tmp_path / "broken", 3, stages, norm=True)
    on(tmp_path / "one", 1, stages, norm=True)
    assert_alike(tmp_path / "broken", tmp_path / "whole", same=0.0)
    end = {name: end_of(tmp_path / name) for name in ("whole", "broken", "one")}
    assert all(torch.equal(end["whole"][name], end["broken"][name]) for name in end["whole"])
    assert end["whole"]["norm.num_batches_tracked"] == end["one"]["norm.num_batches_tracked"] == 12
    assert not torch.allclose(end["whole"]["norm.running_var"], end["one"]["norm.running_var"], rtol=1e-4)
    torch.testing.assert_close(end["whole"]["norm.running_mean"], end["one"]["norm.running_mean"], rtol=0.2, atol=0.05)


def test_the_rate_and_the_end_are_what_one_device_finds(tmp_path: Path) -> None:
    stages = [toy.stage(
        lr="find", range_test=RangeTest(steps=60, valid=True), batch_size=8, early_stop=1, keep=frozenset({"best"}),
        schedule=("plateau", {"epochs": 5, "patience": 0, "factor": 0.5}), monitor=make_metric("accuracy"),
    )]  # fmt: skip
    for name, count in (("one", 1), ("two", 2)):
        on(tmp_path / name, count, stages)
    curves = [pd.read_csv(FoldPaths(tmp_path / name).lr_find("only")) for name in ("one", "two")]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4, atol=1e-6)
    plans = [json.loads(FoldPaths(tmp_path / name).plan.read_text()) for name in ("one", "two")]
    assert plans[0]["lr/only"] == plans[1]["lr/only"]
    assert plans[0]["end/only"]["epochs"] < 5
    assert_alike(tmp_path / "two", tmp_path / "one", same=1e-4)


@pytest.mark.parametrize("precompute", [True, False])
def test_a_head_on_a_frozen_body_is_that_of_one_device(tmp_path: Path, precompute: bool) -> None:
    own: dict[str, Any] = {"draws": 2} if precompute else {"mix": ("mixup", {})}
    stages = [toy.stage(
        groups="head", precompute=precompute, batch_norm="sync", batch_size=6, augment=("side_on", {}), **own,
    )]  # fmt: skip
    for name, count in (("one", 1), ("two", 2)):
        on(tmp_path / name, count, stages, pictures=tmp_path / f"{name}-files")
    assert_alike(tmp_path / "two", tmp_path / "one", same=3e-5)


def _diverges(folder: Path, ranks: Ranks) -> str:
    try:
        session(folder, [toy.stage(lr=1e30, optimizer=("sgd", {"momentum": 0.0}))], ranks)
    except Diverged as error:
        return error.what
    return ""


def test_a_loss_that_is_not_finite_ends_the_fold_on_every_device(tmp_path: Path) -> None:
    said = on_ranks(tmp_path / "ranks", 2, partial(_diverges, tmp_path / "fold"))
    assert said[0] == said[1] != ""
    state = state_of(FoldPaths(tmp_path / "fold"), training=TRAINING)
    assert (state["state"], state["error"]) == ("failed", said[0])
