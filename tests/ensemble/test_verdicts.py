from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kbench.data.table.table import Table
from kbench.ensemble.bootstrap import interval
from kbench.ensemble.verdicts import Difference, difference, verdicts
from kbench.metrics.metric import make_metric

ROWS, FOLDS = 500, 5


def table(rng: np.random.Generator) -> Table:
    targets = rng.integers(2, size=ROWS)
    ids = np.array([f"{row:05}" for row in range(ROWS)])
    return Table(ids, Path(), ((),) * ROWS, "single_label", ("cat", "dog"), targets)


def trained(rng: np.random.Generator, seen: np.ndarray, folds: np.ndarray, seeds: float) -> np.ndarray:
    """What models of five folds say of images: each training weighs what it sees in its own way."""
    logits = (1 + rng.normal(0, seeds, FOLDS))[folds] * seen + rng.normal(0, 0.3, ROWS)
    p = 1 / (1 + np.exp(-logits))
    return np.column_stack([1 - p, p])


def compared(name: str, *, seeds: float, gain: float = 0.0, pairs: int = 200) -> tuple[list[str], float]:
    """Return the verdicts on pairs of a recipe, the second one better by `gain`, and how far in standard errors."""
    rng, metric = np.random.default_rng(4), make_metric(name)
    words, gains, errors = [], [], []
    for _ in range(pairs):
        rows, folds = table(rng), rng.permutation(ROWS) % FOLDS
        side = rows.targets - 0.5
        seen = 2 * side + rng.normal(0, 1.2, ROWS)
        base, other = (trained(rng, seen + more * side, folds, seeds) for more in (0.0, gain))
        one = difference(metric, rows.targets, base, other, rows, folds=folds, draws=200)
        words.append(verdicts([one], maximise=metric.maximise)[0].verdict)
        gains.append(one.value if metric.maximise else -one.value)
        if len(errors) < 10:
            wide = interval(metric, rows.targets, base, rows, draws=200)
            errors.append((wide.high - wide.low) / 2 / 1.96)
    return words, float(np.mean(gains) / np.mean(errors))


@pytest.mark.parametrize(("name", "seeds"), [("log_loss", 0.0), ("log_loss", 0.3), ("accuracy", 0.1), ("auc", 0.1)])
def test_of_equal_recipes_with_other_seeds_few_are_called_better(name: str, seeds: float) -> None:
    pairs = 60 if name == "auc" else 200
    words, _ = compared(name, seeds=seeds, pairs=pairs)
    assert words.count("better") <= 0.07 * pairs
    assert words.count("worse") <= 0.07 * pairs


def test_a_recipe_better_by_two_standard_errors_of_its_score_is_found() -> None:
    words, errors = compared("log_loss", seeds=0.1, gain=0.246)
    assert errors == pytest.approx(2, abs=0.15)
    assert words.count("better") >= 0.7 * len(words)
    assert "worse" not in words


def test_the_error_is_that_of_images_and_of_folds_that_differ_more() -> None:
    """By hand: four folds of 25 rows, whose differences are constant within a fold."""
    rows, folds = 100, np.repeat(np.arange(4), 25)
    steps = np.array([0.0, 0.1, 0.2, 0.3])
    targets = np.zeros(rows)
    numbers = Table(
        np.array([f"{row:03}" for row in range(rows)]), Path(), ((),) * rows, "regression", ("y",), targets[:, None]
    )
    base, other = np.ones((rows, 1)), 1 + steps[folds][:, None]
    one = difference(make_metric("mae"), targets[:, None], base, other, numbers, folds=folds, draws=4000)
    assert one.value == pytest.approx(0.15)
    between = steps.var(ddof=1) / 4  # variance of the mean of four folds
    assert one.error == pytest.approx(np.sqrt(between), rel=1e-6)
    images = steps.var() / rows  # of the mean of 100 rows
    assert one.freedom == pytest.approx(3 * (between / (between - images)) ** 2, rel=0.02)
    assert one.folds == 4


def test_without_folds_that_vary_it_is_the_bootstrap_alone() -> None:
    rng = np.random.default_rng(0)
    rows = table(rng)
    base = trained(rng, rows.targets - 0.5, np.zeros(ROWS, dtype=int), 0.0)
    other = trained(rng, rows.targets - 0.5, np.zeros(ROWS, dtype=int), 0.0)
    one = difference(make_metric("accuracy"), rows.targets, base, other, rows, folds=np.zeros(ROWS, dtype=int))
    per_row = (other.argmax(1) == rows.targets).astype(float) - (base.argmax(1) == rows.targets)
    assert one.value == pytest.approx(per_row.mean())
    assert one.error == pytest.approx(per_row.std() / np.sqrt(ROWS), rel=0.1)
    assert one.freedom == float("inf")
    assert one.folds == 1


# -- many at once --------------------------------------------------------------------------------------------------


def at(*sizes: float) -> list[Difference]:
    """Differences that are so many standard errors from 0."""
    return [Difference(size * 0.1, 0.1, float("inf"), 5) for size in sizes]


def words(*sizes: float, maximise: bool = True) -> list[str]:
    return [one.verdict for one in verdicts(at(*sizes), maximise=maximise, level=0.95)]


def test_holm_asks_more_of_the_first_than_of_the_last() -> None:
    # two-sided p at 2.4, 2.1, 1.0: 0.0164, 0.0357, 0.317; Holm's steps of 0.05: 0.0167, 0.025, 0.05
    assert words(2.4, 2.1, 1.0) == ["better", "cannot tell", "cannot tell"]
    assert words(2.3, 2.1, 1.0) == ["cannot tell"] * 3
    assert words(2.1) == ["better"]
    # 2.4, 2.3, 2.0: 0.0164 < 0.0167, 0.0214 < 0.025, 0.0455 < 0.05
    assert words(-2.0, 2.4, -2.3) == ["worse", "better", "worse"]


def test_what_is_better_depends_on_the_metrics_direction() -> None:
    assert words(3.0, -3.0, maximise=True) == ["better", "worse"]
    assert words(3.0, -3.0, maximise=False) == ["worse", "better"]


def test_an_interval_without_zero_and_a_verdict_say_the_same() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        for one in verdicts(at(*rng.normal(0, 2.5, rng.integers(1, 6))), maximise=True):
            assert (one.low > 0 or one.high < 0) == (one.verdict != "cannot tell")


def test_few_degrees_of_freedom_ask_for_more() -> None:
    known = [Difference(0.25, 0.1, freedom, 5) for freedom in (float("inf"), 4.0)]
    first, second = (verdicts([one], maximise=True, level=0.95)[0] for one in known)
    assert (first.verdict, second.verdict) == ("better", "cannot tell")
    assert second.high - second.difference == pytest.approx(2.7764 * 0.1, rel=1e-4)  # of t with 4 degrees, 97.5 %


def test_equal_predictions_cannot_be_told_apart() -> None:
    assert [one.verdict for one in verdicts([Difference(0.0, 0.0, float("inf"), 5)], maximise=True)] == ["cannot tell"]
    assert verdicts([], maximise=True) == []
