from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import toy
from drawn_images import ArrayImages, drawn

from kbench import registry
from kbench.data.dataset import Draw, ImageDataset, Loader, Normalise, Show, cut
from kbench.data.images.crops import centre
from kbench.errors import TrainingError
from kbench.models.layer_groups import freeze_but, layer_groups
from kbench.training.loop import Feed, Meter, Update, train_epoch
from kbench.training.losses.per_target import LossSum
from kbench.training.update import Learner, Rules
from kbench.training.validation import evaluate

ROWS = 20


def feed(*, mix: Any = None, targets: np.ndarray | None = None) -> Feed:
    targets = np.arange(ROWS) % 2 if targets is None else targets
    data = ImageDataset([ArrayImages(drawn(ROWS))], [Show((8, 8), centre())], targets)
    return Feed(Loader(data), Normalise(scale=1 / 255, mean=[0.5] * 3, std=[0.25] * 3), toy.CPU, mix, 2)


def learner(model: torch.nn.Module) -> Learner:
    layers = layer_groups(model)
    optimizer = registry.build("optimizer", "sgd", {}, layers, [0.1] * len(layers), [0.0] * len(layers))
    return Learner(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None, 100)


def rules(loss: str = "cross_entropy") -> Rules:
    return Rules(
        step=registry.build("step", "supervised", {}), loss=registry.build("loss", loss, {}), device=toy.CPU,
        precision="fp32",
    )  # fmt: skip


def plan(size: int = 4):
    return cut(ROWS, size, lambda place: Draw(place, (place,)))


def epoch(made: Learner, *, batches=None, first_step: int = 0, accumulate: int = 1, schedule=None, **options: Any):
    return train_epoch(
        made, options.pop("feed", feed()), plan() if batches is None else batches, rules=rules(),
        schedule=schedule or registry.build("schedule", "constant", {"epochs": 1}, 5), history=(),
        first_step=first_step, accumulate=accumulate, key=(0, 0, 0),
    )  # fmt: skip


def state(model: torch.nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def same_model() -> toy.TinyNet:
    torch.manual_seed(0)
    return toy.build()


def test_every_batch_makes_an_update() -> None:
    made = list(epoch(learner(same_model())))
    assert [update.step for update in made] == [0, 1, 2, 3, 4]
    assert sum(update.images for update in made) == ROWS
    assert all(update.seconds >= update.waited >= 0 for update in made)


def test_the_last_group_of_batches_may_be_smaller() -> None:
    made = list(epoch(learner(same_model()), accumulate=2))
    assert [update.images for update in made] == [8, 8, 4]


def test_an_epoch_in_two_parts_equals_one_in_one() -> None:
    whole, parts = learner(same_model()), learner(same_model())
    list(epoch(whole, accumulate=2))
    list(epoch(parts, batches=plan()[:2], accumulate=2))
    list(epoch(parts, batches=plan()[2:], accumulate=2, first_step=1))
    assert state(parts.model) == state(whole.model)


def test_judging_in_between_changes_nothing() -> None:
    one, other = learner(same_model()), learner(same_model())
    list(epoch(one))
    for _ in epoch(other):
        evaluate(other.model, feed(), plan(), loss=rules().loss, precision="fp32", task="single_label")
    assert state(one.model) == state(other.model)


def test_mixing_depends_on_the_step_alone() -> None:
    mix = registry.build("mix", "mixup", {})
    ends = []
    for parts in ((slice(0, 5),), (slice(0, 3), slice(3, 5))):
        made, step = learner(same_model()), 0
        for part in parts:
            step += len(list(epoch(made, batches=plan()[part], first_step=step, feed=feed(mix=mix))))
        ends.append(state(made.model))
    assert ends[0] == ends[1]


def test_the_rate_follows_the_schedule_step_by_step() -> None:
    schedule = registry.build("schedule", "one_cycle", {"epochs": 1, "momenta": (0.9, 0.5)}, 5)
    made = learner(same_model())
    for update in epoch(made, schedule=schedule):
        assert update.rate == schedule.rate(update.step, 0.1, ())
        assert made.optimizer.param_groups[0]["momentum"] == schedule.momentum(update.step)


def test_frozen_groups_do_not_change_while_an_epoch_is_trained() -> None:
    model = same_model()
    freeze_but(model, layer_groups(model), [1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(epoch(learner(model)))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_an_epoch_given_up_in_the_middle_changes_no_more() -> None:
    made = learner(same_model())
    running = epoch(made)
    next(running)
    after = state(made.model)
    running.close()
    assert state(made.model) == after


# -- judging -------------------------------------------------------------------------------------------------------


def test_a_model_is_judged_in_the_order_of_the_plan_in_eval_mode() -> None:
    model = same_model()
    loss, values = evaluate(model, feed(), plan(7), loss=rules().loss, precision="fp32", task="single_label")
    again, one_by_one = evaluate(model, feed(), plan(1), loss=rules().loss, precision="fp32", task="single_label")
    assert values.shape == (ROWS, 2)
    np.testing.assert_allclose(values, one_by_one, atol=1e-6)
    assert loss == pytest.approx(again, rel=1e-5)
    expected = -np.log(values[np.arange(ROWS), np.arange(ROWS) % 2]).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_validation_loss_is_a_mean_over_valid_targets() -> None:
    targets = np.zeros((ROWS, 2), dtype=np.float32)
    targets[:, 1] = np.nan
    targets[:15, 0] = np.nan
    model = same_model()
    loss, values = evaluate(model, feed(targets=targets), plan(4), loss=rules("bce").loss, precision="fp32",
                            task="multi_label")  # fmt: skip
    assert loss == pytest.approx(-np.log(1 - values[15:, 0]).mean(), rel=1e-4)


def test_judging_leaves_the_model_alone() -> None:
    model = same_model()
    before = state(model)
    evaluate(model, feed(), plan(), loss=rules().loss, precision="fp32", task="single_label")
    assert state(model) == before


def test_a_model_that_is_short_of_memory_is_judged_in_parts() -> None:
    model = same_model()
    expected, whole = evaluate(model, feed(), plan(20), loss=rules().loss, precision="fp32", task="single_label")
    forward = model.forward

    def hungry(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    model.forward = hungry
    loss, values = evaluate(model, feed(), plan(20), loss=rules().loss, precision="fp32", task="single_label")
    np.testing.assert_allclose(values, whole, atol=1e-6)
    assert loss == pytest.approx(expected, rel=1e-5)


# -- the meter -----------------------------------------------------------------------------------------------------


def update(step: int, total: float, count: float = 4.0) -> Update:
    return Update(step, 0.125, 4, LossSum(torch.tensor(total), torch.tensor(count)), 0.5, 1.0)


def test_the_epochs_loss_weighs_updates_by_their_valid_targets() -> None:
    meter = Meter()
    for step, (total, count) in enumerate([(8.0, 4.0), (1.0, 1.0), (0.0, 0.0)]):
        meter.add(update(step, total, count))
    assert meter.loss == pytest.approx(9 / 5)
    assert (meter.images, meter.waited, meter.seconds) == (12, 1.5, 3.0)


def test_an_epoch_without_valid_targets_has_a_loss_of_nothing() -> None:
    assert Meter().loss == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error_with_step_and_rate(value: float) -> None:
    meter = Meter()
    meter.add(update(0, 1.0))
    with pytest.raises(TrainingError, match=r"step 7, at a learning rate of 0\.125") as caught:
        meter.add(update(7, value))
    assert caught.value.todo


def test_a_meter_goes_on_from_the_sums_of_an_earlier_part() -> None:
    whole, first = Meter(), Meter()
    losses = [1 / 3, 2 / 7, 0.1, 5.5]
    for step, total in enumerate(losses):
        whole.add(update(step, total))
    for step, total in enumerate(losses[:2]):
        first.add(update(step, total))
    second = Meter(first.total, first.count, first.images)
    for step, total in enumerate(losses[2:]):
        second.add(update(step, total))
    assert (second.total, second.count, second.images) == (whole.total, whole.count, whole.images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine")
def test_losses_are_read_from_an_accelerator_only_now_and_then() -> None:
    meter = Meter()
    for step in range(49):
        meter.add(Update(step, 0.1, 4, LossSum(torch.ones((), device="cuda"), torch.ones((), device="cuda")), 0, 1))
    assert meter.total == 0
    assert meter.loss == 1
    assert meter.total == 49
