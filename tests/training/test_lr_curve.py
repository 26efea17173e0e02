from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.errors import ConfigError, TrainingError
from kbench.training.lr_finder import LRCurve, Smoother, ramp, should_stop, shown, smooth, suggest, track_best


def rates(count: int = 100) -> np.ndarray:
    return np.array([ramp(step, count, 1e-5, 10) for step in range(count)])


def test_the_exponential_ramp_passes_through_fastais_rates() -> None:
    values = [ramp(step, 360, 1e-5, 10) for step in (0, 180, 307, 359)]
    assert values == pytest.approx([1e-5, 1e-2, 1.308, 9.624], rel=5e-4)


def test_the_linear_ramp_rises_from_zero_in_equal_steps() -> None:
    assert [ramp(step, 4, 1e-5, 8, linear=True) for step in range(4)] == [0, 2, 4, 6]


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 1), (2, 1), (-1, 1)])
def test_a_ramp_that_does_not_rise_is_an_error(start: float, end: float) -> None:
    with pytest.raises(ConfigError):
        ramp(0, 10, start, end)


def test_smoothing_is_a_weighted_mean_whose_weights_fall_by_the_decay() -> None:
    losses = [3.0, 1.0, 2.0]
    expected = np.average(losses, weights=[0.98**2, 0.98, 1])
    assert smooth(losses)[-1] == pytest.approx(expected)


@settings(deadline=None)
@given(st.floats(-10, 10), st.integers(1, 200))
def test_a_constant_loss_is_smoothed_to_itself(loss: float, count: int) -> None:
    smoother = Smoother()
    assert [smoother.add(loss) for _ in range(count)][-1] == pytest.approx(loss, abs=1e-9)


def test_the_best_loss_is_tracked_after_ten_iterations() -> None:
    assert track_best(0.1, math.inf, 10) == math.inf
    assert track_best(0.1, math.inf, 11) == 0.1
    assert track_best(0.2, 0.1, 12) == 0.1


def test_the_finder_stops_above_four_times_the_best_loss() -> None:
    assert not should_stop(4.0, 1.0, 50)
    assert should_stop(4.01, 1.0, 50)
    assert not should_stop(100.0, math.inf, 50)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_the_finder_stops_at_a_loss_that_is_not_finite_at_any_time(loss: float) -> None:
    assert should_stop(loss, math.inf, 0)


def test_a_best_loss_below_zero_does_not_stop_the_finder() -> None:
    assert not should_stop(-1.0, -1.1, 50)


def test_the_first_ten_and_the_last_six_points_are_not_shown() -> None:
    assert shown(360) == slice(10, 354)
    assert shown(100) == slice(10, 94)


@given(st.integers(8, 500))
def test_most_of_a_short_curve_is_shown(count: int) -> None:
    assert len(range(count)[shown(count)]) >= 0.8 * count


def test_the_suggestion_of_a_bowl_is_a_tenth_of_its_smoothed_minimum() -> None:
    lrs = rates(200)
    losses = 0.5 + (np.log10(lrs) + 1.5) ** 2 / 5  # falls over decades, lowest at 0.03
    suggestion = suggest(lrs, losses)
    assert suggestion == pytest.approx(lrs[np.argmin(smooth(list(losses)))] / 10)
    assert 1e-3 < suggestion < 0.3


def test_the_suggestion_is_not_below_where_the_loss_begins_to_fall() -> None:
    lrs = rates(360)
    steep = 2.3 - 2 / (1 + np.exp(-20 * (np.log10(lrs) + 1)))  # falls within a third of a decade around 0.1
    losses = steep + np.where(lrs > 0.3, 30 * (lrs - 0.3), 0)
    level = smooth(list(losses))
    suggestion = suggest(lrs, losses)
    assert lrs[np.argmin(level)] / 10 < suggestion
    assert 0.05 < suggestion < 0.3


def test_a_loss_that_stays_level_and_then_rises_gives_a_tenth_of_its_last_level_rate() -> None:
    lrs = rates()
    losses = 0.02 + np.random.default_rng(0).normal(0, 0.002, 100) + np.where(lrs > 0.1, lrs - 0.1, 0)
    assert 0.005 < suggest(lrs, losses) < 0.03


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.0, 0.3))
def test_noise_moves_the_suggestion_by_less_than_a_decade(seed: int, noise: float) -> None:
    lrs = rates(200)
    clean = 0.3 + 2 / (1 + (lrs / 3e-3)) + np.where(lrs > 1, (lrs - 1) ** 2, 0)
    noisy = clean + np.random.default_rng(seed).normal(0, noise, 200)
    assert abs(math.log10(suggest(lrs, noisy) / suggest(lrs, clean))) < 1


def test_the_suggestion_never_exceeds_the_rate_of_the_minimum() -> None:
    lrs = rates()
    for width in (1, 3, 10, 30):
        losses = 2.3 / (1 + np.exp(width * (np.log10(lrs) + 2))) + np.where(lrs > 0.1, 10 * lrs, 0)
        assert suggest(lrs, losses) < lrs[np.argmin(smooth(list(losses)))]


def test_points_after_a_loss_that_is_not_finite_do_not_count() -> None:
    lrs = rates(200)
    losses = 0.5 + (np.log10(lrs) + 1.5) ** 2 / 5
    broken = losses.copy()
    broken[180] = np.nan
    assert suggest(lrs, broken) == suggest(lrs[:180], losses[:180])


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        (np.linspace(1, 50, 100), "rises from the lowest learning rate on"),
        (0.7 + np.random.default_rng(0).normal(0, 0.1, 100), "neither falls nor rises"),
        (np.full(100, 0.7), "neither falls nor rises"),
        (np.array([1.0, 2.0, np.nan]), "only '2' iterations"),
        (np.array([]), "only '0' iterations"),
    ],
)
def test_a_curve_that_shows_no_rate_is_an_error_with_a_remedy(losses: np.ndarray, wrong: str) -> None:
    with pytest.raises(TrainingError) as caught:
        suggest(rates()[: len(losses)], losses)
    assert wrong in caught.value.what
    assert "`lr:`" in caught.value.todo


def test_a_curve_has_a_row_per_iteration_even_where_nothing_can_be_suggested() -> None:
    curve = LRCurve((1e-5, 1e-4), (2.0, math.nan))
    rows = curve.rows()
    assert rows[0] == {"step": 0, "lr": 1e-5, "loss": 2.0, "smoothed": pytest.approx(2.0)}
    assert math.isnan(rows[1]["smoothed"])
    with pytest.raises(TrainingError):
        _ = curve.suggestion


def test_a_curve_suggests_what_its_losses_suggest() -> None:
    lrs = rates(200)
    losses = 0.5 + (np.log10(lrs) + 1.5) ** 2 / 5
    assert LRCurve(tuple(lrs), tuple(losses)).suggestion == suggest(lrs, losses)
