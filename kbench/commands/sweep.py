"""`kbench sweep`: a grid of YAML values over the same folds, one run each, one table with intervals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kbench import console, files
from kbench.commands.train import train, wanted_folds
from kbench.config.yaml12 import parse_yaml
from kbench.ensemble.bootstrap import paired
from kbench.ensemble.verdicts import Difference, verdicts
from kbench.errors import ConfigError, Problem, TrainingError, as_problems, raise_all
from kbench.runs import parts
from kbench.runs.compare import difference_of
from kbench.runs.experiment import Experiment, open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import FREE, open_run, run_name
from kbench.runs.out_of_fold import OutOfFold
from kbench.runs.results import metric_of
from kbench.runs.trial_build import part_problems
from kbench.workspace import Choice

_FACTS = ("score", "low", "high", "optimism", "spread", "gain", "gain_low", "gain_high", "verdict")


def sweep(choice: Choice, grid: Sequence[str], which: str, options: TrainOptions) -> dict[str, Any]:
    """Train every combination of values and compare them on the rows they share.

    Values that change no weights (`tta`, `maps.windows`, `ensemble` ...) are tried on the runs the others make, so
    ways of training against ways of predicting are one table (row S-10). All values are checked before any trains.

    Args:
        choice: competition and experiment.
        grid: `PATH=VALUE,VALUE,...`, each a dimension; `experiment=NAME,NAME` are experiments.
        which: folds to train: numbers separated by commas, or `all`.
        options: how.

    Returns:
        `metric`; `rows`, one per combination, best first: values, score (nested, with its `optimism`, where something
        is fitted to out-of-fold rows), interval, the paired difference to the first combination that has a score, with
        its interval, the verdict on it beside all others (`ensemble.verdicts`), and the folds that failed; `failed`,
        the combinations with such folds.

    Raises:
        ConfigError: a value is wrong; nothing has trained.
    """
    first = open_experiment(choice)
    wanted_folds(first, which)
    axes = [_axis(text) for text in grid]
    trained, free = ([axis for axis in axes if _is_free(axis[0]) == way] for way in (False, True))
    ways = {
        values: _chosen(choice, values, run_name(first) if trained else None) for values in itertools.product(*trained)
    }
    _check(first, ways, list(itertools.product(*free)))
    rows: list[dict[str, Any]] = []
    base: OutOfFold | None = None
    known: list[Difference | None] = []
    failed = []
    for values, one in ways.items():
        console.note(f"sweep: {' '.join(values) or 'one way of training'}")
        opened = open_experiment(one)
        lost = _train(opened, which, options)
        failed += [" ".join(values)] if lost else []
        for more in itertools.product(*free):
            said = tuple(value for value in one.assignments if _is_free(value))  # the others are the run's
            run = open_run(replace(one, run=run_name(opened), assignments=(*said, *more)))
            row: dict[str, Any] = {**_split((*values, *more)), "run": run.name, **dict.fromkeys(_FACTS)}
            known.append(None)
            if run.trained_folds():
                oof = run.out_of_fold(device=options.device)
                base = base or oof
                row |= _facts(oof, base)
                known[-1] = None if oof is base else difference_of(oof, base)
            rows.append({**row, "failed": lost})
    metric = parts.build_metric(first.competition)
    _judge(rows, known, maximise=metric.maximise)
    if all(row["optimism"] is None for row in rows):  # nothing is fitted to out-of-fold rows
        rows = [{key: value for key, value in row.items() if key != "optimism"} for row in rows]
    rows.sort(key=lambda row: (row["score"] is None, (row["score"] or 0.0) * (-1 if metric.maximise else 1)))
    return {"metric": metric.name, "rows": rows, "failed": failed}


def _check(first: Experiment, ways: Mapping[tuple[str, ...], Choice], free: Sequence[tuple[str, ...]]) -> None:
    """Build the parts of every combination; raise one error with what is wrong in any."""
    problems: list[Problem] = []
    for one, more in itertools.product(ways.values(), free):
        try:
            experiment = open_experiment(replace(one, assignments=(*one.assignments, *more)))
        except ConfigError as error:
            problems += error.problems or as_problems(" ".join((*one.assignments, *more)), error)
            continue
        same = experiment.competition.contract_view() == first.competition.contract_view()
        problems += part_problems(experiment.competition, (first if same else experiment).train)
    raise_all(
        list(dict.fromkeys(problems)), error=ConfigError, subject="the grid", expected="values that can all be trained",
        todo="correct them, then type this again; nothing has trained",
    )  # fmt: skip


def _train(experiment: Experiment, which: str, options: TrainOptions) -> list[int | str]:
    """Train some folds; return those that failed."""
    try:
        trained = train(experiment, which, options)
        if trained["stopped"]:
            options.deadline.stop()
        return list(trained["failed"])
    except TrainingError as error:  # the only one that was wanted
        console.show_error(error)
        return wanted_folds(experiment, which)


def _is_free(assignment: str) -> bool:
    return assignment.partition("=")[0].partition(".")[0] in FREE


def _chosen(choice: Choice, values: Sequence[str], run: str | None) -> Choice:
    """Return the run of a combination of values; without values the experiment's own."""
    named = [value.partition("=")[2] for value in values if value.startswith("experiment=")]
    others = tuple(value for value in values if not value.startswith("experiment="))
    if run is None:
        return choice
    experiment = parse_yaml(named[0], name="experiment") if named else choice.experiment
    experiment = None if experiment == "baseline" else experiment
    alone = named and not others and not choice.assignments  # an experiment's own run
    return replace(
        choice, experiment=experiment, assignments=(*choice.assignments, *others),
        run=None if alone else _name(choice.run or run, values),
    )  # fmt: skip


def _axis(text: str) -> list[str]:
    path, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError(
            f"'{text}' is no dimension of a grid", "PATH=VALUE,VALUE", "write it as `stages.head.lr=1e-3,3e-3`"
        )
    parsed = parse_yaml(f"[{values}]", name=text)
    return [f"{path}={files.compact_json(value)}" for value in parsed]


def _split(values: Sequence[str]) -> dict[str, str]:
    return dict(value.split("=", 1) for value in values)


def _name(base: str, values: Sequence[str]) -> str:
    text = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", value.split(".")[-1]).strip("_") for value in values)
    short = text if len(text) <= 60 else text[:50]
    return f"{base}-{short}-{files.digest(list(values))[:6]}"


def _judge(rows: Sequence[dict[str, Any]], known: Sequence[Difference | None], *, maximise: bool) -> None:
    """Say of each combination whether it is better than the first one, all together."""
    places = [place for place, one in enumerate(known) if one is not None]
    said = verdicts([one for one in known if one is not None], maximise=maximise)
    for place, verdict in zip(places, said, strict=True):
        rows[place]["verdict"] = verdict.verdict


def _facts(oof: OutOfFold, base: OutOfFold) -> dict[str, Any]:
    score, experiment = oof.score, oof.run.experiment
    facts: dict[str, Any] = {key: score.get(key) for key in ("score", "low", "high", "optimism", "spread")}
    facts |= {"gain": None, "gain_low": None, "gain_high": None}
    if oof is base or oof.table.target_names != base.table.target_names:
        return facts
    shared = np.intersect1d(base.table.ids, oof.table.ids)
    if len(shared) < 2:
        return facts
    table = oof.table.select(np.isin(oof.table.ids, shared))
    places, before = (np.searchsorted(one.table.ids, table.ids) for one in (oof, base))
    targets, new, old = oof.targets[places], oof.values[places], base.values[before]
    gain = paired(metric_of(experiment), targets, new, old, table, groups=experiment.groups(table))
    return facts | {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
