"""`kbench import`: another team's out-of-fold and test predictions become a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kbench import console, files
from kbench.ensemble.imported import import_predictions
from kbench.errors import ConfigError, PredictionError, first_names
from kbench.inference.predictions import save
from kbench.runs.experiment import open_experiment
from kbench.runs.opening import prepare_run
from kbench.workspace import Choice


def import_run(choice: Choice, name: str, *, oof: str, test: str, force: bool) -> dict[str, Any]:
    """Make a run of two files of predictions; it scores and joins ensembles like any other.

    Args:
        choice: the competition.
        name: of the new run.
        oof: CSV of out-of-fold predictions, made on this competition's folds.
        test: CSV of test predictions.
        force: replace a run of this name.

    Raises:
        ConfigError: there is a run of this name.
        PredictionError: a file does not fit.
    """
    experiment = open_experiment(replace(choice, run=name))
    paths = experiment.workspace.run(experiment.competition.name, name)
    if paths.root.exists() and not force:
        raise ConfigError(f"there is a run '{name}' already", "a new name", "choose another name, or `--force`")
    chosen = experiment.train.select(experiment.folds.fold >= 0)
    parts = {
        part: import_predictions(
            Path(file), task=experiment.competition.task, names=experiment.train.target_names, ids=ids
        )
        for part, file, ids in (("oof", oof, chosen.ids), ("test", test, experiment.test.ids))
    }
    for part, predictions in parts.items():
        if predictions.source.get("ignored"):
            console.warn(f"{predictions.source['ignored']:,} ids of the {part} file are not of this competition")
    lacking = [name for name in experiment.train.target_names if name not in parts["oof"].names]
    if parts["oof"].names != parts["test"].names:
        raise PredictionError(
            "the two files predict different targets", "the same columns in both",
            f"oof: {first_names(parts['oof'].names)}; test: {first_names(parts['test'].names)}",
        )  # fmt: skip
    if lacking:
        console.note(f"without {first_names(lacking)}: the member counts for the other targets")
    if paths.root.exists():
        files.remove(paths.root)
    run = prepare_run(experiment, force=False)
    for part, predictions in parts.items():
        files.make_folder(paths.predictions(part).parent)
        save(paths.predictions(part), replace(predictions, source={**predictions.source, "run": name}))
    files.write_json(paths.foreign, {"oof": Path(oof).name, "test": Path(test).name})
    score = run.out_of_fold().score
    return {
        "run": name,
        "rows": int(np.sum(experiment.folds.fold >= 0)),
        **{key: score[key] for key in ("metric", "score", "low", "high")},
    }
