"""Count right and wrong pixels on the device: all that the metrics of a segmentation need of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from kbench.tasks import IGNORED, exclusive


def pixel_counts(predicted: Tensor, mask: Tensor, task: str, n_outputs: int) -> Tensor:
    """Return [B, K, 3] int64 of each image and class: pixels found, found wrongly, and missed (tp, fp, fn).

    Args:
        predicted: [B, H, W] class indices, or [B, K, H, W] 0 or 1, as `outputs.hard_masks` makes them.
        mask: [B, H, W, M] the truth as `kbench/data/masks.py` says; 255 is not counted.
        task: a segmentation.
        n_outputs: number of classes K.
    """
    if not exclusive(task, n_outputs):
        truth = mask.permute(0, 3, 1, 2)
        known, found, true = truth != IGNORED, predicted == 1, truth == 1
        sums = [(found & true), (found & ~true & known), (~found & true)]
        return torch.stack([part.sum((2, 3)) for part in sums], dim=-1)
    both = confusion(predicted, mask, n_outputs)
    hit = both.diagonal(dim1=1, dim2=2)
    return torch.stack([hit, both.sum(1) - hit, both.sum(2) - hit], dim=-1)


def confusion(predicted: Tensor, mask: Tensor, n_outputs: int) -> Tensor:
    """Return [B, K, K] int64: pixels of each image by true class (rows) and predicted class (columns)."""
    index = mask[..., 0].flatten(1).long()  # [B, H*W]
    cells = index * n_outputs + predicted.flatten(1).long()
    cells = torch.where(index == IGNORED, n_outputs * n_outputs, cells)  # one cell more, dropped below
    width = n_outputs * n_outputs + 1
    offsets = torch.arange(len(cells), device=cells.device)[:, None] * width
    found = torch.bincount((cells + offsets).flatten(), minlength=len(cells) * width)
    return found.view(len(cells), width)[:, :-1].view(-1, n_outputs, n_outputs)
