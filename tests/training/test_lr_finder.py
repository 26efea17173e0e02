from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from drawn_images import ArrayImages, drawn

from kbench.config.stage import RangeTest
from kbench.data.dataset import Draw, ImageDataset, Loader, Normalise, Show, cut
from kbench.data.images.crops import centre
from kbench.errors import TrainingError
from kbench.models.layer_groups import freeze_but, layer_groups, train_mode
from kbench.training.loop import Feed
from kbench.training.lr_finder import LRCurve, find_lr, smooth, untouched_random_state
from kbench.training.optimizers import spread
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
    curve = found(toy.build(), rise=RISE.model_copy(update={"linear": True}))
    np.testing.assert_allclose(np.diff(curve.lrs), 1.0 / 40)


def test_accumulated_batches_make_one_step() -> None:
    assert len(found(toy.build(), accumulate=2).lrs) <= 40


def test_the_test_stops_where_the_loss_diverges() -> None:
    curve = found(toy.TinyNet(norm=False, dropout=0.5), rise=RangeTest(steps=60, start=1e-3, end=1e4))
    assert len(curve.lrs) < 60


def test_a_loss_that_is_not_finite_ends_the_test() -> None:
    curve = found(toy.build(), rise=RangeTest(steps=40, start=1e-3, end=1e30))
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


# -- with held-out rows, and to the end ------------------------------------------------------------------------------


def test_with_held_out_rows_their_loss_is_what_counts(tmp_path: Path) -> None:
    stage = toy.stage(lr="find", range_test=RISE.model_copy(update={"valid": True}))
    context = toy.context(tmp_path)
    model = toy.TinyNet(dropout=0.9)
    before = state(model)
    curve = range_test(context, stage, model, progress=Progress())
    assert state(model) == before
    assert len(curve.valid) == len(curve.losses) == len(curve.lrs)
    assert curve.followed == curve.valid != curve.losses
    table = pd.read_csv(context.paths.lr_find("only"))
    np.testing.assert_allclose(table["valid_loss"], curve.valid)
    np.testing.assert_allclose(table["smoothed"], smooth(curve.valid))
    plain = range_test(
        toy.context(tmp_path / "plain"), stage.with_settings(range_test=RISE), model, progress=Progress()
    )
    shared = min(len(plain.losses), len(curve.losses))
    assert plain.losses[:shared] == curve.losses[:shared]  # judging changes nothing of what is learned


def test_held_out_rows_alone_are_judged_and_in_eval_mode(tmp_path: Path) -> None:
    targets = np.arange(36) % 2
    targets[-9:] = 1  # every held-out row
    biased = toy.TinyNet(dropout=0.9)
    torch.nn.init.zeros_(biased.fc.weight)
    biased.fc.bias.data = torch.tensor([0.0, 50.0])
    context = toy.context(tmp_path, table=toy.table(36, targets=targets))
    rise = RangeTest(steps=16, start=1e-9, end=1e-8, valid=True, stop=False)
    curve = range_test(context, toy.stage(range_test=rise), biased, progress=Progress())
    assert curve.valid == pytest.approx([0.0] * 16, abs=1e-6)
    assert min(curve.losses) > 1


def test_the_early_stop_can_be_switched_off() -> None:
    rise = RangeTest(steps=60, start=1e-3, end=1e4)
    model = toy.TinyNet(norm=False, dropout=0.5)
    stopped, whole = found(model, rise=rise), found(model, rise=rise.model_copy(update={"stop": False}))
    assert len(stopped.lrs) < len(whole.lrs)
    assert whole.losses[: len(stopped.losses)] == stopped.losses


def test_a_loss_that_is_not_finite_ends_the_test_anyway() -> None:
    assert len(found(toy.build(), rise=RangeTest(steps=40, start=1e-3, end=1e30, stop=False)).lrs) < 40


def test_every_step_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    context = toy.context(tmp_path, tell=lambda *what: told.append(what))
    curve = range_test(context, toy.stage(range_test=RISE, accumulate=2), toy.build(), progress=Progress())
    assert told == [("range test of stage only", step + 1, 40) for step in range(len(curve.lrs))]
