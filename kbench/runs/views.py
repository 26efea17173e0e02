"""Rows as one snapshot sees them in every view, apart: what fast.ai's `TTA` returns (F-24)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kbench.data.table.table import Table
from kbench.ensemble.average import average
from kbench.inference.mean import Mean, MeanKind, mean_of_task
from kbench.inference.predictions import Predictions
from kbench.models.checkpoint import Checkpoint
from kbench.runs import parts
from kbench.runs.results import Rows

if TYPE_CHECKING:
    from kbench.runs.run import Run


@dataclass(frozen=True)
class ViewStack:
    """Rows as one snapshot sees them in every view.

    Attributes:
        views: 1 + n names; the first is the plain view.
        weights: [1 + n] float64 share of each view in the mean; they sum to 1.
        ids: [N] text, unique and sorted.
        names: K target names.
        task: the competition's.
        read: row -> [1 + n, K] float32 probabilities or target units, [1 + n, K, H, W] of maps, predicted when asked.
    """

    views: tuple[str, ...]
    weights: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    task: str
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return [1 + n, K, ...] float32 of a row."""
        return self.read(range(len(self))[row])

    @property
    def values(self) -> np.ndarray:
        """[1 + n, N, K] float32 of all rows; of maps, which may differ in size, ask for one row at a time."""
        return np.stack([self[row] for row in range(len(self))], axis=1)

    def mean(self, mean: MeanKind = "arithmetic") -> Predictions:
        """Return the mean over views as a run's predictions have it: of probabilities, or of their logarithms."""
        views = [Predictions(self.ids, self.names, values, self.task, {}) for values in self.values]
        return average(views, mean=mean, weights=self.weights.tolist())

    def mean_of(self, row: int, mean: MeanKind = "arithmetic") -> np.ndarray:
        """Return [K, ...] float32, the mean over views of a row, also where it is a map."""
        how: Mean = mean_of_task(mean, self.task, len(self.names))
        total = None
        for values, weight in zip(self[row], self.weights, strict=True):
            total = how.add(total, values, weight)
        return np.asarray(how.back(total, axis=0), dtype=np.float32)


def view_stack(run: Run, checkpoint: Checkpoint, table: Table, rows: np.ndarray, *, device: str = "auto") -> ViewStack:
    """Return rows in every view of `tta:`, as a snapshot sees them.

    Args:
        run: the run.
        checkpoint: the snapshot.
        table: of the rows.
        rows: [N] of the table; those of a task that predicts rows are predicted in one pass and held in memory,
            4 x (1 + n) x N x K bytes, maps one at a time.
        device: where the model runs.
    """
    views = parts.build_views(run.competition)
    weights = np.array([view.weight for view in views])
    read = run.results.view_reader(run, checkpoint, Rows(table, "views", device), rows)
    return ViewStack(
        tuple(view.name for view in views), weights / weights.sum(), np.asarray(table.ids[rows]),
        run.experiment.train.target_names, run.competition.task, read,
    )  # fmt: skip
