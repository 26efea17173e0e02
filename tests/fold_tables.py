"""Small tables that fold tests cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.table.table import Table

CELLS = {
    ("Tokyo1", "morning"): 749,
    ("Tokyo1", "night"): 646,
    ("Tokyo1", "day"): 587,
    ("Saitama", "morning"): 216,
    ("Tokyo2", "day"): 45,
}


def make_table(ids=None, *, rows=0, task="single_label", targets=None, names=("cat", "dog"), root="", **meta) -> Table:
    """A table of the given ids (or `r00000` ...); columns are sorted along with the ids."""
    ids = np.array([f"r{row:05d}" for row in range(rows)] if ids is None else ids, dtype=str)
    order = np.argsort(ids, kind="stable")
    targets = None if targets is None else np.asarray(targets)[order]
    frame = pd.DataFrame({name: np.asarray(values, dtype=str)[order] for name, values in meta.items()})
    return Table(
        ids=ids[order],
        root=Path(root),
        images=tuple((f"{name}.png",) for name in ids[order]),
        task=task,
        target_names=tuple(names),
        targets=targets,
        meta=frame if meta else None,
    )


def classes(rows: int, share: float = 0.3, seed: int = 0) -> np.ndarray:
    """[N] int64 classes 0 and 1."""
    return (np.random.RandomState(seed).rand(rows) < share).astype(np.int64)


def tags(rows: int, shares, seed: int = 0) -> np.ndarray:
    """[N, K] float32 tags, each with its own share."""
    return (np.random.RandomState(seed).rand(rows, len(shares)) < np.asarray(shares)).astype(np.float32)


def routes() -> Table:
    """2,243 frames on three routes at three times of day, in mixed order."""
    cells = [cell for cell, count in CELLS.items() for _ in range(count)]
    order = np.random.RandomState(1).permutation(len(cells))
    return make_table(
        rows=len(cells),
        task="segmentation",
        route=[cells[row][0] for row in order],
        time_of_day=[cells[row][1] for row in order],
    )
