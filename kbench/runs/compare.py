"""Runs held against one: on the rows, groups and folds they share, and with what their YAMLs say differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kbench.ensemble.verdicts import LEVEL, Difference, difference, verdicts
from kbench.errors import PredictionError
from kbench.runs.opening import read_manifest
from kbench.runs.out_of_fold import OutOfFold
from kbench.runs.results import fold_of, metric_of
from kbench.runs.run import Run

_FEWEST = 2  # rows


def difference_of(oof: OutOfFold, base: OutOfFold) -> Difference | None:
    """Return how a run's out-of-fold score differs from another's on the rows they share.

    None where they predict other targets or share fewer than two rows.
    """
    if oof.table.target_names != base.table.target_names:
        return None
    shared = np.intersect1d(base.table.ids, oof.table.ids)
    if len(shared) < _FEWEST:
        return None
    experiment, table = oof.run.experiment, oof.table.select(np.isin(oof.table.ids, shared))
    places, before = (np.searchsorted(one.table.ids, table.ids) for one in (oof, base))
    return difference(
        metric_of(experiment), oof.targets[places], base.values[before], oof.values[places], table,
        folds=fold_of(experiment, table), groups=experiment.groups(table),
    )  # fmt: skip


def compare(runs: Sequence[Run], *, device: str = "auto") -> dict[str, Any]:
    """Return how runs compare with the first of them.

    Args:
        runs: two or more, on the same folds.
        device: where models run.

    Returns:
        `metric`, `maximise`, `base` (a name), `level`, `correction`, `rows` (one record per run: `run`, `score`, and of
        all but the first the fields of a `Verdict`) and `differs`: setting -> its value in each run.

    Raises:
        PredictionError: a run shares no rows or targets with the first one.
    """
    first = runs[0].out_of_fold(device=device)
    records: list[dict[str, Any]] = [{"run": runs[0].name, "score": first.score["score"]}]
    known = []
    for run in runs[1:]:
        oof = run.out_of_fold(device=device)
        one = difference_of(oof, first)
        if one is None:
            raise PredictionError(
                f"'{run.name}' and '{runs[0].name}' have fewer than two predicted rows of the same targets in common",
                "runs with a trained fold in common", f"`kbench train --run {run.name} --fold all`",
            )  # fmt: skip
        known.append(one)
        records.append({"run": run.name, "score": oof.score["score"]})
    metric = metric_of(runs[0].experiment)
    for record, verdict in zip(records[1:], verdicts(known, maximise=metric.maximise), strict=True):
        record |= asdict(verdict)
        record["freedom"] = None if np.isinf(verdict.freedom) else verdict.freedom
    return {
        "metric": metric.name, "maximise": metric.maximise, "base": runs[0].name, "level": LEVEL,
        "correction": "holm", "rows": records, "differs": differing(runs),
    }  # fmt: skip


def differing(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the settings of training that runs do not share -> run -> value; None where it is not set."""
    views = {run.name: read_manifest(run.paths).get("view", {}) for run in runs}
    keys = sorted({key for view in views.values() for key in view})
    told = {key: {name: view.get(key) for name, view in views.items()} for key in keys}
    return {key: values for key, values in told.items() if len({repr(value) for value in values.values()}) > 1}
