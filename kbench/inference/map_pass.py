"""Predict the maps of whole images with many models in one pass.

Every image is decoded once, and only a batch of maps is in memory, whatever the number of images, models and views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kbench.data.dataset import Draw, Loader, Normalise, cut
from kbench.data.images.cache import Images
from kbench.data.whole_images import Group, WholeImages, batch_size, group, pixels_at_once
from kbench.inference.clock import Clock, timing
from kbench.inference.map_store import Row
from kbench.inference.maps import MapMaker
from kbench.metrics.maps import measured
from kbench.models.batchnorm_folding import PROBE, fold
from kbench.models.device import Precision, free_memory
from kbench.models.outputs import Units, dense_target


@dataclass(frozen=True)
class MapMember:
    """One model of an ensemble, not loaded yet.

    Attributes:
        name: `fold 0 stage-cycle`, for readings and messages.
        load: returns the model on its device, in eval mode.
        scale: `scale`, `mean` and `std` of its normalisation.
        precision: of the forward pass.
        weight: its share of the mean, relative to the others.
        units: of a regression's targets, where it answers in standardised ones.
        checksum: of its weights, which tells it from other models.
    """

    name: str
    load: Callable[[], nn.Module]
    scale: dict[str, Any]
    precision: Precision
    weight: float = 1.0
    units: Units | None = None
    checksum: str = ""


@dataclass(frozen=True)
class MapJob:
    """What is predicted.

    Attributes:
        rows: [N] rows of the images' table, sorted.
        images: at their own size.
        masks: of the same rows, or None without truth; with them every reading is measured.
        names: K target names.
        make: windows and views.
        most: images at once at most.
        workers: loader processes.
        clock: told how long each model takes.
    """

    rows: np.ndarray
    images: Images
    masks: Images | None
    names: tuple[str, ...]
    make: MapMaker
    most: int
    workers: int = 0
    clock: Clock | None = None


def readings(job: MapJob, members: Sequence[MapMember]) -> list[tuple[str, int | None, bool]]:
    """Return what is measured: (name, member or None for the mean, plain view or all views); the mean comes last."""
    ways = [True, False] if len(job.make.views) > 1 else [False]
    single = [(place, way) for way in ways for place in range(len(members))] if len(members) > 1 else []
    single_readings: list[tuple[str, int | None, bool]] = [
        (f"{members[place].name}{', plain view' if way and len(ways) > 1 else ''}", place, way) for place, way in single
    ]
    return [*single_readings, *((f"mean{', plain view' if way and len(ways) > 1 else ''}", None, way) for way in ways)]


def stream(job: MapJob, members: Sequence[MapMember]) -> Iterator[Row]:
    """Yield the mean maps of each row, in order, with what every reading of them is worth."""
    shelf = _Shelf(members, job.make.device)
    waiting = iter(job.rows.tolist())
    row = next(waiting, None)
    ready: dict[int, Row] = {}
    for some in _groups(job, members[0].scale):
        ready.update(_one_group(job, shelf, some))
        while row in ready:
            yield ready.pop(row)
            row = next(waiting, None)


def _groups(job: MapJob, scale: Mapping[str, Any]) -> Iterator[Group]:
    """Yield the job's images, those of one size together; their element type is that of a model's scale."""
    pixels = pixels_at_once(len(job.names))
    loader = Loader(
        WholeImages(job.images, job.masks, scale=scale),
        workers=job.workers, pin=job.make.device.type == "cuda", collate=partial(group, pixels=pixels),
    )  # fmt: skip
    size = batch_size(job.images, pixels=pixels, most=job.most)
    for groups in loader(cut(len(job.rows), size, lambda place: Draw(int(job.rows[place])))):
        yield from groups


def _one_group(job: MapJob, shelf: _Shelf, some: Group) -> Iterator[tuple[int, Row]]:
    """Yield (row, what is known of it) of images of one size."""
    make, device = job.make, job.make.device
    images = some.images.to(device, non_blocking=True)
    target = None
    if some.masks is not None:
        target = dense_target(some.masks.to(device, non_blocking=True), make.task, len(job.names))
    wanted = {(place, way) for _, place, way in readings(job, shelf.members)}
    worth: dict[tuple[int | None, bool], Tensor] = {}
    totals: dict[bool, Tensor] = {}
    for place, member in enumerate(shelf.members):
        shown = shelf.normaliser(place)(images, some.regions)
        with timing(None if shelf.has(place) else job.clock, (), device):
            model = shelf.model(place, shown)
        with timing(job.clock, [member.checksum], device):
            maps, plain = make(model, shown, member.precision)
        if member.units is not None:
            maps, plain = member.units.restored(maps), member.units.restored(plain)
        for way, values in ((False, maps), (True, plain)):
            if target is not None and (place, way) in wanted:
                worth[place, way] = measured(values, target, make.task)
            if (None, way) in wanted:
                totals[way] = make.mean.add(totals.get(way), values, member.weight / shelf.weight)
        del maps, plain
    means = {way: make.mean.back(total) for way, total in totals.items()}
    if target is not None:
        worth.update({(None, way): measured(mean, target, make.task) for way, mean in means.items()})
    counts = [worth[place, way] for _, place, way in readings(job, shelf.members)] if worth else []
    stacked = torch.stack(counts, dim=1).cpu().numpy() if counts else None  # [b, R, K, 3]
    maps_here = means[False].cpu().numpy()
    for position, row in enumerate(some.rows):
        yield row, Row(maps_here[position], None if stacked is None else stacked[position])


@dataclass(frozen=True)
class Sample:
    """What members say of some pixels of an image.

    Attributes:
        values: [M, K, P] float32 of each member, all its views.
        truth: [P] int64 class numbers, negative where ignored; or [K, P] float32, NaN where unknown.
    """

    values: np.ndarray
    truth: np.ndarray


def sampled(job: MapJob, members: Sequence[MapMember], *, pixels: int) -> Iterator[tuple[int, Sample]]:
    """Yield (row, what each member says of P of its pixels), for what is fitted to the members of an ensemble.

    The pixels of a row are always the same ones, evenly drawn from it.

    Args:
        job: rows with masks.
        members: the models.
        pixels: P at most; those of one job's images may differ in size.
    """
    shelf, make = _Shelf(members, job.make.device), job.make
    for some in _groups(job, members[0].scale):
        images = some.images.to(make.device, non_blocking=True)
        assert some.masks is not None, "what is fitted is fitted to a truth"
        target = dense_target(some.masks.to(make.device), make.task, len(job.names)).flatten(-2)  # [b, (K,) H * W]
        places = torch.linspace(0, target.shape[-1] - 1, min(pixels, target.shape[-1]), device=make.device).long()
        values = []
        for place, member in enumerate(shelf.members):
            shown = shelf.normaliser(place)(images, some.regions)
            maps, _ = make(shelf.model(place, shown), shown, member.precision)
            maps = maps if member.units is None else member.units.restored(maps)
            values.append(maps.flatten(2)[..., places])
        stacked, truth = torch.stack(values, 1).cpu().numpy(), target[..., places].cpu().numpy()
        for position, row in enumerate(some.rows):
            yield row, Sample(stacked[position], truth[position])


def views_apart(job: MapJob, member: MapMember) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row, [1 + n, K, H, W] float32), each view of a row as one model says it, in any order of rows."""
    shelf, make = _Shelf([member], job.make.device), job.make
    for some in _groups(job, member.scale):
        shown = shelf.normaliser(0)(some.images.to(make.device, non_blocking=True), some.regions)
        views = list(make.apart(shelf.model(0, shown), shown, member.precision))
        views = views if member.units is None else [member.units.restored(view) for view in views]
        stacked = torch.stack(views, 1).cpu().numpy()
        yield from zip(some.rows, stacked, strict=True)


class _Shelf:
    """The models of a pass: as many as half of the free memory holds stay loaded, the others come and go."""

    def __init__(self, members: Sequence[MapMember], device: torch.device) -> None:
        self.members, self._device = list(members), device
        self.weight = sum(member.weight for member in members)
        self._kept: dict[int, nn.Module] = {}
        self._normalisers = [Normalise(**member.scale).to(device) for member in members]
        self._room = free_memory(device) / 2

    def model(self, place: int, images: Tensor) -> nn.Module:
        """Return a member's model; one that stays is made faster, tried on a part of the images."""
        if place in self._kept:
            return self._kept[place]
        model = self.members[place].load()
        needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        if needed <= self._room:
            self._room -= needed
            self._kept[place] = model
            fold(model, images[..., :PROBE, :PROBE])
        return model

    def has(self, place: int) -> bool:
        """Return whether a member's model stays loaded."""
        return place in self._kept

    def normaliser(self, place: int) -> nn.Module:
        """Return the normalisation of a member."""
        return self._normalisers[place]
