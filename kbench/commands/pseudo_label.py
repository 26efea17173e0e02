"""`kbench pseudo-label`: what a run is sure of about the test set, fold by fold, to train with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kbench.ensemble import pseudo_labels
from kbench.ensemble.average import ensemble_run
from kbench.ensemble.pseudo_labels import Chosen, Sure
from kbench.runs.experiment import PSEUDO, Setup
from kbench.runs.fold_job import place_of
from kbench.runs.members import members_of
from kbench.runs.out_of_fold import require_folds
from kbench.runs.predict import predict_test, rows_of_test
from kbench.runs.run import commit, open_run_setup
from kbench.tasks import is_dense
from kbench.workspace import Choice, RunPaths


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
    setup, paths, identity = open_run_setup(choice)
    pseudo_labels.check_task(setup.competition.task)
    folds = require_folds(paths, identity)
    name = name or PSEUDO
    places: dict[str, Sequence[int]] = {place_of(fold): [fold] for fold in folds}
    places["full"] = folds
    if not is_dense(setup.competition.task):
        predict_test(setup, paths, identity, folds, device)
    path = paths.pseudo(name)
    said = pseudo_labels.write_pseudo(
        path,
        {place: _rows(setup, paths, identity, some, sure, device=device) for place, some in places.items()},
        names=setup.train.target_names, task=setup.competition.task, sure=sure,
        origin={
            "competition": setup.competition.name, "run": paths.name, "training": identity["training"],
            "folds": identity["folds"], "split": "test", "table": setup.test.fingerprint(),
            "views": setup.competition.tta.model_dump(), "mean": setup.competition.ensemble.mean, "commit": commit(),
        },
    )  # fmt: skip
    rows = [{"labels": place, "rows": count["rows"], "of": len(setup.test), **count["classes"]}
            for place, count in said["places"].items()]  # fmt: skip
    return {"labels": f"{paths.name}/{name}", "file": str(path), "rows": rows, "sure": said["sure"]}


def _rows(
    setup: Setup, paths: RunPaths, identity: dict[str, str], folds: Sequence[int], sure: Sure, *, device: str
) -> Iterator[Chosen]:
    """Yield what the snapshots of some folds are sure of; nothing happens before the first row is asked for."""
    if is_dense(setup.competition.task):
        part = rows_of_test(setup, paths, identity, folds, device, part=f"test of fold {', '.join(map(str, folds))}")
        maps = ((str(name), row.maps) for name, row in zip(part.ids, part.rows_again(), strict=True))
        yield from pseudo_labels.chosen_masks(maps, sure, task=setup.competition.task)
        return
    members = {fold: members_of(setup, paths, identity, fold, "test") for fold in folds}
    yield from pseudo_labels.chosen_rows(ensemble_run(members, mean=setup.competition.ensemble.mean), sure)
