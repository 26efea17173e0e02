"""A few images of a competition: as they lie in their files, and as a stage of training shows them.

They are decoded one by one, whatever the cache holds, so that looking at sixteen of a million images takes a moment.

Images as tensors, for notebooks: the rows of a run as a torch dataset, and images the user hands over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from kbench.config.competition import Competition
from kbench.data import seeds
from kbench.data.dataset import Draw, Normalise, Show
from kbench.data.images.cache import DirectImages, Images, Resize
from kbench.data.images.decoding import usable
from kbench.data.images.quick import QuickReader
from kbench.data.images.readers import Reader
from kbench.data.table.table import Table
from kbench.errors import ConfigError, DataError, nearest
from kbench.runs import parts
from kbench.runs.experiment import Setup, reader_of
from kbench.training.stage_plan import StagePlan

KEEP = Resize("keep", 0, 0)


def stage_named(competition: Competition, name: str | None) -> StagePlan:
    """Return a stage of the recipe, the last one by default.

    Raises:
        ConfigError: there is none of this name.
    """
    stages = parts.build_stages(competition)
    for stage in stages:
        if stage.name == name or (name is None and stage is stages[-1]):
            return stage
    names = [stage.name for stage in stages]
    raise ConfigError(f"there is no stage '{name}'", f"one of {', '.join(names)}", nearest(str(name), names))


def file_images(
    competition: Competition, table: Table, rows: np.ndarray | None = None, *, resize: Resize = KEEP
) -> DirectImages:
    """Return images read with the competition's reader, decoded each time they are asked for.

    Args:
        competition: says how images are read.
        table: the rows.
        rows: [n] row numbers, the images' order; all rows by default.
        resize: applied to each image.
    """
    reader = reader_of(competition)
    chosen = range(len(table)) if rows is None else rows
    return DirectImages([tuple(table.root / path for path in table.images[row]) for row in chosen], reader, resize)


def resize_of(show: Show) -> Resize:
    """Return how images are resized before a way of showing takes its windows."""
    return Resize(show.crop.resize, *(show.size if show.crop.resize != "keep" else (0, 0)))


def shown_images(competition: Competition, table: Table, draws: Sequence[Draw], show: Show) -> list[np.ndarray]:
    """Return the [height, width, C] images of draws, in the source's dtype, as training shows them.

    Args:
        competition: says how images are read.
        table: the rows.
        draws: rows with the keys of their random numbers.
        show: how.
    """
    images = file_images(competition, table, np.array([draw.row for draw in draws]), resize=resize_of(show))
    return [
        show(images[place], seeds.generator(*draw.key, 0) if draw.key else seeds.generator(0))[0]
        for place, draw in enumerate(draws)
    ]


def training_rows(setup: Setup, stage: StagePlan, fold: int) -> np.ndarray:
    """Return the rows a stage of a fold trains on.

    Raises:
        FoldError: there is no such fold.
    """
    mask = setup.folds.train(fold)
    return np.arange(len(setup.train)) if stage.subset == "full" else np.flatnonzero(mask)


def epoch_rows(setup: Setup, stage: StagePlan, fold: int) -> np.ndarray:
    """Return [n] rows of the table in the order the first epoch of a stage visits them."""
    rows = training_rows(setup, stage, fold)
    targets = None if setup.train.targets is None else setup.train.targets[rows]
    key = (seeds.ORDER, setup.competition.seed, fold, stage.index, 0)
    return np.asarray(rows[stage.sampler(targets, len(rows))(seeds.generator(*key))])


def epoch_draws(setup: Setup, stage: StagePlan, fold: int, count: int) -> list[Draw]:
    """Return the first samples of the first epoch of a stage, with training's own random numbers."""
    key = (seeds.AUGMENT, setup.competition.seed, fold, stage.index, 0)
    rows = epoch_rows(setup, stage, fold)[:count]
    return [Draw(int(row), (*key, position)) for position, row in enumerate(rows)]


def label_text(table: Table, row: int) -> str:
    """Return the target of a row in words; empty for rows without one."""
    if table.targets is None:
        return ""
    value = table.targets[row]
    if table.task == "single_label":
        return str(table.target_names[int(value)])
    if table.task == "multi_label":
        return ", ".join(name for name, has in zip(table.target_names, value > 0.5, strict=True) if has) or "no label"
    return ", ".join(f"{number:.4g}" for number in value)


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

    def name(self, row: int) -> str:
        """Return the path of an image, or which one it is of the arrays."""
        item = self._items[row]
        return f"image {row}" if isinstance(item, np.ndarray) else str(item[0])

    def __getitem__(self, row: int) -> np.ndarray:
        item = self._items[row]
        if not isinstance(item, np.ndarray):
            return usable(self._resize.read(self._reader, item), name=self.name(row))
        image, size = usable(item, name=self.name(row)), self._resize.size(*item.shape[:2])
        return self._reader.resized(image, size) if isinstance(self._reader, QuickReader) else self._resize(image)


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
