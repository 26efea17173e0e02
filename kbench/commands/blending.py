"""What an ensemble is made of: the runs' members out of fold, and how they are weighed; `sent.py` predicts with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kbench import registry
from kbench.commands.judging import (
    combiner_of,
    decision_of,
    judge,
    over_folds,
    score_record,
    snapshots_of,
    stack_of,
)
from kbench.commands.score import OutOfFold
from kbench.commands.setup import Setup
from kbench.data.tables import Table
from kbench.ensemble.average import average
from kbench.ensemble.nested import Recipe, evaluate, gains
from kbench.errors import ConfigError, PredictionError, first_names, raise_all
from kbench.inference.predictions import Predictions
from kbench.workspace import RunPaths


@dataclass(frozen=True)
class RunPart:
    """One run's share of an ensemble.

    Attributes:
        setup: the run's own configuration.
        paths: its files.
        identity: its hashes.
        oof: its out-of-fold predictions, or None.
        places: folds, or `full`, whose models predict the test set; none for somebody else's predictions.
        subset: `fold` or `full`, as in `checkpoints`.
        missing: folds that are not trained.
    """

    setup: Setup
    paths: RunPaths
    identity: dict[str, str]
    oof: OutOfFold | None
    places: list[int | str]
    subset: str
    missing: list[int]

    @property
    def foreign(self) -> bool:
        """Whether it is somebody else's predictions."""
        return self.paths.foreign.is_file()


@dataclass(frozen=True)
class Blend:
    """How members become one prediction, and what that is worth.

    Attributes:
        setup: the first run's configuration, with the targets of all runs.
        combiner: its name.
        recipe: combiner, decision, pruning.
        weights: member (`run/stage-cycle`, or a foreign run) -> weight; None: the plain mean of all.
        decided: what the decision found, or None.
        score: as of `score_record`, or None where nothing can be scored.
        gains: what each member adds.
    """

    setup: Setup
    combiner: str
    recipe: Recipe
    weights: dict[str, float] | None
    decided: dict[str, Any] | None
    score: dict[str, Any] | None
    gains: list[dict[str, Any]]


def combiner_name(setup: Setup, combine: str | None) -> str:
    """Return the combiner's name: the one asked for, or the YAML's."""
    return combine or setup.competition.ensemble.combine.name


def recipe_of(setup: Setup, *, combine: str | None, prune: bool) -> Recipe:
    """Return what `ensemble:` asks for.

    Args:
        setup: the configuration.
        combine: another combiner with its defaults, or None.
        prune: prune though the YAML does not say so.

    Raises:
        ConfigError: there is no such combiner, or it is for other tasks.
    """
    competition, section = setup.competition, setup.competition.ensemble
    if combine is not None and combine != section.combine.name:
        problems = registry.bind("combiner", combine, {}, where="--combine", task=competition.task)
        raise_all(
            problems, error=ConfigError, subject=f"--combine {combine}", expected="a combiner for this task",
            todo="`kbench list combiner` shows them",
        )  # fmt: skip
        part = section.combine.model_validate({"name": combine})
        competition = competition.model_copy(update={"ensemble": section.model_copy(update={"combine": part})})
    return Recipe(combiner_of(competition), decision_of(competition), prune or section.prune)


def is_plain(recipe: Recipe) -> bool:
    """Return whether all members are averaged as they are."""
    return not (recipe.combiner.fitted or recipe.combiner.ranks or recipe.prune)


def oof_members(part: RunPart) -> dict[str, Predictions]:
    """Return a run's members that every trained fold has, `run/stage-cycle`, out of fold over all of them."""
    assert part.oof is not None, "asked only for runs with out-of-fold predictions"
    if part.foreign:
        return {part.paths.name: part.oof.predictions}
    folds = list(map(int, part.oof.score["folds"]))
    whole = over_folds(snapshots_of(part.setup, part.paths, part.identity, folds, "oof"))
    return {f"{part.paths.name}/{name}": one for name, one in whole.items()}


def setup_of_all(setups: Sequence[Setup]) -> Setup:
    """Return the first configuration, its training table with the targets of all of them.

    Runs may cover different targets, such as those whose `data.target` names some of the sample's columns each.

    Raises:
        PredictionError: their training tables have other rows, or classes that exclude one another.
    """
    first, joined = setups[0], setups[0].train
    for other in (setup.train for setup in setups[1:]):
        more = [place for place, name in enumerate(other.target_names) if name not in joined.target_names]
        if not more:
            continue
        if joined.targets is None or other.targets is None or joined.targets.ndim == 1 or joined.task != other.task:
            raise PredictionError(
                f"the runs have different targets: {first_names(joined.target_names)}; "
                f"{first_names(other.target_names)}",
                "runs of the same targets, or of a task with a number for each", "leave one of them out",
            )  # fmt: skip
        if not np.array_equal(joined.ids, other.ids):
            raise PredictionError(
                f"runs of different targets have {len(joined):,} and {len(other):,} training rows, not the same ones",
                "one training table", "`data: {on_problem: error}` in both YAMLs says which rows are left out",
            )  # fmt: skip
        names = (*joined.target_names, *(other.target_names[place] for place in more))
        targets = np.concatenate([joined.targets, other.targets[:, more]], axis=1)
        joined = replace(joined, target_names=names, targets=targets)
    return first if joined is first.train else first.with_train(joined)


def blend_plain(
    setup: Setup, parts: Sequence[RunPart], recipe: Recipe, *, combiner: str, weights: Sequence[float] | None
) -> Blend:
    """Return the plain mean over runs of each run's mean over its members, its score and what each adds."""
    table = _shared_rows(setup, parts)
    oofs = {part.paths.name: part.oof.predictions.select(table.ids) for part in parts if part.oof is not None}
    mean = average(list(oofs.values()), mean=setup.competition.ensemble.mean, weights=weights)
    outcome = judge(setup, mean, table)
    if len(parts) == 1:
        members = {name: one.select(table.ids) for name, one in oof_members(parts[0]).items()}
        stack = stack_of(setup, members, table, mean=setup.competition.ensemble.mean)
    else:
        base = list(weights or [1.0] * len(parts))
        stack = stack_of(setup, oofs, table, mean=setup.competition.ensemble.mean, base=base)
    found = gains(stack, recipe, evaluate(stack, recipe)) if len(stack.names) > 1 else []
    return Blend(setup, combiner, recipe, None, outcome.fit.decided, score_record(setup, outcome, table), found)


def blend_fitted(
    setup: Setup, parts: Sequence[RunPart], recipe: Recipe, *, combiner: str, weights: Sequence[float] | None
) -> Blend:
    """Return members of all runs weighed by a combiner: runs x stages x cycles, each over all folds.

    Raises:
        PredictionError: the runs share no row, or their members cannot be weighed.
    """
    if weights is not None and recipe.combiner.fitted:
        raise ConfigError(
            f"--weight beside --combine {combiner}, which finds weights itself", "one of the two",
            "remove --weight, or write `--combine mean`",
        )  # fmt: skip
    table = _shared_rows(setup, parts)
    members: dict[str, Predictions] = {}
    base: list[float] = []
    for part, weight in zip(parts, weights or [1.0] * len(parts), strict=True):
        own = {name: one.select(table.ids) for name, one in oof_members(part).items()}
        members |= own
        base += [weight / len(own)] * len(own)
    stack = stack_of(setup, members, table, mean=setup.competition.ensemble.mean, base=base)
    outcome = evaluate(stack, recipe)
    found = {name: float(weight) for name, weight in zip(stack.names, outcome.fit.weights, strict=True)}
    score, adds = score_record(setup, outcome, table), gains(stack, recipe, outcome)
    return Blend(setup, combiner, recipe, found, outcome.fit.decided, score, adds)


def _shared_rows(setup: Setup, parts: Sequence[RunPart]) -> Table:
    """Return the training rows that all runs have out of fold."""
    shared: np.ndarray | None = None
    for part in parts:
        assert part.oof is not None, "asked only for runs with out-of-fold predictions"
        ids = part.oof.predictions.ids
        shared = ids if shared is None else np.intersect1d(shared, ids)
    if shared is None or not len(shared):
        raise PredictionError(
            f"the runs {first_names([part.paths.name for part in parts])} share no out-of-fold row",
            "runs with a trained fold in common", "`kbench train` trains the other folds",
        )  # fmt: skip
    return setup.train.select(np.isin(setup.train.ids, shared))
