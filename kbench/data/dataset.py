"""From rows to batches: show each image through crop and augmentation, and collate.

A batch is planned before it is loaded: it is a list of `Draw`s, each a row and the key of its random numbers. So the
same plan gives the same batch in any number of workers, and a resumed epoch continues in its middle. Images
stay in their dtype (8 bits travel to the accelerator as 8 bits); `Normalise` scales them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kbench import console
from kbench.data import seeds
from kbench.data.images.augment import NO_AUGMENTATION, Augmentation
from kbench.data.images.cache import Images, name_of
from kbench.data.images.crops import Crop, Geometry, Size, before_turns, warp
from kbench.data.images.dropout import Dropout
from kbench.data.images.normalise import check_dtype
from kbench.data.images.regions import region_of
from kbench.data.images.shown_masks import shown_mask
from kbench.errors import DataError, KbenchError
from kbench.machine import cores


class Draw(NamedTuple):
    """One sample to load.

    Attributes:
        row: row of the table.
        key: integers its random numbers derive from; empty for none.
    """

    row: int
    key: tuple[int, ...] = ()


@dataclass(frozen=True)
class Show:
    """How an image is shown.

    Attributes:
        size: height and width in pixels.
        crop: which window.
        augmentation: what happens to it.
        dropout: which dates or files of it are left out; None: none.
    """

    size: Size
    crop: Crop
    augmentation: Augmentation = NO_AUGMENTATION
    dropout: Dropout | None = None

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return [height, width, C] and the mask [height, width, M] shown the same way.

        Masks of classes take the nearest pixel, those of numbers are interpolated as the image is (`shown_mask`).
        """
        geometry = self.augmentation.geometry(rng) if self.augmentation.geometry else Geometry()
        size, window = before_turns(self.size, geometry), None
        if mask is not None and self.crop.masked is not None:
            window = self.crop.masked(mask, size, rng)
        if window is None and self.crop.zoomed is not None and geometry.zoom > 1:
            window = self.crop.zoomed((image.shape[0], image.shape[1]), size, geometry.zoom, rng)
            geometry = replace(geometry, zoom=1.0)
        window = window or self.crop.window((image.shape[0], image.shape[1]), size, rng)
        change = partial(warp, window=window, geometry=geometry, size=self.size)
        shown, truth = change(image), None if mask is None else shown_mask(change, mask)
        if self.augmentation.pixels:
            shown, truth = self.augmentation.pixels(shown, truth, rng)
        shown = shown if self.dropout is None else self.dropout(shown, rng)
        return shown, truth


class Batch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: one tensor per way of showing, each [B, H, W, C] in the source's dtype.
        target: [B] int64, [B, K] float32, [B, H, W, M] of dense tasks (`kbench/data/masks/kinds.py`), or None.
        rows: [B] int64 rows of the table.
        regions: [B] region of each row; empty texts where images know none.
    """

    images: tuple[torch.Tensor, ...]
    target: torch.Tensor | None
    rows: torch.Tensor
    regions: tuple[str, ...] = ()


class ImageDataset(Dataset):
    """Rows as (images, target, row), one image per way of showing.

    Args:
        images: one source per way of showing; the same source is decoded once per row.
        shows: the ways of showing.
        targets: [N] int64 or [N, K] float32 of the whole table, or None.
        masks: of dense tasks, shown as the first way shows the image; the target is then the mask.
        scale: normalisation of the model that sees the images, whose element type they must have; None: any.
    """

    def __init__(
        self,
        images: Sequence[Images],
        shows: Sequence[Show],
        targets: np.ndarray | None,
        masks: Images | None = None,
        *,
        scale: Mapping[str, Any] | None = None,
    ) -> None:
        self._images, self._shows, self._targets, self._masks = list(images), list(shows), targets, masks
        self._scale = scale

    def __getitem__(self, draw: Draw) -> Sample:
        decoded: dict[int, np.ndarray] = {}
        shown = []
        target = None if self._targets is None else self._targets[draw.row]
        for position, (source, show) in enumerate(zip(self._images, self._shows, strict=True)):
            if id(source) not in decoded:
                decoded[id(source)] = source[draw.row]
                check_dtype(decoded[id(source)].dtype, self._scale, name=partial(name_of, source, draw.row))
            rng = seeds.generator(*draw.key, position) if draw.key else seeds.generator(0)
            image = decoded[id(source)]
            mask = None if self._masks is None or position else self._masks[draw.row]
            view, view_mask = show(image, rng, mask)
            shown.append(view)
            target = target if view_mask is None else view_mask
        return shown, target, draw.row, region_of(self._images[0], draw.row)


Sample = tuple[list[np.ndarray], Any, int, str]


def collate(samples: Sequence[Sample | KbenchError]) -> Batch | KbenchError:
    """Stack samples into a batch; the first error takes its place."""
    whole: list[Sample] = []
    for sample in samples:
        if isinstance(sample, KbenchError):
            return sample
        whole.append(sample)
    images = tuple(
        torch.from_numpy(np.stack([shown[position] for shown, *_ in whole])) for position in range(len(whole[0][0]))
    )
    targets = [target for _, target, *_ in whole]
    target = None if targets[0] is None else torch.from_numpy(np.stack(targets))
    rows, regions = torch.tensor([row for _, _, row, _ in whole]), tuple(region for *_, region in whole)
    return Batch(images, target, rows, regions)


class _Carried(Dataset):
    """A dataset whose errors travel from a worker as they are; torch would make them text."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, draw: Draw) -> Any:
        try:
            return self._dataset[draw]
        except KbenchError as error:
            return error


class _Plan(Sampler):
    """The batches of the next epoch, set before each one."""

    def __init__(self) -> None:
        self.batches: Sequence[Sequence[Draw]] = []

    def __iter__(self) -> Iterator[Sequence[Draw]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """Loads planned batches, in this process or in workers that live until the loader is closed.

    Who leaves one that is part of a reference cycle to the garbage collector waits 5 s for each of its workers: the
    collector ends the queues to them first.

    Args:
        dataset: what is indexed by a `Draw`.
        workers: number of processes; 0 loads in this one.
        pin: page-locked memory, for copies to a GPU that do not block.
        collate: samples of a batch, or errors in their place -> the batch, or the first error.
    """

    def __init__(
        self, dataset: Dataset, *, workers: int = 0, pin: bool = False, collate: Callable[..., Any] = collate
    ) -> None:
        self._plan = _Plan()
        self._loader: DataLoader[Any] | None = DataLoader(
            _Carried(dataset),
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,  # readers and augmentations are closures
        )

    def __call__(self, batches: Sequence[Sequence[Draw]]) -> Iterator[Any]:
        """Yield the planned batches in order, each a `Batch` unless `collate` makes something else.

        Raises:
            DataError: an image cannot be read, or a loader process was killed.
        """
        assert self._loader is not None, "the loader is closed"
        self._plan.batches = batches
        loaded = iter(self._loader)
        while (batch := _next(loaded)) is not None:
            if isinstance(batch, KbenchError):
                raise batch
            yield batch

    def close(self) -> None:
        """End the workers."""
        self._loader = None


def _next(loaded: Iterator[Any]) -> Any:
    try:
        return next(loaded, None)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise DataError(
            f"a process that loads images ended: {str(error).splitlines()[0]}",
            "memory enough for every loader process",
            "set `loader: {workers: 0}`, or fewer of them, and run the same command again",
        ) from error


class Batches(Sequence[list[Draw]]):
    """The batches of a plan; draws are made when their batch is asked for, so a million rows cost no memory.

    Args:
        draw: position in the plan -> what is loaded there.
        edges: where batches begin, and where the last one ends.
    """

    def __init__(self, draw: Callable[[int], Draw], edges: Sequence[int]) -> None:
        self._draw, self._edges = draw, edges

    def __len__(self) -> int:
        return max(0, len(self._edges) - 1)

    def __getitem__(self, index: Any) -> Any:
        """Return a batch, or the batches of a slice."""
        if isinstance(index, slice):
            first, last, _ = index.indices(len(self))
            return Batches(self._draw, self._edges[first : last + 1])
        first, last = self._edges[range(len(self))[index]], self._edges[range(len(self))[index] + 1]
        return [self._draw(position) for position in range(first, last)]


def cut(count: int, size: int, draw: Callable[[int], Draw], *, lone: bool = True) -> Batches:
    """Cut a plan into batches; the last one may be smaller.

    Args:
        count: draws of the plan.
        size: draws of a batch.
        draw: position in the plan -> what is loaded there.
        lone: whether the last batch may be a single draw; else it joins the one before, since batch norm needs two.
    """
    edges = [*range(0, count, size), count]
    if not lone and len(edges) > 2 and edges[-1] - edges[-2] == 1 < size:
        del edges[-2]
    return Batches(draw, edges)


def auto_workers(workers: int | str, *, device: str, jobs: int = 1) -> int:
    """Return the number of loader processes: on a CPU none (the model uses its cores), else up to 8 per job."""
    if workers != "auto":
        return int(workers)
    return 0 if device == "cpu" else min(8, max(1, cores() // max(1, jobs) - 1))


class Normalise(torch.nn.Module):
    """Scale a batch on its device: (x * scale - mean) / std, channels first.

    Args:
        scale: factor of the raw values; 1/255 for 8 bits.
        mean: C values, of scaled units.
        std: C values, of scaled units.
        dtype: of the raw values; images of another kind are refused, unless it is empty.
        regions: region -> [C means, C standard deviations] that count in its place for the rows of a region.
    """

    def __init__(
        self,
        *,
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: str = "",
        regions: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ) -> None:
        super().__init__()
        self._known = {"scale": scale, "dtype": dtype} if dtype else None
        self._places = {name: place for place, name in enumerate(regions or {}, 1)}
        self._unknown: set[str] = set()
        every = [(mean, std), *((means, stds) for means, stds in (regions or {}).values())]
        factors = [[scale / value for value in stds] for _, stds in every]
        offsets = [[middle / value for middle, value in zip(*one, strict=True)] for one in every]
        self.factor: torch.Tensor
        self.offset: torch.Tensor
        for name, values in (("factor", factors), ("offset", offsets)):
            tensor = torch.tensor(values, dtype=torch.float32)
            self.register_buffer(name, tensor.view(len(every), -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor, regions: Sequence[str] = ()) -> torch.Tensor:
        """Turn [B, H, W, C] of any dtype into [B, C, H, W] float32, channels-last in memory.

        What is unknown (NaN) becomes exactly 0, so that none of it reaches the network.

        Args:
            images: the batch.
            regions: [B], of its rows; one that training did not have counts as the whole data set, which is said.

        Raises:
            DataError: they are not of the dtype it is for.
        """
        if self._known is not None:
            check_dtype(str(images.dtype).removeprefix("torch."), self._known, name=lambda: "a batch of images")
        images = images.permute(0, 3, 1, 2)
        factor, offset = self.factor[:1], self.offset[:1]
        if self._places:
            rows = torch.tensor([self._place(name) for name in regions], device=self.factor.device)
            factor, offset = self.factor[rows], self.offset[rows]
        scaled = torch.addcmul(-offset, images.float(), factor)
        return scaled.masked_fill_(scaled.isnan(), 0.0) if images.is_floating_point() else scaled

    def _place(self, name: str) -> int:
        place = self._places.get(name, 0)
        if not place and name not in self._unknown:
            self._unknown.add(name)
            console.warn(
                f"region '{name}' has no rows the model was trained on: it is normalised as the whole data set is"
            )
        return place
