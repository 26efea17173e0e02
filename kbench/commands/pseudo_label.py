"""`kbench pseudo-label`: what a run is sure of about the test set, fold by fold, to train with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kbench.ensemble import pseudo_labels
from kbench.ensemble.pseudo_labels import Chosen, Sure
from kbench.runs.experiment import PSEUDO
from kbench.runs.fold_job import place_of
from kbench.runs.opening import commit, open_run
from kbench.runs.results import Rows
from kbench.runs.run import Run
from kbench.workspace import Choice


def pseudo_label(choice: Choice, *, sure: Sure, name: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Label the test rows a run is sure of; every fold's labels are made by its own snapshots alone.

    Args:
        choice: competition, experiment and run.
        sure: what counts as sure.
        name: of the labels.
        device: where models run.

    Returns:
        `labels` (what `pseudo:` in a YAML says), the JSON's `file`, and `rows`: one record per fold and for `full`.

    Raises:
        ConfigError: the task is a regression.
        DataError: a fold is sure of nothing.
        PredictionError: no fold is trained.
    """
    run = open_run(choice)
    experiment, competition = run.experiment, run.competition
    pseudo_labels.check_task(competition.task)
    folds = run.required_folds()
    name = name or PSEUDO
    places: dict[str, Sequence[int]] = {place_of(fold): [fold] for fold in folds}
    places["full"] = folds
    path = run.paths.pseudo(name)
    test = Rows(experiment.test, device=device)
    said = pseudo_labels.write_pseudo(
        path,
        {place: _chosen(run, test, some, sure) for place, some in places.items()},
        names=experiment.train.target_names, task=competition.task, sure=sure,
        origin={
            "competition": competition.name, "run": run.name, "training": run.trained_as["training"],
            "folds": run.trained_as["folds"], "split": "test", "table": experiment.test.fingerprint(),
            "views": competition.tta.model_dump(), "mean": competition.ensemble.mean, "commit": commit(),
        },
    )  # fmt: skip
    rows = [{"labels": place, "rows": count["rows"], "of": len(experiment.test), **count["classes"]}
            for place, count in said["places"].items()]  # fmt: skip
    return {"labels": f"{run.name}/{name}", "file": str(path), "rows": rows, "sure": said["sure"]}


def _chosen(run: Run, rows: Rows, folds: Sequence[int], sure: Sure) -> Iterator[Chosen]:
    """Yield what the snapshots of some folds are sure of; nothing happens before the first row is asked for."""
    yield from run.results.chosen(run.predict_rows(rows, folds=folds), sure)
