"""The most probable class by its name: `id,breed`.

To add another format, see `formats.py`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kbench.data.frames import texts
from kbench.errors import Problem, first_names, nearest
from kbench.inference.predictions import Predictions
from kbench.registry import register
from kbench.submission.formats import Format, check_task, framed, one_column, predicted, values_for


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
        given = texts(frame, one_column(sample, format="label"))
        return predicted(frame, _names, given[:, None] == np.asarray(_names, dtype=str), _task)

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        column = one_column(sample, format="label")
        unknown, counts = np.unique(texts(frame, column), return_counts=True)
        strange = ~np.isin(unknown, np.asarray(_names, dtype=str))
        if not strange.any():
            return []
        names = unknown[strange].tolist()
        what = f"{int(counts[strange].sum()):,} cells are no class: {first_names(names)}"
        return [Problem(column, what, nearest(names[0], _names))]

    return Format(".csv", build, parse, problems, text=True)
