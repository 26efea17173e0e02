"""How groups and labels are spread evenly over folds; on plain arrays, in integers.

Comparisons of sums of floats could go either way on another machine, so there are none here: the folds are the
same everywhere. A strategy that needs another kind of balance adds its function here.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


def place_groups(group_of: np.ndarray, rows: np.ndarray, labels: np.ndarray, *, n: int, seed: int) -> np.ndarray:
    """Return folds that keep groups whole and balance labels; groups with the largest shares of labels first.

    With x the labels a fold has and g those of a group, adding g to x changes the sum of squared distances from
    equal shares by 2 x g + g^2 + what all folds have in common. Weighted by 1 / total of the label this is the
    chi-square distance, so the best fold has the smallest sum of x g / total; between equal ones the smallest. The
    size of a fold counts as one more label.

    Args:
        group_of: [N] int, each row's group, 0 to G - 1, G at least `n`.
        rows: [P] int row numbers, and
        labels: [P] int labels these rows have; none of either balances sizes alone.
        n: number of folds.
        seed: decides the order of groups with equal shares.

    Returns:
        [N] int64 folds, none empty.
    """
    sizes = np.bincount(group_of)
    count = int(labels.max()) + 1 if len(labels) else 0
    pairs = np.concatenate([group_of[rows] * (count + 1) + labels, group_of * (count + 1) + count])
    pairs, amounts = np.unique(pairs, return_counts=True)
    of_label = pairs % (count + 1)
    starts = np.searchsorted(pairs // (count + 1), np.arange(len(sizes) + 1))
    totals = np.maximum(np.bincount(of_label, weights=amounts, minlength=count + 1).astype(np.int64), 1)
    weights = (1 << (61 - (len(labels) + len(group_of)).bit_length())) // totals  # no cost exceeds 62 bits

    have = np.zeros((n, count + 1), dtype=np.int64)  # [n, L + 1]
    fold_of = np.empty(len(sizes), dtype=np.int64)
    random = np.random.RandomState(seed)
    shares = np.add.reduceat(amounts * weights[of_label], starts[:-1])
    for index in np.lexsort((random.permutation(len(sizes)), -shares)):
        part = slice(starts[index], starts[index + 1])
        where, amount = of_label[part], amounts[part]
        cost = have[:, where] @ (amount * weights[where])
        fold = np.lexsort((have[:, count], cost))[0]
        have[fold, where] += amount
        fold_of[index] = fold
    return np.asarray(fold_of[group_of])


def iterative(rows: np.ndarray, labels: np.ndarray, *, count: int, size: int, n: int, seed: int) -> np.ndarray:
    """Return folds by iterative stratification: the rarest label first, its rows where it is wanted most.

    Between folds that want it equally, the one that most wants the row's other labels (each by its total), then the
    one with most room, then a lot decide; the original asks for room at once, and balances frequent labels less
    well. What a fold still wants is counted in n-ths of a row, so in integers. An empty fold wants at least as much
    as any other, so that none stays empty when there are `n` rows.

    Args:
        rows: [P] int row numbers, and
        labels: [P] int labels these rows have, below `count`.
        count: number of labels.
        size: number of rows, N, at least `n`.
        n: number of folds.
        seed: decides the order of a label's rows and between equal folds.

    Returns:
        [N] int64 folds, none empty.

    Source: Sechidis, Tsoumakas and Vlahavas (2011), algorithm 1.
    """
    random = np.random.RandomState(seed)
    rank = random.permutation(size)
    lots = random.randint(0, 2**31 - 1, size=size, dtype=np.int64).tolist()
    by_label = np.lexsort((rank[rows], labels))
    queues = np.split(rows[by_label], np.searchsorted(labels[by_label], np.arange(1, count)))
    by_row = np.argsort(rows, kind="stable")
    label_starts = np.searchsorted(rows[by_row], np.arange(size + 1)).tolist()
    labels_by_row = labels[by_row].tolist()

    left = np.bincount(labels, minlength=count).tolist()  # rows of a label without a fold
    weights = [(1 << 40) // max(total, 1) for total in left]
    wanted = [[total] * n for total in left]  # [L][n]
    room = [size] * n
    folds = [-1] * size

    def place(row: int, wants: list[int]) -> None:
        own = labels_by_row[label_starts[row] : label_starts[row + 1]]
        best = _most(range(n), wants)
        if len(best) > 1:
            best = _most(best, [sum(wanted[label][fold] * weights[label] for label in own) for fold in range(n)])
        best = _most(best, room)
        folds[row] = fold = best[lots[row] % len(best)]
        room[fold] -= n
        for label in own:
            wanted[label][fold] -= n
            left[label] -= 1
            heapq.heappush(rarest, (left[label], label))

    rarest = [(number, label) for label, number in enumerate(left)]
    heapq.heapify(rarest)
    while rarest:
        number, label = heapq.heappop(rarest)
        if number and number == left[label]:  # else it has become rarer since it was pushed
            for row in queues[label].tolist():
                if folds[row] < 0:
                    place(row, wanted[label])
    for row in np.argsort(rank).tolist():
        if folds[row] < 0:  # a row without labels
            place(row, room)
    return np.array(folds, dtype=np.int64)


def _most(folds: Sequence[int], values: list[int]) -> list[int]:
    """Return those of some folds whose value is the largest."""
    largest = max(values[fold] for fold in folds)
    return [fold for fold in folds if values[fold] == largest]
