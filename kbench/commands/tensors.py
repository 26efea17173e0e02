"""Images as tensors, for notebooks: the rows of a run as a torch dataset, and images the user hands over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from kbench.data import seeds
from kbench.data.cache import Images, Resize
from kbench.data.dataset import Normalise, Show
from kbench.data.images import Reader
from kbench.data.tables import Table
from kbench.errors import DataError

Item = str | Path | Sequence[str | Path] | np.ndarray
"""An image to predict: a path, several paths whose channels are stacked, or an array [H, W] or [H, W, C]."""


class TensorDataset(Dataset):
    """Rows of a table as normalised tensors with their targets; made by `Run.dataset`.

    Attributes:
        ids: [n] text.
        rows: [n] rows of the run's table.
        epoch: augmentations are drawn for it; set it before each epoch to see new ones.
    """

    def __init__(
        self, images: Images, show: Show, scale: dict[str, Any], table: Table, rows: np.ndarray, key: tuple[int, ...]
    ) -> None:
        self.rows, self.ids, self.epoch = rows, table.ids[rows], 0
        self._images, self._show, self._key = images, show, key
        self._targets = None if table.targets is None else table.targets[rows]
        self._normalise = Normalise(**scale)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image [C, H, W] float32 and target, int64 [] or float32 [K]; NaN [] without targets."""
        index = range(len(self))[index]  # negative numbers count from the end, others than there are end a loop
        rng = seeds.generator(*self._key, self.epoch, index) if self._key else seeds.generator(0)
        shown, _ = self._show(self._images[int(self.rows[index])], rng)
        image = self._normalise(torch.from_numpy(np.array(shown))[None])[0].contiguous()
        target = np.float32("nan") if self._targets is None else self._targets[index]
        return image, torch.as_tensor(target)


class GivenImages:
    """Images handed over by the user, brought to a size when they are asked for."""

    def __init__(self, items: Sequence[Any], reader: Reader, resize: Resize) -> None:
        self._items, self._reader, self._resize = items, reader, resize

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> np.ndarray:
        item = self._items[row]
        return self._resize(item if isinstance(item, np.ndarray) else self._reader(item))


def given(item: Item, place: int, channels: int) -> np.ndarray | tuple[Path, ...]:
    """Return an array [H, W, C] or a tuple of paths."""
    if isinstance(item, str | Path):
        return (Path(item),)
    if not isinstance(item, np.ndarray):
        return tuple(Path(path) for path in item)
    image = item[:, :, None] if item.ndim == 2 else item
    if image.ndim != 3 or image.shape[2] != channels or not image.size:
        raise DataError(
            f"image {place} has the shape {item.shape}",
            f"[height, width, {channels}]" + (" or [height, width]" if channels == 1 else ""),
            "hand over images as the competition's files hold them, channels last",
        )
    return np.ascontiguousarray(image)
