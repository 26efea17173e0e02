"""Which folds the metric cannot score, told before anything is trained."""

from __future__ import annotations

import numpy as np

from kbench.data.whole_images import class_pixels
from kbench.errors import counted
from kbench.runs import parts
from kbench.runs.experiment import Experiment
from kbench.tasks import SEGMENTATION
from kbench.training.fold_context import KEEP

_FEW_MASKS = 500  # are looked at without being asked


def unscored_folds(experiment: Experiment, *, every_mask: bool) -> list[str]:
    """Return one line per fold, and one for all rows, on which the competition's metric has no value.

    Args:
        experiment: the competition, with its folds.
        every_mask: read the masks of a segmentation however many there are.
    """
    table, metric = experiment.train, parts.build_metric(experiment.competition)
    dense = table.targets is None
    if dense and (experiment.competition.task not in SEGMENTATION or not (every_mask or len(table) <= _FEW_MASKS)):
        return []
    said = []
    names = [*((f"fold {fold}", experiment.folds.valid(fold)) for fold in range(experiment.folds.n)),
             ("all folds together", np.ones(len(table), dtype=bool))]  # fmt: skip
    for name, chosen in names:
        rows = np.flatnonzero(chosen)
        if not len(rows):
            continue
        if dense:  # one row stands for all: only whether there are pixels counts
            why = metric.undefined(_pixels(experiment, rows), table.select(rows[:1]))
        else:
            assert table.targets is not None, "training rows have targets"
            why = metric.undefined(table.targets[rows], table.select(rows))
        if why:
            said.append(
                f"{name}: '{metric.name}' has no value on its {counted(len(rows), 'row')}: {why}"
                + ("" if name.startswith("all") else "; it is judged by its loss, and the score of all rows counts")
            )
    return said


def _pixels(experiment: Experiment, rows: np.ndarray) -> np.ndarray:
    """Return [1, K] pixels of each class in the masks of some rows."""
    masks = parts.masks_of(experiment.competition, experiment.train, experiment.workspace.cache(), what="training")
    assert masks is not None, "a dense task has masks"
    pixels, _ = class_pixels(masks(KEEP), rows, len(experiment.train.target_names), experiment.competition.task)
    return pixels[None]
