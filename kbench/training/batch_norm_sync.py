"""Batch norm over the parts of a batch that several devices hold: statistics of the whole batch (`batch_norm: sync`).

Inside `synchronised` every `torch.nn.functional.batch_norm` of a model in training mode measures the whole batch, by
sums over the ranks; no module is exchanged, so models, checkpoints and what looks at their layers stay as they are.
torch's `SyncBatchNorm` is for GPUs alone, and leaves subclasses of `BatchNorm2d` as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from kbench.training.ranks import Ranks


def synchronised(ranks: Ranks | None) -> AbstractContextManager[Any]:
    """Return a block inside which batch norm measures the batch of all ranks; with None or one rank, its own."""
    return contextlib.nullcontext() if ranks is None or not ranks.several else _Whole(ranks)


class _Whole(TorchFunctionMode):
    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.batch_norm:
            return _batch_norm(self._ranks, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _batch_norm(
    ranks: Ranks,
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return what `torch.nn.functional.batch_norm` says of the whole batch, this rank's part of it.

    Args:
        ranks: who holds the other parts.
        input: [B, C, ...], this rank's part; B may be 0.
        running_mean: [C], changed in place, or None.
        running_var: [C], changed in place, or None.
        weight: [C] or None.
        bias: [C] or None.
        training: whether the batch is measured.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    axes, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
    values = input.float()
    own = values.new_tensor([values.numel() / max(1, values.shape[1])])
    sums = ranks.added_with_gradient(torch.cat([values.sum(axes), own]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    variance = ranks.added_with_gradient(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * (count / (count - 1).clamp_min(1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    shown = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        shown = shown * weight.float().view(shape)
    if bias is not None:
        shown = shown + bias.float().view(shape)
    return shown.to(input.dtype)
