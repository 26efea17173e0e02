"""Predictions that are rows of numbers, [N, K]: an array on disk for each member, averaged block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbench import console, files, registry
from kbench.data.dataset import auto_workers
from kbench.data.images.cache import Images, Resize
from kbench.data.table.table import Table
from kbench.ensemble.average import Stack, aligned, average, concat, ensemble_run, ranked, stack_members
from kbench.ensemble.combiners import mean as plain_mean
from kbench.ensemble.nested import Recipe, decided_by_part, evaluate
from kbench.ensemble.pseudo_labels import Chosen, Sure, chosen_rows
from kbench.errors import PredictionError, first_names
from kbench.inference.activations import Seen
from kbench.inference.mean import MeanKind, mean_of_task
from kbench.inference.predictions import Predictions, load
from kbench.inference.row_pass import Job, Member, predict_members
from kbench.machine import keep_freed_memory
from kbench.models.checkpoint import Checkpoint
from kbench.models.device import choose_device
from kbench.runs import parts
from kbench.runs.experiment import Experiment
from kbench.runs.members import checkpoints, member_of, needed_checkpoints
from kbench.runs.results import Judged, Rows, Share, Weighed, decision_of, fold_of, metric_of, predicting, whole

if TYPE_CHECKING:
    from kbench.config.section import Component
    from kbench.runs.run import Run

TAKES_IMAGES = True
Members = Mapping[int | str, Mapping[str, Predictions]]
"""fold, or `full` -> `stage-cycle` -> predictions."""


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


# -- predicting ------------------------------------------------------------------------------------------------------


def member_predictions(
    run: Run,
    rows: Rows,
    places: Sequence[int | str],
    *,
    chosen: np.ndarray | None = None,
    subset: str = "fold",
    only: Sequence[str] | None = None,
    views: Component | None = None,
) -> Members:
    """Return what the snapshots of some folds say of rows; what is not predicted yet is, every image decoded once.

    Args:
        run: the run.
        rows: which.
        places: folds, or `full`, whose snapshots predict.
        chosen: [n] of the table's rows; all by default.
        subset: `fold` or `full`, as in `checkpoints`.
        only: names of stages or snapshots that count; those of `ensemble.members` by default.
        views: other views than those of `tta:`.
    """
    if run.foreign:
        return {0: {run.name: load(run.paths.predictions(rows.part))}}
    chosen = np.arange(len(rows.table)) if chosen is None else chosen
    wanted = [
        (place, checkpoint, _file(run, rows, place, checkpoint))
        for place in places
        for checkpoint in needed_checkpoints(run, place, subset=subset, only=only)
    ]
    _predict_missing(run, rows, chosen, [(checkpoint, out) for _, checkpoint, out in wanted], views)
    members: dict[int | str, dict[str, Predictions]] = {place: {} for place in places}
    for place, checkpoint, out in wanted:
        members[place][checkpoint.member] = load(out)
    return members


def _file(run: Run, rows: Rows, place: int | str, checkpoint: Checkpoint) -> Path:
    """Return the JSON of a snapshot's predictions."""
    if rows.folder is not None:
        return rows.folder / f"{place}-{checkpoint.member}.json"
    return run.paths.fold(place).predictions(rows.part, checkpoint.member)


def _predict_missing(
    run: Run, rows: Rows, chosen: np.ndarray, wanted: Sequence[tuple[Checkpoint, Path]], views: Component | None
) -> None:
    competition, table, cache = run.competition, rows.table, run.experiment.workspace.cache()
    images = rows.handed or parts.opened_images(competition, table, cache, what=rows.part)
    job = job_of(run, table.ids[chosen], chosen, images, rows.device, views=views)
    if rows.handed is not None:  # what is handed over lies in this process
        job = replace(job, workers=0)
    if rows.limit:
        few = job.batch_size if len(job.views) == 1 else rows.limit * job.batch_size
        job = replace(job, ids=job.ids[:few], rows=job.rows[:few])
    stages = {stage.name: stage for stage in parts.build_stages(competition)}
    content = "" if rows.handed is not None else parts.content_of(competition, table, cache)

    def missing() -> list[tuple[Checkpoint, Member]]:
        members = []
        for checkpoint, out in wanted:
            source = {**source_of(run, checkpoint, job.ids, views), "content": content}
            known = None if rows.force else whole(out)
            if known is None or known["source"] != source:
                member = member_of(run, checkpoint, out=out, source=source, stages=stages, device=job.device)
                members.append((checkpoint, member))
        return members

    if not missing():
        return
    with predicting([out for _, out in wanted]):
        live = rows.limit or rows.handed is not None
        todo = [
            member if live else _with_activations(run, table, job, member, checkpoint)
            for checkpoint, member in missing()  # another command may have predicted them meanwhile
        ]
        if not todo:
            return
        what = f"{rows.part}: {len(todo)} models x {len(job.views)} views"
        with console.bar(f"predicting {what}") as advance:
            for done in predict_members(job, todo):
                advance(done, len(job.rows))


def job_of(
    run: Run,
    ids: np.ndarray,
    rows: np.ndarray,
    images: Callable[[Resize], Images],
    device: str,
    *,
    views: Component | None = None,
) -> Job:
    """Return what is predicted of rows, as a run predicts them.

    Args:
        run: the run.
        ids: [N] text.
        rows: [N] rows of the images.
        images: resizing -> images.
        device: where the models run.
        views: other views than those of `tta:`.
    """
    competition, chosen, names = run.competition, choose_device(device), run.experiment.train.target_names
    if chosen.type == "cpu":
        keep_freed_memory()
    return Job(
        ids=ids, rows=rows, images=images, names=names, task=competition.task,
        views=parts.build_views(competition) if views is None else registry.build("views", views.name, views.params),
        mean=mean_of_task(competition.ensemble.mean, competition.task, len(names)), device=chosen,
        batch_size=competition.loader.valid_batch_size or 64,
        workers=auto_workers(competition.loader.workers, device=chosen.type), seed=competition.seed,
    )  # fmt: skip


def source_of(run: Run, checkpoint: Checkpoint, ids: np.ndarray, views: Component | None = None) -> dict[str, Any]:
    """Return what a member's predictions depend on."""
    info = checkpoint.info
    return {
        "fold": info["fold"], "stage": info["stage"], "tag": info["tag"], "training": info["training"],
        "folds": info["folds"], "weights": checkpoint.checksum, "body": checkpoint.body,
        "views": (views or run.competition.tta).model_dump(), "mean": run.competition.ensemble.mean,
        "ids": files.digest([str(name) for name in ids]),
    }  # fmt: skip


def _with_activations(run: Run, table: Table, job: Job, member: Member, checkpoint: Checkpoint) -> Member:
    """Return a member that looks up the plain view where its head was trained on precomputed activations."""
    info = checkpoint.info
    if not info.get("precomputed"):
        return member
    stage = next(stage for stage in parts.build_stages(run.competition) if stage.name == info["stage"])
    seen = Seen(stage.valid_show, info["scale"], member.precision, info["channels_last"])
    features = parts.activations_of(
        run.competition, table, run.experiment.workspace.cache(), job.images, device=job.device,
        plugins=run.experiment.plugin_files(),
    )  # fmt: skip
    return replace(member, precomputed=lambda model: features(model, seen).values)


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
    """Return rows as the members that have a weight predict them, combined as they were scored; see `Results`."""
    if weights is None:
        return _plain_mean(shares, rows, mean)
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
        names = {name: name.partition("/")[2] for name in wanted}
        members_of = partial(member_predictions, run, rows, share.places, subset=share.subset)
        members_of(only=list(names.values()))  # all of them in one pass; those of a name are read again
        for name, weight in wanted.items():
            own = [one for of_place in members_of(only=[names[name]]).values() for one in of_place.values()]
            _check_there(share, name, own)
            scaled = [replace(one, values=ranked(np.asarray(one.values))) if ranks else one for one in own]
            averaged.append(_mean_of([[one] for one in scaled], mean))
            used.append(weight)
            records += [_record(run, one) for one in own]
            numbers += [weight / total / len(own)] * len(own)
    whole = average(averaged, mean=mean, weights=used) if len(averaged) > 1 else averaged[0]
    return RowResult(whole, records, numbers, {})


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


def _check_there(share: Share, name: str, own: Sequence[Predictions]) -> None:
    if own:
        return
    known = [
        one.member for place in share.places for one in checkpoints(share.run, place, subset=share.subset)
    ]  # fmt: skip
    raise PredictionError(
        f"the member '{name}' has a weight, but no model of all rows",
        f"one of {first_names(sorted(set(known)))}",
        "`--combine mean` with `--full`, or leave out `--full`",
    )


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


# -- scoring ---------------------------------------------------------------------------------------------------------


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


def over_folds(by_fold: Members) -> dict[str, Predictions]:
    """Return snapshot -> predictions of the rows of all folds, for the snapshots that every fold has."""
    first, *others = by_fold.values()
    names = [name for name in first if all(name in other for other in others)]
    return {name: concat([of_fold[name] for of_fold in by_fold.values()]) for name in names}


def joined(shares: Sequence[Share], table: Table, mean: MeanKind) -> RowResult:
    """Return the mean over runs of each run's out-of-fold mean, of a table's rows; see `Results`."""
    predictions = [share.oof.result.predictions.select(table.ids) for share in shares]
    whole = average(predictions, mean=mean, weights=[share.weight for share in shares])
    return RowResult(whole, [], [], {})


def member_stack(experiment: Experiment, shares: Sequence[Share], table: Table) -> Stack:
    """Return runs x stages x cycles side by side, each over all folds; see `Results`."""
    members: dict[str, Predictions] = {}
    base: list[float] = []
    for share in shares:
        own = {name: one.select(table.ids) for name, one in _oof_members(share).items()}
        members |= own
        base += [share.weight / len(own)] * len(own)
    return _stack(experiment, members, table, mean=experiment.competition.ensemble.mean, base=base)


def _oof_members(share: Share) -> dict[str, Predictions]:
    if share.run.foreign:
        return {share.run.name: share.oof.result.predictions}
    return {f"{share.run.name}/{name}": one for name, one in over_folds(share.oof.result.by_fold).items()}


def run_stack(experiment: Experiment, shares: Sequence[Share], table: Table) -> Stack:
    """Return the members of the only run, or runs, side by side; see `Results`."""
    mean = experiment.competition.ensemble.mean
    if len(shares) == 1:
        members = {name: one.select(table.ids) for name, one in _oof_members(shares[0]).items()}
        return _stack(experiment, members, table, mean=mean)
    runs = {share.run.name: share.oof.result.predictions.select(table.ids) for share in shares}
    return _stack(experiment, runs, table, mean=mean, base=[share.weight for share in shares])


def weigh(experiment: Experiment, shares: Sequence[Share], table: Table, stack: Stack, recipe: Recipe) -> Weighed:
    """Return members weighed by a combiner, decided, and what that is worth; see `Results`."""
    outcome = evaluate(stack, recipe)
    weights = {name: float(weight) for name, weight in zip(stack.names, outcome.fit.weights, strict=True)}
    return Weighed(_judged(experiment, outcome, table), outcome, weights)


# -- what a score says of the members of a run -----------------------------------------------------------------------


def details(run: Run, result: RowResult, judged: Judged, table: Table) -> dict[str, Any]:
    """Return `members`, and the cross-validation `table` with its `cv_mean`; see `Results`."""
    if not result.by_fold:
        return {"members": 1}
    records = _cv_table(run, result.by_fold, judged, table)
    columns = [name for name in records[0] if name not in ("fold", "rows")]
    means = {
        name: None if any(row[name] is None for row in records) else float(np.mean([row[name] for row in records]))
        for name in columns
    }
    return {"members": sum(map(len, result.by_fold.values())), "table": records, "cv_mean": means}


def _cv_table(run: Run, by_fold: Members, judged: Judged, table: Table) -> list[dict[str, Any]]:
    """Return the cross-validation table, as of fast.ai's planet notebook (row F-26): one record per fold.

    `fold`, `rows`, the score of each snapshot alone and of their `mean`; with a decision they are decided by what the
    other folds found, and `threshold` (where there is only one) and `at_best` are what this fold itself would have
    liked best. Snapshots some fold lacks are None there.
    """
    metric = metric_of(run.experiment)
    recipe = Recipe(plain_mean(), decision_of(run.experiment))
    names = list(dict.fromkeys(name for of_fold in by_fold.values() for name in of_fold))
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
        if recipe.decision is not None and record["mean"] is not None:  # the values are now those of the mean
            best = recipe.decision.fit(metric, rows.targets, values, rows)
            record["threshold"] = best.get("threshold")
            record["at_best"] = metric(rows.targets, recipe.decision.apply(values, best), rows)
        records.append(record)
    return records
