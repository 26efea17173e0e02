"""What fold strategies balance: strata, labels and groups of a table's rows.

A stratum is one value per row (a class, a combination of columns, a quantile of a regression target); labels
are any number per row (tags, or several columns balanced each for itself). To make another kind of target
balanced, add its branch to `_columns`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kbench.data.table.spellings import plain
from kbench.data.table.table import Table
from kbench.errors import FoldError, first_names

BINS = 10
"""Quantile bins of a regression target."""


def strata_of(table: Table, by: Sequence[str], *, bins: int = BINS) -> np.ndarray | None:
    """Return the stratum of each row: the combination of its values in some columns.

    Args:
        table: the rows.
        by: metadata columns, `target` or `id`; the target when empty. A regression target counts by its
            quantile bin.
        bins: number of quantile bins.

    Returns:
        [N] text, values joined by ` | `; None when rows have no single stratum: tags, several regression
        targets, or no targets at all.

    Raises:
        DataError: there is no such column.
        FoldError: `bins` is below 2.
    """
    parts = []
    for name in by or ("target",):
        columns = None if _is_tags(table, name) else _columns(table, name, bins)
        if columns is None or len(columns) != 1:
            return None
        parts.append(columns[0])
    return np.array([" | ".join(values) for values in zip(*parts, strict=True)], dtype=str)


def labels_of(table: Table, by: Sequence[str], *, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the labels of all rows as pairs, each column's values being labels of their own.

    Args:
        table: the rows.
        by: as in `strata_of`; here tags and several regression targets are allowed too.
        bins: number of quantile bins of a regression target.

    Returns:
        [P] int row numbers, [P] int labels below L, and L.

    Raises:
        DataError: there is no such column.
        FoldError: the rows have nothing to balance, or `bins` is below 2.
    """
    rows, labels, count = [], [], 0
    for name in by or ("target",):
        if _is_tags(table, name) and table.targets is not None:
            tagged, tags = np.nonzero(np.nan_to_num(table.targets) > 0.5)
            rows.append(tagged)
            labels.append(tags + count)
            count += len(table.target_names)
            continue
        columns = _columns(table, name, bins)
        if columns is None:
            raise FoldError(
                f"there is no '{name}' to balance: rows of a {table.task} table have no label of their own",
                "columns to balance, or a strategy that balances nothing",
                "write `by: [COLUMN]` under `folds`, or `strategy: kfold` (`group` with groups)",
            )
        for column in columns:
            values, codes = np.unique(column, return_inverse=True)
            rows.append(np.arange(len(table)))
            labels.append(codes + count)
            count += len(values)
    return np.concatenate(rows), np.concatenate(labels), count


def groups_of(table: Table, group: str) -> np.ndarray:
    """Return [N] text, the group of each row.

    Raises:
        DataError: there is no such column.
        FoldError: rows without a value, which would all count as one group.
    """
    groups = np.asarray(table.column(group), dtype=str)
    empty = np.array([plain(group) in ("", "nan") for group in groups.tolist()], dtype=bool)
    if empty.any():
        raise FoldError(
            f"{int(empty.sum()):,} rows have no value in the group column '{group}': "
            f"{first_names([str(name) for name in table.ids[empty]])}",
            "a group for every row",
            f"fill the column '{group}' (a row of its own group: its id), then run `kbench folds` again",
        )
    return groups


def _is_tags(table: Table, name: str) -> bool:
    return _is_target(table, name) and table.task == "multi_label"


def _is_target(table: Table, name: str) -> bool:
    return name == "target" and (table.meta is None or name not in table.meta.columns)


def _columns(table: Table, name: str, bins: int) -> list[np.ndarray] | None:
    """Return the text columns a name stands for: one, or one per regression target; None without targets."""
    if not _is_target(table, name):
        return [np.asarray(table.column(name), dtype=str)]
    if table.targets is None:
        return None
    if table.targets.ndim == 1 and table.task == "single_label":
        return [np.asarray(table.column(name), dtype=str)]
    return [_quantiles(values, bins) for values in table.targets.reshape(len(table), -1).T]


def _quantiles(values: np.ndarray, bins: int) -> np.ndarray:
    """Return [N] text: `q0`, `q1` ... by rank, equal values in one bin, `unknown` for NaN."""
    if bins < 2:
        raise FoldError(f"'{bins}' quantile bins", "2 or more", "correct `folds.options.bins`")
    known = np.sort(values[np.isfinite(values)])
    edges = np.unique(known[np.arange(1, bins) * len(known) // bins]) if len(known) else known
    codes = np.searchsorted(edges, values, side="right")
    width = len(str(bins - 1))
    names = [f"q{code:0{width}d}" for code in codes]
    return np.where(np.isfinite(values), names, "unknown")
