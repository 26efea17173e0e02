"""Formats of probabilities: one column per target (`id,cat,dog`), or that of one class (`id,label`, label is P(dog)).

To add another format, see `base.py`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import numbers
from kbench.errors import ConfigError, Problem, nearest
from kbench.inference.predictions import Predictions
from kbench.registry import register
from kbench.submission.formats.base import (
    Format,
    asking,
    check_clip,
    check_task,
    framed,
    match_names,
    named_class,
    number_problems,
    one_column,
    predicted,
    sum_problems,
    target_columns,
    values_for,
)


@register("format")
def probabilities(*, clip: float | None = None, _names: tuple[str, ...], _task: str) -> Format:
    """Return the format with one probability per target, matched to the sample's columns by name.

    Rows of single-label tasks are divided by their sums in float64, so that they are 1 within 1e-6.

    Args:
        clip: keep probabilities within clip..1-clip first, against one sure mistake (row F-29).

    Raises:
        ConfigError: the task or the clip is wrong.
    """
    check_task(_task, ("single_label", "multi_label"), format="probabilities")
    check_clip(clip, format="probabilities")

    def build(predictions: Predictions, sample: pd.DataFrame) -> pd.DataFrame:
        columns = match_names(target_columns(sample), _names, format="probabilities")
        values = np.clip(values_for(predictions, sample, names=list(columns.values())), clip or 0, 1 - (clip or 0))
        if _task == "single_label":
            sums = values.sum(axis=1, keepdims=True)
            values = np.divide(values, sums, out=values, where=sums > 0)
        return framed(sample, {name: values[:, k] for k, name in enumerate(columns)})

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> Predictions:
        column_of = {name: column for column, name in match_names(
            target_columns(sample), _names, format="probabilities").items()}  # fmt: skip
        return predicted(frame, _names, numbers(frame, [column_of[name] for name in _names]), _task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        columns = target_columns(sample)
        faults = number_problems(frame, columns, low=0, high=1)
        return faults + (sum_problems(frame, columns) if _task == "single_label" else [])

    return Format(".csv", build, parse, problems, own_sample=partial(asking, wanted=_names))


@register("format")
def single_probability(
    *, target: str | None = None, clip: float | None = None, _names: tuple[str, ...], _task: str
) -> Format:
    """Return the format with the probability of one target in the sample's one target column.

    Args:
        target: the class or label; by default the one the sample's column is called, but for case and spaces, or else
            the last one.
        clip: keep probabilities within clip..1-clip, against one sure mistake (row F-29; fast.ai's lesson: 0.05).

    Raises:
        ConfigError: the task, the target or the clip is wrong.
    """
    check_task(_task, ("single_label", "multi_label"), format="single_probability")
    check_clip(clip, format="single_probability")
    if target is not None and str(target) not in _names:
        raise ConfigError(
            f"the submission format 'single_probability' with target '{target}'",
            "a class of the competition",
            f"correct submission.format.target in the YAML; {nearest(str(target), _names)}",
        )

    def chosen_of(sample: pd.DataFrame) -> str:
        column = one_column(sample, format="single_probability")
        return str(target) if target is not None else named_class(column, _names) or _names[-1]

    def build(predictions: Predictions, sample: pd.DataFrame) -> pd.DataFrame:
        values = np.clip(values_for(predictions, sample, names=[chosen_of(sample)])[:, 0], clip or 0, 1 - (clip or 0))
        return framed(sample, {one_column(sample, format="single_probability"): values})

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> Predictions:
        values, chosen = numbers(frame, [one_column(sample, format="single_probability")])[:, 0], chosen_of(sample)
        if len(_names) == 2 and _task == "single_label":  # the other class is what is left
            pair = (1 - values, values) if chosen == _names[1] else (values, 1 - values)
            return predicted(frame, _names, np.column_stack(pair), _task)
        return predicted(frame, [chosen], values[:, None], "multi_label")

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        return number_problems(frame, [one_column(sample, format="single_probability")], low=0, high=1)

    own = partial(asking, wanted=[str(target) if target is not None else _names[-1]])
    return Format(".csv", build, parse, problems, own_sample=own)
