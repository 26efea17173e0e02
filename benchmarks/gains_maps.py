"""What snapshots, views and folds add to a trained segmentation, with 95 % intervals; `gains.py` calls it.

Snapshots and views are compared out of fold by what every reading of one pass was worth. Folds share no row there: what
they add is the score of all of them together over the mean of their own scores, on the solution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kbench.ensemble.bootstrap import Interval, interval, paired
from kbench.metrics.maps import truth_of
from kbench.metrics.metric import Metric, make_metric
from kbench.runs.blend import apply_rule, untuned_rule, without_rule
from kbench.runs.experiment import groups_in
from kbench.runs.out_of_fold import MapsOutOfFold, maps_out_of_fold, readings_of, require_folds
from kbench.runs.predict import masks_of, rows_of_test
from kbench.runs.run import open_run_setup
from kbench.submission.check import check_submission, read_sample
from kbench.submission.grading import table_of, worth_of
from kbench.workspace import Choice

Helps = Callable[[Interval, Metric], dict[str, float]]


def measure(
    choice: Choice, extra: Sequence[str], *, helps: Helps, of_each: Callable[[Metric], Metric]
) -> dict[str, Any]:
    """Return the scores of a run and what its parts add."""
    setup, paths, identity = open_run_setup(choice)
    folds = require_folds(paths, identity)
    oof = maps_out_of_fold(setup, paths, identity, folds)
    metric = make_metric(setup.competition.metric.name, setup.competition.metric.params)
    found = _out_of_fold(oof, metric, setup.groups(oof.table), helps=helps)
    rule = untuned_rule(setup)
    if not without_rule(setup):
        ruled = apply_rule(setup, oof.maps())
        rule, found["oof"] = ruled.rule, {**found["oof"], **_interval_of(ruled.score)}
    solution = setup.source().solution(setup.data)
    if solution is None:
        return found
    sample = read_sample(setup.sample)
    truth = setup.format.parse(check_submission(solution, sample, format=setup.format), sample)
    table, counts = table_of(truth), []
    for some, part in ((folds, "test"), *(([fold], f"test-fold-{fold}") for fold in folds)):
        rows = rows_of_test(setup, paths, identity, some, "auto", part=part)
        counts.append(worth_of(masks_of(rows, rule), truth))
    metrics = [metric, *(make_metric(name) for name in extra)]
    found["test"] = {one.name: one(truth_of(counts[0], table.task), counts[0], table) for one in metrics}
    if len(folds) > 1:
        each, real = of_each(metric), truth_of(counts[0], table.task)
        groups = groups_in(setup.test.select(np.searchsorted(setup.test.ids, table.ids)), setup.competition.folds)
        gain = paired(each, real, counts[0][:, None], np.stack(counts[1:], axis=1), table, groups=groups)
        found["gains"]["folds"] = helps(gain, metric)
        found["single on test"] = float(np.mean([metric(real, one, table) for one in counts[1:]]))
    return found


def _out_of_fold(oof: MapsOutOfFold, metric: Metric, groups: np.ndarray | None, *, helps: Helps) -> dict[str, Any]:
    """Return the score out of fold and what snapshots and views add: last snapshot, all of them, all views."""
    values, table = readings_of(oof), oof.table
    names = list(values)
    singles = [name for name in names if not name.startswith("mean")]
    plain = [name for name in singles if name.endswith(", plain view")] or singles
    steps = {"single": plain[-1] if plain else "mean", "snapshots": "mean, plain view", "views": "mean"}
    steps = {key: name if name in values else "mean" for key, name in steps.items()}
    truth = truth_of(oof.worth, table.task)
    gains = {
        after: helps(paired(metric, truth, values[steps[after]], values[steps[before]], table, groups=groups), metric)
        for before, after in itertools.pairwise(steps)
        if steps[before] != steps[after]
    }
    whole = interval(metric, truth, oof.worth, table, groups=groups)
    return {
        "metric": metric.name, "maximise": metric.maximise, "rows": len(table),
        "oof": {"value": whole.value, "low": whole.low, "high": whole.high},
        "single": metric(truth, values[steps["single"]], table), "gains": gains,
    }  # fmt: skip


def _interval_of(score: dict[str, Any]) -> dict[str, float]:
    return {"value": score["score"], "low": score["low"], "high": score["high"]}
