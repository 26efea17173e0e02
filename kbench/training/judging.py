"""Judge a model of a dense task on whole images while it trains.

The maps are made as prediction makes them, plain view alone, through the competition's windows; memory is that of a
batch, whatever the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from kbench.data.dataset import Draw, Loader, cut
from kbench.data.whole import WholeImages, batch_size, group, pixels_at_once
from kbench.inference.maps import MapMaker
from kbench.inference.views import View
from kbench.metrics.dense import measured, truth_of
from kbench.models.folding import PROBE, folded
from kbench.models.outputs import dense_target, logits_of
from kbench.models.precision import Precision
from kbench.training.context import KEEP, FoldContext
from kbench.training.losses import Loss


@dataclass(frozen=True)
class Judging:
    """What judging needs besides the fold.

    Attributes:
        normalise: [B, H, W, C] -> [B, C, H, W] float32, on the device.
        loss: of training.
        precision: of the forward pass.
        most: images at once at most.
    """

    normalise: nn.Module
    loss: Loss
    precision: Precision
    most: int


@torch.no_grad()
def judge_maps(context: FoldContext, model: nn.Module, judging: Judging) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean loss of the validation rows, and what their metric takes as targets and predictions.

    The loss is that of the blended probabilities, so it means the same through any windows.
    """
    assert context.masks is not None, "a dense task has masks"
    assert context.windows is not None, "a dense task has windows"
    model.eval()
    task, names, rows = context.table.task, context.table.target_names, context.valid_rows
    images = context.images(KEEP)
    make = MapMaker(context.windows, (View("plain"),), task, context.device)
    pixels = pixels_at_once(len(names))
    loader = Loader(
        WholeImages(images, context.masks(KEEP)), workers=context.workers, pin=context.device.type == "cuda",
        collate=partial(group, pixels=pixels),
    )  # fmt: skip
    size = batch_size(images, pixels=pixels, most=judging.most)
    plan = cut(len(rows), size, lambda place: Draw(int(rows[place])))
    total, count = 0.0, 0.0
    found: dict[int, np.ndarray] = {}
    for groups in loader(plan[: context.limit] if context.limit else plan):
        for some in groups:
            assert some.masks is not None, "training rows have masks"
            shown = judging.normalise(some.images.to(context.device, non_blocking=True))
            if not found:
                model = folded(model, shown[..., :PROBE, :PROBE])
            maps, _ = make(model, shown, judging.precision)
            target = dense_target(some.masks.to(context.device), task, len(names))
            sums = judging.loss(logits_of(maps, task), target)
            total, count = total + float(sums.total), count + float(sums.count)
            found.update(zip(some.rows, measured(maps, target, task).cpu().numpy(), strict=True))
    values = np.stack([found[row] for row in sorted(found)])
    return (total / count if count else 0.0), truth_of(values, task), values
