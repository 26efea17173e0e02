from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from stacks import stack

from kbench import registry
from kbench.ensemble.decisions import Decision
from kbench.errors import ConfigError
from kbench.metrics.metric import Metric, make_metric

laws = settings(max_examples=20, deadline=None)
PLANET = {"low": 0.17, "high": 0.23, "step": 0.01}
KAPPA = make_metric("quadratic_kappa")


def build(name: str, **params: object) -> Decision:
    made: Decision = registry.build("decision", name, params)
    return made


def labels(seed: int = 0, *, rows: int = 80, k: int = 4, metric: str = "f2_samples"):
    one = stack("multi_label", noise=(1.5,), rows=rows, k=k, seed=seed, metric=metric)
    return one.metric, one.targets, one.values[0], one.table


def fastai_f2(preds, targs, start=0.17, end=0.24, step=0.01):
    """The original, courses/dl1/planet.py."""
    from sklearn.metrics import fbeta_score

    return max(fbeta_score(targs, preds > th, beta=2, average="samples", zero_division=1)
               for th in np.arange(start, end, step))  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_planet_grid_finds_what_the_original_finds(seed: int) -> None:
    metric, targets, values, table = labels(seed)
    decision = build("threshold", **PLANET)
    found = decision.fit(metric, targets, values, table)
    score = metric(targets, decision.apply(values, found), table)
    assert score == pytest.approx(fastai_f2(values, targets), abs=1e-6)
    assert found["threshold"] in {0.17, 0.18, 0.19, 0.2, 0.21, 0.22, 0.23}


@given(seed=st.integers(0, 10**6), metric=st.sampled_from(["f2_samples", "f1_macro", "multi_label_accuracy"]))
@laws
def test_no_threshold_of_the_grid_is_better_than_the_one_found(seed: int, metric: str) -> None:
    judged, targets, values, table = labels(seed, rows=40, metric=metric)
    decision = build("threshold", step=0.07)
    found = decision.fit(judged, targets, values, table)
    score = judged(targets, decision.apply(values, found), table)
    for limit in np.arange(0.01, 0.99, 0.07):
        assert judged(targets, (values > np.float32(limit)).astype(np.float32), table) <= score + 1e-9


@given(seed=st.integers(0, 10**6), metric=st.sampled_from(["f2_samples", "f1_macro", "multi_label_accuracy"]))
@laws
def test_a_threshold_per_label_is_never_worse_than_the_common_one_where_it_was_found(seed: int, metric: str) -> None:
    judged, targets, values, table = labels(seed, rows=40, metric=metric)
    scores = []
    for per_label in (False, True):
        decision = build("threshold", per_label=per_label, step=0.05)
        scores.append(judged(targets, decision.apply(values, decision.fit(judged, targets, values, table)), table))
    assert scores[1] >= scores[0] - 1e-9


def test_the_quick_search_of_a_mean_over_rows_is_the_slow_one() -> None:
    judged, targets, values, table = labels(5, rows=60)
    slow = Metric(judged.name, judged.maximise, judged.tasks, judged.function)  # without its values per row
    decision = build("threshold", per_label=True, step=0.03)
    assert decision.fit(judged, targets, values, table) == decision.fit(slow, targets, values, table)


def test_a_threshold_per_label_is_kept_by_name() -> None:
    judged, targets, values, table = labels()
    found = build("threshold", per_label=True).fit(judged, targets, values, table)
    assert list(found["thresholds"]) == ["t0", "t1", "t2", "t3"]


def test_of_equally_good_thresholds_the_middle_one_counts() -> None:
    table = toy.table(2, task="multi_label", targets=np.array([[1], [0]], np.float32), names=("only",))
    values = np.array([[0.8], [0.2]], dtype=np.float32)
    found = build("threshold", low=0.1, high=0.9, step=0.1).fit(make_metric("f2_samples"), table.targets, values, table)
    assert found["threshold"] == pytest.approx(0.4)  # of 0.2 ... 0.7


def test_a_decided_label_is_kept_by_any_threshold_of_a_metric() -> None:
    judged, targets, values, table = labels()
    decision = build("threshold")
    decided = decision.apply(values, decision.fit(judged, targets, values, table))
    scores = {make_metric("f2_samples", {"threshold": one})(targets, decided, table) for one in (0.0, 0.2, 0.5, 0.99)}
    assert len(scores) == 1


@pytest.mark.parametrize("params", [{"low": -0.1}, {"high": 1.0}, {"step": 0.0}, {"low": 0.5, "high": 0.4}])
def test_a_grid_out_of_range_is_refused(params: dict) -> None:
    with pytest.raises(ConfigError, match=r"ensemble\.decision"):
        build("threshold", **params)


# -- grades ------------------------------------------------------------------------------------------------------


def grades(seed: int = 0, *, rows: int = 200, shift: float = 0.0, k: int = 1):
    rng = np.random.default_rng(seed)
    truth = rng.choice(5, size=(rows, k), p=[0.5, 0.1, 0.2, 0.1, 0.1]).astype(np.float32)
    truth[:5] = np.arange(5)[:, None]
    values = (0.6 * truth + shift + rng.normal(size=truth.shape) * 0.4).astype(np.float32)
    return truth, values, toy.table(rows, task="regression", targets=truth, names=tuple(f"g{one}" for one in range(k)))


@pytest.mark.parametrize("shift", [0.0, 1.0, -3.0])
def test_cut_points_beat_rounding_clearly_where_the_scale_is_off(shift: float) -> None:
    truth, values, table = grades(shift=shift)
    decision = build("cut_points")
    found = decision.fit(KAPPA, truth, values, table)
    decided = decision.apply(values, found)
    assert KAPPA(truth, decided, table) > KAPPA(truth, values, table) + 0.02
    assert KAPPA(truth, decided, table) == pytest.approx(
        cohen_kappa_score(truth[:, 0].astype(int), decided[:, 0].astype(int), weights="quadratic"), abs=1e-9
    )
    assert found["cut_points"]["g0"] == sorted(found["cut_points"]["g0"])
    assert set(np.unique(decided)) <= set(range(5))


@given(seed=st.integers(0, 10**6), shift=st.floats(-2, 2))
@laws
def test_cut_points_are_never_worse_than_rounding_or_equal_shares_where_they_were_found(seed, shift) -> None:
    truth, values, table = grades(seed, rows=60, shift=shift)
    decision = build("cut_points")
    score = KAPPA(truth, decision.apply(values, decision.fit(KAPPA, truth, values, table)), table)
    shares = np.quantile(values, [float((truth <= grade).mean()) for grade in range(4)])
    for cuts in (np.arange(4) + 0.5, shares):
        given_grades = np.searchsorted(cuts, values[:, 0].astype(np.float64), side="right")[:, None]
        assert score >= KAPPA.function(truth, given_grades.astype(np.float32), table) - 1e-9


def test_every_target_has_cut_points_of_its_own() -> None:
    truth, values, table = grades(k=2)
    values[:, 1] *= 10
    found = build("cut_points").fit(KAPPA, truth, values, table)
    assert found["cut_points"]["g1"][-1] > 3 * found["cut_points"]["g0"][-1]
    assert found["grades"] == {"g0": [0, 1, 2, 3, 4], "g1": [0, 1, 2, 3, 4]}


def test_grades_may_be_named_and_what_is_no_grade_is_refused() -> None:
    truth, values, table = grades()
    found = build("cut_points", grades=[0, 1, 2, 3, 4, 5]).fit(KAPPA, truth, values, table)
    assert len(found["cut_points"]["g0"]) == 5
    with pytest.raises(ConfigError, match="not listed: '4'"):
        build("cut_points", grades=[0, 1, 2, 3]).fit(KAPPA, truth, values, table)
    halves = truth.copy()
    halves[3] = 0.5
    with pytest.raises(ConfigError, match=r"the value 0\.5"):
        build("cut_points").fit(KAPPA, halves, values, replace(table, targets=halves))
    with pytest.raises(ConfigError, match="rising"):
        build("cut_points", grades=[2, 1])


def test_unknown_grades_do_not_count() -> None:
    truth, values, table = grades()
    truth[10:20] = np.nan
    found = build("cut_points").fit(KAPPA, truth, values, replace(table, targets=truth))
    assert all(np.isfinite(found["cut_points"]["g0"]))
