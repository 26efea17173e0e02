from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import stack

from kbench import registry
from kbench.ensemble.nested import Recipe, applied, decided_by_part, evaluate, fit, gains, pruned
from kbench.errors import DataError, PredictionError

laws = settings(max_examples=15, deadline=None)
THRESHOLD = registry.build("decision", "threshold", {"step": 0.05})


def recipe(combiner: str = "mean", *, decision=None, prune: bool = False, **params: object) -> Recipe:
    return Recipe(registry.build("combiner", combiner, params), decision, prune)


def test_where_nothing_is_fitted_the_nested_score_is_the_plain_one() -> None:
    one = stack()
    made = evaluate(one, recipe())
    assert made.plain is made.nested
    assert made.plain.value == pytest.approx(one.score(one.values.mean(axis=0)), rel=1e-6)
    assert made.by_part == {}


@pytest.mark.parametrize("combiner", ["greedy", "weights"])
def test_a_fold_is_mixed_with_what_the_other_folds_found(combiner: str) -> None:
    one = stack(noise=(1.0, 1.2, 2.0), rows=90)
    made = evaluate(one, recipe(combiner))
    for fold in range(3):
        rows = one.fold == fold
        weights = recipe(combiner).combiner.weights(one.select(~rows))
        np.testing.assert_array_equal(made.by_part[fold].weights, weights)
        np.testing.assert_array_equal(made.values[rows], one.select(rows).mixed(weights))
    assert made.nested.value == pytest.approx(one.score(made.values))
    assert made.plain.value == pytest.approx(one.score(one.mixed(made.fit.weights)))


def test_the_rows_of_a_fold_have_no_say_in_how_they_are_decided() -> None:
    one = stack("multi_label", noise=(1.5,))
    made = evaluate(one, recipe(decision=THRESHOLD))
    assert one.table.targets is not None
    turned = one.table.targets.copy()
    rows = one.fold == 1
    turned[rows] = 1 - turned[rows]
    other = evaluate(replace(one, table=replace(one.table, targets=turned)), recipe(decision=THRESHOLD))
    assert other.by_part[1].decided == made.by_part[1].decided
    np.testing.assert_array_equal(other.values[rows], made.values[rows])


@given(seed=st.integers(0, 10**6))
@laws
def test_a_decision_looks_better_on_its_own_rows_than_any_of_the_folds_choices(seed: int) -> None:
    one = stack("multi_label", noise=(1.5, 2.0), seed=seed, rows=60)
    made = evaluate(one, recipe(decision=THRESHOLD))
    for found in made.by_part.values():
        assert one.score(applied(one, recipe(decision=THRESHOLD), found)) <= made.plain.value + 1e-9


def test_fitting_noise_is_seen_through() -> None:
    gaps = []
    for seed in range(8):
        one = stack(noise=(20.0,) * 12, rows=60, seed=seed, metric="accuracy")
        made = evaluate(one, recipe("greedy"))
        gaps.append(made.plain.value - made.nested.value)
    assert np.mean(gaps) > 0.05


def test_with_one_fold_fifths_of_its_rows_are_judged_and_groups_stay_whole() -> None:
    groups = np.repeat(np.arange(30), 4).astype(str)
    one = stack("multi_label", noise=(1.5,), folds=1, groups=groups)
    made = evaluate(one, recipe(decision=THRESHOLD))
    assert sorted(made.by_part) == [0, 1, 2, 3, 4]
    assert all(len(set(made.parts[groups == name])) == 1 for name in set(groups))


def test_one_group_in_one_fold_cannot_be_judged() -> None:
    one = stack("multi_label", noise=(1.5,), folds=1, groups=np.full(120, "all"))
    with pytest.raises(DataError, match="1 group"):
        evaluate(one, recipe(decision=THRESHOLD))


def test_other_predictions_are_decided_by_the_parts_they_are_not_in() -> None:
    one = stack("multi_label", noise=(1.5,))
    how = recipe(decision=THRESHOLD)
    made = evaluate(one, how)
    again = decided_by_part(how, made, one.values[0], np.arange(120))
    np.testing.assert_array_equal(again, made.values)
    np.testing.assert_array_equal(decided_by_part(how, made, one.values[0][7:9], np.array([7, 8])), made.values[7:9])


# -- what each member adds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_a_good_member_adds_and_a_copy_of_it_adds_nothing(metric: str) -> None:
    one = stack(noise=(0.5, 4.0), rows=300, metric=metric)
    made = gains(one, recipe(), evaluate(one, recipe()))
    good = next(row for row in made if row["member"] == "m0")
    assert good["low"] > 0
    assert good["alone"] == pytest.approx(one.score(one.values[0]))
    twins = replace(one, values=np.stack([one.values[0], one.values[0]]))
    for row in gains(twins, recipe(), evaluate(twins, recipe())):
        assert (row["adds"], row["low"], row["high"]) == pytest.approx((0, 0, 0), abs=1e-6)


def test_the_gain_is_the_score_less_the_score_without_and_the_heaviest_come_first() -> None:
    one = stack(noise=(1.5, 1.6, 6.0), rows=200)
    made = evaluate(one, recipe("weights"))
    rows = gains(one, recipe("weights"), made)
    assert [row["weight"] for row in rows] == sorted((row["weight"] for row in rows), reverse=True)
    first = rows[0]
    member = one.names.index(first["member"])
    without = np.empty_like(made.values)
    for fold, found in made.by_part.items():
        weights = found.weights.copy()
        weights[member] = 0
        part = one.fold == fold
        without[part] = one.select(part).mixed(weights)
    assert first["adds"] == pytest.approx(one.score(without) - made.nested.value)
    assert first["low"] <= first["adds"] <= first["high"]


def test_a_member_without_weight_and_a_single_one_have_no_gain() -> None:
    one = stack(noise=(0.3, 9.0), rows=200)
    rows = gains(one, recipe("greedy", draws=0), evaluate(one, recipe("greedy", draws=0)))
    assert [row["adds"] for row in rows] == [None, None]
    assert rows[1]["weight"] == 0


# -- pruning -----------------------------------------------------------------------------------------------------


def test_members_inside_the_noise_go_and_one_of_two_alike_stays() -> None:
    one = stack(noise=(0.6, 0.6, 30.0), rows=300)
    twins = replace(one, values=np.stack([one.values[0], one.values[0], one.values[2]]))
    kept = pruned(twins, twins.base)
    assert sorted(kept.tolist()) == [0, 0, 1]
    assert kept[2] == 0


def test_members_that_help_stay() -> None:
    one = stack(noise=(1.5, 1.5, 1.5), rows=2000)
    assert (pruned(one, one.base) > 0).all()


def test_pruning_is_judged_on_rows_it_did_not_see() -> None:
    one = stack(noise=(1.0, 1.1, 6.0), rows=240)
    made = evaluate(one, recipe(prune=True))
    for fold, found in made.by_part.items():
        others = one.select(one.fold != fold)
        np.testing.assert_array_equal(found.weights, pruned(others, others.base))
    assert fit(one, recipe(prune=True)).weights.sum() == pytest.approx(1)


def test_a_member_of_some_targets_adds_to_a_mean_and_is_not_weighed() -> None:
    one = stack("multi_label", noise=(2.0, 1.0), rows=300, metric="bce")
    some = replace(one, covers=np.array([[True, True, True], [True, False, True]]))
    first, second = gains(some, recipe(), evaluate(some, recipe()))
    assert (first["member"], first["adds"]) == ("m0", None)
    assert second["alone"] is None
    assert second["low"] > 0
    for how in (recipe("greedy"), recipe("weights"), recipe(prune=True)):
        with pytest.raises(PredictionError, match="'m1' predict only some of the targets"):
            evaluate(some, how)


def test_members_are_chosen_by_what_is_decided() -> None:
    fine = registry.build("decision", "threshold", {"low": 0.005, "high": 0.1, "step": 0.005})
    one = stack("multi_label", noise=(1.0, 1.1, 9.0), rows=300)
    low = replace(one, values=one.values * 0.1)  # nothing is above the metric's own threshold of 0.2
    assert len({low.score(values) for values in low.values}) == 1
    found = fit(low, recipe("greedy", decision=fine))
    assert found.weights[2] < 0.2 < found.weights[:2].max()
    assert low.score(applied(low, recipe("greedy", decision=fine), found)) > 0.8
