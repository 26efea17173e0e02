"""Scores of predictions, each with its direction.

A metric is a registered function of targets, predictions and the rows they belong to:

    @register("metric", maximise=True, tasks=("regression",))
    def r2(targets, predictions, table) -> float: ...

    @register("metric", maximise=True, tasks=("single_label",), per_row=True)
    def accuracy(targets, predictions, table) -> np.ndarray: ...

With `per_row=True` it returns [N] values and the score is their mean (NaN: the row does not count); bootstrap
intervals are then vectorised. Targets are those of `Table.targets`: [N] int64 class indices (`single_label`) or
[N, K] float32 (`multi_label`, `regression`; NaN where unknown). Predictions are [N, K] probabilities, or target
units for regression. A metric that has no value on some rows (AUC where one class is absent) returns NaN;
`Metric` turns that into an error, or into None where a part of the rows is scored (`or_none`).

Segmentations are scored by counts of pixels: targets are [N, K] pixels of each class, predictions are [N, K, 3]
true positive, false positive and false negative pixels (`maps.py` counts them, one image at a time).

To add one, write a function in `classification.py`, `regression.py` or `segmentation.py`, or in a competition's
plug-in. Keyword-only parameters may be set in the YAML. `by_rank=True` says that only the order of each target's
predictions counts, so that members of an ensemble may be averaged by their ranks.
"""

from __future__ import annotations

from kbench.metrics import classification, regression, segmentation
from kbench.metrics import maps as dense
from kbench.metrics.metric import Metric, Rows, make_metric, mean_of_known, ranks, row_mean

__all__ = [
    "Metric",
    "Rows",
    "classification",
    "dense",
    "make_metric",
    "mean_of_known",
    "ranks",
    "regression",
    "row_mean",
    "segmentation",
]
