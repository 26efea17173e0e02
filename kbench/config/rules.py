"""What sections of a YAML, each right by itself, may still say against one another.

To add a rule, yield its problem in a function that `contradictions` calls; one between the settings of one stage
belongs to `stage.py`, one that must know what is inherited from `train:` to `unused_problems`, one that older runs may
break to `idle_problems`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kbench.config.bands import file_problems, normalising_problems
from kbench.config.competition import Competition, EnsembleSection, FoldSection, Input, ModelSection
from kbench.config.section import Component, Section
from kbench.config.stage import Stage, without_effect
from kbench.config.stage import contradictions as stage_contradictions
from kbench.errors import Problem, nearest
from kbench.tasks import is_dense

RESERVED = ("previous", "fresh")  # what `start:` may say instead of a stage's name


def contradictions(competition: Competition) -> list[Problem]:
    """Return what sections say against one another."""
    return [
        *stage_problems(competition.stages),
        *member_problems(competition.ensemble, competition.stages),
        *file_problems(competition.input),
        *normalising_problems(competition.input, competition.data.metadata),
        *statistics_problems(competition.input),
        *ensemble_problems(competition.task, competition.ensemble),
        *target_problems(competition),
        *dropout_problems(competition),
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
        for problem in stage_contradictions(stage):
            yield replace(problem, where=f"stages.{name}.{problem.where}")
        source = stage.lr_from_stage
        if source is not None and (source not in done or stages[source].lr != "find"):
            yield Problem(f"stages.{name}.lr_from_stage", f"'{source}' is no earlier stage with `lr: find`",
                          nearest(source, done))  # fmt: skip
        done.append(name)
    full = [stage.subset == "full" for stage in stages.values()]
    if full != sorted(full):
        yield Problem("stages", "a stage with `subset: full` may only be followed by such stages")
    if not any(stage.keep for stage in stages.values()):
        yield Problem("stages", "no stage keeps a model to predict with", "write `keep: [cycles]` in the last stage")


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
        for problem in without_effect(stage):
            if problem.where.partition(".")[0] in own:
                yield replace(problem, where=f"stages.{name}.{problem.where}")
        counted = folds.strategy not in _OWN_COUNT and "val_pct" not in folds.options
        if stage.lr == "find" and stage.lr_from_fold is not None and counted and stage.lr_from_fold >= folds.n:
            where = f"stages.{name}" if "lr_from_fold" in own else "train"
            yield Problem(f"{where}.lr_from_fold", f"there is no fold {stage.lr_from_fold}", f"0 to {folds.n - 1}")


def called_default(problem: Problem, competition: Competition) -> Problem:
    """Return a problem that says so where it is about a value that the YAML does not say: a default.

    Args:
        problem: with the path of a setting, such as `stages.head.groups`.
        competition: the YAML.
    """
    value: Any = competition
    written = True
    for key in problem.where.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, Section) and key in type(value).model_fields:
            written, value = written and key in value.model_fields_set, getattr(value, key)
        else:
            return problem
    if written or isinstance(value, Section | dict | list) or value is None:
        return problem
    shown = value.name if isinstance(value, Component) else value
    return replace(problem, what=f"{problem.what} ({key}: {shown} is the default)")


def idle_problems(competition: Competition) -> Iterator[Problem]:
    """Yield settings outside of stages that would have no effect, or that cannot be together.

    A run that was trained with such settings is scored and sent as before: they are not held against its record.
    """
    yield from _idle_model_options(competition.model)
    ensemble = competition.ensemble
    if ensemble.mean == "geometric" and ensemble.combine.name in _ARITHMETIC:
        what = f"'{ensemble.combine.name}' averages arithmetically, beside `mean: geometric`"
        yield Problem("ensemble.combine", what, "write `mean: arithmetic`, or `combine: greedy`")
    if ensemble.members == []:
        yield Problem("ensemble.members", "is empty, so nothing would predict", "name a stage, or remove it")
    if not is_dense(competition.task):
        for key, default in (("windows", "full"), ("postprocess", "none")):
            if getattr(competition.maps, key).name != default:
                what = f"would have no effect: the task '{competition.task}' predicts no maps"
                yield Problem(f"maps.{key}", what, "remove it")


_ARITHMETIC = ("weights", "rank")  # combiners that do not average as `ensemble.mean` says


def _idle_model_options(model: ModelSection) -> Iterator[Problem]:
    """Yield what the head of a timm classifier would not use."""
    if model.name != "timm":
        return
    head, hidden, dropout = (model.options.get(key) for key in ("head", "hidden", "dropout"))
    head = head or "linear"
    if hidden is not None and head != "concat":
        yield Problem("model.options.hidden", f"would have no effect: `head: {head}` has one layer",
                      "write `head: concat`, or remove it")  # fmt: skip
    elif hidden == []:
        yield Problem("model.options.hidden", "names no width, and [512] would be taken",
                      "write `hidden: [512]`, or `head: linear` for a single layer")  # fmt: skip
    if isinstance(dropout, list) and (not dropout or (len(dropout) > 1 and head != "concat")):
        layers = "no probability" if not dropout else f"{len(dropout)} probabilities, and `head: {head}` has one layer"
        yield Problem("model.options.dropout", f"has {layers}", "write one number, such as `dropout: 0.5`")


def member_problems(ensemble: EnsembleSection, stages: Mapping[str, Stage]) -> Iterator[Problem]:
    """Yield members that are of no stage."""
    for position, member in enumerate(ensemble.members or ()):
        if member not in stages and not any(member.startswith(f"{name}-") for name in stages):
            hint = nearest(member, stages)
            yield Problem(f"ensemble.members.{position}", f"'{member}' is neither a stage nor `stage-cycle`", hint)


def ensemble_problems(task: str, ensemble: EnsembleSection) -> Iterator[Problem]:
    """Yield what `ensemble:` asks for that the task's predictions cannot give."""
    if "regression" in task and ensemble.mean == "geometric":
        yield Problem("ensemble.mean", "'geometric' is of probabilities, not of numbers", "write `arithmetic`")


def target_problems(competition: Competition) -> Iterator[Problem]:
    """Yield what `model.standardise` says of targets that are no numbers."""
    if not competition.model.standardise and "regression" not in competition.task:
        what = f"would have no effect: targets of the task '{competition.task}' are no numbers"
        yield Problem("model.standardise", what, "remove it")


def dropout_problems(competition: Competition) -> Iterator[Problem]:
    """Yield `axis_dropout` of stages whose images cannot lack anything."""
    section = competition.input
    for name, stage in competition.stages.items():
        where = f"stages.{name}.axis_dropout"
        if stage.axis_dropout is None:
            continue
        if section.missing != "mask":
            yield Problem(where, "images have no value for what is left out", "write `input: {missing: mask}`")
        if stage.axis_dropout.axis == "date" and not section.dates:
            yield Problem(f"{where}.axis", "is `date`, and images have no dates", "write `axis: file`")


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
