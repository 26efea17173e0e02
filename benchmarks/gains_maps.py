"""What snapshots, views and folds add to a trained segmentation, with 95 % intervals; `gains.py` calls it.

Snapshots and views are compared out of fold by what every reading of one pass was worth. Folds share no row there: what
they add is the score of all of them together over the mean of their own scores, on the solution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kbench.ensemble.bootstrap import Interval, paired
from kbench.metrics.maps import truth_of
from kbench.metrics.metric import Metric, make_metric
from kbench.runs.experiment import groups_in
from kbench.runs.map_results import plain
from kbench.runs.map_scores import readings_of
from kbench.runs.out_of_fold import OutOfFold
from kbench.runs.results import Rows
from kbench.runs.run import Run
from kbench.submission.check import check_submission, read_sample
from kbench.submission.grading import table_of, worth_of

Helps = Callable[[Interval, Metric], dict[str, float]]


def measure(run: Run, extra: Sequence[str], *, helps: Helps, of_each: Callable[[Metric], Metric]) -> dict[str, Any]:
    """Return the scores of a run and what its parts add."""
    setup, folds, oof = run.experiment, run.required_folds(), run.out_of_fold()
    metric = make_metric(setup.competition.metric.name, setup.competition.metric.params)
    found = _out_of_fold(oof, metric, setup.groups(oof.table), helps=helps)
    found["oof"] = {"value": oof.score["score"], "low": oof.score["low"], "high": oof.score["high"]}
    found["members"] = len(oof.result.members)
    solution = setup.source().solution(setup.data)
    if solution is None:
        return found
    sample = read_sample(setup.sample)
    truth = setup.format.parse(check_submission(solution, sample, format=setup.format), sample)
    table, counts = table_of(truth), []
    for some, part in ((folds, "test"), *(([fold], f"test-fold-{fold}") for fold in folds)):
        predicted = run.predict_rows(Rows(setup.test, part), folds=some)
        counts.append(worth_of(run.results.sent(setup, predicted, oof.judged.fit), truth))
    metrics = [metric, *(make_metric(name) for name in extra)]
    found["test"] = {one.name: one(truth_of(counts[0], table.task), counts[0], table) for one in metrics}
    if len(folds) > 1:
        each, real = of_each(metric), truth_of(counts[0], table.task)
        groups = groups_in(setup.test.select(np.searchsorted(setup.test.ids, table.ids)), setup.competition.folds)
        gain = paired(each, real, counts[0][:, None], np.stack(counts[1:], axis=1), table, groups=groups)
        found["gains"]["folds"] = helps(gain, metric)
        found["single on test"] = float(np.mean([metric(real, one, table) for one in counts[1:]]))
    return found


def _out_of_fold(oof: OutOfFold, metric: Metric, groups: np.ndarray | None, *, helps: Helps) -> dict[str, Any]:
    """Return the score out of fold and what snapshots and views add: last snapshot, all of them, all views."""
    values, table = readings_of(oof.result, oof.table), oof.table
    names = list(values)
    singles = [name for name in names if not name.startswith("mean")]
    unviewed = [name for name in singles if name.endswith(", plain view")] or singles
    steps = {"single": unviewed[-1] if unviewed else "mean", "snapshots": "mean, plain view", "views": "mean"}
    steps = {key: name if name in values else "mean" for key, name in steps.items()}
    truth, _ = plain(oof.result, table)
    gains = {
        after: helps(paired(metric, truth, values[steps[after]], values[steps[before]], table, groups=groups), metric)
        for before, after in itertools.pairwise(steps)
        if steps[before] != steps[after]
    }
    return {
        "metric": metric.name, "maximise": metric.maximise, "rows": len(table),
        "single": metric(truth, values[steps["single"]], table), "gains": gains,
    }  # fmt: skip
