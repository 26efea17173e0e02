"""Judge a model on the rows a fold validates, as it will predict: rows of logits, or maps of whole images.

`evaluate` holds all predictions of rows, since a metric may need them at once. `judge_maps` makes maps as prediction
makes them, plain view alone, through the competition's windows; its memory is that of a batch, whatever the number of
images. What an epoch is judged by besides the loss is the stage's monitor: to add one, add a metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from kbench.data.dataset import Draw, Loader, cut
from kbench.data.whole_images import WholeImages, batch_size, group, pixels_at_once
from kbench.inference.maps import MapMaker
from kbench.inference.views import View
from kbench.metrics.maps import measured, truth_of
from kbench.models.batchnorm_folding import PROBE, folded
from kbench.models.device import Precision, in_parts
from kbench.models.outputs import Units, dense_target, logits_of, probabilities
from kbench.training.fold_context import KEEP, FoldContext
from kbench.training.loop import Feed, logits_in
from kbench.training.losses.per_target import Loss
from kbench.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Judging:
    """What judging needs besides the fold.

    Attributes:
        normalise: [B, H, W, C] -> [B, C, H, W] float32, on the device.
        loss: of training.
        precision: of the forward pass.
        most: images at once at most.
        units: of a regression's targets, where they are learned standardised.
    """

    normalise: nn.Module
    loss: Loss
    precision: Precision
    most: int
    units: Units | None = None


@dataclass(frozen=True)
class Judged:
    """What the validation rows say.

    Attributes:
        loss: mean over valid targets, of a regression's standardised ones.
        targets: what the metric takes as targets.
        values: what it takes as predictions.
        constant: loss of a model that says the training rows' mean everywhere, of standardised targets; else None.
    """

    loss: float
    targets: np.ndarray | None
    values: np.ndarray
    constant: float | None = None


@torch.no_grad()
def judge_maps(context: FoldContext, model: nn.Module, judging: Judging) -> Judged:
    """Judge a model on the whole images of the validation rows.

    The loss is that of the blended probabilities, so it means the same through any windows. Each of the fold's ranks
    judges its share of the rows; all of them return what the rows together say.
    """
    assert context.masks is not None, "a dense task has masks"
    assert context.windows is not None, "a dense task has windows"
    model.eval()
    task, names, rows = context.table.task, context.table.target_names, context.valid_rows
    images = context.images(KEEP)
    make = MapMaker(context.windows, (View("plain"),), task, context.device)
    pixels = pixels_at_once(len(names))
    loader = Loader(
        WholeImages(images, context.masks(KEEP), scale=context.scale_for(images)),
        workers=context.workers, pin=context.device.type == "cuda", collate=partial(group, pixels=pixels),
    )  # fmt: skip
    size = batch_size(images, pixels=pixels, most=judging.most)
    rows = rows[: context.limit * size] if context.limit else rows
    own = rows[context.ranks.share(len(rows))]
    plan = cut(len(own), size, lambda place: Draw(int(own[place])))
    total, count, constant = 0.0, 0.0, 0.0
    counts: dict[int, np.ndarray] = {}
    for groups in loader(plan):
        for some in groups:
            assert some.masks is not None, "training rows have masks"
            shown = judging.normalise(some.images.to(context.device, non_blocking=True), some.regions)
            if not counts:
                model = folded(model, shown[..., :PROBE, :PROBE])
            maps, _ = make(model, shown, judging.precision)
            target = dense_target(some.masks.to(context.device), task, len(names))
            learned = target if judging.units is None else judging.units.standardised(target)
            sums = judging.loss(logits_of(maps, task), learned)
            total, count = total + float(sums.total), count + float(sums.count)
            if judging.units is not None:
                constant += float(judging.loss(torch.zeros_like(maps), learned).total)
                maps = judging.units.restored(maps)
            counts.update(zip(some.rows, measured(maps, target, task).cpu().numpy(), strict=True))
    shares = context.ranks.gathered((total, count, constant, counts))
    total, count, constant = (sum(sums) for sums in zip(*(share[:3] for share in shares), strict=True))
    counts = {row: values for share in shares for row, values in share[3].items()}
    values = np.stack([counts[row] for row in sorted(counts)])
    of_mean = None if judging.units is None or not count else constant / count
    return Judged(total / count if count else 0.0, truth_of(values, task), values, of_mean)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    feed: Feed,
    batches: Sequence[Sequence[Draw]],
    *,
    loss: Loss,
    precision: Precision,
    task: str,
    ranks: Ranks = ALONE,
) -> tuple[float, np.ndarray]:
    """Judge a model on planned batches.

    All predictions are held in memory, since a metric may need them at once.

    Args:
        model: on the feed's device; left in eval mode.
        feed: loads the batches.
        batches: the plan; of several ranks, this one's share, which may be empty.
        loss: of training.
        precision: of the forward pass.
        task: the competition's.
        ranks: whose shares are put together, in their order.

    Returns:
        The mean loss over valid targets, and [N, K, ...] float32 probabilities (target units for regression) in
        the order of the plan.
    """
    model.eval()
    total, count = 0.0, 0.0
    parts: list[np.ndarray] = []
    for batch in feed.load(batches):
        shown = feed.normalised(batch.images[0].to(feed.device, non_blocking=True), batch.regions)
        images = feed.seen(shown)
        if not parts:
            model = folded(model, images)
        assert batch.target is not None, "validation rows have targets"
        logits = in_parts(partial(logits_in, model, feed.device, precision), [images])
        loss_sum = loss(logits.float(), feed.learned(batch.target.to(feed.device)))
        total += float(loss_sum.total)
        count += float(loss_sum.count)
        values = probabilities(logits, task)
        parts.append((values if feed.units is None else feed.units.restored(values)).cpu().numpy())
    shares = ranks.gathered((total, count, parts))
    total, count = sum(share[0] for share in shares), sum(share[1] for share in shares)
    return (total / count if count else 0.0), np.concatenate([part for share in shares for part in share[2]])
