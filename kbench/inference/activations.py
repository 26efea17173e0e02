"""Precomputed activations: a frozen body runs once over all rows of a table, and every head trains on what it said.

The rows are one memory-mapped array [N, D] in the cache folder, built once under a lock, whatever the number of
folds, processes and heads (F-22). fast.ai's key held only architecture, cut and size, so another fold, order or
transform of as many rows met stale rows in silence. This key holds the ids and the content of the images in their
order, the reader, how images are shown and normalised, the body's structure and weights, precision, and versions.
The JSON is written last, so a half-written array does not exist.

A body that runs over several augmented draws of each image gives its heads the augmentation fast.ai's could not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from kbench import files, records
from kbench.data import seeds
from kbench.data.dataset import Batch, Draw, ImageDataset, Loader, Normalise, Show, cut
from kbench.data.images.cache import Images, Progress, Resize, Rows, content_key, read_whole, say_if_damaged
from kbench.models.batchnorm_folding import folded
from kbench.models.device import Precision, autocast, in_parts
from kbench.models.layer_groups import Split, body_digest, check_split

_VERSION = 3  # of what a key stands for; raise it when features of equal keys change


@dataclass(frozen=True)
class Source:
    """The rows of a table as activations are made from them.

    Attributes:
        ids: [N] text.
        rows: the image paths of each row.
        images: resizing -> images of the table.
        reader: JSON-like description of the reader and of plug-ins.
        folder: the cache folder.
        device: where the body runs.
        batch_size: images per batch.
        workers: loader processes.
        progress: called as `progress(done, total)` while a body runs.
    """

    ids: np.ndarray
    rows: Rows
    images: Callable[[Resize], Images]
    reader: Any
    folder: Path
    device: torch.device
    batch_size: int = 64
    workers: int = 0
    progress: Progress = lambda done, total: None


@dataclass(frozen=True)
class Drawn:
    """Augmented draws of each image, which all folds share.

    Attributes:
        count: draws of an image.
        seed: of the draws.
        how: JSON-like description of crop and augmentation.
    """

    count: int
    seed: int
    how: Any


@dataclass(frozen=True)
class Seen:
    """How a body sees images.

    Attributes:
        show: size, crop and, with `drawn`, augmentation.
        scale: `scale`, `mean` and `std` of the normalisation.
        precision: of the forward pass.
        channels_last: memory format.
        drawn: augmented draws instead of one look as it is judged, or None.
    """

    show: Show
    scale: dict[str, Any]
    precision: Precision
    channels_last: bool
    drawn: Drawn | None = None

    @property
    def looks(self) -> int:
        """How many times each image is seen."""
        return 1 if self.drawn is None else self.drawn.count

    def look(self, place: int, rows: int) -> Draw:
        """Return what is loaded for a row of the activations: all images, then all of them again."""
        version, row = divmod(place, rows)
        return Draw(row, () if self.drawn is None else (seeds.AUGMENT, self.drawn.seed, version, row))


@dataclass(frozen=True)
class Activations:
    """What a body said about the rows of a table.

    Attributes:
        values: [N, D] float32, memory-mapped; with V draws of each image [V * N, D], one draw of all after the other.
        images_per_s: how fast the body ran when they were made.
        fresh: whether they were made now.
    """

    values: np.ndarray
    images_per_s: float
    fresh: bool


def activations(source: Source, model: nn.Module, seen: Seen) -> Activations:
    """Return the features of all rows; made once, under a lock.

    Args:
        source: the rows.
        model: split into body and head, on the source's device; left as it is but for its mode.
        seen: how its body sees the images.

    Raises:
        ConfigError: the model is not split.
        DataError: an image cannot be read, or the disk is full.
    """
    check_split(model)
    path = _path(source, model, seen)
    sealed = read_whole(path, source.folder)
    fresh = sealed is None
    if sealed is None:
        with files.lock(path.with_suffix(".lock")):
            sealed = read_whole(path, source.folder)
            if sealed is None:
                say_if_damaged(path)
                sealed = _build(source, model, seen, path)
    values = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    return Activations(values, float(sealed["images_per_s"]), fresh)


def _path(source: Source, model: nn.Module, seen: Seen) -> Path:
    show = seen.show
    key = files.digest([
        _VERSION, files.digest([str(name) for name in source.ids]), content_key(source.rows, source.folder),
        source.reader, [show.crop.resize, *show.size, show.crop.name], seen.scale, body_digest(model), seen.precision,
        seen.channels_last, source.device.type, version("torch"), version("timm"),
        *([] if seen.drawn is None else [seen.drawn.count, seen.drawn.seed, seen.drawn.how, version("albumentations")]),
    ])  # fmt: skip
    return source.folder / "activations" / f"{key}.json"


def _build(source: Source, model: nn.Module, seen: Seen, path: Path) -> dict[str, Any]:
    """Run the body over all rows; write array and JSON, in this order."""
    images = source.images(Resize(seen.show.crop.resize, *_resized(seen.show)))
    loader = Loader(ImageDataset([images], [seen.show], None, scale=seen.scale), workers=source.workers)
    normalise = Normalise(**seen.scale).to(source.device)
    rows = len(source.ids)
    started, done, total = time.perf_counter(), 0, rows * seen.looks
    array: np.ndarray | None = None
    was = {name: module.training for name, module in model.named_modules()}
    body = FrozenBody(model, source.device, seen.precision)
    try:
        for batch in loader(cut(total, source.batch_size, lambda place: seen.look(place, rows))):
            shown = normalise(batch.images[0].to(source.device), batch.regions)
            values = body(shown)
            if array is None:
                array = files.create_npy(path.with_suffix(".npy"), (total, values.shape[1]), "float32")
            array[done : done + len(values)] = values.cpu().numpy()
            done += len(values)
            source.progress(done, total)
    finally:
        for name, module in model.named_modules():
            module.training = was[name]
    assert array is not None, "a table has rows"
    files.sync(array)
    description = {
        "rows": len(array), "features": array.shape[1], "resize": [seen.show.crop.resize, *seen.show.size],
        "images_per_s": round(done / (time.perf_counter() - started), 1), "made": time.time(),
    }  # fmt: skip
    records.seal(path, description, parts={"values": path.with_suffix(".npy")})
    return description


def _resized(show: Show) -> tuple[int, int]:
    return show.size if show.crop.resize != "keep" else (0, 0)


class FrozenBody:
    """The features of a model whose body does not learn, computed as prediction computes them.

    Args:
        model: split, on the device; its body must not change while this is in use.
        device: where it runs.
        precision: of the forward pass.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: Precision) -> None:
        self._model, self._device, self._precision = model, device, precision
        self._fast: nn.Module | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, D] float32 of normalised images [B, C, H, W]."""
        fast = self._fast = folded(self._model, images) if self._fast is None else self._fast
        return in_parts(lambda parts: features(fast, parts[0], self._device, self._precision), [images]).clone()


@torch.inference_mode()
def features(model: nn.Module, images: torch.Tensor, device: torch.device, precision: Precision) -> torch.Tensor:
    """Return the features [B, D] float32 of a split model in eval mode; images are normalised [B, C, H, W]."""
    with autocast(device, precision):
        return cast(Split, model).features(images).float()


class RowLoader:
    """Yields planned batches of precomputed rows as `Loader` yields images: one tensor [B, D] each (F-03).

    Args:
        values: [V * N, D] float32; read into memory where a quarter of what is free holds them, else row by row.
        targets: [N] int64 or [N, K] float32 of the same rows, or None.
        room: bytes of memory that are free.
        looks: V, draws of each image; an epoch, whose number is last but one in a draw's key, shows one of them.
    """

    def __init__(self, values: np.ndarray, targets: np.ndarray | None, *, room: float, looks: int = 1) -> None:
        self._values = np.array(values) if values.nbytes < room / 4 else values
        self._targets, self._looks = targets, looks

    def __call__(self, batches: Sequence[Sequence[Draw]]) -> Iterator[Batch]:
        """Yield the planned batches in order."""
        for draws in batches:
            rows = np.fromiter((draw.row for draw in draws), dtype=np.int64, count=len(draws))
            target = None if self._targets is None else torch.from_numpy(self._targets[rows])
            first = draws[0].key[-2] % self._looks * (len(self._values) // self._looks) if self._looks > 1 else 0
            yield Batch((torch.from_numpy(self._values[first + rows]),), target, torch.from_numpy(rows))
