"""What fold strategies balance."""

from __future__ import annotations

import numpy as np
import pytest
from fold_tables import make_table, routes, tags

from kbench.data.folds.strata import groups_of, labels_of, strata_of
from kbench.errors import DataError, FoldError


def regression(values):
    return make_table(rows=len(values), task="regression", targets=np.array(values, np.float32)[:, None], names=("y",))


def test_the_stratum_is_the_target_by_default():
    assert strata_of(make_table(rows=3, targets=[1, 0, 1]), ()).tolist() == ["dog", "cat", "dog"]


def test_a_metadata_column_called_target_counts_before_the_target():
    assert strata_of(make_table(rows=2, targets=[1, 0], target=["x", "y"]), ("target",)).tolist() == ["x", "y"]


def test_tags_have_no_single_stratum():
    table = make_table(rows=4, task="multi_label", targets=tags(4, (0.5, 0.5)), names=("a", "b"))
    assert strata_of(table, ()) is None


def test_rows_without_targets_have_no_stratum():
    assert strata_of(routes(), ()) is None


def test_quantiles_hold_equally_many_rows():
    strata = strata_of(regression(np.random.RandomState(0).lognormal(size=100)), (), bins=4)
    assert {name: int((strata == name).sum()) for name in np.unique(strata)} == {f"q{bin_}": 25 for bin_ in range(4)}


def test_equal_values_fall_into_one_quantile():
    strata = strata_of(regression([0.0] * 60 + list(range(1, 41))), (), bins=10)
    assert len(set(strata[:60])) == 1


def test_unknown_values_are_a_stratum_of_their_own():
    strata = strata_of(regression([1.0, np.nan, 2.0, 3.0]), (), bins=2)
    assert strata.tolist() == ["q0", "unknown", "q1", "q1"]


def test_a_target_that_is_nowhere_known_is_one_stratum():
    assert set(strata_of(regression([np.nan, np.nan]), ())) == {"unknown"}


def test_labels_are_the_tags_of_a_row():
    values = np.array([[1, 0], [1, 1], [0, np.nan]], np.float32)
    rows, labels, count = labels_of(make_table(rows=3, task="multi_label", targets=values, names=("a", "b")), ())
    assert sorted(zip(rows.tolist(), labels.tolist(), strict=True)) == [(0, 0), (1, 0), (1, 1)]
    assert count == 2


def test_labels_of_columns_come_after_the_tags():
    table = make_table(
        rows=2, task="multi_label", targets=np.ones((2, 2), np.float32), names=("a", "b"), site=["x", "y"]
    )
    rows, labels, count = labels_of(table, ("target", "site"))
    assert sorted(zip(rows.tolist(), labels.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 3)]
    assert count == 4


def test_rows_without_targets_have_no_labels():
    with pytest.raises(FoldError, match="no 'target' to balance"):
        labels_of(routes(), ())


def test_groups_are_a_columns_values():
    assert groups_of(make_table(rows=2, patient=["7", "07"]), "patient").tolist() == ["7", "07"]


def test_an_unknown_group_column_is_an_error():
    with pytest.raises(DataError, match="no column 'patient'"):
        groups_of(make_table(rows=2), "patient")


@pytest.mark.parametrize("blank", ["", "nan", "NaN", " ", "\u00a0", "\u200b"])
def test_groups_that_a_reader_sees_as_none_are_refused(blank: str) -> None:
    table = make_table(rows=4, targets=[0, 1, 0, 1], patient=[blank, "p1", "p1", "p2"])
    with pytest.raises(FoldError, match="1 rows have no value in the group column 'patient'"):
        groups_of(table, "patient")
