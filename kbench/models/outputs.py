"""From logits to what predictions hold, and from masks to what losses compare with, by task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Units:
    """The units of a regression's targets, which the network learns standardised and everybody else sees as they are.

    Attributes:
        mean: of each of K targets.
        std: of each, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def standardised(self, target: Tensor) -> Tensor:
        """Return targets [B, K, ...] in standard deviations from the mean, float32; NaN stays NaN."""
        mean, std = self._as(target)
        return ((target - mean) / std).float()

    def restored(self, values: Tensor) -> Tensor:
        """Return standardised values [B, K, ...] in target units, float32."""
        mean, std = self._as(values)
        return (values * std + mean).float()

    def _as(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [K, 1 ...] in the precision of the CPU's numbers, where there is one."""
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        shape = (-1, *(1 for _ in like.shape[2:]))
        mean, std = (torch.tensor(part, dtype=dtype, device=like.device).view(shape) for part in (self.mean, self.std))
        return mean, std

    @classmethod
    def of_checkpoint(cls, info: dict[str, Any]) -> Units | None:
        """Return the units a snapshot's JSON names; None for one that answers in target units itself."""
        known = info.get("units")
        return None if known is None else cls(tuple(known["mean"]), tuple(known["std"]))


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
