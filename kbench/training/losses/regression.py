"""Losses of numbers: targets [B, K, ...] in target units, NaN where unknown; and a weighted sum of any losses.

To add one of numbers, write a factory here with `@register("loss")` that gives `_regression` a function of predictions
and targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kbench import registry
from kbench.errors import ConfigError, check_number
from kbench.models.outputs import Units
from kbench.registry import register
from kbench.training.losses.per_target import Loss, LossSum, like, summed


@register("loss")
def l1() -> Loss:
    """Return absolute error, fast.ai's loss of regression; targets [B, K, ...], NaN where unknown."""
    return _regression(lambda error: error.abs())


@register("loss")
def mse() -> Loss:
    """Return squared error; targets [B, K, ...], NaN where unknown."""
    return _regression(lambda error: error.square())


@register("loss")
def huber(*, delta: float = 1.0) -> Loss:
    """Return Huber's loss: squared error / 2 up to delta, linear beyond; targets [B, K, ...], NaN where unknown.

    Args:
        delta: where it becomes linear, in target units.

    Raises:
        ConfigError: delta is not above 0.
    """
    check_number("delta", delta, "(0, inf)")
    return _regression(lambda error: F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta))


@register("loss")
def smooth_l1(*, beta: float = 1.0) -> Loss:
    """Return smooth L1, Huber's loss divided by beta; targets [B, K, ...], NaN where unknown.

    Args:
        beta: where it becomes linear, in target units; 0 is `l1`.

    Raises:
        ConfigError: beta is negative.
    """
    check_number("beta", beta, "[0, inf)")
    return _regression(lambda error: F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=beta))


@register("loss")
def rmse(*, ignore_above: float | None = None, eps: float = 1e-8, _units: Units | None = None) -> Loss:
    """Return the root of the mean squared error of each image and target, the mean of which is `rmse_per_image` (B-05).

    Targets [B, K, ...], NaN where unknown; an image without a known value of a target does not count for it.

    Args:
        ignore_above: known targets of this or more, in target units, are left out; they are not learned.
        eps: added to the mean square inside the root, whose slope at 0 has no end; in squares of what is learned.
        _units: of the targets, where they are learned standardised.

    Raises:
        ConfigError: eps is not above 0.
    """
    check_number("eps", eps, "(0, inf)")
    limit = None if ignore_above is None else torch.tensor([[float(ignore_above)]])

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        target = like(logits, target)
        valid = ~target.isnan()
        if limit is not None:
            above = limit.to(target.device)
            above = above if _units is None else _units.standardised(above.expand(1, target.shape[1]))  # [1, 1 or K]
            valid &= target < above.view(1, -1, *(1 for _ in target.shape[2:]))
        squares = (logits.float() - target).where(valid, 0).square()
        known, total = (values.reshape(*values.shape[:2], -1).sum(2) for values in (valid.float(), squares))  # [B, K]
        each = (total / known.clamp_min(1) + eps).sqrt()
        return summed(each, known > 0)

    return loss


_SSIM_WINDOW, _SSIM_SD = 11, 1.5


@register("loss")
def ssim(*, range: float, _units: Units | None = None) -> Loss:
    """Return 1 - SSIM, the mean over the windows of each image and target (Wang et al. 2004; B-18).

    Windows are Gaussian, 11 pixels wide with a standard deviation of 1.5, inside the image; an image smaller than that
    has one of its own size. A window with an unknown pixel (NaN) does not count. Biomass' second place is
    `{name: sum, parts: [l1, {name: ssim, range: 400, weight: 0.2}]}`.

    Args:
        range: from the lowest to the highest value there may be, in target units.
        _units: of the targets, where they are learned standardised.

    Raises:
        ConfigError: range is not above 0.
    """
    check_number("range", range, "(0, inf)")

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        target = like(logits, target)
        span = torch.tensor([[float(range)]]) if _units is None else range / torch.tensor([_units.std])
        valid = ~target.isnan()
        said, real, valid = (
            values.view(*values.shape[:2], 1, -1) if values.ndim < 4 else values
            for values in (logits.float(), target.where(valid, 0), valid)
        )
        kernel = _window(real.shape[-2:], real.device)
        unknown = _blurred((~valid).float(), kernel)
        mean_said, mean_real = _blurred(said, kernel), _blurred(real, kernel)
        var_said = _blurred(said.square(), kernel) - mean_said.square()
        var_real = _blurred(real.square(), kernel) - mean_real.square()
        both = _blurred(said * real, kernel) - mean_said * mean_real
        c1, c2 = ((share * span.to(real)).square().view(1, -1, 1, 1) for share in (0.01, 0.03))
        alike = (2 * mean_said * mean_real + c1) / (mean_said.square() + mean_real.square() + c1)
        alike = alike * (2 * both + c2) / (var_said + var_real + c2)
        counted = unknown <= 0
        windows = counted.flatten(2).sum(2)
        each = (1 - alike).where(counted, 0).flatten(2).sum(2) / windows.clamp_min(1)
        return summed(each, windows > 0)

    return loss


def _window(size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the weights of a window down and across, each summing to 1."""
    weights = []
    for side in size:
        count = min(_SSIM_WINDOW, side)
        places = torch.arange(count, device=device) - (count - 1) / 2
        hill = torch.exp(-places.square() / (2 * _SSIM_SD**2))
        weights.append(hill / hill.sum())
    return weights[0], weights[1]


def _blurred(maps: Tensor, kernel: tuple[Tensor, Tensor]) -> Tensor:
    """Return the weighted means [B, K, h, w] of the windows inside [B, K, H, W] maps."""
    channels = maps.shape[1]
    down, across = kernel
    with torch.autocast(maps.device.type, enabled=False):
        maps = F.conv2d(maps, down.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(maps, across.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _regression(of_error: Callable[[Tensor], Tensor]) -> Loss:
    def loss(logits: Tensor, target: Tensor) -> LossSum:
        target = like(logits, target)
        valid = ~target.isnan()
        return summed(of_error((logits.float() - target).where(valid, 0)), valid)

    return loss


@register("loss", "sum", parts={"parts": ("weight",)})
def sum_of_losses(
    *,
    parts: list[dict[str, Any] | str],
    _counts: np.ndarray | None = None,
    _rows: int | None = None,
    _task: str | None = None,
    _units: Units | None = None,
) -> Loss:
    """Return the weighted sum of the means of several losses (S-05).

    Each part is averaged over what it counts in the batch, then multiplied by its weight. The sum counts images, so
    that accumulated batches give the mean of their values, weighted by images.

    Args:
        parts: losses with their parameters and a `weight`, 1 by default:
            `[{name: cross_entropy, weight: 0.7}, {name: jaccard, weight: 0.3}]`.

    Raises:
        ConfigError: there is no part, a weight is negative or all are 0, or a part cannot be built.
    """
    losses, weights = [], []
    for part in parts:
        params = {"name": part} if isinstance(part, str) else dict(part)
        name, weight = str(params.pop("name", "")), params.pop("weight", 1.0)
        check_number("weight", weight, "[0, inf)")
        weights.append(float(weight))
        losses.append(registry.build("loss", name, params, _counts=_counts, _rows=_rows, _task=_task, _units=_units))
    if not any(weights):
        raise ConfigError(
            f"the parts of the loss 'sum' weigh {weights}", "one or more parts, one with a weight above 0",
            "write `parts: [{name: cross_entropy, weight: 1}]`",
        )  # fmt: skip

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        terms = [one(logits, target) for one, weight in zip(losses, weights, strict=True) if weight]
        used = [weight for weight in weights if weight]
        mean = torch.stack([weight * one.mean() for one, weight in zip(terms, used, strict=True)]).sum()
        counted = torch.stack([one.count for one in terms]).amax() > 0
        images = counted.float() * len(logits)
        return LossSum(mean * images, images)

    return loss
