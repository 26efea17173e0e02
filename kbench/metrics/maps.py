"""What a dense task's predictions are worth, image by image: all that its metrics need.

Segmentations are measured by counts of pixels: per image and class there are tp, fp and fn, predicted pixels that are
of the class, predicted pixels that are not, and pixels of the class that are not predicted; pixels whose truth is
ignored count nowhere. Dense regressions are measured by sums of errors. Both are small, whatever the size of the
images, and add up, so a score of a data set never needs two masks at once.

To count something else of masks, add a function here; what becomes of counts is in `segmentation.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kbench.metrics.metric import Rows
from kbench.registry import register
from kbench.tasks import IGNORED

if TYPE_CHECKING:
    import torch


def image_counts(mask: np.ndarray, truth: np.ndarray, *, n_classes: int) -> np.ndarray:
    """Return [K, 3] int64 tp, fp and fn of one image's mask.

    Args:
        mask: as a `MaskSet` has it: [H, W] uint8 class index (255: of no class), or [K, H, W] 0 or 1.
        truth: as a `MaskKind` reads it: [H, W, 1] uint8 class index or [H, W, K] 0 or 1; 255 where ignored.
        n_classes: K.
    """
    if mask.ndim == 2:
        return counts_of(_index_table(mask, truth), n_classes)
    assert mask.shape == (n_classes, *truth.shape[:2]), f"a mask of {mask.shape} for a truth of {truth.shape}"
    counts = np.empty((n_classes, 3), dtype=np.int64)
    for k in range(n_classes):
        real = truth[:, :, k]
        seen = mask[k] != 0
        is_one = real == 1
        hits = np.count_nonzero(seen & is_one)
        counts[k] = hits, np.count_nonzero(seen & (real == 0)), np.count_nonzero(is_one) - hits
    return counts


def image_confusion(mask: np.ndarray, truth: np.ndarray, *, n_classes: int) -> np.ndarray:
    """Return [K, K] int64 pixels of one image by true class (rows) and predicted class; those of images add up.

    Args:
        mask: [H, W] uint8 class index; 255 (of no class) counts nowhere.
        truth: [H, W, 1] uint8 class index, 255 where ignored.
        n_classes: K.
    """
    return _index_table(mask, truth)[:n_classes, :n_classes]


def _index_table(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return [256, 256] pixels by true and predicted value: one pass, nothing is sorted or picked out."""
    real = truth.reshape(truth.shape[:2])
    assert mask.shape == real.shape, f"a mask of {mask.shape} for a truth of {truth.shape}"
    codes = real.astype(np.uint16) * np.uint16(IGNORED + 1) + mask
    return np.bincount(codes.ravel(), minlength=(IGNORED + 1) ** 2).reshape(IGNORED + 1, IGNORED + 1)


def counts_of(table: np.ndarray, n_classes: int) -> np.ndarray:
    """Return [K, 3] tp, fp and fn of pixels by true and predicted value; values of K and more are no class."""
    hits = np.diagonal(table)[:n_classes]
    return np.stack([hits, table[:n_classes, :n_classes].sum(0) - hits, table[:n_classes].sum(1) - hits], axis=1)


def batch_counts(scores: torch.Tensor, target: torch.Tensor, *, threshold: float = 0.5) -> torch.Tensor:
    """Return [B, K, 3] int64 tp, fp and fn of a batch, on its device and without waiting for it.

    Args:
        scores: [B, K, H, W] probabilities or logits where classes exclude one another, else probabilities.
        target: as training has it: [B, H, W] int64 class index, -100 where ignored; or [B, K, H, W] float 0 or 1,
            NaN where ignored.
        threshold: overlapping classes are predicted above it.
    """
    if target.ndim == 3:  # `max` gives the first of equals, as `argmax` does, and is three times faster
        return _exclusive_counts(scores.max(1).indices, target, scores.shape[1])
    seen, real = scores > threshold, target > 0.5
    hits, false = seen & real, seen & (target <= 0.5)  # NaN is neither
    return _summed(hits, false, real & ~seen)


def _summed(*layers: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.stack([layer.flatten(2).sum(2, dtype=torch.int64) for layer in layers], dim=2)


def _exclusive_counts(index: torch.Tensor, target: torch.Tensor, n_classes: int) -> torch.Tensor:
    import torch

    batch = len(index)
    images = torch.arange(batch, device=index.device).view(-1, 1, 1)
    real = torch.where(target < 0, n_classes, target)  # ignored pixels go to a row of their own
    codes = (images * (n_classes + 1) + real) * n_classes + index
    table = torch.bincount(codes.flatten(), minlength=batch * (n_classes + 1) * n_classes)
    table = table.view(batch, n_classes + 1, n_classes)[:, :n_classes]
    hits = table.diagonal(dim1=1, dim2=2)
    return torch.stack([hits, table.sum(1) - hits, table.sum(2) - hits], dim=2)


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


def image_errors(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return [K, 3] float64 of one image's numbers: known pixels, sum of squared and sum of absolute errors.

    Args:
        maps: [K, H, W] float32 predictions in target units.
        truth: [H, W, K] float32, NaN where unknown.
    """
    real = truth.transpose(2, 0, 1)
    known = ~np.isnan(real)
    error = np.where(known, maps.astype(np.float64) - real, 0.0)
    return np.stack([known.sum((1, 2)), np.square(error).sum((1, 2)), np.abs(error).sum((1, 2))], axis=1)


def pixel_worth(values: np.ndarray, truth: np.ndarray, task: str) -> np.ndarray:
    """Return [N, K, 3], as `measured` does, of some pixels of N images.

    Args:
        values: [N, K, P] probabilities, or target units.
        truth: [N, P] class numbers, negative where ignored, of classes that exclude one another; else [N, K, P], NaN
            where unknown.
        task: a dense task.
    """
    if "regression" in task:
        known = ~np.isnan(truth)
        error = np.where(known, values.astype(np.float64) - truth, 0.0)
        return np.stack([known.sum(2), np.square(error).sum(2), np.abs(error).sum(2)], axis=2)
    if truth.ndim == 2:
        classes = np.arange(values.shape[1])[:, None]
        real, seen = truth[:, None] == classes, values.argmax(1)[:, None] == classes
        seen &= (truth >= 0)[:, None]
    else:
        real, seen = truth == 1, (values > 0.5) & ~np.isnan(truth)
    hits = (seen & real).sum(2)
    return np.stack([hits, seen.sum(2) - hits, real.sum(2) - hits], axis=2)


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


@register("metric", maximise=False, tasks=("dense_regression",))
def rmse_pixels(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> float:
    """Return the root mean squared error of the known pixels of all images taken together, the mean over targets.

    Args:
        targets: [N, K] known pixels.
        predictions: [N, K, 3] as in `rmse_per_image`.
        table: the rows.
    """
    known, squares, _ = predictions.sum(0, dtype=np.float64).T
    with np.errstate(invalid="ignore"):  # a target no pixel of which is known has no value
        return float(np.mean(np.sqrt(np.divide(squares, known))))


def _per_image(sums: np.ndarray, column: int, finish: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    known = sums[..., 0]
    means = finish(sums[..., column] / np.where(known > 0, known, np.nan))  # [N, K]
    counted = ~np.isnan(means)
    total: np.ndarray = np.where(counted, means, 0.0).sum(1) / np.where(counted.any(1), counted.sum(1), np.nan)
    return total
