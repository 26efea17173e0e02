"""Every registered way to cut folds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fold_tables import CELLS, classes, make_table, routes, tags
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedGroupKFold

from kbench import registry
from kbench.data.folds.folds import Cut, make_folds
from kbench.errors import DataError, FoldError


def cut_rows(table, strategy, n=5, seed=0, by=(), group=None, **options):
    return make_folds(table, strategy, Cut(n, seed, by, group), options).fold


def spread(fold, values):
    """Largest difference between two folds in the count of any value (tags: of rows that have the tag)."""
    if values.dtype == np.float32:
        fold, values = fold[values > 0], values[values > 0]
    counts = [np.bincount(fold[values == value], minlength=fold.max() + 1) for value in np.unique(values)]
    return max(int(count.max() - count.min()) for count in counts)


# ------------------------------------------------------------------------------------- holdout


def fastai_cv_idxs(n, cv_idx, val_pct=0.2, seed=42):
    """The original, fast.ai 0.7 dataset.py."""
    np.random.seed(seed)
    n_val = int(val_pct * n)
    start = cv_idx * n_val
    return np.random.permutation(n)[start : start + n_val]


def test_holdout_of_ten_rows_with_seed_42_validates_rows_8_and_1_first():
    fold = cut_rows(make_table(rows=10), "holdout", seed=42)
    assert set(np.flatnonzero(fold == 0)) == {8, 1}


def test_holdout_of_10222_rows_has_the_original_slices_and_joins_the_leftover_to_the_last():
    fold = cut_rows(make_table(rows=10222), "holdout", seed=42, val_pct=0.2)
    assert np.bincount(fold).tolist() == [2044, 2044, 2044, 2044, 2046]
    assert set(fold[[2882, 4514, 7717, 33, 4924]]) == {0}


@pytest.mark.parametrize(("rows", "val_pct", "seed"), [(10222, 0.2, 42), (97, 0.1, 0), (50, 0.3, 7), (12, 0.5, 1)])
def test_holdout_folds_are_the_originals_cv_idx(rows, val_pct, seed):
    fold = cut_rows(make_table(rows=rows), "holdout", seed=seed, val_pct=val_pct)
    count = int(1 / val_pct)
    assert fold.max() + 1 == count
    for cv_idx in range(count - 1):
        assert set(np.flatnonzero(fold == cv_idx)) == set(fastai_cv_idxs(rows, cv_idx, val_pct, seed))
    assert set(np.flatnonzero(fold == count - 1)) >= set(fastai_cv_idxs(rows, count - 1, val_pct, seed))


def test_holdout_without_a_share_cuts_n_folds():
    assert np.bincount(cut_rows(make_table(rows=10), "holdout", n=3)).tolist() == [3, 3, 4]


@pytest.mark.parametrize("val_pct", [0.0, -0.1, 0.6, 1.0])
def test_holdout_refuses_a_share_that_leaves_nothing_to_train_or_validate(val_pct):
    with pytest.raises(FoldError, match="val_pct"):
        cut_rows(make_table(rows=10), "holdout", val_pct=val_pct)


def test_holdout_says_in_the_manifest_that_its_share_decides_the_number_of_folds():
    folds = make_folds(make_table(rows=100), "holdout", Cut(5, 0), {"val_pct": 0.1})
    assert folds.n == 10
    assert folds.manifest["warnings"] == ["folds.n is 5, but the strategy's options make 10 folds"]


# --------------------------------------------------------------------------------------- kfold


@pytest.mark.parametrize(("rows", "n", "seed"), [(100, 10, 314159), (103, 10, 314159), (7, 3, 0), (5, 5, 2**32 - 1)])
def test_kfold_is_scikit_learns(rows, n, seed):
    fold = cut_rows(make_table(rows=rows), "kfold", n=n, seed=seed)
    parts = KFold(n, shuffle=True, random_state=seed).split(np.zeros(rows))
    for number, (_, valid) in enumerate(parts):
        assert np.flatnonzero(fold == number).tolist() == valid.tolist()


# ---------------------------------------------------------------------------------- stratified


def test_stratified_balances_route_by_time_of_day_over_seven_folds():
    table = routes()
    folds = make_folds(table, "stratified", Cut(7, 42, ("route", "time_of_day")), {})
    assert sorted(np.bincount(folds.fold)) == [320, 320, 320, 320, 321, 321, 321]
    assert folds.strata is not None
    for (route, time), count in CELLS.items():
        in_cell = folds.strata == f"{route} | {time}"
        assert in_cell.sum() == count
        assert set(np.bincount(folds.fold[in_cell], minlength=7)) <= {count // 7, count // 7 + 1}


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 5), min_size=2, max_size=80), n=st.integers(2, 9), seed=st.integers(0, 2**32 - 1))
def test_stratified_counts_differ_by_at_most_one_in_every_stratum_and_overall(values, n, seed):
    n = min(n, len(values))
    fold = cut_rows(make_table(rows=len(values), site=values), "stratified", n=n, seed=seed, by=("site",))
    sizes = np.bincount(fold, minlength=n)
    assert sizes.max() - sizes.min() <= 1
    assert spread(fold, np.array(values)) <= 1


def test_stratified_balances_the_target_by_default():
    targets = classes(101)
    fold = cut_rows(make_table(rows=101, targets=targets), "stratified")
    assert spread(fold, targets) <= 1


def test_stratified_combines_the_target_with_a_column():
    targets = classes(200)
    site = ["a", "b", "c", "d"] * 50
    folds = make_folds(
        make_table(rows=200, targets=targets, site=site), "stratified", Cut(4, 0, ("target", "site")), {}
    )
    assert set(folds.strata) == {f"{name} | {value}" for name in ("cat", "dog") for value in "abcd"}
    assert spread(folds.fold, folds.strata) <= 1


def test_stratified_balances_quantiles_of_a_regression_target():
    values = np.random.RandomState(0).lognormal(size=(500, 1)).astype(np.float32)
    table = make_table(rows=500, task="regression", targets=values, names=("height",))
    folds = make_folds(table, "stratified", Cut(5, 0), {"bins": 20})
    assert len(set(folds.strata)) == 20
    assert spread(folds.fold, folds.strata) <= 1
    means = [values[folds.fold == number].mean() for number in range(5)]
    assert np.ptp(means) < 0.15 * values.mean()


def test_stratified_balances_several_regression_targets_each_for_itself():
    values = np.random.RandomState(0).normal(size=(400, 3)).astype(np.float32)
    fold = cut_rows(
        make_table(rows=400, task="regression", targets=values, names=("x", "y", "z")), "stratified", bins=4
    )
    for column in values.T:
        assert spread(fold, np.argsort(np.argsort(column)) // 100) <= 2


def test_stratified_balances_tags_by_iterative_stratification():
    table = make_table(rows=300, task="multi_label", targets=tags(300, (0.5, 0.1)), names=("haze", "road"))
    assert cut_rows(table, "stratified").tolist() == cut_rows(table, "multilabel").tolist()


def test_rows_without_labels_cannot_be_stratified_by_default():
    with pytest.raises(FoldError, match="no 'target' to balance") as error:
        cut_rows(routes(), "stratified")
    assert "kfold" in error.value.todo


def test_strata_smaller_than_the_number_of_folds_are_a_warning_in_the_manifest():
    folds = make_folds(make_table(rows=22, site=["a"] * 20 + ["b", "c"]), "stratified", Cut(5, 0, ("site",)), {})
    assert folds.manifest["warnings"] == ["2 strata have fewer than 5 rows: 'b', 'c'"]


def test_another_seed_cuts_other_folds():
    table = make_table(rows=100, targets=classes(100))
    assert cut_rows(table, "stratified", seed=1).tolist() != cut_rows(table, "stratified", seed=2).tolist()


# -------------------------------------------------------------------------------------- groups


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 12), min_size=13, max_size=90),
    strategy=st.sampled_from(["group", "stratified_group"]),
    n=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_no_group_is_in_two_folds_and_no_fold_is_empty(values, strategy, n, seed):
    values = [*range(5), *values]
    table = make_table(rows=len(values), targets=classes(len(values), seed=seed), patient=values)
    fold = cut_rows(table, strategy, n=n, seed=seed, group="patient")
    assert set(fold) == set(range(n))
    assert all(len(set(fold[np.array(values) == value])) == 1 for value in set(values))


def test_group_spreads_sizes_evenly():
    sizes = [40, 30, 20, 10, 10, 10, 10, 10, 10]
    patient = np.repeat([f"p{number}" for number in range(len(sizes))], sizes)
    fold = cut_rows(make_table(rows=150, patient=patient), "group", n=3, group="patient")
    assert np.bincount(fold).tolist() == [50, 50, 50]


def test_group_with_one_row_each_gives_even_folds():
    fold = cut_rows(make_table(rows=103), "group", group="id")
    assert sorted(np.bincount(fold)) == [20, 20, 21, 21, 21]


def group_problem(seed):
    random = np.random.RandomState(seed)
    patient = random.zipf(1.7, size=800) % 97
    targets = (random.rand(800) < (0.1 + 0.6 * (patient % 3 == 0))).astype(np.int64)
    return patient, targets


def imbalance(fold, targets, n):
    """Chi-square distance of class counts per fold from equal shares."""
    counts = np.stack([np.bincount(targets[fold == number], minlength=2) for number in range(n)])
    expected = counts.sum(axis=0) / n
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", range(3))
def test_stratified_group_balances_classes_better_than_group(seed):
    patient, targets = group_problem(seed)
    table = make_table(rows=800, targets=targets, patient=patient)
    stratified = cut_rows(table, "stratified_group", group="patient")
    assert imbalance(stratified, targets, 5) < imbalance(cut_rows(table, "group", group="patient"), targets, 5)


def test_stratified_group_balances_no_worse_than_scikit_learn():
    ours, theirs = [], []
    for seed in range(10):
        patient, targets = group_problem(seed)
        table = make_table(rows=800, targets=targets, patient=patient)
        ours.append(imbalance(cut_rows(table, "stratified_group", seed=seed, group="patient"), targets, 5))
        fold = np.empty(800, dtype=int)
        parts = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(targets, targets, patient)
        for number, (_, valid) in enumerate(parts):
            fold[valid] = number
        theirs.append(imbalance(fold, targets, 5))
    assert np.mean(ours) <= 1.1 * np.mean(theirs)


def test_stratified_group_balances_tags_too():
    values = tags(600, (0.4, 0.1, 0.05), seed=3)
    table = make_table(rows=600, task="multi_label", targets=values, names=("a", "b", "c"), scene=np.arange(600) // 3)
    fold = cut_rows(table, "stratified_group", group="scene")
    assert max(spread(fold, column) for column in values.T) <= 3


def test_stratified_group_stratifies_by_columns():
    table = make_table(rows=120, site=np.arange(120) // 10 % 3, drive=np.arange(120) // 5)
    folds = make_folds(table, "stratified_group", Cut(4, 0, ("site",), "drive"), {})
    assert spread(folds.fold, folds.strata) == 0


def test_uneven_groups_are_a_warning_in_the_manifest():
    folds = make_folds(make_table(rows=10, patient=list("aaaaaaaabc")), "group", Cut(3, 0, (), "patient"), {})
    assert folds.manifest["warnings"] == ["groups make uneven folds: 1 to 8 rows"]


@pytest.mark.parametrize("strategy", ["group", "stratified_group"])
def test_a_group_strategy_needs_a_group_column(strategy):
    with pytest.raises(FoldError, match="no group column"):
        cut_rows(make_table(rows=10, targets=classes(10)), strategy)


def test_more_folds_than_groups_is_an_error():
    with pytest.raises(FoldError, match="5 folds of 2 groups"):
        cut_rows(make_table(rows=10, patient=list("aaaaabbbbb")), "group", group="patient")


def test_rows_without_a_group_are_an_error():
    with pytest.raises(FoldError, match="2 rows have no value in the group column 'patient': 'r00000', 'r00003'"):
        cut_rows(make_table(rows=4, patient=["", "a", "b", ""]), "group", n=2, group="patient")


# ---------------------------------------------------------------------------------- multilabel


def test_multilabel_balances_every_tag_almost_exactly():
    values = tags(2000, np.geomspace(0.004, 0.9, 17))
    table = make_table(rows=2000, task="multi_label", targets=values, names=[f"t{number}" for number in range(17)])
    fold = cut_rows(table, "multilabel")
    random = cut_rows(table, "kfold")
    assert max(spread(fold, column) for column in values.T) <= 2
    assert max(spread(random, column) for column in values.T) >= 15
    assert np.ptp(np.bincount(fold)) <= 2


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 60), n=st.integers(2, 6), share=st.floats(0, 1), seed=st.integers(0, 500))
def test_multilabel_spreads_its_rarest_tag_to_within_one(rows, n, share, seed):
    n = min(n, rows)
    values = tags(rows, (share, share / 2, 0.9), seed=seed)
    table = make_table(rows=rows, task="multi_label", targets=values, names=("a", "b", "c"))
    fold = cut_rows(table, "multilabel", n=n, seed=seed)
    assert set(fold) == set(range(n))
    present = values.sum(axis=0) > 0
    if present.any():
        rarest = np.flatnonzero(present)[np.argmin(values.sum(axis=0)[present])]
        counts = np.bincount(fold[values[:, rarest] > 0], minlength=n)
        assert counts.max() - counts.min() <= 1


def test_multilabel_spreads_rows_without_tags_evenly():
    table = make_table(rows=50, task="multi_label", targets=np.zeros((50, 2), np.float32), names=("a", "b"))
    assert np.bincount(cut_rows(table, "multilabel")).tolist() == [10] * 5


def test_multilabel_balances_several_columns_each_for_itself():
    site, hour = np.arange(240) % 7, np.random.RandomState(0).randint(0, 5, 240)
    folds = make_folds(make_table(rows=240, site=site, hour=hour), "multilabel", Cut(4, 0, ("site", "hour")), {})
    assert spread(folds.fold, site) <= 2
    assert spread(folds.fold, hour) <= 2
    assert folds.strata is None


def test_rare_tags_are_a_warning_in_the_manifest():
    values = np.zeros((20, 2), np.float32)
    values[:10, 0], values[:3, 1] = 1, 1
    table = make_table(rows=20, task="multi_label", targets=values, names=("haze", "road"))
    assert make_folds(table, "multilabel", Cut(5, 0), {}).manifest["warnings"] == [
        "1 tags have fewer than 5 rows: 'road'"
    ]


# ---------------------------------------------------------------------------------- predefined


def test_predefined_takes_a_column_with_train_only_rows():
    table = make_table(rows=5, part=["0", "1", "-1", "1", "0"])
    folds = make_folds(table, "predefined", Cut(2, 0), {"column": "part"})
    assert folds.fold.tolist() == [0, 1, -1, 1, 0]


def test_predefined_takes_a_file_relative_to_the_data_folder(tmp_path):
    (tmp_path / "team.csv").write_text("id,fold\nb,0\na,1\n")
    table = make_table(["a", "b"], root=tmp_path)
    assert cut_rows(table, "predefined", n=2, file="team.csv").tolist() == [1, 0]


def test_predefined_folds_must_keep_groups_whole():
    table = make_table(rows=4, part=["0", "1", "0", "1"], patient=["a", "a", "b", "c"])
    with pytest.raises(FoldError, match="1 groups are in more than one fold: 'a'"):
        cut_rows(table, "predefined", n=2, group="patient", column="part")


def test_train_only_rows_of_a_validated_group_are_a_warning():
    table = make_table(rows=4, part=["0", "1", "-1", "-1"], patient=["a", "b", "a", "c"])
    folds = make_folds(table, "predefined", Cut(2, 0, (), "patient"), {"column": "part"})
    assert folds.manifest["warnings"] == ["1 groups have train-only rows and rows in a fold: 'a'"]


@pytest.mark.parametrize("options", [{}, {"column": "part", "file": "x.csv"}])
def test_predefined_wants_a_column_or_a_file(options):
    with pytest.raises(FoldError, match="predefined"):
        cut_rows(make_table(rows=2, part=["0", "1"]), "predefined", n=2, **options)


# ------------------------------------------------------------------------------ every strategy


def everything(rows, seed=0):
    """A table every strategy can cut, and what each of them needs."""
    random = np.random.RandomState(seed)
    table = make_table(
        rows=rows,
        targets=classes(rows, 0.4, seed),
        patient=np.concatenate([np.arange(6), random.randint(0, 20, rows - 6)]),
        site=random.randint(0, 3, rows),
        part=np.concatenate([np.arange(6), random.randint(-1, 6, rows - 6)]),
    )
    return table


def needs(strategy):
    part = registry.get("fold strategy", strategy)
    by = ("site",) if "by" in part.meta["uses"] else ()
    group = "patient" if strategy in ("group", "stratified_group") else None
    return by, group, {"column": "part"} if strategy == "predefined" else {}


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(6, 120), n=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("strategy", registry.names("fold strategy"))
def test_every_strategy_puts_every_row_into_one_fold_and_leaves_none_empty(strategy, rows, n, seed):
    by, group, options = needs(strategy)
    folds = make_folds(everything(rows), strategy, Cut(n, seed, by, group), options)
    assert folds.n == (6 if strategy == "predefined" else n)
    validated = np.sum([folds.valid(number) for number in range(folds.n)], axis=0)
    assert np.array_equal(validated, folds.fold >= 0)
    for number in range(folds.n):
        assert folds.valid(number).any()
        assert folds.train(number).any()
        assert not (folds.valid(number) & folds.train(number)).any()


@pytest.mark.parametrize("strategy", registry.names("fold strategy"))
def test_every_strategy_gives_the_same_folds_for_the_same_seed(strategy):
    by, group, options = needs(strategy)
    first, second = (make_folds(everything(90), strategy, Cut(4, 3, by, group), options) for _ in range(2))
    assert first.hash == second.hash
    assert first.manifest == second.manifest


@pytest.mark.parametrize("strategy", registry.names("fold strategy"))
def test_every_strategy_gives_the_same_folds_whatever_the_order_of_the_rows(strategy):
    by, group, options = needs(strategy)
    table = everything(80)
    order = np.random.RandomState(5).permutation(80)
    columns = {name: table.column(name)[order] for name in ("patient", "site", "part")}
    mixed = make_table(table.ids[order], targets=table.targets[order], **columns)
    cut = Cut(4, 3, by, group)
    assert make_folds(mixed, strategy, cut, options).hash == make_folds(table, strategy, cut, options).hash


@pytest.mark.parametrize("strategy", registry.names("fold strategy"))
def test_every_strategy_depends_on_ids_only_through_their_order(strategy):
    by, group, options = needs(strategy)
    table = everything(80)
    renamed = dataclasses.replace(table, ids=np.array([f"x{row:04d}" for row in range(80)]))
    cut = Cut(4, 3, by, group)
    assert make_folds(renamed, strategy, cut, options).fold.tolist() == (
        make_folds(table, strategy, cut, options).fold.tolist()
    )


@pytest.mark.parametrize("strategy", sorted(set(registry.names("fold strategy")) - {"predefined"}))
def test_every_strategy_refuses_more_folds_than_rows(strategy):
    by, group, options = needs(strategy)
    with pytest.raises(FoldError, match="1000 folds of"):
        make_folds(everything(20), strategy, Cut(1000, 0, by, group), options)


@pytest.mark.parametrize("strategy", sorted(set(registry.names("fold strategy")) - {"predefined"}))
def test_every_strategy_refuses_a_single_fold(strategy):
    by, group, options = needs(strategy)
    with pytest.raises(FoldError, match="nothing is left to train on"):
        make_folds(everything(20), strategy, Cut(1, 0, by, group), options)


@pytest.mark.parametrize("strategy", registry.names("fold strategy"))
def test_every_strategy_refuses_an_empty_table(strategy):
    by, group, options = needs(strategy)
    empty = everything(20).select(np.zeros(20, dtype=bool))
    with pytest.raises(FoldError):
        make_folds(empty, strategy, Cut(2, 0, by, group), options)


def test_a_strategy_that_ignores_columns_refuses_them():
    with pytest.raises(FoldError, match="'kfold' does not look at `by: site`") as error:
        cut_rows(everything(20), "kfold", by=("site",))
    assert "stratified" in error.value.expected


def test_a_strategy_that_ignores_groups_refuses_them():
    with pytest.raises(FoldError, match="'stratified' does not look at `group: patient`") as error:
        cut_rows(everything(20), "stratified", group="patient")
    assert "stratified_group" in error.value.expected


def test_an_unknown_column_is_an_error_that_lists_the_known_ones():
    with pytest.raises(DataError, match="no column 'sight'") as error:
        cut_rows(everything(20), "stratified", by=("sight",))
    assert "site" in error.value.expected


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(FoldError, match="no such parameter"):
        cut_rows(everything(20), "kfold", shuffle=False)


def test_a_single_quantile_bin_is_an_error():
    with pytest.raises(FoldError, match="'1' quantile bins"):
        cut_rows(
            make_table(rows=9, task="regression", targets=np.ones((9, 1), np.float32), names=("y",)),
            "stratified",
            bins=1,
        )
