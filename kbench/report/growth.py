"""What an ensemble is made of and what each part adds: out of fold, so for the rows no model of the mean has seen.

A member is a snapshot, such as `cycles-2`, of every fold. All numbers are scores of the competition's metric on the
same rows. To compare other mixtures, hand `stacked` other names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kbench.data.tables import Table
from kbench.ensemble.average import aligned, average, concat
from kbench.ensemble.bootstrap import interval, paired
from kbench.inference.predictions import Predictions
from kbench.metrics import Metric
from kbench.report.figures import MUTED, SERIES, new_figure, save_figure, tidy

Members = Mapping[int, Mapping[str, Predictions]]
"""fold -> member -> predictions of the fold's rows; members in the order they were trained."""


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


def member_names(members: Members) -> list[str]:
    """Return the members that every fold has, in the order they were trained."""
    first, *others = members.values()
    return [name for name in first if all(name in other for other in others)]


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
        made = interval(judge.metric, targets, values, judge.table, groups=judge.groups)
        records.append({"ensemble": what, "members": len(chosen), "score": made.value, "low": made.low,
                        "high": made.high})  # fmt: skip
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
