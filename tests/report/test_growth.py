from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from looks import classes, picture, table

from kbench.inference.predictions import Predictions
from kbench.metrics import make_metric
from kbench.report.growth import (
    Judge,
    contributions,
    draw_growth,
    growing,
    member_names,
    snapshot_scores,
    stacked,
)

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


def test_every_snapshot_and_the_mean_have_a_score_per_fold() -> None:
    rows = snapshot_scores(judge(), members(("one", GOOD), ("two", EVEN)))
    first = np.arange(120) % 2 == 0
    metric = make_metric("log_loss")
    assert [row["fold"] for row in rows] == [0, 1]
    assert rows[0]["two"] == pytest.approx(np.log(5))
    assert rows[0]["mean"] == pytest.approx(metric(TARGETS[first], (GOOD + EVEN)[first] / 2, TABLE.select(first)))


def test_a_fold_without_a_member_has_no_score_of_it() -> None:
    made = members(("one", GOOD), ("two", EVEN))
    del made[1]["two"]
    rows = snapshot_scores(judge(), made)
    assert list(rows[1]) == ["fold", "rows", "one", "two", "mean"]
    assert rows[1]["two"] is None
    assert member_names(made) == ["one"]


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


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_what_a_member_adds_is_positive_when_it_helps_whatever_the_direction(metric: str) -> None:
    good, even = contributions(judge(metric), members(("good", GOOD), ("even", EVEN)))
    assert good["adds"] > 0
    assert good["low"] <= good["adds"] <= good["high"]
    assert good["without"] == pytest.approx(score(EVEN, metric), rel=1e-5)
    assert even["adds"] == pytest.approx(0 if metric == "accuracy" else even["adds"])
    assert even["alone"] == good["without"]


def test_a_copy_adds_nothing() -> None:
    for row in contributions(judge(), members(("one", GOOD), ("two", GOOD))):
        assert (row["adds"], row["low"], row["high"]) == pytest.approx((0, 0, 0), abs=1e-6)


def test_a_single_member_has_nothing_to_be_left_out_of() -> None:
    assert contributions(judge(), members(("one", GOOD))) == []
    assert len(growing(judge(), members(("one", GOOD)))) == 1


def test_intervals_draw_groups_where_there_are_some() -> None:
    groups = np.array([f"g{row // 30}" for row in range(120)])
    alone, grouped = (growing(judge(groups=one), members(("one", GOOD)))[0] for one in (None, groups))
    assert alone["score"] == grouped["score"]
    assert alone["low"] != grouped["low"]


def test_growth_is_drawn(tmp_path: Path) -> None:
    rows = growing(judge(), members(("one", GOOD), ("two", EVEN)))
    picture(draw_growth(rows, make_metric("log_loss"), tmp_path / "g.png"))
