from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import classes, labels, table
from sklearn.metrics import precision_recall_fscore_support, r2_score, roc_auc_score

from kbench.ensemble.bootstrap import interval
from kbench.errors import DataError
from kbench.metrics.metric import make_metric
from kbench.pictures.tables import class_table, slice_table, slices_of, write_table

NAMES = ("a", "b", "c", "d", "e")


def column(rows: list[dict], name: str) -> list:
    return [row[name] for row in rows]


def test_classes_have_scikit_learns_precision_recall_and_f1() -> None:
    targets, p = classes()
    rows = class_table(table(targets, names=NAMES), p)
    precision, recall, f1, support = precision_recall_fscore_support(targets, p.argmax(axis=1))
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("rows", support)):
        np.testing.assert_allclose(column(rows, name), expected)
    expected_auc = [roc_auc_score(targets == k, p[:, k]) for k in range(5)]
    np.testing.assert_allclose(column(rows, "auc"), expected_auc)


def test_labels_have_scikit_learns_numbers_over_their_known_rows() -> None:
    targets, p = labels()
    rows = class_table(table(targets, task="multi_label", names=NAMES[:4]), p, threshold=0.4)
    for k, row in enumerate(rows):
        known = ~np.isnan(targets[:, k])
        truth, said = targets[known, k] > 0.5, p[known, k] > 0.4
        precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average="binary")
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1))
        assert row["auc"] == pytest.approx(roc_auc_score(truth, p[known, k]))
        assert row["accuracy"] == pytest.approx((truth == said).mean())
        assert row["unknown"] == (~known).sum()


def test_regression_targets_have_their_errors_in_their_units() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(50, 2)).astype(np.float32)
    p = targets + rng.normal(0, 0.3, (50, 2)).astype(np.float32) + np.array([0, 2], np.float32)
    targets[3, 0] = np.nan
    first, second = class_table(table(targets, task="regression", names=("x", "y")), p)
    known = ~np.isnan(targets[:, 0])
    assert first["rows"] == 49
    assert first["r2"] == pytest.approx(r2_score(targets[known, 0], p[known, 0]), rel=1e-5)
    assert second["rmse"] == pytest.approx(float(np.sqrt(((p - targets)[:, 1] ** 2).mean())), rel=1e-5)
    assert second["bias"] == pytest.approx(2, abs=0.2)


def test_numbers_without_a_value_are_none_rather_than_zero() -> None:
    rows = class_table(table(np.array([0, 0]), names=("a", "b", "c")), np.array([[0.6, 0.4, 0], [0.4, 0.6, 0]]))
    assert rows[0]["auc"] is None
    assert rows[2] == {
        "class": "c", "rows": 0, "predicted": 0, "recall": None, "precision": None, "f1": None, "auc": None
    }  # fmt: skip
    unknown = class_table(table(np.full((2, 1), np.nan), task="regression", names=("x",)), np.zeros((2, 1)))
    assert unknown[0]["rmse"] is None


def test_a_slice_has_the_score_and_interval_of_its_rows_alone() -> None:
    targets, p = classes(120)
    site = ["north" if row % 3 else "south" for row in range(120)]
    known = table(targets, names=NAMES, site=site)
    metric = make_metric("log_loss")
    rows = slice_table(metric, known, p, "site")
    assert column(rows, "site") == ["north", "south"]
    south = np.array(site) == "south"
    expected = interval(metric, targets[south], p[south], known.select(south), draws=500)
    assert (rows[1]["score"], rows[1]["low"], rows[1]["high"]) == (expected.value, expected.low, expected.high)


def test_intervals_draw_groups_where_there_are_some() -> None:
    targets, p = classes(120)
    known = table(targets, names=NAMES, site=["north"] * 120)
    groups = np.array([f"g{row // 30}" for row in range(120)])
    alone = slice_table(make_metric("log_loss"), known, p, "site")[0]
    grouped = slice_table(make_metric("log_loss"), known, p, "site", groups=groups)[0]
    assert alone["score"] == grouped["score"]
    assert alone["low"] != grouped["low"]


def test_a_slice_that_cannot_be_scored_says_why_and_the_others_still_count() -> None:
    targets = np.array([0, 1, 0, 1, 1, 1])
    known = table(targets, site=["mixed"] * 4 + ["ones"] * 2)
    p = np.column_stack([1 - targets * 0.4, targets * 0.4])
    rows = slice_table(make_metric("auc"), known, p, "site", draws=100)
    assert rows[0]["score"] == 1.0
    assert rows[1]["score"] is None
    assert "no row of 'cat'" in rows[1]["note"]


def test_a_single_row_has_a_score_without_an_interval() -> None:
    known = table(np.array([0, 1, 1]), site=["a", "b", "b"])
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    first = slice_table(make_metric("log_loss"), known, p, "site")[0]
    assert first["score"] == pytest.approx(0.105, abs=0.001)
    assert first["low"] is None
    assert "bootstrap interval of 1 image" in first["note"]


def test_a_column_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DataError, match="no column 'nose'"):
        slices_of(table(np.array([0, 1])), "nose")


def test_many_numbers_become_five_ranges_in_rising_order() -> None:
    values = [str(number) for number in np.random.default_rng(0).permutation(100)]
    place, names = slices_of(table(np.zeros(100, int), age=values), "age")
    assert len(names) == 5
    assert np.bincount(place).tolist() == [20] * 5
    assert names[0] == "0 to below 19.8"
    assert all(int(value) < 20 for value, where in zip(values, place, strict=True) if where == 0)


def test_few_numbers_stay_as_they_are_in_the_order_of_numbers() -> None:
    _, names = slices_of(table(np.zeros(4, int), age=["10", "9", "", "9"]), "age")
    assert names == ["9", "10", "(empty)"]


def test_codes_that_look_like_numbers_are_sorted_as_words_when_one_is_none() -> None:
    _, names = slices_of(table(np.zeros(3, int), route=["0016E5", "0001TP", "0006R0"]), "route")
    assert names == ["0001TP", "0006R0", "0016E5"]


def test_many_words_become_the_commonest_and_the_rest() -> None:
    values = [f"w{row % 30:02d}" if row < 300 else "w07" for row in range(400)]
    place, names = slices_of(table(np.zeros(400, int), word=values), "word")
    assert len(names) == 20
    assert names[-1] == "(other)"
    assert "w07" in names
    assert np.bincount(place).sum() == 400


@given(st.lists(st.text("0123456789.- ab", max_size=6), min_size=1, max_size=60))
def test_every_row_is_in_exactly_one_slice_and_no_slice_is_empty(values: list[str]) -> None:
    place, names = slices_of(table(np.zeros(len(values), int), x=values), "x")
    assert len(place) == len(values)
    assert len(set(names)) == len(names)
    assert set(place.tolist()) <= set(range(len(names)))
    if len(set(values)) <= 20:
        assert set(place.tolist()) == set(range(len(names)))


def test_records_come_back_from_their_csv(tmp_path: Path) -> None:
    rows = [{"class": "a", "rows": 3, "auc": None}, {"class": "0012", "rows": 4, "auc": 0.25}]
    frame = pd.read_csv(write_table(rows, tmp_path / "t.csv"), dtype={"class": str})
    assert frame["class"].tolist() == ["a", "0012"]
    assert frame["auc"].isna().tolist() == [True, False]


@pytest.mark.parametrize("text", ["=HYPERLINK(A1)", "+1+1", "-x", "@SUM(A1)", "\t=1"])
def test_a_spreadsheet_computes_no_cell_of_a_report(tmp_path: Path, text: str) -> None:
    path = write_table([{"class": text, text: 1, "n": -2.5, "id": "-7"}], tmp_path / "t.csv")
    frame = pd.read_csv(path, dtype=str)
    assert list(frame.columns) == ["class", f"'{text}", "n", "id"]
    assert frame.iloc[0].tolist() == [f"'{text}", "1", "-2.5", "-7"]
