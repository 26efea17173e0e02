"""What is to be predicted, read from the text cells of a CSV.

Every problem of a column is collected, with counts and the first ids, rather than raised at the first row. To
add a way targets can be written, add a branch to `read_targets`; a task has one shape of array whatever the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import numbers
from kbench.errors import Problem, counted, first_names

_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Targets:
    """Targets of all rows and what is wrong with them.

    Attributes:
        names: K target names.
        values: [N] int64 class index (`single_label`) or [N, K] float32, NaN where unknown; None without targets.
        problems: what makes the values unusable; then they are not used.
        notes: what the user should know.
    """

    names: tuple[str, ...]
    values: np.ndarray | None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def read_targets(
    frame: pd.DataFrame,
    columns: Sequence[str],
    *,
    task: str,
    ids: np.ndarray,
    classes: Sequence[str] | None = None,
    separator: str = " ",
    empty_tags: bool = False,
) -> Targets:
    """Turn text columns into targets.

    Args:
        frame: text cells; an empty cell is an empty text.
        columns: target columns: one of labels, tags or numbers, or one of 0 and 1 (or numbers) per target.
        task: `single_label`, `multi_label` or `regression`.
        ids: [N] ids of the rows, for messages.
        classes: allowed labels in the order of the outputs; found in the column by default.
        separator: between the tags of one cell.
        empty_tags: whether an empty cell means no tag, rather than a missing target.

    Source: F-02.
    """
    if task == "regression":
        return _numbers(frame, columns, ids)
    if len(columns) > 1:
        return _indicators(frame, columns, ids, exclusive=task == "single_label")
    if task == "single_label":
        return _labels(frame[columns[0]], ids, classes)
    return _tags(frame[columns[0]], ids, classes, separator, empty_tags)


def _labels(column: pd.Series, ids: np.ndarray, classes: Sequence[str] | None) -> Targets:
    codes, found = pd.factorize(column.to_numpy(dtype=object))
    name = str(column.name)
    names = tuple(classes) if classes else tuple(sorted_labels(label for label in found if label))
    index = {label: position for position, label in enumerate(names)}
    values = np.array([index.get(label, -1) for label in found], dtype=np.int64)[codes]
    empty = (column == "").to_numpy(dtype=bool)
    problems = _rows_problem(name, ids, empty, "without a label")
    problems += _unknown_problem(name, names, column[(values < 0) & ~empty])
    if len(names) == 1 and not classes:
        problems.append(Problem(name, f"every row has the label '{names[0]}'", "two classes or more"))
    return Targets(names, values, tuple(problems))


def _tags(
    column: pd.Series, ids: np.ndarray, classes: Sequence[str] | None, separator: str, empty_tags: bool
) -> Targets:
    codes, cells = pd.factorize(column.to_numpy(dtype=object))
    tags = [split_tags(cell, separator) for cell in cells]
    name = str(column.name)
    names = tuple(classes) if classes else tuple(sorted_labels({tag for cell in tags for tag in cell}))
    index = {tag: position for position, tag in enumerate(names)}
    hot = np.zeros((len(cells), len(names)), dtype=np.float32)
    unknown: list[str] = []
    for row, cell in enumerate(tags):
        for tag in cell:
            if tag in index:
                hot[row, index[tag]] = 1
            else:
                unknown.append(tag)
    problems = _unknown_problem(name, names, unknown)
    empty = np.array([not cell for cell in tags], dtype=bool)[codes]
    if not empty_tags:
        hint = "`data: {layout: {name: csv, empty_tags: true}}` if they have no tag"
        problems += _rows_problem(name, ids, empty, "without a tag", hint)
    return Targets(names, hot[codes], tuple(problems))


def split_tags(cell: str, separator: str) -> list[str]:
    """Return the tags of a cell; a blank separator stands for any white space."""
    parts = cell.split() if not separator.strip() else cell.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _indicators(frame: pd.DataFrame, columns: Sequence[str], ids: np.ndarray, *, exclusive: bool) -> Targets:
    read = _numbers(frame, columns, ids)
    values = np.asarray(read.values)  # [N, K]
    problems = list(read.problems)
    for position, name in enumerate(columns):
        cells = values[:, position]
        wrong = np.isfinite(cells) & (cells != 0) & (cells != 1)
        problems += _rows_problem(name, ids, wrong, "with a value other than 0 and 1")
    if not exclusive:
        return Targets(tuple(columns), values, tuple(problems), read.notes)
    known = np.nan_to_num(values, nan=0.0)
    if not problems:
        wrong = np.asarray(known.sum(axis=1) != 1)
        problems += _rows_problem(", ".join(columns), ids, wrong, "without exactly one 1")
    return Targets(tuple(columns), known.argmax(axis=1), tuple(problems))


def _numbers(frame: pd.DataFrame, columns: Sequence[str], ids: np.ndarray) -> Targets:
    empty = np.stack([(frame[name].str.strip() == "").to_numpy(dtype=bool) for name in columns], axis=1)  # [N, K]
    with np.errstate(over="ignore"):
        values = numbers(frame, columns).astype(np.float32)  # [N, K]
    problems = []
    for position, name in enumerate(columns):
        wrong = ~empty[:, position] & ~np.isfinite(values[:, position])
        cells = list(dict.fromkeys(frame[name][wrong]))
        problems += _rows_problem(
            name, ids, wrong, f"without a finite number ({first_names(cells, 3)})" if cells else ""
        )
    problems += _rows_problem(", ".join(columns), ids, np.asarray(empty.all(axis=1)), "without a target")
    unknown = int(empty.sum())
    notes = (f"{unknown:,} of {empty.size:,} targets are unknown",) if unknown and not problems else ()
    return Targets(tuple(columns), values, tuple(problems), notes)


def _rows_problem(where: str, ids: np.ndarray, rows: np.ndarray, what: str, hint: str = "") -> list[Problem]:
    """Return one problem that counts the rows and names the first, or none."""
    if not rows.any():
        return []
    return [
        Problem(
            where, f"{counted(int(rows.sum()), 'row')} {what}: {first_names([str(name) for name in ids[rows]])}", hint
        )
    ]


def _unknown_problem(where: str, names: Sequence[str], found: Iterable[str]) -> list[Problem]:
    counts = pd.Series(list(found), dtype=object).value_counts()
    if counts.empty:
        return []
    labels = first_names([str(label) for label in counts.index])
    return [
        Problem(
            where,
            f"{counted(int(counts.sum()), 'unknown label')}: {labels}",
            f"data.classes has {first_names(list(names))}",
        )
    ]


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Return distinct labels in order: by number when all are integers, by text otherwise."""
    distinct = set(labels)
    if all(_INTEGER.fullmatch(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def detect_task(frame: pd.DataFrame, target: Sequence[str]) -> str:
    """Tell the task from the target columns of a table.

    One column: numbers with a fraction, or more than 20 integers most of which differ, are `regression`; cells
    of exactly one word each are `single_label`; several words make it `multi_label`. Several columns: 0 and 1
    with one 1 a row are `single_label`, other 0 and 1 `multi_label`, other numbers `regression`.

    Args:
        frame: text cells.
        target: the target columns.

    Source: F-02.
    """
    values = numbers(frame, target)  # [N, K]
    if len(target) > 1:
        if not np.isin(values, (0, 1)).all():
            return "regression"
        return "single_label" if (values.sum(axis=1) == 1).all() else "multi_label"
    cells = frame[target[0]]
    if np.isfinite(values).all() and len(cells):
        integers = cells.str.strip().str.fullmatch(_INTEGER.pattern).all()
        distinct = cells.nunique()
        return "single_label" if integers and (distinct <= 20 or distinct * 2 <= len(cells)) else "regression"
    return "multi_label" if any(len(split_tags(cell, " ")) > 1 for cell in cells.unique()) else "single_label"
