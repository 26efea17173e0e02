"""Test rows whose image cannot be read, of tasks whose targets are maps: an empty mask, or the training rows' mean.

A mask has the size that the head of its image's file says, or else the one that most test images have.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kbench.data.table.table import Table
from kbench.data.table.verify import stand_in_size
from kbench.data.whole_images import value_statistics
from kbench.inference.map_store import MaskSet, NumberSet
from kbench.runs import parts
from kbench.runs.experiment import Experiment
from kbench.runs.steps import decoding_of
from kbench.tasks import SEGMENTATION, exclusive
from kbench.training.fold_context import KEEP


def filled(experiment: Experiment, maps: MaskSet | NumberSet, table: Table) -> MaskSet | NumberSet:
    """Return maps with what stands in for the rows of a table that cannot be read.

    Args:
        experiment: the competition.
        maps: of the rows that can be read.
        table: all rows.
    """
    gone = table.unreadable
    if gone is None or not gone.any():
        return maps
    places = {str(name): row for row, name in enumerate(maps.ids)}
    ids = np.unique(np.concatenate([maps.ids, table.ids[gone]]))
    values = None if maps.task in SEGMENTATION else _mean(experiment)

    def read(row: int) -> np.ndarray:
        name = str(ids[row])
        if name in places:
            return maps.read(places[name])
        height, width = stand_in_size(table, int(np.searchsorted(table.ids, name)), decoding_of(experiment.competition))
        if values is not None:
            return np.broadcast_to(values[:, None, None], (len(values), height, width)).astype(np.float32)
        apart = exclusive(maps.task, len(maps.names))
        return np.zeros((height, width) if apart else (len(maps.names), height, width), dtype=np.uint8)

    return replace(maps, ids=ids, read=read)


def _mean(experiment: Experiment) -> np.ndarray:
    """Return [K] the mean of each target's known training pixels; 0 where none is known."""
    train = experiment.train
    masks = parts.masks_of(experiment.competition, train, experiment.workspace.cache(), what="training")
    assert masks is not None, "a dense task has masks"
    return np.asarray(np.nan_to_num(value_statistics(masks(KEEP), np.arange(len(train)))[0]))
