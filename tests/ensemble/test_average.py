from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.ensemble.average import aligned, average, concat, ensemble_run
from kbench.errors import PredictionError
from kbench.inference.predictions import Predictions, load

MEANS = ["arithmetic", "geometric"]


def member(
    *,
    seed: int = 0,
    ids: list[str] | None = None,
    names: tuple[str, ...] = ("ant", "bee", "cow"),
    task: str = "single_label",
    shape: tuple[int, ...] = (),
    **source: object,
) -> Predictions:
    rng = np.random.default_rng(seed)
    ids = [f"{row:03}" for row in range(7)] if ids is None else ids
    values = rng.random((len(ids), len(names), *shape)) + 0.01
    if task == "single_label":
        values /= values.sum(axis=1, keepdims=True)
    elif task != "regression":
        values /= values.max()
    return Predictions(np.array(ids), names, values.astype(np.float32), task, dict(source))


tasks = st.sampled_from(["single_label", "multi_label"])
seeds = st.lists(st.integers(0, 10**6), min_size=1, max_size=5)
laws = settings(max_examples=25, deadline=None)


@given(st.integers(0, 10**6), tasks, st.sampled_from(MEANS))
@laws
def test_one_member_is_its_own_mean(seed: int, task: str, mean: str) -> None:
    one = member(seed=seed, task=task)
    found = average([one], mean=mean)  # type: ignore[arg-type]
    assert found.names == one.names
    assert (found.ids == one.ids).all()
    np.testing.assert_allclose(found.values, one.values, atol=1e-6)


def test_one_member_is_exactly_its_own_arithmetic_mean() -> None:
    one = member()
    assert (average([one, one]).values == one.values).all()


@given(seeds, tasks, st.sampled_from(MEANS))
@laws
def test_the_order_of_members_does_not_matter(numbers: list[int], task: str, mean: str) -> None:
    members = [member(seed=seed, task=task) for seed in numbers]
    weights = [seed % 5 + 1.0 for seed in numbers]
    forth = average(members, mean=mean, weights=weights)  # type: ignore[arg-type]
    back = average(members[::-1], mean=mean, weights=weights[::-1])  # type: ignore[arg-type]
    np.testing.assert_allclose(forth.values, back.values, atol=1e-7)


@given(seeds, st.sampled_from(MEANS))
@laws
def test_a_mean_lies_between_its_members(numbers: list[int], mean: str) -> None:
    members = [member(seed=seed, task="multi_label") for seed in numbers]
    values = np.stack([one.values for one in members])
    found = average(members, mean=mean).values  # type: ignore[arg-type]
    assert (found >= values.min(axis=0) - 1e-6).all()
    assert (found <= values.max(axis=0) + 1e-6).all()


@given(seeds, st.sampled_from(MEANS))
@laws
def test_single_label_rows_still_sum_to_one(numbers: list[int], mean: str) -> None:
    found = average([member(seed=seed) for seed in numbers], mean=mean)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-6)


@given(seeds, tasks)
@laws
def test_the_arithmetic_mean_is_numpys(numbers: list[int], task: str) -> None:
    members = [member(seed=seed, task=task) for seed in numbers]
    expected = np.mean([one.values.astype(np.float64) for one in members], axis=0)
    np.testing.assert_allclose(average(members).values, expected, atol=1e-7)


def test_the_geometric_mean_by_hand() -> None:
    a = Predictions(np.array(["x"]), ("no", "yes"), np.array([[0.5, 0.5]], np.float32), "multi_label", {})
    b = Predictions(np.array(["x"]), ("no", "yes"), np.array([[0.125, 0.02]], np.float32), "multi_label", {})
    assert average([a, b], mean="geometric").values[0].tolist() == pytest.approx([0.25, 0.1])


def test_a_geometric_mean_of_classes_is_divided_by_its_sum() -> None:
    a = Predictions(np.array(["x"]), ("no", "yes"), np.array([[0.9, 0.1]], np.float32), "single_label", {})
    b = Predictions(np.array(["x"]), ("no", "yes"), np.array([[0.4, 0.6]], np.float32), "single_label", {})
    yes, no = np.sqrt(0.06), np.sqrt(0.36)
    assert average([a, b], mean="geometric").values[0, 1] == pytest.approx(yes / (yes + no))


def test_a_probability_of_zero_does_not_break_the_geometric_mean() -> None:
    a = Predictions(np.array(["x"]), ("no", "yes"), np.array([[1, 0]], np.float32), "single_label", {})
    b = Predictions(np.array(["x"]), ("no", "yes"), np.array([[0, 1]], np.float32), "single_label", {})
    assert average([a, b], mean="geometric").values[0].tolist() == pytest.approx([0.5, 0.5])
    assert average([a, a], mean="geometric").values[0].tolist() == pytest.approx([1, 0], abs=1e-6)


def test_weights_count_and_need_not_sum_to_one() -> None:
    a, b = member(seed=1), member(seed=2)
    found = average([a, b], weights=[3, 1])
    np.testing.assert_allclose(found.values, 0.75 * a.values + 0.25 * b.values, atol=1e-6)
    assert found.source["weights"] == [0.75, 0.25]
    assert (average([a, b], weights=[1, 0]).values == a.values).all()


def test_targets_are_matched_by_name() -> None:
    a = member()
    turned = Predictions(a.ids, a.names[::-1], a.values[:, ::-1], a.task, {})
    found = average([a, turned])
    assert found.names == a.names
    assert (found.values == a.values).all()


def test_members_of_different_targets_are_combined_per_target() -> None:
    a = member(seed=1, names=("ant", "bee"), task="multi_label")
    b = member(seed=2, names=("cow", "bee"), task="multi_label")
    found = average([a, b], weights=[1, 3])
    assert found.names == ("ant", "bee", "cow")
    assert (found.values[:, 0] == a.values[:, 0]).all()
    assert (found.values[:, 2] == b.values[:, 0]).all()
    np.testing.assert_allclose(found.values[:, 1], a.values[:, 1] / 4 + b.values[:, 1] * 0.75, atol=1e-7)


def test_one_member_per_class_makes_rows_that_sum_to_one() -> None:
    found = average([member(seed=1, names=("ant",), task="single_label"), member(seed=2, names=("bee",))])
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-6)


def test_a_target_no_weighted_member_has_is_an_error() -> None:
    members = [member(names=("ant",), task="multi_label"), member(names=("bee",), task="multi_label")]
    with pytest.raises(PredictionError, match="all weights are zero for 'bee'"):
        average(members, weights=[1, 0])


@pytest.mark.parametrize("weights", [[1], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(PredictionError, match="the weights"):
        average([member(), member(seed=1)], weights=weights)


def test_members_of_other_ids_are_refused_with_the_first_ids() -> None:
    with pytest.raises(PredictionError, match="member 2 of 2 lacks 1 ids: '002'"):
        average([member(ids=["001", "002"]), member(ids=["001"])])
    with pytest.raises(PredictionError, match="member 1 of 2 lacks 1 ids: '002'"):
        average([member(ids=["001"]), member(ids=["001", "002"])])


def test_members_of_another_task_or_size_are_refused() -> None:
    with pytest.raises(PredictionError, match="beside one of task"):
        average([member(), member(task="multi_label")])
    with pytest.raises(PredictionError, match="beside one of task"):
        average([member(task="segmentation", shape=(2, 3)), member(task="segmentation", shape=(3, 2))])


def test_nothing_cannot_be_averaged() -> None:
    for empty in (lambda: average([]), lambda: concat([]), lambda: ensemble_run({})):
        with pytest.raises(PredictionError, match="no predictions to combine"):
            empty()


def test_a_regression_has_an_arithmetic_mean_only() -> None:
    a, b = member(seed=1, task="regression"), member(seed=2, task="regression")
    np.testing.assert_allclose(average([a, b]).values, (a.values + b.values) / 2, atol=1e-6)
    with pytest.raises(PredictionError, match="geometric mean of a regression"):
        average([a, b], mean="geometric")


def test_an_unknown_mean_gets_a_hint() -> None:
    with pytest.raises(PredictionError, match="did you mean 'geometric'"):
        average([member()], mean="geometrical")  # type: ignore[arg-type]


@pytest.mark.parametrize("mean", MEANS)
def test_maps_are_averaged_like_rows(mean: str) -> None:
    members = [member(seed=seed, task="segmentation", shape=(4, 5)) for seed in range(3)]
    found = average(members, mean=mean).values  # type: ignore[arg-type]
    flat = [
        Predictions(np.array([f"{i:03}" for i in range(7 * 20)]), one.names,
                    np.moveaxis(one.values, 1, -1).reshape(-1, 3), "multi_label", {})
        for one in members
    ]  # fmt: skip
    expected = average(flat, mean=mean).values.reshape(7, 4, 5, 3)  # type: ignore[arg-type]
    if mean == "geometric":  # classes of a pixel exclude one another
        expected = expected / expected.sum(axis=3, keepdims=True)
    np.testing.assert_allclose(np.moveaxis(found, 1, -1), expected, atol=1e-6)


def test_blocks_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member(seed=seed) for seed in range(3)]
    whole = average(members, mean="geometric").values
    monkeypatch.setattr("kbench.inference.predictions._BLOCK", 50)
    assert (average(members, mean="geometric").values == whole).all()


def test_a_result_on_disk_is_the_one_in_memory(tmp_path: Path) -> None:
    members = [member(seed=seed, run="a", fold=seed) for seed in range(3)]
    found = average(members, out=tmp_path / "mean.json")
    again = load(tmp_path / "mean.json")
    assert isinstance(found.values, np.memmap)
    assert (again.values == average(members).values).all()
    assert again.source == found.source
    assert again.names == found.names


def test_the_source_says_what_was_averaged() -> None:
    found = average([member(run="a", folds="f00d", fold=0), member(seed=1, run="b", folds="f00d", fold=1)])
    assert found.source["folds"] == "f00d"
    assert "run" not in found.source
    assert [source["run"] for source in found.source["members"]] == ["a", "b"]
    assert found.source["mean"] == "arithmetic"


# Folds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", MEANS)
def test_a_run_is_the_mean_over_folds_of_the_mean_over_snapshots(mean: str) -> None:
    by_fold = {0: [member(seed=1), member(seed=2), member(seed=3)], 1: [member(seed=4)], 4: [member(seed=5)]}
    folds = [average(members, mean=mean) for members in by_fold.values()]  # type: ignore[arg-type]
    np.testing.assert_allclose(
        ensemble_run(by_fold, mean=mean).values,  # type: ignore[arg-type]
        average(folds, mean=mean).values,  # type: ignore[arg-type]
        atol=1e-6,
    )


def test_a_fold_counts_the_same_however_many_of_its_snapshots_have_a_target() -> None:
    with_bee = member(seed=1, names=("ant", "bee"), task="multi_label")
    without = member(seed=2, names=("ant",), task="multi_label")
    other = member(seed=3, names=("ant", "bee"), task="multi_label")
    found = ensemble_run({0: [with_bee, without], 1: [other]})
    np.testing.assert_allclose(found.values[:, 1], (with_bee.values[:, 1] + other.values[:, 1]) / 2, atol=1e-7)


def test_a_fold_without_members_is_named() -> None:
    with pytest.raises(PredictionError, match="fold '3' has no predictions"):
        ensemble_run({0: [member()], 3: []})


@given(st.permutations(list(range(12))), st.integers(1, 4))
@laws
def test_parts_of_the_rows_make_the_whole(order: list[int], parts: int) -> None:
    whole = member(ids=[f"{row:03}" for row in range(12)])
    rows = [np.sort(np.array(order[start::parts])) for start in range(parts)]
    pieces = [Predictions(whole.ids[some], whole.names, whole.values[some], whole.task, {}) for some in rows]
    found = concat(pieces)
    assert (found.ids == whole.ids).all()
    assert (found.values == whole.values).all()


def test_parts_are_matched_by_target_name_and_may_lie_on_disk(tmp_path: Path) -> None:
    a, b = member(ids=["1", "3"], run="r", fold=0), member(ids=["02", "100"], run="r", fold=1)
    turned = Predictions(b.ids, b.names[::-1], b.values[:, ::-1], b.task, b.source)
    concat([a, turned], out=tmp_path / "oof.json")
    found = load(tmp_path / "oof.json")
    assert found.ids.tolist() == ["02", "1", "100", "3"]
    assert (found.select(b.ids).values == b.values).all()
    assert found.source["run"] == "r"
    assert [part["fold"] for part in found.source["parts"]] == [0, 1]


def test_parts_that_share_an_id_are_refused() -> None:
    with pytest.raises(PredictionError, match="1 ids are predicted by two parts: 'b'"):
        concat([member(ids=["a", "b"]), member(ids=["b", "c"])])


def test_parts_of_other_targets_are_refused() -> None:
    with pytest.raises(PredictionError, match="targets of only some parts: 'cow'"):
        concat([member(ids=["a"]), member(ids=["b"], names=("ant", "bee"))])


# Alignment -------------------------------------------------------------------------------------------------------


def test_values_are_put_in_the_order_of_a_table() -> None:
    one = member()
    found = aligned(one, ids=one.ids[[4, 2]], names=["cow", "ant"])
    assert (found == one.values[[4, 2]][:, [2, 0]]).all()


def test_values_that_are_in_order_are_not_copied() -> None:
    one = member()
    assert aligned(one, ids=one.ids, names=list(one.names)) is one.values


def test_a_target_that_is_not_predicted_is_named() -> None:
    one = member()
    with pytest.raises(PredictionError, match="not predicted: 'cat'"):
        aligned(one, ids=one.ids, names=["ant", "cat"])
    with pytest.raises(PredictionError, match="1 ids are not predicted: '999'"):
        aligned(one, ids=np.array(["001", "999"]), names=["ant"])
