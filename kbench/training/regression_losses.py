"""Losses of numbers: targets [B, K, ...] in target units, NaN where unknown."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kbench.errors import check_number
from kbench.registry import register
from kbench.training.losses import Loss, LossSum, like, summed


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
