"""Images of a competition: as they lie in their files, as a stage of training shows them, as tensors for notebooks.

A few are decoded one by one, whatever the cache holds, so that looking at sixteen of a million images takes a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from kbench.config.competition import Competition
from kbench.data import seeds
from kbench.data.dataset import Draw, Normalise, Show
from kbench.data.images.cache import DirectImages, Images, Resize, RowPaths
from kbench.data.images.decoding import first_path, usable
from kbench.data.images.quick import QuickReader
from kbench.data.images.readers import Reader
from kbench.data.images.regions import region_of
from kbench.data.table.table import Table
from kbench.errors import ConfigError, DataError, nearest
from kbench.models.outputs import dense_target
from kbench.pictures.segments import as_mask, class_colours, paint
from kbench.pictures.sheets import Group, Tile, sheet
from kbench.runs import parts
from kbench.runs.experiment import Experiment
from kbench.runs.steps import reader_of
from kbench.tasks import SEGMENTATION, exclusive
from kbench.training.stage_plan import StagePlan

if TYPE_CHECKING:
    from kbench.runs.run import Run

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
    rows_of_paths = RowPaths(table.root, [table.images[row] for row in chosen])
    return DirectImages(rows_of_paths, reader, resize)


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


def training_rows(experiment: Experiment, stage: StagePlan, fold: int) -> np.ndarray:
    """Return the rows a stage of a fold trains on.

    Raises:
        FoldError: there is no such fold.
    """
    mask = experiment.folds.train(fold)
    return np.arange(len(experiment.train)) if stage.stage.subset == "full" else np.flatnonzero(mask)


def epoch_rows(experiment: Experiment, stage: StagePlan, fold: int) -> np.ndarray:
    """Return [n] rows of the table in the order the first epoch of a stage visits them."""
    rows = training_rows(experiment, stage, fold)
    targets = None if experiment.train.targets is None else experiment.train.targets[rows]
    key = (seeds.ORDER, experiment.competition.seed, fold, stage.index, 0)
    return np.asarray(rows[stage.sampler(targets, len(rows))(seeds.generator(*key))])


def epoch_draws(experiment: Experiment, stage: StagePlan, fold: int, count: int) -> list[Draw]:
    """Return the first samples of the first epoch of a stage, with training's own random numbers."""
    key = (seeds.AUGMENT, experiment.competition.seed, fold, stage.index, 0)
    rows = epoch_rows(experiment, stage, fold)[:count]
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


Role = Literal["train", "valid", "fix", "aug", "test", "test_aug"]
ROLES = {
    "train": ("train", True),
    "valid": ("valid", False),
    "fix": ("train", False),
    "aug": ("valid", True),
    "test": ("test", False),
    "test_aug": ("test", True),
}  # rows, and whether they are augmented


class TensorDataset(Dataset):
    """Rows of a table as normalised tensors with their targets; made by `Run.dataset`.

    Attributes:
        ids: [n] text.
        rows: [n] rows of the run's table.
        epoch: augmentations are drawn for it; set it before each epoch to see new ones.
    """

    def __init__(
        self,
        images: Images,
        show: Show,
        scale: dict[str, Any],
        *,
        table: Table,
        rows: np.ndarray,
        masks: Images | None = None,
        key: tuple[int, ...] = (),
    ) -> None:
        self.rows, self.ids, self.epoch = rows, table.ids[rows], 0
        self._images, self._show, self._masks, self._key = images, show, masks, key
        self._targets = None if table.targets is None else table.targets[rows]
        self._task, self._names = table.task, table.target_names
        self._normalise = Normalise(**scale)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image [C, H, W] float32 and target.

        A target is int64 [] or float32 [K]; of a dense task what its loss compares with: int64 [H, W], -100 where
        ignored, of classes that exclude one another, else float32 [K, H, W], NaN where unknown. NaN [] without one.
        """
        index = range(len(self))[index]  # negative numbers count from the end, others than there are end a loop
        rng, row = seeds.generator(*self._key, self.epoch, index) if self._key else seeds.generator(0), self.rows[index]
        mask = None if self._masks is None else self._masks[int(row)]
        shown, shown_mask = self._show(self._images[int(row)], rng, mask)
        regions = (region_of(self._images, int(row)),)
        image = self._normalise(torch.from_numpy(np.array(shown))[None], regions)[0].contiguous()
        if shown_mask is not None:
            target = dense_target(torch.from_numpy(np.array(shown_mask))[None], self._task, len(self._names))
            return image, target[0].contiguous()
        return image, torch.as_tensor(np.float32("nan") if self._targets is None else self._targets[index])


def dataset(run: Run, fold: int, stage: str | None, role: Role) -> TensorDataset:
    """Return the rows of a fold as the network sees them; see `Run.dataset`."""
    if role not in ROLES:
        raise ConfigError(f"there is no role '{role}'", f"one of {', '.join(ROLES)}", nearest(role, ROLES))
    experiment, competition = run.experiment, run.competition
    plan, (split, augmented) = stage_named(competition, stage), ROLES[role]
    valid = np.flatnonzero(experiment.folds.valid(fold))  # says so when there is no such fold
    table, what = (experiment.test, "test") if split == "test" else (experiment.train, "training")
    rows = np.arange(len(table)) if split == "test" else valid
    rows = training_rows(experiment, plan, fold) if split == "train" else rows
    cache = experiment.workspace.cache()
    images = parts.opened_images(competition, table, cache, what=what)
    masks = parts.masks_of(competition, table, cache, what=what)
    show = plan.show if augmented else plan.valid_show
    resize = resize_of(show)
    key = (seeds.AUGMENT, competition.seed, fold, plan.index) if augmented else ()
    return TensorDataset(
        images(resize), show, _scale(run, fold, resize_of(plan.show)), table=table, rows=rows,
        masks=None if masks is None else masks(resize), key=key,
    )  # fmt: skip


def _scale(run: Run, fold: int, resize: Resize) -> dict[str, Any]:
    """Return the normalisation the fold is trained with, or would be."""
    known = None if run.hashes is None else run.plan(fold).get("scale")
    if known is None:
        experiment = run.experiment
        cache = experiment.workspace.cache()
        images = parts.opened_images(run.competition, experiment.train, cache, what="training")(resize)
        scale = parts.build_scale(run.competition, parts.test_tiles(experiment))
        known = scale(images, np.flatnonzero(experiment.folds.train(fold))).known()
    return dict(known)


def show_batch(run: Run, fold: int, stage: str | None, n: int) -> Any:
    """Return a picture of the first images a fold trains on; see `Run.show_batch`."""
    experiment, plan = run.experiment, stage_named(run.competition, stage)
    table, draws = experiment.train, epoch_draws(experiment, plan, fold, n)
    if table.masks is None:
        images = shown_images(run.competition, table, draws, plan.show)
        tiles = [
            Tile(image, (label_text(table, draw.row), str(table.ids[draw.row])))
            for image, draw in zip(images, draws, strict=True)
        ]
    else:
        tiles = [tile for draw in draws for tile in _image_and_mask(run, plan, draw)]
    return sheet([Group("", tiles)], title=f"fold {fold}, stage {plan.name}", side=96)


def _image_and_mask(run: Run, plan: StagePlan, draw: Draw) -> list[Tile]:
    """Return an image as training shows it, and its mask painted over it; numbers as they are."""
    experiment, resize = run.experiment, resize_of(plan.show)
    table, cache = experiment.train, experiment.workspace.cache()
    masks = parts.masks_of(run.competition, table, cache, what="training")
    assert masks is not None, "asked only of tables with masks"
    image = file_images(run.competition, table, np.array([draw.row]), resize=resize)[0]
    shown, mask = plan.show(image, seeds.generator(*draw.key, 0), masks(resize)[draw.row])
    assert mask is not None, "a mask is shown with its image"
    name = str(table.ids[draw.row])
    if table.task not in SEGMENTATION:
        return [Tile(shown, (name,)), Tile(np.asarray(mask), ("target",))]
    n = len(table.target_names)
    painted = paint(as_mask(mask, index=exclusive(table.task, n)), class_colours(n), shown)
    return [Tile(shown, (name,)), Tile(painted, ("mask",))]


class GivenImages:
    """Images handed over by the user, brought to a size when they are asked for."""

    def __init__(self, items: Sequence[Any], reader: Reader, resize: Resize) -> None:
        self._items, self._reader, self._resize = items, reader, resize

    def __len__(self) -> int:
        return len(self._items)

    def name(self, row: int) -> str:
        """Return the path of an image, or which one it is of the arrays."""
        item = self._items[row]
        return f"image {row}" if isinstance(item, np.ndarray) else str(first_path(item))

    def __getitem__(self, row: int) -> np.ndarray:
        item = self._items[row]
        if not isinstance(item, np.ndarray):
            return usable(self._resize.read(self._reader, item), name=self.name(row))
        finish = getattr(self._reader, "finish", None)
        item = item if finish is None else finish(item)
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
