"""What a dense task's predictions are worth, image by image: all that its metrics need.

Segmentations are measured by counts of pixels (`pixels.py`), dense regressions by sums of errors. Both are small,
whatever the size of the images, and add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kbench.metrics.metric import Rows
from kbench.metrics.pixels import batch_counts
from kbench.registry import register

if TYPE_CHECKING:
    import torch


def measured(maps: torch.Tensor, target: torch.Tensor, task: str) -> torch.Tensor:
    """Return [B, K, 3] of a batch, on its device.

    Args:
        maps: [B, K, H, W] float32 probabilities, or target units.
        target: as training has it; see `batch_counts`. Of a regression float32 [B, K, H, W], NaN where unknown.
        task: a dense task.

    Returns:
        int64 tp, fp and fn pixels of a segmentation; float64 number of known pixels, sum of squared errors and sum of
        absolute errors of a regression.
    """
    if "regression" not in task:
        return batch_counts(maps, target)
    import torch

    known = ~target.isnan()
    error = torch.where(known, maps.double() - target.double(), 0.0)
    return torch.stack([known.double().sum((2, 3)), error.square().sum((2, 3)), error.abs().sum((2, 3))], dim=-1)


def truth_of(values: np.ndarray, task: str) -> np.ndarray:
    """Return what a metric takes as targets: [N, K] pixels of each class in the truth, or known pixels.

    Args:
        values: [N, K, 3] as `measured` gives them.
        task: a dense task.
    """
    return np.asarray(values[..., 0] if "regression" in task else values[..., 0] + values[..., 2])


@register("metric", maximise=False, tasks=("dense_regression",), per_row=True)
def rmse_per_image(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> np.ndarray:
    """Return [N] roots of the mean squared error of each image's known pixels; all targets of an image weigh alike.

    Args:
        targets: [N, K] known pixels.
        predictions: [N, K, 3] known pixels, sums of squared and of absolute errors (`measured`).
        table: the rows.

    Source: B-15.
    """
    return _per_image(predictions, 1, np.sqrt)


@register("metric", maximise=False, tasks=("dense_regression",), per_row=True)
def mae_per_image(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> np.ndarray:
    """Return [N] mean absolute errors of each image's known pixels; all targets of an image weigh alike.

    Args:
        targets: [N, K] known pixels.
        predictions: [N, K, 3] as in `rmse_per_image`.
        table: the rows.
    """
    return _per_image(predictions, 2, np.asarray)


def _per_image(sums: np.ndarray, column: int, finish: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    known = sums[..., 0]
    means = finish(sums[..., column] / np.where(known > 0, known, np.nan))  # [N, K]
    counted = ~np.isnan(means)
    total: np.ndarray = np.where(counted, means, 0.0).sum(1) / np.where(counted.any(1), counted.sum(1), np.nan)
    return total
