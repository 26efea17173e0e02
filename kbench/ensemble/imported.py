"""Other people's predictions: a CSV of probabilities becomes an ensemble member.

The file has an id column and one column per target, in any order; two classes may also come as one column, the
probability of the last class, and a single target under any name. Labels and regression targets may be missing: the
member then counts for the others. To read another layout, write a function here
that returns `Predictions`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kbench import files
from kbench.data.table.csv_files import numbers, read_frame, texts
from kbench.data.table.spellings import plain
from kbench.errors import PredictionError, Problem, first_names, nearest, raise_all
from kbench.inference.predictions import Predictions

_SUM = 0.02  # how far from 1 rounding to a few digits may take a row's sum


def import_predictions(csv: Path, *, task: str, names: tuple[str, ...], ids: np.ndarray) -> Predictions:
    """Read a foreign model's predictions of a table's rows.

    Rows of other ids are left out and counted in `source["ignored"]`. Single-label rows whose sums are 1 but for
    rounding (0.02) are divided by their sums.

    Args:
        csv: the file, plain or gzip.
        task: the competition's task.
        names: K target names in the order of the table.
        ids: [N] ids that must all be predicted, sorted.

    Raises:
        PredictionError: the file cannot be read, or does not fit; every problem is listed.
    """
    frame = read_frame(csv, error=PredictionError)
    given = texts(frame, str(frame.columns[0]))
    columns, problems = _match_columns(frame, task, names)
    problems += _id_problems(given, ids)
    _raise(csv, problems, names)
    order = np.argsort(given, kind="stable")
    rows = order[np.searchsorted(given, ids, sorter=order)]
    values = numbers(frame.iloc[rows], columns)
    if len(columns) == 1 and len(names) == 2:
        values = np.column_stack([1 - values[:, 0], values[:, 0]])
    _raise(csv, _value_problems(values, ids, task), names)
    if "regression" not in task:
        values = np.clip(values, 0, 1)
    if task == "single_label":
        values /= values.sum(axis=1, keepdims=True)
    source = {
        "file": Path(csv).name,
        "sha256": files.sha256(Path(csv)),
        "foreign": True,
        "ignored": len(frame) - len(ids),
    }
    known = names if values.shape[1] == len(names) else tuple(columns)
    return Predictions(ids, known, values.astype(np.float32), task, source)


def _raise(csv: Path, problems: list[Problem], names: tuple[str, ...]) -> None:
    raise_all(
        problems,
        error=PredictionError,
        subject=f"'{csv}'",
        expected=f"an id column, then {first_names(names)}, one row per id of this competition",
        todo="correct the file and import it again; export probabilities, not logits or classes",
    )


def _match_columns(frame: pd.DataFrame, task: str, names: tuple[str, ...]) -> tuple[list[str], list[Problem]]:
    have = [str(name) for name in frame.columns[1:]]
    one_for_two = task == "single_label" and len(names) == 2
    if len(have) == 1 and (len(names) == 1 or one_for_two) and not (one_for_two and plain(have[0]) == plain(names[0])):
        return have, []
    missing = [Problem(name, "no such column", nearest(name, have)) for name in names if name not in have]
    extra = [Problem(name, "is no target", nearest(name, names)) for name in have if name not in names]
    if have and not extra and task != "single_label":
        return [name for name in names if name in have], []
    return list(names), [*missing[:10], *extra[:10]]


def _id_problems(names: np.ndarray, ids: np.ndarray) -> list[Problem]:
    problems = []
    unique, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1]
        problems.append(Problem("id", f"{len(twice):,} ids stand twice: {first_names(twice.tolist())}"))
    missing = np.setdiff1d(ids, unique)
    if len(missing):
        problems.append(
            Problem(
                "id",
                f"{len(missing):,} of {len(ids):,} ids are missing: {first_names(missing.tolist())}",
                f"the file has {first_names(unique.tolist(), 2)}",
            )
        )
    return problems


def _value_problems(values: np.ndarray, ids: np.ndarray, task: str) -> list[Problem]:
    finite = np.isfinite(values).all(axis=1)
    rules = [("is not of finite numbers", ~finite)]
    values = np.where(finite[:, None], values, 1 / values.shape[1])
    if "regression" not in task:
        rules.append(("has a value outside 0..1", ((values < 0) | (values > 1 + 1e-6)).any(axis=1)))
    if task == "single_label":
        rules.append(("does not sum to 1", np.abs(values.sum(axis=1) - 1) > _SUM))
    return [
        Problem("values", f"{int(bad.sum()):,} of {len(ids):,} rows: the one of id '{ids[bad.argmax()]}' {what}")
        for what, bad in rules
        if bad.any()
    ]
