"""What must be true of folds, and what is odd about them; on plain arrays.

To add a check, write a function here and call it in `Folds` (errors) or `make_folds` (warnings, which end in the
manifest).
"""

from __future__ import annotations

import numpy as np

from kbench.errors import FoldError, first_names

_UNEVEN = 1.5  # the largest fold by the smallest, from which on it is worth a warning


def check_ids(ids: np.ndarray) -> None:
    """Raise an error unless there are ids, unique and sorted.

    Raises:
        FoldError: there are none, or they are not.
    """
    if not len(ids):
        raise FoldError("there are no rows to cut", "a table with rows", "look at the table: `kbench inspect`")
    if not bool(np.all(ids[1:] > ids[:-1])):
        raise FoldError("the ids of the folds are not unique and sorted", "each id once, sorted", "sort the rows by id")


def id_difference(have: np.ndarray, want: np.ndarray) -> str:
    """Return which of the wanted ids are missing and which others are there, or nothing when they agree."""
    missing, extra = np.setdiff1d(want, have), np.setdiff1d(have, want)
    parts = [
        f"{len(ids):,} {what}: {first_names([str(name) for name in ids])}"
        for what, ids in (("without a fold", missing), ("not in the table", extra))
        if len(ids)
    ]
    return "; ".join(parts)


def check_folds(fold: np.ndarray) -> None:
    """Hold fold numbers against what they must be: 0 to n - 1 without a gap, or -1; something to train on.

    Args:
        fold: [N] int, N above 0.

    Raises:
        FoldError: they are not.
    """
    if fold.min() < -1:
        raise FoldError(f"'{int(fold.min())}' is no fold", "0 and up, or -1 for train-only rows", "correct the folds")
    values, counts = np.unique(fold[fold >= 0], return_counts=True)
    gaps = np.flatnonzero(values != np.arange(len(values)))
    if not len(values) or len(gaps):
        raise FoldError(
            f"fold {gaps[0]} is empty" if len(gaps) else "every row has fold -1",
            "folds counted from 0 without a gap, each with a row",
            "ask for fewer folds (`folds.n`), or correct the fold file or column",
        )
    if counts.max() == len(fold):
        raise FoldError(
            "fold 0 holds every row, so nothing is left to train on",
            "two or more folds, or one and train-only rows (-1)",
            "set `folds.n` to 2 or more",
        )


def check_avoided(fold: np.ndarray, avoid: np.ndarray) -> None:
    """Hold what folds avoid against what they must be: one column per fold, something left to train on.

    Args:
        fold: [N] int.
        avoid: [N, n] bool.

    Raises:
        FoldError: they are not.
    """
    n = int(fold.max()) + 1
    if avoid.shape != (len(fold), n) or avoid.dtype != bool:
        raise FoldError(
            f"what folds avoid has the shape {avoid.shape}", f"yes or no for {len(fold):,} rows and {n} folds",
            "`kbench folds --force` cuts the folds anew",
        )  # fmt: skip
    left = (~avoid & (fold[:, None] != np.arange(n))).sum(axis=0)
    if not left.all():
        raise FoldError(
            f"fold {int(left.argmin())} avoids every row it could train on", "rows to train on",
            "set a smaller `folds.options.gap`, or fewer folds",
        )  # fmt: skip


def check_groups(groups: np.ndarray, fold: np.ndarray) -> None:
    """Raise an error when a group validates two folds; train-only rows do not count.

    Args:
        groups: [N] text.
        fold: [N] int.

    Raises:
        FoldError: it names the groups.
    """
    used = fold >= 0
    names, codes = np.unique(groups[used], return_inverse=True)
    folds_of = np.unique(np.stack([codes, fold[used]]), axis=1)[0]
    split = names[np.bincount(folds_of, minlength=len(names)) > 1]
    if len(split):
        raise FoldError(
            f"{len(split):,} groups are in more than one fold: {first_names([str(name) for name in split])}",
            "all rows of a group in one fold",
            "use `strategy: group` or `stratified_group`, or correct the fold file or column",
        )


def rare_warnings(what: str, names: np.ndarray, counts: np.ndarray, n: int) -> list[str]:
    """Return a warning that names the strata or tags with fewer rows than there are folds, if there are any."""
    rare = [str(name) for name in names[counts < n]]
    return [f"{len(rare):,} {what} have fewer than {n} rows: {first_names(rare)}"] if rare else []


def group_warnings(groups: np.ndarray | None, fold: np.ndarray) -> list[str]:
    """Return what is odd about groups: folds of very different sizes, train-only rows of validated groups."""
    if groups is None:
        return []
    warnings = []
    counts = np.unique(fold[fold >= 0], return_counts=True)[1]
    if counts.max(initial=1) > _UNEVEN * counts.min(initial=len(fold)):
        warnings.append(f"groups make uneven folds: {counts.min():,} to {counts.max():,} rows")
    both = np.intersect1d(groups[fold < 0], groups[fold >= 0])
    if len(both):
        names = first_names([str(name) for name in both])
        warnings.append(f"{len(both):,} groups have train-only rows and rows in a fold: {names}")
    return warnings
