"""A metric with its direction and parameters, and the means metrics are made of.

To add a metric, see `kbench/metrics/__init__.py`; this file changes only when all of them do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kbench import registry
from kbench.errors import ConfigError, DataError, PredictionError, first_names
from kbench.tasks import is_dense

if TYPE_CHECKING:
    import pandas as pd


class Rows(Protocol):
    """What a metric may ask of the rows it scores: a `Table`, or a resample of one."""

    @property
    def ids(self) -> np.ndarray:
        """[N] text."""

    @property
    def task(self) -> str:
        """The competition's task."""

    @property
    def target_names(self) -> tuple[str, ...]:
        """K target names."""

    @property
    def meta(self) -> pd.DataFrame | None:
        """[N] rows of metadata."""

    def column(self, name: str) -> np.ndarray:
        """Return [N] text of a metadata column."""


class Undefined(DataError):
    """A metric has no value on some rows, whatever is predicted."""


@dataclass(frozen=True)
class Metric:
    """A metric with its parameters.

    Attributes:
        name: what a YAML calls it.
        maximise: whether larger is better.
        tasks: the tasks it can score; empty means any.
        function: (targets, predictions, table) -> value; NaN where it has none.
        per_row: (targets, predictions, table) -> [N] values whose mean, NaN left out, is the value; or None.
    """

    name: str
    maximise: bool
    tasks: tuple[str, ...]
    function: Callable[[np.ndarray, np.ndarray, Rows], float]
    per_row: Callable[[np.ndarray, np.ndarray, Rows], np.ndarray] | None = None

    def __call__(self, targets: np.ndarray | None, predictions: np.ndarray, table: Rows) -> float:
        """Return the score of [N, K] predictions, or of [N, K, 3] counts of pixels (segmentations).

        Raises:
            ConfigError: the metric cannot score this task.
            DataError: there are no targets, or the metric has no value on these rows.
            PredictionError: a prediction is NaN or infinite.
        """
        if self.tasks and table.task not in self.tasks:
            raise ConfigError(
                f"the metric '{self.name}' cannot score the task '{table.task}'",
                f"a task of {', '.join(self.tasks)}",
                "name another metric in the YAML; `kbench list metric` shows them",
            )
        if targets is None or len(targets) == 0:
            raise DataError(f"'{self.name}' has no rows with targets to score", "labelled rows", "`kbench check`")
        if len(targets) != len(predictions):
            raise AssertionError(f"{len(targets)} targets for {len(predictions)} predictions")
        if not np.isfinite(predictions.sum(dtype=np.float64)):  # a mean that leaves out NaN must not hide them
            raise PredictionError(
                f"'{self.name}' is asked to score predictions that are NaN or infinite",
                "finite predictions",
                "look at the training log of this fold; a lower learning rate may help",
            )
        value = float(self.function(targets, predictions, table))
        if np.isnan(value):
            raise Undefined(
                f"'{self.name}' has no value on these {len(targets):,} rows: {_why_undefined(targets, table)}",
                "rows on which the metric is defined",
                "score more rows together, such as those of all folds, or name another metric",
            )
        return value

    def or_none(self, targets: np.ndarray | None, predictions: np.ndarray, table: Rows) -> float | None:
        """Return what `__call__` does, and None where the metric has no value on these rows.

        A part of the rows may lack what all of them have (AUC of a fold without one class): it is shown as `-`.
        """
        try:
            return self(targets, predictions, table)
        except Undefined:
            return None

    def undefined(self, targets: np.ndarray, table: Rows) -> str:
        """Return why the metric has no value on some rows, whatever is predicted; empty where it has one.

        Args:
            targets: as in `__call__`.
            table: the rows.
        """
        if is_dense(table.task):
            shape = (*targets.shape, 3)
            counted = targets if "regression" in table.task else np.zeros_like(targets)
            predictions = np.zeros(shape, dtype=targets.dtype)
            predictions[..., 0], predictions[..., 2] = counted, targets - counted
        else:
            names = len(table.target_names)
            predictions = np.random.default_rng(0).dirichlet(np.ones(names), len(targets)).astype(np.float32)
        score = self.or_none(targets, predictions, table)
        return _why_undefined(targets, table) if score is None else ""

    def better(self, new: float, old: float) -> bool:
        """Return whether `new` is strictly better than `old`; NaN is never better, and anything beats NaN."""
        if np.isnan(new) or np.isnan(old):
            return not np.isnan(new)
        return new > old if self.maximise else new < old


def make_metric(name: str, params: Mapping[str, Any] | None = None) -> Metric:
    """Return a registered metric with its parameters.

    Raises:
        ConfigError: the name is unknown, or a plug-in's metric does not say its direction.
    """
    part = registry.get("metric", name)
    if "maximise" not in part.meta:
        raise ConfigError(
            f"the metric '{name}' does not say its direction",
            '@register("metric", maximise=True) or maximise=False',
            f"add it to the function '{part.function.__qualname__}'",
        )
    function = partial(part.function, **(params or {}))
    maximise, tasks = bool(part.meta["maximise"]), tuple(part.meta.get("tasks", ()))
    if part.meta.get("per_row"):
        return Metric(name, maximise, tasks, partial(_mean_over_rows, function), function)
    return Metric(name, maximise, tasks, function)


def _mean_over_rows(
    per_row: Callable[..., np.ndarray], targets: np.ndarray, predictions: np.ndarray, table: Rows
) -> float:
    return row_mean(per_row(targets, predictions, table))


def _why_undefined(targets: np.ndarray, table: Rows) -> str:
    if is_dense(table.task):
        empty = [
            name for name, seen in zip(table.target_names, np.any(targets, axis=0).tolist(), strict=True) if not seen
        ]
        what = "no known pixel of {}" if "regression" in table.task else "no pixel of {} in the true masks"
        return what.format(first_names(empty)) if empty else "they cannot be told apart"
    if table.task == "single_label":
        absent = [name for k, name in enumerate(table.target_names) if not (targets == k).any()]
        return f"no row of {first_names(absent)}" if absent else "they cannot be told apart"
    values = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
    named = zip(table.target_names, values.T, strict=False)
    flat = [name for name, column in named if len(np.unique(column[~np.isnan(column)])) < 2]
    return f"fewer than two different known values of {first_names(flat)}" if flat else "they cannot be told apart"


def row_mean(values: np.ndarray) -> float:
    """Return the mean of [N] values, NaN left out; NaN when nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def mean_of_known(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return [N] means of [N, K] values over the known targets of each row; NaN where none is known."""
    known = ~np.isnan(targets)
    counts = known.sum(axis=1)
    sums: np.ndarray = np.where(known, values, 0.0).sum(axis=1)
    return np.asarray(np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of [N] values from 1 on; equal values share their mean rank."""
    from scipy.stats import rankdata  # takes half a second to load

    return np.asarray(rankdata(values), dtype=np.float64)
