"""Folds: which rows validate which model, and what must be true of them.

`make_folds` cuts a table with a registered strategy (to add one, see `strategies.py`); `files.py` writes, reads and
adopts fold files. Folds count from 0; -1 marks rows that every fold trains on and none validates, such as external or
pseudo-labelled ones. To add a check, write a function here and call it in `Folds` (errors) or `make_folds` (warnings,
which end in the manifest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kbench import registry
from kbench.data.folds.strata import BINS, groups_of, strata_of
from kbench.data.table.table import Table
from kbench.errors import FoldError, first_names, raise_all
from kbench.files import digest

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


@dataclass(frozen=True)
class Cut:
    """What every strategy is asked for.

    Attributes:
        n: number of folds.
        seed: 0 to 2^32 - 1.
        by: columns whose combinations are balanced; the target when empty.
        group: column whose values never fall into two folds, or None.
        by_default: whether `n` is nobody's word: the YAML does not say it.
    """

    n: int
    seed: int
    by: tuple[str, ...] = ()
    group: str | None = None
    by_default: bool = False

    @property
    def default(self) -> str:
        """What messages say after `n`: that it is the default, or nothing."""
        return " (the default)" if self.by_default else ""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise FoldError(f"'{self.n}' folds", "2 or more", "set `folds.n`, such as `n: 5`")
        if not 0 <= self.seed < 2**32:
            raise FoldError(f"the seed '{self.seed}'", "a number from 0 to 4294967295", "set `folds.seed`")


class Placed(NamedTuple):
    """What a strategy may return instead of folds alone.

    Attributes:
        fold: [N] int.
        avoid: [N, n] bool, as in `Folds`.
    """

    fold: np.ndarray
    avoid: np.ndarray


@dataclass(frozen=True)
class Folds:
    """Rows and the fold each one validates.

    Attributes:
        ids: [N] text, unique and sorted.
        fold: [N] int64, 0 to n - 1, or -1 for rows that only train; no fold is empty, and none trains on nothing.
        strata: [N] text, what was balanced, or None.
        groups: [N] text, or None; no group validates two folds.
        manifest: how they were cut: strategy, n (as asked for), seed, by, group, options, rows, counts per fold,
            table fingerprint, warnings.
        avoid: [N, n] bool, rows a fold must not train on although it does not validate them, such as neighbours of
            its frames; None: there are none.
    """

    ids: np.ndarray
    fold: np.ndarray
    strata: np.ndarray | None
    groups: np.ndarray | None
    manifest: dict[str, Any]
    avoid: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, column in (("fold", self.fold), ("strata", self.strata), ("groups", self.groups)):
            if column is not None and len(column) != len(self.ids):
                raise AssertionError(f"{name} has {len(column)} rows for {len(self.ids)} ids")
        check_ids(self.ids)
        check_folds(self.fold)
        if self.avoid is not None:
            check_avoided(self.fold, self.avoid)
        if self.groups is not None:
            check_groups(self.groups, self.fold)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits that identify ids, folds and what they avoid, and nothing else."""
        avoided = [] if self.avoid is None else [self.avoid.astype(int).tolist()]
        return digest([self.ids.tolist(), self.fold.tolist(), *avoided])

    @cached_property
    def n(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def train(self, fold: int) -> np.ndarray:
        """Return [N] bool: the rows a fold trains on, train-only rows included, those it must avoid left out.

        Raises:
            FoldError: there is no such fold.
        """
        others = ~self.valid(fold)
        return np.asarray(others if self.avoid is None else others & ~self.avoid[:, fold])

    def valid(self, fold: int) -> np.ndarray:
        """Return [N] bool: the rows a fold validates.

        Raises:
            FoldError: there is no such fold.
        """
        if not 0 <= fold < self.n:
            raise FoldError(
                f"there is no fold '{fold}'", f"a fold from 0 to {self.n - 1}", "`kbench folds` shows the folds"
            )
        return np.asarray(self.fold == fold)

    def check(self, table: Table) -> None:
        """Hold the ids against a table's.

        Raises:
            FoldError: ids are missing or too many; the message counts and names them.
        """
        if difference := id_difference(self.ids, table.ids):
            raise FoldError(
                f"the folds and the table have different ids: {difference}",
                f"a fold for each of the table's {len(table):,} ids and no other",
                "`kbench folds --force` cuts the folds anew; models trained on the old ones must be trained again",
            )


def make_folds(table: Table, strategy: str, cut: Cut, options: Mapping[str, Any]) -> Folds:
    """Cut a table into folds.

    Args:
        table: the rows.
        strategy: name of a registered fold strategy.
        cut: number of folds, seed, columns.
        options: further parameters of the strategy.

    Returns:
        The folds; what is odd about them is listed under `warnings` in the manifest.

    Raises:
        ConfigError: there is no such strategy.
        DataError: there is no such column.
        FoldError: the options or the columns do not fit the strategy, or it cannot cut these rows.
    """
    facts = registry.get("fold strategy", strategy).meta
    uses = facts.get("uses", ("by", "group"))
    problems = registry.bind("fold strategy", strategy, options, where="folds.options")
    raise_all(
        problems, error=FoldError, subject=f"the fold strategy '{strategy}'", expected="its own parameters",
        todo="correct `folds.options`; see `kbench list fold-strategy`",
    )  # fmt: skip
    _check_used(strategy, cut, uses)
    placed = registry.build("fold strategy", strategy, options, table, cut)
    fold, avoid = (placed.fold, placed.avoid) if isinstance(placed, Placed) else (placed, None)
    fold = np.asarray(fold)
    if fold.shape != (len(table),) or not np.issubdtype(fold.dtype, np.integer):
        raise FoldError(
            f"the fold strategy '{strategy}' returned {fold.dtype} of shape {fold.shape}",
            f"one whole number for each of {len(table):,} rows",
            "correct the plug-in that registers it",
        )
    n = int(fold.max(initial=-1)) + 1
    combined = "by" in uses and facts.get("strata", True)
    strata = strata_of(table, cut.by, bins=options.get("bins", BINS)) if combined else None
    groups = groups_of(table, cut.group) if cut.group is not None else None
    warnings = [] if n == cut.n else [f"folds.n is {cut.n}{cut.default}, but the strategy's options make {n} folds"]
    if strata is not None:
        names, sizes = np.unique(strata, return_counts=True)
        warnings += rare_warnings("strata", names, sizes, n)
    elif "by" in uses and table.task == "multi_label" and table.targets is not None:
        warnings += rare_warnings("tags", np.array(table.target_names), np.nan_to_num(table.targets).sum(axis=0), n)
    warnings += group_warnings(groups, fold)
    manifest = {
        "strategy": strategy, "n": cut.n, "seed": cut.seed, "by": list(cut.by), "group": cut.group,
        "options": dict(options),
    }  # fmt: skip
    manifest = complete(manifest, fold, table=table, warnings=warnings)
    return Folds(table.ids, fold.astype(np.int64), strata, groups, manifest, avoid)


def complete(manifest: dict[str, Any], fold: np.ndarray, *, table: Table, warnings: list[str]) -> dict[str, Any]:
    """Return a manifest with rows, counts per fold, table fingerprint and warnings."""
    values, counts = np.unique(fold, return_counts=True)
    return {
        **manifest,
        "rows": len(fold),
        "counts": {str(value): int(count) for value, count in zip(values, counts, strict=True)},
        "table": table.fingerprint(),
        "warnings": warnings,
    }


def describe(folds: Folds, table: Table) -> list[dict[str, Any]]:
    """Return one record per fold for showing: how many rows, and of what.

    Args:
        folds: the folds.
        table: their table.

    Returns:
        Records with `fold`, `rows` and, where known, `avoided` (rows it leaves out of training), `groups` (their
        number), `strata` (rows of each) and `targets` (rows of each class or tag, or the mean of each regression
        target). The first one is fold -1 when there are train-only rows.

    Raises:
        FoldError: folds and table have different ids.
    """
    folds.check(table)
    records = []
    for number in np.unique(folds.fold):
        rows = folds.fold == number
        record: dict[str, Any] = {"fold": int(number), "rows": int(rows.sum())}
        if folds.avoid is not None and number >= 0:
            record["avoided"] = int(folds.avoid[:, number].sum())
        if folds.groups is not None:
            record["groups"] = len(np.unique(folds.groups[rows]))
        if folds.strata is not None:
            names = np.unique(folds.strata)
            counts = np.bincount(np.searchsorted(names, folds.strata[rows]), minlength=len(names))
            record["strata"] = dict(zip(names.tolist(), counts.tolist(), strict=True))
        if table.targets is not None:
            record["targets"] = _of_targets(table, table.targets[rows])
        records.append(record)
    return records


def _of_targets(table: Table, values: np.ndarray) -> dict[str, int | float | None]:
    if table.task == "single_label":
        counts = np.bincount(values, minlength=len(table.target_names))
        return dict(zip(table.target_names, counts.tolist(), strict=True))
    values = values.reshape(len(values), -1)
    known = np.isfinite(values)
    totals = np.where(known, values, 0).sum(axis=0, dtype=np.float64).tolist()
    if table.task == "multi_label":
        return {name: int(total) for name, total in zip(table.target_names, totals, strict=True)}
    means = [total / count if count else None for total, count in zip(totals, known.sum(axis=0).tolist(), strict=True)]
    return dict(zip(table.target_names, means, strict=True))


def _check_used(strategy: str, cut: Cut, uses: tuple[str, ...]) -> None:
    for name, value in (("by", cut.by), ("group", cut.group)):
        if value and name not in uses:
            able = [
                other
                for other in registry.names("fold strategy")
                if name in registry.get("fold strategy", other).meta.get("uses", ("by", "group"))
            ]
            shown = value if isinstance(value, str) else ", ".join(value)
            raise FoldError(
                f"the fold strategy '{strategy}' does not look at `{name}: {shown}`",
                f"a strategy that does: {', '.join(able)}",
                f"change `folds.strategy`, or remove `folds.{name}`",
            )
