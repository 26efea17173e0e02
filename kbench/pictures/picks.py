"""Which rows are worth looking at: the most incorrect, the most correct, the most uncertain, random ones (F-27).

`judge` says of every row how sure the model was of the truth and whether it was right; `pick` chooses by it. To add
a kind of row, add a branch to `pick` and its name to `KINDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kbench.inference.predictions import blocks

Kind = Literal["most_incorrect", "most_correct", "most_uncertain", "random_correct", "random_incorrect"]
KINDS: dict[str, str] = {
    "most_incorrect": "wrong, and least of all sure of the truth",
    "most_correct": "right, and most sure of it",
    "most_uncertain": "nearest to undecided",
    "random_correct": "right, drawn at random",
    "random_incorrect": "wrong, drawn at random",
}
REGRESSION_KINDS: dict[str, str] = {
    "most_incorrect": "the largest errors",
    "most_correct": "the smallest errors",
    "random": "drawn at random",
}


@dataclass(frozen=True)
class Judged:
    """How right a model was, row by row.

    Attributes:
        truth: [N] float64, larger is better: the probability of the truth; of several labels the lowest one; for
            regression minus the absolute error, of several targets the largest one in standard deviations.
        right: [N] bool, or None for regression.
        margin: [N] float64 distance from undecided: between the two most probable classes, or from the threshold;
            None for regression.
        among: [N] bool: rows that are chosen from.
    """

    truth: np.ndarray
    right: np.ndarray | None
    margin: np.ndarray | None
    among: np.ndarray


def judge(
    task: str,
    targets: np.ndarray,
    predictions: np.ndarray,
    *,
    target: int | None = None,
    threshold: float | Sequence[float] = 0.5,
) -> Judged:
    """Judge every row, as a whole or by one target.

    Args:
        task: `single_label`, `multi_label` or `regression`.
        targets: those of a table.
        predictions: [N, K].
        target: only rows of this class; only rows that have this label or are said to have it; only this regression
            target; None for the row as a whole.
        threshold: a label is predicted above it; one, or one per label judged.
    """
    truth, margin = np.empty(len(targets)), np.empty(len(targets))
    right, among = np.empty(len(targets), dtype=bool), np.ones(len(targets), dtype=bool)
    spread = _spread(targets) if task == "regression" and target is None else np.ones(1)
    for rows in blocks(predictions.shape):
        wanted, values = targets[rows], np.asarray(predictions[rows], dtype=np.float64)
        if task == "single_label":
            truth[rows], right[rows], margin[rows] = _class_block(wanted, values)
            among[rows] = True if target is None else wanted == target
            continue
        columns = slice(None) if target is None else slice(target, target + 1)
        wanted, values = wanted[:, columns], values[:, columns]
        if task == "regression":
            truth[rows], among[rows] = _number_block(wanted, values, spread)
        else:
            truth[rows], right[rows], margin[rows], concerned = _label_block(wanted, values, threshold)
            among[rows] = concerned if target is not None else ~np.isnan(wanted).all(axis=1)
    return Judged(truth, None, None, among) if task == "regression" else Judged(truth, right, margin, among)


def _spread(targets: np.ndarray) -> np.ndarray:
    """Return [K] standard deviations of the known targets; 1 where there is none."""
    known = ~np.isnan(targets)
    counts = np.maximum(known.sum(axis=0), 1)
    means = np.where(known, targets, 0).sum(axis=0, dtype=np.float64) / counts
    spread = np.sqrt(np.where(known, (targets - means) ** 2, 0).sum(axis=0) / counts)
    return np.asarray(np.where(spread > 0, spread, 1))


def _class_block(targets: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth = np.take_along_axis(values, targets[:, None], axis=1)[:, 0]
    best = np.partition(values, -2, axis=1)[:, -2:] if values.shape[1] > 1 else np.pad(values, ((0, 0), (1, 0)))
    return truth, values.argmax(axis=1) == targets, best[:, 1] - best[:, 0]


def _number_block(targets: np.ndarray, values: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(targets)
    errors = np.where(known, np.abs(values - targets) / spread, -np.inf)
    return -errors.max(axis=1), known.any(axis=1)


def _label_block(
    targets: np.ndarray, values: np.ndarray, threshold: float | Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    known = ~np.isnan(targets)
    limits = np.asarray(threshold, dtype=np.float64)
    has, said = known & (targets > 0.5), known & (values > limits)
    truth = np.where(known, np.where(has, values, 1 - values), 1).min(axis=1)
    margin = np.where(known, np.abs(values - limits), 1).min(axis=1)
    return truth, (has == said).all(axis=1), margin, (has | said).any(axis=1)


def pick(judged: Judged, kind: str, *, k: int = 4, seed: int = 0) -> np.ndarray:
    """Return up to `k` row numbers, the most remarkable first; equal rows in the table's order.

    Args:
        judged: the rows.
        kind: a name of `KINDS`, or of `REGRESSION_KINDS` for regression.
        k: how many.
        seed: of random kinds.
    """
    rows = np.flatnonzero(judged.among)
    if judged.right is not None:
        if kind.endswith("_incorrect"):
            rows = rows[~judged.right[rows]]
        elif kind.endswith("_correct"):
            rows = rows[judged.right[rows]]
    if kind.startswith("random"):
        return np.sort(np.random.default_rng(seed).permutation(rows)[:k])
    if kind == "most_uncertain":
        if judged.margin is None:
            raise AssertionError("regression has no decision to be undecided about")
        return np.asarray(rows[np.argsort(judged.margin[rows], kind="stable")][:k])
    order = judged.truth if kind == "most_incorrect" else -judged.truth
    return np.asarray(rows[np.argsort(order[rows], kind="stable")][:k])


def captions(
    task: str,
    target: np.ndarray | np.integer,
    prediction: np.ndarray,
    names: tuple[str, ...],
    *,
    focus: int | None = None,
    threshold: float | Sequence[float] = 0.5,
) -> tuple[str, ...]:
    """Return the lines under an image: truth, prediction, how sure.

    Args:
        task: the competition's.
        target: of one row.
        prediction: [K] of that row.
        names: K target names.
        focus: the label or regression target the image is shown for; None for all of them.
        threshold: a label is predicted above it; one, or one per label.
    """
    if task == "single_label":
        said = int(prediction.argmax())
        true = int(target)
        return f"true {_percent(prediction[true])} {names[true]}", f"said {_percent(prediction[said])} {names[said]}"
    values = np.asarray(target)
    if task == "regression":
        return _number_captions(values, prediction, names, focus)
    has, said_labels = values > 0.5, prediction > np.asarray(threshold, dtype=prediction.dtype)
    if focus is not None:
        true_text, said_text = ("yes" if flag else "no" for flag in (has[focus], said_labels[focus]))
        return f"true {true_text}", f"said {_percent(prediction[focus])} {said_text}"
    known = ~np.isnan(values)
    missed = ", ".join(name for name, flag in zip(names, known & has & ~said_labels, strict=True) if flag)
    extra = ", ".join(name for name, flag in zip(names, known & ~has & said_labels, strict=True) if flag)
    true_names = ", ".join(name for name, flag in zip(names, has, strict=True) if flag)
    return f"true {true_names or 'none'}", f"missed {missed or '-'}", f"extra {extra or '-'}"


def _number_captions(
    target: np.ndarray, prediction: np.ndarray, names: tuple[str, ...], focus: int | None
) -> tuple[str, ...]:
    columns = range(len(names)) if focus is None else [focus]
    if len(columns) == 1:
        column = columns[0]
        error = prediction[column] - target[column]
        return f"true {target[column]:.4g}", f"said {prediction[column]:.4g}", f"error {error:+.3g}"
    return tuple(f"{names[c]} {target[c]:.4g}, said {prediction[c]:.4g}" for c in list(columns)[:3])


def _percent(probability: float) -> str:
    if probability >= 0.1:
        return f"{100 * probability:.0f}%"
    return f"{100 * probability:.2g}%" if probability >= 0.001 else "<0.1%"
