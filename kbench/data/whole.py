"""Whole images at their own size, with their masks: what dense tasks are judged and predicted on.

Images of one batch may differ in size; those of one size stand together as a group, so that the network sees them at
once. Nothing is resized here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from kbench.data.cache import Images
from kbench.data.dataset import Draw
from kbench.errors import KbenchError
from kbench.tasks import IGNORED, exclusive


class Group(NamedTuple):
    """Images of one size.

    Attributes:
        rows: [b] rows of the table.
        images: [b, H, W, C] in the source's dtype.
        masks: [b, H, W, M] as `kbench/data/masks.py` says, or None.
    """

    rows: list[int]
    images: torch.Tensor
    masks: torch.Tensor | None


WholeSample = tuple[int, np.ndarray, np.ndarray | None]


class WholeImages(Dataset):
    """Rows as (row, image, mask).

    Args:
        images: at their own size.
        masks: of the same rows, or None.
    """

    def __init__(self, images: Images, masks: Images | None) -> None:
        self._images, self._masks = images, masks

    def __getitem__(self, draw: Draw) -> WholeSample:
        return draw.row, self._images[draw.row], None if self._masks is None else self._masks[draw.row]


def group(samples: Sequence[WholeSample | KbenchError]) -> list[Group] | KbenchError:
    """Put images of one size together; the first error takes the place of the batch."""
    by_size: dict[tuple[int, ...], list[WholeSample]] = {}
    for sample in samples:
        if isinstance(sample, KbenchError):
            return sample
        by_size.setdefault(sample[1].shape, []).append(sample)
    return [
        Group(
            [row for row, *_ in some],
            torch.from_numpy(np.stack([image for _, image, _ in some])),
            None if some[0][2] is None else torch.from_numpy(np.stack([mask for *_, mask in some if mask is not None])),
        )
        for some in by_size.values()
    ]


def batch_size(images: Images, n_outputs: int, *, most: int, values: int = 1 << 25) -> int:
    """Return how many whole images go through the network at once.

    Args:
        images: of the table; the first one tells the size.
        n_outputs: number of maps per image.
        most: an upper limit.
        values: map values held at once, 2^25 float32 being 134 MB.
    """
    height, width = (int(side) for side in images[0].shape[:2])
    return max(1, min(most, values // (height * width * max(1, n_outputs))))


def class_pixels(masks: Images, rows: np.ndarray, n_outputs: int, task: str) -> tuple[np.ndarray, int]:
    """Return [K] int64 pixels of each class in some masks, and the pixels that are not ignored."""
    counts, known = np.zeros(n_outputs, dtype=np.int64), 0
    for row in rows:
        mask = masks[int(row)]
        if exclusive(task, n_outputs):
            values = np.bincount(mask.ravel(), minlength=256)
            counts += values[:n_outputs]
            known += int(values[:n_outputs].sum())
        else:
            counts += (mask == 1).sum((0, 1))
            known += int((mask != IGNORED).any(2).sum())
    return counts, known
