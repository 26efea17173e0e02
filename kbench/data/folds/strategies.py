"""Ways to cut rows into folds; each depends on nothing but the sorted ids, the columns and the seed.

A strategy is a registered function `(table, cut, *, own parameters) -> [N] int`: the fold of each row in the order of
`table.ids`, counted from 0, or -1 for rows that only ever train. To add one, write a function here with
`@register("fold strategy", uses=(...))`, where `uses` says which of `by` and `group` it honours (both, when left out),
and `strata=False` that it does not balance the combinations of the columns. Random numbers come from numpy's
`RandomState`, whose stream is frozen, and what is compared is whole numbers, since sums of floats could go either way
on another machine: the folds are the same everywhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kbench.data.folds.files import numbers_of_texts, read_assignment
from kbench.data.folds.folds import Cut
from kbench.data.folds.strata import BINS, groups_of, labels_of, strata_of
from kbench.data.table.table import Table
from kbench.errors import FoldError
from kbench.registry import register


@register("fold strategy", uses=())
def holdout(table: Table, cut: Cut, *, val_pct: float | None = None) -> np.ndarray:
    """Cut shuffled rows into slices of `int(val_pct * N)`, as fast.ai's `get_cv_idxs`; `cv_idx` is the fold.

    The rows left over join the last fold, so that every row is validated once. Not stratified.

    Args:
        table: the rows.
        cut: number of folds and seed.
        val_pct: share of a fold, above 0 and up to 0.5; it makes `int(1 / val_pct)` folds. `1 / cut.n` by default.

    Returns:
        [N] int folds.

    Raises:
        FoldError: the share is out of range, or a fold would be empty.

    Source: fast.ai 0.7 `get_cv_idxs`, row F-04.
    """
    rows = len(table)
    if val_pct is None:
        folds, size = cut.n, rows // cut.n
    elif 0 < val_pct <= 0.5:
        folds, size = int(1 / val_pct + 1e-9), int(val_pct * rows)
    else:
        raise FoldError(
            f"val_pct is '{val_pct}'", "a share above 0 and up to 0.5", "write `options: {val_pct: 0.2}` under `folds`"
        )
    if size < 1:
        raise _too_few(folds, rows, "rows", cut.default if val_pct is None else "")
    order = np.random.RandomState(cut.seed).permutation(rows)
    return _placed(order, np.minimum(np.arange(rows) // size, folds - 1))


@register("fold strategy", uses=())
def kfold(table: Table, cut: Cut) -> np.ndarray:
    """Cut shuffled rows into slices whose sizes differ by at most one: scikit-learn's `KFold` on the sorted ids.

    Returns:
        [N] int folds.

    Raises:
        FoldError: more folds than rows.

    Source: scikit-learn `KFold`, row B-13.
    """
    from sklearn.model_selection import KFold  # takes a second to load

    _check_count(cut, len(table), "rows")
    folds = np.zeros(len(table), dtype=np.int64)
    if cut.n > 1:  # of one, `make_folds` says what is wrong
        for fold, (_, rows) in enumerate(KFold(cut.n, shuffle=True, random_state=cut.seed).split(folds)):
            folds[rows] = fold
    return folds


@register("fold strategy", uses=("by",))
def stratified(table: Table, cut: Cut, *, bins: int = BINS) -> np.ndarray:
    """Balance the combinations of the columns in `cut.by`, by default the target.

    Shuffled rows are dealt like cards, stratum after stratum: between two folds the rows of a stratum differ by
    at most one, and so do all rows. Tags and several regression targets are balanced as in `multilabel`.

    Args:
        table: the rows.
        cut: number of folds, seed and columns.
        bins: quantile bins of a regression target.

    Returns:
        [N] int folds.

    Raises:
        DataError: there is no such column.
        FoldError: nothing to balance, or more folds than rows.

    Source: row S-02.
    """
    _check_count(cut, len(table), "rows")
    strata = strata_of(table, cut.by, bins=bins)
    if strata is None:
        return multilabel(table, cut, bins=bins)
    random = np.random.RandomState(cut.seed)
    codes = np.unique(strata, return_inverse=True)[1]
    order = random.permutation(len(table))
    order = order[np.argsort(codes[order], kind="stable")]
    return _placed(order, random.permutation(cut.n)[np.arange(len(table)) % cut.n])


@register("fold strategy", uses=("group",))
def group(table: Table, cut: Cut) -> np.ndarray:
    """Keep each group in one fold; the largest groups first, each into the smallest fold.

    The seed decides only between groups of one size.

    Returns:
        [N] int folds.

    Raises:
        DataError: there is no such column.
        FoldError: no group column, or more folds than groups.
    """
    nothing = np.array([], dtype=np.int64)
    return _whole_groups(_needed_groups(table, cut, "group"), nothing, nothing, cut)


@register("fold strategy", uses=("by", "group"))
def stratified_group(table: Table, cut: Cut, *, bins: int = BINS) -> np.ndarray:
    """Keep each group in one fold and balance strata or tags as well as that allows.

    The groups that bring the largest shares of all labels and rows first, each into the fold that has least of
    what it brings: this keeps the chi-square distance of the folds' label counts and sizes from equal shares low.

    Args:
        table: the rows.
        cut: number of folds, seed, columns to balance (the target by default) and the group column.
        bins: quantile bins of a regression target.

    Returns:
        [N] int folds.

    Raises:
        DataError: there is no such column.
        FoldError: no group column, nothing to balance, or more folds than groups.

    Source: row S-03.
    """
    groups = _needed_groups(table, cut, "stratified_group")
    strata = strata_of(table, cut.by, bins=bins)
    if strata is None:
        rows, labels, _ = labels_of(table, cut.by, bins=bins)
    else:
        rows, labels = np.arange(len(table)), np.unique(strata, return_inverse=True)[1]
    return _whole_groups(groups, rows, labels, cut)


@register("fold strategy", uses=("by",), strata=False)
def multilabel(table: Table, cut: Cut, *, bins: int = BINS) -> np.ndarray:
    """Balance every label for itself by iterative stratification.

    The rarest label first; each of its rows goes into the fold that still wants most of this label, then most
    of the row's other labels, then most rows at all, then by lot. Labels are the tags of a multi-label target, and
    the values of each column in `cut.by`.

    Args:
        table: the rows.
        cut: number of folds, seed and columns (the target by default).
        bins: quantile bins of a regression target.

    Returns:
        [N] int folds.

    Raises:
        DataError: there is no such column.
        FoldError: nothing to balance, or more folds than rows.

    Source: Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (2011), algorithm 1.
    """
    _check_count(cut, len(table), "rows")
    rows, labels, count = labels_of(table, cut.by, bins=bins)
    return iterative(rows, labels, count=count, size=len(table), n=cut.n, seed=cut.seed)


@register("fold strategy", uses=("by", "group"))
def predefined(table: Table, cut: Cut, *, column: str | None = None, file: str | None = None) -> np.ndarray:
    """Take the folds from a metadata column or from a file; the number of folds is theirs.

    Folds are numbers from 0 (or from 1, then all are lowered by one), -1 or `train` for rows that only train;
    `valid`, `val` or `validation` mean fold 0. `cut.group` is held against them, `cut.by` only shown.

    Args:
        table: the rows.
        cut: column names.
        column: a metadata column.
        file: a CSV or JSON as `adopt_folds` reads it, relative to the data folder.

    Returns:
        [N] int folds.

    Raises:
        DataError: there is no such column.
        FoldError: neither or both are given, ids differ, or a value is no fold.
    """
    if (column is None) == (file is None):
        raise FoldError(
            "the fold strategy 'predefined' got " + ("neither a column nor a file" if column is None else "both"),
            "a column or a file",
            "write `options: {column: NAME}` or `options: {file: PATH}` under `folds`",
        )
    if column is not None:
        return numbers_of_texts(table.ids, [str(value) for value in table.column(column)], f"column '{column}'")
    return read_assignment(table.root / Path(str(file)).expanduser(), table)


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


def _check_count(cut: Cut, count: int, what: str) -> None:
    if cut.n > count:
        raise _too_few(cut.n, count, what, cut.default)


def _too_few(folds: int, count: int, what: str, default: str = "") -> FoldError:
    return FoldError(
        f"{folds} folds{default} of {count:,} {what}",
        f"at least one of the {what} per fold",
        f"set `folds.n` to {count} or less" if count > 1 else "look at the table: `kbench inspect`",
    )


def _needed_groups(table: Table, cut: Cut, strategy: str) -> np.ndarray:
    if cut.group is None:
        raise FoldError(
            f"the fold strategy '{strategy}' has no group column",
            "a column whose values never fall into two folds",
            "write `group: COLUMN` under `folds`",
        )
    return groups_of(table, cut.group)


def _placed(order: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return [N] int64 folds of rows, given the folds in a shuffled order."""
    placed = np.empty(len(order), dtype=np.int64)
    placed[order] = folds
    return placed


def _whole_groups(groups: np.ndarray, rows: np.ndarray, labels: np.ndarray, cut: Cut) -> np.ndarray:
    names, codes = np.unique(groups, return_inverse=True)
    _check_count(cut, len(names), "groups")
    return place_groups(codes, rows, labels, n=cut.n, seed=cut.seed)
