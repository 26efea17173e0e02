"""How the folds of a run were trained, all in one picture: losses, scores, learning-rate range tests.

Drawn from the folds' logs and CSVs alone. `curves.py` draws the same for a single fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench import files
from kbench.report.figures import MUTED, SERIES, blank_figure, new_figure, save_figure, tidy
from kbench.training.lr_curve import LRCurve, shown
from kbench.workspace import FoldPaths

Epochs = Sequence[Mapping[str, Any]]


def read_epochs(paths: FoldPaths) -> list[dict[str, Any]]:
    """Return the epochs of a fold's log, in order; none when it has no log."""
    records = map(json.loads, files.read_lines(paths.log))
    return [record for record in records if record.get("event") == "epoch"]


def draw_training(folds: Mapping[str, Epochs], path: Path, *, metric: str) -> Path:
    """Draw training and validation loss, score and learning rate of all folds; return the picture.

    Args:
        folds: name of a fold -> its epochs.
        path: the PNG.
        metric: name of the score.
    """
    figure = blank_figure(width=13, height=4.0)
    loss, score, rate = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    for colour, (name, epochs) in zip(_colours(len(folds)), folds.items(), strict=True):
        places = range(1, len(epochs) + 1)
        loss.plot(places, _column(epochs, "train_loss"), color=colour, linestyle=":", linewidth=1.2)
        loss.plot(places, _column(epochs, "valid_loss"), color=colour, linewidth=1.6, label=name)
        score.plot(places, _column(epochs, "score"), color=colour, linewidth=1.6)
        rate.plot(places, _column(epochs, "lr"), color=colour, linewidth=1.6)
    longest = max(folds.values(), key=len)
    for axes, what in ((loss, "loss: dotted on training rows"), (score, f"validation score: {metric}"),
                       (rate, "learning rate at the end of the epoch")):  # fmt: skip
        axes.set_xlim(0.5, len(longest) + 0.5)
        _stages(axes, longest)
        axes.set_title(what, fontsize=10, loc="left")
        axes.set(xlabel="epoch")
        tidy(axes)
    _robust(loss, [_column(epochs, key) for epochs in folds.values() for key in ("train_loss", "valid_loss")])
    _robust(score, [_column(epochs, "score") for epochs in folds.values()])
    rate.set(yscale="log")
    loss.legend(frameon=False, fontsize=8, ncols=1 + (len(folds) > 6))
    return save_figure(figure, path)


def _colours(count: int) -> list[str]:
    return [SERIES[place % len(SERIES)] for place in range(count)]


def _column(epochs: Epochs, key: str) -> np.ndarray:
    return np.array([np.nan if epoch[key] is None else epoch[key] for epoch in epochs], dtype=np.float64)


def _stages(axes: Any, epochs: Epochs) -> None:
    """Mark where stages begin."""
    for place, epoch in enumerate(epochs, 1):
        if epoch["epoch"] == 0:
            if place > 1:
                axes.axvline(place - 0.5, color="0.75", linewidth=0.8)
            axes.text(place, 1, epoch["stage"], transform=axes.get_xaxis_transform(), fontsize=7, color="0.5", va="top")


def _robust(axes: Any, columns: Sequence[np.ndarray]) -> None:
    """Keep one wild epoch from flattening the rest: a logarithmic axis, or no outliers beyond ten times the spread."""
    values = np.concatenate(columns)
    values = values[np.isfinite(values)]
    if not len(values):
        axes.text(0.5, 0.5, "no validation rows", transform=axes.transAxes, ha="center", color=MUTED)
        return
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set(yscale="log")
    elif values.min() <= 0:
        low, middle, high = np.percentile(values, (5, 50, 95))
        reach = 10 * max(high - low, 1e-12)
        if high > low:
            axes.set_ylim(max(values.min(), middle - reach), min(values.max(), middle + reach))


def read_curve(csv: Path) -> LRCurve:
    """Return the learning-rate range test of a CSV."""
    frame = pd.read_csv(csv)
    return LRCurve(tuple(frame["lr"]), tuple(frame["loss"]), tuple(frame.get("valid_loss", ())))


def draw_range_tests(curves: Mapping[str, Path], path: Path) -> Path:
    """Draw the learning-rate range tests of all folds of one stage, with their suggestions; return the picture.

    Args:
        curves: name of a fold -> CSV of its range test.
        path: the PNG.
    """
    figure, axes = new_figure(width=7.5, height=4.2)
    for colour, (name, csv) in zip(_colours(len(curves)), curves.items(), strict=True):
        curve = read_curve(csv)
        part = shown(len(curve.lrs))
        rate = "none" if curve.suggested is None else f"{curve.suggested:.2e}"
        axes.plot(curve.lrs[part], curve.smoothed[part], color=colour, label=f"{name}: {rate}")
        if curve.suggested is not None:
            axes.axvline(curve.suggested, color=colour, linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
    axes.set_title("range test; the dashed rates were suggested", fontsize=10, loc="left")
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
