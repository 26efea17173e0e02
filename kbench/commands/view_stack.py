"""The views of a snapshot's predictions, each by itself: what test-time augmentation averages (F-24)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kbench import files
from kbench.commands import parts
from kbench.commands.predict import job_of, member_of
from kbench.commands.setup import Setup
from kbench.data.tables import Table
from kbench.ensemble.average import Mean, average
from kbench.errors import ConfigError
from kbench.inference.predict import predict
from kbench.inference.predictions import Predictions, load
from kbench.models.checkpoint import Checkpoint
from kbench.tasks import is_dense


@dataclass(frozen=True)
class ViewStack:
    """Rows as one snapshot sees them in every view, as fast.ai's `TTA` returns them.

    Attributes:
        views: 1 + n names; the first is the plain view.
        weights: [1 + n] float64 share of each view in the mean; they sum to 1.
        ids: [N] text, unique and sorted.
        names: K target names.
        values: [1 + n, N, K] float32 probabilities, or target units.
        task: the competition's.
    """

    views: tuple[str, ...]
    weights: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    task: str

    def mean(self, mean: Mean = "arithmetic") -> Predictions:
        """Return the mean over views as a run's predictions have it: of probabilities, or of their logarithms."""
        made = [Predictions(self.ids, self.names, values, self.task, {}) for values in self.values]
        return average(made, mean=mean, weights=self.weights.tolist())


def view_stack(
    setup: Setup, checkpoint: Checkpoint, table: Table, rows: np.ndarray, *, device: str = "auto"
) -> ViewStack:
    """Predict rows with a snapshot in one pass over the images, keeping every view of `tta:`.

    Args:
        setup: the run's configuration.
        checkpoint: the snapshot.
        table: of the rows.
        rows: [N] of the table; the stack is in memory, 4 x (1 + n) x N x K bytes.
        device: where the model runs.

    Raises:
        ConfigError: the task predicts maps.
    """
    competition = setup.competition
    if is_dense(competition.task):
        raise ConfigError(
            f"views of the task '{competition.task}', whose predictions are maps", "a task that predicts rows",
            "`kbench score` says what the views of maps add",
        )  # fmt: skip
    images = parts.opened_images(competition, table, setup.workspace.cache(), what="views")
    job = replace(job_of(setup, table.ids[rows], rows, images, device), apart=True)
    stages = {stage.name: stage for stage in parts.build_stages(competition)}
    with files.scratch_folder() as folder:
        member = member_of(setup, checkpoint, folder / "views.json", {}, stages, job.device)
        for _ in predict(job, [member]):
            pass
        made = load(member.out)
        values = np.ascontiguousarray(np.moveaxis(made.values, -1, 0))
    weights = np.array([view.weight for view in job.views])
    return ViewStack(
        tuple(view.name for view in job.views), weights / weights.sum(), made.ids, made.names, values, made.task
    )
