"""Ways to weigh the members of an ensemble. A combiner finds [M] weights, none negative, which sum to 1.

To add one:

    @register("combiner")
    def mine(*, power: float = 2.0) -> Combiner: ...

What it finds is fitted to out-of-fold rows, so `nested.py` scores it nested: a fold's rows are mixed with the weights
found on the others. A combiner that looks at no row says `fitted=False`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from kbench.ensemble.average import Stack
from kbench.errors import ConfigError, check_number
from kbench.metrics.metric import Metric, make_metric
from kbench.registry import get, register

_STEPS = 500  # of the solver's second half; it ends when it is within _GAP of the optimum
_GAP = 1e-5  # in nats per entry
_SMALLEST = 1e-4  # weights below this are none


@dataclass(frozen=True)
class Combiner:
    """A way to weigh members.

    Attributes:
        weights: stack -> [M] weights that sum to 1, found on the stack's rows.
        fitted: whether they depend on the rows.
        ranks: whether members are compared by ranks instead of values.
    """

    weights: Callable[[Stack], np.ndarray]
    fitted: bool = True
    ranks: bool = False


@register("combiner")
def mean() -> Combiner:
    """Weigh all members alike: nothing is fitted."""
    return Combiner(lambda stack: stack.base, fitted=False)


@register("combiner", tasks=("single_label", "multi_label"))
def rank() -> Combiner:
    """Average ranks instead of values, all members alike, for metrics that look at the order only (AUC).

    Members may then be on any scale. Of single-label tasks, only two classes can be ranked.
    """

    def weights(stack: Stack) -> np.ndarray:
        if not get("metric", stack.metric.name).meta.get("by_rank"):
            raise ConfigError(
                f"the metric '{stack.metric.name}' looks at more than the order of the predictions",
                "a metric of ranks, such as auc", "set ensemble.combine to mean, weights or greedy",
            )  # fmt: skip
        if stack.table.task == "single_label" and stack.values.shape[2] > 2:
            raise ConfigError(
                f"ranks of {stack.values.shape[2]} classes do not sum to 1", "two classes, or labels",
                "set ensemble.combine to mean, weights or greedy",
            )  # fmt: skip
        if stack.mean != "arithmetic":
            raise ConfigError(
                "the geometric mean of ranks", "an arithmetic one", "set ensemble.mean: arithmetic in the YAML"
            )
        return stack.base

    return Combiner(weights, fitted=False, ranks=True)


@register("combiner")
def greedy(
    *,
    start: int = 1,
    draws: int = 50,
    patience: int = 10,
    bags: int = 0,
    share: float = 0.5,
    seed: int = 0,
    metric: str | None = None,
) -> Combiner:
    """Add the member that helps most, again and again, with replacement; how often it was added is its weight.

    Begins with the mean of the best members and keeps the best mean on the way, so with `start: 1` it never scores
    worse than the best member on the rows it was found on. Of equally good members the first counts.

    Args:
        start: how many of the best members it begins with.
        draws: members added at most.
        patience: additions without a better mean after which it ends.
        bags: selections from random subsets, whose weights are averaged; none with 0.
        share: of the members in a bag.
        seed: of the bags.
        metric: what is climbed; the competition's by default, of labels or grades as they are decided for the plain
            mean, if there is a decision.

    Raises:
        ConfigError: a parameter is out of range.

    Source: Caruana et al., "Ensemble selection from libraries of models" (2004).
    """
    check_number("ensemble.combine.start", start, "[1, inf)", whole=True)
    check_number("ensemble.combine.draws", draws, "[0, 10000]", whole=True)
    check_number("ensemble.combine.patience", patience, "[1, inf)", whole=True)
    check_number("ensemble.combine.bags", bags, "[0, 1000]", whole=True)
    check_number("ensemble.combine.share", share, "(0, 1]")
    climbed = make_metric(metric) if metric else None

    def weights(stack: Stack) -> np.ndarray:
        judge = climbed or stack.metric
        count, climb = len(stack.names), partial(_climb, stack, judge, start=start, draws=draws, patience=patience)
        if not bags:
            return climb(np.arange(count))
        rng = np.random.default_rng(seed)
        size = max(1, round(share * count))
        return np.asarray(np.mean([climb(np.sort(rng.permutation(count)[:size])) for _ in range(bags)], axis=0))

    return Combiner(weights)


def _climb(stack: Stack, metric: Metric, members: np.ndarray, *, start: int, draws: int, patience: int) -> np.ndarray:
    """Return the [M] weights of the best mean on the way."""
    added = [stack.into(int(member)) for member in members]

    def score(total: np.ndarray, count: int) -> float:
        return stack.score(stack.back(total / count), metric)

    def place_of_best(scores: list[float]) -> int:
        return int(np.argmax(scores) if metric.maximise else np.argmin(scores))

    alone = np.array([score(one, 1) for one in added])
    chosen = np.argsort(-alone if metric.maximise else alone, kind="stable")[:start].tolist()
    total = np.sum([added[place] for place in chosen], axis=0)
    best, length = score(total, len(chosen)), len(chosen)
    for _ in range(draws):
        scores = [score(total + one, len(chosen) + 1) for one in added]
        place = place_of_best(scores)
        chosen.append(place)
        total = total + added[place]
        if metric.better(scores[place], best):
            best, length = scores[place], len(chosen)
        elif len(chosen) - length >= patience:
            break
    counts = np.bincount(members[chosen[:length]], minlength=len(stack.names))
    return np.asarray(counts / counts.sum())


@register("combiner")
def weights() -> Combiner:
    """Find the weights with the smallest log loss, or squared error for regression; none is negative.

    Both are convex, so there is one best mixture; it is found whatever the competition's metric is. Members are
    averaged arithmetically.

    Raises:
        ConfigError: `ensemble.mean` is geometric.
    """

    def fitted(stack: Stack) -> np.ndarray:
        if stack.mean != "arithmetic":
            raise ConfigError(
                "ensemble.combine: weights with a geometric mean", "an arithmetic mean, whose best weights are unique",
                "set ensemble.mean: arithmetic, or ensemble.combine: greedy",
            )  # fmt: skip
        if "regression" in stack.table.task:
            return _least_squares(stack)
        return _largest_likelihood(_likelihoods(stack))

    return Combiner(fitted)


def _likelihoods(stack: Stack) -> np.ndarray:
    """Return [M, P] float64 probabilities that members give to what is true: of each row, or of each known label."""
    values, truth = stack.entries()
    if truth.ndim == 1:
        return np.maximum(values[:, np.arange(len(truth)), truth].astype(np.float64), 1e-15)
    known = ~np.isnan(truth)
    has = truth[known] > 0.5
    values = values[:, known].astype(np.float64)
    return np.maximum(np.where(has, values, 1 - values), 1e-15)


def _largest_likelihood(likelihoods: np.ndarray) -> np.ndarray:
    """Return [M] mixing weights of the largest likelihood.

    Sequential least squares come near; expectation maximisation ends it. Each of its steps multiplies a weight by the
    mean share of its member; the largest of these means less 1 bounds what is left to gain, in nats per entry.
    """
    from scipy.optimize import minimize

    members, entries = likelihoods.shape

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ likelihoods, 1e-300)
        return float(-np.log(mixed).mean()), -(likelihoods @ (1 / mixed)) / entries

    near = minimize(
        loss, np.full(members, 1 / members), jac=True, method="SLSQP", bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 100, "ftol": 1e-9},
    )  # fmt: skip
    weights = np.clip(near.x, 1e-6, 1)  # a weight of zero could not grow again
    weights /= weights.sum()
    for _ in range(_STEPS):
        shares = likelihoods @ (1 / (weights @ likelihoods)) / entries
        weights = weights * shares
        if shares.max() - 1 < _GAP:
            break
    return _without_dust(weights)


def _least_squares(stack: Stack) -> np.ndarray:
    """Return [M] weights, none negative and 1 in all, of the smallest squared error in each target's own spread."""
    from scipy.optimize import nnls

    values, targets = stack.entries()
    known = ~np.isnan(targets)
    spread = np.nanstd(targets, axis=0)  # [K]; every target is known somewhere
    spread = np.where(spread > 0, spread, 1)
    truth = (targets / spread)[known].astype(np.float64)
    guesses = (values / spread)[:, known].astype(np.float64)
    errors = guesses - truth  # the weights sum to 1, so the error of the mean is the mean of the errors
    gram = errors @ errors.T / max(1, errors.shape[1])
    scale = max(float(np.trace(gram)) / len(gram), 1e-30)
    root = np.linalg.cholesky(gram / scale + 1e-10 * np.eye(len(gram))).T
    penalty = 1e3
    solution, _ = nnls(np.vstack([root, np.full((1, len(gram)), penalty)]), np.append(np.zeros(len(gram)), penalty))
    return _without_dust(solution)


def _without_dust(weights: np.ndarray) -> np.ndarray:
    weights = weights / weights.sum()
    weights = np.where(weights < _SMALLEST, 0, weights)
    return np.asarray(weights / weights.sum())
