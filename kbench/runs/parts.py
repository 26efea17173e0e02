"""From the YAML's names to parts: stages, model, images, views. Of the config objects only a `Stage` goes on from here.

Also where precomputed activations come from: which rows, how they are read, where they are kept. To let a YAML name one
more part, register its kind and build it here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kbench import files, registry
from kbench.config.competition import Competition
from kbench.config.stage import Stage
from kbench.console import bar
from kbench.data.dataset import Show, auto_workers
from kbench.data.images.cache import Images, Resize, RowPaths, open_images
from kbench.data.images.channels import by_date
from kbench.data.images.crops import preferring
from kbench.data.images.dropout import Dropout, dropout_of
from kbench.data.images.normalise import Scale, choose
from kbench.data.images.readers import remembering
from kbench.data.images.regions import RegionImages, measure_regions
from kbench.data.masks.cache import open_masks, sizes_of
from kbench.data.table.content import Content
from kbench.data.table.table import Table
from kbench.errors import ConfigError, nearest
from kbench.inference.activations import Activations, Seen, Source, activations
from kbench.inference.views import View
from kbench.inference.windows import Windows
from kbench.metrics.metric import Metric, make_metric
from kbench.models.checkpoint import load_pretrained, read_tensors
from kbench.models.classifier import backbone_statistics
from kbench.models.device import place
from kbench.models.outputs import Units, default_loss
from kbench.runs.experiment import Experiment, mask_kind, size_reader
from kbench.runs.steps import channels, decoding_of, fixed_channels, reader_key, reader_of
from kbench.tasks import SEGMENTATION
from kbench.training.losses.per_target import Loss
from kbench.training.stage_plan import StagePlan, crop_for_validation

Size = tuple[int, int]


def size_of(size: int | tuple[int, int]) -> Size:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def build_stages(competition: Competition) -> tuple[StagePlan, ...]:
    """Return the recipe of a competition's experiment."""
    return tuple(
        _stage(competition, name, index, stage) for index, (name, stage) in enumerate(competition.stages.items())
    )


def _stage(competition: Competition, name: str, index: int, stage: Stage) -> StagePlan:
    size = size_of(stage.size or competition.input.size)
    names = tuple(competition.data.classes or ())
    crop, wanted = stage.build("crop", _names=names), _looked_for(competition, stage)
    if wanted:
        crop = preferring(crop, wanted, len(names), stage.sampler.params.get("positive", 0.5))
    judged = crop_for_validation(
        competition.input.crop,
        crop,
        centre=registry.build("crop", "centre", {}),
        squash=registry.build("crop", "squash", {}),
    )
    return StagePlan(
        name=name, index=index, stage=stage,
        schedule=partial(stage.build, "schedule"),
        optimizer=partial(stage.build, "optimizer"),
        show=Show(size, crop, stage.build("augment"), _dropout(competition, stage)), valid_show=Show(size, judged),
        loss=partial(build_loss, stage, competition.task),
        mix=stage.build("mix") if stage.mix else None,
        sampler=partial(stage.build, "sampler"),
        step=stage.build("step"),
        monitor=_monitor(competition, stage),
        positive=wanted,
    )  # fmt: skip


def _dropout(competition: Competition, stage: Stage) -> Dropout | None:
    part = stage.axis_dropout
    return None if part is None else dropout_of(channels(competition.input), part.axis, part.p, part.each)


def _looked_for(competition: Competition, stage: Stage) -> tuple[int, ...]:
    """Return the numbers of the classes that a sampler of patches has the crop look for.

    Raises:
        ConfigError: there are no such classes, or the crop looks for some itself.
    """
    part = registry.get("sampler", stage.sampler.name)
    wanted, names = stage.sampler.params.get("classes") or [], list(competition.data.classes or ())
    if not part.meta.get("patches") or not wanted:
        return ()
    strange = [name for name in wanted if name not in names]
    if strange or competition.task not in SEGMENTATION:
        raise ConfigError(
            f"the sampler '{part.name}' is to show the class '{(strange or wanted)[0]}'",
            "names of data.classes of a segmentation",
            f"{nearest((strange or wanted)[0], names)} Correct `sampler.classes`, or write data.classes",
        )
    if stage.crop.params.get("classes"):
        raise ConfigError(
            f"the sampler '{part.name}' and the crop '{stage.crop.name}' both look for classes", "one of the two",
            "remove `classes` of one of them",
        )  # fmt: skip
    return tuple(names.index(name) for name in wanted)


def build_loss(stage: Stage, task: str, counts: np.ndarray | None, rows: int, units: Units | None = None) -> Loss:
    """Return the loss of a stage, that of the task where it names none.

    Args:
        stage: its settings.
        task: the competition's.
        counts: [K] positives per target among the rows, or None where there are no classes.
        rows: how many train.
        units: of a regression's targets, where they are learned standardised.
    """
    known: dict[str, Any] = {"_counts": counts, "_rows": rows, "_task": task, "_units": units}
    default = default_loss(task, 2 if counts is None else len(counts))
    loss: Loss = stage.build("loss", **known) if stage.loss else registry.build("loss", default, {}, **known)
    return loss


def _monitor(competition: Competition, stage: Stage) -> Metric | None:
    if stage.monitor == "loss":
        return None
    if stage.monitor is not None and stage.monitor != competition.metric.name:
        return make_metric(stage.monitor)
    return build_metric(competition)


def build_metric(competition: Competition) -> Metric:
    """Return the competition's metric."""
    return make_metric(competition.metric.name, competition.metric.params)


def build_views(competition: Competition) -> tuple[View, ...]:
    """Return the views of `tta`."""
    views: tuple[View, ...] = competition.build("tta")
    return views


def build_model(
    competition: Competition,
    n_outputs: int,
    *,
    device: torch.device,
    weights: Path | None,
    channels_last: bool,
    pretrained: bool = True,
) -> nn.Module:
    """Return the model on its device.

    Args:
        competition: says which.
        n_outputs: number of targets.
        device: where to.
        weights: file of pretrained weights of the backbone, or None.
        channels_last: memory format.
        pretrained: whether `model.pretrained` counts; a snapshot brings its own weights.
    """
    section = competition.model
    sizes = [size_of(stage.size or competition.input.size) for stage in competition.stages.values()]
    dates = by_date(channels(competition.input))
    model: nn.Module = section.build(
        "name", n_outputs, competition.input.channels,
        _backbone=section.backbone, _pretrained=section.pretrained and pretrained, _size=sizes[0],
        _several=len(set(sizes)) > 1, _task=competition.task,
        _dates=max(1, len(dates.keys() - {None})), _undated=len(dates.get(None, ())) if len(dates) > 1 else 0,
    )  # fmt: skip
    if weights is not None:
        load_pretrained(getattr(model, "body", model), read_tensors(weights), file=str(weights))
    return place(model, device, channels_last=channels_last)


def wants_channels_last(competition: Competition) -> bool:
    """Return the memory format: channels-last unless the first stage says otherwise."""
    setting = next(iter(competition.stages.values())).channels_last
    return True if setting == "auto" else bool(setting)


def _stamps(kind: str, name: str) -> list[str]:
    """Return what a part written in a plug-in is known by: pixels that it made are not those of another text."""
    return [stamp] if (stamp := registry.stamp(kind, name)) else []


def opened_images(competition: Competition, table: Table, cache: Path, *, what: str) -> Callable[[Resize], Images]:
    """Return a function from a resizing to the table's images; each is opened once.

    Args:
        competition: says how images are read.
        table: the rows.
        cache: the cache folder.
        what: name of the split, for the progress bar.
    """
    section = competition.input
    reader = remembering(reader_of(competition))
    key = [*reader_key(competition), *_stamps("reader", section.reader.name)]
    rows = RowPaths(table.root, table.images)
    part, opened = section.normalise, dict[Resize, Images]()
    regions = table.column(str(part.group)) if part.by == "region" else None

    def images(resize: Resize) -> Images:
        if resize not in opened:
            with bar(f"decoding {what} images") as advance:
                plain = open_images(
                    rows, reader=reader, reader_key=key, resize=resize, folder=cache, mode=competition.input.cache,
                    progress=advance,
                )  # fmt: skip
            opened[resize] = plain if regions is None else RegionImages(plain, regions.tolist())
        return opened[resize]

    return images


def content_of(competition: Competition, table: Table, cache: Path) -> str:
    """Return what tells the files of a table from others of the same names, those of masks included.

    It is their content, read once until a file is touched, but where `input.cache: off` says that they are too many for
    that: their sizes.
    """
    return Content(table, cache, exact=competition.input.cache != "off").fingerprint


def opened_masks(competition: Competition, table: Table, cache: Path, *, what: str) -> Callable[[Resize], Images]:
    """Return a function from a resizing to the table's masks; each is opened once.

    Args:
        competition: says how masks are written and images read.
        table: rows with masks.
        cache: the cache folder.
        what: name of the split, for the progress bar.
    """
    kind, section = mask_kind(competition, table.root), competition.input
    assert kind is not None, "rows have masks because the YAML says how they are written"
    assert competition.data.masks is not None, "as above"
    reader = size_reader(competition)
    masks_section = competition.data.masks
    later = [section.orientation] if section.orientation != "apply" else []
    key = [competition.task, masks_section.model_dump(), *_stamps("mask", masks_section.name), *later]
    sizes = sizes_of(table, reader, decoding_of(competition))
    opened: dict[Resize, Images] = {}

    def masks(resize: Resize) -> Images:
        if resize not in opened:
            with bar(f"decoding {what} masks") as advance:
                opened[resize] = open_masks(
                    table, kind=kind, kind_key=key, size_of=sizes, resize=resize, folder=cache,
                    mode=section.cache, progress=advance,
                )  # fmt: skip
        return opened[resize]

    return masks


def masks_of(competition: Competition, table: Table, cache: Path, *, what: str) -> Callable[[Resize], Images] | None:
    """Return `opened_masks` of rows that have masks, else None."""
    return None if table.masks is None else opened_masks(competition, table, cache, what=what)


def build_windows(competition: Competition) -> Windows | None:
    """Return what the network sees of whole images at once; None where the targets are no masks."""
    if competition.data.masks is None:
        return None
    windows: Windows = competition.build("maps.windows", _task=competition.task)
    return windows


def build_scale(
    competition: Competition, tests: Callable[[], tuple[RegionImages, np.ndarray]] | None = None
) -> Callable[[Images, np.ndarray], Scale]:
    """Return the function that chooses the normalisation of a fold.

    Args:
        competition: says how.
        tests: images of the test set and their rows, which count in the statistics of regions where the YAML says so.
    """
    backbone, section = backbone_statistics(competition.model.backbone), competition.input
    fixed = fixed_channels(competition.input)
    if section.normalise.of_each_image:
        fixed = [one or (0.0, 1.0) for one in fixed]

    def scale(images: Images, rows: np.ndarray) -> Scale:
        whole = choose(
            images, rows, mean=section.mean, std=section.std, backbone=backbone, fixed=fixed,
            masked=section.reader.name == "raster",
        )  # fmt: skip
        if section.normalise.by != "region":
            return whole
        assert isinstance(images, RegionImages), "opened with their regions"
        counted = [(images, rows), *([tests()] if tests is not None and section.normalise.region.test else [])]
        regions = measure_regions(counted, factor=whole.scale, rest=(whole.mean, whole.std))
        for number in (number for number, one in enumerate(fixed) if one is not None):
            for means, stds in regions.values():
                means[number], stds[number] = whole.mean[number], whole.std[number]
        return replace(whole, regions=regions)

    return scale


def test_tiles(experiment: Experiment) -> Callable[[], tuple[RegionImages, np.ndarray]] | None:
    """Return a function that gives the images of the test set, and which can be read; None where they do not count."""
    if not experiment.competition.input.normalise.region.test:
        return None

    def tiles() -> tuple[RegionImages, np.ndarray]:
        table = experiment.test
        images = opened_images(experiment.competition, table, experiment.workspace.cache(), what="test")
        shown = images(Resize("keep", 0, 0))
        assert isinstance(shown, RegionImages), "opened with their regions"
        gone = np.zeros(len(table), dtype=bool) if table.unreadable is None else table.unreadable
        return shown, np.flatnonzero(~gone)

    return tiles


def activations_of(
    competition: Competition,
    table: Table,
    cache: Path,
    images: Callable[[Resize], Images],
    *,
    device: torch.device,
    plugins: Sequence[Path],
) -> Callable[[nn.Module, Seen], Activations]:
    """Return a function from a model and how its body sees images to its features of all rows of a table.

    Args:
        competition: says how images are read.
        table: the rows.
        cache: the cache folder.
        images: from `opened_images`.
        device: where the body runs.
        plugins: files whose content is part of what a body is.
    """

    def made(model: nn.Module, seen: Seen) -> Activations:
        with bar("activations") as advance:
            source = Source(
                ids=table.ids, rows=RowPaths(table.root, table.images), images=images, folder=cache, device=device,
                reader=[*reader_key(competition), [files.sha256(path) for path in plugins]],
                batch_size=competition.loader.valid_batch_size or 64,
                workers=auto_workers(competition.loader.workers, device=device.type), progress=advance,
            )  # fmt: skip
            return activations(source, model, seen)

    return made
