"""Metrics of segmentations, computed from counts of pixels (`maps.py`).

A metric of this file is given [N, K] pixels of each class in the truth as `targets`, and [N, K, 3] counts of true
positive, false positive and false negative pixels as `predictions`; ignored pixels are in neither. `classes` names
the classes that count: which ones is never implied (a score that leaves out the first class as "background" leaves
out the first class, whatever it is called). To train on more classes than are scored, name those that are.

To add one, write a function here with `@register("metric")`; `kbench/metrics/__init__.py` says what it is given.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from kbench.errors import ConfigError, first_names, nearest
from kbench.metrics.metric import Rows
from kbench.registry import register
from kbench.tasks import SEGMENTATION

Absent = Literal["skip", "zero"]
_TGS_LIMITS = np.arange(10, 20)  # twentieths: 0.50, 0.55 ... 0.95


@register("metric", maximise=True, tasks=SEGMENTATION)
def mean_iou(
    targets: np.ndarray, predictions: np.ndarray, table: Rows, *, classes: list[str] | None = None,
    absent: Absent = "skip",
) -> float:  # fmt: skip
    """Return the mean over classes of tp / (tp + fp + fn), pixels of all images taken together.

    Args:
        targets: [N, K] pixels of each class.
        predictions: [N, K, 3] counts.
        table: the rows.
        classes: names of the classes that count; all by default.
        absent: a class that is in no true mask is left out (`skip`, even if it is predicted), or counts 0 (`zero`).
    """
    tp, fp, fn = _pooled(predictions, table, classes)
    return _class_mean(tp, tp + fp + fn, tp + fn, absent)


@register("metric", maximise=True, tasks=SEGMENTATION)
def mean_dice(
    targets: np.ndarray, predictions: np.ndarray, table: Rows, *, classes: list[str] | None = None,
    absent: Absent = "skip",
) -> float:  # fmt: skip
    """Return the mean over classes of 2 tp / (2 tp + fp + fn), pixels of all images taken together.

    Args:
        targets: [N, K] pixels of each class.
        predictions: [N, K, 3] counts.
        table: the rows.
        classes: names of the classes that count; all by default.
        absent: a class that is in no true mask is left out (`skip`, even if it is predicted), or counts 0 (`zero`).
    """
    tp, fp, fn = _pooled(predictions, table, classes)
    return _class_mean(2 * tp, 2 * tp + fp + fn, tp + fn, absent)


@register("metric", maximise=True, tasks=SEGMENTATION, per_row=True)
def iou_per_image(
    targets: np.ndarray, predictions: np.ndarray, table: Rows, *, classes: list[str] | None = None
) -> np.ndarray:
    """Return [N] means of IoU over the classes that are in the image's true mask (row S-13).

    A class that is predicted but not there costs nothing but the pixels it takes from others; an image with none of
    the classes does not count.

    Args:
        targets: [N, K] pixels of each class.
        predictions: [N, K, 3] counts.
        table: the rows.
        classes: names of the classes that count; all by default.
    """
    ious, present = class_ious(_chosen(predictions, table, classes))
    return _mean_where(ious, present)


@register("metric", maximise=True, tasks=SEGMENTATION, per_row=True)
def dice_per_image(
    targets: np.ndarray, predictions: np.ndarray, table: Rows, *, classes: list[str] | None = None
) -> np.ndarray:
    """Return [N] means over classes of 2 tp / (2 tp + fp + fn) of each image.

    A class that is neither true nor predicted scores 1, one that is only predicted 0.

    Args:
        targets: [N, K] pixels of each class.
        predictions: [N, K, 3] counts.
        table: the rows.
        classes: names of the classes that count; all by default.
    """
    counts = _chosen(predictions, table, classes).astype(np.float64)
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    both = 2 * tp + fp + fn
    return np.asarray(np.divide(2 * tp, both, out=np.ones_like(both), where=both > 0).mean(1))


@register("metric", maximise=True, tasks=SEGMENTATION, per_row=True)
def tgs_iou(
    targets: np.ndarray, predictions: np.ndarray, table: Rows, *, classes: list[str] | None = None
) -> np.ndarray:
    """Return [N] shares of the thresholds 0.50, 0.55 ... 0.95 that the image's IoU is above.

    An image without the class scores 1 if nothing is predicted, else 0. Several classes: the mean over them.

    Args:
        targets: [N, K] pixels of each class.
        predictions: [N, K, 3] counts.
        table: the rows.
        classes: names of the classes that count; all by default.
    """
    counts = _chosen(predictions, table, classes).astype(np.int64)
    hits, union = counts[:, :, 0], counts.sum(2)
    above = 20 * hits[:, :, None] > _TGS_LIMITS * union[:, :, None]  # whole numbers: 0.55 is no binary fraction
    return np.asarray(np.where(union == 0, 1.0, above.mean(2)).mean(1))


@register("metric", maximise=True, tasks=("segmentation",))
def pixel_accuracy(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> float:
    """Return the share of pixels that are right, of classes that exclude one another."""
    if len(table.target_names) < 2:
        raise ConfigError(
            "the metric 'pixel_accuracy' with one class",
            "two classes or more: counts of one class do not hold the pixels that are rightly left out",
            "name another metric in the YAML, such as mean_iou",
        )
    tp, _, fn = _pooled(predictions, table, None)
    pixels = float((tp + fn).sum())
    return float(tp.sum()) / pixels if pixels else float("nan")


def class_ious(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [..., K] IoUs (0 where neither true nor predicted) and where the class is in the truth, of counts."""
    union = counts.sum(-1)
    ious = np.divide(counts[..., 0], union, out=np.zeros(union.shape), where=union > 0)
    return ious, counts[..., 0] + counts[..., 2] > 0


def _chosen(counts: np.ndarray, table: Rows, classes: list[str] | None) -> np.ndarray:
    """Return the counts of the named classes.

    Raises:
        ConfigError: there is no such class, or none is named.
    """
    names = list(table.target_names)
    if classes is None:
        return counts
    strange = [name for name in classes if name not in names]
    if strange or not classes or len(set(classes)) < len(classes):
        raise ConfigError(
            f"metric.classes names {first_names(strange)}" if strange else f"metric.classes is {classes}",
            f"some of {first_names(names, 30)}, each once",
            nearest(strange[0], names) if strange else "name the classes that count in the YAML",
        )
    return counts[:, [names.index(name) for name in classes]]


def _pooled(counts: np.ndarray, table: Rows, classes: list[str] | None) -> np.ndarray:
    """Return [3, K] float64 counts of all images together."""
    return np.asarray(_chosen(counts, table, classes).sum(0, dtype=np.float64).T)


def _class_mean(hits: np.ndarray, union: np.ndarray, real: np.ndarray, absent: Absent) -> float:
    shares = np.divide(hits, union, out=np.zeros(len(union)), where=union > 0)
    counted = real > 0
    if not counted.any():
        return float("nan")
    return float(shares.mean() if absent == "zero" else shares[counted].mean())


def _mean_where(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return [N] means of the [N, K] values that count; NaN where none does."""
    sizes = counted.sum(1)
    sums = np.where(counted, values, 0).sum(1)
    return np.asarray(np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0))
