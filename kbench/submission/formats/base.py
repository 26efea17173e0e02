"""What a submission file is made of, and what all formats share.

A format is a registered function that returns a `Format`. It may ask for the target names and the task by the
keyword-only parameters `_names` and `_task`, which kbench fills in; other keyword-only parameters may be set in
the YAML (`submission.format`). The sample submission rules: its columns, its ids and their order are what is written.
To add one, write a module beside this one and name it in `registry.MODULES`:

    @register("format")
    def mine(*, clip: float | None = None, _names: tuple[str, ...], _task: str) -> Format: ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import numbers, texts
from kbench.data.table.spellings import plain
from kbench.errors import ConfigError, Problem, SubmissionError, first_names, nearest, raise_all, visible
from kbench.inference.predictions import Predictions


@dataclass(frozen=True)
class Format:
    """One kind of submission file.

    Attributes:
        suffix: ending of the file, such as `.csv`.
        build: (predictions, sample) -> rows to write; raises `SubmissionError`.
        parse: (rows, sample) -> the predictions they hold, of rows without problems.
        problems: (rows, sample) -> what is wrong with the targets' cells; columns and ids are checked before.
        text: whether every column is read as text, for class names such as `0012`.
        exact: whether a file read back must hold the very cells that were written, as those of masks.
        columns: names after the id, where the file is no CSV and the sample's columns do not say.
        encode: rows -> the file, in pieces; a CSV by default.
        decode: (file, sample) -> rows, in the order of the file; raises `SubmissionError`.
        image_of: id of a row -> id of its image, where there are several rows of one image or file names for ids.
        truth_problems: `problems` of a solution, where it may hold what a submission may not, such as unknown numbers.
        own_sample: (ids of the test images, columns of a solution or of none) -> what a sample would ask for, where the
            user has none; None where a sample must say it.
        key: columns that tell rows of one id apart, such as one with the class.
        several: whether an id may have several rows, as many as its image has objects.

    For segmentations `build` takes, and `parse` returns, a `MaskSet` instead of `Predictions`; for dense regressions a
    `NumberSet`.
    """

    suffix: str
    build: Callable[[Any, pd.DataFrame], pd.DataFrame]
    parse: Callable[[pd.DataFrame, pd.DataFrame], Any]
    problems: Callable[[pd.DataFrame, pd.DataFrame], list[Problem]]
    text: bool = False
    exact: bool = False
    columns: tuple[str, ...] | None = None
    encode: Callable[[pd.DataFrame], Iterable[bytes]] | None = None
    decode: Callable[[Path, pd.DataFrame], pd.DataFrame] | None = None
    image_of: Callable[[str], str] = str
    truth_problems: Callable[[pd.DataFrame, pd.DataFrame], list[Problem]] | None = None
    key: tuple[str, ...] = ()
    several: bool = False
    own_sample: Callable[[Sequence[str], Sequence[str]], pd.DataFrame] | None = None


def asking(ids: Sequence[str], columns: Sequence[str], wanted: Sequence[str]) -> pd.DataFrame:
    """Return a sample of one row per id.

    Args:
        ids: of the test images.
        columns: those of a solution, the id's first; they name the id and, where there are as many, the targets.
        wanted: the target columns otherwise.
    """
    given = [name for name in columns[1:] if name.lower() != "usage"]
    names = given if len(given) == len(wanted) and (len(given) == 1 or set(given) == set(wanted)) else list(wanted)
    return pd.DataFrame({columns[0] if columns else "id": list(ids), **dict.fromkeys(names, "")}, dtype=str)


def row_keys(frame: pd.DataFrame, format: Format) -> np.ndarray:
    """Return [N] text that tells the rows of a file apart: the id, and the other columns of the format's key."""
    columns = [str(frame.columns[0]), *(name for name in format.key if name in frame.columns)]
    if len(columns) == 1:
        return texts(frame, columns[0])
    return np.array(["  ".join(row) for row in zip(*(texts(frame, name) for name in columns), strict=True)], dtype=str)


def id_column(sample: pd.DataFrame) -> str:
    """Return the id column's name: the sample's first."""
    return str(sample.columns[0])


def target_columns(sample: pd.DataFrame) -> list[str]:
    """Return the names of the columns after the id."""
    return [str(name) for name in sample.columns[1:]]


def one_column(sample: pd.DataFrame, *, format: str) -> str:
    """Return the sample's only target column.

    Raises:
        SubmissionError: it has none, or several.
    """
    columns = target_columns(sample)
    if len(columns) != 1:
        raise SubmissionError(
            f"the sample has {len(columns)} target columns: {first_names(columns)}",
            f"one column, as the format '{format}' writes",
            "set submission.format in the YAML, perhaps to `probabilities`",
        )
    return columns[0]


def named_class(column: str, names: Sequence[str]) -> str | None:
    """Return the class a column is called, exactly or but for case and spaces; None where it names none, or two."""
    if column in names:
        return column
    alike = [name for name in names if plain(name) == plain(column)]
    return alike[0] if len(alike) == 1 else None


def check_task(task: str, allowed: Sequence[str], *, format: str) -> None:
    """Refuse a task a format cannot write.

    Raises:
        ConfigError: it cannot.
    """
    if task not in allowed:
        raise ConfigError(
            f"the submission format '{format}' cannot write the task '{task}'",
            f"a task of {', '.join(allowed)}",
            "set submission.format in the YAML; `kbench list format` shows them",
        )


def check_clip(clip: float | None, *, format: str) -> None:
    """Refuse a clip that is no share below one half.

    Raises:
        ConfigError: it is none.
    """
    if clip is not None and not 0 <= clip < 0.5:
        raise ConfigError(
            f"the submission format '{format}' with clip '{clip}'",
            "a number from 0 up to, but not including, 0.5: probabilities are kept within clip..1-clip",
            "correct submission.format.clip in the YAML, such as 0.05",
        )


def values_for(predictions: Predictions, sample: pd.DataFrame, *, names: Sequence[str]) -> np.ndarray:
    """Return [N, K] float64 predictions in the order of the sample's rows and of the names.

    Raises:
        SubmissionError: a row of the sample or a target is not predicted; ids are compared as text.
    """
    ids = texts(sample, id_column(sample))
    rows = np.minimum(np.searchsorted(predictions.ids, ids), max(0, len(predictions) - 1))
    missing = ids[predictions.ids[rows] != ids] if len(predictions) else ids
    problems = [Problem(name, "a target that is not predicted") for name in names if name not in predictions.names]
    if len(missing):
        what = f"{len(missing):,} of {len(ids):,} ids are not predicted: {first_names(missing.tolist())}"
        problems.append(Problem(id_column(sample), what, near_id(str(missing[0]), predictions.ids)))
    refuse("the predictions do not cover the sample submission", problems, sample)
    columns = [predictions.names.index(name) for name in names]
    return np.asarray(predictions.values[rows][:, columns], dtype=np.float64)


def near_id(name: str, ids: np.ndarray) -> str:
    """Return a hint: the id most like this one among its neighbours in [N] sorted ids, or the first ids."""
    place = int(np.searchsorted(ids, name))
    stem = name.rsplit(".", 1)[0]
    around = {str(near) for near in ids[max(0, place - 3) : place + 3]}
    start = int(np.searchsorted(ids, stem))
    around |= {str(near) for near in ids[start : start + 3] if str(near).startswith(stem)}
    hint = nearest(name, around)
    return hint if hint.startswith("did") else f"there are {first_names(ids.tolist(), 3)}"


def framed(sample: pd.DataFrame, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return rows with the sample's ids and these columns."""
    return pd.DataFrame({id_column(sample): texts(sample, id_column(sample)), **columns})


def predicted(frame: pd.DataFrame, names: Sequence[str], values: np.ndarray, task: str) -> Predictions:
    """Return [N, K] values of a file's rows as predictions, sorted by id."""
    ids = texts(frame, str(frame.columns[0]))
    order = np.argsort(ids, kind="stable")
    return Predictions(ids[order], tuple(names), values[order].astype(np.float32), task, {"file": True})


def match_names(columns: Sequence[str], names: Sequence[str], *, format: str) -> dict[str, str]:
    """Return column -> the target it is called, exactly or but for case and spaces; all in the columns' order.

    Raises:
        SubmissionError: a column has no target or a target no column; those of both sides are listed.
    """
    partners = {column: named_class(column, names) for column in columns}
    taken = Counter(partners.values())
    extra = [column for column, name in partners.items() if name is None or (taken[name] > 1 and name != column)]
    lacking = [name for name in names if name not in {partners[column] for column in columns if column not in extra}]
    problems = [
        Problem(visible(column), "a column of the sample that is no target", nearest(column, names)) for column in extra
    ]
    problems += [
        Problem(visible(name), "a target without a column in the sample", nearest(name, columns)) for name in lacking
    ]
    hint = "set data.classes or data.target in the YAML to the sample's columns"
    if len(columns) == 1 and len(names) > 1:
        hint = "set submission.format in the YAML to `single_probability` or `label`"
    raise_all(
        problems[:20],
        error=SubmissionError,
        subject=f"the format '{format}' cannot fill the sample: {len(extra)} columns and {len(lacking)} targets "
        "have no partner",
        expected=f"the columns {first_names(sorted(names))} after the id",
        todo=hint,
    )
    return {column: str(name) for column, name in partners.items()}


def refuse(subject: str, problems: Sequence[Problem], sample: pd.DataFrame) -> None:
    """Raise one error that lists every problem; do nothing when there is none.

    Raises:
        SubmissionError: there are problems.
    """
    raise_all(
        problems,
        error=SubmissionError,
        subject=subject,
        expected=f"{len(sample):,} rows with the ids of the sample in its order, and the columns "
        f"{first_names([str(name) for name in sample.columns])}",
        todo="`kbench ensemble` writes the file anew; `kbench check` compares YAML and sample",
    )


def number_problems(
    frame: pd.DataFrame, columns: Sequence[str], *, low: float | None = None, high: float | None = None
) -> list[Problem]:
    """Return what is wrong with columns of numbers: cells that are none, infinite, or out of range."""
    values = numbers(frame, columns)
    rules = [("not a number", np.isnan(values)), ("infinite", np.isinf(values))]
    if low is not None:
        rules.append((f"below {low:g}", values < low))
    if high is not None:
        rules.append((f"above {high:g}", values > high))
    return [_cells(frame, columns, bad, what) for what, bad in rules if bad.any()]


def _cells(frame: pd.DataFrame, columns: Sequence[str], bad: np.ndarray, what: str) -> Problem:
    row, column = map(int, np.argwhere(bad)[0])
    cell = f"id '{_cell(frame, row, str(frame.columns[0]))}' has '{_cell(frame, row, columns[column])}'"
    return Problem(columns[column], f"{int(bad.sum()):,} cells are {what}; the first: {cell}")


def _cell(frame: pd.DataFrame, row: int, column: str) -> str:
    return str(texts(frame.iloc[row : row + 1], column)[0])


def sum_problems(frame: pd.DataFrame, columns: Sequence[str], *, tolerance: float = 1e-6) -> list[Problem]:
    """Return a problem when rows of finite probabilities do not sum to 1 within the tolerance."""
    values = numbers(frame, columns)
    finite = np.isfinite(values).all(axis=1)
    sums = np.where(finite[:, None], values, 0).sum(axis=1)
    bad = finite & (np.abs(sums - 1) > tolerance)
    if not bad.any():
        return []
    row = int(bad.argmax())
    what = f"{int(bad.sum()):,} rows do not sum to 1 within {tolerance:g}"
    return [
        Problem(
            "row sums", f"{what}; the first: id '{_cell(frame, row, str(frame.columns[0]))}' sums to {sums[row]:.9g}"
        )
    ]
