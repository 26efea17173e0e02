"""The fold strategy for video: each drive is cut into contiguous blocks of frames, with a guard gap between folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kbench.data.folds.folds import Cut, Placed
from kbench.data.folds.near_duplicates import frame_numbers
from kbench.data.folds.strata import strata_of
from kbench.data.table.table import Table
from kbench.errors import FoldError, check_number, first_names
from kbench.registry import register


@register("fold strategy", uses=("by",))
def blocks(table: Table, cut: Cut, *, order: str | None = None, gap: float = 0.0, rounds: int = 1) -> Placed:
    """Cut each drive into contiguous blocks of frames and deal the blocks to the folds, so that all drives are in all.

    A drive is a combination of the columns in `cut.by`, or what stands before the last number of the ids. Between two
    folds a drive's frames differ by at most `rounds`. A fold does not train on frames within the gap of its own; other
    folds still do, and every frame is validated once.

    Args:
        table: the rows.
        cut: number of folds, seed and columns of a drive.
        order: metadata column with the frame number or time; the last number of the id by default.
        gap: distance, in units of `order`, up to which frames of one drive resemble each other; 0 leaves none out.
        rounds: blocks of a drive per fold.

    Returns:
        Folds, and the rows each one must not train on.

    Raises:
        DataError: there is no such column.
        FoldError: frames without a number, or fewer rows than folds.

    Source: row S-03's note; neighbouring frames of a drive are near-duplicates.
    """
    check_number("gap", gap, "[0, inf)")
    check_number("rounds", rounds, "[1, 1000]", whole=True)
    if cut.n > len(table):
        what = f"{cut.n} folds{cut.default} of {len(table):,} rows"
        raise FoldError(what, "at least one row per fold", "set a lower `folds.n`")
    drives, times = _frames(table, cut.by, order)
    fold = np.empty(len(table), dtype=np.int64)
    avoid = np.zeros((len(table), cut.n), dtype=bool)
    random, totals = np.random.RandomState(cut.seed), np.zeros(cut.n, dtype=np.int64)
    names, sizes = np.unique(drives, return_counts=True)
    for place in np.argsort(-sizes, kind="stable"):
        rows = np.flatnonzero(drives == names[place])
        rows = rows[np.argsort(times[rows], kind="stable")]
        fold[rows] = _dealt(len(rows), totals, rounds, random)
        totals += np.bincount(fold[rows], minlength=cut.n)
        if gap > 0:
            avoid[rows] = _near(times[rows], fold[rows], gap, cut.n)
    return Placed(fold, avoid)


def moments(table: Table, by: Sequence[str], *, order: str | None = None, gap: float = 0.0) -> np.ndarray | None:
    """Return [N] text, equal for frames of a drive that resemble each other: what intervals of scores resample.

    A moment begins at a frame and ends with the last one within the gap. Without a gap every frame is its own: None.
    The block bootstrap (Kuensch 1989) with blocks as long as the resemblance.

    Args:
        table: the rows, of the training or the test set.
        by: columns of a drive, as in `blocks`.
        order: as in `blocks`.
        gap: as in `blocks`.

    Raises:
        DataError: there is no such column.
        FoldError: frames without a number.
    """
    if gap <= 0:
        return None
    drives, times = _frames(table, by, order)
    names = np.empty(len(table), dtype=object)
    drive, start = "", -np.inf
    for row in np.lexsort((times, drives)):
        if drives[row] != drive or times[row] > start + gap:
            drive, start = drives[row], times[row]
        names[row] = f"{drive} {start:g}"
    return names.astype(str)


def _frames(table: Table, by: Sequence[str], order: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return [N] the drive and [N] float64 the time of each frame."""
    drives, numbers = frame_numbers(table.ids)
    if by:
        strata = strata_of(table, list(by))
        assert strata is not None, "columns have a value per row"
        drives = strata
    if order is None and (numbers < 0).any():
        bad = [str(name) for name in table.ids[numbers < 0]]
        raise FoldError(
            f"{len(bad):,} ids have no number: {first_names(bad)}", "the number of a frame in each id",
            "name a metadata column: `options: {order: COLUMN}` under `folds`",
        )  # fmt: skip
    return drives, numbers.astype(np.float64) if order is None else _times(table, order)


def _dealt(count: int, totals: np.ndarray, rounds: int, random: np.random.RandomState) -> np.ndarray:
    """Return [count] int folds in contiguous blocks of equal sizes; the odd rows go to the smallest folds."""
    n, blocks, left = len(totals), [], count
    rank = np.lexsort([random.permutation(n), totals])
    for number in range(rounds):
        share = left // (rounds - number)
        sizes = np.full(n, share // n)
        sizes[rank[: share % n]] += 1
        rank = np.roll(rank, -(share % n))
        order = random.permutation(n)
        blocks.append(np.repeat(order, sizes[order]))
        left -= share
    return np.concatenate(blocks)


def _near(times: np.ndarray, fold: np.ndarray, gap: float, n: int) -> np.ndarray:
    """Return [N, n] bool: which sorted frames are within the gap of a frame of each other fold."""
    near = np.zeros((len(times), n), dtype=bool)
    for number in range(n):
        own = times[fold == number]
        if len(own):
            after = np.searchsorted(own, times)
            before = np.abs(times - own[np.maximum(after - 1, 0)])
            next_one = np.abs(times - own[np.minimum(after, len(own) - 1)])
            near[:, number] = (np.minimum(before, next_one) <= gap) & (fold != number)
    return near


def _times(table: Table, order: str) -> np.ndarray:
    values = []
    bad = []
    for name, text in zip(table.ids, table.column(order), strict=True):
        try:
            values.append(float(text))
        except ValueError:
            bad.append(str(name))
    if bad or not np.isfinite(values).all():
        raise FoldError(
            f"{len(bad):,} rows have no number in the column '{order}': {first_names(bad)}", "a frame number or time",
            "name another column: `options: {order: COLUMN}` under `folds`",
        )  # fmt: skip
    return np.array(values)
