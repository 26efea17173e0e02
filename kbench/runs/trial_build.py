"""Build every part of an experiment once, so that a value out of range is found before anything trains.

Names, types and parameters are held against the registry where the YAML is read; what only the part itself can judge
(a range, a combination, a number of weights) shows here. Every part of the YAML is tried: `Section.slots` finds them. A
part that kbench gives more than its parameters, or that is judged elsewhere, has a row in `_TRIALS`; what depends on
the model beside that is in `_model_trials`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch

from kbench import registry
from kbench.config.competition import Competition
from kbench.config.section import Slot
from kbench.config.stage import Stage
from kbench.data.table.table import Table
from kbench.ensemble.mask_tuning import neutral
from kbench.errors import ConfigError, DataError, KbenchError, Problem, as_problems, first_names
from kbench.metrics.metric import make_metric
from kbench.models.classifier import check_backbone
from kbench.models.layer_groups import check_split, chosen, layer_groups
from kbench.runs import parts
from kbench.runs.steps import reader_of
from kbench.tasks import SEGMENTATION, exclusive, is_dense
from kbench.training.lone_image import lone_image
from kbench.training.optimizers import apply_schedule, per_group

Trial = tuple[str, Callable[[], Any]]
_FEW = 1000  # rows a metric is tried on


def part_problems(competition: Competition, table: Table | None) -> list[Problem]:
    """Return what is wrong with the parts of an experiment.

    Args:
        competition: the validated YAML.
        table: the training table; without it, what depends on the number of targets is tried on two.
    """
    problems: list[Problem] = []
    for where, build in _trials(Sample(competition, table)):
        try:
            build()
        except KbenchError as error:
            problems += as_problems(where, error)
        except Exception as error:  # a part of a plug-in can fail in any way
            problems.append(Problem(where, f"fails: {type(error).__name__}: {error}"))
    return list(dict.fromkeys(problems))


@dataclass(frozen=True)
class Sample:
    """What parts are tried with.

    Attributes:
        competition: the validated YAML.
        table: the training table, or None.
    """

    competition: Competition
    table: Table | None

    @property
    def task(self) -> str:
        """The competition's task."""
        return self.competition.task

    @property
    def outputs(self) -> int:
        """Number of targets."""
        return 2 if self.table is None else len(self.table.target_names)

    @property
    def rows(self) -> int:
        """Number of rows that have targets."""
        return 2 if self.targets is None else len(self.targets)

    @cached_property
    def targets(self) -> np.ndarray | None:
        """The table's; else two rows, one per class or tag, or None for tasks whose targets are numbers or images."""
        if self.table is not None and self.table.targets is not None:
            return self.table.targets
        if self.task == "single_label":
            return np.array([0, 1])
        return np.eye(2, dtype=np.float32) if self.task == "multi_label" else None

    def model(self) -> torch.nn.Module:
        """Return the network, with weights from torch's seed."""
        return parts.build_model(
            self.competition, self.outputs, device=torch.device("cpu"), weights=None, channels_last=False,
            pretrained=False,
        )  # fmt: skip


def _trials(sample: Sample) -> Iterator[Trial]:
    yield from _model_trials(sample)
    for slot in sample.competition.slots():
        yield slot.where, partial(_TRIALS.get(slot.kind, _plain), slot, sample)
    for name, stage in sample.competition.stages.items():
        if stage.loss is None:
            yield f"stages.{name}.loss", partial(_try_loss_of, stage, sample)


def _model_trials(sample: Sample) -> Iterator[Trial]:
    """Yield what depends on the model; it is built where something does."""
    competition = sample.competition
    if registry.get("model", competition.model.name).meta.get("backbone") == "timm":
        yield "model.backbone", lambda: _check_backbone(competition.model.backbone)
    if any(stage.precompute for stage in competition.stages.values()):
        yield "model", lambda: check_split(sample.model())
    groups = cache(lambda: len(layer_groups(sample.model())))
    for name, stage in competition.stages.items():
        for key in ("lr", "weight_decay"):
            if isinstance(rates := getattr(stage, key), list):
                yield (
                    f"stages.{name}.{key}",
                    partial(lambda key, rates: per_group(rates, groups(), what=key), key, rates),
                )
        if stage.batch_size == 1:
            yield f"stages.{name}.batch_size", partial(_try_lone_image, stage, sample)
        if not isinstance(stage.groups, str):
            yield f"stages.{name}.groups", partial(lambda stage: chosen(stage.groups, groups()), stage)


def _plain(slot: Slot, sample: Sample) -> None:
    """Build a part that needs no more than its parameters."""
    parameters = inspect.signature(registry.get(slot.kind, slot.name).function).parameters.values()
    if all(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in parameters):
        slot.build()


def _elsewhere(slot: Slot, sample: Sample) -> None:
    """Leave a part to what reads the data with it, or to `_model_trials`."""


def _check_backbone(name: str) -> None:
    if problem := check_backbone(name):
        raise ConfigError(problem, "a model of timm", "correct it")


def _try_format(slot: Slot, sample: Sample) -> None:
    if sample.table is not None:
        slot.build(_names=sample.table.target_names, _task=sample.task)


def _try_optimizer(slot: Slot, sample: Sample) -> None:
    layers = [[("weight", torch.nn.Parameter(torch.zeros(1)))]]
    optimizer = slot.build(layers, [1e-3], [0.0])
    try:
        schedule = slot.section.build("schedule", 1)
    except KbenchError:
        return  # said under `schedule`
    apply_schedule(optimizer, schedule, 0)


def _try_loss(slot: Slot, sample: Sample) -> None:
    assert isinstance(slot.section, Stage), "only a stage has a loss"
    _try_loss_of(slot.section, sample)


def _try_loss_of(stage: Stage, sample: Sample) -> None:
    outputs, targets = sample.outputs, sample.targets
    single = targets is not None and targets.ndim == 1
    counts = None if "regression" in sample.task else np.ones(outputs)
    loss = parts.build_loss(stage, sample.task, counts, outputs)
    if is_dense(sample.task):
        shape = (2, 4, 4) if exclusive(sample.task, outputs) else (2, outputs, 4, 4)
        target = torch.zeros(shape, dtype=torch.int64 if len(shape) == 3 else torch.float32)
        loss(torch.zeros(2, outputs, 4, 4), target)
    elif targets is not None and (single or targets.shape[1] == outputs):
        loss(torch.zeros(2, outputs), torch.as_tensor(np.asarray(targets[:2])))


def _try_reader(slot: Slot, sample: Sample) -> None:
    reader_of(sample.competition)


def _try_lone_image(stage: Stage, sample: Sample) -> None:
    """Refuse batches of one image where batch norm would see one value per channel: it could learn no statistics."""
    size, model = parts.size_of(stage.size or sample.competition.input.size), sample.model().train()
    images = torch.zeros(1, sample.competition.input.channels, *size)
    with torch.no_grad(), lone_image(model, images) as names:
        model(images)
    norms = [name for name in names if stage.groups != "head" or name.startswith("head.")]
    if norms:
        raise ConfigError(
            f"1 image per batch, and batch norm sees one value per channel, which has no spread: {first_names(norms)}",
            "2 images or more per batch, or a head without batch norm",
            "write `batch_size: 2` (`train.batch_size`, or the stage's own), or `model: {options: {head: linear}}`",
        )


def _try_windows(slot: Slot, sample: Sample) -> None:
    parts.build_windows(sample.competition)


def _try_postprocess(slot: Slot, sample: Sample) -> None:
    names = sample.competition.data.classes if sample.table is None else sample.table.target_names
    if is_dense(sample.task) and names is not None:  # else it is not known yet whether its classes are there
        grid = {key: value for key, value in slot.params.items() if key == "grid"}
        params = {**neutral(slot.params), **grid}
        registry.build(slot.kind, slot.name, params, _names=tuple(names), _task=sample.task)


def _try_metric(slot: Slot, sample: Sample) -> None:
    metric, table = make_metric(slot.name, slot.params), sample.table
    if table is not None and sample.task in SEGMENTATION:
        few = table.select(np.arange(min(2, len(table))))
        counts = np.ones((len(few), len(table.target_names), 3))
        metric(counts[..., 0] + counts[..., 2], counts, few)
        return
    if table is None or table.targets is None:
        return
    few = table.select(np.unique(np.linspace(0, len(table) - 1, min(_FEW, len(table))).astype(int)))
    outputs = len(table.target_names)
    try:
        metric(few.targets, np.full((len(few), outputs), 1 / outputs, dtype=np.float32), few)
    except DataError:
        return  # a few rows may lack a class; the score of all rows says so


_TRIALS: dict[str, Callable[[Slot, Sample], None]] = {
    "source": _elsewhere,
    "layout": _elsewhere,
    "mask": _elsewhere,
    "fold strategy": _elsewhere,
    "model": _elsewhere,
    "metric": _try_metric,
    "format": _try_format,
    "windows": _try_windows,
    "postprocess": _try_postprocess,
    "reader": _try_reader,
    "schedule": lambda slot, sample: slot.build(1),
    "optimizer": _try_optimizer,
    "loss": _try_loss,
    "crop": lambda slot, sample: slot.build(_names=sample.competition.data.classes or ()),
    "sampler": lambda slot, sample: slot.build(sample.targets, sample.rows)(np.random.default_rng(0)),
}
"""How a part of a kind is tried; one of any other kind is built with its parameters."""
