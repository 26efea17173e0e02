"""Spreading groups and labels over folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.data.folds.strategies import iterative, place_groups


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.lists(st.integers(0, 4), max_size=4, unique=True), min_size=6, max_size=40),
    n=st.integers(2, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_iterative_stratification_leaves_no_fold_empty_whatever_the_labels(values, n, seed):
    pairs = [(row, label) for row, labels in enumerate(values) for label in labels]
    rows, labels = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    fold = iterative(rows, labels, count=5, size=len(values), n=n, seed=seed)
    assert set(fold) == set(range(n))


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=6, max_size=30), n=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_groups_fill_every_fold_and_sizes_differ_by_no_more_than_the_largest_group(sizes, n, seed):
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    nothing = np.array([], dtype=np.int64)
    fold = place_groups(group_of, nothing, nothing, n=n, seed=seed)
    counts = np.bincount(fold, minlength=n)
    assert counts.min() > 0
    assert counts.max() - counts.min() <= max(sizes)


def test_labels_of_a_row_pull_it_where_they_are_missing():
    group_of = np.arange(8)
    rows, labels = np.arange(8), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    fold = place_groups(group_of, rows, labels, n=4, seed=0)
    assert sorted(fold[:4]) == sorted(fold[4:]) == [0, 1, 2, 3]


def test_a_million_rows_do_not_overflow_the_integers():
    group_of = np.repeat(np.arange(4), 250_000)
    rows = np.arange(1_000_000)
    fold = place_groups(group_of, rows, np.zeros_like(rows), n=2, seed=0)
    assert np.bincount(fold).tolist() == [500_000, 500_000]


@pytest.mark.slow
def test_a_hundred_thousand_rows_with_seventeen_labels_are_balanced_to_within_one():
    values = np.random.RandomState(0).rand(100_000, 17) < np.geomspace(0.001, 0.9, 17)
    rows, labels = np.nonzero(values)
    fold = iterative(rows, labels, count=17, size=100_000, n=5, seed=0)
    counts = np.stack([values[fold == number].sum(axis=0) for number in range(5)])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(np.bincount(fold)) <= 1


def sechidis(values: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Algorithm 1 of the paper, written plainly: the room of a fold breaks ties before chance does."""
    rng = np.random.default_rng(seed)
    fold, left = np.full(len(values), -1), values.copy()
    room, wanted = np.full(n, len(values) / n), np.tile(values.sum(axis=0) / n, (n, 1))  # [n], [n, L]
    while left.any():
        counts = left.sum(axis=0)
        label = rng.choice(np.flatnonzero(counts == counts[counts > 0].min()))
        for row in np.flatnonzero(left[:, label]):
            best = np.flatnonzero(wanted[:, label] == wanted[:, label].max())
            best = best[room[best] == room[best].max()]
            chosen = rng.choice(best)
            fold[row], left[row] = chosen, False
            room[chosen] -= 1
            wanted[chosen] -= values[row]
    for row in np.flatnonzero(fold < 0):
        fold[row] = int(np.argmax(room))
        room[fold[row]] -= 1
    return fold


def label_distribution(fold: np.ndarray, values: np.ndarray, n: int) -> float:
    """The paper's LD: how far the odds of labels in the folds are from those of all rows, on average."""
    whole = values.sum(axis=0) / (len(values) - values.sum(axis=0))
    parts = [values[fold == number] for number in range(n)]
    odds = np.stack([part.sum(axis=0) / (len(part) - part.sum(axis=0)) for part in parts])
    return float(np.abs(odds - whole).mean())


def test_labels_are_balanced_no_worse_than_by_the_papers_algorithm():
    ours, theirs = [], []
    for seed in range(6):
        values = np.random.default_rng(seed).random((300, 8)) < np.geomspace(0.03, 0.6, 8)
        rows, labels = np.nonzero(values)
        fold = iterative(rows, labels, count=8, size=300, n=5, seed=seed)
        ours.append(label_distribution(fold, values, 5))
        theirs.append(label_distribution(sechidis(values, 5, seed), values, 5))
    assert np.mean(ours) <= np.mean(theirs)


@settings(max_examples=30, deadline=None)
@given(
    share=st.floats(0.05, 0.9), count=st.integers(1, 6), n=st.integers(2, 5), seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_folds_do_not_depend_on_the_order_of_the_pairs_and_cover_every_row_once(share, count, n, seed, order):
    values = np.random.default_rng(seed).random((40, count)) < share
    pairs = list(zip(*np.nonzero(values), strict=True))
    fold = iterative(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T, count=count, size=40, n=n, seed=seed)
    assert fold.shape == (40,)
    assert set(fold) == set(range(n))
    order.shuffle(pairs)
    again = iterative(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T, count=count, size=40, n=n, seed=seed)
    np.testing.assert_array_equal(fold, again)
