"""How good a model is class by class, and slice by slice: records for a CSV, a page or the screen.

`class_table` has one row per class, label or regression target; `slice_table` one per value of a metadata column,
with bootstrap intervals. To add a table, write a function here that returns records with the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench import files
from kbench.data.table.table import Table
from kbench.ensemble.bootstrap import interval
from kbench.errors import DataError
from kbench.metrics.classification import binary_auc
from kbench.metrics.metric import Metric
from kbench.pictures.confusion import confusion_matrix, label_confusion

_FORMULA = tuple("=+-@\t\r")  # what a formula may begin with
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_MOST_VALUES = 20  # slices of a column; more become ranges, or the rest


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write records as CSV; return the path.

    Texts that a spreadsheet would take for a formula get an apostrophe in front: names of classes and ids come from
    whoever made the data.
    """
    plain = [{_no_formula(name): _no_formula(value) for name, value in row.items()} for row in rows]
    with files.replacing(path) as temporary:
        pd.DataFrame(plain).to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    return path


def _no_formula(value: Any) -> Any:
    """Return a cell that no spreadsheet computes."""
    text = isinstance(value, str) and value[:1] in _FORMULA and not _NUMBER.fullmatch(value)
    return f"'{value}" if text else value


def class_table(
    table: Table, predictions: np.ndarray, *, threshold: float | Sequence[float] = 0.5
) -> list[dict[str, Any]]:
    """Return one record per class, label or regression target.

    Single label: `class`, `rows`, `predicted`, `recall` (the accuracy on the class's rows), `precision`, `f1`, `auc`
    (against the rest). Multi-label: `label`, `rows` (that have it), `predicted`, `unknown`, `recall`, `precision`,
    `f1`, `auc`, `accuracy` (of the known rows). Regression: `target`, `rows` (known), `mean`, `std`, `rmse`, `mae`,
    `bias` (mean of prediction minus truth), `r2`. None where a number has no value.

    Args:
        table: rows with targets.
        predictions: [N, K] in the order of the table and its target names.
        threshold: a label is predicted above it; one, or one per label.
    """
    targets = table.targets
    assert targets is not None, "training rows have targets"
    if table.task == "single_label":
        matrix = confusion_matrix(targets, predictions)
        return [
            {"class": name, "rows": int(matrix[k].sum()), "predicted": int(matrix[:, k].sum()),
             **_shares(matrix[k, k], matrix[k].sum(), matrix[:, k].sum()), "auc": _auc(targets == k, predictions[:, k])}
            for k, name in enumerate(table.target_names)
        ]  # fmt: skip
    if table.task == "multi_label":
        counts = label_confusion(targets, predictions, threshold=threshold)
        return [
            _label_row(name, counts[k], targets[:, k], predictions[:, k]) for k, name in enumerate(table.target_names)
        ]
    return [_number_row(name, targets[:, k], predictions[:, k]) for k, name in enumerate(table.target_names)]


def _shares(hits: int, true: int, said: int) -> dict[str, float | None]:
    return {"recall": _ratio(hits, true), "precision": _ratio(hits, said), "f1": _ratio(2 * hits, true + said)}


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _auc(truth: np.ndarray, scores: np.ndarray) -> float | None:
    area = binary_auc(np.asarray(truth, dtype=np.float64), np.asarray(scores))
    return None if np.isnan(area) else area


def _label_row(name: str, counts: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    hits, true, said, known = int(counts[1, 1]), int(counts[1].sum()), int(counts[:, 1].sum()), ~np.isnan(targets)
    return {
        "label": name, "rows": true, "predicted": said, "unknown": int((~known).sum()), **_shares(hits, true, said),
        "auc": _auc(targets, scores),
        "accuracy": _ratio(int(counts[0, 0]) + hits, int(known.sum())),
    }  # fmt: skip


def _number_row(name: str, targets: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    known = ~np.isnan(targets)
    truth, guess = targets[known].astype(np.float64), predictions[known].astype(np.float64)
    if not len(truth):
        return {"target": name, "rows": 0, **dict.fromkeys(("mean", "std", "rmse", "mae", "bias", "r2"))}
    errors = guess - truth
    return {
        "target": name, "rows": len(truth), "mean": float(truth.mean()), "std": float(truth.std()),
        "rmse": float(np.sqrt((errors**2).mean())), "mae": float(np.abs(errors).mean()), "bias": float(errors.mean()),
        "r2": None if truth.std() == 0 else 1 - float((errors**2).sum() / ((truth - truth.mean()) ** 2).sum()),
    }  # fmt: skip


def slices_of(table: Table, column: str) -> tuple[np.ndarray, list[str]]:
    """Return [N] int64, the slice of each row by a metadata column, and the names of the slices in a reader's order.

    A column of many numbers is cut at its quintiles; of many other values the commonest 19 stay and the rest become
    `(other)`. Empty cells are `(empty)`.

    Args:
        table: the rows.
        column: `target`, `id`, or a metadata column.

    Raises:
        DataError: there is no such column.
    """
    values = pd.Series([str(cell).strip() or "(empty)" for cell in table.column(column)], dtype=object)
    counts = values.value_counts()
    known = values[values != "(empty)"]
    numbers = pd.to_numeric(known, errors="coerce").to_numpy(dtype=np.float64)
    numeric = len(numbers) > 0 and bool(np.isfinite(numbers).all())
    if len(counts) > _MOST_VALUES and numeric:
        ranges, names = _ranges(numbers)
        values = pd.Series(ranges, index=known.index, dtype=object).reindex(values.index, fill_value="(empty)")
    elif len(counts) > _MOST_VALUES:
        kept = sorted(set(counts.sort_index().sort_values(ascending=False, kind="stable").index[: _MOST_VALUES - 1]))
        values = values.where(values.isin(kept), "(other)")
        names = [*kept, "(other)"]
    else:
        names = sorted(set(known), key=float if numeric else str)
    names = [*(name for name in names if name != "(empty)"), *(["(empty)"] if len(known) < len(values) else [])]
    place = {name: position for position, name in enumerate(names)}
    return values.map(place).to_numpy(dtype=np.int64), names


def _ranges(numbers: np.ndarray) -> tuple[list[str], list[str]]:
    """Return the range of each number and all ranges, low to high; their edges are the quintiles."""
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, 6)))
    names = [f"{low:g} to below {high:g}" for low, high in pairwise(edges[:-1])]
    names.append(f"{edges[-2]:g} to {edges[-1]:g}")
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(names) - 1)
    return [names[index] for index in place], names


def slice_table(
    metric: Metric,
    table: Table,
    predictions: np.ndarray,
    column: str,
    *,
    groups: np.ndarray | None = None,
    draws: int = 500,
) -> list[dict[str, Any]]:
    """Return the score of each slice of the rows, with its bootstrap interval, in the order of a reader.

    Args:
        metric: the competition's.
        table: rows with targets.
        predictions: [N, K] in the order of the table and its target names.
        column: a metadata column, `target` or `id`; see `slices_of`.
        groups: [N] labels; intervals draw whole groups.
        draws: resamples.

    Returns:
        Records with the column's name, `rows`, `score`, `low`, `high` and `note`, which says why a score or an
        interval is missing (a class without rows, a single group).

    Raises:
        DataError: there is no such column.
    """
    slices, names = slices_of(table, column)
    records = []
    for place, name in enumerate(names):
        rows = slices == place
        part = table.select(rows)
        score = _score(metric, part, predictions[rows], None if groups is None else groups[rows], draws)
        records.append({column: name, "rows": int(rows.sum()), **score})
    return records


def _score(
    metric: Metric, table: Table, predictions: np.ndarray, groups: np.ndarray | None, draws: int
) -> dict[str, Any]:
    record: dict[str, Any] = {"score": None, "low": None, "high": None, "note": ""}
    try:
        record["score"] = metric(table.targets, predictions, table)
        range_of = interval(metric, np.asarray(table.targets), predictions, table, groups=groups, draws=draws)
        record |= {"low": range_of.low, "high": range_of.high}
    except DataError as error:  # few rows: said in the record, the other slices still count
        record["note"] = error.what
    return record
