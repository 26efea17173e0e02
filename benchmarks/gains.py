"""What snapshots, views and folds each add to a trained run, with 95 % intervals; one JSON object on stdout.

    python benchmarks/gains.py COMPETITION EXPERIMENT [--metrics NAME ...]      in a workspace

A gain is larger than 0 when it helps, whatever the metric. Snapshots and views are compared out of fold, where all have
the same rows; thresholds are those of the other folds. Folds share no such row: what they add is the score of all of
them together over the mean of their own scores, on the solution, after everything was chosen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import gains_maps
import numpy as np

from kbench.config.section import Component
from kbench.data.table.table import Table
from kbench.ensemble.average import aligned, concat, ensemble_run
from kbench.ensemble.bootstrap import Interval, paired
from kbench.inference.predictions import Predictions
from kbench.metrics.metric import Metric, make_metric
from kbench.runs import parts
from kbench.runs.experiment import Experiment
from kbench.runs.opening import open_run
from kbench.runs.results import Rows
from kbench.runs.row_results import RowResult, judge, member_predictions, out_of_fold_members, sent
from kbench.submission.check import read_sample
from kbench.submission.grading import read_truth
from kbench.tasks import is_dense
from kbench.workspace import Choice

Members = Mapping[int, Sequence[Predictions]]
"""fold -> predictions of its snapshots, in the order they were trained."""


def predicted(choice: Choice, part: str) -> Members:
    """Return the members' predictions of `oof`, `test` or, with the plain view alone, `oof-plain`; made if missing."""
    run = open_run(choice)
    folds = run.required_folds()
    if part == "test":
        members = member_predictions(run, Rows(run.test), folds)
    else:
        views = Component(name="none") if part == "oof-plain" else None
        members = out_of_fold_members(run, folds, device="auto", part=part, views=views)
    return {fold: list(members[fold].values()) for fold in folds}


def merged(setup: Experiment, members: Members, *, last: bool = False) -> Predictions:
    """Return the out-of-fold mean of the snapshots, or their last ones."""
    mean = setup.competition.ensemble.mean
    return concat([own[-1] if last else fold_mean(own, mean) for own in members.values()])


def fold_mean(members: Sequence[Predictions], mean: Any) -> Predictions:
    """Return the mean over a fold's snapshots."""
    return ensemble_run({0: members}, mean=mean)


def helps(gain: Interval, metric: Metric) -> dict[str, float]:
    """Return a difference of scores as a gain."""
    ends = (gain.low, gain.high) if metric.maximise else (-gain.high, -gain.low)
    return {"value": gain.value if metric.maximise else -gain.value, "low": ends[0], "high": ends[1]}


def of_each(metric: Metric) -> Metric:
    """Return the metric that scores [N, F, K] predictions by the mean of F scores."""

    def function(whole: Any, targets: np.ndarray, predictions: np.ndarray, table: Any) -> Any:
        return np.mean([whole(targets, predictions[:, one], table) for one in range(predictions.shape[1])], axis=0)

    per_row = None if metric.per_row is None else partial(function, metric.per_row)
    return replace(metric, function=partial(function, metric.function), per_row=per_row)


def out_of_fold(choice: Choice, views: Members, plain: Members) -> dict[str, Any]:
    """Return the score out of fold and what snapshots and views add to it."""
    setup = open_run(choice).experiment
    metric, ids = parts.build_metric(setup.competition), merged(setup, views).ids
    table = setup.train.select(np.isin(setup.train.ids, ids))
    assert table.targets is not None, "training rows have targets"
    groups = setup.groups(table)
    steps = [merged(setup, plain, last=True), merged(setup, plain), merged(setup, views)]
    judged = [judge(setup, RowResult(one, [], [], {}), table).outcome for one in steps]
    gains = [
        helps(paired(metric, table.targets, after.values, before.values, table, groups=groups), metric)
        for before, after in itertools.pairwise(judged)
    ]
    names = [name for name, there in (("snapshots", len(next(iter(plain.values()))) > 1), ("views", views is not plain))
             if there]  # fmt: skip
    return {
        "metric": metric.name, "maximise": metric.maximise, "rows": len(table), "oof": asdict(judged[-1].nested),
        "single": asdict(judged[0].nested), "decided": judged[-1].fit.decided,
        "gains": {name: gain for name, gain in zip(("snapshots", "views"), gains, strict=True) if name in names},
    }  # fmt: skip


def on_the_solution(choice: Choice, views: Members, found: dict[str, Any], extra: Sequence[str]) -> dict[str, Any]:
    """Return the test scores, and what folds add on the test rows."""
    setup = open_run(choice).experiment
    solution, mean = setup.source().solution(setup.data), setup.competition.ensemble.mean
    if solution is None:
        return {}
    whole = ensemble_run(views, mean=mean)
    table, usage = read_truth(solution, read_sample(setup.sample), format=setup.format, predictions=whole)
    table = table.select(usage != "ignored")
    folds = [fold_mean(own, mean) for own in views.values()]
    values = [_decided(setup, one, table, found["decided"]) for one in (whole, *folds)]
    metrics = [parts.build_metric(setup.competition), *(make_metric(name) for name in extra)]
    assert table.targets is not None, "a solution has targets"
    made: dict[str, Any] = {"test": {metric.name: metric(table.targets, values[0], table) for metric in metrics}}
    if len(folds) > 1:
        each = of_each(metrics[0])
        gain = paired(each, table.targets, values[0][:, None], np.stack(values[1:], axis=1), table)
        made["folds"] = helps(gain, metrics[0])
    return made


def _decided(setup: Experiment, one: Predictions, table: Table, found: Any) -> np.ndarray:
    made = sent(setup, RowResult(one, [], [], {}), found)
    return aligned(made, ids=table.ids, names=table.target_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("competition")
    parser.add_argument("experiment")
    parser.add_argument("--metrics", nargs="*", default=[], help="further scores of the test rows")
    given = parser.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout is for the JSON alone
    choice = Choice(given.competition, given.experiment)
    run = open_run(choice)
    setup = run.experiment
    if is_dense(setup.competition.task):
        found = gains_maps.measure(run, given.metrics, helps=helps, of_each=of_each)
        json.dump({**found, "n_views": len(parts.build_views(setup.competition))}, out)
        out.flush()
        return
    views, test = predicted(choice, "oof"), predicted(choice, "test")
    plain = views if setup.competition.tta.name == "none" else predicted(choice, "oof-plain")
    found = out_of_fold(choice, views, plain)
    solved = on_the_solution(choice, test, found, given.metrics)
    if "folds" in solved:
        found["gains"]["folds"] = solved.pop("folds")
    found["members"] = sum(map(len, views.values()))
    found["n_views"] = len(parts.build_views(setup.competition))
    json.dump({**found, **solved}, out)
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
