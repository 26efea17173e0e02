"""Whole images at their own size, with their masks: what dense tasks are judged and predicted on.

Images of one batch may differ in size; those of one size stand together as a group, so that the network sees them at
once. Nothing is resized here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from kbench.data.dataset import Draw
from kbench.data.images.cache import Images, name_of
from kbench.data.images.normalise import check_dtype
from kbench.data.images.regions import region_of
from kbench.errors import KbenchError
from kbench.tasks import IGNORED, exclusive


class Group(NamedTuple):
    """Images of one size.

    Attributes:
        rows: [b] rows of the table.
        images: [b, H, W, C] in the source's dtype.
        masks: [b, H, W, M] as `kbench/data/masks/kinds.py` says, or None.
        regions: [b] region of each row; empty texts where images know none.
    """

    rows: list[int]
    images: torch.Tensor
    masks: torch.Tensor | None
    regions: tuple[str, ...] = ()


_LAYER = 32  # maps of a layer at full size, at least
WholeSample = tuple[int, np.ndarray, np.ndarray | None, str]


class WholeImages(Dataset):
    """Rows as (row, image, mask).

    Args:
        images: at their own size.
        masks: of the same rows, or None.
        scale: normalisation of the model that sees the images, whose element type they must have; None: any.
    """

    def __init__(self, images: Images, masks: Images | None, *, scale: Mapping[str, Any] | None = None) -> None:
        self._images, self._masks, self._scale = images, masks, scale

    def __getitem__(self, draw: Draw) -> WholeSample:
        image = self._images[draw.row]
        check_dtype(image.dtype, self._scale, name=partial(name_of, self._images, draw.row))
        mask = None if self._masks is None else self._masks[draw.row]
        return draw.row, image, mask, region_of(self._images, draw.row)


def pixels_at_once(n_outputs: int) -> int:
    """Return how many pixels go through the network at once: those whose maps are 2^25 float32 values, 134 MB.

    Between its layers a network holds some tens of maps at the size of the image, however few it ends in.
    """
    return (1 << 25) // max(_LAYER, n_outputs)


def batch_size(images: Images, *, pixels: int, most: int) -> int:
    """Return how many whole images are loaded at once.

    Args:
        images: of the table; the first one tells the size, and `group` parts batches where others are larger.
        pixels: at once at most.
        most: images at most.
    """
    height, width = (int(side) for side in images[0].shape[:2])
    return max(1, min(most, pixels // (height * width)))


def group(samples: Sequence[WholeSample | KbenchError], *, pixels: int) -> list[Group] | KbenchError:
    """Put images of one size together; the first error takes the place of the batch.

    Args:
        samples: those of a batch.
        pixels: of a group at most, unless a single image has more. Only samples that follow one another within this
            many are put together, so that what waits for its turn is never more either.
    """
    groups: list[Group] = []
    by_size: dict[tuple[int, ...], list[WholeSample]] = {}
    room = pixels
    for sample in samples:
        if isinstance(sample, KbenchError):
            return sample
        area = sample[1].shape[0] * sample[1].shape[1]
        if area > room:
            groups += map(_stacked, by_size.values())
            by_size, room = {}, pixels
        by_size.setdefault(sample[1].shape, []).append(sample)
        room -= area
    return [*groups, *map(_stacked, by_size.values())]


def _stacked(some: Sequence[WholeSample]) -> Group:
    masks = [mask for *_, mask, _ in some if mask is not None]
    return Group(
        [row for row, *_ in some],
        torch.from_numpy(np.stack([image for _, image, *_ in some])),
        torch.from_numpy(np.stack(masks)) if masks else None,
        tuple(region for *_, region in some),
    )


def value_statistics(masks: Images, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [K] means and standard deviations of the numbers of some masks, float64; NaN does not count.

    Where there is no known number both are NaN. Masks are read one at a time and their moments joined (Chan, Golub and
    LeVeque 1979, equation 2.1), so that a large mean costs no precision.
    """
    count, mean, squares = np.zeros(1), np.zeros(1), np.zeros(1)
    for row in rows:
        values = masks[int(row)].astype(np.float64)
        values = values.reshape(-1, values.shape[-1])
        known = ~np.isnan(values)
        here = known.sum(0)
        own = np.where(known, values, 0).sum(0) / np.maximum(here, 1)
        own_squares = np.where(known, values - own, 0)
        both = np.maximum(count + here, 1)
        delta = own - mean
        squares = squares + (own_squares**2).sum(0) + delta**2 * count * here / both
        mean, count = mean + delta * here / both, count + here
    counted = np.where(count > 0, count, np.nan)
    return np.where(count > 0, mean, np.nan), np.sqrt(squares / counted)


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
