"""The out-of-fold predictions of a run, and what they are worth: every row predicted by models that did not see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kbench import console, files
from kbench.data.table.table import Table
from kbench.errors import DataError
from kbench.runs.doubts import doubts
from kbench.runs.results import Judged, Sendable, fold_scores, metric_of, score_record

if TYPE_CHECKING:
    from kbench.runs.run import Run


@dataclass(frozen=True)
class OutOfFold:
    """A run's out-of-fold predictions and what they are worth.

    Attributes:
        run: the run.
        result: rows or maps, the mean of each fold's snapshots and views.
        table: the rows of the trained folds, with the targets that are predicted.
        judged: what was decided of them, nested, and scored.
        score: what `score.json` holds.
    """

    run: Run
    result: Any
    table: Table
    judged: Judged
    score: dict[str, Any]

    @property
    def targets(self) -> np.ndarray:
        """[N, ...] what the metric takes as the truth of the rows."""
        return self.judged.targets

    @property
    def values(self) -> np.ndarray:
        """[N, ...] what the metric takes of the nested predictions: those that are scored."""
        return np.asarray(self.judged.outcome.values)

    def sent(self) -> Sendable:
        """Return the predictions that are scored, as a format takes them: rows before a decision, or masks."""
        return self.run.results.scored(self.run.experiment, self.result, self.judged)


def out_of_fold(run: Run, *, device: str = "auto") -> OutOfFold:
    """Return the out-of-fold predictions of a run's trained folds; predicts and scores what is missing.

    The score is that of the mean over each fold's snapshots and views, over all rows at once; beside it stand each
    fold's score and their spread, and what speaks against members or the rule (`doubts`). What is scored is what is
    sent: after the decision or the mask rule where there is one. `score.json` is written.

    Raises:
        PredictionError: no fold is trained.
    """
    experiment = run.experiment
    folds = list(range(experiment.folds.n)) if run.foreign else run.required_folds()
    for text in other_rows(run):
        console.warn(text)
    result = run.results.out_of_fold(run, folds, device=device)
    table = of_targets(experiment.train.select(np.isin(experiment.folds.fold, folds)), result.names)
    judged = run.results.judge(experiment, result, table)
    score = score_record(experiment, judged, table) | fold_scores(experiment, judged, table) | {
        "run": run.name, "missing": [fold for fold in range(experiment.folds.n) if fold not in folds],
        **run.results.details(run, result, judged, table),
    }  # fmt: skip
    score["doubts"] = doubts(experiment, judged, table, score)
    files.write_json(run.paths.score, score)
    return OutOfFold(run, result, table, judged, score)


def other_rows(run: Run) -> list[str]:
    """Return a warning where the training rows are others than those a run was trained on: their score is another's."""
    if run.foreign or run.experiment.trial:
        return []
    known = files.read_json(run.paths.manifest)
    lines = run.experiment.content.changes(known.get("content"), run.paths.content)
    if known.get("view", {}).get("table", "") not in ("", run.experiment.train.fingerprint()):
        lines = ["  ids, targets or metadata of the table", *lines]
    if not lines:
        return []
    return [
        f"the rows that '{run.name}' is trained on have changed since; its score is that of the rows as they are now:\n"
        + "\n".join(lines)
        + "\n  bring the files back, or train it anew with `kbench train --force`"
    ]


@dataclass(frozen=True)
class FoldScore:
    """What a fold's own rows say of it.

    Attributes:
        value: the score, or None where the metric has no value on them.
        nested: whether thresholds, cut points or a post-process were found for it, on the other fifths of its rows.
    """

    value: float | None
    nested: bool = False


def score_of_fold(run: Run, fold: int, *, device: str = "auto", limit: int | None = None) -> FoldScore:
    """Predict a fold's own rows where they are missing; return the score of the mean over its snapshots and views.

    It is what `kbench score` says of a run whose only fold this is: after the decision or the mask rule, where there is
    one; what is fitted is nested within the fold.

    Args:
        run: the run.
        fold: which.
        device: where models run.
        limit: batches at most, of a smoke run, which has no score.
    """
    result = run.results.out_of_fold(run, [fold], device=device, limit=limit)
    if limit is not None:
        run.results.made(result)
        return FoldScore(None)
    table = of_targets(run.experiment.train.select(run.experiment.folds.valid(fold)), result.names)
    try:
        judged = run.results.judge(run.experiment, result, table)
    except DataError:  # too few rows, or without a class: there is no interval, and nothing can be fitted
        return FoldScore(metric_of(run.experiment).or_none(*run.results.plain(result, table), table))
    return FoldScore(judged.outcome.nested.value, nested=bool(judged.outcome.by_part))


def of_targets(table: Table, names: Sequence[str]) -> Table:
    """Return a table with only some of its targets, in its own order."""
    if set(table.target_names) <= set(names):
        return table
    assert table.targets is not None, "training rows have targets"
    kept = [place for place, name in enumerate(table.target_names) if name in names]
    return replace(
        table, target_names=tuple(table.target_names[place] for place in kept), targets=table.targets[:, kept]
    )
