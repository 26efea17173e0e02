"""Curves: rates before training, logs of a fold and of all folds, and what an ensemble's parts add.

Schedules are pure functions of the update, so the picture of the rates is exact; a rate that is still to be found is
drawn in units of itself. Losses, scores and range tests are drawn from the folds' logs and CSVs alone. What members add
is counted out of fold, so for the rows no model of the mean has seen; a member is a snapshot, such as `cycles-2`. To
show more of a stage, add a field to `StageRates`; to compare other mixtures, hand `stacked` other names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kbench import records
from kbench.data.table.table import Table
from kbench.ensemble.average import aligned, average, concat, member_names
from kbench.ensemble.bootstrap import interval, paired
from kbench.inference.predictions import Predictions
from kbench.metrics.metric import Metric
from kbench.pictures.figures import MUTED, SERIES, blank_figure, new_figure, save_figure, shorten, tidy
from kbench.training.lr_finder import TENTH, LRCurve, shown
from kbench.workspace import FoldPaths

_POINTS = 4000  # of a curve; longer ones are thinned


@dataclass(frozen=True)
class StageRates:
    """The learning rate of every update of a stage.

    Attributes:
        name: the stage's name.
        rates: one list per layer group that has a rate of its own, the last group (the head) first.
        epochs: of the stage.
        relative: the rate is still to be found; `rates` are in units of it.
        cycle_ends: last update of each cycle.
        kept: whether cycle ends become ensemble members.
        note: what the curve cannot show, such as a rate that follows the scores.
    """

    name: str
    rates: Sequence[Sequence[float]]
    epochs: int
    relative: bool
    cycle_ends: Sequence[int] = ()
    kept: bool = False
    note: str = ""

    @property
    def updates(self) -> int:
        """Updates of the stage."""
        return len(self.rates[0])


def draw_stages(stages: Sequence[StageRates], path: Path) -> Path:
    """Draw the rates of all stages side by side, each as wide as it is long; return the picture."""
    longest = max(stage.updates for stage in stages)
    widths = [max(stage.updates, 0.35 * longest) for stage in stages]
    figure = blank_figure(width=min(16.0, 4.5 + 3.0 * (len(stages) - 1)) + 1, height=3.8)
    grid = figure.add_gridspec(1, len(stages), width_ratios=widths)
    for place, stage in enumerate(stages):
        _draw_stage(figure.add_subplot(grid[0, place]), stage)
    labels = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if len(labels) > 1:
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save_figure(figure, path)


def _draw_stage(axes: Any, stage: StageRates) -> None:
    updates = _thinned(stage.updates)
    for index, rates in reversed(list(enumerate(stage.rates))):
        drawn, colour = np.asarray(rates, dtype=np.float64)[updates], SERIES[min(index, 1)]
        label = "learning rate" if len(stage.rates) == 1 else "earlier layer groups" if index else "last layer group"
        for first, last in _pieces(stage):  # a restart is a jump, not a line
            part = (updates >= first) & (updates <= last)
            axes.plot(updates[part] + 1, drawn[part], color=colour, linewidth=1.0 if index else 1.8, label=label)
    if stage.kept:
        for end in stage.cycle_ends:
            axes.axvline(end + 1, color=SERIES[2], linestyle=":", linewidth=1.4, label="snapshot")
    axes.set_ylim(bottom=0, top=1.06 * max(max(rates) for rates in stage.rates) or 1)
    axes.set(xlabel=f"update{f' ({stage.note})' if stage.note else ''}")
    axes.set(ylabel="rate / the rate found" if stage.relative else "learning rate")
    epochs = f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''}"
    axes.set_title(f"{shorten(stage.name, 24)}: {epochs}, {stage.updates:,} updates", fontsize=9.5, loc="left")
    axes.xaxis.label.set_fontsize(9)
    tidy(axes)


def _pieces(stage: StageRates) -> list[tuple[int, int]]:
    """Return first and last update of each cycle."""
    ends = list(stage.cycle_ends) or [stage.updates - 1]
    return list(zip([0, *(end + 1 for end in ends)], ends, strict=False))


def _thinned(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _POINTS)).astype(int))


Members = Mapping[int | str, Mapping[str, Predictions]]
"""fold -> member -> predictions of the fold's rows; the same members for every fold, in the order of training."""


@dataclass(frozen=True)
class Judge:
    """What mixtures of members are scored by.

    Attributes:
        metric: the competition's.
        table: rows of all folds that are scored.
        groups: [N] labels that intervals draw, or None.
        mean: how members are averaged.
        decide: [N, K] predictions in the table's order -> what is scored: labels or grades, where they are decided.
    """

    metric: Metric
    table: Table
    groups: np.ndarray | None
    mean: Literal["arithmetic", "geometric"]
    decide: Callable[[np.ndarray], np.ndarray] = np.asarray

    def values(self, predictions: Predictions) -> np.ndarray:
        """Return [N, K] in the table's order, decided."""
        return self.decide(aligned(predictions, ids=self.table.ids, names=self.table.target_names))


def stacked(members: Members, names: Sequence[str], *, mean: Literal["arithmetic", "geometric"]) -> Predictions:
    """Return the out-of-fold predictions of the mean of some members."""
    return concat([average([fold[name] for name in names], mean=mean) for fold in members.values()])


def growing(judge: Judge, members: Members) -> list[dict[str, Any]]:
    """Return the score of growing ensembles: `ensemble`, `members`, `score`, `low`, `high`.

    First the single snapshot that scores best on these rows (so its own score is a little flattered), then the last
    one, the mean of the last two, and so on to all of them.
    """
    names = member_names(members)
    targets = np.asarray(judge.table.targets)
    alone = [judge.metric(targets, judge.values(stacked(members, [name], mean=judge.mean)), judge.table)
             for name in names]  # fmt: skip
    best = int(np.argmax(alone) if judge.metric.maximise else np.argmin(alone))
    steps = [(f"best single snapshot ({names[best]})", [names[best]])]
    if best != len(names) - 1:
        steps.append((f"last snapshot ({names[-1]})", names[-1:]))
    for count in range(2, len(names) + 1):
        steps.append(("mean of all" if count == len(names) else f"mean of the last {count}", names[-count:]))
    records = []
    for what, chosen in steps:
        values = judge.values(stacked(members, chosen, mean=judge.mean))
        score = interval(judge.metric, targets, values, judge.table, groups=judge.groups)
        records.append({"ensemble": what, "members": len(chosen), "score": score.value, "low": score.low,
                        "high": score.high})  # fmt: skip
    return records


def view_gains(judge: Judge, plain: Members, viewed: Members) -> list[dict[str, Any]]:
    """Return the way from one snapshot to all snapshots and views: `ensemble`, `score`, `adds`, `low`, `high`.

    `adds` is how much better each step is than the one before it, larger is better whatever the metric, with the
    interval of a paired bootstrap.

    Args:
        judge: what is scored.
        plain: members that saw the plain view alone.
        viewed: the same members, averaged over all views.
    """
    names = member_names(plain)
    steps = [("last snapshot, plain view", plain, names[-1:])]
    if len(names) > 1:
        steps.append(("all snapshots, plain view", plain, names))
    steps.append((f"{'all snapshots' if len(names) > 1 else 'last snapshot'}, all views", viewed, names))
    sign = 1 if judge.metric.maximise else -1
    records: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for what, members, chosen in steps:
        values = judge.values(stacked(members, chosen, mean=judge.mean))
        record = {"ensemble": what, "score": judge.metric(judge.table.targets, values, judge.table)}
        record |= dict.fromkeys(("adds", "low", "high"))
        if before is not None:
            gain = paired(
                judge.metric, np.asarray(judge.table.targets), values, before, judge.table, groups=judge.groups
            )
            low, high = sorted((sign * gain.low, sign * gain.high))
            record |= {"adds": sign * gain.value, "low": low, "high": high}
        records.append(record)
        before = values
    return records


def draw_growth(rows: Sequence[Mapping[str, Any]], metric: Metric, path: Path) -> Path:
    """Draw the scores of `growing` with their intervals; return the picture."""
    figure, axes = new_figure(width=7.5, height=0.42 * len(rows) + 1.4)
    for place, row in enumerate(rows):
        colour = MUTED if place == 0 else SERIES[0]
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.4, alpha=0.45)
        axes.plot(row["score"], place, marker="o", color=colour)
        axes.annotate(f"{row['score']:.5g}", (row["score"], place), (0, 6), textcoords="offset points", ha="center",
                      fontsize=8, color="0.25")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["ensemble"] for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    better = "larger" if metric.maximise else "smaller"
    axes.set(xlabel=f"{metric.name}, out of fold; {better} is better")
    tidy(axes)
    axes.grid(axis="y", visible=False)
    return save_figure(figure, path)


Epochs = Sequence[Mapping[str, Any]]


def read_epochs(paths: FoldPaths) -> list[dict[str, Any]]:
    """Return the epochs of a fold's log, in order; none when it has no log."""
    number, maybe = (int, float), (int, float, type(None))
    keys: dict[str, type | tuple[type, ...]] = {
        "stage": str, "epoch": int, "lr": number, "train_loss": number, "valid_loss": maybe, "score": maybe,
    }  # fmt: skip
    return records.read_records(paths.log, keys=keys, only={"event": "epoch"})


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
    divide = float(frame["divide"].iloc[0]) if "divide" in frame else TENTH
    return LRCurve(tuple(frame["lr"]), tuple(frame["loss"]), tuple(frame.get("valid_loss", ())), divide)


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


def draw_fold(paths: FoldPaths) -> list[Path]:
    """Draw everything there is to draw of a fold; return the pictures."""
    drawn = draw_lr_finds(paths)
    epochs = read_epochs(paths)
    if epochs:
        drawn.append(draw_losses(epochs, paths.losses))
    return drawn


def draw_lr_finds(paths: FoldPaths) -> list[Path]:
    """Draw every learning-rate range test of a fold; return the pictures."""
    return [draw_lr_find(path) for path in sorted(paths.root.glob("lr-find-*.csv"))]


def draw_lr_find(csv: Path) -> Path:
    """Draw a learning-rate range test: smoothed loss over the rate, with the suggestion if there is one."""
    curve = read_curve(csv)
    part = shown(len(curve.lrs))
    figure, axes = new_figure()
    axes.plot(curve.lrs[part], curve.losses[part], color="0.8", label="training loss" if curve.valid else "loss")
    if curve.valid:
        axes.plot(curve.lrs[part], curve.valid[part], color="0.6", label="validation loss")
    axes.plot(curve.lrs[part], curve.smoothed[part], label="smoothed")
    if curve.suggested is not None:
        axes.axvline(curve.suggested, color="C3", linestyle="--", label=f"suggested {curve.suggested:.2e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()
    return save_figure(figure, csv.with_suffix(".png"))


def draw_losses(epochs: list[dict[str, Any]], path: Path) -> Path:
    """Draw training and validation loss, score and rate over the epochs of all stages."""
    figure, axes = new_figure()
    places = range(1, len(epochs) + 1)
    axes.plot(places, [epoch["train_loss"] for epoch in epochs], marker=".", label="training loss")
    if any(epoch["valid_loss"] is not None for epoch in epochs):
        axes.plot(places, [epoch["valid_loss"] for epoch in epochs], marker=".", label="validation loss")
    starts = [place for place, epoch in zip(places, epochs, strict=True) if epoch["epoch"] == 0]
    for place in starts[1:]:
        axes.axvline(place - 0.5, color="0.7", linewidth=0.8)
    other = axes.twinx()
    other.plot(places, [epoch["lr"] for epoch in epochs], color="C2", alpha=0.5, label="learning rate")
    other.set(yscale="log", ylabel="learning rate")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend()
    return save_figure(figure, path)
