"""What sections of a YAML, each right by itself, may still say against one another.

To add a rule, yield its problem in a function that `contradictions` calls; one between the settings of one stage
belongs to `stage.py`, one that must know what is inherited from `train:` to `unused_problems`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from kbench.config.bands import file_problems, normalising_problems
from kbench.config.competition import Competition, EnsembleSection, FoldSection, Input
from kbench.config.stage import Stage, without_effect
from kbench.config.stage import contradictions as stage_contradictions
from kbench.errors import Problem, nearest

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
