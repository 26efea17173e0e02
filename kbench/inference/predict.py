"""Predict rows with many models at once: every image is decoded once, whatever the number of models and views.

One pass over the images serves every fold, snapshot and view that fits in memory; more models make more passes.
Each member's predictions go straight to its memory-mapped array, so memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from kbench import files
from kbench.data import seeds
from kbench.data.augment import NO_AUGMENTATION, Augmentation
from kbench.data.cache import Images, Resize
from kbench.data.crops import Crop, Size, Window, centred
from kbench.data.dataset import Draw, ImageDataset, Loader, Normalise, Show, cut
from kbench.errors import PredictionError
from kbench.inference.predictions import Predictions, array_path, create_array, save
from kbench.inference.views import Load, View
from kbench.models.memory import free_memory, in_parts
from kbench.models.outputs import probabilities
from kbench.models.precision import Precision, autocast

_SMALLEST = 1e-12  # probabilities are clipped here before a logarithm
Mean = Literal["arithmetic", "geometric"]


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, not loaded yet.

    Attributes:
        name: `fold/stage-cycle`, for messages.
        load: returns the model on its device, in eval mode.
        size: height and width it was trained at.
        resize: how its images are resized: `cover`, `exact` or `keep`.
        scale: `scale`, `mean` and `std` of its normalisation.
        precision: of the forward pass.
        out: JSON of its predictions.
        source: what the JSON says about where they come from.
        augmentation: of its training, for random views.
        train_crop: of its training, for random views.
    """

    name: str
    load: Callable[[], nn.Module]
    size: Size
    resize: Literal["cover", "exact", "keep"]
    scale: dict[str, Any]
    precision: Precision
    out: Path
    source: dict[str, Any]
    augmentation: Augmentation
    train_crop: Crop


@dataclass(frozen=True)
class Job:
    """What is predicted.

    Attributes:
        ids: [N] text.
        rows: [N] rows of the images' table, in the order of `ids`.
        images: resizing -> images.
        names: K target names.
        task: the competition's task.
        views: test-time augmentation.
        mean: of the views.
        device: where the models run.
        batch_size: images per batch.
        workers: loader processes.
        seed: of random views.
    """

    ids: np.ndarray
    rows: np.ndarray
    images: Callable[[Resize], Images]
    names: tuple[str, ...]
    task: str
    views: Sequence[View]
    mean: Mean
    device: torch.device
    batch_size: int
    workers: int = 0
    seed: int = 0


def predict(job: Job, members: Sequence[Member]) -> Iterator[int]:
    """Predict a job's rows with every member and seal each member's predictions.

    Yields:
        Rows done so far in this pass; every pass goes over all rows of the job.

    Raises:
        PredictionError: a geometric mean of a regression is asked for.
    """
    if job.mean == "geometric" and "regression" in job.task:
        raise PredictionError(
            "the geometric mean of a regression", "probabilities", "set ensemble.mean: arithmetic in the YAML"
        )
    for group in grouped(members, drawn=any(view.load.draw is not None for view in job.views)):
        waiting = list(group)
        while waiting:
            loaded, waiting = _load_some(waiting, job.device)
            yield from accumulate(_one_pass(job, loaded))
            for member, _ in loaded:
                save(member.out, _opened(job, member))


def grouped(members: Sequence[Member], *, drawn: bool) -> list[list[Member]]:
    """Return the members that see the same images, together.

    Args:
        members: of any sizes.
        drawn: whether a view draws from the augmentation of their training, which must then be the same.
    """
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        training = (id(member.augmentation), id(member.train_crop)) if drawn else ()
        key = (member.size, member.resize, *training)
        groups.setdefault(key, []).append(member)
    return list(groups.values())


def _load_some(members: list[Member], device: torch.device) -> tuple[list[tuple[Member, nn.Module]], list[Member]]:
    """Load as many models as half of the free memory holds, at least one."""
    loaded: list[tuple[Member, nn.Module]] = []
    room = free_memory(device) / 2
    for position, member in enumerate(members):
        model = member.load()
        loaded.append((member, model))
        room -= sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        if room <= 0:
            return loaded, members[position + 1 :]
    return loaded, []


def _one_pass(job: Job, loaded: list[tuple[Member, nn.Module]]) -> Iterator[int]:
    first = loaded[0][0]
    loads = list(dict.fromkeys(view.load for view in job.views))
    sources, shows = zip(*(_way(job, first, load) for load in loads), strict=True)
    loader = Loader(ImageDataset(sources, shows, None), workers=job.workers, pin=job.device.type == "cuda")
    plan = cut(len(job.rows), job.batch_size, lambda place: _draw(job, int(job.rows[place])))
    normalisers = [Normalise(**member.scale).to(job.device) for member, _ in loaded]
    arrays: list[np.ndarray | None] = [None] * len(loaded)
    start = 0
    for batch in loader(plan):
        tensors = [images.to(job.device, non_blocking=True) for images in batch.images]
        for position, (member, model) in enumerate(loaded):
            normalised = [normalisers[position](images) for images in tensors]
            mean = partial(_mean_over_views, job, model, loads, member.precision)
            values = in_parts(mean, normalised).cpu().numpy()
            array = arrays[position]
            if array is None:
                files.remove(member.out)  # what lies there counts no longer, even if this is not finished
                array = arrays[position] = create_array(array_path(member.out), (len(job.ids), *values.shape[1:]))
            array[start : start + len(values)] = values
        start += len(batch.rows)
        yield len(batch.rows)
    for array in arrays:
        if isinstance(array, np.memmap):
            array.flush()


def _draw(job: Job, row: int) -> Draw:
    return Draw(row, (seeds.VIEW, job.seed, row))


@torch.inference_mode()
def _mean_over_views(
    job: Job, model: nn.Module, loads: list[Load], precision: Precision, images: list[torch.Tensor]
) -> torch.Tensor:
    total: torch.Tensor | None = None
    weight = sum(view.weight for view in job.views)
    for view in job.views:
        shown = view.forward(images[loads.index(view.load)])
        with autocast(job.device, precision):
            logits = model(shown)
        values = probabilities(logits, job.task)
        if values.ndim == 4:
            values = view.inverse(values)
            if total is not None and values.shape != total.shape:  # another scale
                values = nn.functional.interpolate(values, total.shape[-2:], mode="bilinear", align_corners=False)
        if job.mean == "geometric":
            values = values.clamp_min(_SMALLEST).log()
        part = values * (view.weight / weight)
        total = part if total is None else total + part
    assert total is not None, "a set of views is not empty"
    if job.mean == "geometric":
        total = total.exp()
        if job.task in ("single_label", "segmentation"):
            total = total / total.sum(1, keepdim=True)
    return total


def _way(job: Job, member: Member, load: Load) -> tuple[Images, Show]:
    """Return the images and the way of showing of one load."""
    size = (round(member.size[0] * load.scale), round(member.size[1] * load.scale))
    if load.draw is not None:
        crop = member.train_crop
        augmentation = member.augmentation
    else:
        crop, augmentation = Crop(member.resize, corner_window(load)), NO_AUGMENTATION
    whole = (round(size[0] * load.margin), round(size[1] * load.margin))
    resize = Resize(crop.resize, *(whole if crop.resize != "keep" else (0, 0)))
    return job.images(resize), Show(size, crop, augmentation)


def corner_window(load: Load) -> Callable[[Size, Size, np.random.Generator], Window]:
    """Return the function that picks the load's window of an image."""

    def window(image: Size, size: Size, rng: np.random.Generator) -> Window:
        if load.corner == "centre":
            return centred(image, size)
        vertical, horizontal = load.corner.split("_")
        top = 0 if vertical == "top" else image[0] - size[0]
        left = 0 if horizontal == "left" else image[1] - size[1]
        return Window(top, left, *size)

    return window


def _opened(job: Job, member: Member) -> Predictions:
    values = np.load(array_path(member.out), mmap_mode="r", allow_pickle=False)
    return Predictions(job.ids, job.names, values, job.task, member.source)
