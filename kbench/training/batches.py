"""Which rows a stage shows, in which order and in which batches."""

from __future__ import annotations

import itertools

from kbench.data import seeds
from kbench.data.dataset import Batches, Draw, cut
from kbench.training.fold_context import FoldContext
from kbench.training.stage_plan import StagePlan

REFIT_EPOCH = 2 * 10**6
"""Number of the order that batch norm of mean weights is refitted in."""

_FIND_EPOCHS = 10**6  # orders of the range test are numbered from here


class Draws:
    """The batches of a stage; all follow from seed, fold, stage and epoch, so a resumed run draws the same.

    Args:
        context: what a fold is made of; its `limit` cuts everything to a few batches.
        plan: the stage, with its sampler and batch size.

    Attributes:
        rows: that train, as positions in the table.
        key: seed, fold and stage, which every random number of the stage is drawn with.
    """

    def __init__(self, context: FoldContext, plan: StagePlan) -> None:
        self._context, self._batch_size = context, plan.stage.batch_size
        self.rows = context.rows_of(plan)
        self.key = (context.seed, context.number, plan.index)
        targets = context.table.targets
        self._order = plan.sampler(None if targets is None else targets[self.rows], len(self.rows))

    def epoch(self, epoch: int) -> Batches:
        """Return the training batches of an epoch."""
        rows = self.rows[self._order(seeds.generator(seeds.ORDER, *self.key, epoch))]
        key = (seeds.AUGMENT, *self.key, epoch)
        return self._limited(
            cut(len(rows), self._batch_size, lambda place: Draw(int(rows[place]), (*key, place)), lone=False)
        )

    def range_test(self, count: int) -> list[list[Draw]]:
        """Return the batches of a range test, over as many epochs as they need."""
        epochs = (self.epoch(_FIND_EPOCHS + epoch) for epoch in itertools.count())
        return list(itertools.islice(itertools.chain.from_iterable(epochs), count))

    def held_out(self) -> Batches:
        """Return the validation rows in a random order, for a range test that judges."""
        rows = seeds.generator(seeds.ORDER, *self.key, seeds.FIND).permutation(self._context.valid_rows)
        return cut(len(rows), self._batch_size, lambda place: Draw(int(rows[place])))

    def valid(self, size: int) -> Batches:
        """Return the validation rows that this rank judges, in their order."""
        rows, limit = self._context.valid_rows, self._context.limit
        rows = rows[: limit * size] if limit else rows
        own = rows[self._context.ranks.share(len(rows))]
        return cut(len(own), size, lambda place: Draw(int(own[place])))

    def _limited(self, batches: Batches) -> Batches:
        limited: Batches = batches[: self._context.limit] if self._context.limit else batches
        return limited
