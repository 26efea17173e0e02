"""Grading on this machine, where the solution is at hand.

The solution is a CSV with the sample's ids and one of: the sample's own columns filled with the truth, one column of
class names, or one column per target. A column `Usage` (Public, Private, Ignored) splits it as Kaggle does. That of
maps is a file in the competition's own format: they are measured image by image, by counts of pixels or sums of errors,
then scored by the competition's metric; where it holds all classes, and these exclude one another, pixels of no class
are ignored, and so are numbers of NaN. To grade another kind of solution, let the competition's format `parse` it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import numbers, read_frame, texts
from kbench.data.table.table import Table
from kbench.ensemble.average import aligned
from kbench.errors import Problem, SubmissionError, first_names
from kbench.inference.map_store import MaskSet, NumberSet
from kbench.inference.predictions import Predictions
from kbench.metrics.maps import image_counts, image_errors, truth_of
from kbench.metrics.metric import Metric
from kbench.submission.check import check_submission, id_problems
from kbench.submission.formats.base import Format, id_column, refuse, row_keys, target_columns

Maps = MaskSet | NumberSet


def worth_of(maps: Maps, truth: Maps) -> np.ndarray:
    """Return [N, K, 3] of the images of the truth, as a metric takes them; two images are in memory at a time.

    They are int64 counts of pixels of masks, and float64 sums of errors of numbers (`metrics/maps.py`).

    Raises:
        SubmissionError: an image is not predicted, the classes or targets differ, or the size of an image does.
    """
    missing = np.setdiff1d(truth.ids, maps.ids)
    if len(missing) or maps.names != truth.names:
        raise SubmissionError(
            f"{len(missing):,} images of the solution are not predicted: {first_names(missing.tolist())}"
            if len(missing)
            else f"{first_names(list(maps.names))} for a solution with {first_names(list(truth.names))}",
            "predictions of the solution's images, and its classes or targets",
            "correct the solution file, or submission.format in the YAML",
        )
    rows = np.searchsorted(maps.ids, truth.ids)
    return np.stack([_worth(maps[place], truth, row) for row, place in enumerate(rows.tolist())])


def _worth(sent: np.ndarray, truth: Maps, row: int) -> np.ndarray:
    real = truth[row]
    if sent.shape != real.shape:
        raise SubmissionError(
            f"'{truth.ids[row]}' has {' x '.join(map(str, sent.shape))} pixels, and "
            f"{' x '.join(map(str, real.shape))} in the solution",
            "one size", "correct the solution file",
        )  # fmt: skip
    real = real[:, :, None] if real.ndim == 2 else real.transpose(1, 2, 0)
    if isinstance(truth, NumberSet):
        return image_errors(sent, real)
    return image_counts(sent, real, n_classes=len(truth.names))


def table_of(truth: Maps) -> Table:
    """Return the rows of a solution's maps, for a metric."""
    return Table(truth.ids, Path(), ((),) * len(truth), truth.task, truth.names)


def score_worth(metric: Metric, worth: np.ndarray, table: Table, rows: Iterable[bool]) -> float | None:
    """Return the score of some rows of [N, K, 3] counts or sums of errors; None when there are none."""
    chosen = np.fromiter(rows, dtype=bool, count=len(table))
    if not chosen.any():
        return None
    return metric(truth_of(worth[chosen], table.task), worth[chosen], table.select(chosen))


_USAGES = ("public", "private", "ignored")


@dataclass(frozen=True)
class Scores:
    """What a submission is worth.

    Attributes:
        score: over all rows that are not ignored.
        public: over the public rows; None when there are none.
        private: over the private rows; None when there are none.
    """

    score: float
    public: float | None = None
    private: float | None = None


def grade(submission: Path, solution: Path, *, sample: pd.DataFrame, format: Format, metric: Metric) -> Scores:
    """Score a submission file against a solution file.

    Args:
        submission: the file, plain or gzip; it is checked against the sample first.
        solution: the answers.
        sample: the sample submission.
        format: the competition's format.
        metric: the competition's metric.

    Raises:
        SubmissionError: the submission has problems, or the solution does not fit the sample.
        DataError: the metric has no value on the solution's rows.
    """
    predictions = format.parse(check_submission(submission, sample, format=format), sample)
    if isinstance(predictions, MaskSet | NumberSet):
        return _grade_maps(predictions, solution, sample, format=format, metric=metric)
    table, usage = read_truth(solution, sample, format=format, predictions=predictions)
    parts = {part: _score(metric, table.select(usage == part), predictions) for part in ("public", "private")}
    whole = table.select(usage != "ignored")
    values = aligned(predictions, ids=whole.ids, names=whole.target_names)
    return Scores(metric(whole.targets, values, whole), **parts)


def read_truth(
    solution: Path, sample: pd.DataFrame, *, format: Format, predictions: Predictions
) -> tuple[Table, np.ndarray]:
    """Return the true targets of the test rows as a table, and [N] usages in lower case, empty without such a column.

    Args:
        solution: the answers.
        sample: the sample submission.
        format: the competition's format.
        predictions: what will be scored; they give the task and the names of the targets.

    Raises:
        SubmissionError: the solution does not fit the sample.
    """
    answers, usage = _read_solution(solution, sample, format)
    table = Table(
        ids=texts(answers, id_column(sample)),
        root=Path(),
        images=((),) * len(answers),
        task=predictions.task,
        target_names=predictions.names,
        targets=_targets(answers, sample, format=format, predictions=predictions),
    )
    return table, usage


def _grade_maps(maps: Maps, solution: Path, sample: pd.DataFrame, *, format: Format, metric: Metric) -> Scores:
    format = replace(format, problems=format.truth_problems or format.problems)
    if format.decode is not None:
        answers = check_submission(solution, sample, format=format)
        usage = np.full(len(answers), "", dtype=object)
    else:
        answers, usage = _read_solution(solution, sample, format)
        if len(target_columns(answers)) == len(target_columns(sample)) == 1:
            answers.columns = sample.columns
        refuse(f"the solution '{solution}'", format.problems(answers, sample), sample)
    truth = format.parse(answers, sample)
    worth, table = worth_of(maps, truth), table_of(truth)
    of_part = {part: format.parse(answers[usage == part], sample).ids for part in _USAGES if (usage == part).any()}
    split = [name for ids in of_part.values() for name in ids.tolist()]
    if len(set(split)) < len(split):
        raise SubmissionError(
            f"the solution '{solution}' has rows of one image in two parts", "one usage per image", "correct `Usage`"
        )
    parts = {
        part: score_worth(metric, worth, table, np.isin(table.ids, of_part.get(part, [])).tolist())
        for part in ("public", "private")
    }
    whole = score_worth(metric, worth, table, (~np.isin(table.ids, of_part.get("ignored", []))).tolist())
    if whole is None:
        raise SubmissionError(f"the solution '{solution}' ignores every row", "rows that count", "correct `Usage`")
    return Scores(whole, **parts)


def _score(metric: Metric, table: Table, predictions: Predictions) -> float | None:
    if not len(table):
        return None
    return metric(table.targets, aligned(predictions, ids=table.ids, names=table.target_names), table)


def _read_solution(path: Path, sample: pd.DataFrame, format: Format) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the answers sorted by id, all text, and [N] usages in lower case, empty without such a column."""
    frame = read_frame(path, text=True, error=SubmissionError)
    frame = frame.rename(columns={str(frame.columns[0]): id_column(sample)})
    have, want = row_keys(frame, format), row_keys(sample, format)
    if format.several:
        have, want = np.unique(have), np.unique(want)
    problems = id_problems(np.sort(have), np.sort(want), id_column(sample))
    usage = np.full(len(frame), "", dtype=object)
    for name in [str(name) for name in frame.columns if str(name).lower() == "usage"]:
        usage = np.char.lower(texts(frame, name)).astype(object)
        strange = sorted(set(usage) - set(_USAGES))
        if strange:
            problems.append(Problem(name, f"unknown usage {first_names(strange)}", "Public, Private or Ignored"))
        frame = frame.drop(columns=name)
    refuse(f"the solution '{path}'", problems, sample)
    order = np.argsort(row_keys(frame, format), kind="stable")
    return frame.iloc[order].reset_index(drop=True), usage[order]


def _targets(answers: pd.DataFrame, sample: pd.DataFrame, *, format: Format, predictions: Predictions) -> np.ndarray:
    """Return the truth as `Table.targets` has it, from sorted answers."""
    names, columns = predictions.names, target_columns(answers)
    if sorted(columns) == sorted(target_columns(sample)) and not format.problems(answers, sample):
        return _as_targets(format.parse(answers, sample).values, predictions.task)
    if len(columns) == 1 and predictions.task == "single_label":
        cells = texts(answers, columns[0])
        if np.isin(cells, names).all():
            index = {name: k for k, name in enumerate(names)}
            return np.array([index[name] for name in cells], dtype=np.int64)
    if set(names) <= set(columns):
        return _as_targets(numbers(answers, names), predictions.task)
    if len(columns) == len(names) == 1:
        return _as_targets(numbers(answers, columns), predictions.task)
    raise SubmissionError(
        f"the solution's columns {first_names(columns)} hold no answers this competition knows",
        f"the columns {first_names(target_columns(sample))}, one column of class names, or the columns "
        f"{first_names(names)}",
        "correct the solution file",
    )


def _as_targets(values: np.ndarray, task: str) -> np.ndarray:
    """Return [N, K] answers as targets; of classes and labels only sure ones, unknown numbers are NaN."""
    if task == "regression":
        return values.astype(np.float32)
    sure = np.isin(values, (0, 1)).all(axis=1)
    if task == "single_label":
        sure &= values.sum(axis=1) == 1
    if not sure.all():
        raise SubmissionError(
            f"the solution is no answer in {int((~sure).sum()):,} rows: the first has {values[~sure][0].tolist()[:5]}",
            "a class name, or 0 and 1" + (" with one 1 per row" if task == "single_label" else ""),
            "correct the solution file",
        )
    return values.argmax(axis=1) if task == "single_label" else values.astype(np.float32)
