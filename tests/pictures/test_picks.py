from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import classes, labels

from kbench.pictures.picks import KINDS, REGRESSION_KINDS, captions, judge, pick

P = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55], [0.05, 0.95]], np.float32)
T = np.array([0, 1, 0, 1, 1])


def test_the_most_incorrect_are_wrong_and_least_sure_of_the_truth() -> None:
    assert pick(judge("single_label", T, P), "most_incorrect").tolist() == [2, 1]


def test_the_most_correct_are_right_and_most_sure() -> None:
    assert pick(judge("single_label", T, P), "most_correct").tolist() == [4, 0, 3]


def test_the_most_uncertain_of_two_classes_are_nearest_to_a_half() -> None:
    order = pick(judge("single_label", T, P), "most_uncertain", k=5)
    np.testing.assert_array_equal(order, np.argsort(np.abs(P[:, 0] - 0.5), kind="stable"))


def test_four_are_picked_by_default() -> None:
    targets, p = classes()
    assert len(pick(judge("single_label", targets, p), "most_correct")) == 4


def test_rows_of_one_class_only() -> None:
    targets, p = classes()
    for kind in KINDS:
        rows = pick(judge("single_label", targets, p, target=3), kind)
        assert len(rows)
        assert (targets[rows] == 3).all()


def test_random_rows_depend_on_the_seed_alone() -> None:
    judged = judge("single_label", *classes())
    first = pick(judged, "random_correct", k=6)
    assert first.tolist() == pick(judged, "random_correct", k=6).tolist()
    assert first.tolist() != pick(judged, "random_correct", k=6, seed=1).tolist()


@given(
    st.sampled_from(["single_label", "multi_label"]), st.sampled_from(sorted(KINDS)), st.integers(0, 3),
    st.booleans(), st.integers(1, 30),
)  # fmt: skip
def test_what_is_picked_is_what_its_name_says(task: str, kind: str, seed: int, by_target: bool, k: int) -> None:
    targets, p = classes(60, 4, seed) if task == "single_label" else labels(60, 4, seed)
    judged = judge(task, targets, p, target=2 if by_target else None)
    rows = pick(judged, kind, k=k, seed=seed)
    assert len(rows) <= k
    assert len(set(rows.tolist())) == len(rows)
    assert judged.among[rows].all()
    if kind.endswith("correct"):
        assert (judged.right[rows] == (not kind.endswith("_incorrect"))).all()


def test_a_label_is_judged_where_it_is_or_is_said_to_be() -> None:
    targets = np.array([[1.0, 0], [0, 0], [0, 1], [np.nan, 1]], np.float32)
    p = np.array([[0.3, 0.1], [0.2, 0.1], [0.8, 0.9], [0.9, 0.6]], np.float32)
    judged = judge("multi_label", targets, p, target=0)
    assert judged.among.tolist() == [True, False, True, False]
    assert judged.right[[0, 2]].tolist() == [False, False]
    assert pick(judged, "most_incorrect").tolist() == [2, 0]


def test_a_row_of_labels_is_as_good_as_its_worst_label() -> None:
    targets = np.array([[1.0, 0], [1, np.nan]], np.float32)
    p = np.array([[0.9, 0.6], [0.7, 0.9]], np.float32)
    judged = judge("multi_label", targets, p)
    np.testing.assert_allclose(judged.truth, [0.4, 0.7], rtol=1e-6)
    assert judged.right.tolist() == [False, True]


def test_labels_may_have_thresholds_of_their_own() -> None:
    targets, p = np.array([[1.0, 0]], np.float32), np.array([[0.3, 0.6]], np.float32)
    assert judge("multi_label", targets, p, threshold=[0.2, 0.7]).right.all()
    assert not judge("multi_label", targets, p).right.any()


def test_numbers_are_ordered_by_their_errors() -> None:
    targets = np.array([[0.0], [1], [2], [np.nan]])
    p = np.array([[3.0], [1.1], [1], [9]])
    judged = judge("regression", targets, p)
    assert pick(judged, "most_incorrect").tolist() == [0, 2, 1]
    assert pick(judged, "most_correct").tolist() == [1, 2, 0]
    assert set(pick(judged, "random").tolist()) == {0, 1, 2}


def test_targets_of_other_units_weigh_the_same() -> None:
    targets = np.array([[0.0, 0], [1, 1000], [0, 0], [1, 1000]])
    p = targets.copy()
    p[0, 0] += 0.9
    p[1, 1] += 500
    assert pick(judge("regression", targets, p), "most_incorrect", k=2).tolist() == [0, 1]


def test_every_kind_says_what_it_is() -> None:
    assert all(KINDS.values())
    assert all(REGRESSION_KINDS.values())


@pytest.mark.parametrize(
    ("task", "target", "prediction", "focus", "lines"),
    [
        ("single_label", np.int64(1), [0.996, 0.004], None, ("true 0.4% dog", "said 100% cat")),
        ("single_label", np.int64(1), [0.9999, 0.0001], None, ("true <0.1% dog", "said 100% cat")),
        ("multi_label", [1, 0], [0.1, 0.9], None, ("true cat", "missed cat", "extra dog")),
        ("multi_label", [0, 0], [0.1, 0.2], None, ("true none", "missed -", "extra -")),
        ("multi_label", [1, 0], [0.1, 0.9], 1, ("true no", "said 90% yes")),
        ("regression", [2.0, 5.0], [2.5, 4.0], 1, ("true 5", "said 4", "error -1")),
        ("regression", [2.0, 5.0], [2.5, 4.0], None, ("cat 2, said 2.5", "dog 5, said 4")),
    ],
)
def test_captions_say_truth_and_prediction(task: str, target, prediction, focus, lines) -> None:
    found = captions(task, np.asarray(target), np.array(prediction, np.float32), ("cat", "dog"), focus=focus)
    assert found == lines
