"""Ways to cut rows into folds; each depends on nothing but the sorted ids, the columns and the seed.

A strategy is a registered function `(table, cut, *, own parameters) -> [N] int`: the fold of each row in the
order of `table.ids`, counted from 0, or -1 for rows that only ever train. To add one, write a function here with
`@register("fold strategy", uses=(...))`, where `uses` says which of `by` and `group` it honours (both, when left
out), and `strata=False` that it does not balance the combinations of the columns. Random numbers come from
numpy's `RandomState`, whose stream is frozen: the folds are the same with every numpy version and machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kbench.data.fold_balance import iterative, place_groups
from kbench.data.fold_files import numbers_of_texts, read_assignment
from kbench.data.fold_labels import BINS, groups_of, labels_of, strata_of
from kbench.data.folds import Cut
from kbench.data.tables import Table
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
        raise _too_few(folds, rows, "rows")
    order = np.random.RandomState(cut.seed).permutation(rows)
    return _placed(order, np.minimum(np.arange(rows) // size, folds - 1))


@register("fold strategy", uses=())
def kfold(table: Table, cut: Cut) -> np.ndarray:
    """Cut shuffled rows into slices whose sizes differ by at most one.

    The folds are those of scikit-learn's `KFold(n, shuffle=True, random_state=seed)` on the sorted ids.

    Returns:
        [N] int folds.

    Raises:
        FoldError: more folds than rows.

    Source: scikit-learn `KFold`, row B-13.
    """
    _check_count(cut, len(table), "rows")
    order = np.arange(len(table))
    np.random.RandomState(cut.seed).shuffle(order)
    sizes = np.full(cut.n, len(table) // cut.n)
    sizes[: len(table) % cut.n] += 1
    return _placed(order, np.repeat(np.arange(cut.n), sizes))


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


def _check_count(cut: Cut, count: int, what: str) -> None:
    if cut.n > count:
        raise _too_few(cut.n, count, what)


def _too_few(folds: int, count: int, what: str) -> FoldError:
    return FoldError(
        f"{folds} folds of {count:,} {what}",
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
