from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kbench.data.table.table import Table
from kbench.ensemble import bootstrap
from kbench.ensemble.bootstrap import interval, paired
from kbench.errors import DataError
from kbench.metrics.metric import Metric, make_metric


def binary(n: int = 300, seed: int = 0) -> tuple[Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, size=n)
    p = np.clip(0.5 + (targets - 0.5) * 0.4 + rng.normal(0, 0.3, n), 0.01, 0.99)
    ids = np.array([f"{row:05}" for row in range(n)])
    table = Table(ids, Path(), ((),) * n, "single_label", ("cat", "dog"), targets)
    return table, np.column_stack([1 - p, p]).astype(np.float32)


def looped(metric: Metric) -> Metric:
    return replace(metric, per_row=None)


def test_the_interval_contains_the_score() -> None:
    table, p = binary()
    for name in ("accuracy", "log_loss", "auc", "f1_macro"):
        found = interval(make_metric(name), table.targets, p, table, draws=200)
        assert found.low < found.value < found.high
        assert found.value == make_metric(name)(table.targets, p, table)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    table, p = binary()
    metric = make_metric("log_loss")
    first = interval(metric, table.targets, p, table)
    assert interval(metric, table.targets, p, table) == first
    assert interval(metric, table.targets, p, table, seed=1) != first


def test_row_values_and_whole_rows_give_the_same_interval() -> None:
    table, p = binary(80)
    metric = make_metric("log_loss")
    fast = interval(metric, table.targets, p, table, draws=150)
    slow = interval(looped(metric), table.targets, p, table, draws=150)
    assert (fast.low, fast.high, fast.draws) == pytest.approx((slow.low, slow.high, slow.draws))


def test_both_ways_draw_the_same_groups() -> None:
    table, p = binary(80)
    groups = np.array([f"g{row % 7}" for row in range(80)])
    metric = make_metric("log_loss")
    fast = interval(metric, table.targets, p, table, groups=groups, draws=150)
    slow = interval(looped(metric), table.targets, p, table, groups=groups, draws=150)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))


def test_the_interval_is_the_normal_one_of_a_mean() -> None:
    table, p = binary(2000)
    metric = make_metric("accuracy")
    found = interval(metric, table.targets, p, table, draws=4000)
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 2000)
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_a_wider_level_gives_a_wider_interval() -> None:
    table, p = binary()
    metric = make_metric("accuracy")
    wide, narrow = (interval(metric, table.targets, p, table, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_groups_whose_images_are_alike_widen_the_interval() -> None:
    table, p = binary(60)
    ids = np.array([f"{row:05}" for row in range(600)])
    repeated = Table(ids, Path(), ((),) * 600, "single_label", ("cat", "dog"), np.repeat(table.targets, 10))
    copies, groups = np.repeat(p, 10, axis=0), np.repeat(np.arange(60), 10)
    metric = make_metric("log_loss")
    images = interval(metric, repeated.targets, copies, repeated)
    whole = interval(metric, repeated.targets, copies, repeated, groups=groups)
    once = interval(metric, table.targets, p, table)
    assert whole.high - whole.low > 2 * (images.high - images.low)
    assert (whole.low, whole.high) == pytest.approx((once.low, once.high))


def test_predictions_compared_with_themselves_differ_by_nothing() -> None:
    table, p = binary()
    found = paired(make_metric("log_loss"), table.targets, p, p, table)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_a_paired_interval_is_narrower_than_two_separate_ones() -> None:
    table, p = binary()
    other = np.clip(p + np.float32(0.01), 0, 1)
    metric = make_metric("log_loss")
    alone = interval(metric, table.targets, p, table)
    both = paired(metric, table.targets, p, other, table)
    assert both.high - both.low < (alone.high - alone.low) / 2
    assert both.value == pytest.approx(metric(table.targets, p, table) - metric(table.targets, other, table))


def test_a_paired_difference_changes_sign_with_its_arguments() -> None:
    table, p = binary(60)
    other = p[:, ::-1].copy()
    for metric in (make_metric("log_loss"), make_metric("auc")):
        forth = paired(metric, table.targets, p, other, table, draws=150)
        back = paired(metric, table.targets, other, p, table, draws=150)
        assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_rows_with_nothing_known_do_not_count() -> None:
    rng = np.random.default_rng(0)
    targets, p = rng.random((100, 1)).astype(np.float32), rng.random((100, 1)).astype(np.float32)
    targets[::2] = np.nan
    ids = np.array([f"{row:05}" for row in range(100)])
    table = Table(ids, Path(), ((),) * 100, "regression", ("y",), targets)
    found = interval(make_metric("mae"), targets, p, table)
    assert found.low < found.value < found.high


def test_draws_without_a_value_are_left_out_and_counted() -> None:
    table, p = binary(12)
    targets = np.zeros(12, dtype=np.int64)
    targets[:2] = 1
    found = interval(make_metric("auc"), targets, p, table, draws=400)
    assert 200 < found.draws < 400


def test_a_metric_with_no_value_on_most_draws_is_an_error() -> None:
    n = 40
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(n), n).astype(np.float32)
    ids = np.array([f"{row:05}" for row in range(n)])
    table = Table(ids, Path(), ((),) * n, "single_label", tuple(f"c{i:02}" for i in range(n)), np.arange(n))
    with pytest.raises(DataError, match="a value on only 0 of 100"):
        interval(make_metric("auc"), table.targets, p, table, draws=100)


def test_one_group_has_no_interval() -> None:
    table, p = binary(20)
    with pytest.raises(DataError, match="interval of 1 group"):
        interval(make_metric("accuracy"), table.targets, p, table, groups=np.zeros(20))


def test_many_rows_lower_the_number_of_draws_but_not_under_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    table, p = binary(50)
    monkeypatch.setattr(bootstrap, "_MEANS", 10_000)
    monkeypatch.setattr(bootstrap, "_VALUES", 1)
    assert interval(make_metric("accuracy"), table.targets, p, table, draws=1000).draws == 200
    assert interval(make_metric("auc"), table.targets, p, table, draws=1000).draws == 100


def test_the_size_of_a_chunk_does_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    table, p = binary(50)
    whole = interval(make_metric("accuracy"), table.targets, p, table)
    monkeypatch.setattr(bootstrap, "_CHUNK", 120)
    assert interval(make_metric("accuracy"), table.targets, p, table) == whole


def test_a_metric_sees_the_drawn_rows_of_the_table() -> None:
    table, p = binary(30)
    table = replace(table, meta=pd.DataFrame({"light": ["day", "dusk", "night"] * 10}))
    seen = []

    def share_of_days(targets: np.ndarray, predictions: np.ndarray, rows: Table) -> float:
        assert rows.meta is not None
        assert rows.task == "single_label"
        assert rows.target_names == ("cat", "dog")
        assert (rows.meta["light"].to_numpy() == rows.column("light")).all()
        assert (targets == table.targets[np.searchsorted(table.ids, rows.ids)]).all()
        seen.append(float((rows.column("light") == "day").mean()))
        return seen[-1]

    metric = Metric("share", True, (), share_of_days)
    found = interval(metric, table.targets, p, table, draws=100)
    assert found.value == pytest.approx(1 / 3)
    assert len(set(seen)) > 3


def test_an_interval_reads_as_text() -> None:
    assert str(bootstrap.Interval(0.5, 0.25, 0.75)) == "0.50000 [0.25000, 0.75000]"
