"""Whether one way of training is better than another: differences of scores, their intervals, and a word.

Two runs are compared row by row: they are scored on the same draws of images, or of whole groups. Yet an image's luck
is not all: another seed trains other weights. What that is worth shows in how the difference varies from fold to fold,
each of which was trained by itself, more than its images explain; it widens the interval, with as many degrees of
freedom as it was estimated with (Satterthwaite 1946, eq. 17; of a mean over K folds the variance between them over K).

Where several runs are held against one, the level is kept over all of them together by Holm's step-down procedure
(Holm 1979), and intervals are as wide as its step asks: an interval without 0 and a verdict say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kbench.ensemble.bootstrap import Drawn, differences
from kbench.errors import DataError
from kbench.metrics.metric import Metric, Rows

LEVEL = 0.9  # of a verdict: `better` where nothing is happens in 5 of 100 comparisons, and so does `worse`
Word = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """How a run compares with another one.

    Attributes:
        difference: score less the other's score, in the metric's own direction and units.
        low: lower end of its interval, corrected for how many are compared.
        high: upper end.
        error: its standard error: images, and what varies between folds beyond them.
        freedom: degrees of freedom of that; infinite where folds vary no more than their images do.
        p: two-sided, of no difference; not corrected.
        verdict: `better`, `worse` or `cannot tell`.
        folds: how many trained folds it was seen on; of one, nothing says what another seed would change.
    """

    difference: float
    low: float
    high: float
    error: float
    freedom: float
    p: float
    verdict: Word
    folds: int


@dataclass(frozen=True)
class Difference:
    """A difference of two scores and how sure it is.

    Attributes:
        value: score less the other's score.
        error: its standard error.
        freedom: degrees of freedom of that.
        folds: how many folds it was seen on.
    """

    value: float
    error: float
    freedom: float
    folds: int


def difference(
    metric: Metric,
    targets: np.ndarray,
    base: np.ndarray,
    other: np.ndarray,
    table: Rows,
    *,
    folds: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Difference:
    """Return how the score of some predictions differs from that of others.

    Args:
        metric: the metric.
        targets: those of the table.
        base: [N, K] predictions the others are held against.
        other: [N, K] predictions.
        table: the rows.
        folds: [N] int, whose models predicted a row.
        groups: [N] labels; whole groups are drawn instead of images.
        draws: resamples.
        seed: the same seed gives the same draws.

    Raises:
        DataError: there is only one image or group, or the metric has no value on most draws.
    """
    ((value, drawn),) = differences(metric, targets, base, [other], table, groups=groups, draws=draws, seed=seed)
    known = drawn[~np.isnan(drawn)]
    if 2 * len(known) < len(drawn):
        raise DataError(
            f"the metric has a value on only {len(known)} of {len(drawn)} bootstrap draws",
            "rows of every class in most draws", "compare on more rows, or by a metric that does not need every class",
        )  # fmt: skip
    images, numbers = float(np.var(known, ddof=1)), np.unique(folds)
    by_fold = []
    for fold in numbers:
        rows = np.flatnonzero(folds == fold)
        new, old = (metric.or_none(targets[rows], one[rows], Drawn(table, rows)) for one in (other, base))
        by_fold += [] if new is None or old is None else [new - old]
    count = len(by_fold)
    # the mean over folds varies by what their images do (a fold has 1 / count of them), and by training
    training = 0.0 if count < 2 else max(0.0, float(np.var(by_fold, ddof=1)) / count - images)
    freedom = (count - 1) * ((images + training) / training) ** 2 if training else float("inf")
    return Difference(value, float(np.sqrt(images + training)), freedom, len(numbers))


def verdicts(known: Sequence[Difference], *, maximise: bool, level: float = LEVEL) -> list[Verdict]:
    """Return what differences say, by Holm's step-down procedure.

    Args:
        known: the differences, each to the same base.
        maximise: whether larger scores are better.
        level: of all together, where nothing is better or worse.
    """
    from scipy import stats

    def tail(size: float, freedom: float) -> float:
        return float(stats.norm.sf(size) if np.isinf(freedom) else stats.t.sf(size, freedom))

    def reach(alpha: float, freedom: float) -> float:
        return float(stats.norm.isf(alpha / 2) if np.isinf(freedom) else stats.t.isf(alpha / 2, freedom))

    def chance(one: Difference) -> float:
        return 1.0 if not one.value else 2 * tail(abs(one.value) / one.error, one.freedom) if one.error else 0.0

    ps = [chance(one) for one in known]
    words: dict[int, Verdict] = {}
    left, going = len(known), True
    for place in np.argsort(ps, kind="stable").tolist():
        one = known[place]
        alpha = (1 - level) / left
        going = going and ps[place] < alpha
        left -= going  # once one is not told apart, no other is, at the step it failed at
        width = reach(alpha, one.freedom) * one.error
        word: Word = "cannot tell" if not going else "better" if (one.value > 0) == maximise else "worse"
        words[place] = Verdict(
            one.value, one.value - width, one.value + width, one.error, one.freedom, ps[place], word, one.folds
        )
    return [words[place] for place in range(len(known))]
