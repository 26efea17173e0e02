"""A batch of one image trains: batch norm that sees one value per channel uses its kept statistics, and it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from torch import nn

from kbench.config.stage import RangeTest
from kbench.errors import TrainingError
from kbench.training.events import Event, Note
from kbench.training.fold import train_fold
from kbench.training.lone_image import lone_image
from kbench.training.resume import Progress
from kbench.training.stage import range_test

pytestmark = pytest.mark.usefixtures("quick_disk")


class SmallMaps(nn.Module):
    """A body whose last maps are one pixel, and a head without batch norm: `norm` sees one value of a lone image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.layer_prefixes = [["conv.", "norm."], ["fc."]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.norm(self.conv(images)).flatten(1))
        return logits


class NoStatistics(SmallMaps):
    """The same, with batch norm that keeps no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


def trained(folder: Path, *, build: Any = toy.SplitNet, context: Any = None, **changes: Any) -> list[Event]:
    fold = toy.context(folder) if context is None else context
    torch.manual_seed(0)
    return list(train_fold(fold, [toy.stage(**changes)], build, resumed=None))


def said(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and "one image" in event.text]


def some_rows(folder: Path, count: int) -> Any:
    return replace(toy.context(folder), train_rows=np.arange(count))


@pytest.mark.parametrize("changes", [
    {"batch_size": 1}, {"batch_size": 1, "accumulate": 3}, {"batch_size": 1, "groups": "head"},
    {"batch_size": 1, "ema": 0.9}, {"batch_size": 1, "keep": frozenset({"average"})},
    {"batch_size": 1, "mix": ("mixup", {})},
], ids=str)  # fmt: skip
def test_batches_of_one_image_train_and_are_said_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The trial `batch-of-one`: a head whose batch norm sees one value per channel."""
    (text,) = said(trained(tmp_path, **changes))
    assert "kept statistics" in text
    assert "`batch_size` of 2 or more" in text


@pytest.mark.parametrize(("rows", "lone"), [(1, True), (2, False), (9, False), (4, False)])
def test_a_fold_of_one_row_is_a_batch_of_one(tmp_path: Path, rows: int, lone: bool) -> None:
    assert bool(said(trained(tmp_path, context=some_rows(tmp_path, rows)))) == lone


def test_maps_of_one_pixel_are_one_value_too(tmp_path: Path) -> None:
    (text,) = said(trained(tmp_path, build=SmallMaps, batch_size=1))
    assert "'norm'" in text


def test_a_smoke_run_of_one_image(tmp_path: Path) -> None:
    assert said(trained(tmp_path, context=replace(toy.context(tmp_path), limit=1), batch_size=1))


def test_activations_of_one_row(tmp_path: Path) -> None:
    fold = toy.with_activations(toy.context(tmp_path / "fold"), tmp_path, rows=36)
    assert said(trained(tmp_path, context=fold, batch_size=1, groups="head", precompute=True))


def test_a_range_test_of_batches_of_one(tmp_path: Path) -> None:
    stage = toy.stage(batch_size=1, lr="find", range_test=RangeTest(steps=20, start=1e-4, end=1.0))
    curve = range_test(toy.context(tmp_path), stage, toy.SplitNet(), progress=Progress())
    assert len(curve.losses) > 10
    assert np.isfinite(curve.losses[:10]).all()


def test_batch_norm_without_statistics_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batch norm cannot learn from one image") as caught:
        trained(tmp_path, build=NoStatistics, batch_size=1)
    assert "batch_size: 2" in caught.value.todo


def test_norms_that_see_a_map_measure_it_as_they_always_did() -> None:
    model = toy.SplitNet().train()
    before = model.norm.running_mean.clone()
    images = torch.rand(1, 3, 8, 8)
    with lone_image(model, images) as names:
        model(images)
    assert names == ["head.0"]
    assert not torch.equal(model.norm.running_mean, before)
    assert model.head[0].num_batches_tracked == 0
    assert model.training
    assert model.head[0].training


def test_two_images_are_left_alone() -> None:
    model = toy.SplitNet().train()
    with lone_image(model, torch.rand(2, 3, 8, 8)) as names:
        model(torch.rand(2, 3, 8, 8))
    assert names == []
    assert model.head[0].num_batches_tracked == 1


def test_a_frozen_norm_stays_in_eval_mode() -> None:
    model = toy.SplitNet().train()
    model.head[0].eval()
    with lone_image(model, torch.rand(1, 3, 8, 8)) as names:
        model(torch.rand(1, 3, 8, 8))
    assert names == []
    assert not model.head[0].training
