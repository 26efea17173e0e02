"""Regression targets as they are: `id,age`, one column or several.

To add another format, see `formats.py`.
"""

from __future__ import annotations

import pandas as pd

from kbench.data.frames import numbers
from kbench.errors import Problem
from kbench.inference.predictions import Predictions
from kbench.registry import register
from kbench.submission.formats import (
    Format,
    check_task,
    framed,
    match_names,
    number_problems,
    predicted,
    target_columns,
    values_for,
)


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
        match_names(columns, _names, format="value")
        return list(_names)

    def build(predictions: Predictions, sample: pd.DataFrame) -> pd.DataFrame:
        columns, values = columns_of(sample), values_for(predictions, sample, names=_names)
        return framed(sample, {column: values[:, columns.index(column)] for column in target_columns(sample)})

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> Predictions:
        return predicted(frame, _names, numbers(frame, columns_of(sample)), _task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        return number_problems(frame, columns_of(sample))

    return Format(".csv", build, parse, problems)
