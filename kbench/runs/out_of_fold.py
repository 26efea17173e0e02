"""`kbench score`: the out-of-fold score, per fold and overall, with its interval.

Predict the rows a run did not train on, the test set, or new images; only what is not predicted yet.

What `ensemble:` fits to out-of-fold rows (weights, thresholds, cut points), and its honest score.

`judge` scores one run or an ensemble; `cv_table` shows it fold by fold and snapshot by snapshot.

The out-of-fold score of a dense task: from what each image's maps are worth, never from all maps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from kbench import files, registry
from kbench.config.competition import Competition
from kbench.data.table.table import Table
from kbench.ensemble.average import Stack, aligned, average, concat, stack_members
from kbench.ensemble.bootstrap import interval, paired
from kbench.ensemble.combiners import Combiner
from kbench.ensemble.combiners import mean as plain_mean
from kbench.ensemble.decisions import Decision
from kbench.ensemble.mask_rules import Rule
from kbench.ensemble.nested import Outcome, Recipe, decided_by_part, evaluate, gains
from kbench.errors import PredictionError, first_names
from kbench.inference import map_store
from kbench.inference.map_store import MapStore, MaskSet
from kbench.inference.predictions import Predictions, load
from kbench.metrics.maps import image_counts, truth_of
from kbench.runs import parts
from kbench.runs.experiment import Setup
from kbench.runs.members import members_of
from kbench.runs.predict import MapPart, fold_mean, masks_of, masks_of_kept, predict_out_of_fold, rows_of_fold
from kbench.runs.run import read_manifest
from kbench.tasks import exclusive
from kbench.training.fold import state_of
from kbench.training.fold_context import KEEP
from kbench.workspace import RunPaths


def score_of_fold(setup: Setup, paths: RunPaths, fold: int) -> float | None:
    """Return the score of a fold's own rows: the mean over its snapshots and views; None where it has no value."""
    identity = read_manifest(paths)
    predictions = fold_mean(members_of(setup, paths, identity, fold, "oof"), setup.competition.ensemble.mean)
    table = setup.train.select(setup.folds.valid(fold))
    values = aligned(predictions, ids=table.ids, names=table.target_names)
    return parts.build_metric(setup.competition).or_none(table.targets, values, table)


Members = Mapping[int, Mapping[str, Predictions]]
"""fold -> snapshot -> predictions of the fold's rows."""


def decision_of(competition: Competition) -> Decision | None:
    """Return the decision of `ensemble.decision`."""
    part = competition.ensemble.decision
    if part is None:
        return None
    made: Decision = registry.build("decision", part.name, part.params)
    return made


def combiner_of(competition: Competition) -> Combiner:
    """Return the combiner of `ensemble.combine`."""
    part = competition.ensemble.combine
    made: Combiner = registry.build("combiner", part.name, part.params)
    return made


def snapshot_name(member: Predictions) -> str:
    """Return `stage-cycle` of a snapshot's predictions."""
    return f"{member.source['stage']}-{member.source['tag']}"


def snapshots_of(
    setup: Setup, paths: RunPaths, identity: dict[str, str], folds: Sequence[int], part: str
) -> dict[int, dict[str, Predictions]]:
    """Return fold -> `stage-cycle` -> predictions of the fold's rows; they must have been made."""
    return {fold: {snapshot_name(one): one for one in members_of(setup, paths, identity, fold, part)} for fold in folds}


def plain_snapshots(
    setup: Setup, paths: RunPaths, identity: dict[str, str], folds: Sequence[int], *, device: str
) -> dict[int, dict[str, Predictions]]:
    """Return what `snapshots_of` returns, predicted with the plain view alone; made where it is missing."""
    views = setup.competition.tta.model_validate({"name": "none"})
    plain = replace(setup, competition=setup.competition.model_copy(update={"tta": views}))
    predict_out_of_fold(plain, paths, identity, folds, device, part="oof-plain")
    return snapshots_of(plain, paths, identity, folds, "oof-plain")


def over_folds(members: Members) -> dict[str, Predictions]:
    """Return snapshot -> predictions of the rows of all folds, for the snapshots that every fold has."""
    first, *others = members.values()
    names = [name for name in first if all(name in other for other in others)]
    return {name: concat([of_fold[name] for of_fold in members.values()]) for name in names}


def what_members_add(setup: Setup, members: Members, table: Table) -> list[dict[str, Any]]:
    """Return what each snapshot adds to the mean of a run's snapshots, as `gains` does; nothing for a single one."""
    whole = over_folds(members)
    if len(whole) < 2:
        return []
    stack = stack_of(setup, whole, table, mean=setup.competition.ensemble.mean)
    recipe = Recipe(plain_mean(), decision_of(setup.competition))
    return gains(stack, recipe, evaluate(stack, recipe))


def decided(predictions: Predictions, decision: Decision | None, found: dict[str, Any] | None) -> Predictions:
    """Return predictions as they are scored and sent: decided, where something was found."""
    if decision is None or found is None:
        return predictions
    return replace(predictions, values=decision.apply(np.asarray(predictions.values), found))


def of_targets(table: Table, names: Sequence[str]) -> Table:
    """Return a table with only some of its targets, in its own order."""
    if set(table.target_names) <= set(names):
        return table
    assert table.targets is not None, "training rows have targets"
    kept = [place for place, name in enumerate(table.target_names) if name in names]
    return replace(
        table, target_names=tuple(table.target_names[place] for place in kept), targets=table.targets[:, kept]
    )


def fold_of(setup: Setup, table: Table) -> np.ndarray:
    """Return [N] int, the fold of each row of a table."""
    return np.asarray(setup.folds.fold[np.searchsorted(setup.folds.ids, table.ids)])


def stack_of(
    setup: Setup, members: Mapping[str, Predictions], table: Table, *, mean: Any, base: list[float] | None = None
) -> Stack:
    """Return members side by side, of the rows of a table."""
    return stack_members(
        members, table, fold=fold_of(setup, table), metric=parts.build_metric(setup.competition), mean=mean, base=base,
        groups=setup.groups(table),
    )  # fmt: skip


def judge(setup: Setup, predictions: Predictions, table: Table) -> Outcome:
    """Return what the decision of `ensemble:` gives on predictions of a table's rows."""
    stack = stack_of(setup, {"mean": predictions}, table, mean="arithmetic")
    return evaluate(stack, Recipe(plain_mean(), decision_of(setup.competition)))


def score_record(setup: Setup, outcome: Outcome, table: Table) -> dict[str, Any]:
    """Return a score as JSON: metric, direction, rows, `score` with its interval (nested, if anything is fitted).

    What is fitted adds `plain`, the score on the rows it was fitted on, `optimism`, how much better that is, and
    `decision`: what was `found` on all rows, and `nested` without each fold's.
    """
    metric = parts.build_metric(setup.competition)
    found = outcome.nested
    record: dict[str, Any] = {
        "metric": metric.name, "maximise": metric.maximise, "rows": len(table), "score": found.value,
        "low": found.low, "high": found.high, "level": found.level, "interval": asdict(found),
    }  # fmt: skip
    if outcome.by_part:
        gap = outcome.plain.value - found.value
        record["plain"] = asdict(outcome.plain)
        record["optimism"] = gap if metric.maximise else -gap
    if outcome.fit.decided is not None:
        assert setup.competition.ensemble.decision is not None, "something was decided"
        record["decision"] = {
            "name": setup.competition.ensemble.decision.name, "found": outcome.fit.decided,
            "nested": {str(part): one.decided for part, one in outcome.by_part.items()},
        }  # fmt: skip
    return record


def cv_table(setup: Setup, members: Members, outcome: Outcome, table: Table) -> list[dict[str, Any]]:
    """Return the cross-validation table, as of fast.ai's planet notebook (row F-26): one record per fold.

    `fold`, `rows`, the score of each snapshot alone and of their `mean`; with a decision they are decided by what the
    other folds found, and `threshold` (where there is only one) and `at_best` are what this fold itself would have
    liked best. Snapshots some fold lacks are None there.
    """
    metric = parts.build_metric(setup.competition)
    recipe = Recipe(plain_mean(), decision_of(setup.competition))
    names = list(dict.fromkeys(name for of_fold in members.values() for name in of_fold))
    records = []
    for fold, of_fold in members.items():
        place = np.flatnonzero(np.isin(table.ids, next(iter(of_fold.values())).ids))
        rows = table.select(np.isin(np.arange(len(table)), place))
        assert rows.targets is not None, "training rows have targets"
        mean = average(list(of_fold.values()), mean=setup.competition.ensemble.mean)
        record: dict[str, Any] = {"fold": fold, "rows": len(rows), **dict.fromkeys(names)}
        for name, one in [*of_fold.items(), ("mean", mean)]:
            values = aligned(one, ids=rows.ids, names=rows.target_names)
            record[name] = metric(rows.targets, decided_by_part(recipe, outcome, values, place), rows)
        if recipe.decision is not None:  # the values are now those of the mean
            best = recipe.decision.fit(metric, rows.targets, values, rows)
            record["threshold"] = best.get("threshold")
            record["at_best"] = metric(rows.targets, recipe.decision.apply(values, best), rows)
        records.append(record)
    return records


def cv_means(table: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean over folds of each column of a table of `cv_table`; None where a fold has no value."""
    columns = [name for name in table[0] if name not in ("fold", "rows")]
    return {
        name: None if any(row[name] is None for row in table) else float(np.mean([row[name] for row in table]))
        for name in columns
    }


@dataclass(frozen=True)
class OutOfFold:
    """A run's out-of-fold predictions and what they are worth.

    Attributes:
        run: its name.
        predictions: of the rows of the trained folds.
        table: those rows.
        score: what `score.json` holds.
        outcome: the nested predictions that were scored, and what was found for them.
    """

    run: str
    predictions: Predictions
    table: Table
    score: dict[str, Any]
    outcome: Outcome


def trained_folds(paths: RunPaths, identity: dict[str, str]) -> list[int]:
    """Return the folds of a run that are trained."""
    return [
        fold
        for fold in paths.fold_numbers()
        if state_of(paths.fold(fold), training=identity["training"])["state"] == "done"
    ]


def require_folds(paths: RunPaths, identity: dict[str, str]) -> list[int]:
    """Return the trained folds.

    Raises:
        PredictionError: none is.
    """
    folds = trained_folds(paths, identity)
    if not folds:
        raise PredictionError(
            f"no fold of '{paths.name}' is trained to its end", "one trained fold or more", "`kbench train --fold 0`"
        )
    return folds


def out_of_fold(setup: Setup, paths: RunPaths, identity: dict[str, str], *, device: str = "auto") -> OutOfFold:
    """Return the out-of-fold predictions of a run's trained folds; predicts and scores what is missing.

    The score is that of the mean over each fold's snapshots and views, over all rows at once; beside it stand
    each fold's score and their spread.
    """
    if paths.foreign.is_file():
        predictions = load(paths.predictions("oof"))
        return _scored(setup, paths, predictions, members={}, folds=list(range(setup.folds.n)))
    folds = require_folds(paths, identity)
    predict_out_of_fold(setup, paths, identity, folds, device)
    mean = setup.competition.ensemble.mean
    members = {fold: members_of(setup, paths, identity, fold, "oof") for fold in folds}
    merged = concat([fold_mean(members[fold], mean) for fold in folds], out=paths.predictions("oof"))
    return _scored(setup, paths, merged, members=members, folds=folds)


def _scored(
    setup: Setup, paths: RunPaths, predictions: Predictions, *, members: dict[int, list[Predictions]], folds: list[int]
) -> OutOfFold:
    table = of_targets(setup.train.select(np.isin(setup.folds.fold, folds)), predictions.names)
    outcome = judge(setup, predictions, table)
    score = score_record(setup, outcome, table)
    of_fold, metric = fold_of(setup, table), parts.build_metric(setup.competition)
    assert table.targets is not None, "training rows have targets"
    per_fold = {}
    for fold in folds:
        rows = of_fold == fold
        per_fold[str(fold)] = metric(table.targets[rows], outcome.values[rows], table.select(rows))
    score |= {
        "run": paths.name, "folds": per_fold, "spread": float(np.std(list(per_fold.values()))),
        "missing": [fold for fold in range(setup.folds.n) if fold not in folds],
        "members": max(1, sum(map(len, members.values()))),
    }  # fmt: skip
    if members:
        named = {fold: {snapshot_name(one): one for one in of_fold} for fold, of_fold in members.items()}
        score["table"] = cv_table(setup, named, outcome, table)
        score["cv_mean"] = cv_means(score["table"])
    files.write_json(paths.score, score)
    return OutOfFold(paths.name, predictions, table, score, outcome)


_LEAST = 1 / 510  # half a step of the 8 bits that kept probabilities have


@dataclass(frozen=True)
class OofMaps:
    """Out-of-fold maps, read one row at a time, those that are asked for each time.

    Attributes:
        table: the rows.
        fold_of: [N] fold of each row.
        read: rows of the table -> yields (row, [K, H, W] float32), in any order; predicts again what was not kept.
    """

    table: Table
    fold_of: np.ndarray
    read: Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class Ruled:
    """A rule and what it is worth.

    Attributes:
        rule: for what is sent.
        params: its parameters, numbers only.
        score: metric, score and interval out of fold; with tuned numbers the nested ones, and beside them `plain` (on
            the rows they were found on), `optimism` and `postprocess` (what was found and gained).
        worth: [N, K, 3] of the masks that are scored, or None without out-of-fold maps.
        by_fold: fold -> the rule that made its masks.
    """

    rule: Rule
    params: dict[str, Any]
    score: dict[str, Any]
    worth: np.ndarray | None = None
    by_fold: dict[int, Rule] = field(default_factory=dict)


@dataclass(frozen=True)
class MapsOutOfFold:
    """A run's out-of-fold maps and what they are worth.

    Attributes:
        run: its name.
        parts: fold -> its rows and snapshots.
        stores: fold -> its maps.
        table: the rows of the trained folds.
        fold_of: [N] fold of each row of the table.
        worth: [N, K, 3] of the mean maps (`metrics.dense.measured`), or of what the rule makes of them.
        score: what `score.json` holds, of the same.
        ruled: the rule; None where masks are taken from the maps as they are.
    """

    run: str
    parts: dict[int, MapPart]
    stores: dict[int, MapStore]
    table: Table
    fold_of: np.ndarray
    worth: np.ndarray
    score: dict[str, Any]
    ruled: Ruled | None = None

    def maps(self) -> OofMaps:
        """Return the maps themselves; what was not kept is predicted again."""
        return OofMaps(self.table, self.fold_of, self._read)

    def _read(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for fold, store in self.stores.items():
            own = np.searchsorted(self.table.ids, store.ids)
            places = np.flatnonzero(np.isin(own, rows))
            if store.kept:
                yield from ((int(own[place]), store.maps(int(place))) for place in places)
            elif len(places):
                again = self.parts[fold].rows_again(places)
                yield from ((int(row), made.maps) for row, made in zip(own[places], again, strict=True))

    def one(self, name: str) -> np.ndarray:
        """Return the kept maps [K, H, W] of an id."""
        store = self.stores[int(self.fold_of[np.searchsorted(self.table.ids, name)])]
        return store.maps(int(np.searchsorted(store.ids, name)))


def mean_maps(found: Sequence[MapsOutOfFold], weights: Sequence[float] | None, *, mean: str = "arithmetic") -> OofMaps:
    """Return the weighted mean of several runs' kept maps, of the rows all of them have out of fold.

    Raises:
        PredictionError: they share no row.
    """
    if len(found) == 1:
        return found[0].maps()
    shared = found[0].table.ids
    for other in found[1:]:
        if other.table.target_names != found[0].table.target_names:
            raise PredictionError(
                f"runs of other classes: {first_names(list(other.table.target_names))} beside "
                f"{first_names(list(found[0].table.target_names))}",
                "the same classes in the same order", "leave out the runs of before `data.classes` was changed",
            )  # fmt: skip
        shared = np.intersect1d(shared, other.table.ids)
    if not len(shared):
        raise PredictionError(
            "the runs have no row out of fold in common", "runs with the same trained folds", "`kbench train`"
        )
    rows = np.searchsorted(found[0].table.ids, shared)
    shares = shares_of(weights, len(found))

    def read(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for row in wanted.tolist():
            maps = [one.one(str(shared[row])) for one in found]
            yield row, mean_of(maps, shares, task=found[0].table.task, mean=mean)

    return OofMaps(found[0].table.select(rows), found[0].fold_of[rows], read)


def shares_of(weights: Sequence[float] | None, count: int) -> np.ndarray:
    """Return [count] float32 weights that sum to 1; equal ones where none are given."""
    shares = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    return np.asarray(shares / shares.sum(), dtype=np.float32)


def mean_of(maps: Sequence[np.ndarray], shares: np.ndarray, *, task: str, mean: str) -> np.ndarray:
    """Return [K, H, W] float32, the weighted mean of maps of one shape.

    Args:
        maps: [K, H, W] of each member.
        shares: one number per member; they sum to 1.
        task: the dense task; the geometric mean of classes that exclude one another sums to 1 again.
        mean: `arithmetic` or `geometric`.
    """
    geometric = mean == "geometric"
    total = np.zeros(maps[0].shape, dtype=np.float32)
    for share, one in zip(shares, maps, strict=True):
        total += share * (np.log(np.maximum(one, _LEAST)) if geometric else one)
    if not geometric:
        return total
    values = np.exp(total)
    return np.asarray(values / values.sum(axis=0) if exclusive(task, len(values)) else values)


def maps_out_of_fold(
    setup: Setup, paths: RunPaths, identity: dict[str, str], folds: list[int], *, device: str = "auto"
) -> MapsOutOfFold:
    """Return the out-of-fold maps of trained folds, before any post-process; predicts and scores what is missing."""
    pieces = {fold: rows_of_fold(setup, paths, identity, fold, device) for fold in folds}
    stores = {fold: piece.stored() for fold, piece in pieces.items()}
    chosen = np.isin(setup.folds.fold, folds)
    table = setup.train.select(chosen)
    fold_of = np.asarray(setup.folds.fold[chosen])
    worth = _gathered(table, stores, lambda store: _measured(store)[-1])
    score = _score(setup, table, fold_of, worth, stores)
    score |= {"run": paths.name, "missing": [fold for fold in range(setup.folds.n) if fold not in folds]}
    return MapsOutOfFold(paths.name, pieces, stores, table, fold_of, worth, score)


def score_of_maps(setup: Setup, paths: RunPaths, fold: int) -> float | None:
    """Return the score of a fold's own rows: the mean over its snapshots and views; None where it has no value."""
    store = map_store.load(paths.fold(fold).predictions("oof", "maps"))
    worth, table = _measured(store)[-1], setup.train.select(setup.folds.valid(fold))
    return parts.build_metric(setup.competition).or_none(truth_of(worth, table.task), worth, table)


def _measured(store: MapStore) -> np.ndarray:
    if store.worth is None:
        raise PredictionError(
            f"the maps at '{store.path}' were made without their truth", "masks of the training rows",
            "`kbench predict --force`",
        )  # fmt: skip
    return store.worth


def _reading(name: str, store: MapStore) -> np.ndarray:
    return np.asarray(_measured(store)[store.readings.index(name)])


def _gathered(table: Table, stores: dict[int, MapStore], pick: Callable[[MapStore], np.ndarray]) -> np.ndarray:
    """Return [N, K, 3] in the order of the table, of what is picked from each store."""
    ids = np.concatenate([store.ids for store in stores.values()])
    values = np.concatenate([pick(store) for store in stores.values()])
    return np.asarray(values[np.argsort(ids)][np.searchsorted(np.sort(ids), table.ids)])


def score_worth(setup: Setup, table: Table, worth: np.ndarray) -> dict[str, Any]:
    """Return metric, direction, score and interval of what maps are worth."""
    metric = parts.build_metric(setup.competition)
    found = interval(metric, truth_of(worth, table.task), worth, table, groups=setup.groups(table))
    return {
        "metric": metric.name, "maximise": metric.maximise, "rows": len(table), "score": found.value,
        "low": found.low, "high": found.high, "level": found.level,
    }  # fmt: skip


def _score(
    setup: Setup, table: Table, fold_of: np.ndarray, worth: np.ndarray, stores: dict[int, MapStore]
) -> dict[str, Any]:
    return score_worth(setup, table, worth) | fold_scores(setup, table, fold_of, worth) | {
        "members": sum(len(store.source["members"]) for store in stores.values()),
        "growth": growth(setup, table, _readings(table, stores)),
    }  # fmt: skip


def fold_scores(setup: Setup, table: Table, fold_of: np.ndarray, worth: np.ndarray) -> dict[str, Any]:
    """Return the score of each of the trained `folds`, and their `spread`."""
    metric = parts.build_metric(setup.competition)
    scores = {}
    for fold in np.unique(fold_of).tolist():
        rows = fold_of == fold
        scores[str(fold)] = metric(truth_of(worth[rows], table.task), worth[rows], table.select(rows))
    return {"folds": scores, "spread": float(np.std(list(scores.values())))}


def growth(setup: Setup, table: Table, readings: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return what snapshots, views and a rule add, out of fold: one record per reading.

    A record has the reading's name, its score, and the gain of the last reading over it with its interval.

    Args:
        setup: the competition.
        table: the N rows.
        readings: name -> [N, K, 3].
    """
    metric = parts.build_metric(setup.competition)
    kept = setup.groups(table)
    last, whole = list(readings.items())[-1]
    records = []
    for name, worth in readings.items():
        truth = truth_of(worth, table.task)
        record: dict[str, Any] = {"ensemble": name, "score": metric(truth, worth, table)}
        if name != last:
            gain = paired(metric, truth, whole, worth, table, groups=kept)
            record |= {"gain": gain.value, "low": gain.low, "high": gain.high}
        records.append(record)
    return records


def readings_of(oof: MapsOutOfFold) -> dict[str, np.ndarray]:
    """Return what every reading that all folds have is worth: name -> [N, K, 3]; the mean of everything is the last."""
    return _readings(oof.table, oof.stores)


def _readings(table: Table, stores: dict[int, MapStore]) -> dict[str, np.ndarray]:
    shared = [name for name in next(iter(stores.values())).readings if all(name in s.readings for s in stores.values())]
    return {name: _gathered(table, stores, partial(_reading, name)) for name in shared}


def ruled(setup: Setup, oof: OofMaps, rule: Rule) -> np.ndarray:
    """Return [N, K, 3] of the masks a rule makes of out-of-fold maps."""
    truth = truth_masks(setup, oof.table)
    worth = np.zeros((len(oof.table), len(oof.table.target_names), 3), dtype=np.int64)
    for row, maps in oof.read(np.arange(len(worth))):
        worth[row] = image_counts(rule.apply(maps), truth(row), n_classes=worth.shape[1])
    return worth


def masks_out_of_fold(oof: MapsOutOfFold) -> MaskSet:
    """Return the masks of all rows of a run's trained folds, those that are scored."""
    ids, names = oof.table.ids, oof.table.target_names
    masks = {fold: _masks_of_fold(oof, fold) for fold in oof.stores}

    def read(row: int) -> np.ndarray:
        own = masks[int(oof.fold_of[row])]
        return own[int(np.searchsorted(own.ids, ids[row]))]

    return MaskSet(ids, names, oof.table.task, {"run": oof.run}, read)


def _masks_of_fold(oof: MapsOutOfFold, fold: int) -> MaskSet:
    store = oof.stores[fold]
    if oof.ruled is None:
        return store.masks()
    rule = oof.ruled.by_fold[fold]
    return masks_of_kept(store, rule) if store.kept else masks_of(oof.parts[fold], rule)


def truth_masks(setup: Setup, table: Table) -> Callable[[int], np.ndarray]:
    """Return the function from a row of a table of training rows to its true mask, [H, W, M]."""
    masks = parts.masks_of(setup.competition, setup.train, setup.workspace.cache(), what="training")
    assert masks is not None, "a dense task has masks"
    truth, places = masks(KEEP), np.searchsorted(setup.train.ids, table.ids)
    return lambda row: truth[int(places[row])]
