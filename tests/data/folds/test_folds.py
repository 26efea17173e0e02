"""What is true of every `Folds`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fold_tables import classes, make_table, tags

from kbench import registry
from kbench.data.folds.folds import Cut, Folds, describe, make_folds
from kbench.errors import FoldError


def folds_of(fold, *, ids=None, groups=None, strata=None):
    ids = np.array([f"r{row:05d}" for row in range(len(fold))] if ids is None else ids)
    return Folds(ids, np.array(fold, dtype=np.int64), strata, None if groups is None else np.array(groups), {})


def test_train_only_rows_train_every_fold_and_validate_none():
    folds = folds_of([0, 1, -1, 0])
    assert folds.n == 2
    assert folds.train(0).tolist() == [False, True, True, False]
    assert folds.train(1).tolist() == [True, False, True, True]
    assert folds.valid(1).tolist() == [False, True, False, False]


def test_one_fold_and_train_only_rows_are_a_single_split():
    assert folds_of([0, -1, -1]).train(0).tolist() == [False, True, True]


def test_a_group_may_have_train_only_rows():
    assert folds_of([0, 1, -1], groups=["a", "b", "a"]).n == 2


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ([0, 0, 2], "fold 1 is empty"),
        ([-1, -1], "every row has fold -1"),
        ([0, 0], "nothing is left to train on"),
        ([0, 1, -2], "'-2' is no fold"),
        ([], "no rows"),
    ],
)
def test_folds_without_rows_are_refused(fold, message):
    with pytest.raises(FoldError, match=message):
        folds_of(fold)


@pytest.mark.parametrize("ids", [["b", "a"], ["a", "a"]])
def test_ids_must_be_unique_and_sorted(ids):
    with pytest.raises(FoldError, match="unique and sorted"):
        folds_of([0, 1], ids=ids)


def test_a_group_in_two_folds_is_refused_by_name():
    with pytest.raises(FoldError, match="1 groups are in more than one fold: 'p1'"):
        folds_of([0, 1, 1], groups=["p1", "p1", "p2"])


@pytest.mark.parametrize("number", [-1, 2])
def test_asking_for_a_fold_that_is_not_there_names_those_that_are(number):
    with pytest.raises(FoldError, match=f"no fold '{number}'") as error:
        folds_of([0, 1]).train(number)
    assert "0 to 1" in error.value.expected


def test_the_hash_is_of_ids_and_folds_alone():
    first = folds_of([0, 1, 0], groups=["a", "b", "a"])
    assert first.hash == folds_of([0, 1, 0]).hash == "85f6f6ebffcbe14b"
    assert first.hash != folds_of([1, 0, 1]).hash
    assert first.hash != folds_of([0, 1, 0], ids=["a", "b", "c"]).hash


def test_check_accepts_the_tables_ids():
    folds_of([0, 1]).check(make_table(rows=2))


def test_check_names_missing_and_extra_ids_and_the_remedy():
    with pytest.raises(FoldError) as error:
        folds_of([0, 1], ids=["a", "z"]).check(make_table(["a", "b", "c"]))
    assert "2 without a fold: 'b', 'c'; 1 not in the table: 'z'" in error.value.what
    assert "kbench folds --force" in error.value.todo


def test_the_manifest_says_how_the_folds_were_cut():
    table = make_table(rows=10, targets=classes(10, 0.5), site=list("ababababab"))
    manifest = make_folds(table, "stratified", Cut(2, 7, ("site",)), {"bins": 4}).manifest
    assert manifest == {
        "strategy": "stratified",
        "n": 2,
        "seed": 7,
        "by": ["site"],
        "group": None,
        "options": {"bins": 4},
        "rows": 10,
        "counts": {"0": 5, "1": 5},
        "table": table.fingerprint(),
        "warnings": [],
    }
    assert json.loads(json.dumps(manifest)) == manifest


def test_the_manifest_counts_train_only_rows():
    table = make_table(rows=4, part=["0", "1", "-1", "-1"])
    assert make_folds(table, "predefined", Cut(2, 0), {"column": "part"}).manifest["counts"] == {
        "-1": 2,
        "0": 1,
        "1": 1,
    }


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (-1, 0), (5, -1), (5, 2**32)])
def test_a_cut_refuses_a_count_or_seed_out_of_range(n, seed):
    with pytest.raises(FoldError):
        Cut(n, seed)


@pytest.mark.parametrize("result", [np.zeros(3, dtype=int), np.zeros(4)])
def test_a_plugin_strategy_that_returns_nonsense_is_named(result, monkeypatch):
    def broken(table, cut):
        return result

    part = registry.Part("fold strategy", "broken", broken, {})
    monkeypatch.setitem(registry._parts["fold strategy"], "broken", part)
    with pytest.raises(FoldError, match="'broken' returned"):
        make_folds(make_table(rows=4), "broken", Cut(2, 0), {})


def test_describe_counts_rows_groups_strata_and_classes():
    table = make_table(
        rows=8, targets=[0, 1] * 4, site=list("aabbaabb"), patient=list("ppqqrrss"), part=list("00001111")
    )
    folds = make_folds(table, "predefined", Cut(2, 0, ("site",), "patient"), {"column": "part"})
    record = {"rows": 4, "groups": 2, "strata": {"a": 2, "b": 2}, "targets": {"cat": 2, "dog": 2}}
    assert describe(folds, table) == [{"fold": 0, **record}, {"fold": 1, **record}]


def test_describe_begins_with_train_only_rows():
    table = make_table(rows=3)
    assert describe(folds_of([0, -1, 1]), table) == [
        {"fold": -1, "rows": 1},
        {"fold": 0, "rows": 1},
        {"fold": 1, "rows": 1},
    ]


def test_describe_counts_tags():
    values = tags(40, (0.5, 0.2))
    table = make_table(rows=40, task="multi_label", targets=values, names=("haze", "road"))
    records = describe(make_folds(table, "multilabel", Cut(2, 0), {}), table)
    assert sum(record["targets"]["haze"] for record in records) == values[:, 0].sum()


def test_describe_shows_means_of_regression_targets_where_known():
    table = make_table(
        rows=4, task="regression", targets=np.array([[1.0], [2.0], [3.0], [np.nan]], np.float32), names=("y",)
    )
    records = describe(folds_of([0, 1, 0, 1]), table)
    assert [record["targets"] for record in records] == [{"y": 2.0}, {"y": 2.0}]


def test_describe_refuses_another_table():
    with pytest.raises(FoldError, match="different ids"):
        describe(folds_of([0, 1]), make_table(rows=3))
