"""Predictions that are maps, [K, H, W] of an image: one store on disk for the mean of all members, read row by row.

The maps of many images are never all in memory. What members weigh is found on some pixels of every image; what that
is worth is counted on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbench import console, registry
from kbench.data.table.table import Table
from kbench.ensemble.average import Stack, member_names
from kbench.ensemble.bootstrap import interval
from kbench.ensemble.mask_rules import Rule
from kbench.ensemble.mask_tuning import neutral, tune, tunes
from kbench.ensemble.nested import Fit, Outcome, Recipe, evaluate
from kbench.ensemble.pseudo_labels import Chosen, Sure, chosen_masks
from kbench.errors import PredictionError, first_names
from kbench.inference.map_pass import sampled, views_apart
from kbench.inference.map_store import MapStore, MaskSet, NumberSet
from kbench.inference.mean import MeanKind, mean_of_task
from kbench.metrics.maps import image_counts, image_errors, pixel_worth, truth_of
from kbench.models.checkpoint import Checkpoint
from kbench.runs import parts
from kbench.runs.experiment import Experiment
from kbench.runs.filled_maps import filled
from kbench.runs.leaving_out import lessened
from kbench.runs.map_parts import (
    MapPart,
    MapResult,
    fold_part,
    narrowed,
    of_folds,
    records_of,
    table_part,
)
from kbench.runs.map_scores import details as details
from kbench.runs.map_scores import gathered, measured
from kbench.runs.map_slices import joined_sets, over_slices
from kbench.runs.results import Judged, Rows, Share, Weighed, fold_of, metric_of
from kbench.tasks import SEGMENTATION, exclusive
from kbench.training.fold_context import KEEP

if TYPE_CHECKING:
    from kbench.runs.run import Run

TAKES_IMAGES = False
_EIGHT_BITS = 1 / 510  # half a step of kept probabilities: the floor of their geometric mean
_SAMPLED = 1 << 26  # values of pixels that weights are found on, of all members together: 256 MB of float32
_PIXELS = 4096  # of an image at most


# -- predicting ------------------------------------------------------------------------------------------------------


def out_of_fold(
    run: Run, folds: Sequence[int], *, device: str, limit: int | None = None, force: bool = False
) -> MapResult:
    """Return the maps of some folds' own rows, each the mean over its fold's snapshots and views; see `Results`."""
    return of_folds(run, {fold: fold_part(run, fold, device=device, limit=limit, force=force) for fold in folds})


def predict(
    shares: Sequence[Share],
    rows: Rows,
    *,
    mean: MeanKind,
    weights: Mapping[str, float] | None = None,
    ranks: bool = False,
) -> MapResult:
    """Return rows as runs in their shares, or members with weights of their own, predict them; see `Results`.

    Rows whose images cannot be read are left out; `sent` fills them.
    """
    if rows.slices:
        fewer = [(one, *lessened(shares, weights, one.without)) for one in rows.slices]
        return over_slices(rows, [predict(own, one, mean=mean, weights=its) for one, own, its in fewer])
    table, rows = rows.table, rows.readable()
    parts_of, numbers = [], []
    for share in shares:
        own = None
        if weights is not None:
            prefix = f"{share.run.name}/"
            own = {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix) and one}
            if not own:
                continue
        parts_of.append(table_part(share.run, rows, share.places, subset=share.subset, weights=own))
        numbers.append(share.weight if own is None else sum(own.values()))
    first = parts_of[0]
    names, task = first.run.experiment.train.target_names, first.run.competition.task
    for other in parts_of[1:]:
        if other.run.experiment.train.target_names != names:
            raise _other_classes(names, other.run.experiment.train.target_names)
    members, of_all = records_of(list(zip(parts_of, numbers, strict=True)))
    scaled = np.asarray(np.array(numbers) / sum(numbers), dtype=np.float32)
    by_number = dict(enumerate(parts_of))

    def read(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        return _mean_rows(list(result.stores.values()), scaled, wanted, mean=mean)

    result = MapResult(first.ids, names, task, read, members, of_all, by_number, None, mean, scaled, table)
    return result


def _other_classes(names: Sequence[str], others: Sequence[str]) -> PredictionError:
    return PredictionError(
        f"runs of other classes: {first_names(list(others))} beside {first_names(list(names))}",
        "the same classes in the same order", "leave out the runs of before `data.classes` was changed",
    )  # fmt: skip


def _mean_rows(
    stores: Sequence[MapStore], shares: np.ndarray, rows: np.ndarray, *, mean: MeanKind
) -> Iterator[tuple[int, np.ndarray]]:
    how = mean_of_task(mean, stores[0].task, len(stores[0].names), floor=_EIGHT_BITS)
    for row in rows.tolist():
        total = None
        for store, share in zip(stores, shares, strict=True):
            total = how.add(total, store.maps(row), share)
        yield row, how.back(total, axis=0)


def sent(experiment: Experiment, result: MapResult, fit: Rule) -> MaskSet | NumberSet:
    """Return the masks a rule makes, or the numbers, read a row at a time; see `Results`.

    Where maps are not kept, the masks are. Rows of the test set whose image cannot be read are filled.
    """
    if result.slices:
        return joined_sets(result, [sent(experiment, one, fit) for one in result.slices])
    maps = _sent(experiment, result, fit)
    return maps if result.table is None else filled(experiment, maps, result.table)


def _sent(experiment: Experiment, result: MapResult, fit: Rule) -> MaskSet | NumberSet:
    if len(result.parts) == 1:
        part = result.parts[0]
        plain = experiment.competition.maps.postprocess.name == "none" and result.task in SEGMENTATION
        if plain:
            return part.stored().masks()
        if not part.keeps():
            return part.ruled(fit).masks()
    stores = list(result.stores.values())
    kind = MaskSet if result.task in SEGMENTATION else NumberSet

    def read(row: int) -> np.ndarray:
        (_, maps), *_ = result.read(np.array([row]))
        return fit.apply(maps)

    return kind(result.ids, result.names, result.task, stores[0].source, read)


def view_reader(run: Run, checkpoint: Checkpoint, rows: Rows, chosen: np.ndarray) -> Callable[[int], np.ndarray]:
    """Return place among the chosen rows -> [1 + n, K, H, W] of each view, predicted when asked; see `Results`."""
    job, (member,) = MapPart(run, rows, chosen, [(checkpoint, 1.0)], Path()).job()

    def read(row: int) -> np.ndarray:
        (_, values), *_ = views_apart(replace(job, rows=chosen[row : row + 1]), member)
        return values

    return read


# -- scoring ---------------------------------------------------------------------------------------------------------


def plain(result: MapResult, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return (truth, [N, K, 3] what the mean maps are worth) of a table's rows; see `Results`."""
    worth = gathered(result, table, lambda store: measured(store)[-1])
    return truth_of(worth, table.task), worth


def truth_masks(experiment: Experiment, table: Table) -> Callable[[int], np.ndarray]:
    """Return the function from a row of a table of training rows to its true mask, [H, W, M]."""
    train = experiment.train
    masks = parts.masks_of(experiment.competition, train, experiment.workspace.cache(), what="training")
    assert masks is not None, "a dense task has masks"
    truth, places = masks(KEEP), np.searchsorted(train.ids, table.ids)
    return lambda row: truth[int(places[row])]


def build_rule(experiment: Experiment, params: dict[str, Any] | None = None) -> Rule:
    """Return the mask rule of the YAML, or with other parameters; what is to be tuned changes nothing."""
    part = experiment.competition.maps.postprocess
    params = neutral(part.params) if params is None else params
    rule: Rule = registry.build(
        "postprocess", part.name, {key: value for key, value in params.items() if key != "grid"},
        _names=experiment.train.target_names, _task=experiment.competition.task,
    )  # fmt: skip
    return replace(rule, source={"name": part.name, "params": params})


def undecided(experiment: Experiment, why: str = "") -> Rule:
    """Return the mask rule, what is to be tuned changing nothing, as in a trial; see `Results`.

    Raises:
        PredictionError: something is to be tuned, and this is no trial.
    """
    if why and tunes(experiment.competition.maps.postprocess.params):
        raise PredictionError(
            f"{why} have no out-of-fold maps to tune the post-process on",
            "numbers in place of `tuned`",
            "`kbench ensemble` on the folds says them; write them under `maps: {postprocess: ...}`",
        )
    return build_rule(experiment)


def judge(experiment: Experiment, result: MapResult, table: Table) -> Judged:
    """Return the post-process of the YAML, tuned where it says so, and its out-of-fold score; see `Results`."""
    part, metric, numbers = experiment.competition.maps.postprocess, metric_of(experiment), fold_of(experiment, table)
    groups = experiment.groups(table)
    if not tunes(part.params):
        return _untuned(experiment, result, table)
    with console.bar("tuning the post-process") as advance:
        tuned = tune(
            result.read, truth_masks(experiment, table), fold_of=numbers, metric=metric, table=table,
            params=part.params, groups=groups, advance=advance,
        )  # fmt: skip
    outcome = tuned.outcome
    by_part = {part: build_rule(experiment, params) for part, params in outcome.by_part.items()}
    record = {"postprocess": tuned.as_json()}
    rule = build_rule(experiment, outcome.fit)
    return Judged(outcome, truth_of(outcome.values, table.task), rule, record, outcome.fit, by_part)


def _untuned(experiment: Experiment, result: MapResult, table: Table) -> Judged:
    """Return the post-process of the YAML, what is to be tuned changing nothing, and its out-of-fold score."""
    part, numbers, rule = experiment.competition.maps.postprocess, fold_of(experiment, table), build_rule(experiment)
    as_measured = part.name == "none" and result.fold_of is not None  # the pass has measured the mean maps
    worth = plain(result, table)[1] if as_measured else _worth_after(experiment, result, rule, table)
    targets, params = truth_of(worth, table.task), neutral(part.params)
    score = interval(metric_of(experiment), targets, worth, table, groups=experiment.groups(table))
    return Judged(Outcome(params, score, score, worth, numbers, {}), targets, rule, thresholds=params)


def _worth_after(experiment: Experiment, result: MapResult, rule: Rule, table: Table) -> np.ndarray:
    """Return [N, K, 3] of what a rule makes of out-of-fold maps."""
    truth, k = truth_masks(experiment, table), len(table.target_names)
    numbers = result.task not in SEGMENTATION
    worth = np.zeros((len(table), k, 3), dtype=np.float64 if numbers else np.int64)
    for row, maps in result.read(np.arange(len(table))):
        decided = rule.apply(maps)
        worth[row] = image_errors(decided, truth(row)) if numbers else image_counts(decided, truth(row), n_classes=k)
    return worth


def chosen(result: MapResult, sure: Sure) -> Iterator[Chosen]:
    """Yield the masks of the rows a result is sure of, predicted and not stored; see `Results`."""
    (part,) = result.parts.values()
    maps = ((str(name), row.maps) for name, row in zip(part.ids, part.rows_again(), strict=True))
    yield from chosen_masks(maps, sure, task=result.task)


def made(result: MapResult) -> None:
    """Predict what is missing; see `Results`."""
    for one in result.slices or (result,):
        _ = one.stores


def scored(experiment: Experiment, result: MapResult, judged: Judged) -> MaskSet | NumberSet:
    """Return what is scored of the rows of a run's trained folds: masks, each by the rule of its part, or numbers."""
    assert result.fold_of is not None, "out-of-fold maps are those of folds"
    numbers, of_part = judged.outcome.parts, {}
    for fold, part in result.parts.items():
        own = result.fold_of == fold
        for number in np.unique(numbers[own]).tolist():
            some = own & (numbers == number)
            few = part if some.sum() == own.sum() or part.keeps() else narrowed(part, fold, number, result.ids[some])
            rule = judged.by_part.get(number, judged.fit)
            of_part[number] = sent(experiment, replace(result, ids=few.ids, parts={0: few}, read=_reader(few)), rule)

    def read(row: int) -> np.ndarray:
        masks = of_part[int(numbers[row])]
        return masks[int(np.searchsorted(masks.ids, result.ids[row]))]

    kind = MaskSet if result.task in SEGMENTATION else NumberSet
    return kind(result.ids, result.names, result.task, {"run": next(iter(result.parts.values())).run.name}, read)


def _reader(part: MapPart) -> Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]:
    def read(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        store = part.stored()
        yield from ((int(row), store.maps(int(row))) for row in rows)

    return read


# -- several runs, and weights of members ------------------------------------------------------------------------------


def joined(shares: Sequence[Share], table: Table, mean: MeanKind) -> MapResult:
    """Return the mean of several runs' out-of-fold maps, of a table's rows; see `Results`."""
    if len(shares) == 1:
        only: MapResult = shares[0].oof.result
        return only
    weights = {share.run.name: share.weight for share in shares}
    return _joined([share.oof.result for share in shares], table, mean, lambda fold: list(weights.values()))


def _joined(
    results: Sequence[MapResult], table: Table, mean: MeanKind, weights_of: Callable[[int], Sequence[float]]
) -> MapResult:
    """Return the mean of results that know every row of a table, with weights that depend on the fold."""
    first = results[0]
    for other in results[1:]:
        if other.names != first.names:
            raise _other_classes(first.names, other.names)
    assert first.fold_of is not None, "out-of-fold maps are those of folds"
    numbers = first.fold_of[np.searchsorted(first.ids, table.ids)]
    how = mean_of_task(mean, first.task, len(first.names), floor=_EIGHT_BITS)

    def read(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for row in rows.tolist():
            weights = np.asarray(weights_of(int(numbers[row])), dtype=np.float64)
            shares, total = (weights / weights.sum()).astype(np.float32), None
            for result, share in zip(results, shares, strict=True):
                if share > 0:
                    total = how.add(total, _kept(result, int(numbers[row]), str(table.ids[row])), share)
            yield row, how.back(total, axis=0)

    return MapResult(np.asarray(table.ids), first.names, first.task, read, [], [])


def _kept(result: MapResult, fold: int, name: str) -> np.ndarray:
    store = result.stores[fold]
    return store.maps(int(np.searchsorted(store.ids, name)))


def run_stack(experiment: Experiment, shares: Sequence[Share], table: Table) -> None:
    """Return nothing: what single members add to maps takes another pass over the images; see `Results`."""


def member_stack(experiment: Experiment, shares: Sequence[Share], table: Table) -> Stack:
    """Return what the members of runs say of some pixels of every row, side by side; see `Results`.

    Members are snapshots that any fold has; one that a fold lacks says there what the mean of its others says. One pass
    over the images for each run and fold.
    """
    names: list[str] = []
    base: list[float] = []
    for share in shares:
        parts_of_run = share.oof.result.parts.items()
        own = member_names({fold: {one.member: one for one, _ in part.snapshots} for fold, part in parts_of_run})
        names += [f"{share.run.name}/{name}" for name in own]
        base += [share.weight / len(own)] * len(own)
    k, task = len(table.target_names), table.task
    pixels = int(np.clip(_SAMPLED // (len(names) * len(table) * k), 16, _PIXELS))
    values = np.zeros((len(names), len(table), k, pixels), dtype=np.float32)
    truth = _nothing_known(task, len(table), k, pixels)
    places = {str(name): place for place, name in enumerate(table.ids)}
    lent = np.zeros((len(names), len(table)), dtype=bool)
    how = mean_of_task(experiment.competition.ensemble.mean, task, k)
    for share in shares:
        for part in share.oof.result.parts.values():
            job, members = part.job()
            rows = [f"{share.run.name}/{checkpoint.member}" for checkpoint, _ in part.snapshots]
            with console.bar(f"looking at members: {part.rows.part}") as advance:
                for done, (row, sample) in enumerate(sampled(job, members, pixels=pixels), start=1):
                    advance(done, len(job.rows))
                    place = places.get(str(part.rows.table.ids[row]))
                    if place is None:
                        continue
                    count = sample.values.shape[-1]
                    truth[place, ..., :count] = sample.truth
                    for name, one in zip(rows, sample.values, strict=True):
                        values[names.index(name), place, :, :count] = one
                    for number, name in enumerate(names):
                        if name.partition("/")[0] == share.run.name and name not in rows:
                            others = np.mean([how.into(one[None]) for one in sample.values], axis=0)
                            values[number, place, :, :count] = how.back(others)[0]
                            lent[number, place] = True
    weights = np.asarray(base) / sum(base)
    return Stack(
        tuple(names), values, weights, table, fold_of(experiment, table), metric_of(experiment),
        experiment.competition.ensemble.mean, experiment.groups(table), truth=truth,
        measure=partial(pixel_worth, task=task), lent=lent if lent.any() else None,
    )  # fmt: skip


def _nothing_known(task: str, rows: int, k: int, pixels: int) -> np.ndarray:
    if exclusive(task, k):
        return np.full((rows, pixels), -1, dtype=np.int64)
    return np.full((rows, k, pixels), np.nan, dtype=np.float32)


def weigh(experiment: Experiment, shares: Sequence[Share], table: Table, stack: Stack, recipe: Recipe) -> Weighed:
    """Return members weighed by a combiner, and what their maps are worth after the mask rule; see `Results`.

    Weights are found on some pixels; what they are worth is counted on whole maps, predicted once with those of all
    rows and once, fold by fold, with those of the other folds. Pruning weighs the tuned numbers of a mask rule too:
    where their nested gain is inside the noise, they change nothing.
    """
    outcome = evaluate(stack, Recipe(recipe.combiner, None, recipe.prune))
    of_all = _weighted(shares, table, stack, stack.fold, lambda fold: outcome.fit)
    of_others = _weighted(
        shares, table, stack, outcome.parts, lambda part: outcome.by_part.get(part, outcome.fit)
    )  # fmt: skip
    whole, nested = (judge(experiment, one, table) for one in (of_all, of_others))
    gain = (nested.record.get("postprocess") or {}).get("gain")
    if recipe.prune and gain is not None and gain["low"] <= 0:
        record = {"postprocess": {**nested.record["postprocess"], "pruned": True}}
        whole, nested = (_untuned(experiment, one, table) for one in (of_all, of_others))
        nested = replace(nested, record=record)
    joint = Outcome(
        outcome.fit, whole.outcome.plain, nested.outcome.nested, nested.outcome.values, nested.outcome.parts,
        outcome.by_part,
    )  # fmt: skip
    judged = replace(nested, outcome=joint, fit=whole.fit, thresholds=whole.thresholds)
    weights = {name: float(weight) for name, weight in zip(stack.names, outcome.fit.weights, strict=True)}
    return Weighed(judged, outcome, weights)


def _weighted(
    shares: Sequence[Share], table: Table, stack: Stack, parts_of_rows: np.ndarray, fit_of: Callable[[int], Fit]
) -> MapResult:
    """Return the out-of-fold maps of members with weights that depend on the part a row is in."""
    numbers = np.unique(parts_of_rows).tolist()
    fold_of_part = {part: int(stack.fold[parts_of_rows == part][0]) for part in numbers}
    whole = len(set(fold_of_part.values())) == len(numbers)  # else they are fifths of the only fold
    of_run: dict[str, dict[int, dict[str, float]]] = {share.run.name: {} for share in shares}
    for part in numbers:
        for name, weight in zip(stack.names, fit_of(part).weights, strict=True):
            run, _, member = name.partition("/")
            of_run[run].setdefault(part, {})[member] = float(weight)
    results, totals = [], []
    for share in shares:
        own, of_part = of_run[share.run.name], {}
        for part, weights in own.items():
            fold = fold_of_part[part]
            device = share.oof.result.parts[fold].rows.device
            used = weights if any(weights.values()) else None
            one = fold_part(share.run, fold, device=device, weights=used)
            of_part[part] = one if whole else narrowed(one, fold, part, table.ids[parts_of_rows == part])
        results.append(of_folds(share.run, of_part))
        totals.append({part: sum(weights.values()) for part, weights in own.items()})
    if len(results) == 1:
        return results[0]
    mean = shares[0].run.competition.ensemble.mean
    return _joined(results, table, mean, lambda part: [total[part] for total in totals])
