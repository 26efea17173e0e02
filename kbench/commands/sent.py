"""The rows that an ensemble sends: predicted with the members that have a weight, and combined as they were scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kbench.commands.blending import Blend, RunPart
from kbench.commands.judging import decided, snapshot_name
from kbench.commands.predict import checkpoints, members_of, predict_test
from kbench.commands.setup import Setup
from kbench.data.tables import Table
from kbench.ensemble.average import aligned, average, ensemble_run
from kbench.ensemble.stack import ranked
from kbench.errors import PredictionError, first_names
from kbench.inference.predictions import Predictions, load


@dataclass(frozen=True)
class Sent:
    """Test predictions and what they are made of.

    Attributes:
        predictions: of the test set, decided where there is a decision.
        mean: the same before the decision.
        members: one record per model.
        weights: one number per model; they sum to 1.
    """

    predictions: Predictions
    mean: Predictions
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


Ways = Callable[[RunPart, Asked, Sequence[str] | None], Mapping[int | str, list[Predictions]]]
"""Predicts rows with a run's members, or those of some names: fold -> predictions."""


def predict_blend(
    parts: Sequence[RunPart],
    blend: Blend,
    asked: Asked,
    *,
    weights: Sequence[float] | None = None,
    members: Ways | None = None,
) -> Sent:
    """Predict the test set with the members that have a weight, and combine them as they were scored.

    Args:
        parts: the runs.
        blend: how their members are combined.
        asked: which rows, if not the test set's.
        weights: one number per run, for the plain mean.
        members: how rows are predicted; `sent_members` by default.
    """
    members_sent = members or sent_members
    shares = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    records: list[dict[str, Any]] = []
    numbers: list[float] = []
    if blend.weights is None:
        runs = []
        for part, share in zip(parts, shares / shares.sum(), strict=True):
            by_place = members_sent(part, asked, None)
            runs.append(_mean_of_places(part, list(by_place.values())))
            for of_place in by_place.values():
                records += [_record(part, one) for one in of_place]
                numbers += [float(share / len(by_place) / len(of_place))] * len(of_place)
        how = blend.setup.competition.ensemble.mean
        mean = runs[0] if len(runs) == 1 else average(runs, mean=how, weights=weights)
        return _sent(mean, blend, records, numbers)
    made: list[Predictions] = []
    used: list[float] = []
    for part in parts:
        wanted = {name: weight for name, weight in blend.weights.items() if _is_of(part, name) and weight > 0}
        if not wanted:
            continue
        snapshots = None if part.foreign else [name.split("/", 1)[1] for name in wanted]
        by_place = members_sent(part, asked, snapshots)  # all of them in one pass; those of a name are read again
        for name, weight in wanted.items():
            if not part.foreign:
                by_place = members_sent(part, asked, [name.split("/", 1)[1]])
            own = [one for of_place in by_place.values() for one in of_place]
            _check_there(part, name, own)
            made.append(_mean_of_places(part, [[_scaled(one, blend)] for one in own]))
            used.append(weight)
            records += [_record(part, one) for one in own]
            numbers += [weight / len(own)] * len(own)
    mean = average(made, mean=blend.setup.competition.ensemble.mean, weights=used) if len(made) > 1 else made[0]
    return _sent(mean, blend, records, numbers)


def _sent(mean: Predictions, blend: Blend, records: list[dict[str, Any]], numbers: list[float]) -> Sent:
    """Return what is sent; a decision is found for the targets in the order of the table, and applied so."""
    names = [name for name in blend.setup.train.target_names if name in mean.names]
    mean = replace(mean, names=tuple(names), values=aligned(mean, ids=mean.ids, names=names))
    return Sent(decided(mean, blend.recipe.decision, blend.decided), mean, records, numbers)


def sent_members(
    part: RunPart, asked: Asked, only: Sequence[str] | None = None
) -> Mapping[int | str, list[Predictions]]:
    """Return fold (or `full`) -> predictions of a run's members, made where they are missing.

    Args:
        part: the run.
        asked: which rows.
        only: `stage-cycle` of the members that are wanted; all by default.
    """
    if part.foreign:
        return {0: [load(part.paths.predictions(asked.part))]}
    setup = narrowed(part.setup, only)
    predict_test(
        setup, part.paths, part.identity, part.places, asked.device, table=asked.table, part=asked.part,
        subset=part.subset, force=asked.force,
    )  # fmt: skip
    return {
        place: members_of(setup, part.paths, part.identity, place, asked.part, subset=part.subset)
        for place in part.places
    }


def narrowed(setup: Setup, only: Sequence[str] | None) -> Setup:
    """Return a configuration in which only some members (`stage-cycle`) count; the same for None."""
    if only is None:
        return setup
    section = setup.competition.ensemble.model_copy(update={"members": list(only)})
    return replace(setup, competition=setup.competition.model_copy(update={"ensemble": section}))


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
