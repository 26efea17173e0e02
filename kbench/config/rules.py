"""What sections of a YAML, each right by itself, may still say against one another, and the names they use.

`contradictions` holds sections against each other; `bind` holds names and parameters against the registered functions,
before anything is built. To add a rule, yield its problem in a function that `contradictions` calls; one that must
know what is inherited from `train:` belongs to `unused_problems`. To let a YAML name one more kind of part, add a row
to `_PARTS`, or to `_STAGE_PARTS` for what a stage may say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from kbench import registry
from kbench.config.competition import (
    Competition,
    EnsembleSection,
    FoldSection,
    Input,
    Stage,
    Task,
    as_component,
)
from kbench.errors import Problem, nearest
from kbench.tasks import is_dense

RESERVED = ("previous", "fresh")  # what `start:` may say instead of a stage's name


def contradictions(competition: Competition) -> list[Problem]:
    """Return what sections say against one another."""
    return [
        *stage_problems(competition.stages),
        *member_problems(competition.ensemble, competition.stages),
        *statistics_problems(competition.input),
        *ensemble_problems(competition.task, competition.ensemble),
        *target_problems(competition),
    ]


def stage_problems(stages: Mapping[str, Stage]) -> Iterator[Problem]:
    """Yield what is wrong between stages."""
    done: list[str] = []
    for name, stage in stages.items():
        if name in RESERVED:
            yield Problem(f"stages.{name}", f"a stage cannot be called '{name}'", "choose another name")
        if stage.start not in (*RESERVED, *done):
            yield Problem(
                f"stages.{name}.start", f"'{stage.start}' is no earlier stage", nearest(stage.start, (*RESERVED, *done))
            )
        yield from _precompute_problems(name, stage)
        source = stage.lr_from_stage
        if source is not None and (source not in done or stages[source].lr != "find"):
            yield Problem(f"stages.{name}.lr_from_stage", f"'{source}' is no earlier stage with `lr: find`",
                          nearest(source, done))  # fmt: skip
        if source is not None and stage.lr != "find":
            yield Problem(f"stages.{name}.lr_from_stage", "stands beside a rate of its own", "write `lr: find`")
        if stage.range_test.end <= stage.range_test.start:
            yield Problem(f"stages.{name}.range_test.end", "is not above `start`", "write start: 1e-5, end: 10")
        done.append(name)
    full = [stage.subset == "full" for stage in stages.values()]
    if full != sorted(full):
        yield Problem("stages", "a stage with `subset: full` may only be followed by such stages")
    if not any(stage.keep for stage in stages.values()):
        yield Problem("stages", "no stage keeps a model to predict with", "write `keep: [cycles]` in the last stage")


def _precompute_problems(name: str, stage: Stage) -> Iterator[Problem]:
    """Yield what cannot be together with activations that are computed once."""
    if not stage.precompute:
        return
    where, why = f"stages.{name}", "with `precompute: true` an image is seen once, as it is judged"
    if stage.groups != "head":
        yield Problem(f"{where}.groups", "is not `head`, and only a frozen body can be precomputed",
                      "write `groups: head`, or `precompute: false` where the body learns")  # fmt: skip
    if stage.augment.name != "none" and stage.draws == 1:
        yield Problem(f"{where}.augment", f"'{stage.augment.name}' would have no effect: {why}",
                      "write `draws: 8` beside it for 8 augmented draws of each image, or `augment: none`")  # fmt: skip
    if stage.mix is not None:
        yield Problem(f"{where}.mix", f"'{stage.mix.name}' mixes images, and {why}", "write `mix: null`")
    if stage.step.name != "supervised":
        yield Problem(f"{where}.step", f"'{stage.step.name}' is given images, and {why}", "write `step: supervised`")


_AS_JUDGED = ("centre", "squash")  # crops that show the same part of an image every time
_OWN_COUNT = ("predefined",)  # fold strategies that say themselves how many folds there are


def unused_problems(stages: Mapping[str, Stage], written: Mapping[str, Any], folds: FoldSection) -> Iterator[Problem]:
    """Yield settings that would have no effect.

    Args:
        stages: the recipe, with what stages take from `train:`.
        written: what the YAML says of each stage itself; what is merely inherited may have no effect.
        folds: how rows are cut.
    """
    for name, stage in stages.items():
        own = written.get(name) or {}
        for key, what, hint in _unused(stage):
            if key.partition(".")[0] in own:
                yield Problem(f"stages.{name}.{key}", what, hint)
        counted = folds.strategy not in _OWN_COUNT and "val_pct" not in folds.options
        if stage.lr == "find" and stage.lr_from_fold is not None and counted and stage.lr_from_fold >= folds.n:
            where = f"stages.{name}" if "lr_from_fold" in own else "train"
            yield Problem(f"{where}.lr_from_fold", f"there is no fold {stage.lr_from_fold}", f"0 to {folds.n - 1}")


def _unused(stage: Stage) -> Iterator[tuple[str, str, str]]:
    """Yield the settings a stage does not use: key, what is wrong, what to write."""
    if stage.precompute and stage.draws == 1 and stage.crop.name not in _AS_JUDGED:
        what = (
            f"'{stage.crop.name}' would have no effect: with `precompute: true` an image is seen once, as it is judged"
        )
        yield "crop", what, "remove it, or write `crop: centre`"
    if stage.draws > 1 and not stage.precompute:
        yield "draws", "would have no effect without `precompute: true`", "remove it: images are drawn anew every epoch"
    if stage.draws > 1 and stage.augment.name == "none" and stage.crop.name in _AS_JUDGED:
        yield "draws", "would all be the same: nothing is augmented", "write `augment: side_on`, or remove it"
    if isinstance(stage.lr, list) and stage.lr_decay != 1:
        yield "lr_decay", "would have no effect beside an `lr` for each layer group", "remove one of the two"
    if stage.lr != "find" and stage.lr_from_fold is not None:
        yield "lr_from_fold", "stands beside a rate of its own", "write `lr: find`, or `lr_from_fold: null`"
    if "average" not in stage.keep and stage.average != type(stage.average)():
        yield "average", "would have no effect: the mean of weights is not kept", "write `keep: [average]`"
    if stage.subset == "full":
        why = "with `subset: full` there are no rows to judge it by"
        if stage.early_stop is not None:
            yield "early_stop", f"would have no effect: {why}", "remove it"
        if stage.schedule.name == "plateau":
            yield "schedule", f"'plateau' would never lower the rate: {why}", "write another schedule"
        if stage.range_test.valid:
            yield "range_test.valid", f"would judge rows it trains on: {why}", "remove it"


def member_problems(ensemble: EnsembleSection, stages: Mapping[str, Stage]) -> Iterator[Problem]:
    """Yield members that are of no stage."""
    for position, member in enumerate(ensemble.members or ()):
        if member not in stages and not any(member.startswith(f"{name}-") for name in stages):
            hint = nearest(member, stages)
            yield Problem(f"ensemble.members.{position}", f"'{member}' is neither a stage nor `stage-cycle`", hint)


def ensemble_problems(task: str, ensemble: EnsembleSection) -> Iterator[Problem]:
    """Yield what `ensemble:` asks for that the task's predictions cannot give."""
    if is_dense(task) and ensemble.prune:
        yield Problem("ensemble.prune", f"members of the task '{task}' are not pruned: their maps are never in memory",
                      "remove it; `ensemble.members` names those that count")  # fmt: skip
    if "regression" in task and ensemble.mean == "geometric":
        yield Problem("ensemble.mean", "'geometric' is of probabilities, not of numbers", "write `arithmetic`")


def target_problems(competition: Competition) -> Iterator[Problem]:
    """Yield what `model.standardise` says of targets that are no numbers."""
    if not competition.model.standardise and "regression" not in competition.task:
        what = f"would have no effect: targets of the task '{competition.task}' are no numbers"
        yield Problem("model.standardise", what, "remove it")


def stage_of(member: str, stages: Iterable[str]) -> str:
    """Return the stage of a member: a stage's name, or `stage-cycle`."""
    return max((name for name in stages if member == name or member.startswith(f"{name}-")), key=len)


def statistics_problems(section: Input) -> Iterator[Problem]:
    """Yield what is wrong with the mean and standard deviation of the channels."""
    for key, other in (("mean", "std"), ("std", "mean")):
        values = getattr(section, key)
        if values is not None and getattr(section, other) is None:
            yield Problem(f"input.{key}", f"stands without `{other}`", "write both or neither")
        if values is not None and len(values) != section.channels:
            yield Problem(f"input.{key}", f"{len(values)} values for {section.channels} channels", "one per channel")


_PARTS = (  # kind, where its name stands, where its parameters stand
    ("source", ("source",), ("source",)),
    ("layout", ("data", "layout"), ("data", "layout")),
    ("mask", ("data", "masks"), ("data", "masks")),
    ("fold strategy", ("folds", "strategy"), ("folds", "options")),
    ("metric", ("metric",), ("metric",)),
    ("format", ("submission", "format"), ("submission", "format")),
    ("reader", ("input", "reader"), ("input", "reader")),
    ("model", ("model", "name"), ("model", "options")),
    ("views", ("tta",), ("tta",)),
    ("combiner", ("ensemble", "combine"), ("ensemble", "combine")),
    ("decision", ("ensemble", "decision"), ("ensemble", "decision")),
    ("windows", ("maps", "windows"), ("maps", "windows")),
    ("postprocess", ("maps", "postprocess"), ("maps", "postprocess")),
)
_STAGE_PARTS = {"schedule": "schedule", "optimizer": "optimizer", "loss": "loss", "augment": "augmentation",
                "crop": "crop", "mix": "mix", "sampler": "sampler", "step": "step"}  # fmt: skip
_DEFAULTS = {
    name: field.default.model_dump()
    for name, field in Competition.model_fields.items()
    if isinstance(field.default, BaseModel)
}


def bind(content: Mapping[str, Any]) -> list[Problem]:
    """Hold every registered name and its parameters against the function's signature; return all problems.

    Args:
        content: the YAML's mapping with its stage defaults, or a dumped `Competition`. What has not the shape of a
            part is left out: validation reports it.
    """
    task = content.get("task") if content.get("task") in get_args(Task) else None
    problems: list[Problem] = []
    for kind, where, options in [*_PARTS, *_stage_parts(content)]:
        written = _at(content, where)
        found = as_component(_at(_DEFAULTS, where) if written is None else written)
        given = found if options == where else _at(content, options) or {}
        if isinstance(found, dict) and isinstance(found.get("name"), str) and isinstance(given, dict):
            params = {key: value for key, value in given.items() if key != "name" or options != where}
            problems += registry.bind(
                kind, found["name"], params, where=".".join(where), options=".".join(options), task=task
            )
    return problems


def _stage_parts(content: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    stages = content.get("stages")
    metric = as_component(content.get("metric"))
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        for key, kind in _STAGE_PARTS.items():
            yield kind, ("stages", name, key), ("stages", name, key)
        monitor = stage.get("monitor") if isinstance(stage, dict) else None
        if isinstance(monitor, str) and monitor not in ("loss", isinstance(metric, dict) and metric.get("name")):
            yield "metric", ("stages", name, "monitor"), ("stages", name, "monitor")


def _at(content: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path, or None."""
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content
