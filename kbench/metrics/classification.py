"""Metrics of single-label and multi-label classification.

To add one, write a function here with `@register("metric")`; `kbench/metrics/__init__.py` says what it is given.
"""

from __future__ import annotations

import numpy as np

from kbench.errors import ConfigError
from kbench.metrics.metric import Rows, mean_of_known, ranks
from kbench.registry import register

SINGLE, MULTI = "single_label", "multi_label"


@register("metric", maximise=False, tasks=(SINGLE,), per_row=True)
def log_loss(targets: np.ndarray, predictions: np.ndarray, table: Rows, *, eps: float = 1e-15) -> np.ndarray:
    """Return [N] negative log probabilities of the true class, for two classes or many.

    Rows are divided by their sums, then clipped to [eps, 1 - eps], as Kaggle scores them.
    """
    picked = np.take_along_axis(predictions, targets[:, None], axis=1)[:, 0].astype(np.float64)
    sums = predictions.sum(axis=1, dtype=np.float64)
    shares = np.divide(picked, sums, out=np.zeros_like(picked), where=sums > 0)
    losses: np.ndarray = -np.log(np.clip(shares, eps, 1 - eps))
    return losses


@register("metric", maximise=True, tasks=(SINGLE,), per_row=True)
def accuracy(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> np.ndarray:
    """Return [N] 1.0 where the most probable class (the first of equals) is the true one, else 0.0."""
    return np.asarray(predictions.argmax(axis=1) == targets, dtype=np.float64)


@register("metric", maximise=False, tasks=(SINGLE,), per_row=True)
def error(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> np.ndarray:
    """Return [N] 0.0 where the most probable class is the true one, else 1.0."""
    return 1.0 - accuracy(targets, predictions, table)


@register("metric", maximise=True, tasks=(SINGLE, MULTI), by_rank=True)
def auc(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> float:
    """Return the area under the ROC curve.

    Two classes: of the last class. More classes: the mean over classes, each against the rest. Multi-label: the
    mean over labels. NaN when a class or label has only positive or only negative rows.
    """
    if table.task == MULTI:
        truth = np.asarray(targets, dtype=np.float64)
    else:
        truth = (targets[:, None] == np.arange(predictions.shape[1])).astype(np.float64)
        if predictions.shape[1] == 2:
            truth, predictions = truth[:, 1:], predictions[:, 1:]
    return float(np.mean([binary_auc(truth[:, k], predictions[:, k]) for k in range(truth.shape[1])]))


def binary_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve of [N] scores; NaN when only one kind of rows is known.

    Args:
        truth: [N] 0 and 1, NaN where unknown.
        scores: [N] numbers, larger for 1.
    """
    known = ~np.isnan(truth)
    positive = truth[known] > 0.5
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = float(ranks(scores[known])[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)  # Mann-Whitney U


@register("metric", maximise=True, tasks=(SINGLE, MULTI))
def f1_macro(targets: np.ndarray, predictions: np.ndarray, table: Rows, *, threshold: float = 0.5) -> float:
    """Return the unweighted mean of the F1 scores of classes or labels.

    As in scikit-learn, a class that is neither in the truth nor predicted is left out; such a label counts 0.

    Args:
        targets: class indices, or 0 and 1 per label.
        predictions: [N, K] probabilities.
        table: the rows.
        threshold: multi-label only: a label is predicted above it.
    """
    if table.task == MULTI:
        known = ~np.isnan(targets)
        truth, chosen = known & (targets > 0.5), known & (predictions > threshold)
        hits, totals = (truth & chosen).sum(axis=0), truth.sum(axis=0) + chosen.sum(axis=0)
    else:
        k = predictions.shape[1]
        best = predictions.argmax(axis=1)
        hits = np.bincount(targets[best == targets], minlength=k)
        totals = np.bincount(targets, minlength=k) + np.bincount(best, minlength=k)
        hits, totals = hits[totals > 0], totals[totals > 0]
    return float(np.mean(2 * hits / np.maximum(totals, 1)))


def _above(predictions: np.ndarray, threshold: float | list[float]) -> np.ndarray:
    limits = np.asarray(threshold, dtype=predictions.dtype)
    if limits.ndim and limits.shape != predictions.shape[1:]:
        raise ConfigError(
            f"{limits.size} thresholds for {predictions.shape[1]} labels",
            "one threshold, or one per label",
            "correct metric.threshold in the YAML",
        )
    return np.asarray(predictions > limits)


@register("metric", maximise=True, tasks=(MULTI,), per_row=True)
def fbeta_samples(
    targets: np.ndarray,
    predictions: np.ndarray,
    table: Rows,
    *,
    beta: float = 2.0,
    threshold: float | list[float] = 0.2,
) -> np.ndarray:
    """Return [N] F-beta scores (1 + b2) P R / (b2 P + R), one per image.

    An image without true and predicted labels scores 1.

    Args:
        targets: 0 and 1 per label.
        predictions: [N, K] probabilities.
        table: the rows.
        beta: how many times recall counts more than precision.
        threshold: a label is predicted above it; one number, or one per label.
    """
    known = ~np.isnan(targets)
    truth, chosen = known & (targets > 0.5), known & _above(predictions, threshold)
    hits = (truth & chosen).sum(axis=1)
    denominator = beta**2 * truth.sum(axis=1) + chosen.sum(axis=1)
    scores = np.divide((1 + beta**2) * hits, denominator, out=np.ones(len(hits)), where=denominator > 0)
    return np.where(known.any(axis=1), scores, np.nan)


@register("metric", maximise=True, tasks=(MULTI,), per_row=True)
def f2_samples(
    targets: np.ndarray, predictions: np.ndarray, table: Rows, *, threshold: float | list[float] = 0.2
) -> np.ndarray:
    """Return [N] scores 5 P R / (4 P + R), one per image (row F-25)."""
    return fbeta_samples(targets, predictions, table, beta=2.0, threshold=threshold)


@register("metric", maximise=True, tasks=(MULTI,), per_row=True)
def multi_label_accuracy(
    targets: np.ndarray, predictions: np.ndarray, table: Rows, *, threshold: float | list[float] = 0.5
) -> np.ndarray:
    """Return [N] shares of each image's known labels that are right."""
    return mean_of_known(_above(predictions, threshold) == (targets > 0.5), targets)


@register("metric", maximise=False, tasks=(MULTI,), per_row=True)
def bce(targets: np.ndarray, predictions: np.ndarray, table: Rows, *, eps: float = 1e-15) -> np.ndarray:
    """Return [N] binary log losses, each the mean over the image's known labels."""
    p = np.clip(predictions.astype(np.float64), eps, 1 - eps)
    return mean_of_known(-(targets * np.log(p) + (1 - targets) * np.log1p(-p)), targets)
