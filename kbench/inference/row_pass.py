"""Predict rows with many models at once: every image is decoded once, whatever the number of models and views.

One pass over the images serves every fold, snapshot and view that fits in memory; more models make more passes.
Members that share a frozen body run it once per view, and only their heads apart; what is known of the plain view from
precomputed activations is not computed again.
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
from kbench.data.dataset import Draw, ImageDataset, Loader, Normalise, Show, cut
from kbench.data.images.augment import NO_AUGMENTATION, Augmentation
from kbench.data.images.cache import Images, Resize
from kbench.data.images.crops import Crop, Size
from kbench.inference.activations import features
from kbench.inference.clock import Clock, timing
from kbench.inference.mean import Mean
from kbench.inference.predictions import Predictions, array_path, create_array, save
from kbench.inference.views import Load, View, is_plain, window_of
from kbench.models.batchnorm_folding import fold
from kbench.models.device import Precision, autocast, free_memory, in_parts
from kbench.models.outputs import Units, probabilities


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
        body: digest of the frozen body it shares with others; empty for a model of its own.
        head: takes a loaded model of the same body and returns this member's head, [B, D] -> [B, K], in eval mode.
        precomputed: (loaded model) -> [N, D] features of the rows of the images' table, for the plain view; None
            where the body always runs.
        judged: the crop its images were judged by, where they are kept at their own resolution.
        units: of a regression's targets, where it answers in standardised ones.
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
    body: str = ""
    head: Callable[[nn.Module], nn.Module] | None = None
    precomputed: Callable[[nn.Module], np.ndarray] | None = None
    judged: Crop | None = None
    units: Units | None = None

    def predictions(self, logits: torch.Tensor, task: str) -> torch.Tensor:
        """Return float32 probabilities [B, K, ...], or target units, of logits."""
        values = probabilities(logits, task)
        return values if self.units is None else self.units.restored(values)

    @property
    def family(self) -> tuple[Any, ...]:
        """What members have in common that run one body."""
        if not self.body:
            return (id(self),)
        return (self.body, self.precision, tuple(map(str, self.scale.items())))


@dataclass
class Family:
    """Members that run one body, and their heads; a model that shares nothing is a family of one.

    Attributes:
        model: the first member's, loaded.
        members: of the family.
        heads: of the members; empty for a model that is not split.
        known: [N, D] features of the plain view, where a member has them precomputed.
    """

    model: nn.Module
    members: list[Member]
    heads: list[nn.Module]
    known: np.ndarray | None = None

    def knows_all(self) -> bool:
        """Return whether no member needs the body for the plain view."""
        return self.known is not None and all(member.precomputed for member in self.members)


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
        apart: keep the views of tasks that predict rows apart: a member's values are then [N, K, views].
        clock: told how long each body takes.
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
    apart: bool = False
    clock: Clock | None = None


def predict_members(job: Job, members: Sequence[Member]) -> Iterator[int]:
    """Predict a job's rows with every member and seal each member's predictions.

    Yields:
        Rows done so far in this pass; every pass goes over all rows of the job.
    """
    for group in grouped(members, drawn=any(view.load.draw is not None for view in job.views)):
        waiting = list(group)
        while waiting:
            with timing(job.clock, (), job.device):
                families, waiting = _load_some(waiting, job.device)
            yield from accumulate(_one_pass(job, families))
            for member in (member for family in families for member in family.members):
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
        key = (member.size, member.resize, member.judged and member.judged.name, *training)
        groups.setdefault(key, []).append(member)
    return list(groups.values())


def _load_some(members: list[Member], device: torch.device) -> tuple[list[Family], list[Member]]:
    """Load as many models as half of the free memory holds, at least one."""
    families: dict[tuple[Any, ...], Family] = {}
    room = free_memory(device) / 2
    for position, member in enumerate(members):
        family = families.get(member.family)
        if family is None:
            model = member.load()
            room -= _bytes(model)
            families[member.family] = Family(model, [member], [getattr(model, "head")] if member.body else [])  # noqa: B009
        else:
            assert member.head is not None, "a member that shares a body brings its head"
            family.members.append(member)
            family.heads.append(member.head(family.model))
            room -= _bytes(family.heads[-1])
        if room <= 0:
            return _with_known(families), members[position + 1 :]
    return _with_known(families), []


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _with_known(families: dict[tuple[Any, ...], Family]) -> list[Family]:
    for family in families.values():
        family.known = next((member.precomputed(family.model) for member in family.members if member.precomputed), None)
    return list(families.values())


def _one_pass(job: Job, families: list[Family]) -> Iterator[int]:
    """Predict all rows with some families; what they know of the plain view is looked up."""
    first = families[0].members[0]
    loads = list(dict.fromkeys(view.load for view in job.views))
    normalisers = [Normalise(**family.members[0].scale).to(job.device) for family in families]
    arrays: dict[int, np.ndarray] = {}
    start = 0
    for rows, images, regions in _batches(job, first, loads, families):
        tensors = [part.to(job.device, non_blocking=True) for part in images]
        for family, normalise in zip(families, normalisers, strict=True):
            if start == 0 and tensors:
                with timing(job.clock, (), job.device):
                    fold(family.model, normalise(tensors[0], regions))
            with timing(job.clock, [member.source.get("weights", "") for member in family.members], job.device):
                batch = [normalise(part, regions) for part in tensors]
                if family.known is not None:
                    batch.append(torch.from_numpy(np.array(family.known[rows])).to(job.device))
                answer = partial(_views_apart if job.apart else _mean_over_views, job, family, loads if tensors else [])
                values = in_parts(answer, batch).cpu().numpy()
            for position, member in enumerate(family.members):
                array = arrays.get(id(member))
                if array is None:
                    files.remove(member.out)  # what lies there counts no longer, even if this is not finished
                    shape = (len(job.ids), *values.shape[2:])
                    array = arrays[id(member)] = create_array(array_path(member.out), shape)
                array[start : start + len(values)] = values[:, position]
        start += len(rows)
        yield len(rows)
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()


def _batches(
    job: Job, first: Member, loads: list[Load], families: list[Family]
) -> Iterator[tuple[np.ndarray, tuple[torch.Tensor, ...], tuple[str, ...]]]:
    """Yield rows, their images, one tensor per load, and their regions.

    There is no image where everything is known of the only view.
    """
    plan = cut(len(job.rows), job.batch_size, lambda place: _draw(job, int(job.rows[place])))
    if all(is_plain(view) for view in job.views) and all(family.knows_all() for family in families):
        for draws in plan:
            yield np.array([draw.row for draw in draws]), (), ()
        return
    sources, shows = zip(*(_way(job, first, load) for load in loads), strict=True)
    dataset = ImageDataset(sources, shows, None, scale=first.scale)
    loader = Loader(dataset, workers=job.workers, pin=job.device.type == "cuda")
    for batch in loader(plan):
        yield batch.rows.numpy(), batch.images, batch.regions


def _draw(job: Job, row: int) -> Draw:
    return Draw(row, (seeds.VIEW, job.seed, row))


@torch.inference_mode()
def _mean_over_views(job: Job, family: Family, loads: list[Load], batch: list[torch.Tensor]) -> torch.Tensor:
    """Return [B, members, K, ...] predictions; each member's are computed apart, as if it were alone.

    Args:
        job: the views.
        family: the members.
        loads: what the first tensors of the batch are.
        batch: normalised images, one tensor per load, then the known features of the plain view.
    """
    totals: list[torch.Tensor | None] = [None] * len(family.members)
    weight = sum(view.weight for view in job.views)
    for view, members in zip(job.views, _views(job, family, loads, batch), strict=True):
        for position, values in enumerate(members):
            totals[position] = job.mean.add(totals[position], values, view.weight / weight)
    return torch.stack([job.mean.back(total) for total in totals], 1)


@torch.inference_mode()
def _views_apart(job: Job, family: Family, loads: list[Load], batch: list[torch.Tensor]) -> torch.Tensor:
    """Return [B, members, K, views] predictions, for what `_mean_over_views` is given."""
    return torch.stack([torch.stack(members, 1) for members in _views(job, family, loads, batch)], -1)


def _views(job: Job, family: Family, loads: list[Load], batch: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield each view's [B, K] probabilities or target units, one tensor per member."""
    images, known = batch[: len(loads)], batch[-1] if family.known is not None else None
    for view in job.views:
        shown = view.forward(images[loads.index(view.load)]) if images else None
        answers = _logits(job, family, shown, known if is_plain(view) else None)
        yield [one.predictions(logits, job.task) for one, logits in zip(family.members, answers, strict=True)]


def _logits(job: Job, family: Family, shown: torch.Tensor | None, known: torch.Tensor | None) -> list[torch.Tensor]:
    """Return each member's logits [B, K, ...] of one view; the body runs once, and only where somebody needs it."""
    precision = family.members[0].precision
    if not family.heads:
        assert shown is not None, "a model that knows nothing is shown the image"
        with autocast(job.device, precision):
            return [family.model(shown)]
    looked_up = [known is not None and member.precomputed is not None for member in family.members]
    live = shown if all(looked_up) else features(family.model, torch.as_tensor(shown), job.device, precision)
    return [head(known if there else live) for head, there in zip(family.heads, looked_up, strict=True)]


def _way(job: Job, member: Member, load: Load) -> tuple[Images, Show]:
    """Return the images and the way of showing of one load."""
    size = (round(member.size[0] * load.scale), round(member.size[1] * load.scale))
    if load.draw is not None:
        crop = member.train_crop
        augmentation = member.augmentation
    else:
        crop, augmentation = Crop(member.resize, window_of(load, member.judged, member.size)), NO_AUGMENTATION
    whole = (round(size[0] * load.margin), round(size[1] * load.margin))
    resize = Resize(crop.resize, *(whole if crop.resize != "keep" else (0, 0)))
    return job.images(resize), Show(size, crop, augmentation)


def _opened(job: Job, member: Member) -> Predictions:
    values = np.load(array_path(member.out), mmap_mode="r", allow_pickle=False)
    return Predictions(job.ids, job.names, values, job.task, member.source)
