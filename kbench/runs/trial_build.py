"""Build every part of an experiment once, so that a value out of range is found before anything trains.

Names, types and parameters are checked by `config/rules.py` without building; what only the part itself can judge (a
range, a combination, a number of weights) shows here. To check one more key of a stage, add a row to
`_stage_trials`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from kbench import registry
from kbench.config.competition import Competition, Component, Stage
from kbench.data.table.table import Table
from kbench.ensemble.mask_tuning import neutral
from kbench.errors import ConfigError, DataError, KbenchError, Problem, as_problems
from kbench.models.classifier import check_backbone
from kbench.models.layer_groups import check_split, chosen, layer_groups
from kbench.models.outputs import default_loss
from kbench.runs import parts
from kbench.tasks import SEGMENTATION, exclusive, is_dense
from kbench.training.optimizers import apply_schedule, per_group

Trial = tuple[str, Callable[[], Any]]
_FEW = 1000  # rows a metric is tried on


def part_problems(competition: Competition, table: Table | None) -> list[Problem]:
    """Return what is wrong with the parts of an experiment.

    Args:
        competition: the validated YAML.
        table: the training table; without it, what depends on the number of targets is tried on two.
    """
    found: list[Problem] = []
    for where, build in _trials(competition, table):
        try:
            build()
        except KbenchError as error:
            found += as_problems(where, error)
        except Exception as error:  # a part of a plug-in can fail in any way
            found.append(Problem(where, f"fails: {type(error).__name__}: {error}"))
    return list(dict.fromkeys(found))


def _trials(competition: Competition, table: Table | None) -> Iterator[Trial]:
    if registry.get("model", competition.model.name).meta.get("backbone") == "timm":
        yield "model.backbone", lambda: _check_backbone(competition.model.backbone)
    if any(stage.precompute for stage in competition.stages.values()):
        yield "model", lambda: _check_split(competition, 2 if table is None else len(table.target_names))
    yield "tta", lambda: parts.build_views(competition)
    yield "metric", lambda: _try_metric(competition, table)
    yield "ensemble.combine", lambda: _try_combiner(competition)
    if competition.ensemble.decision is not None:
        yield "ensemble.decision", lambda: _part("decision", competition.ensemble.decision)
    if is_dense(competition.task):
        yield "maps.windows", lambda: parts.build_windows(competition)
        yield "maps.postprocess", lambda: _try_postprocess(competition, table)
    if table is not None:
        component = competition.submission.format
        yield "submission.format", lambda: _part("format", component, _names=table.target_names, _task=competition.task)
    targets = _targets(competition.task) if table is None or table.targets is None else table.targets
    outputs = 2 if table is None else len(table.target_names)
    groups = cache(lambda: len(layer_groups(_model(competition, outputs))))
    for name, stage in competition.stages.items():
        for key, trial in (*_group_trials(stage, groups), *_stage_trials(competition, stage, targets, outputs)):
            yield f"stages.{name}.{key}", trial


def _stage_trials(competition: Competition, stage: Stage, targets: np.ndarray | None, outputs: int) -> Iterator[Trial]:
    rows = 2 if targets is None else len(targets)
    yield "schedule", lambda: _part("schedule", stage.schedule, 1)
    yield "optimizer", lambda: _try_optimizer(stage)
    yield "loss", lambda: _try_loss(competition, stage, targets, outputs)
    yield "augment", lambda: _part("augmentation", stage.augment)
    yield "crop", lambda: _part("crop", stage.crop, _names=competition.data.classes or ())
    yield "sampler", lambda: _part("sampler", stage.sampler, targets, rows)(np.random.default_rng(0))
    yield "step", lambda: _part("step", stage.step)
    if stage.mix is not None:
        yield "mix", lambda: _part("mix", stage.mix)


def _group_trials(stage: Stage, groups: Callable[[], int]) -> Iterator[Trial]:
    """Yield what depends on the number of layer groups; the model is built where something does."""
    for key in ("lr", "weight_decay"):
        if isinstance(given := getattr(stage, key), list):
            yield key, partial(lambda key, given: per_group(given, groups(), what=key), key, given)
    if not isinstance(stage.groups, str):
        yield "groups", lambda: chosen(stage.groups, groups())


def _part(kind: str, component: Component | None, *given: Any, **injected: Any) -> Any:
    assert component is not None, "asked only for parts that are there"
    return registry.build(kind, component.name, component.params, *given, **injected)


def _try_combiner(competition: Competition) -> None:
    made = _part("combiner", competition.ensemble.combine)
    if is_dense(competition.task) and (made.fitted or made.ranks):
        raise ConfigError(
            f"the combiner '{competition.ensemble.combine.name}' weighs members, and the maps of the task "
            f"'{competition.task}' are never all in memory",
            "the combiner `mean`", "write `combine: mean`; `kbench ensemble --weight` gives each run a weight",
        )  # fmt: skip


def _check_backbone(name: str) -> None:
    if problem := check_backbone(name):
        raise ConfigError(problem, "a model of timm", "correct it")


def _check_split(competition: Competition, outputs: int) -> None:
    check_split(_model(competition, outputs))


def _model(competition: Competition, outputs: int) -> torch.nn.Module:
    cpu = torch.device("cpu")
    return parts.build_model(competition, outputs, device=cpu, weights=None, channels_last=False, pretrained=False)


def _targets(task: str) -> np.ndarray | None:
    """Return targets of two rows, one per class or tag; None for tasks whose targets are numbers or images."""
    if task == "single_label":
        return np.array([0, 1])
    return np.eye(2, dtype=np.float32) if task == "multi_label" else None


def _try_optimizer(stage: Stage) -> None:
    layers = [[("weight", torch.nn.Parameter(torch.zeros(1)))]]
    optimizer = _part("optimizer", stage.optimizer, layers, [1e-3], [0.0])
    try:
        schedule = _part("schedule", stage.schedule, 1)
    except KbenchError:
        return  # said under `schedule`
    apply_schedule(optimizer, schedule, 0)


def _try_loss(competition: Competition, stage: Stage, targets: np.ndarray | None, outputs: int) -> None:
    component = stage.loss or Component(name=default_loss(competition.task, outputs))
    single = targets is not None and targets.ndim == 1
    counts = None if "regression" in competition.task else np.ones(outputs)
    loss = _part("loss", component, _counts=counts, _rows=outputs, _task=competition.task)
    if is_dense(competition.task):
        shape = (2, 4, 4) if exclusive(competition.task, outputs) else (2, outputs, 4, 4)
        target = torch.zeros(shape, dtype=torch.int64 if len(shape) == 3 else torch.float32)
        loss(torch.zeros(2, outputs, 4, 4), target)
    elif targets is not None and (single or targets.shape[1] == outputs):
        loss(torch.zeros(2, outputs), torch.as_tensor(np.asarray(targets[:2])))


def _try_postprocess(competition: Competition, table: Table | None) -> None:
    component = competition.maps.postprocess
    names = competition.data.classes if table is None else table.target_names
    if names is not None:  # else it is not known yet whether its classes are there
        grid = {key: value for key, value in component.params.items() if key == "grid"}
        params = {**neutral(component.params), **grid}
        registry.build("postprocess", component.name, params, _names=tuple(names), _task=competition.task)


def _try_metric(competition: Competition, table: Table | None) -> None:
    metric = parts.build_metric(competition)
    if table is not None and competition.task in SEGMENTATION:
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
