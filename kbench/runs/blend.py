"""What an ensemble is made of: the runs' members out of fold, and how they are weighed; `sent.py` predicts with it.

The rows that an ensemble sends: predicted with the members that have a weight, and combined as they were scored.

The post-process of a dense task: built from the YAML, its tuned numbers found on out-of-fold maps, scored nested.

`kbench ensemble` of a dense task: all folds, snapshots and views in one pass, a rule, one checked submission.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kbench import console, files, registry
from kbench.data.table.table import Table
from kbench.ensemble.average import aligned, average, ensemble_run, ranked
from kbench.ensemble.mask_rules import Rule
from kbench.ensemble.mask_tuning import neutral, tune, tunes
from kbench.ensemble.nested import Recipe, evaluate, gains
from kbench.errors import ConfigError, PredictionError, first_names, raise_all
from kbench.inference.map_store import MapStore, MaskSet
from kbench.inference.predictions import Predictions, load
from kbench.runs import parts
from kbench.runs.experiment import Setup
from kbench.runs.members import checkpoints, members_of
from kbench.runs.out_of_fold import (
    MapsOutOfFold,
    OofMaps,
    OutOfFold,
    Ruled,
    combiner_of,
    decided,
    decision_of,
    fold_scores,
    growth,
    judge,
    maps_out_of_fold,
    mean_maps,
    mean_of,
    out_of_fold,
    over_folds,
    readings_of,
    require_folds,
    ruled,
    score_record,
    score_worth,
    shares_of,
    snapshot_name,
    snapshots_of,
    stack_of,
    truth_masks,
)
from kbench.runs.predict import MapPart, masks_of, predict_test, rows_of_test
from kbench.tasks import is_dense
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


def without_rule(setup: Setup) -> bool:
    """Return whether masks are taken from maps as they are."""
    return setup.competition.maps.postprocess.name == "none"


def untuned_rule(setup: Setup) -> Rule:
    """Return the rule with what is to be tuned changing nothing, for trials before there are out-of-fold maps."""
    return _built(setup, neutral(setup.competition.maps.postprocess.params))


def apply_rule(setup: Setup, oof: OofMaps) -> Ruled:
    """Return the post-process of the YAML, tuned where it says so, with its out-of-fold score."""
    params = setup.competition.maps.postprocess.params
    folds = np.unique(oof.fold_of).tolist()
    if not tunes(params):
        rule = _built(setup, params)
        worth = ruled(setup, oof, rule)
        return Ruled(rule, params, score_worth(setup, oof.table, worth), worth, dict.fromkeys(folds, rule))
    metric = parts.build_metric(setup.competition)
    with console.bar("tuning the post-process") as advance:
        outcome = tune(
            oof.read, truth_masks(setup, oof.table), fold_of=oof.fold_of, metric=metric, table=oof.table,
            params=params, groups=setup.groups(oof.table), advance=advance,
        )  # fmt: skip
    by_fold = {fold: _built(setup, outcome.by_fold.get(fold, outcome.params)) for fold in folds}
    score = {**score_worth(setup, oof.table, outcome.counts), "postprocess": outcome.as_json()}
    if outcome.nested is not None:  # with one fold there is no honest score of what was found on it
        sign = 1 if metric.maximise else -1
        score |= {"plain": asdict(outcome.chosen), "optimism": sign * (outcome.chosen.value - outcome.nested)}
    return Ruled(_built(setup, outcome.params), outcome.params, score, outcome.counts, by_fold)


def any_out_of_fold(
    setup: Setup, paths: RunPaths, identity: dict[str, str], *, device: str = "auto"
) -> OutOfFold | MapsOutOfFold:
    """Return the out-of-fold rows or maps of a run's trained folds, whatever its task; predicts what is missing.

    What is worth and scored is what is sent: after the post-process where there is one. `score.json` is written.
    """
    if not is_dense(setup.competition.task):
        return out_of_fold(setup, paths, identity, device=device)
    oof = maps_out_of_fold(setup, paths, identity, require_folds(paths, identity), device=device)
    if not without_rule(setup):
        oof = _after_rule(setup, oof)
    files.write_json(paths.score, oof.score)
    return oof


def _after_rule(setup: Setup, oof: MapsOutOfFold) -> MapsOutOfFold:
    """Return the same maps, worth what the post-process makes of them."""
    found = apply_rule(setup, oof.maps())
    assert found.worth is not None, "there are out-of-fold maps"
    score = oof.score | fold_scores(setup, oof.table, oof.fold_of, found.worth) | found.score
    score["growth"] = growth(setup, oof.table, {**readings_of(oof), "mean, post-processed": found.worth})
    return replace(oof, worth=found.worth, score=score, ruled=found)


def score_run(setup: Setup, paths: RunPaths, identity: dict[str, str], *, device: str = "auto") -> dict[str, Any]:
    """Return the out-of-fold score of a run of any task, as `score.json` holds it."""
    return any_out_of_fold(setup, paths, identity, device=device).score


def _built(setup: Setup, params: dict[str, Any]) -> Rule:
    part = setup.competition.maps.postprocess
    rule: Rule = registry.build(
        "postprocess", part.name, {key: value for key, value in params.items() if key != "grid"},
        _names=setup.train.target_names, _task=setup.competition.task,
    )  # fmt: skip
    return replace(rule, source={"name": part.name, "params": params})


@dataclass(frozen=True)
class MapRun:
    """One run's share of an ensemble of maps.

    Attributes:
        setup: the run's own configuration.
        paths: its files.
        identity: its hashes.
        folds: whose snapshots are sent.
        subset: `fold`, or `full` for models of all rows.
        oof: its out-of-fold maps, or None where there are none.
        device: where models run.
    """

    setup: Setup
    paths: RunPaths
    identity: dict[str, str]
    folds: Sequence[int | str]
    subset: str
    oof: MapsOutOfFold | None
    device: str

    def test(self) -> MapPart:
        """Return the test set as this run predicts it."""
        return rows_of_test(self.setup, self.paths, self.identity, self.folds, self.device, subset=self.subset)


def open_map_run(
    setup: Setup,
    paths: RunPaths,
    identity: dict[str, str],
    folds: Sequence[int | str],
    subset: str,
    device: str,
    *,
    scored: bool,
) -> MapRun:
    """Return a run with its out-of-fold maps, made where they are missing.

    Args:
        setup: the run's configuration.
        paths: its files.
        identity: its hashes.
        folds: whose snapshots are sent.
        subset: `fold`, or `full`.
        device: where models run.
        scored: whether each of the folds has rows that its models did not see.
    """
    oof = maps_out_of_fold(setup, paths, identity, [int(fold) for fold in folds], device=device) if scored else None
    return MapRun(setup, paths, identity, folds, subset, oof, device)


def rule_of_runs(runs: Sequence[MapRun], *, weights: Sequence[float] | None, mixed: bool = False) -> Ruled:
    """Return the post-process of the runs' mean maps with the out-of-fold score of what is sent.

    Args:
        runs: the runs.
        weights: one number per run.
        mixed: whether they were trained on different folds; their mean then has no score.

    Raises:
        PredictionError: something is to be tuned and a run has no out-of-fold maps.
    """
    setup = runs[0].setup
    found = [run.oof for run in runs if run.oof is not None and not mixed]
    if len(found) == len(runs) == 1 and without_rule(setup):
        return Ruled(untuned_rule(setup), {}, score_worth(setup, found[0].table, found[0].worth))
    if len(found) == len(runs):
        return apply_rule(setup, mean_maps(found, weights, mean=setup.competition.ensemble.mean))
    params = setup.competition.maps.postprocess.params
    if tunes(params):
        raise PredictionError(
            f"{'runs on different folds' if mixed else 'models of all rows'} have no out-of-fold maps to tune the "
            "post-process on",
            "numbers in place of `tuned`",
            "`kbench ensemble` on the folds says them; write them under `maps: {postprocess: ...}`",
        )  # fmt: skip
    empty = {"metric": setup.competition.metric.name, "score": None, "low": None, "high": None}
    return Ruled(untuned_rule(setup), params, empty)


def masks_of_runs(runs: Sequence[MapRun], rule: Rule, *, weights: Sequence[float] | None) -> MaskSet:
    """Return the test masks of the runs' mean maps after the rule."""
    tests = [run.test() for run in runs]
    if len(tests) == 1:
        return masks_of(tests[0], rule)
    mean = runs[0].setup.competition.ensemble.mean
    return averaged([one.stored() for one in tests], rule, weights=weights, mean=mean)


def averaged(
    stores: Sequence[MapStore], rule: Rule, *, weights: Sequence[float] | None, mean: str = "arithmetic"
) -> MaskSet:
    """Return the masks a rule makes of the weighted mean of kept maps, a row at a time.

    Raises:
        PredictionError: the stores are of other rows or classes, or did not keep their maps.
    """
    first = stores[0]
    for other in stores[1:]:
        if not np.array_equal(other.ids, first.ids) or other.names != first.names:
            raise PredictionError(
                f"'{other.path}' holds other rows or classes than '{first.path}'",
                "runs of one competition, with the same classes", "leave one of them out",
            )  # fmt: skip
    shares = shares_of(weights, len(stores))

    def read(row: int) -> np.ndarray:
        return rule.apply(mean_of([store.maps(row) for store in stores], shares, task=first.task, mean=mean))

    return MaskSet(first.ids, first.names, first.task, first.source, read)
