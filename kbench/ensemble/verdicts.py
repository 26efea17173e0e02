"""Whether one way of training is better than another: differences of scores, their intervals, and a word.

Two runs are compared row by row: they are scored on the same draws of images, or of whole groups. Yet an image's luck is
not all: another seed trains other weights. What that is worth shows in how the difference varies from fold to fold, each
of which was trained by itself, more than its images explain; it widens the interval, with as many degrees of freedom as
it was estimated with (Satterthwaite 1946, eq. 17; of a mean over K folds the variance between them over K).

Where several runs are held against one, the level is kept over all of them together by Holm's step-down procedure
(Holm 1979), and intervals are as wide as its step asks: an interval without 0 and a verdict say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kbench.ensemble.bootstrap import Drawn, differences
from kbench.metrics.metric import Metric, Rows

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


def verdicts(
    metric: Metric,
    targets: np.ndarray,
    base: np.ndarray,
    others: Sequence[np.ndarray],
    table: Rows,
    *,
    folds: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Verdict]:
    """Return how each of some predictions compares with `base`.

    Args:
        metric: the metric.
        targets: those of the table.
        base: [N, K] predictions of what the others are held against.
        others: [N, K] predictions of each.
        table: the rows.
        folds: [N] int, whose models predicted a row.
        groups: [N] labels; whole groups are drawn instead of images.
        draws: resamples.
        seed: the same seed gives the same verdicts.
        level: of all verdicts together, where nothing is better or worse.

    Raises:
        DataError: there is only one image or group, or the metric has no value on most draws.
    """
    if not others:
        return []
    drawn = differences(metric, targets, base, others, table, groups=groups, draws=draws, seed=seed)
    known = [
        (value, *_error(metric, targets, base, other, table, folds, float(np.nanvar(some, ddof=1))))
        for (value, some), other in zip(drawn, others, strict=True)
    ]
    return holm(known, maximise=metric.maximise, folds=len(np.unique(folds)), level=level)


def _error(
    metric: Metric, targets: np.ndarray, base: np.ndarray, other: np.ndarray, table: Rows, folds: np.ndarray,
    images: float,
) -> tuple[float, float]:
    """Return the standard error of a difference and its degrees of freedom.

    Args:
        metric: the metric.
        targets: those of the table.
        base: what the other is held against.
        other: predictions.
        table: the rows.
        folds: [N] int.
        images: variance of the difference over draws of images.
    """
    by_fold = []
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        scores = [metric.or_none(targets[rows], one[rows], Drawn(table, rows)) for one in (other, base)]
        if scores[0] is not None and scores[1] is not None:
            by_fold.append(scores[0] - scores[1])
    count = len(by_fold)
    if count < 2:
        return float(np.sqrt(images)), float("inf")
    training = max(0.0, float(np.var(by_fold, ddof=1)) / count - images)  # a fold has 1 / count of the images
    variance = images + training
    return float(np.sqrt(variance)), (count - 1) * (variance / training) ** 2 if training else float("inf")


def holm(
    known: Sequence[tuple[float, float, float]], *, maximise: bool, folds: int, level: float = 0.95
) -> list[Verdict]:
    """Return verdicts of differences by Holm's step-down procedure.

    Args:
        known: difference, standard error and degrees of freedom of each.
        maximise: whether larger scores are better.
        folds: how many they were seen on.
        level: of all together.
    """
    from scipy import stats

    def tail(size: float, freedom: float) -> float:
        return float(stats.norm.sf(size) if np.isinf(freedom) else stats.t.sf(size, freedom))

    def reach(alpha: float, freedom: float) -> float:
        return float(stats.norm.isf(alpha / 2) if np.isinf(freedom) else stats.t.isf(alpha / 2, freedom))

    def chance(value: float, error: float, freedom: float) -> float:
        return 1.0 if not value else 2 * tail(abs(value) / error, freedom) if error else 0.0

    ps = [chance(*one) for one in known]
    verdicts: dict[int, Verdict] = {}
    left, going = len(known), True
    for place in np.argsort(ps, kind="stable").tolist():
        value, error, freedom = known[place]
        alpha = (1 - level) / left
        going = going and ps[place] < alpha
        left -= going  # once one is not told apart, no other is, at the step it failed at
        width = reach(alpha, freedom) * error
        word: Word = "cannot tell" if not going else "better" if (value > 0) == maximise else "worse"
        verdicts[place] = Verdict(value, value - width, value + width, error, freedom, ps[place], word, folds)
    return [verdicts[place] for place in range(len(known))]
