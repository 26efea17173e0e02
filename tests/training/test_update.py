from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy import CPU, TinyNet

from kbench import registry
from kbench.config.stage import Stage
from kbench.errors import TrainingError
from kbench.models.layer_groups import freeze_but, layer_groups, train_mode
from kbench.training.update import Learner, Rules, average_of, update

OPTIMIZERS = [("sgd", {"momentum": 0.9}), ("adamw", {}), ("adam", {})]


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3, 8, 8))).float()


def net(**options: Any) -> TinyNet:
    torch.manual_seed(1)
    return TinyNet(**{"norm": False, "dropout": 0.0, **options})


def learner(model: nn.Module, *, name: str = "sgd", params: dict[str, Any] | None = None, micro: int = 1000,
            ema: float | None = None) -> Learner:  # fmt: skip
    layers = layer_groups(model)
    rates = [0.1 if name == "sgd" else 1e-3] * len(layers)
    optimizer = registry.build("optimizer", name, params or {}, layers, rates, [0.01] * len(layers))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_mode(model)
    return Learner(model, optimizer, scaler, None if ema is None else average_of(model, ema), micro)


def rules(loss: str = "cross_entropy", params: dict[str, Any] | None = None, *, step: Any = None, **more: Any) -> Rules:
    step = step or registry.build("step", "supervised", {})
    made = registry.build("loss", loss, params or {})
    return Rules(step=step, loss=made, device=CPU, precision="fp32", stage=Stage(**more))


def cut(pictures: torch.Tensor, target: torch.Tensor, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(pictures.split(sizes), target.split(sizes), strict=True))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def after(make: Callable[[], Learner], batches, how: Rules, updates: int = 3) -> torch.Tensor:
    made = make()
    for step in range(updates):
        update(made, batches, rules=how, seed=step)
    return weights(made.model)


def classes(count: int) -> torch.Tensor:
    return torch.arange(count) % 2


def tags(count: int) -> torch.Tensor:
    target = (torch.arange(count * 2).reshape(count, 2) % 3 == 0).float()
    target[1, 0] = target[-1] = torch.nan
    return target


TARGETS = [
    ("cross_entropy", {}, classes),
    ("cross_entropy", {"class_weights": [0.2, 3.0], "label_smoothing": 0.1}, classes),
    ("cross_entropy", {"ignore_index": 0}, classes),
    ("bce", {"pos_weight": [2.0, 0.5]}, tags),
    ("focal", {}, classes),
    ("mse", {}, tags),
]


@pytest.mark.parametrize(("name", "params"), OPTIMIZERS)
@pytest.mark.parametrize(("loss", "options", "targets"), TARGETS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_batches_equal_one_large_batch(name, params, loss, options, targets, clip) -> None:
    pictures, target = images(13), targets(13)

    def trained(sizes: list[int]) -> torch.Tensor:
        how = rules(loss, options, clip=clip)
        return after(lambda: learner(net(), name=name, params=params), cut(pictures, target, sizes), how)

    large = trained([13])
    torch.testing.assert_close(trained([4, 4, 4, 1]), large, atol=1e-6, rtol=0)
    torch.testing.assert_close(trained([5, 8]), large, atol=1e-6, rtol=0)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 9))
def test_however_batches_are_cut_the_update_is_the_same(sizes: list[int], micro: int) -> None:
    count = sum(sizes)
    pictures, target = images(count), tags(max(count, 2))[:count]
    how = rules("bce")
    large = after(lambda: learner(net()), [(pictures, target)], how, 1)
    small = after(lambda: learner(net(), micro=micro), cut(pictures, target, sizes), how, 1)
    torch.testing.assert_close(small, large, atol=1e-6, rtol=0)


def test_the_loss_is_the_mean_over_valid_targets() -> None:
    pictures, target = images(6), tags(6)
    model = net()
    logits, valid = model(pictures), ~target.isnan()
    expected = nn.functional.binary_cross_entropy_with_logits(logits[valid], target[valid])
    found = update(learner(net()), cut(pictures, target, [4, 2]), rules=rules("bce"), seed=0)
    torch.testing.assert_close(found.mean(), expected.detach())
    assert int(found.count) == int(valid.sum())


def test_without_a_valid_target_nothing_is_learned() -> None:
    made = learner(net(), params={"momentum": 0.0})
    for group in made.optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = weights(made.model)
    found = update(made, [(images(3), torch.full((3, 2), torch.nan))], rules=rules("bce"), seed=0)
    assert torch.equal(weights(made.model), before)
    assert float(found.mean()) == 0


def test_a_gradient_scaler_changes_no_result_and_says_its_scale() -> None:
    batches = cut(images(6), tags(6), [4, 2])
    plain, scaled = learner(net()), learner(net())
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    assert plain.loss_scale is None
    scales = []
    for step in range(3):
        for made in (plain, scaled):
            update(made, batches, rules=rules("bce"), seed=step)
        scales.append(scaled.loss_scale)
    torch.testing.assert_close(weights(scaled.model), weights(plain.model), atol=1e-6, rtol=0)
    assert scales == [1024.0, 2048.0, 2048.0]


def test_an_update_that_overflows_is_left_out_and_lowers_the_scale() -> None:
    made = learner(net())
    made.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(made.model)
    pictures = images(4)
    pictures[0, 0, 0, 0] = torch.inf
    update(made, [(pictures, classes(4))], rules=rules(), seed=0)
    assert torch.equal(weights(made.model), before)
    assert made.loss_scale == 512.0


def test_the_scaled_loss_is_of_the_size_of_a_mean_for_pixels_too() -> None:
    seen: list[float] = []

    class Scaler(torch.amp.GradScaler):
        def scale(self, outputs: Any) -> Any:
            seen.append(float(outputs.detach()))
            return super().scale(outputs)

    model = nn.Conv2d(3, 2, 1)
    made = learner(model)
    made.scaler = Scaler("cpu", init_scale=4.0)
    target = (torch.arange(6 * 64).reshape(6, 8, 8)) % 2
    found = update(made, cut(images(6), target, [4, 2]), rules=rules(), seed=0)
    assert float(found.count) == 6 * 64
    assert sum(seen) == pytest.approx(float(found.mean()), rel=1e-5)


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    how = rules(clip=1e-3)
    made = learner(net(), params={"momentum": 0.0})
    for group in made.optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1.0, 0.0
    before = weights(made.model)
    update(made, [(100 * images(8), classes(8))], rules=how, seed=0)
    assert float((weights(made.model) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("micro", [1000, 2])
def test_dropout_depends_on_the_seed_of_the_update_alone(micro: int) -> None:
    results = []
    for noise in (0, 5):
        torch.manual_seed(noise)
        torch.rand(noise)
        made = learner(net(dropout=0.5, norm=True), micro=micro)
        update(made, [(images(8), classes(8))], rules=rules(), seed=7)
        results.append(weights(made.model))
    assert torch.equal(*results)


# -- memory runs out -----------------------------------------------------------------------------------------------


def hungry(most: int, error: type[Exception] = torch.OutOfMemoryError, text: str = "CUDA out of memory.\nmore") -> Any:
    """A step that fails above some images, after its forward pass."""

    def step(model, pictures, target, loss):
        found = loss(model(pictures), target)
        if len(pictures) > most:
            raise error(text)
        return found

    return step


@pytest.mark.parametrize(("name", "params"), OPTIMIZERS)
@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_when_memory_runs_out_the_result_is_that_of_the_large_batch(name, params, most: int, clip) -> None:
    batches = cut(images(13), classes(13), [8, 5])
    large = after(lambda: learner(net(), name=name, params=params), batches, rules(clip=clip))
    small = after(lambda: learner(net(), name=name, params=params), batches, rules(clip=clip, step=hungry(most)))
    torch.testing.assert_close(small, large, atol=1e-6, rtol=0)


def test_the_smaller_batch_is_said_logged_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    how, made = rules(step=hungry(3)), learner(net())
    with caplog.at_level(logging.WARNING):
        update(made, [(images(8), classes(8))], rules=how, seed=0)
    assert made.micro_batch == 2
    assert how.said == [
        "memory ran out: the update is repeated with 4 images at a time",
        "memory ran out: the update is repeated with 2 images at a time",
    ]
    assert [record.message for record in caplog.records] == how.said
    update(made, [(images(8), classes(8))], rules=how, seed=1)
    assert len(how.said) == 2


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_is_warned_of_where_it_learns(frozen: bool) -> None:
    how, made = rules(step=hungry(4)), learner(net(norm=True))
    if frozen:
        freeze_but(made.model, layer_groups(made.model), [1])
        train_mode(made.model)
    update(made, [(images(8), classes(8))], rules=how, seed=0)
    assert ("batch norm" in how.said[0]) == (not frozen)


def test_statistics_of_an_attempt_that_failed_are_undone() -> None:
    batches = [(images(8), classes(8))]
    failed, fresh = learner(net(norm=True)), learner(net(norm=True), micro=4)
    update(failed, batches, rules=rules(step=hungry(4)), seed=0)
    update(fresh, batches, rules=rules(), seed=0)
    for one, other in zip(failed.model.state_dict().values(), fresh.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_an_image_that_does_not_fit_alone_is_an_error_with_a_remedy() -> None:
    made = learner(net())
    with pytest.raises(TrainingError, match="single image: CUDA out of memory") as caught:
        update(made, [(images(4), classes(4))], rules=rules(step=hungry(0)), seed=0)
    assert "input.size" in caught.value.todo


def test_memory_of_a_cpu_runs_out_too() -> None:
    text = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"
    made = learner(net())
    update(made, [(images(8), classes(8))], rules=rules(step=hungry(4, RuntimeError, text)), seed=0)
    assert made.micro_batch == 4


def test_an_out_of_memory_error_without_a_text_is_handled() -> None:
    made = learner(net())
    update(made, [(images(2), classes(2))], rules=rules(step=hungry(1, torch.OutOfMemoryError, "")), seed=0)
    assert made.micro_batch == 1


def test_other_errors_of_a_step_are_not_taken_for_lack_of_memory() -> None:
    made = learner(net())
    with pytest.raises(RuntimeError, match="shapes"):
        update(made, [(images(2), classes(2))], rules=rules(step=hungry(1, RuntimeError, "shapes differ")), seed=0)
    assert made.micro_batch == 1000


@pytest.mark.parametrize(("count", "micro", "sizes"), [(9, 8, [5, 4]), (7, 3, [3, 2, 2]), (8, 8, [8]), (4, 3, [2, 2])])
def test_micro_batches_are_of_even_size(count: int, micro: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def step(model, pictures, target, loss):
        seen.append(len(pictures))
        return loss(model(pictures), target)

    update(learner(net(), micro=micro), [(images(count), classes(count))], rules=rules(step=step), seed=0)
    assert seen == sizes


# -- the moving average --------------------------------------------------------------------------------------------


def test_the_moving_average_follows_weights_and_statistics() -> None:
    made = learner(net(norm=True), ema=0.9)
    expected = copy.deepcopy(made.judged.state_dict())
    how = rules()
    for step in range(4):
        update(made, [(images(8, step), classes(8))], rules=how, seed=step)
        for name, value in made.model.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if value.is_floating_point() else value
    for name, value in made.judged.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=1e-6)
    assert int(made.judged.norm.num_batches_tracked) == 4


def test_what_is_judged_is_the_moving_average_where_there_is_one() -> None:
    assert learner(net()).judged is not None
    made = learner(net(), ema=0.9)
    assert made.averaged is not None
    assert made.judged is made.averaged.module
    assert not made.judged.training
    assert not any(parameter.requires_grad for parameter in made.judged.parameters())
    plain = learner(net())
    assert plain.judged is plain.model


def test_a_weight_used_twice_is_averaged_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(192, 2)
            self.two = self.one

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return self.one(pictures.flatten(1)) + self.two(pictures.flatten(1))

    made = learner(Tied(), ema=0.9)
    before = weights(made.model)
    update(made, [(images(4), classes(4))], rules=rules(), seed=0)
    torch.testing.assert_close(weights(made.judged), 0.9 * before + 0.1 * weights(made.model))


def test_an_average_does_not_touch_the_model() -> None:
    both = [learner(net(norm=True, dropout=0.3), ema=ema) for ema in (None, 0.5)]
    for made in both:
        for step in range(3):
            update(made, [(images(8), classes(8))], rules=rules(), seed=step)
    assert torch.equal(weights(both[0].model), weights(both[1].model))


# -- accelerators --------------------------------------------------------------------------------------------------

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine")]


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=gpu), pytest.param("bf16", marks=gpu)])
def test_half_precision_trains_like_full_precision(precision) -> None:
    device = torch.device("cuda")
    batches = [(pictures.to(device), target.to(device)) for pictures, target in cut(images(13), classes(13), [8, 5])]
    found = []
    for name in ("fp32", precision):
        made = learner(net().to(device))
        made.scaler = torch.amp.GradScaler("cuda", enabled=name == "fp16")
        how = Rules(step=rules().step, loss=rules().loss, device=device, precision=name, stage=Stage(clip=1.0))
        for step in range(5):
            update(made, batches, rules=how, seed=step)
        found.append(weights(made.model))
    torch.testing.assert_close(found[0], found[1], atol=2e-2, rtol=0)


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=gpu)])
def test_an_update_whose_gradients_overflow_is_left_out(precision) -> None:
    device = torch.device("cuda")
    made = learner(net().to(device))
    made.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    before = weights(made.model)
    how = Rules(step=rules().step, loss=rules().loss, device=device, precision=precision)
    update(made, [(images(8).to(device), classes(8).to(device))], rules=how, seed=0)
    assert torch.equal(weights(made.model), before)
    assert made.scaler.get_scale() < 2.0**60
