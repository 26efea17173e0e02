"""Intervals of a score by the bootstrap: how much of a difference is chance.

Images are drawn with replacement, or whole groups of them (patients, drives, scenes) where images of one group
resemble each other. Two predictions are compared on the same draws. A metric that is a mean over rows is
resampled by its row values alone; any other is computed anew on every draw.

Percentile intervals: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kbench.console import score_text
from kbench.errors import DataError
from kbench.metrics.metric import Metric, Rows

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 1 << 22  # row numbers drawn at a time: 32 MB
_MEANS = 3 * 10**8  # row values summed at most, in all draws together
_VALUES = 3 * 10**8  # predicted values scored at most, in all draws together
_FEWEST = 100  # draws that are made however many rows there are


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval.

    Attributes:
        value: the score, or a difference of scores, on the rows themselves.
        low: lower end.
        high: upper end.
        level: share of the draws between the ends.
        draws: draws the ends were read from; fewer than asked for where rows are many.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    draws: int = 1000

    def __str__(self) -> str:
        return f"{score_text(self.value)} [{score_text(self.low)}, {score_text(self.high)}]"


def interval(
    metric: Metric,
    targets: np.ndarray,
    predictions: np.ndarray,
    table: Rows,
    *,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return a score with its bootstrap interval.

    Args:
        metric: the metric.
        targets: those of the table.
        predictions: [N, K] in the order of the table and its target names.
        table: the rows.
        groups: [N] labels; whole groups are drawn instead of images.
        draws: resamples; at least 100, however many rows there are.
        seed: the same seed gives the same interval.
        level: share of the draws between the ends.

    Raises:
        DataError: there is only one image or group, or the metric has no value on most draws.
    """
    value = metric(targets, predictions, table)
    (scores,) = _resample(metric, targets, [predictions], table, groups=groups, draws=draws, seed=seed)
    return _percentiles(value, scores, level)


def paired(
    metric: Metric,
    targets: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    table: Rows,
    *,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the difference `score(a) - score(b)` with its interval, both scored on the same draws.

    Args and Raises are those of `interval`; `a` and `b` are [N, K] predictions.
    """
    return contrasts(metric, targets, a, [b], table, groups=groups, draws=draws, seed=seed, level=level)[0]


def contrasts(
    metric: Metric,
    targets: np.ndarray,
    a: np.ndarray,
    others: Sequence[np.ndarray],
    table: Rows,
    *,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Return the differences `score(a) - score(b)` for each `b` of others, all scored on the same draws.

    Args and Raises are those of `interval`; `a` and the others are [N, K] predictions.
    """
    drawn = differences(metric, targets, a, others, table, groups=groups, draws=draws, seed=seed)
    return [_percentiles(-value, -some, level) for value, some in drawn]


def differences(
    metric: Metric,
    targets: np.ndarray,
    base: np.ndarray,
    others: Sequence[np.ndarray],
    table: Rows,
    *,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[tuple[float, np.ndarray]]:
    """Return `score(other) - score(base)` of each of the others, and [draws] of it on the same draws, NaN without one.

    Args and Raises are those of `interval`; `base` and the others are [N, K] predictions.
    """
    values = [metric(targets, one, table) for one in (base, *others)]
    first, *rest = _resample(metric, targets, [base, *others], table, groups=groups, draws=draws, seed=seed)
    return [(value - values[0], one - first) for value, one in zip(values[1:], rest, strict=True)]


def _percentiles(value: float, scores: np.ndarray, level: float) -> Interval:
    defined = scores[~np.isnan(scores)]
    if 2 * len(defined) < len(scores):
        raise DataError(
            f"the metric has a value on only {len(defined)} of {len(scores)} bootstrap draws",
            "rows of every class in most draws",
            "use more rows, or a metric that does not need every class",
        )
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, len(defined))


def _resample(
    metric: Metric,
    targets: np.ndarray,
    members: list[np.ndarray],
    table: Rows,
    *,
    groups: np.ndarray | None,
    draws: int,
    seed: int,
) -> list[np.ndarray]:
    """Return [draws] scores of each member, NaN where the metric has no value."""
    if groups is None:
        codes, count = np.arange(len(targets)), len(targets)
    else:
        names, codes = np.unique(groups, return_inverse=True)
        count = len(names)
    if count < 2:
        what = "image" if groups is None else "group"
        raise DataError(
            f"a bootstrap interval of {count} {what}", f"two or more {what}s", "score more rows, or without groups"
        )
    rng = np.random.default_rng(seed)
    if metric.per_row is not None:
        rows = [metric.per_row(targets, member, table) for member in members]
        return _resample_means(rows, codes, count, draws=draws, rng=rng)
    return _resample_rows(metric, targets, members, table, codes=codes, count=count, draws=draws, rng=rng)


def _affordable(draws: int, work: int, budget: int) -> int:
    return min(draws, max(_FEWEST, budget // max(1, work)))


def _picks(rng: np.random.Generator, count: int, draws: int) -> Iterator[np.ndarray]:
    """Yield [n, count] numbers of drawn groups, `draws` rows in all, a few megabytes at a time."""
    step = max(1, _CHUNK // count)
    for start in range(0, draws, step):
        yield rng.integers(count, size=(min(step, draws - start), count))


def _resample_means(
    rows: list[np.ndarray], codes: np.ndarray, count: int, *, draws: int, rng: np.random.Generator
) -> list[np.ndarray]:
    sums = [np.bincount(codes, weights=np.nan_to_num(values), minlength=count) for values in rows]
    sizes = [np.bincount(codes, weights=~np.isnan(values), minlength=count) for values in rows]
    chunks: list[list[np.ndarray]] = [[] for _ in rows]
    for picks in _picks(rng, count, _affordable(draws, count, _MEANS)):
        for member, scores in enumerate(chunks):
            total, size = sums[member][picks].sum(axis=1), sizes[member][picks].sum(axis=1)
            scores.append(np.divide(total, size, out=np.full(len(total), np.nan), where=size > 0))
    return [np.concatenate(scores) for scores in chunks]


def _resample_rows(
    metric: Metric,
    targets: np.ndarray,
    members: list[np.ndarray],
    table: Rows,
    *,
    codes: np.ndarray,
    count: int,
    draws: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes, minlength=count)
    starts = np.cumsum(sizes) - sizes
    scores = []
    for picks in _picks(rng, count, _affordable(draws, members[0].size * len(members) // 2, _VALUES)):
        for pick in picks:
            lengths = sizes[pick]
            ends = np.cumsum(lengths)
            rows = order[np.arange(ends[-1]) + np.repeat(starts[pick] - (ends - lengths), lengths)]
            drawn = Drawn(table, rows)
            scores.append([metric.function(targets[rows], member[rows], drawn) for member in members])
    return list(np.array(scores, dtype=np.float64).T)


@dataclass(frozen=True)
class Drawn:
    """Rows of a table, some of them several times; what a metric sees of one draw."""

    table: Rows
    rows: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """[n] ids."""
        return np.asarray(self.table.ids[self.rows])

    @property
    def task(self) -> str:
        """The competition's."""
        return self.table.task

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets."""
        return self.table.target_names

    @property
    def meta(self) -> pd.DataFrame | None:
        """Metadata of the rows."""
        meta = self.table.meta
        return None if meta is None else meta.iloc[self.rows].reset_index(drop=True)

    def column(self, name: str) -> np.ndarray:
        """[n] values of a column."""
        return np.asarray(self.table.column(name)[self.rows])
