"""The rows of a competition: ids, images, targets, metadata.

Tables are made by the layouts of `layouts.py`. To let rows carry something new, add a field here; `select` and,
if folds depend on it, `fingerprint` must know it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.errors import DataError, first_names


@dataclass(frozen=True)
class Table:
    """Rows of a split, sorted by id.

    Attributes:
        ids: [N] text, unique and sorted.
        root: the folder image paths are relative to.
        images: N tuples of paths: one image, several whose channels are stacked, or one per band and date.
        task: a task of `config.competition.Task`.
        target_names: K names: classes, tags, or regression targets.
        targets: [N] int64 class index (`single_label`), [N, K] float32 (`multi_label`: 0 or 1; `regression`:
            target units; NaN where unknown), or None for rows without targets.
        masks: N tuples of the cells that hold a row's mask (dense tasks), or None: paths relative to the root, an
            empty one where nothing is there, or encoded texts. A mask kind reads them.
        encoded: whether the cells of `masks` are texts rather than paths.
        meta: [N] rows of text columns kept for folds, groups and reports, in the order of `ids`.
        notes: what was left out or is unknown, for the user.
        unreadable: [N] bool, rows of a test set that nothing can be predicted of, as their image is missing or cannot
            be read; None where there are none.
    """

    ids: np.ndarray
    root: Path
    images: tuple[tuple[str, ...], ...]
    task: str
    target_names: tuple[str, ...]
    targets: np.ndarray | None = None
    masks: tuple[tuple[str, ...], ...] | None = None
    encoded: bool = False
    meta: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    unreadable: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.ids) > 1 and not bool(np.all(self.ids[1:] > self.ids[:-1])):
            repeated, counts = np.unique(self.ids, return_counts=True)
            twice = [str(name) for name in repeated[counts > 1]]
            raise DataError(
                f"ids stand twice: {first_names(twice)}" if twice else "ids are not sorted",
                "unique ids in sorted order",
                "remove the repeated rows from the CSV, or name another id column (data.train.id)",
            )
        for name in ("images", "targets", "masks", "meta", "unreadable"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.ids):
                raise AssertionError(f"{name} has {len(column)} rows for {len(self.ids)} ids")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray) -> Table:
        """Return some rows, in sorted order.

        Args:
            rows: [N] bool mask, or row numbers in any order.
        """
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.sort(rows)
        return replace(
            self,
            ids=self.ids[rows],
            images=tuple(self.images[row] for row in rows),
            targets=None if self.targets is None else self.targets[rows],
            masks=None if self.masks is None else tuple(self.masks[row] for row in rows),
            meta=None if self.meta is None else self.meta.iloc[rows].reset_index(drop=True),
            unreadable=None if self.unreadable is None else self.unreadable[rows],
        )

    def column(self, name: str) -> np.ndarray:
        """Return [N] text of a metadata column, of `id`, or of the target (`target`, single-label only).

        Raises:
            DataError: there is no such column.
        """
        if self.meta is not None and name in self.meta.columns:
            return self.meta[name].astype(str).to_numpy()
        if name == "id":
            return self.ids
        if name == "target" and self.targets is not None and self.targets.ndim == 1:
            return np.asarray(np.asarray(self.target_names)[self.targets])
        known = ["id", *([] if self.meta is None else [str(column) for column in self.meta.columns])]
        raise DataError(
            f"the table has no column '{name}'",
            f"one of {', '.join(known)}",
            f"add '{name}' to data.metadata in the YAML",
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that identify ids, target names, targets or masks, and metadata."""
        state = hashlib.sha256()
        for texts in (self.ids, self.target_names):
            state.update("\n".join(map(str, texts)).encode() + b"\0")
        if self.targets is not None:
            state.update(np.ascontiguousarray(self.targets).tobytes())
        if self.masks is not None:
            state.update("\n".join("\t".join(cells) for cells in self.masks).encode() + b"\0")
        if self.meta is not None:
            for column in sorted(map(str, self.meta.columns)):
                state.update("\n".join([column, *self.column(column)]).encode() + b"\0")
        return state.hexdigest()[:16]


def readable(table: Table) -> Table:
    """Return the rows of a table whose images can be read."""
    gone = table.unreadable
    return table if gone is None or not gone.any() else table.select(~gone)


def training_share(table: Table) -> np.ndarray:
    """Return [K] float64, what is known of a row without its image: shares of classes or tags, means of numbers.

    Targets that are not known do not count; a target that is known nowhere is 0. Masks say nothing of a row: nothing is
    the commonest thing in them.

    Args:
        table: training rows.
    """
    count = len(table.target_names)
    if table.targets is None or not len(table):
        return np.zeros(count)
    if table.targets.ndim == 1:
        return np.bincount(table.targets, minlength=count) / len(table)
    known = np.isfinite(table.targets)
    sums = np.where(known, table.targets, 0).sum(axis=0, dtype=np.float64)
    return np.asarray(sums / np.maximum(1, known.sum(axis=0)))
