"""`kbench ensemble`: folds x snapshots x views of one run or several become one checked submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kbench import console
from kbench.commands.predict import checkpoints, members_of, predict_test
from kbench.commands.runs import commit, open_run_setup
from kbench.commands.score import OutOfFold, out_of_fold, require_folds, score_predictions
from kbench.commands.setup import Choice, Setup
from kbench.data.tables import Table
from kbench.ensemble.average import average, ensemble_run
from kbench.errors import PredictionError
from kbench.inference.predictions import Predictions, load
from kbench.submission.check import read_sample, write_submission
from kbench.submission.ledger import Lineage, free_name, new_entry
from kbench.workspace import RunPaths


@dataclass(frozen=True)
class RunPart:
    """One run's share of an ensemble.

    Attributes:
        setup: the run's own configuration.
        paths: its files.
        identity: its hashes.
        oof: its out-of-fold predictions.
        test: its test predictions.
        members: one record per member.
        missing: folds that are not trained.
    """

    setup: Setup
    paths: RunPaths
    identity: dict[str, str]
    oof: OutOfFold | None
    test: Predictions
    members: list[dict[str, Any]]
    missing: list[int]


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
    """

    full: bool = False
    require_all: bool = False
    mixed_folds: bool = False
    name: str | None = None
    device: str = "auto"
    weights: tuple[float, ...] | None = None


def ensemble(choice: Choice, runs: Sequence[str], options: EnsembleOptions) -> dict[str, Any]:
    """Predict what is not predicted yet, average, check and write a submission with its lineage.

    Args:
        choice: competition and experiment.
        runs: names of runs; the current experiment's alone when empty.
        options: how.

    Returns:
        The submission's file, the out-of-fold score with its interval, runs, members and missing folds.
    """
    choices = [Choice(choice.competition, choice.experiment, run, choice.assignments) for run in runs] or [choice]
    made = [run_part(one, options) for one in choices]
    first = made[0]
    _same_folds(made, options)
    test = made[0].test if len(made) == 1 else average([part.test for part in made], mean="arithmetic",
                                                       weights=options.weights)  # fmt: skip
    score = _score(made, options)
    setup = first.setup
    sample = read_sample(setup.sample)
    frame = setup.format.build(test, sample)
    folder = setup.workspace.submissions(setup.competition.name)
    name = free_name(
        folder, options.name or "+".join(part.paths.name for part in made) + ("-full" if options.full else "")
    )
    file = write_submission(
        folder / f"{name}{setup.format.suffix}", frame, sample=sample, format=setup.format,
        gzip=setup.competition.submission.gzip,
    )  # fmt: skip
    notes = _notes(made, options)
    new_entry(file, _lineage(made, options, score, notes))
    return {
        "file": str(file), "runs": [part.paths.name for part in made],
        "members": sum(len(part.members) for part in made),
        "missing": {part.paths.name: part.missing for part in made if part.missing}, "notes": notes, **score,
    }  # fmt: skip


def run_part(choice: Choice, options: EnsembleOptions) -> RunPart:
    """Return one run's predictions, made where they are missing."""
    setup, paths, identity = open_run_setup(choice)
    if paths.foreign.is_file():
        test = load(paths.predictions("test"))
        members = [{"run": paths.name, "foreign": True, **test.source}]
        return RunPart(setup, paths, identity, out_of_fold(setup, paths, identity), test, members, [])
    folds: Sequence[int | str] = (
        _full_folds(setup, paths, identity) if options.full else require_folds(setup, paths, identity)
    )
    missing = [] if options.full else [fold for fold in range(setup.folds.n) if fold not in folds]
    if missing:
        names = ", ".join(map(str, missing))
        if options.require_all:
            raise PredictionError(
                f"folds {names} of '{paths.name}' are not trained", f"all {setup.folds.n} folds (--require-all)",
                f"`kbench train --fold {missing[0]}`, or leave out --require-all",
            )  # fmt: skip
        console.warn(f"folds {names} of '{paths.name}' are not trained; the ensemble uses the others")
    subset = "full" if options.full else "fold"
    oof = (
        out_of_fold(setup, paths, identity, device=options.device)
        if not options.full or _has_oof(setup, paths, identity)
        else None
    )
    predict_test(setup, paths, identity, folds, options.device, subset=subset)
    by_fold = {
        index: members_of(setup, paths, identity, fold, "test", subset=subset) for index, fold in enumerate(folds)
    }
    test = ensemble_run(by_fold, mean=setup.competition.ensemble.mean)
    members = [
        {"run": paths.name, **{key: member.source[key] for key in ("fold", "stage", "tag", "weights")}}
        for fold in by_fold.values()
        for member in fold
    ]
    return RunPart(setup, paths, identity, oof, test, members, missing)


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


def _same_folds(made: Sequence[RunPart], options: EnsembleOptions) -> None:
    hashes = {part.identity["folds"] for part in made}
    if len(hashes) > 1 and not options.mixed_folds:
        raise PredictionError(
            "the runs were trained on different folds: "
            + ", ".join(f"{p.paths.name} ({p.identity['folds']})" for p in made),
            "runs on the same folds: only then is the ensemble's score honest",
            "leave out one of them, or `--mixed-folds` for a plain mean without a score",
        )


def _score(made: Sequence[RunPart], options: EnsembleOptions) -> dict[str, Any]:
    """Return the out-of-fold score of the ensemble, over the rows all its runs have out of fold."""
    parts = [part.oof for part in made if part.oof is not None]
    empty = {"metric": made[0].setup.competition.metric.name, "score": None, "low": None, "high": None}
    if len(parts) < len(made) or (options.mixed_folds and len({part.identity["folds"] for part in made}) > 1):
        return empty
    if len(parts) == 1:
        return {key: parts[0].score[key] for key in ("metric", "maximise", "rows", "score", "low", "high")}
    shared = parts[0].predictions.ids
    for part in parts[1:]:
        shared = np.intersect1d(shared, part.predictions.ids)
    if not len(shared):
        return empty
    setup = made[0].setup
    mean = average([part.predictions.select(shared) for part in parts], mean="arithmetic", weights=options.weights)
    rows = np.isin(setup.train.ids, shared)
    groups = setup.groups()
    table: Table = setup.train.select(rows)
    score = score_predictions(setup, mean, table, groups=None if groups is None else groups[rows])
    score.pop("interval")
    return score


def _notes(made: Sequence[RunPart], options: EnsembleOptions) -> list[str]:
    notes = [f"{part.paths.name} without folds {', '.join(map(str, part.missing))}" for part in made if part.missing]
    if options.full:
        notes.append("trained on all rows: what is sent is not what was scored")
    if options.mixed_folds and len({part.identity["folds"] for part in made}) > 1:
        notes.append("mixed folds: a plain mean without a score")
    return notes


def _lineage(made: Sequence[RunPart], options: EnsembleOptions, score: dict[str, Any], notes: list[str]) -> Lineage:
    competition = made[0].setup.competition
    return Lineage(
        competition=competition.name, runs=[part.paths.name for part in made],
        members=[member for part in made for member in part.members],
        weights=list(options.weights or [1.0] * len(made)), mean=competition.ensemble.mean,
        views=competition.tta.model_dump(), folds=made[0].identity["folds"],
        hashes={part.paths.name: part.identity["training"] for part in made}, commit=commit(),
        metric=score["metric"], maximise=bool(score.get("maximise", True)), score=score["score"], low=score["low"],
        high=score["high"], notes=notes,
    )  # fmt: skip
