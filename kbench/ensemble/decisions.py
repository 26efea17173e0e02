"""From probabilities to labels, from numbers to grades: thresholds and cut points that are found, not guessed.

A decision is fitted on out-of-fold predictions for the competition's metric and applied to whatever is scored or
sent. It returns decided values of the same shape (0 and 1 for labels, whole grades for numbers), so that every
metric and every submission format takes them as they are. To add one:

    @register("decision", tasks=("multi_label",))
    def mine(*, steps: int = 10) -> Decision: ...

What is fitted is scored nested (`nested.py`): a fold's rows are decided by what the other folds found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kbench.errors import ConfigError, check_number, first_names
from kbench.metrics.metric import Metric, Rows, row_mean
from kbench.registry import register

Fitted = dict[str, Any]
_SWEEPS = 20  # passes over all labels or cut points; each ends earlier when nothing gets better
_NOISE = 1e-12  # differences of scores that are rounding
_PLACES = 128  # places a cut point is tried at in one pass


@dataclass(frozen=True)
class Decision:
    """A way to decide.

    Attributes:
        fit: (metric, targets, [N, K] values, table) -> what was found, as JSON values.
        apply: ([N, K] values, what was found) -> [N, K] float32 decided values.
    """

    fit: Callable[[Metric, np.ndarray, np.ndarray, Rows], Fitted]
    apply: Callable[[np.ndarray, Fitted], np.ndarray]


@register("decision", tasks=("multi_label",))
def threshold(*, per_label: bool = False, low: float = 0.01, high: float = 0.99, step: float = 0.01) -> Decision:
    """Predict the labels above a threshold: the one that scores best on a grid, or one per label.

    Per label: from the best common threshold, one label after the other takes its best one, until a pass changes
    nothing. Of equally good thresholds the middle one counts. fast.ai's search for the planet competition is
    `{low: 0.17, high: 0.23, step: 0.01}`.

    Args:
        per_label: one threshold for each label.
        low: first threshold tried.
        high: last threshold tried.
        step: distance of the thresholds.

    Raises:
        ConfigError: the grid is empty or out of range.

    Source: `opt_th` of fast.ai's planet.py, row F-25.
    """
    check_number("ensemble.decision.low", low, "[0, 1)")
    check_number("ensemble.decision.high", high, "[0, 1)")
    check_number("ensemble.decision.step", step, "(0, 1)")
    if high < low:
        raise ConfigError(
            f"ensemble.decision from {low} to {high}", "low up to high", "write low: 0.17, high: 0.23, step: 0.01"
        )
    grid = np.round(low + step * np.arange(int((high - low) / step + 1e-6) + 1), 10)

    def fit(metric: Metric, targets: np.ndarray, values: np.ndarray, table: Rows) -> Fitted:
        scores = [_value(metric, targets, _above(values, limit), table) for limit in grid]
        start = float(grid[_best(np.array(scores), metric)])
        if not per_label:
            return {"threshold": start}
        limits = _per_label(metric, targets, values, table, grid=grid, start=start)
        return {"thresholds": dict(zip(table.target_names, limits, strict=True))}

    def apply(values: np.ndarray, fitted: Fitted) -> np.ndarray:
        limits = fitted["threshold"] if "threshold" in fitted else list(fitted["thresholds"].values())
        return _above(values, limits)

    return Decision(fit, apply)


def _above(values: np.ndarray, limits: float | Sequence[float]) -> np.ndarray:
    return np.asarray(values > np.asarray(limits, dtype=values.dtype), dtype=np.float32)


def _best(scores: np.ndarray, metric: Metric) -> int:
    """Return the middle one of the best scores; NaN is none."""
    scores = np.where(np.isnan(scores), -np.inf, scores if metric.maximise else -scores)
    places = np.flatnonzero(scores >= scores.max() - _NOISE)
    return int(places[(len(places) - 1) // 2])


def _per_label(
    metric: Metric, targets: np.ndarray, values: np.ndarray, table: Rows, *, grid: np.ndarray, start: float
) -> list[float]:
    k = values.shape[1]
    limits = np.full(k, start)
    chosen = _above(values, start)
    score = _value(metric, targets, chosen, table)
    for _ in range(_SWEEPS):
        before = limits.copy()
        for label in range(k):
            scores = _label_scores(metric, targets, values, table, chosen, label, grid)
            place = _best(scores, metric)
            if _clearly_better(metric, float(scores[place]), score):
                limits[label], score = grid[place], float(scores[place])
                chosen[:, label] = _above(values[:, label], float(grid[place]))
        if np.array_equal(before, limits):
            break
    return [float(limit) for limit in limits]


def _label_scores(
    metric: Metric, targets: np.ndarray, values: np.ndarray, table: Rows, chosen: np.ndarray, label: int,
    grid: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the score at each threshold of one label, the others as they are.

    A metric that is a mean over rows is asked twice, with the label everywhere and nowhere: a threshold only picks
    one of the two values for each row.
    """
    trial = chosen.copy()
    if metric.per_row is None:
        scores = []
        for limit in grid:
            trial[:, label] = _above(values[:, label], float(limit))
            scores.append(_value(metric, targets, trial, table))
        return np.array(scores)
    ends = []
    for everywhere in (0, 1):
        trial[:, label] = everywhere
        ends.append(metric.per_row(targets, trial, table))
    limits = grid.astype(values.dtype)
    return np.array([row_mean(np.where(values[:, label] > limit, ends[1], ends[0])) for limit in limits])


@register("decision", tasks=("regression",))
def cut_points(*, grades: list[int] | None = None) -> Decision:
    """Turn numbers into whole grades at cut points that score best: ordinal targets trained as regression.

    The search begins with rounding and with cut points that give each grade its share of the rows, goes on from
    the better one, and moves one cut point at a time until a pass changes nothing.

    Args:
        grades: the whole grades there are, rising; those from the lowest to the highest target by default.

    Raises:
        ConfigError: the grades are not two or more rising numbers.
    """
    if grades is not None and (len(grades) < 2 or sorted(set(grades)) != grades):
        raise ConfigError(
            f"ensemble.decision.grades is {grades}", "two or more rising whole numbers", "write grades: [0, 1, 2, 3, 4]"
        )

    def fit(metric: Metric, targets: np.ndarray, values: np.ndarray, table: Rows) -> Fitted:
        known = [_grades(targets[:, k], name, grades) for k, name in enumerate(table.target_names)]
        starts = [
            [_rounding(levels) for levels in known],
            [_shares(known[k], targets[:, k], values[:, k]) for k in range(len(known))],
        ]
        rounded, shared = (_begin(metric, targets, values, table, known, start) for start in starts)
        best = _search(shared if metric.better(shared.score, rounded.score) else rounded)
        names = table.target_names
        return {
            "grades": dict(zip(names, known, strict=True)),
            "cut_points": {name: [float(cut) for cut in cuts] for name, cuts in zip(names, best.cuts, strict=True)},
        }

    def apply(values: np.ndarray, fitted: Fitted) -> np.ndarray:
        columns = [
            _graded(values[:, k], fitted["grades"][name], np.asarray(cuts))
            for k, (name, cuts) in enumerate(fitted["cut_points"].items())
        ]
        return np.stack(columns, axis=1)

    return Decision(fit, apply)


def _grades(targets: np.ndarray, name: str, grades: list[int] | None) -> list[int]:
    known = targets[~np.isnan(targets)]
    if len(known) and not np.array_equal(known, np.rint(known)):
        odd = known[known != np.rint(known)][0]
        raise ConfigError(
            f"the target '{name}' has the value {odd:g}", "whole grades, as `ensemble.decision: cut_points` needs",
            "remove ensemble.decision from the YAML, or correct the table",
        )  # fmt: skip
    if grades is None:
        return list(range(int(known.min()), int(known.max()) + 1)) if len(known) else [0]
    outside = np.setdiff1d(known, grades)
    if len(outside):
        raise ConfigError(
            f"the target '{name}' has grades that are not listed: {first_names([f'{one:g}' for one in outside])}",
            f"the grades {grades}", "correct ensemble.decision.grades in the YAML",
        )  # fmt: skip
    return grades


def _rounding(grades: list[int]) -> np.ndarray:
    return np.asarray((np.asarray(grades[:-1], dtype=np.float64) + np.asarray(grades[1:])) / 2)


def _shares(grades: list[int], targets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return cut points that put as many rows into each grade as the truth has."""
    known = ~np.isnan(targets)
    below = [float((targets[known] <= grade).mean()) if known.any() else 0.5 for grade in grades[:-1]]
    return np.asarray(np.quantile(values[known] if known.any() else values, below), dtype=np.float64)


def _graded(values: np.ndarray, grades: Sequence[int], cuts: np.ndarray) -> np.ndarray:
    """Return the grade of each value: the number of cut points at or below it counts up from the first grade."""
    places = np.searchsorted(cuts, values.astype(np.float64), side="right")
    return np.asarray(np.asarray(grades, dtype=np.float32)[places])


@dataclass
class _Cuts:
    """Cut points of all targets while they are searched: `cuts`, the grades they make, and their score."""

    metric: Metric
    targets: np.ndarray
    values: np.ndarray
    table: Rows
    grades: list[list[int]]
    cuts: list[np.ndarray]
    made: np.ndarray
    score: float


def _begin(
    metric: Metric, targets: np.ndarray, values: np.ndarray, table: Rows, grades: list[list[int]],
    cuts: list[np.ndarray],
) -> _Cuts:  # fmt: skip
    graded = np.stack([_graded(values[:, k], grades[k], cuts[k]) for k in range(len(cuts))], axis=1)
    return _Cuts(metric, targets, values, table, grades, cuts, graded, _value(metric, targets, graded, table))


def _search(state: _Cuts) -> _Cuts:
    """Move one cut point after the other until a pass changes nothing."""
    for _ in range(_SWEEPS):
        moved = [_move(state, k, j) for k in range(len(state.cuts)) for j in range(len(state.cuts[k]))]
        if not any(moved):
            break
    return state


def _move(state: _Cuts, target: int, cut: int) -> bool:
    """Put one cut point where it scores best between its neighbours; return whether it moved."""
    column, cuts = state.values[:, target].astype(np.float64), state.cuts[target]
    low = cuts[cut - 1] if cut else -np.inf
    high = cuts[cut + 1] if cut + 1 < len(cuts) else np.inf
    edges = np.unique(column[(column > low) & (column < high)])
    places = (edges[1:] + edges[:-1]) / 2
    if len(places) > _PLACES:
        places = places[np.unique(np.linspace(0, len(places) - 1, _PLACES).astype(int))]
    moved = False
    for place in places:
        trial_cuts, trial = cuts.copy(), state.made.copy()
        trial_cuts[cut] = place
        trial[:, target] = _graded(column, state.grades[target], trial_cuts)
        score = _value(state.metric, state.targets, trial, state.table)
        if _clearly_better(state.metric, score, state.score):
            state.score, state.made, state.cuts[target], moved = score, trial, trial_cuts, True
    return moved


def _value(metric: Metric, targets: np.ndarray, values: np.ndarray, table: Rows) -> float:
    """Return the score; NaN where it has none, such as the kappa of a single grade."""
    return float(metric.function(targets, values, table))


def _clearly_better(metric: Metric, new: float, old: float) -> bool:
    """Return whether a score is better by more than rounding."""
    return metric.better(new, old + (_NOISE if metric.maximise else -_NOISE))
