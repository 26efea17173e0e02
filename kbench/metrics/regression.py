"""Metrics of scalar regression; unknown targets (NaN) do not count.

To add one, write a function here with `@register("metric")`; `kbench/metrics/__init__.py` says what it is given.
"""

from __future__ import annotations

import numpy as np

from kbench.metrics.metric import Rows, mean_of_known, row_mean
from kbench.registry import register

REGRESSION = "regression"


@register("metric", maximise=False, tasks=(REGRESSION,), per_row=True)
def mse(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> np.ndarray:
    """Return [N] squared errors in squared target units, each the mean over the row's known targets."""
    return mean_of_known((predictions.astype(np.float64) - targets) ** 2, targets)


@register("metric", maximise=False, tasks=(REGRESSION,), per_row=True)
def mae(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> np.ndarray:
    """Return [N] absolute errors in target units, each the mean over the row's known targets."""
    return mean_of_known(np.abs(predictions.astype(np.float64) - targets), targets)


def _by_target(targets: np.ndarray, predictions: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the known (truth, prediction) values of each target, float64."""
    columns = []
    for truth, guess in zip(targets.T, predictions.T, strict=True):
        known = ~np.isnan(truth)
        columns.append((truth[known].astype(np.float64), guess[known].astype(np.float64)))
    return columns


@register("metric", maximise=False, tasks=(REGRESSION,))
def rmse(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> float:
    """Return the root mean squared error, the mean over targets, in target units."""
    squares = [row_mean((guess - truth) ** 2) for truth, guess in _by_target(targets, predictions)]
    return float(np.mean(np.sqrt(squares)))


@register("metric", maximise=True, tasks=(REGRESSION,))
def r2(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> float:
    """Return the coefficient of determination, the mean over targets; NaN where a target does not vary."""
    return float(np.mean([_r2(truth, guess) for truth, guess in _by_target(targets, predictions)]))


def _r2(truth: np.ndarray, guess: np.ndarray) -> float:
    spread = float(((truth - row_mean(truth)) ** 2).sum())
    return 1 - float(((truth - guess) ** 2).sum()) / spread if spread > 0 else float("nan")


@register("metric", maximise=True, tasks=("single_label", REGRESSION))
def quadratic_kappa(targets: np.ndarray, predictions: np.ndarray, table: Rows) -> float:
    """Return Cohen's kappa with quadratic weights.

    Single label: classes are grades 0, 1, ... in their order, and the most probable one is the prediction.
    Regression: predictions are rounded to whole grades; the mean over targets.
    """
    if table.task == "single_label":
        return _kappa(targets.astype(np.float64), predictions.argmax(axis=1).astype(np.float64))
    return float(np.mean([_kappa(truth, np.rint(guess)) for truth, guess in _by_target(targets, predictions)]))


def _kappa(truth: np.ndarray, guess: np.ndarray) -> float:
    # 1 - sum(w O) / sum(w E) with w = (i - j)^2, where sum(w E) / N = var(i) + var(j) + (mean(i) - mean(j))^2
    if not len(truth):
        return float("nan")
    chance = float(truth.var() + guess.var() + (truth.mean() - guess.mean()) ** 2)
    return 1 - float(((truth - guess) ** 2).mean()) / chance if chance > 0 else float("nan")
