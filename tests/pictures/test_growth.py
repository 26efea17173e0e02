from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from looks import classes, picture, table

from kbench.ensemble.average import average, concat, with_every_member
from kbench.inference.predictions import Predictions
from kbench.metrics.metric import make_metric
from kbench.pictures.curves import Judge, draw_growth, growing, stacked, view_gains

NAMES = ("a", "b", "c", "d", "e")
TARGETS, GOOD = classes(120)
TABLE = table(TARGETS, names=NAMES)
EVEN = np.full_like(GOOD, 0.2)


def members(*values: tuple[str, np.ndarray], folds: int = 2) -> dict[int, dict[str, Predictions]]:
    """Fold -> member -> its rows of the values."""
    place = np.arange(len(TARGETS)) % folds
    return {
        fold: {name: Predictions(TABLE.ids[place == fold], NAMES, one[place == fold], "single_label", {"fold": fold})
               for name, one in values}
        for fold in range(folds)
    }  # fmt: skip


def judge(name: str = "log_loss", groups: np.ndarray | None = None) -> Judge:
    return Judge(make_metric(name), TABLE, groups, "arithmetic")


def score(values: np.ndarray, name: str = "log_loss") -> float:
    return make_metric(name)(TARGETS, values, TABLE)


def test_stacked_folds_are_the_rows_of_all_in_order() -> None:
    made = stacked(members(("one", GOOD), ("two", EVEN), folds=3), ["one"], mean="arithmetic")
    np.testing.assert_array_equal(made.ids, TABLE.ids)
    np.testing.assert_array_equal(made.values, GOOD)


def test_the_ensemble_grows_from_the_last_snapshot_to_all() -> None:
    rows = growing(judge(), members(("one", GOOD), ("two", EVEN), ("three", GOOD)))
    assert [row["ensemble"] for row in rows] == [
        "best single snapshot (one)",
        "last snapshot (three)",
        "mean of the last 2",
        "mean of all",
    ]
    assert rows[-1]["score"] == pytest.approx(score((2 * GOOD + EVEN) / 3), rel=1e-5)
    assert all(row["low"] <= row["score"] <= row["high"] for row in rows)


def test_a_best_snapshot_that_is_the_last_is_said_once() -> None:
    rows = growing(judge("accuracy"), members(("one", EVEN), ("two", GOOD)))
    assert [row["ensemble"] for row in rows] == ["best single snapshot (two)", "mean of all"]


def test_a_member_some_fold_lacks_is_worth_there_what_the_others_are() -> None:
    some = members(("one", GOOD), ("two", EVEN))
    del some[1]["two"]
    whole = with_every_member(some, mean="arithmetic")
    assert [list(of_fold) for of_fold in whole.values()] == [["one", "two"]] * len(some)
    mean = concat([average(list(of_fold.values())) for of_fold in some.values()])  # what is sent
    assert growing(judge(), whole)[-1]["score"] == pytest.approx(score(mean.values), rel=1e-5)


def test_a_single_member_does_not_grow() -> None:
    assert len(growing(judge(), members(("one", GOOD)))) == 1


def test_intervals_draw_groups_where_there_are_some() -> None:
    groups = np.array([f"g{row // 30}" for row in range(120)])
    alone, grouped = (growing(judge(groups=one), members(("one", GOOD)))[0] for one in (None, groups))
    assert alone["score"] == grouped["score"]
    assert alone["low"] != grouped["low"]


def test_growth_is_drawn(tmp_path: Path) -> None:
    rows = growing(judge(), members(("one", GOOD), ("two", EVEN)))
    picture(draw_growth(rows, make_metric("log_loss"), tmp_path / "g.png"))


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_each_step_to_all_snapshots_and_views_is_held_against_the_one_before(metric: str) -> None:
    plain, viewed = members(("one", GOOD), ("two", EVEN)), members(("one", GOOD), ("two", GOOD))
    rows = view_gains(judge(metric), plain, viewed)
    assert [row["ensemble"] for row in rows] == [
        "last snapshot, plain view",
        "all snapshots, plain view",
        "all snapshots, all views",
    ]
    assert rows[0]["adds"] is None
    assert rows[1]["adds"] > 0
    assert rows[2]["score"] == pytest.approx(score(GOOD, metric), rel=1e-5)
    assert all(row["low"] <= row["adds"] <= row["high"] for row in rows[1:])
    assert len(view_gains(judge(metric), members(("one", EVEN)), members(("one", GOOD)))) == 2


def test_what_is_decided_is_scored_decided() -> None:
    def sure(values: np.ndarray) -> np.ndarray:
        return np.eye(5, dtype=np.float32)[values.argmax(axis=1)]

    made = replace(judge("accuracy"), decide=sure)
    rows = growing(made, members(("one", GOOD)))
    assert rows[0]["score"] == score(sure(GOOD), "accuracy")
