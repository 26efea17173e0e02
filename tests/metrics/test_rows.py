from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kbench import registry
from kbench.data.table.table import Table
from kbench.errors import ConfigError, DataError, PredictionError
from kbench.metrics.metric import make_metric, ranks


def table_of(targets: np.ndarray, *, task: str, k: int) -> Table:
    ids = np.array([f"{row:05}" for row in range(len(targets))])
    return Table(ids, Path(), ((),) * len(ids), task, tuple(f"t{i}" for i in range(k)), targets)


def single(n: int = 200, k: int = 4, seed: int = 0) -> tuple[Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
    return table_of(targets, task="single_label", k=k), rng.dirichlet(np.ones(k), n).astype(np.float32)


def multi(n: int = 200, k: int = 5, seed: int = 0) -> tuple[Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, k)) < 0.4).astype(np.float32)
    return table_of(targets, task="multi_label", k=k), rng.random((n, k)).astype(np.float32)


def scalar(n: int = 200, k: int = 2, seed: int = 0) -> tuple[Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(n, k)).astype(np.float32) * 3
    return table_of(targets, task="regression", k=k), targets + rng.normal(size=(n, k)).astype(np.float32)


MAKERS = {"single_label": single, "multi_label": multi, "regression": scalar}
PERFECT = {
    "log_loss": 0,
    "accuracy": 1,
    "error": 0,
    "auc": 1,
    "f1_macro": 1,
    "fbeta_samples": 1,
    "f2_samples": 1,
    "multi_label_accuracy": 1,
    "bce": 0,
    "mse": 0,
    "mae": 0,
    "rmse": 0,
    "r2": 1,
    "quadratic_kappa": 1,
}


def score(name: str, table: Table, predictions: np.ndarray, **params: object) -> float:
    return make_metric(name, params)(table.targets, predictions, table)


def one_hot(table: Table) -> np.ndarray:
    assert table.targets is not None
    if table.task == "single_label":
        return np.eye(len(table.target_names), dtype=np.float32)[table.targets]
    return table.targets.round() if table.task == "regression" else table.targets


CASES = [(name, task) for name in sorted(PERFECT) for task in make_metric(name).tasks]


def test_every_registered_metric_is_covered_by_the_laws() -> None:
    assert set(PERFECT) <= set(registry.names("metric"))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_perfect_predictions_attain_the_best_value(name: str, task: str) -> None:
    table, _ = MAKERS[task]()
    truth = one_hot(table)
    table = table_of(truth if task == "regression" else table.targets, task=task, k=len(table.target_names))
    assert score(name, table, truth) == pytest.approx(PERFECT[name], abs=1e-9)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_other_predictions_are_worse_than_perfect_ones(name: str, task: str) -> None:
    table, predictions = MAKERS[task]()
    metric = make_metric(name)
    assert metric.better(PERFECT[name], metric(table.targets, predictions, table))


@pytest.mark.parametrize(("name", "task"), CASES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(name: str, task: str, seed: int) -> None:
    table, predictions = MAKERS[task](60, seed=seed)
    order = np.random.default_rng(seed).permutation(len(table))
    assert table.targets is not None
    shuffled = table_of(table.targets[order], task=task, k=len(table.target_names))
    assert score(name, shuffled, predictions[order]) == pytest.approx(score(name, table, predictions), rel=1e-9)


@pytest.mark.parametrize(("name", "task"), [case for case in CASES if make_metric(case[0]).per_row])
def test_a_metric_with_row_values_is_their_mean(name: str, task: str) -> None:
    table, predictions = MAKERS[task]()
    metric = make_metric(name)
    assert metric.per_row is not None
    rows = metric.per_row(table.targets, predictions, table)
    assert rows.shape == (len(table),)
    assert metric(table.targets, predictions, table) == pytest.approx(rows.mean())


@pytest.mark.parametrize("k", [2, 4])
def test_log_loss_is_scikit_learns(k: int) -> None:
    table, p = single(k=k)
    expected = reference.log_loss(table.targets, p.astype(float) / p.sum(axis=1, keepdims=True, dtype=float))
    assert score("log_loss", table, p) == pytest.approx(expected, rel=1e-6)


def test_log_loss_of_a_sure_mistake_is_finite_and_clipped() -> None:
    table = table_of(np.array([0, 1]), task="single_label", k=2)
    sure = np.array([[0, 1], [0, 1]], dtype=np.float32)
    assert score("log_loss", table, sure) == pytest.approx(-np.log(1e-15) / 2)
    assert score("log_loss", table, sure, eps=0.1) == pytest.approx(-(np.log(0.1) + np.log(0.9)) / 2)


def test_log_loss_divides_rows_by_their_sums() -> None:
    table, p = single()
    assert score("log_loss", table, p / 2) == pytest.approx(score("log_loss", table, p))


def test_accuracy_and_error_are_scikit_learns() -> None:
    table, p = single()
    expected = reference.accuracy_score(table.targets, p.argmax(axis=1))
    assert score("accuracy", table, p) == pytest.approx(expected)
    assert score("error", table, p) == pytest.approx(1 - expected)


def test_binary_auc_is_scikit_learns_also_with_ties() -> None:
    table, p = single(k=2)
    p = p.round(1)
    assert score("auc", table, p) == pytest.approx(reference.roc_auc_score(table.targets, p[:, 1]))


def test_auc_of_many_classes_is_scikit_learns_one_against_rest() -> None:
    table, p = single(k=5)
    p64 = p.astype(float) / p.sum(axis=1, keepdims=True, dtype=float)
    expected = reference.roc_auc_score(table.targets, p64, multi_class="ovr", average="macro")
    assert score("auc", table, p) == pytest.approx(expected, rel=1e-6)


def test_auc_of_labels_is_scikit_learns() -> None:
    table, p = multi()
    assert score("auc", table, p) == pytest.approx(reference.roc_auc_score(table.targets, p, average="macro"))


def test_auc_without_rows_of_a_class_names_the_class() -> None:
    table = table_of(np.zeros(5, dtype=np.int64), task="single_label", k=2)
    with pytest.raises(DataError, match="no row of 't1'"):
        score("auc", table, np.full((5, 2), 0.5, dtype=np.float32))


def test_auc_of_a_label_that_never_occurs_names_the_label() -> None:
    table = table_of(np.array([[0, 1], [1, 1]], dtype=np.float32), task="multi_label", k=2)
    with pytest.raises(DataError, match="known values of 't1'"):
        score("auc", table, np.full((2, 2), 0.5, dtype=np.float32))


def test_f1_macro_of_classes_is_scikit_learns_even_with_an_absent_class() -> None:
    table, p = single(k=6)
    p[:, 5] = 0
    assert table.targets is not None
    table = table_of(np.where(table.targets == 5, 0, table.targets), task="single_label", k=6)
    expected = reference.f1_score(table.targets, p.argmax(axis=1), average="macro")
    assert score("f1_macro", table, p) == pytest.approx(expected)


def test_f1_macro_of_labels_is_scikit_learns() -> None:
    table, p = multi()
    expected = reference.f1_score(table.targets, p > 0.3, average="macro")
    assert score("f1_macro", table, p, threshold=0.3) == pytest.approx(expected)


def test_f2_per_sample_is_scikit_learns() -> None:
    table, p = multi()
    expected = reference.fbeta_score(table.targets, p > 0.2, beta=2, average="samples", zero_division=1)
    assert score("f2_samples", table, p) == pytest.approx(expected)
    assert score("fbeta_samples", table, p) == pytest.approx(expected)


def test_f2_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0]], dtype=np.float32)  # P = 1/3, R = 1/2: 5 PR / (4P + R) = 5/6 / (4/3 + 1/2)
    p = np.array([[0.9, 0.1, 0.9, 0.9]], dtype=np.float32)
    assert score("f2_samples", table_of(truth, task="multi_label", k=4), p) == pytest.approx(5 / 11)


def test_f2_of_an_empty_truth_and_an_empty_prediction_is_one() -> None:
    nothing = np.zeros((1, 3), dtype=np.float32)
    assert score("f2_samples", table_of(nothing, task="multi_label", k=3), nothing) == 1


def test_a_probability_equal_to_the_threshold_is_not_predicted() -> None:
    table = table_of(np.zeros((1, 1), dtype=np.float32), task="multi_label", k=1)
    assert score("f2_samples", table, np.full((1, 1), 0.2, dtype=np.float32), threshold=0.2) == 1


def test_thresholds_may_differ_by_label_but_must_fit() -> None:
    table, p = multi(k=2)
    one = score("f2_samples", table, p, threshold=[0.3, 0.3])
    assert one == score("f2_samples", table, p, threshold=0.3)
    with pytest.raises(ConfigError, match="3 thresholds for 2 labels"):
        score("f2_samples", table, p, threshold=[0.1, 0.2, 0.3])


def test_multi_label_accuracy_is_one_minus_hamming_loss() -> None:
    table, p = multi()
    assert score("multi_label_accuracy", table, p) == pytest.approx(1 - reference.hamming_loss(table.targets, p > 0.5))


def test_bce_is_scikit_learns_log_loss_of_all_labels() -> None:
    table, p = multi()
    assert table.targets is not None
    assert score("bce", table, p) == pytest.approx(reference.log_loss(table.targets.ravel(), p.ravel()), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", reference.mean_squared_error),
        ("mae", reference.mean_absolute_error),
        ("rmse", reference.root_mean_squared_error),
        ("r2", reference.r2_score),
    ],
)
def test_regression_metrics_are_scikit_learns(name: str, expected: object) -> None:
    table, p = scalar()
    assert score(name, table, p) == pytest.approx(expected(table.targets, p), rel=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["mse", "mae", "rmse", "r2", "quadratic_kappa"])
def test_unknown_targets_do_not_count_in_regression(name: str) -> None:
    table, p = scalar(k=1)
    assert table.targets is not None
    holes = table.targets.copy()
    holes[::3] = np.nan
    known = ~np.isnan(holes[:, 0])
    alone = table_of(holes[known], task="regression", k=1)
    with_holes = table_of(holes, task="regression", k=1)
    assert score(name, with_holes, p) == pytest.approx(score(name, alone, p[known]))


@pytest.mark.parametrize("name", ["bce", "f2_samples", "multi_label_accuracy", "f1_macro", "auc"])
def test_unknown_labels_do_not_count(name: str) -> None:
    table, p = multi(k=1)
    assert table.targets is not None
    holes = table.targets.copy()
    holes[::3] = np.nan
    known = ~np.isnan(holes[:, 0])
    alone = table_of(holes[known], task="multi_label", k=1)
    with_holes = table_of(holes, task="multi_label", k=1)
    assert score(name, with_holes, p) == pytest.approx(score(name, alone, p[known]))


def test_quadratic_kappa_of_classes_is_scikit_learns() -> None:
    table, p = single(k=5)
    expected = reference.cohen_kappa_score(table.targets, p.argmax(axis=1), weights="quadratic", labels=range(5))
    assert score("quadratic_kappa", table, p) == pytest.approx(expected)


def test_quadratic_kappa_of_a_regression_rounds_to_grades() -> None:
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 5, size=(100, 1)).astype(np.float32)
    p = np.clip(grades + rng.normal(0, 0.8, size=(100, 1)), 0, 4).astype(np.float32)
    expected = reference.cohen_kappa_score(grades[:, 0], np.rint(p[:, 0]), weights="quadratic", labels=range(5))
    assert score("quadratic_kappa", table_of(grades, task="regression", k=1), p) == pytest.approx(expected)


def test_r2_of_a_constant_target_has_no_value() -> None:
    table = table_of(np.ones((4, 1), dtype=np.float32), task="regression", k=1)
    with pytest.raises(DataError, match="known values of 't0'"):
        score("r2", table, np.zeros((4, 1), dtype=np.float32))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
@settings(deadline=None)
def test_ranks_are_scipys(values: list[int]) -> None:
    from scipy.stats import rankdata

    assert ranks(np.array(values)).tolist() == rankdata(values).tolist()


def test_a_metric_refuses_a_task_it_cannot_score() -> None:
    table, p = scalar()
    with pytest.raises(ConfigError, match="'log_loss' cannot score the task 'regression'"):
        score("log_loss", table, p)


def test_a_metric_refuses_rows_without_targets() -> None:
    _, p = single()
    table = Table(np.array(["a"]), Path(), ((),), "single_label", ("x", "y"))
    with pytest.raises(DataError, match="no rows with targets"):
        make_metric("accuracy")(table.targets, p[:1], table)


def test_predictions_that_are_nan_are_never_scored() -> None:
    table, p = multi()
    p[3, 1] = np.nan
    with pytest.raises(PredictionError, match="NaN or infinite"):
        score("bce", table, p)


def test_an_unknown_metric_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'log_loss'"):
        make_metric("logloss")


def test_a_plug_ins_metric_must_say_its_direction() -> None:
    @registry.register("metric", "test_only_directionless")
    def directionless(targets: np.ndarray, predictions: np.ndarray, table: Table) -> float:
        return 0.0

    with pytest.raises(ConfigError, match="does not say its direction"):
        make_metric("test_only_directionless")
    del registry._parts["metric"]["test_only_directionless"]


@pytest.mark.parametrize(("name", "better", "worse"), [("accuracy", 0.9, 0.8), ("log_loss", 0.1, 0.2)])
def test_better_follows_the_direction(name: str, better: float, worse: float) -> None:
    metric = make_metric(name)
    assert metric.better(better, worse)
    assert not metric.better(worse, better)
    assert not metric.better(better, better)


def test_nan_is_never_better_and_anything_beats_it() -> None:
    metric = make_metric("accuracy")
    assert not metric.better(float("nan"), 0.1)
    assert metric.better(0.1, float("nan"))


def test_yaml_parameters_are_held_against_the_signature() -> None:
    assert registry.bind("metric", "f2_samples", {"threshold": 0.3}, where="metric") == []
    (problem,) = registry.bind("metric", "f2_samples", {"treshold": 0.3}, where="metric")
    assert "did you mean 'threshold'" in str(problem)


def test_no_metric_warns_on_sure_predictions() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table, _ = multi()
        score("bce", table, one_hot(table))
