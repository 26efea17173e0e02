"""Folds: which rows validate which model.

`make_folds` cuts a table with a registered strategy (`fold_strategies.py`: to add one, write it there), and
`fold_files.py` writes, reads and adopts fold files. Folds count from 0; -1 marks rows that every fold trains on
and none validates, such as external or pseudo-labelled ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kbench import registry
from kbench.data.fold_checks import (
    check_avoided,
    check_folds,
    check_groups,
    check_ids,
    group_warnings,
    id_difference,
    rare_warnings,
)
from kbench.data.fold_labels import BINS, groups_of, strata_of
from kbench.data.tables import Table
from kbench.errors import FoldError, raise_all
from kbench.files import digest


@dataclass(frozen=True)
class Cut:
    """What every strategy is asked for.

    Attributes:
        n: number of folds.
        seed: 0 to 2^32 - 1.
        by: columns whose combinations are balanced; the target when empty.
        group: column whose values never fall into two folds, or None.
    """

    n: int
    seed: int
    by: tuple[str, ...] = ()
    group: str | None = None

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
    made = registry.build("fold strategy", strategy, options, table, cut)
    fold, avoid = (np.asarray(made.fold), made.avoid) if isinstance(made, Placed) else (np.asarray(made), None)
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
    warnings = [] if n == cut.n else [f"folds.n is {cut.n}, but the strategy's options make {n} folds"]
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
