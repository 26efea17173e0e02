"""From logits to what predictions hold, and from masks to what losses compare with, by task."""

from __future__ import annotations

import torch
from torch import Tensor

from kbench.tasks import IGNORED, SEGMENTATION, exclusive

DEFAULT_LOSS = {
    "single_label": "cross_entropy",
    "multi_label": "bce",
    "regression": "mse",
    "segmentation": "cross_entropy",
    "multi_label_segmentation": "bce",
    "dense_regression": "mse",
}
NOT_COUNTED = -100  # class index that losses leave out
_SMALLEST = 1e-12


def default_loss(task: str, n_outputs: int) -> str:
    """Return the loss of a task that names none; one class alone is a yes or no."""
    return "bce" if task == "segmentation" and n_outputs == 1 else DEFAULT_LOSS[task]


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Return float32 probabilities of logits [B, K, ...], or the values themselves for regression.

    Args:
        logits: of any floating dtype.
        task: single-label tasks sum to 1 over K (softmax), multi-label ones are independent (sigmoid).
    """
    logits = logits.float()
    if exclusive(task, logits.shape[1]):
        return logits.softmax(1)
    return logits if "regression" in task else logits.sigmoid()


def logits_of(values: Tensor, task: str) -> Tensor:
    """Return logits [B, K, ...] whose `probabilities` are the values: the way back, for losses of averaged maps."""
    if "regression" in task:
        return values
    if exclusive(task, values.shape[1]):
        return values.clamp_min(_SMALLEST).log()
    return values.clamp(1e-7, 1 - 1e-7).logit()


def dense_target(mask: Tensor, task: str, n_outputs: int) -> Tensor:
    """Return what a loss compares maps with.

    Args:
        mask: [B, H, W, M] as `kbench/data/masks/kinds.py` says, on the device.
        task: a dense task.
        n_outputs: number of maps.

    Returns:
        [B, H, W] int64 with -100 where ignored, for exclusive classes; else [B, K, H, W] float32, NaN where ignored.
    """
    if exclusive(task, n_outputs):
        index = mask[..., 0].long()
        return torch.where(index == IGNORED, NOT_COUNTED, index)
    values = mask.permute(0, 3, 1, 2)
    if task in SEGMENTATION:
        return torch.where(values == IGNORED, torch.nan, values.float())
    return values.float()
