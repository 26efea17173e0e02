"""Formats with one answer per image: its tags in one cell, its class by name, or its regression targets.

    tags    image_name,tags      the tags divided by spaces
    label   id,breed             the most probable class
    value   id,age               target units, one column or several

To add another format, see `base.py`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import numbers, texts
from kbench.errors import ConfigError, Problem, check_number, counted, first_names, nearest
from kbench.inference.predictions import Predictions
from kbench.registry import register
from kbench.submission.formats.base import (
    Format,
    asking,
    check_task,
    framed,
    match_names,
    number_problems,
    one_column,
    predicted,
    target_columns,
    values_for,
)


@register("format")
def tags(
    *,
    threshold: float | list[float] | None = None,
    _names: tuple[str, ...],
    _task: str,
    _threshold: float | list[float] = 0.2,
) -> Format:
    """Return the format with the names of the tags above a threshold in the sample's one target column.

    Args:
        threshold: a tag is written above it; one number, or one per tag in the order of the targets (row F-25); the
            metric's own by default. With `ensemble.decision` labels are decided already, and any threshold keeps
            them as they are.

    Raises:
        ConfigError: the task is not multi-label, a threshold is wrong, or a tag has a space in it.
    """
    check_task(_task, ("multi_label",), format="tags")
    limits = _limits(_threshold if threshold is None else threshold, _names)
    spaced = [name for name in _names if name.split() != [name]]
    if spaced:
        raise ConfigError(
            f"the submission format 'tags' with the tags {first_names(spaced)}",
            "names without white space, which divides them",
            "set submission.format in the YAML, perhaps to `probabilities`",
        )

    def build(predictions: Predictions, sample: pd.DataFrame) -> pd.DataFrame:
        chosen = values_for(predictions, sample, names=_names).astype(np.float32) > limits  # as the metrics choose
        names = np.asarray(_names, dtype=object)
        cells = np.array([" ".join(names[row]) for row in chosen], dtype=object)
        return framed(sample, {one_column(sample, format="tags"): cells})

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> Predictions:
        index = {name: position for position, name in enumerate(_names)}
        values = np.zeros((len(frame), len(_names)), dtype=np.float32)
        for row, cell in enumerate(texts(frame, one_column(sample, format="tags"))):
            values[row, [index[name] for name in cell.split()]] = 1
        return predicted(frame, _names, values, _task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        column = one_column(sample, format="tags")
        cells = [cell.split() for cell in texts(frame, column)]
        known = set(_names)
        strange = list(dict.fromkeys(name for cell in cells for name in cell if name not in known))
        twice = [str(frame.iloc[row, 0]) for row, cell in enumerate(cells) if len(set(cell)) < len(cell)]
        faults = []
        if strange:
            what = f"{counted(len(strange), 'word')} that no tag is called: {first_names(strange)}"
            faults.append(Problem(column, what, nearest(strange[0], _names)))
        if twice:
            faults.append(Problem(column, f"{counted(len(twice), 'cell')} with a tag twice, of {first_names(twice)}"))
        return faults

    return Format(".csv", build, parse, problems, text=True, own_sample=partial(asking, wanted=["tags"]))


@register("format")
def label(*, _names: tuple[str, ...], _task: str) -> Format:
    """Return the format with the name of the most probable class in the sample's one target column.

    Raises:
        ConfigError: the task is not single-label.
    """
    check_task(_task, ("single_label",), format="label")

    def build(predictions: Predictions, sample: pd.DataFrame) -> pd.DataFrame:
        best = values_for(predictions, sample, names=_names).argmax(axis=1)
        return framed(sample, {one_column(sample, format="label"): np.asarray(_names, dtype=str)[best]})

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> Predictions:
        cells = texts(frame, one_column(sample, format="label"))
        return predicted(frame, _names, cells[:, None] == np.asarray(_names, dtype=str), _task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        column = one_column(sample, format="label")
        unknown, counts = np.unique(texts(frame, column), return_counts=True)
        strange = ~np.isin(unknown, np.asarray(_names, dtype=str))
        if not strange.any():
            return []
        names = unknown[strange].tolist()
        what = f"{int(counts[strange].sum()):,} cells are no class: {first_names(names)}"
        return [Problem(column, what, nearest(names[0], _names))]

    return Format(".csv", build, parse, problems, text=True, own_sample=partial(asking, wanted=["label"]))


@register("format")
def value(*, _names: tuple[str, ...], _task: str) -> Format:
    """Return the format with the predicted numbers, matched to the sample's columns by name.

    A single target fills a single column whatever the column is called.

    Raises:
        ConfigError: the task is not regression.
    """
    check_task(_task, ("regression",), format="value")

    def columns_of(sample: pd.DataFrame) -> list[str]:
        """Return the column of each target, in the order of the targets."""
        columns = target_columns(sample)
        if len(columns) == len(_names) == 1:
            return columns
        column_of = {name: column for column, name in match_names(columns, _names, format="value").items()}
        return [column_of[name] for name in _names]

    def build(predictions: Predictions, sample: pd.DataFrame) -> pd.DataFrame:
        columns, values = columns_of(sample), values_for(predictions, sample, names=_names)
        return framed(sample, {column: values[:, columns.index(column)] for column in target_columns(sample)})

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> Predictions:
        return predicted(frame, _names, numbers(frame, columns_of(sample)), _task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        return number_problems(frame, columns_of(sample))

    return Format(".csv", build, parse, problems, own_sample=partial(asking, wanted=_names))


def _limits(threshold: float | list[float], names: tuple[str, ...]) -> np.ndarray:
    """Return one threshold, or [K] of them."""
    for value in threshold if isinstance(threshold, list) else [threshold]:
        check_number("submission.format.threshold", value, "[0, 1]")
    if isinstance(threshold, list) and len(threshold) != len(names):
        raise ConfigError(
            f"{len(threshold)} thresholds for {len(names)} tags",
            "one threshold, or one per tag",
            "correct submission.format.threshold in the YAML",
        )
    return np.asarray(threshold, dtype=np.float32)
