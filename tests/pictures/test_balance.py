from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from looks import classes, labels, picture, table

from kbench.pictures import balance


def test_classes_are_counted_in_their_order_empty_ones_too() -> None:
    rows = balance.balance_table(table(np.array([1, 1, 0, 1]), names=("a", "b", "c")))
    assert [(row["target"], row["rows"], row["share"]) for row in rows] == [("a", 1, 0.25), ("b", 3, 0.75), ("c", 0, 0)]


def test_shares_of_labels_are_of_their_known_rows() -> None:
    targets = np.array([[1, np.nan], [0, 1], [1, 1]], np.float32)
    rows = balance.balance_table(table(targets, task="multi_label"))
    assert [(row["rows"], row["share"]) for row in rows] == [(2, pytest.approx(2 / 3)), (2, 1.0)]


def test_numbers_are_described_without_the_unknown_ones() -> None:
    targets = np.array([[1.0], [np.nan], [3.0]], np.float32)
    (row,) = balance.balance_table(table(targets, task="regression", names=("x",)))
    assert (row["rows"], row["mean"], row["min"], row["median"], row["max"]) == (2, 2, 1, 2, 3)


def test_a_table_without_targets_has_no_balance() -> None:
    known = table(np.array([0, 1]))
    assert balance.balance_table(type(known)(known.ids, known.root, known.images, "segmentation", ("a",))) == []


def test_labels_that_come_together_are_counted() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [np.nan, 1, 1]], np.float32)
    np.testing.assert_array_equal(balance.cooccurrence(targets), [[2, 1, 0], [1, 2, 1], [0, 1, 1]])


def test_missing_targets_and_empty_cells_are_counted_per_column() -> None:
    targets = np.array([[1.0, np.nan], [2, np.nan], [3, 4]], np.float32)
    known = table(targets, task="regression", names=("x", "y"), site=["a", " ", "NaN"], whole=["a", "b", "c"])
    found = balance.missing_table(known)
    assert [(row["column"], row["missing"]) for row in found] == [("y", 2), ("site", 2)]


@pytest.mark.parametrize("k", [2, 130])
def test_classes_are_drawn_however_many(tmp_path: Path, k: int) -> None:
    targets, _ = classes(300, k)
    image = picture(balance.draw_balance(table(targets, names=tuple(f"c{j}" for j in range(k))), tmp_path / "b.png"))
    assert max(image.shape) < 4000


@pytest.mark.slow
def test_a_thousand_classes_are_drawn_as_a_long_tail(tmp_path: Path) -> None:
    targets = np.arange(1000).repeat(2)
    image = picture(balance.draw_balance(table(targets, names=tuple(map(str, range(1000)))), tmp_path / "b.png"))
    assert max(image.shape) < 4000


def test_labels_and_numbers_are_drawn(tmp_path: Path) -> None:
    targets, _ = labels()
    names = ("a", "b", "c", "d")
    picture(balance.draw_balance(table(targets, task="multi_label", names=names), tmp_path / "l.png"))
    picture(balance.draw_balance(table(targets, task="regression", names=names), tmp_path / "r.png"))
    picture(balance.draw_cooccurrence(balance.cooccurrence(targets), names, tmp_path / "c.png"))


def test_the_commonest_sizes_of_each_split_come_first() -> None:
    sizes = {"train": Counter({(8, 8, 1): 5, (9, 8, 1): 7}), "test": Counter({(8, 8, 3): 2})}
    rows = balance.size_table(sizes, limit=1)
    assert [(row["split"], row["height"], row["channels"], row["images"]) for row in rows] == [
        ("train", 9, 1, 7),
        ("test", 8, 3, 2),
    ]


@pytest.mark.parametrize("sizes", [{(8, 8, 1): 5}, {(100, 80, 3): 5, (300, 200, 4): 2}])
def test_sizes_are_drawn_one_or_many(tmp_path: Path, sizes: dict) -> None:
    picture(balance.draw_sizes({"train": sizes, "test": {}}, tmp_path / "s.png"))
