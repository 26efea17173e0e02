"""`kbench ensemble`: folds x snapshots x views of one run or several become one checked submission."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kbench import console, files
from kbench.errors import ConfigError, PredictionError
from kbench.runs.blend import (
    Asked,
    Blend,
    MapRun,
    RunPart,
    Sent,
    blend_fitted,
    blend_plain,
    combiner_name,
    is_plain,
    masks_of_runs,
    open_map_run,
    predict_blend,
    recipe_of,
    rule_of_runs,
    setup_of_all,
)
from kbench.runs.experiment import Setup
from kbench.runs.members import checkpoints
from kbench.runs.out_of_fold import out_of_fold, require_folds
from kbench.runs.run import commit, open_run_setup
from kbench.submission.check import read_sample, write_submission
from kbench.submission.ledger import Lineage, free_name, new_entry
from kbench.tasks import is_dense
from kbench.workspace import Choice, RunPaths

_MIXED = "mixed folds: a plain mean without a score"


@dataclass(frozen=True)
class EnsembleOptions:
    """How an ensemble is made.

    Attributes:
        full: send models trained on all rows.
        require_all: untrained folds are an error.
        mixed_folds: runs on other folds may join the plain mean.
        name: of the submission.
        device: where models run.
        weights: one number per run.
        combine: another combiner than the YAML's, with its defaults.
        prune: leave out members whose gain is inside the noise, though the YAML does not say so.
    """

    full: bool = False
    require_all: bool = False
    mixed_folds: bool = False
    name: str | None = None
    device: str = "auto"
    weights: tuple[float, ...] | None = None
    combine: str | None = None
    prune: bool = False


def ensemble(choice: Choice, runs: Sequence[str], options: EnsembleOptions) -> dict[str, Any]:
    """Predict what is not predicted yet, combine, check and write a submission with its lineage.

    Args:
        choice: competition and experiment.
        runs: names of runs; the current experiment's alone when empty.
        options: how.

    Returns:
        The submission's file, the out-of-fold score with its interval (nested, if anything is fitted; then also
        `plain` and `optimism`), runs, members, `weights` and `gains` of the members, and missing folds.
    """
    choices = [replace(choice, run=run) for run in runs] or [choice]
    _check_weights(options.weights, len(choices))
    opened = [open_run_setup(one, other_folds=options.mixed_folds) for one in choices]
    if is_dense(opened[0][0].competition.task):
        return _ensemble_maps(opened, options)
    made = [open_part(one, options) for one in opened]
    blend = blend_of(made, options)
    sent = predict_blend(made, blend, Asked(options.device), weights=options.weights)
    setup = blend.setup
    sample = read_sample(setup.sample)
    frame = setup.format.build(sent.predictions, sample)
    folder = setup.workspace.submissions(setup.competition.name)
    name = free_name(
        folder, options.name or "+".join(part.paths.name for part in made) + ("-full" if options.full else "")
    )
    file = write_submission(
        folder / f"{name}{setup.format.suffix}", frame, sample=sample, format=setup.format,
        gzip=setup.competition.submission.gzip,
    )  # fmt: skip
    notes = _notes(made, options)
    new_entry(file, _lineage(made, blend, sent, notes))
    return {
        "file": str(file), "runs": [part.paths.name for part in made], "members": len(sent.members),
        "missing": {part.paths.name: part.missing for part in made if part.missing}, "notes": notes,
        "weights": blend.weights, "gains": blend.gains, **_score(blend),
    }  # fmt: skip


def _check_weights(weights: Sequence[float] | None, count: int) -> None:
    if weights is None:
        return
    if len(weights) != count or not all(math.isfinite(one) and one >= 0 for one in weights) or not sum(weights):
        raise ConfigError(
            f"the weights {', '.join(f'{one:g}' for one in weights)} for {count} run{'s' if count > 1 else ''}",
            "one number of at least 0 for each run, and one above 0",
            "say `--weight` once for each run, in their order",
        )


def open_part(opened: tuple[Setup, RunPaths, dict[str, str]], options: EnsembleOptions) -> RunPart:
    """Return an opened run with its out-of-fold predictions, made where they are missing."""
    setup, paths, identity = opened
    known = _on_these_folds(setup, identity)
    if paths.foreign.is_file():
        return RunPart(setup, paths, identity, out_of_fold(setup, paths, identity) if known else None, [], "fold", [])
    folds, missing = _sent_folds(setup, paths, identity, options)
    subset = "full" if options.full else "fold"
    scored = known and (not options.full or _has_oof(setup, paths, identity))
    oof = out_of_fold(setup, paths, identity, device=options.device) if scored else None
    return RunPart(setup, paths, identity, oof, list(folds), subset, missing)


def _on_these_folds(setup: Setup, identity: dict[str, str]) -> bool:
    """Return whether a run is trained on the folds that the competition has now: only they tell who saw which row."""
    return setup.folds.hash == identity["folds"]


def _sent_folds(
    setup: Setup, paths: RunPaths, identity: dict[str, str], options: EnsembleOptions
) -> tuple[Sequence[int | str], list[int]]:
    """Return the folds whose models are sent, and those that are not trained.

    Raises:
        PredictionError: nothing is trained, or not all that was asked for.
    """
    if options.full:
        return _full_folds(setup, paths, identity), []
    folds = require_folds(paths, identity)
    if not _on_these_folds(setup, identity):
        return folds, []
    missing = [fold for fold in range(setup.folds.n) if fold not in folds]
    if missing:
        names = ", ".join(map(str, missing))
        if options.require_all:
            raise PredictionError(
                f"folds {names} of '{paths.name}' are not trained", f"all {setup.folds.n} folds (--require-all)",
                f"`kbench train --fold {missing[0]}`, or leave out --require-all",
            )  # fmt: skip
        console.warn(f"folds {names} of '{paths.name}' are not trained; the ensemble uses the others")
    return folds, missing


def _ensemble_maps(
    opened: Sequence[tuple[Setup, RunPaths, dict[str, str]]], options: EnsembleOptions
) -> dict[str, Any]:
    """Do the same for a dense task, whose maps are never all in memory."""
    _check_plain(opened[0][0], options)
    mixed = _mixed_folds({paths.name: identity["folds"] for _, paths, identity in opened}, options)
    runs: list[MapRun] = []
    missing: dict[str, list[int]] = {}
    for setup, paths, identity in opened:
        folds, left = _sent_folds(setup, paths, identity, options)
        subset, scored = "full" if options.full else "fold", not options.full and _on_these_folds(setup, identity)
        runs.append(open_map_run(setup, paths, identity, folds, subset, options.device, scored=scored))
        missing |= {paths.name: left} if left else {}
    setup = runs[0].setup
    ruled = rule_of_runs(runs, weights=options.weights, mixed=mixed)
    score = ruled.score
    masks = masks_of_runs(runs, ruled.rule, weights=options.weights)
    sample = read_sample(setup.sample)
    folder = setup.workspace.submissions(setup.competition.name)
    name = options.name or "+".join(run.paths.name for run in runs) + ("-full" if options.full else "")
    file = write_submission(
        folder / f"{free_name(folder, name)}{setup.format.suffix}", setup.format.build(masks, sample), sample=sample,
        format=setup.format, gzip=setup.competition.submission.gzip,
    )  # fmt: skip
    notes = [f"{run} without folds {', '.join(map(str, left))}" for run, left in missing.items()]
    notes += ["trained on all rows: what is sent is not what was scored"] if options.full else []
    notes += [_MIXED] if mixed else []
    notes += _pseudo_notes([run.paths for run in runs])
    members = [{"run": run.paths.name, **member} for run in runs for member in run.test().source()["members"]]
    competition = setup.competition
    lineage = Lineage(
        competition=competition.name, runs=[run.paths.name for run in runs], members=members,
        weights=list(options.weights or [1.0] * len(runs)), mean=competition.ensemble.mean,
        thresholds=ruled.params, views=competition.tta.model_dump(), folds=runs[0].identity["folds"],
        hashes={run.paths.name: run.identity["training"] for run in runs}, commit=commit(),
        metric=score["metric"], maximise=bool(score.get("maximise", True)), score=score["score"], low=score["low"],
        high=score["high"], notes=notes,
    )  # fmt: skip
    new_entry(file, lineage)
    return {
        "file": str(file), "runs": lineage.runs, "members": len(members), "missing": missing, "notes": notes,
        "gains": [], **score,
    }  # fmt: skip


def _check_plain(setup: Setup, options: EnsembleOptions) -> None:
    """Refuse to weigh members whose maps are never all in memory.

    Raises:
        ConfigError: something is to be found on out-of-fold maps that is not the post-process.
    """
    recipe = recipe_of(setup, combine=options.combine, prune=options.prune)
    if not is_plain(recipe) or recipe.decision is not None:
        raise ConfigError(
            f"weights, pruning or a decision for the task '{setup.competition.task}': its maps are never all in memory",
            "the plain mean, and `maps: {postprocess: ...}`",
            "leave out --combine and --prune; `--weight` gives each run a weight",
        )


def _mixed_folds(folds: Mapping[str, str], options: EnsembleOptions) -> bool:
    """Return whether runs were trained on different folds.

    Args:
        folds: run -> hash of its folds.
        options: whether they may be.

    Raises:
        PredictionError: they were, and may not be.
    """
    mixed = len(set(folds.values())) > 1
    if mixed and not options.mixed_folds:
        raise PredictionError(
            "the runs were trained on different folds: " + ", ".join(f"{run} ({of})" for run, of in folds.items()),
            "runs on the same folds: only then is the ensemble's score honest",
            "leave out one of them, or `--mixed-folds` for a plain mean without a score",
        )
    return mixed


def _full_folds(setup: Setup, paths: RunPaths, identity: dict[str, str]) -> list[int | str]:
    places: list[int | str] = ["full", *range(setup.folds.n)]
    found = [place for place in places if checkpoints(setup, paths, identity, place, subset="full")]
    if not found:
        raise PredictionError(
            f"'{paths.name}' has no model of all rows", "a stage with `subset: full`, or a run of all rows",
            "`kbench train --full`",
        )  # fmt: skip
    return found


def _has_oof(setup: Setup, paths: RunPaths, identity: dict[str, str]) -> bool:
    return any(checkpoints(setup, paths, identity, fold) for fold in range(setup.folds.n))


def blend_of(made: Sequence[RunPart], options: EnsembleOptions) -> Blend:
    """Return how the runs' members are combined, and the score of that where there is one."""
    setup = setup_of_all([part.setup for part in made])
    name = combiner_name(setup, options.combine)
    recipe = recipe_of(setup, combine=options.combine, prune=options.prune)
    mixed = _mixed_folds({part.paths.name: part.identity["folds"] for part in made}, options)
    without = [part.paths.name for part in made if part.oof is None]
    if mixed or without:
        if recipe.fitted or recipe.combiner.ranks:
            reason = "runs on other folds" if mixed else f"'{without[0]}' without out-of-fold predictions"
            raise PredictionError(
                f"{reason}: weights and thresholds cannot be found there", "runs on the same folds, all out of fold",
                "leave out one of them, or set ensemble.combine: mean, no ensemble.prune and no ensemble.decision",
            )  # fmt: skip
        return Blend(setup, name, recipe, None, None, None, [])
    make = blend_plain if is_plain(recipe) else blend_fitted
    return make(setup, made, recipe, combiner=name, weights=options.weights)


def _score(blend: Blend) -> dict[str, Any]:
    """Return the score as it is printed; None for what is not known."""
    if blend.score is None:
        return {"metric": blend.setup.competition.metric.name, "score": None, "low": None, "high": None}
    return {key: value for key, value in blend.score.items() if key not in ("interval", "level")}


def _notes(made: Sequence[RunPart], options: EnsembleOptions) -> list[str]:
    notes = [f"{part.paths.name} without folds {', '.join(map(str, part.missing))}" for part in made if part.missing]
    if options.full:
        notes.append("trained on all rows: what is sent is not what was scored")
    clip = made[0].setup.competition.submission.format.params.get("clip")
    if clip:
        notes.append(f"the file's probabilities are clipped to {clip:g}..{1 - clip:g}; the score is of those before")
    if options.mixed_folds and len({part.identity["folds"] for part in made}) > 1:
        notes.append(_MIXED)
    return [*notes, *_pseudo_notes([part.paths for part in made])]


def _pseudo_notes(runs: Sequence[RunPaths]) -> list[str]:
    """Return which runs trained with pseudo-labels, and whose."""
    origins = [(paths.name, files.read_json(paths.manifest).get("pseudo")) for paths in runs]
    return [f"{name} trained with pseudo-labels {one['labels']} ({one['checksum']})" for name, one in origins if one]


def _lineage(made: Sequence[RunPart], blend: Blend, sent: Sent, notes: list[str]) -> Lineage:
    competition = made[0].setup.competition
    score = blend.score or {}
    return Lineage(
        competition=competition.name, runs=[part.paths.name for part in made], members=sent.members,
        weights=sent.weights, mean=competition.ensemble.mean,
        combine={"name": blend.combiner, "weights": blend.weights},
        thresholds=score.get("decision", {}), views=competition.tta.model_dump(),
        format=competition.submission.format.model_dump(), folds=made[0].identity["folds"],
        hashes={part.paths.name: part.identity["training"] for part in made}, commit=commit(),
        metric=competition.metric.name, maximise=bool(score.get("maximise", True)), score=score.get("score"),
        low=score.get("low"), high=score.get("high"), optimism=score.get("optimism"), notes=notes,
    )  # fmt: skip
