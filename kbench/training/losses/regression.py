"""Losses of numbers: targets [B, K, ...] in target units, NaN where unknown; and a weighted sum of any losses.

To add one of numbers, write a factory here with `@register("loss")` that gives `_regression` a function of predictions
and targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kbench import registry
from kbench.errors import ConfigError, check_number
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
        losses.append(registry.build("loss", name, params, _counts=_counts, _rows=_rows, _task=_task))
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
