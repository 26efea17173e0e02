"""One encoder over dates: what is not there has no weight and no influence, and the order of dates has none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kbench.errors import ConfigError
from kbench.models.layer_groups import layer_groups
from kbench.models.segmenter import smp
from kbench.models.temporal import _Attention, _Mean, temporal

BANDS, DATES = 3, 4
OPTIONS: dict[str, Any] = {
    "_backbone": "test_resnet", "_size": (64, 64), "decoder_channels": [16, 16, 8, 8, 8], "_task": "dense_regression",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def made(pool: str = "attention", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    given = {**OPTIONS, "_dates": DATES, **options}
    return temporal(2, DATES * BANDS + given.get("_undated", 0), pool=pool, **given)  # type: ignore[arg-type]


def images(batch: int = 2, *, seed: int = 1, absent: tuple[tuple[int, int], ...] = ()) -> torch.Tensor:
    """Return normalised images; `absent` names the dates (image, date) that are not there."""
    torch.manual_seed(seed)
    made = torch.randn(batch, DATES, BANDS, 64, 64)
    for image, date in absent:
        made[image, date] = 0
    return made.flatten(1, 2)


def dates(order: list[int], of: torch.Tensor) -> torch.Tensor:
    return of.unflatten(1, (DATES, BANDS))[:, order].flatten(1, 2)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_the_order_of_dates_changes_nothing(pool: str) -> None:
    model = made(pool).eval()
    batch = images()
    torch.testing.assert_close(model(dates([2, 0, 3, 1], batch)), model(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", [_Mean(), _Attention(6)])
def test_weights_sum_to_one_and_are_zero_of_what_is_not_there(pool: Any) -> None:
    torch.manual_seed(0)
    valid = torch.tensor([[True, False, True], [False, True, False]])
    there = valid.flatten().nonzero()[:, 0]
    maps = torch.randn(3, 6, 5, 5)
    weights = pool.weights(maps, valid, there)
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights.sum(1)))
    assert torch.equal(weights[~valid], torch.zeros_like(weights[~valid]))
    expected = torch.stack([(maps[:2] * weights[0, [0, 2]].unsqueeze(1)).sum(0), maps[2]])
    torch.testing.assert_close(pool(maps, valid, there), expected)


def test_the_mean_is_that_of_the_dates_that_are_there() -> None:
    model = made("mean").eval()
    batch = images(1, absent=((0, 1), (0, 3)))
    only = made("mean", _dates=2)  # of its own two dates
    only = temporal(2, 2 * BANDS, pool="mean", **{**OPTIONS, "_dates": 2}).eval()
    only.load_state_dict(model.state_dict())
    two = batch.unflatten(1, (DATES, BANDS))[:, [0, 2]].flatten(1, 2)
    torch.testing.assert_close(model(batch), only(two), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_a_masked_date_reaches_neither_the_answer_nor_batch_norm(pool: str) -> None:
    absent = ((0, 1), (1, 0), (1, 2))
    batch = images(absent=absent)
    model = made(pool).train()
    twin = copy.deepcopy(model)
    first = model(batch)
    poisoned = batch.clone()
    for image, date in absent:  # NaN is what is not known where nothing has made it 0
        poisoned[image, date * BANDS : (date + 1) * BANDS] = float("nan")
    second = twin(poisoned)
    assert bool(first.isfinite().all())
    torch.testing.assert_close(second, first)
    for (name, one), (_, two) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    first.square().mean().backward()
    assert all(weight.grad is None or bool(weight.grad.isfinite().all()) for weight in model.parameters())


def test_statistics_of_batch_norm_are_those_of_the_dates_alone() -> None:
    batch = images(absent=((0, 1), (0, 2), (1, 3)))
    model = made("mean").train()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    before = norm.running_mean.clone()
    model(batch)
    assert len(seen[0]) == 5  # of 8
    momentum = norm.momentum or 0.1
    expected = (1 - momentum) * before + momentum * seen[0].mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)


def test_one_date_is_the_network_itself() -> None:
    torch.manual_seed(0)
    plain = smp(2, BANDS, **OPTIONS).eval()
    model = temporal(2, BANDS, pool="mean", **OPTIONS).eval()
    model.load_state_dict(plain.state_dict())
    batch = torch.randn(2, BANDS, 50, 70)
    torch.testing.assert_close(model(batch), plain(batch))


def test_channels_without_a_date_are_shown_with_every_date() -> None:
    model = made("mean", _undated=1).eval()
    height = torch.randn(1, 1, 64, 64)
    batch = torch.cat([images(1, absent=((0, 1), (0, 2), (0, 3))), height], 1)
    plain = smp(2, BANDS + 1, **OPTIONS).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(batch), plain(torch.cat([batch[:, :BANDS], height], 1)), atol=1e-5, rtol=1e-5)


def test_a_window_where_there_is_nothing_has_a_finite_answer() -> None:
    assert bool(made().eval()(torch.zeros(1, DATES * BANDS, 64, 64)).isfinite().all())


@pytest.mark.parametrize("decoder", ["unetplusplus", "fpn", "linknet", "deeplabv3plus"])
def test_any_decoder_learns_from_all_dates(decoder: str) -> None:
    options = {key: value for key, value in OPTIONS.items() if key != "decoder_channels"}
    model = temporal(1, DATES * BANDS, pool="attention", decoder=decoder, **{**options, "_dates": DATES})  # type: ignore[arg-type]
    answer = model(images())
    assert answer.shape == (2, 1, 64, 64)
    answer.square().mean().backward()
    encoder = [weight for name, weight in model.named_parameters() if "encoder" in name]
    assert all(weight.grad is not None for weight in encoder)
    assert len(layer_groups(model)) == 3


@pytest.mark.parametrize(("channels", "options", "says"), [
    (13, {"_dates": 4}, "as many channels of every date"), (12, {"_dates": 4, "decoder": "dpt"}, "dpt"),
])  # fmt: skip
def test_what_cannot_be_is_refused(channels: int, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        temporal(1, channels, **{**OPTIONS, **options})
