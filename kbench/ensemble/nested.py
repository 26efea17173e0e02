"""Honest scores of what is fitted on out-of-fold rows: weights, members left out, thresholds, cut points.

    plain  = fitted on all rows, scored on all rows                       what a leaderboard will not repeat
    nested = each fold's rows with what was fitted on the other folds     what it may

Their difference is the optimism of fitting. `crossfit` does it for anything that is fitted: weights and decisions here,
the numbers of a mask rule in `mask_tuning.py`. To have something else fitted to rows, add it to `Fit`, `fit` and
`applied`.

Stone, "Cross-validatory choice and assessment of statistical predictions" (1974); row F-25's held-out thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np

from kbench.ensemble.average import Stack, ranked_by_fold
from kbench.ensemble.bootstrap import Interval, contrasts, interval
from kbench.ensemble.combiners import Combiner
from kbench.ensemble.decisions import Decision
from kbench.errors import PredictionError, first_names
from kbench.metrics.metric import Metric, Rows

F = TypeVar("F")
WHOLE = -1  # the part of what is fitted on all rows
_DRAWS = 1000  # of a bootstrap that is reported
_TRIAL_DRAWS = 200  # of one that decides about a member


@dataclass(frozen=True)
class Recipe:
    """What is fitted to make one prediction of members.

    Attributes:
        combiner: how they are weighed.
        decision: how probabilities become labels or numbers grades, or None.
        prune: whether members whose gain is inside the noise are left out.
    """

    combiner: Combiner
    decision: Decision | None = None
    prune: bool = False

    @property
    def fitted(self) -> bool:
        """Whether anything depends on out-of-fold rows."""
        return self.combiner.fitted or self.prune or self.decision is not None


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        weights: [M], which sum to 1.
        decided: what the decision found, or None.
    """

    weights: np.ndarray
    decided: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome(Generic[F]):
    """What is fitted to out-of-fold rows, and what it is worth.

    Attributes:
        fit: found on all rows; it is what is sent.
        plain: score of that fit on the same rows; optimistic when something is fitted.
        nested: score of each fold's rows with the fit of the others; the plain one when nothing is fitted.
        values: [N, ...] what the metric takes of the nested predictions: [N, K] float32, decided where there is a
            decision, or [N, K, 3] of maps.
        parts: [N] int, the part each row was judged in: its fold, or a fifth of the only fold there is.
        by_part: part -> what the other parts found; empty when nothing is fitted.
    """

    fit: F
    plain: Interval
    nested: Interval
    values: np.ndarray = field(compare=False, repr=False)
    parts: np.ndarray = field(compare=False, repr=False)
    by_part: dict[int, F]


def crossfit(
    parts: np.ndarray,
    *,
    fit: Callable[[Mapping[int, np.ndarray]], Mapping[int, F]],
    apply: Callable[[F, Mapping[int, F]], tuple[np.ndarray, np.ndarray]],
    score: Callable[[np.ndarray], Interval],
) -> Outcome[F]:
    """Fit something on all rows and, for each part, on the rows of the others; score it plain and nested.

    Args:
        parts: [N] int, the part of each row. With one part nothing is nested.
        fit: part, or `WHOLE` -> [N] bool rows to fit on; returns what was found for each.
        apply: (what all rows found, part -> what the others found) -> plain and nested [N, ...] values; with no part
            the nested ones are the plain ones.
        score: [N, ...] values -> score with its interval.
    """
    rows = {WHOLE: np.ones(len(parts), dtype=bool)}
    numbers = [int(part) for part in np.unique(parts)]
    rows |= {part: parts != part for part in numbers} if len(numbers) > 1 else {}
    fits = dict(fit(rows))
    whole = fits.pop(WHOLE)
    plain, nested = apply(whole, fits)
    return Outcome(whole, score(plain), score(nested), nested, parts, fits)


def fit(stack: Stack, recipe: Recipe) -> Fit:
    """Return what a recipe finds on a stack's rows.

    Raises:
        PredictionError: members of only some targets are to be weighed.
    """
    if stack.covers is not None and (recipe.combiner.fitted or recipe.combiner.ranks or recipe.prune):
        lacking = [name for name, covers in zip(stack.names, stack.covers, strict=True) if not covers.all()]
        raise PredictionError(
            f"{first_names(lacking)} predict only some of the targets", "members of all targets, to weigh them",
            "leave them out, or `--combine mean`, which averages every target over the members that have it",
        )  # fmt: skip
    judged = stack
    if recipe.decision is not None and (recipe.combiner.fitted or recipe.prune):
        plain = recipe.decision.fit(stack.metric, stack.targets, stack.mixed(stack.base), stack.table)
        judged = replace(stack, metric=_of_decided(stack.metric, recipe.decision, plain))
    weights = recipe.combiner.weights(judged)
    if recipe.prune:
        weights = pruned(judged, weights)
    if recipe.decision is None:
        return Fit(weights)
    return Fit(weights, recipe.decision.fit(stack.metric, stack.targets, stack.mixed(weights), stack.table))


def _of_decided(metric: Metric, decision: Decision, fitted: dict[str, Any]) -> Metric:
    """Return the metric of predictions that are decided first: what weights are to be good for."""

    def function(targets: np.ndarray, values: np.ndarray, table: Rows) -> float:
        return metric.function(targets, decision.apply(values, fitted), table)

    def per_row(targets: np.ndarray, values: np.ndarray, table: Rows) -> np.ndarray:
        assert metric.per_row is not None, "asked only of metrics that are means over rows"
        return metric.per_row(targets, decision.apply(values, fitted), table)

    return replace(metric, function=function, per_row=None if metric.per_row is None else per_row)


def applied(stack: Stack, recipe: Recipe, fitted: Fit) -> np.ndarray:
    """Return [N, K] float32 predictions of a stack's rows by what was found, perhaps on other rows."""
    mixed = stack.mixed(fitted.weights)
    if recipe.decision is None or fitted.decided is None:
        return mixed
    return recipe.decision.apply(mixed, fitted.decided)


def evaluate(stack: Stack, recipe: Recipe, *, draws: int = _DRAWS) -> Outcome[Fit]:
    """Fit a recipe, and score it plain and nested.

    Where only one fold is trained, fifths of its rows (or groups) take the place of folds.

    Args:
        stack: the members.
        recipe: what is fitted.
        draws: of the scores' intervals.

    Raises:
        DataError: there is only one row or group.
    """
    if recipe.combiner.ranks:
        stack = ranked_by_fold(stack)
    if not recipe.fitted:
        whole = fit(stack, recipe)
        values = applied(stack, recipe, whole)
        plain = _interval(stack, values, draws)
        return Outcome(whole, plain, plain, values, stack.fold, {})
    parts = parts_of(stack.fold, stack.groups)

    def apply(whole: Fit, by_part: Mapping[int, Fit]) -> tuple[np.ndarray, np.ndarray]:
        values = applied(stack, recipe, whole)
        nested = np.empty_like(values)
        for part, fitted in by_part.items():
            nested[parts == part] = applied(stack.select(parts == part), recipe, fitted)
        return values, nested

    return crossfit(
        parts,
        fit=lambda of: {part: fit(stack if part == WHOLE else stack.select(rows), recipe) for part, rows in of.items()},
        apply=apply,
        score=lambda values: _interval(stack, values, draws),
    )


def parts_of(fold: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return [N] int, the parts that what is fitted is nested by: the folds, or five parts of the only one.

    Args:
        fold: [N] int, the fold of each row.
        groups: [N] labels whose rows stay together, or None.
    """
    if len(np.unique(fold)) > 1:
        return fold
    units = np.arange(len(fold)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(units.max()) + 1  # two or more, or there were no interval
    order = np.random.default_rng(0).permutation(count)
    return np.asarray((order % min(5, count))[units])


def decided_by_part(recipe: Recipe, outcome: Outcome[Fit], values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return other predictions of some of the rows, each decided by what the parts it is not in found.

    Args:
        recipe: its decision is used.
        outcome: of the recipe.
        values: [n, K] predictions.
        rows: [n] int, which of the outcome's rows they are.
    """
    if recipe.decision is None:
        return values
    decided = np.empty(values.shape, dtype=np.float32)
    for part, fitted in outcome.by_part.items():
        inside = outcome.parts[rows] == part
        assert fitted.decided is not None, "every part decided"
        decided[inside] = recipe.decision.apply(values[inside], fitted.decided)
    return decided


def _interval(stack: Stack, values: np.ndarray, draws: int) -> Interval:
    return interval(stack.metric, stack.targets, stack.measured(values), stack.table, groups=stack.groups, draws=draws)


# -- what each member adds ---------------------------------------------------------------------------------------


def _adds(stack: Stack, whole: np.ndarray, without: list[np.ndarray], *, draws: int) -> list[Interval]:
    """Return how much better the whole is than each of [N, K] mixtures, larger is better whatever the metric."""
    intervals = contrasts(
        stack.metric, stack.targets, stack.measured(whole), list(map(stack.measured, without)), stack.table,
        groups=stack.groups, draws=draws,
    )  # fmt: skip
    if stack.metric.maximise:
        return intervals
    return [replace(one, value=-one.value, low=-one.high, high=-one.low) for one in intervals]


def gains(stack: Stack, recipe: Recipe, outcome: Outcome[Fit]) -> list[dict[str, Any]]:
    """Return what each member adds: `member`, `weight`, `alone`, `adds`, `low`, `high`; the heaviest first.

    `adds` is the nested score less that of the same mixtures without the member (the others keep their weights, and
    each fold its thresholds), larger is better whatever the metric. An interval around 0 says that it may be chance.
    Members without weight add nothing; a single one, or the only one of a target, has nothing to be left out of. A
    member that some folds lack is scored `alone` on the rows of the others.
    """
    if recipe.combiner.ranks:
        stack = ranked_by_fold(stack)
    weights = outcome.fit.weights
    fits = outcome.by_part or {int(part): outcome.fit for part in np.unique(outcome.parts)}
    order = [int(member) for member in np.argsort(-weights, kind="stable")]
    used = [member for member in order if weights[member] > 0 and stack.complete(_without(weights, member))]
    without = [_nested(stack, recipe, outcome.parts, fits, leave_out=member) for member in used]
    gain_of = dict(zip(used, _adds(stack, outcome.values, without, draws=_DRAWS), strict=True)) if used else {}
    records = []
    for member in order:
        alone = np.zeros(len(weights))
        alone[member] = 1
        values = _nested(stack, recipe, outcome.parts, fits, only=alone) if stack.complete(alone) else None
        score = None if values is None else _own_score(stack, member, values)
        gain = gain_of.get(member)
        records.append(
            {"member": stack.names[member], "weight": float(weights[member]),
             "alone": score,
             "adds": gain and gain.value, "low": gain and gain.low, "high": gain and gain.high}
        )  # fmt: skip
    return records


def _own_score(stack: Stack, member: int, values: np.ndarray) -> float | None:
    """Return the score of a member's predictions on the rows of the folds that have it; None where there is none."""
    if stack.lent is None or not stack.lent[member].any():
        return stack.score(values)
    own = ~stack.lent[member]
    few = stack.select(own)
    return few.metric.or_none(few.targets, few.measured(values[own]), few.table)


def _without(weights: np.ndarray, member: int) -> np.ndarray:
    return np.where(np.arange(len(weights)) == member, 0, weights)


def _nested(
    stack: Stack,
    recipe: Recipe,
    parts: np.ndarray,
    fits: dict[int, Fit],
    *,
    only: np.ndarray | None = None,
    leave_out: int | None = None,
) -> np.ndarray:
    """Return nested predictions with other weights: those given, or the fitted ones less a member."""
    values = np.empty(stack.values.shape[1:], dtype=np.float32)
    for part, fitted in fits.items():
        rows = parts == part
        weights = fitted.weights.copy() if only is None else only
        if leave_out is not None and weights.sum() > weights[leave_out]:
            weights[leave_out] = 0
        values[rows] = applied(stack.select(rows), recipe, replace(fitted, weights=weights))
    return values


def pruned(stack: Stack, weights: np.ndarray) -> np.ndarray:
    """Return weights without the members whose gain is inside the noise.

    Of those whose interval holds 0 or lies below, the member that adds least goes first; then the gains of the others
    are taken anew, since of two alike members only one may go. One member always stays.
    """
    weights = weights.copy()
    while int((weights > 0).sum()) > 1:
        used = np.flatnonzero(weights > 0)
        without = [stack.mixed(_without(weights, int(member))) for member in used]
        adds = _adds(stack, stack.mixed(weights), without, draws=_TRIAL_DRAWS)
        noise = [place for place, one in enumerate(adds) if one.low <= 0]
        if not noise:
            break
        weights[used[min(noise, key=lambda place: adds[place].value)]] = 0
        weights /= weights.sum()
    return weights
