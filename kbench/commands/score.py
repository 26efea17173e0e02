"""`kbench score`: the out-of-fold score, per fold and overall, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kbench import files
from kbench.commands import parts
from kbench.commands.judging import cv_means, cv_table, fold_of, judge, of_targets, score_record, snapshot_name
from kbench.commands.predict import fold_mean, members_of, predict_out_of_fold
from kbench.commands.setup import Setup
from kbench.data.tables import Table
from kbench.ensemble.average import concat
from kbench.ensemble.nested import Outcome
from kbench.errors import PredictionError
from kbench.inference.predictions import Predictions, load
from kbench.training.fold import state_of
from kbench.workspace import RunPaths


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
