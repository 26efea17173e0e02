"""Predictions that are rows of numbers, [N, K]: an array on disk for each member, averaged block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kbench import files
from kbench.data.table.table import Table
from kbench.ensemble.average import (
    Stack,
    aligned,
    average,
    concat,
    ensemble_run,
    member_names,
    ranked,
    stack_members,
    with_every_member,
)
from kbench.ensemble.combiners import mean as plain_mean
from kbench.ensemble.nested import Recipe, decided_by_part, evaluate
from kbench.ensemble.pseudo_labels import Chosen, Sure, chosen_rows
from kbench.inference.mean import MeanKind
from kbench.inference.predictions import Predictions, load
from kbench.inference.row_pass import predict_members
from kbench.models.checkpoint import Checkpoint
from kbench.runs import parts
from kbench.runs.experiment import Experiment
from kbench.runs.members import member_of, require_models, weighed_at
from kbench.runs.results import Judged, Rows, Share, Weighed, decision_of, fold_of, metric_of
from kbench.runs.row_parts import Members, job_of, member_predictions

if TYPE_CHECKING:
    from kbench.config.section import Component
    from kbench.runs.run import Run

TAKES_IMAGES = True


@dataclass(frozen=True)
class RowResult:
    """Rows as the mean of some members.

    Attributes:
        predictions: the mean.
        members: one record per model.
        weights: one number per model; they sum to 1.
        by_fold: of one run's out-of-fold rows: fold -> `stage-cycle` -> predictions.
    """

    predictions: Predictions
    members: list[dict[str, Any]]
    weights: list[float]
    by_fold: Members

    @property
    def ids(self) -> np.ndarray:
        """[N] ids of the rows."""
        return self.predictions.ids

    @property
    def names(self) -> tuple[str, ...]:
        """K target names."""
        return self.predictions.names


def out_of_fold_members(
    run: Run,
    folds: Sequence[int],
    *,
    device: str,
    limit: int | None = None,
    force: bool = False,
    part: str = "oof",
    views: Component | None = None,
) -> Members:
    """Return fold -> `stage-cycle` -> predictions of the fold's own rows; what is missing is predicted.

    Args:
        run: the run.
        folds: which.
        device: where models run.
        limit: batches at most, of a smoke run.
        force: predict again what is predicted.
        part: folder of the predictions; those of the run's own views are in `oof`.
        views: other views than those of `tta:`.
    """
    experiment, members = run.experiment, dict[int | str, Mapping[str, Predictions]]()
    rows = Rows(experiment.train, part, device, limit, force)
    for fold in folds:
        chosen = np.flatnonzero(experiment.folds.valid(fold))
        members[fold] = member_predictions(run, rows, [fold], chosen=chosen, views=views)[fold]
    return members


def out_of_fold(
    run: Run, folds: Sequence[int], *, device: str, limit: int | None = None, force: bool = False
) -> RowResult:
    """Return the rows of some folds, each the mean over its fold's snapshots and views; see `Results`."""
    if run.foreign:
        predictions = load(run.paths.predictions("oof"))
        return RowResult(predictions, [{"run": run.name, "foreign": True, **predictions.source}], [1.0], {})
    by_fold = out_of_fold_members(run, folds, device=device, limit=limit, force=force)
    mean = run.competition.ensemble.mean
    means = [ensemble_run({0: list(of_fold.values())}, mean=mean) for of_fold in by_fold.values()]
    merged = concat(means, out=run.paths.predictions("oof") if list(folds) == run.trained_folds() else None)
    records = [_record(run, one) for of_fold in by_fold.values() for one in of_fold.values()]
    return RowResult(merged, records, [1 / len(records)] * len(records), by_fold)


def predict(
    shares: Sequence[Share],
    rows: Rows,
    *,
    mean: MeanKind,
    weights: Mapping[str, float] | None = None,
    ranks: bool = False,
) -> RowResult:
    """Return rows as the members that have a weight predict them, combined as they were scored; see `Results`.

    What cannot be read and is to be filled (`on_problem: fill`) is the training rows' share of each target.
    """
    readable = rows.readable()
    if weights is None:
        result = _plain_mean(shares, readable, mean)
    else:
        result = _weighed_mean(shares, readable, mean, weights, ranks=ranks)
    gone = rows.table.unreadable
    if gone is None or not gone.any():
        return result
    known = {
        name: value
        for one in reversed(shares)
        for name, value in zip(one.run.experiment.train.target_names, one.run.experiment.filler(), strict=True)
    }
    share = np.array([known[name] for name in result.names], dtype=np.float32)
    return replace(result, predictions=_filled(result.predictions, rows.table.ids[gone], share))


def _filled(predictions: Predictions, ids: np.ndarray, values: np.ndarray) -> Predictions:
    every = np.concatenate([predictions.ids, ids])
    order = np.argsort(every)
    rows = np.concatenate([np.asarray(predictions.values), np.broadcast_to(values, (len(ids), len(values)))])
    return replace(predictions, ids=every[order], values=rows[order])


def _weighed_mean(
    shares: Sequence[Share], rows: Rows, mean: MeanKind, weights: Mapping[str, float], *, ranks: bool
) -> RowResult:
    total = sum(weights.values())
    averaged: list[Predictions] = []
    used: list[float] = []
    records: list[dict[str, Any]] = []
    numbers: list[float] = []
    for share in shares:
        run = share.run
        own_names = {run.name} if run.foreign else {name for name in weights if name.startswith(f"{run.name}/")}
        wanted = {name: weight for name, weight in weights.items() if name in own_names and weight > 0}
        if not wanted:
            continue
        for one, weight in _weighed(share, rows, wanted):
            averaged.append(replace(one, values=ranked(np.asarray(one.values))) if ranks else one)
            used.append(weight)
            records.append(_record(run, one))
            numbers.append(weight / total)
    whole = average(averaged, mean=mean, weights=used) if len(averaged) > 1 else averaged[0]
    return RowResult(whole, records, numbers, {})


def _weighed(share: Share, rows: Rows, weights: Mapping[str, float]) -> Iterator[tuple[Predictions, float]]:
    """Yield what the models of a run say of rows, each with its weight; every fold counts the same."""
    run, places = share.run, share.places
    if run.foreign:
        yield load(run.paths.predictions(rows.part)), sum(weights.values())
        return
    of_member = {name.partition("/")[2]: weight for name, weight in weights.items()}
    require_models(run, list(of_member), places, subset=share.subset)
    shared = {place: weighed_at(run, place, of_member, subset=share.subset) for place in places}
    names = list(dict.fromkeys(name for of_place in shared.values() for name in of_place))
    members = member_predictions(run, rows, places, subset=share.subset, only=names)
    for place, of_place in shared.items():
        for name, weight in of_place.items():
            yield members[place][name], weight / len(places)


def _plain_mean(shares: Sequence[Share], rows: Rows, mean: MeanKind) -> RowResult:
    total = sum(share.weight for share in shares)
    runs: list[Predictions] = []
    records: list[dict[str, Any]] = []
    numbers: list[float] = []
    for share in shares:
        members = member_predictions(share.run, rows, share.places, subset=share.subset)
        runs.append(_mean_of([list(of_place.values()) for of_place in members.values()], mean))
        for of_place in members.values():
            records += [_record(share.run, one) for one in of_place.values()]
            numbers += [share.weight / total / len(members) / len(of_place)] * len(of_place)
    if len(runs) == 1:
        return RowResult(runs[0], records, numbers, {})
    return RowResult(average(runs, mean=mean, weights=[share.weight for share in shares]), records, numbers, {})


def _mean_of(by_place: Sequence[list[Predictions]], mean: MeanKind) -> Predictions:
    if len(by_place) == 1 and len(by_place[0]) == 1:
        return by_place[0][0]
    return ensemble_run(dict(enumerate(by_place)), mean=mean)


def _record(run: Run, one: Predictions) -> dict[str, Any]:
    if run.foreign:
        return {"run": run.name, "foreign": True, **one.source}
    return {"run": run.name, **{key: one.source[key] for key in ("fold", "stage", "tag", "weights")}}


def view_reader(run: Run, checkpoint: Checkpoint, rows: Rows, chosen: np.ndarray) -> Callable[[int], np.ndarray]:
    """Return place among the chosen rows -> [1 + n, K] of each view; all are predicted at once; see `Results`."""
    table = rows.table
    images = parts.opened_images(run.competition, table, run.experiment.workspace.cache(), what=rows.part)
    job = replace(job_of(run, table.ids[chosen], chosen, images, rows.device), apart=True)
    stages = {stage.name: stage for stage in parts.build_stages(run.competition)}
    with files.scratch_folder() as folder:
        out = folder / "views.json"
        member = member_of(run, checkpoint, out=out, source={}, stages=stages, device=job.device)
        for _ in predict_members(job, [member]):
            pass
        values = np.ascontiguousarray(np.moveaxis(load(out).values, -1, 0))  # [1 + n, N, K]
    return lambda row: values[:, row]


def plain(result: RowResult, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and [N, K] predictions of a table's rows; see `Results`."""
    assert table.targets is not None, "training rows have targets"
    return table.targets, aligned(result.predictions, ids=table.ids, names=table.target_names)


def judge(experiment: Experiment, result: RowResult, table: Table) -> Judged:
    """Return what the decision of `ensemble:` gives on predictions of a table's rows; see `Results`."""
    stack = _stack(experiment, {"mean": result.predictions}, table, mean="arithmetic")
    recipe = Recipe(plain_mean(), decision_of(experiment))
    return _judged(experiment, evaluate(stack, recipe), table)


def _judged(experiment: Experiment, outcome: Any, table: Table) -> Judged:
    assert table.targets is not None, "training rows have targets"
    if outcome.fit.decided is None:
        return Judged(outcome, table.targets)
    decision = experiment.competition.ensemble.decision
    assert decision is not None, "something was decided"
    record = {
        "name": decision.name, "found": outcome.fit.decided,
        "nested": {str(part): one.decided for part, one in outcome.by_part.items()},
    }  # fmt: skip
    return Judged(outcome, table.targets, outcome.fit.decided, {"decision": record}, record)


def undecided(experiment: Experiment, why: str = "") -> None:
    """Return nothing to apply: a decision is refused before (`Recipe.fitted`); see `Results`."""


def sent(experiment: Experiment, result: RowResult, fit: dict[str, Any] | None) -> Predictions:
    """Return predictions with their targets in the table's order, decided where something was found; see `Results`."""
    names = tuple(name for name in experiment.train.target_names if name in result.names)
    mean = result.predictions
    mean = replace(mean, names=names, values=aligned(mean, ids=mean.ids, names=names))
    decision = decision_of(experiment)
    if decision is None or fit is None:
        return mean
    return replace(mean, values=decision.apply(np.asarray(mean.values), fit))


def scored(experiment: Experiment, result: RowResult, judged: Judged) -> Predictions:
    """Return out-of-fold predictions before anything is decided; see `Results`."""
    return result.predictions


def chosen(result: RowResult, sure: Sure) -> Iterator[Chosen]:
    """Yield the labels of the rows a result is sure of; see `Results`."""
    yield from chosen_rows(result.predictions, sure)


def made(result: RowResult) -> None:
    """Do nothing: rows are predicted at once; see `Results`."""


def _stack(
    experiment: Experiment,
    members: Mapping[str, Predictions],
    table: Table,
    *,
    mean: MeanKind,
    base: list[float] | None = None,
) -> Stack:
    return stack_members(
        members, table, fold=fold_of(experiment, table), metric=metric_of(experiment), mean=mean, base=base,
        groups=experiment.groups(table),
    )  # fmt: skip


def over_folds(by_fold: Members, mean: MeanKind) -> dict[str, Predictions]:
    """Return snapshot -> predictions of the rows of all folds; see `with_every_member` for what a fold lacks."""
    whole = with_every_member(by_fold, mean=mean)
    return {name: concat([of_fold[name] for of_fold in whole.values()]) for name in member_names(by_fold)}


def joined(shares: Sequence[Share], table: Table, mean: MeanKind) -> RowResult:
    """Return the mean over runs of each run's out-of-fold mean, of a table's rows; see `Results`."""
    predictions = [share.oof.result.predictions.select(table.ids) for share in shares]
    whole = average(predictions, mean=mean, weights=[share.weight for share in shares])
    return RowResult(whole, [], [], {})


def member_stack(experiment: Experiment, shares: Sequence[Share], table: Table) -> Stack:
    """Return runs x stages x cycles side by side, each over all folds; see `Results`."""
    members: dict[str, Predictions] = {}
    base: list[float] = []
    mean = experiment.competition.ensemble.mean
    for share in shares:
        own = {name: one.select(table.ids) for name, one in _oof_members(share, mean).items()}
        members |= own
        base += [share.weight / len(own)] * len(own)
    return _with_lent(_stack(experiment, members, table, mean=mean, base=base), shares)


def _with_lent(stack: Stack, shares: Sequence[Share]) -> Stack:
    """Return a stack of members of runs that knows which rows are of folds that lack a member."""
    lent = np.zeros((len(stack.names), len(stack.table)), dtype=bool)
    for share in shares:
        for fold, of_fold in share.oof.result.by_fold.items():
            for place, name in enumerate(stack.names):
                run, _, member = name.partition("/")
                if run == share.run.name and member not in of_fold:
                    lent[place] |= stack.fold == fold
    return replace(stack, lent=lent) if lent.any() else stack


def _oof_members(share: Share, mean: MeanKind) -> dict[str, Predictions]:
    if share.run.foreign:
        return {share.run.name: share.oof.result.predictions}
    return {f"{share.run.name}/{name}": one for name, one in over_folds(share.oof.result.by_fold, mean).items()}


def run_stack(experiment: Experiment, shares: Sequence[Share], table: Table) -> Stack:
    """Return the members of the only run, or runs, side by side; see `Results`."""
    mean = experiment.competition.ensemble.mean
    if len(shares) == 1:
        members = {name: one.select(table.ids) for name, one in _oof_members(shares[0], mean).items()}
        return _with_lent(_stack(experiment, members, table, mean=mean), shares)
    runs = {share.run.name: share.oof.result.predictions.select(table.ids) for share in shares}
    return _stack(experiment, runs, table, mean=mean, base=[share.weight for share in shares])


def weigh(experiment: Experiment, shares: Sequence[Share], table: Table, stack: Stack, recipe: Recipe) -> Weighed:
    """Return members weighed by a combiner, decided, and what that is worth; see `Results`."""
    outcome = evaluate(stack, recipe)
    weights = {name: float(weight) for name, weight in zip(stack.names, outcome.fit.weights, strict=True)}
    return Weighed(_judged(experiment, outcome, table), outcome, weights)


def details(run: Run, result: RowResult, judged: Judged, table: Table) -> dict[str, Any]:
    """Return `members`, and the cross-validation `table` with its `cv_mean`; see `Results`."""
    if not result.by_fold:
        return {"members": 1}
    records = _cv_table(run, result.by_fold, judged, table)
    columns = [name for name in records[0] if name not in ("fold", "rows")]
    known = {name: [row[name] for row in records if row[name] is not None] for name in columns}
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return {"members": sum(map(len, result.by_fold.values())), "table": records, "cv_mean": means}


def _cv_table(run: Run, by_fold: Members, judged: Judged, table: Table) -> list[dict[str, Any]]:
    """Return the cross-validation table, as of fast.ai's planet notebook (row F-26): one record per fold.

    `fold`, `rows`, the score of each snapshot alone and of their `mean`; with a decision they are decided by what the
    other folds found, and `threshold` (where there is only one) and `at_best` are what this fold itself would have
    liked best. Snapshots some fold lacks are None there; `cv_mean` is over those that have them.
    """
    metric = metric_of(run.experiment)
    recipe = Recipe(plain_mean(), decision_of(run.experiment))
    names = member_names(by_fold)
    records = []
    for fold, of_fold in by_fold.items():
        place = np.flatnonzero(np.isin(table.ids, next(iter(of_fold.values())).ids))
        rows = table.select(np.isin(np.arange(len(table)), place))
        assert rows.targets is not None, "training rows have targets"
        mean = average(list(of_fold.values()), mean=run.competition.ensemble.mean)
        record: dict[str, Any] = {"fold": fold, "rows": len(rows), **dict.fromkeys(names)}
        for name, one in [*of_fold.items(), ("mean", mean)]:
            values = aligned(one, ids=rows.ids, names=rows.target_names)
            record[name] = metric.or_none(rows.targets, decided_by_part(recipe, judged.outcome, values, place), rows)
        record |= {} if recipe.decision is None else {"threshold": None, "at_best": None}
        if recipe.decision is not None and record["mean"] is not None:  # the values are now those of the mean
            best = recipe.decision.fit(metric, rows.targets, values, rows)
            record["threshold"] = best.get("threshold")
            record["at_best"] = metric(rows.targets, recipe.decision.apply(values, best), rows)
        records.append(record)
    return records
