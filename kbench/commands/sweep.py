"""`kbench sweep`: a grid of YAML values over the same folds, one run each, one table with intervals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kbench import console, files
from kbench.commands import parts
from kbench.commands.fold_job import TrainOptions
from kbench.commands.runs import open_run_setup, run_name
from kbench.commands.score import OutOfFold, out_of_fold
from kbench.commands.setup import Choice, Setup, open_setup
from kbench.commands.train import train
from kbench.documents import parse_yaml
from kbench.ensemble.average import aligned
from kbench.ensemble.bootstrap import paired
from kbench.errors import ConfigError, TrainingError


def sweep(choice: Choice, grid: Sequence[str], which: str, options: TrainOptions) -> dict[str, Any]:
    """Train every combination of values and compare them on the rows they share.

    Args:
        choice: competition and experiment.
        grid: `PATH=VALUE,VALUE,...`, each a dimension.
        which: folds to train: numbers separated by commas, or `all`.
        options: how.

    Returns:
        One row per combination, best first: values, score, interval, and the paired difference to the first
        combination with its interval.
    """
    first = open_setup(choice)
    axes = [_axis(text) for text in grid]
    folds = which if which == "all" else which.split(",")
    rows: list[dict[str, Any]] = []
    scored: list[OutOfFold] = []
    failed = []
    for values in itertools.product(*axes):
        assignments = (*choice.assignments, *values)
        one = replace(choice, assignments=assignments, run=_name(choice.run or run_name(first), values))
        console.note(f"sweep: {' '.join(values)}")
        try:
            for fold in [folds] if isinstance(folds, str) else folds:
                train(open_setup(one), fold, options)
        except TrainingError as error:
            console.show_error(error)
            failed.append(" ".join(values))
            continue
        setup, paths, identity = open_run_setup(replace(one, assignments=()))
        made = out_of_fold(setup, paths, identity, device=options.device)
        scored.append(made)
        rows.append({**_split(values), "run": made.run, **_facts(first, made, scored[0])})
    metric = parts.build_metric(first.competition)
    rows.sort(key=lambda row: row["score"], reverse=metric.maximise)
    return {"metric": metric.name, "rows": rows, "failed": failed}


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


def _facts(setup: Setup, made: OutOfFold, base: OutOfFold) -> dict[str, Any]:
    score = made.score
    facts: dict[str, Any] = {key: score[key] for key in ("score", "low", "high")}
    facts |= {"spread": score["spread"], "gain": None, "gain_low": None, "gain_high": None}
    if made is base:
        return facts
    shared = np.intersect1d(base.table.ids, made.table.ids)
    table = setup.train.select(np.isin(setup.train.ids, shared))
    if len(table) < 2:
        return facts
    new, old = (aligned(one.predictions, ids=table.ids, names=table.target_names) for one in (made, base))
    groups = setup.groups()
    assert table.targets is not None, "training rows have targets"
    found = paired(
        parts.build_metric(setup.competition), table.targets, new, old, table,
        groups=None if groups is None else groups[np.isin(setup.train.ids, shared)],
    )  # fmt: skip
    return facts | {"gain": found.value, "gain_low": found.low, "gain_high": found.high}
