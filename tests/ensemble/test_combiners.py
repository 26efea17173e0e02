from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from stacks import stack

from kbench import registry
from kbench.ensemble.average import Stack, average, ranked, ranked_by_fold, stack_members
from kbench.ensemble.combiners import Combiner
from kbench.errors import ConfigError, PredictionError
from kbench.inference.predictions import Predictions
from kbench.metrics.metric import make_metric

TASKS = ["single_label", "multi_label", "regression"]
noises = st.lists(st.floats(0.1, 5), min_size=1, max_size=5).map(tuple)
laws = settings(max_examples=20, deadline=None)


def build(name: str, **params: object) -> Combiner:
    made: Combiner = registry.build("combiner", name, params)
    return made


def alone(one: Stack) -> list[float]:
    return [one.score(values) for values in one.values]


def best(one: Stack) -> float:
    return max(alone(one)) if one.metric.maximise else min(alone(one))


# -- greedy ------------------------------------------------------------------------------------------------------


@given(noise=noises, task=st.sampled_from(TASKS), seed=st.integers(0, 10**6), draws=st.integers(0, 12))
@laws
def test_greedy_from_the_best_member_is_never_worse_than_it_on_the_rows_it_climbed(noise, task, seed, draws) -> None:
    one = stack(task, noise=noise, seed=seed, rows=40)
    weights = build("greedy", draws=draws).weights(one)
    assert not one.metric.better(best(one), one.score(one.mixed(weights)))


def test_greedy_is_the_reference_written_plainly() -> None:
    one = stack(noise=(1.0, 1.2, 2.0, 0.8), rows=60, seed=3)
    counts = np.zeros(4, dtype=int)
    first = int(np.argmin(alone(one)))
    counts[first] = 1
    kept, score = counts.copy(), alone(one)[first]
    for _ in range(10):
        trials = [one.score(one.mixed((counts + np.eye(4, dtype=int)[m]).astype(float))) for m in range(4)]
        counts[int(np.argmin(trials))] += 1
        if min(trials) < score:
            kept, score = counts.copy(), min(trials)
    np.testing.assert_allclose(build("greedy", draws=10).weights(one), kept / kept.sum())


def test_greedy_begins_with_the_mean_of_the_best() -> None:
    one = stack(noise=(4.0, 1.0, 1.1, 5.0), rows=200)
    assert build("greedy", start=2, draws=0).weights(one).tolist() == [0, 0.5, 0.5, 0]
    assert build("greedy", start=9, draws=0).weights(one).tolist() == [0.25] * 4


def test_of_equal_members_the_first_counts() -> None:
    one = stack(noise=(1.0, 1.0))
    twins = replace(one, values=np.stack([one.values[0], one.values[0]]))
    assert build("greedy").weights(twins).tolist() == [1, 0]


def test_bags_average_selections_from_subsets_and_depend_on_the_seed_alone() -> None:
    one = stack(noise=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5), rows=60)
    bagged = build("greedy", bags=8, seed=1).weights(one)
    assert bagged.sum() == pytest.approx(1)
    assert (bagged > 0).sum() > 2
    np.testing.assert_array_equal(bagged, build("greedy", bags=8, seed=1).weights(one))
    assert not np.array_equal(bagged, build("greedy", bags=8, seed=2).weights(one))


def test_greedy_can_climb_another_metric() -> None:
    one = stack("multi_label", noise=(0.5, 2.0), rows=80)
    weights = build("greedy", metric="bce").weights(one)
    by_hand = build("greedy").weights(replace(one, metric=make_metric("bce")))
    np.testing.assert_array_equal(weights, by_hand)


@pytest.mark.parametrize("params", [{"start": 0}, {"draws": -1}, {"bags": -1}, {"share": 0.0}, {"share": 1.5}])
def test_greedy_refuses_numbers_out_of_range(params: dict) -> None:
    with pytest.raises(ConfigError, match=r"ensemble\.combine"):
        build("greedy", **params)


# -- weights -----------------------------------------------------------------------------------------------------


def loss(one: Stack, weights: np.ndarray) -> float:
    """The convex loss by its definition."""
    mixed = np.tensordot(weights, one.values.astype(np.float64), axes=1)
    if one.table.task == "single_label":
        return float(-np.log(mixed[np.arange(len(mixed)), one.targets]).mean())
    if one.table.task == "multi_label":
        return float(-np.log(np.where(one.targets > 0.5, mixed, 1 - mixed)).mean())
    return float((((mixed - one.targets) / one.targets.std(axis=0)) ** 2).mean())


@given(noise=noises, task=st.sampled_from(TASKS), seed=st.integers(0, 10**6))
@laws
def test_weights_are_the_best_mixture_there_is(noise, task, seed) -> None:
    one = stack(task, noise=noise, seed=seed, rows=60)
    found = build("weights").weights(one)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    count = len(noise)
    other = minimize(
        lambda w: loss(one, w), np.full(count, 1 / count), bounds=[(0, 1)] * count, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )  # fmt: skip
    assert loss(one, found) <= other.fun + 1e-4
    assert all(loss(one, found) <= loss(one, row) + 1e-4 for row in np.eye(count))


def test_a_member_that_only_disturbs_has_no_weight() -> None:
    for task in TASKS:
        weights = build("weights").weights(stack(task, noise=(0.3, 8.0), rows=400))
        assert weights[0] > 0.9, task


def test_unknown_targets_do_not_count() -> None:
    for task in ("multi_label", "regression"):
        one = stack(task, rows=60)
        assert one.table.targets is not None
        holes = one.table.targets.copy()
        holes[::4, 1] = np.nan
        known = replace(one, table=replace(one.table, targets=holes))
        assert np.isfinite(build("weights").weights(known)).all()


def test_the_best_weights_of_a_geometric_mean_are_not_offered() -> None:
    with pytest.raises(ConfigError, match="geometric"):
        build("weights").weights(stack(mean="geometric"))


# -- ranks -------------------------------------------------------------------------------------------------------


def test_ranks_of_p_and_of_its_complement_sum_to_one_and_ties_share() -> None:
    values = np.array([[0.2], [0.9], [0.2], [0.4]], dtype=np.float32)
    assert ranked(values)[:, 0].tolist() == [0.25, 0.875, 0.25, 0.625]
    np.testing.assert_allclose(ranked(values) + ranked(1 - values), 1)


def test_ranks_make_members_of_any_scale_comparable() -> None:
    one = stack(k=2, metric="auc", folds=1)
    odd = one.values.copy()
    odd[0] = odd[0] ** 9
    scaled = replace(one, values=odd)
    np.testing.assert_allclose(ranked_by_fold(scaled).values, ranked_by_fold(one).values, atol=1e-6)
    assert build("rank").weights(one).tolist() == pytest.approx([1 / 3] * 3)


def test_each_fold_is_ranked_among_its_own_rows() -> None:
    made = ranked_by_fold(stack(k=2, metric="auc", rows=90, folds=3))
    for fold in range(3):
        column = np.sort(made.values[0, made.fold == fold, 1])
        np.testing.assert_allclose(column, (np.arange(30) + 0.5) / 30, atol=1e-6)


def test_ranks_are_refused_where_more_than_the_order_counts() -> None:
    with pytest.raises(ConfigError, match="log_loss"):
        build("rank").weights(stack(k=2))
    with pytest.raises(ConfigError, match="3 classes"):
        build("rank").weights(stack(metric="auc"))
    with pytest.raises(ConfigError, match="geometric"):
        build("rank").weights(stack(k=2, metric="auc", mean="geometric"))


# -- the stack ---------------------------------------------------------------------------------------------------


@given(
    task=st.sampled_from(TASKS), mean=st.sampled_from(["arithmetic", "geometric"]), seed=st.integers(0, 10**6),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3).filter(any),
)  # fmt: skip
@laws
def test_what_is_scored_is_mixed_as_what_is_sent(task: str, mean: str, seed: int, weights: list[float]) -> None:
    if task == "regression":
        mean = "arithmetic"
    one = stack(task, seed=seed, rows=20, mean=mean)
    members = [Predictions(one.table.ids, one.table.target_names, values, task, {}) for values in one.values]
    used = [(member, weight) for member, weight in zip(members, weights, strict=True) if weight]
    sent = average([m for m, _ in used], weights=[w for _, w in used], mean=mean)  # type: ignore[arg-type]
    np.testing.assert_allclose(one.mixed(np.array(weights)), sent.values, atol=2e-6)


def test_members_are_aligned_by_id_and_name_and_one_without_a_target_is_named() -> None:
    one = stack("multi_label", rows=10, k=2)
    turned = Predictions(one.table.ids, ("t1", "t0"), one.values[0][:, ::-1], "multi_label", {})
    made = stack_members({"a": turned}, one.table, fold=one.fold, metric=one.metric, mean="arithmetic")
    np.testing.assert_array_equal(made.values[0], one.values[0])
    part = Predictions(one.table.ids, ("t1",), one.values[0][:, 1:], "multi_label", {})
    with pytest.raises(PredictionError, match="not predicted: 't0'"):
        stack_members({"b": part}, one.table, fold=one.fold, metric=one.metric, mean="arithmetic")


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_a_target_is_averaged_over_the_members_that_predict_it(mean: str) -> None:
    one = stack("multi_label", rows=30)
    members = {
        "all": Predictions(one.table.ids, ("t0", "t1", "t2"), one.values[0], "multi_label", {}),
        "some": Predictions(one.table.ids, ("t2", "t0"), one.values[1][:, [2, 0]], "multi_label", {}),
    }
    made = stack_members(members, one.table, fold=one.fold, metric=one.metric, mean=mean, base=[3, 1])  # type: ignore[arg-type]
    sent = average(list(members.values()), weights=[3, 1], mean=mean)  # type: ignore[arg-type]
    np.testing.assert_allclose(made.mixed(made.base), sent.values, atol=1e-6)
    assert made.complete(np.array([1.0, 0.0]))
    assert not made.complete(np.array([0.0, 1.0]))
