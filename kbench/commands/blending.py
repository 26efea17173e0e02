"""What an ensemble is made of: the runs' members, out of fold and on the test set, and how they are weighed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kbench import registry
from kbench.commands.judging import (
    combiner_of,
    decided,
    decision_of,
    judge,
    over_folds,
    score_record,
    snapshot_name,
    snapshots_of,
    stack_of,
)
from kbench.commands.predict import checkpoints, members_of, predict_test
from kbench.commands.score import OutOfFold
from kbench.commands.setup import Setup
from kbench.data.tables import Table
from kbench.ensemble.average import average, ensemble_run
from kbench.ensemble.nested import Recipe, evaluate, gains
from kbench.ensemble.stack import ranked
from kbench.errors import ConfigError, PredictionError, first_names, raise_all
from kbench.inference.predictions import Predictions, load
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
        combiner: its name.
        recipe: combiner, decision, pruning.
        weights: member (`run/stage-cycle`, or a foreign run) -> weight; None: the plain mean of all.
        decided: what the decision found, or None.
        score: as of `score_record`, or None where nothing can be scored.
        gains: what each member adds.
    """

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


def blend_plain(parts: Sequence[RunPart], recipe: Recipe, *, combiner: str, weights: Sequence[float] | None) -> Blend:
    """Return the plain mean over runs of each run's mean over its members, its score and what each adds."""
    setup, table = parts[0].setup, _shared_rows(parts)
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
    return Blend(combiner, recipe, None, outcome.fit.decided, score_record(setup, outcome, table), found)


def blend_fitted(parts: Sequence[RunPart], recipe: Recipe, *, combiner: str, weights: Sequence[float] | None) -> Blend:
    """Return members of all runs weighed by a combiner: runs x stages x cycles, each over all folds.

    Raises:
        PredictionError: the runs share no row, or their members cannot be weighed.
    """
    setup, table = parts[0].setup, _shared_rows(parts)
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
    return Blend(combiner, recipe, found, outcome.fit.decided, score, adds)


def _shared_rows(parts: Sequence[RunPart]) -> Table:
    """Return the training rows that all runs have out of fold."""
    shared: np.ndarray | None = None
    for part in parts:
        assert part.oof is not None, "asked only for runs with out-of-fold predictions"
        ids = part.oof.predictions.ids
        shared = ids if shared is None else np.intersect1d(shared, ids)
    setup = parts[0].setup
    if shared is None or not len(shared):
        raise PredictionError(
            f"the runs {first_names([part.paths.name for part in parts])} share no out-of-fold row",
            "runs with a trained fold in common", "`kbench train` trains the other folds",
        )  # fmt: skip
    return setup.train.select(np.isin(setup.train.ids, shared))


# -- the rows that are sent --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """Test predictions and what they are made of.

    Attributes:
        predictions: of the test set, decided where there is a decision.
        members: one record per model.
        weights: one number per model; they sum to 1.
    """

    predictions: Predictions
    members: list[dict[str, Any]]
    weights: list[float]


@dataclass(frozen=True)
class Asked:
    """Which rows are predicted, and where.

    Attributes:
        device: where models run.
        table: other rows than the test set's.
        part: name of the rows, a folder beside `oof/`.
        force: predict again what is predicted.
    """

    device: str = "auto"
    table: Table | None = None
    part: str = "test"
    force: bool = False


def predict_blend(
    parts: Sequence[RunPart], blend: Blend, asked: Asked, *, weights: Sequence[float] | None = None
) -> Sent:
    """Predict the test set with the members that have a weight, and combine them as they were scored.

    Args:
        parts: the runs.
        blend: how their members are combined.
        asked: which rows, if not the test set's.
        weights: one number per run, for the plain mean.
    """
    shares = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    records: list[dict[str, Any]] = []
    numbers: list[float] = []
    if blend.weights is None:
        runs = []
        for part, share in zip(parts, shares / shares.sum(), strict=True):
            by_place = sent_members(part, asked)
            runs.append(_mean_of_places(part, list(by_place.values())))
            for of_place in by_place.values():
                records += [_record(part, one) for one in of_place]
                numbers += [float(share / len(by_place) / len(of_place))] * len(of_place)
        how = parts[0].setup.competition.ensemble.mean
        mean = runs[0] if len(runs) == 1 else average(runs, mean=how, weights=weights)
        return Sent(decided(mean, blend.recipe.decision, blend.decided), records, numbers)
    made: list[Predictions] = []
    used: list[float] = []
    for part in parts:
        wanted = {name: weight for name, weight in blend.weights.items() if _is_of(part, name) and weight > 0}
        if not wanted:
            continue
        snapshots = None if part.foreign else [name.split("/", 1)[1] for name in wanted]
        models = [one for of_place in sent_members(part, asked, only=snapshots).values() for one in of_place]
        for name, weight in wanted.items():
            own = [one for one in models if part.foreign or name == _name(part, one)]
            _check_there(part, name, own)
            made.append(_mean_of_places(part, [[_scaled(one, blend)] for one in own]))
            used.append(weight)
            records += [_record(part, one) for one in own]
            numbers += [weight / len(own)] * len(own)
    mean = average(made, mean=parts[0].setup.competition.ensemble.mean, weights=used) if len(made) > 1 else made[0]
    return Sent(decided(mean, blend.recipe.decision, blend.decided), records, numbers)


def sent_members(
    part: RunPart, asked: Asked, *, only: Sequence[str] | None = None
) -> Mapping[int | str, list[Predictions]]:
    """Return fold (or `full`) -> predictions of a run's members, made where they are missing.

    Args:
        part: the run.
        asked: which rows.
        only: `stage-cycle` of the members that are wanted; all by default.
    """
    if part.foreign:
        return {0: [load(part.paths.predictions(asked.part))]}
    setup = part.setup
    if only is not None:
        section = setup.competition.ensemble.model_copy(update={"members": list(only)})
        setup = replace(setup, competition=setup.competition.model_copy(update={"ensemble": section}))
    predict_test(
        setup, part.paths, part.identity, part.places, asked.device, table=asked.table, part=asked.part,
        subset=part.subset, force=asked.force,
    )  # fmt: skip
    return {
        place: members_of(setup, part.paths, part.identity, place, asked.part, subset=part.subset)
        for place in part.places
    }


def _mean_of_places(part: RunPart, by_place: Sequence[list[Predictions]]) -> Predictions:
    if len(by_place) == 1 and len(by_place[0]) == 1:
        return by_place[0][0]
    return ensemble_run(dict(enumerate(by_place)), mean=part.setup.competition.ensemble.mean)


def _scaled(one: Predictions, blend: Blend) -> Predictions:
    """Return a model's predictions, as ranks if members are compared by ranks."""
    return replace(one, values=ranked(np.asarray(one.values))) if blend.recipe.combiner.ranks else one


def _is_of(part: RunPart, name: str) -> bool:
    return name == part.paths.name if part.foreign else name.startswith(f"{part.paths.name}/")


def _name(part: RunPart, one: Predictions) -> str:
    return f"{part.paths.name}/{snapshot_name(one)}"


def _record(part: RunPart, one: Predictions) -> dict[str, Any]:
    if part.foreign:
        return {"run": part.paths.name, "foreign": True, **one.source}
    return {"run": part.paths.name, **{key: one.source[key] for key in ("fold", "stage", "tag", "weights")}}


def _check_there(part: RunPart, name: str, own: Sequence[Predictions]) -> None:
    if own:
        return
    known = [
        checkpoint.member
        for place in part.places
        for checkpoint in checkpoints(part.setup, part.paths, part.identity, place, subset=part.subset)
    ]
    raise PredictionError(
        f"the member '{name}' has a weight, but no model of all rows",
        f"one of {first_names(sorted(set(known)))}",
        "`--combine mean` with `--full`, or leave out `--full`",
    )
