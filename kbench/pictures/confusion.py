"""What is taken for what: the confusion matrix of classes, one small matrix per label, numbers over true numbers.

Rows are the truth, columns the prediction (F-27). To add a view of the same counts, write a function here that
takes the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbench.inference.predictions import blocks
from kbench.pictures.figures import MUTED, RIGHT, SERIES, WRONG, blank_figure, new_figure, save_figure, shorten, tidy

_LARGEST = 24.0  # inches; more classes than fit are drawn smaller
_NUMBERS = 4000  # cells that get a number at most


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return [K, K] int64 counts: rows true, columns predicted (the most probable class, the first of equals).

    Args:
        targets: [N] class indices.
        predictions: [N, K] probabilities.
    """
    k = predictions.shape[1]
    counts = np.zeros(k * k, dtype=np.int64)
    for rows in blocks(predictions.shape):
        chosen = np.asarray(predictions[rows]).argmax(axis=1)
        counts += np.bincount(targets[rows] * k + chosen, minlength=k * k)
    return counts.reshape(k, k)


def label_confusion(
    targets: np.ndarray, predictions: np.ndarray, *, threshold: float | Sequence[float] = 0.5
) -> np.ndarray:
    """Return [K, 2, 2] int64 counts, one matrix per label: rows without and with it, columns predicted the same way.

    Args:
        targets: [N, K] 0 and 1, NaN where unknown; unknown ones do not count.
        predictions: [N, K] probabilities.
        threshold: a label is predicted above it; one, or one per label.
    """
    counts = np.zeros((targets.shape[1], 2, 2), dtype=np.int64)
    for rows in blocks(predictions.shape):
        known, has = ~np.isnan(targets[rows]), targets[rows] > 0.5
        said = np.asarray(predictions[rows]) > np.asarray(threshold, dtype=predictions.dtype)
        for truth in (0, 1):
            for guess in (0, 1):
                counts[:, truth, guess] += (known & (has == truth) & (said == guess)).sum(axis=0)
    return counts


def confused_pairs(matrix: np.ndarray, names: Sequence[str], *, limit: int = 20) -> list[dict[str, Any]]:
    """Return the commonest mistakes, most rows first: `true`, `predicted`, `rows` and their share of the true class."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    totals = matrix.sum(axis=1)
    pairs = [divmod(int(place), matrix.shape[1]) for place in order if wrong.flat[place]]
    return [
        {"true": names[true], "predicted": names[said], "rows": int(wrong[true, said]),
         "share": float(wrong[true, said] / totals[true])}
        for true, said in pairs
    ]  # fmt: skip


def draw_confusion(
    matrix: np.ndarray, names: Sequence[str], path: Path, *, normalise: bool = False, unit: str = "rows"
) -> Path:
    """Draw a confusion matrix; return the picture.

    The colour of a cell is its share of the true class: green where it is right, red where it is wrong, red on a
    square-root scale so that rare mistakes show.

    Args:
        matrix: [K, K] counts.
        names: K class names.
        path: the PNG.
        normalise: write shares of the true class, in per cent, instead of counts.
        unit: what was counted.
    """
    k = len(matrix)
    cell = min(0.55, max(0.15, 9 / k), _LARGEST / k)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = new_figure(width=k * cell + 2.2, height=k * cell + 2.4)
    axes.imshow(_colours(matrix, share), interpolation="nearest")
    _names(axes, names, cell)
    if np.count_nonzero(matrix) <= _NUMBERS and cell * 72 * 0.4 >= 4:
        _numbers(axes, matrix, share, cell, normalise=normalise)
    if cell >= 0.1:
        between, colour = np.arange(k + 1) - 0.5, "0.93" if k > 30 else "0.85"
        axes.hlines(between, -0.5, k - 0.5, color=colour, linewidth=0.5)
        axes.vlines(between, -0.5, k - 0.5, color=colour, linewidth=0.5)
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5))
    axes.set(xlabel="predicted", ylabel="true")
    rows = int(matrix.sum())
    right = int(np.trace(matrix))
    what = "per cent of the true class" if normalise else unit
    axes.set_title(f"{right:,} of {rows:,} right ({right / max(rows, 1):.2%}); {what}", fontsize=10, loc="left")
    return save_figure(figure, path)


def _colours(matrix: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return [K, K, 3] colours: white where nothing is, towards green or red otherwise."""
    right = np.eye(len(matrix), dtype=bool)
    strength = np.where(right, 0.15 + 0.75 * share, 0.12 + 0.88 * np.sqrt(share)) * (matrix > 0)
    full = np.where(right[..., None], _rgb(RIGHT), _rgb(WRONG))
    return np.asarray(1 - strength[..., None] * (1 - full))


def _rgb(colour: str) -> np.ndarray:
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(colour))


def _names(axes: Any, names: Sequence[str], cell: float) -> None:
    size = min(9.0, 0.62 * cell * 72)
    step = 1 if size >= 4 else int(np.ceil(6 / size))
    places = list(range(0, len(names), step))
    shown = [shorten(names[place], 30) for place in places]
    upright = len(names) <= 30 and max(map(len, shown)) * 0.6 * size / 72 <= cell * 0.95
    axes.set_xticks(places, shown, fontsize=max(size, 5), rotation=0 if upright else 90)
    axes.set_yticks(places, shown, fontsize=max(size, 5))


def _numbers(axes: Any, matrix: np.ndarray, share: np.ndarray, cell: float, *, normalise: bool) -> None:
    digits = 3 if normalise else len(str(int(matrix.max())))
    size = min(10.0, cell * 72 * 0.45, cell * 72 / (0.75 * digits))
    for true, said in np.argwhere(matrix):
        text = f"{100 * share[true, said]:.0f}" if normalise else str(matrix[true, said])
        dark = share[true, said] > (0.55 if true == said else 0.3)
        axes.text(said, true, text, ha="center", va="center", fontsize=size, color="white" if dark else "0.15")


def draw_label_confusion(counts: np.ndarray, names: Sequence[str], path: Path, *, unit: str = "rows") -> Path:
    """Draw for each label how often it was found, missed, and said where it is not; return the picture.

    Args:
        counts: [K, 2, 2] of `label_confusion`.
        names: K labels.
        path: the PNG.
        unit: what was counted.
    """
    k = len(counts)
    line = min(0.28, _LARGEST / k)
    figure, axes = new_figure(width=8, height=k * line + 1.4)
    places = np.arange(k)
    right, missed, extra = counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1]
    axes.barh(places, right, color=RIGHT, label="found")
    axes.barh(places, missed, left=right, color=MUTED, label="missed")
    axes.barh(places, -extra, color=WRONG, label="said, but not there")
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(places, [shorten(name, 30) for name in names], fontsize=min(9.0, line * 60))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.set(xlabel=unit)
    tidy(axes)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return save_figure(figure, path)


def draw_scatter(targets: np.ndarray, predictions: np.ndarray, names: Sequence[str], path: Path) -> Path:
    """Draw predicted over true values of every regression target; return the picture.

    Args:
        targets: [N, K] target units, NaN where unknown.
        predictions: [N, K].
        names: K target names.
        path: the PNG.
    """
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = blank_figure(width=4.2 * across, height=4.0 * down)
    for place, name in enumerate(names):
        axes = figure.add_subplot(down, across, place + 1)
        known = ~np.isnan(targets[:, place])
        truth, guess = targets[known, place], predictions[known, place]
        if len(truth) > 3000:
            axes.hexbin(truth, guess, gridsize=60, bins="log", cmap="Blues", mincnt=1)
        else:
            axes.plot(truth, guess, ".", color=SERIES[0], markersize=4, alpha=0.5)
        if len(truth):
            ends = [float(min(truth.min(), guess.min())), float(max(truth.max(), guess.max()))]
            axes.plot(ends, ends, color="0.4", linewidth=1)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set(xlabel="true", ylabel="predicted")
        tidy(axes)
    return save_figure(figure, path)
