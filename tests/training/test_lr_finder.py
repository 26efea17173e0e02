from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from pictures import ArrayImages, drawn

from kbench.data.crops import centre
from kbench.data.dataset import Draw, ImageDataset, Loader, Normalise, Show, cut
from kbench.errors import TrainingError
from kbench.models.groups import freeze_but, layer_groups, train_mode
from kbench.training.loop import Feed
from kbench.training.lr_curve import LRCurve
from kbench.training.lr_finder import find_lr, untouched_random_state
from kbench.training.optimizers import spread
from kbench.training.recipe import RangeTest
from kbench.training.resume import Progress
from kbench.training.stage import range_test
from kbench.training.update import Rules

RISE = RangeTest(steps=40, start=1e-4, end=1.0)


def feed(rows: int = 24) -> Feed:
    data = ImageDataset([ArrayImages(drawn(rows))], [Show((8, 8), centre())], np.arange(rows) % 2)
    normalise = Normalise(scale=1 / 255, mean=[0.5] * 3, std=[0.25] * 3)
    return Feed(Loader(data), normalise, toy.CPU, None, 2)


def found(
    model: torch.nn.Module, *, rise: RangeTest = RISE, decay: float = 1.0, name: str = "sgd", accumulate: int = 1
) -> LRCurve:
    stage = toy.stage(optimizer=(name, {}))
    layers = layer_groups(model)
    steps = rise.steps * accumulate
    batches = list(cut(24, 8, lambda place: Draw(place))) * (steps // 3 + 1)
    return find_lr(
        model, feed(), batches[:steps], optimizer=lambda groups, rates: stage.optimizer(groups, rates, [0.0] * 2),
        ratios=spread(1.0, decay, len(layers)), rise=rise,
        rules=Rules(step=stage.step, loss=stage.loss(None, 0), device=toy.CPU, precision="fp32"), micro_batch=8,
        accumulate=accumulate, key=(0, 0, 0),
    )  # fmt: skip


def state(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched_to_the_bit_with_batch_norm_and_dropout(name: str, training: bool) -> None:
    model = toy.build().train(training)
    before = state(model)
    assert len(found(model, name=name).lrs) > 10
    assert state(model) == before
    assert model.training == training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_an_optimiser_in_use_keeps_its_state() -> None:
    model = toy.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy(optimizer.state_dict())
    found(model)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, values in before["state"].items():
        assert all(torch.equal(value, after["state"][index][name]) for name, value in values.items())


def test_the_random_state_is_untouched_to_the_bit() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found(toy.build())
    torch.manual_seed(5)
    toy.build()
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = toy.build()
    found(model)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_state_is_restored_after_an_error_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), untouched_random_state():
        torch.rand(7) @ torch.rand(8)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_test_gives_the_same_curve() -> None:
    model = toy.build()
    assert found(model) == found(model)


def test_rates_are_those_of_the_ramp_for_the_last_group() -> None:
    curve = found(toy.build(), decay=3.0)
    assert curve.lrs[0] == pytest.approx(1e-4)
    np.testing.assert_allclose(np.diff(np.log(curve.lrs)), np.log(1e4) / 40)


def test_rates_are_those_of_the_last_group_even_if_it_is_frozen() -> None:
    model = toy.build()
    freeze_but(model, layer_groups(model), [0])
    train_mode(model)
    assert found(model, decay=10.0).lrs[0] == pytest.approx(1e-4)


def test_a_linear_ramp_rises_by_equal_steps() -> None:
    curve = found(toy.build(), rise=replace(RISE, linear=True))
    np.testing.assert_allclose(np.diff(curve.lrs), 1.0 / 40)


def test_accumulated_batches_make_one_step() -> None:
    assert len(found(toy.build(), accumulate=2).lrs) <= 40


def test_the_test_stops_where_the_loss_diverges() -> None:
    curve = found(toy.TinyNet(norm=False, dropout=0.5), rise=RangeTest(steps=60, start=1e-3, end=1e4))
    assert len(curve.lrs) < 60


def test_a_loss_that_is_not_finite_ends_the_test() -> None:
    curve = found(toy.build(), rise=RangeTest(steps=40, start=1e-3, end=1e38))
    assert len(curve.lrs) < 40


def test_a_rate_is_suggested_where_the_network_learns() -> None:
    assert 1e-3 < found(toy.TinyNet(dropout=0.0), rise=RangeTest()).suggestion < 2.0


def test_a_curve_that_helps_nobody_is_an_error(tmp_path: Path) -> None:
    stage = toy.stage(lr="find", range_test=RangeTest(steps=20, start=1e-12, end=1e-11))
    with pytest.raises(TrainingError):
        _ = range_test(toy.context(tmp_path), stage, toy.build(), progress=Progress()).suggestion


def test_the_curve_is_written_as_a_table(tmp_path: Path) -> None:
    context = toy.context(tmp_path)
    curve = range_test(context, toy.stage(lr="find", range_test=RISE), toy.build(), progress=Progress())
    table = pd.read_csv(context.paths.lr_find("only"))
    assert list(table.columns) == ["step", "lr", "loss", "smoothed"]
    np.testing.assert_allclose(table["lr"], curve.lrs)
    np.testing.assert_allclose(table["loss"], curve.losses)
