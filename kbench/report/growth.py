"""What an ensemble is made of and what each part adds: out of fold, so for the rows no model of the mean has seen.

A member is a snapshot, such as `cycles-2`, of every fold. All numbers are scores of the competition's metric on the
same rows. To compare other mixtures, hand `stacked` other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """

    metric: Metric
    table: Table
    groups: np.ndarray | None
    mean: Literal["arithmetic", "geometric"]

    def values(self, predictions: Predictions) -> np.ndarray:
        """Return [N, K] in the table's order."""
        return aligned(predictions, ids=self.table.ids, names=self.table.target_names)


def member_names(members: Members) -> list[str]:
    """Return the members that every fold has, in the order they were trained."""
    first, *others = members.values()
    return [name for name in first if all(name in other for other in others)]


def stacked(members: Members, names: Sequence[str], *, mean: Literal["arithmetic", "geometric"]) -> Predictions:
    """Return the out-of-fold predictions of the mean of some members."""
    return concat([average([fold[name] for name in names], mean=mean) for fold in members.values()])


def snapshot_scores(judge: Judge, members: Members) -> list[dict[str, Any]]:
    """Return one record per fold: `fold`, `rows`, the score of each member alone, and of their `mean`."""
    records = []
    for fold, of_fold in members.items():
        ids = next(iter(of_fold.values())).ids
        table = judge.table.select(np.isin(judge.table.ids, ids))
        record: dict[str, Any] = {"fold": fold, "rows": len(table)}
        mean = average(list(of_fold.values()), mean=judge.mean)
        for name, predictions in [*of_fold.items(), ("mean", mean)]:
            values = aligned(predictions, ids=table.ids, names=table.target_names)
            record[name] = judge.metric(table.targets, values, table)
        records.append(record)
    return _same_columns(records)


def _same_columns(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records that all have every member's column; `mean` stays last."""
    names = list(dict.fromkeys(name for record in records for name in record if name != "mean"))
    return [{name: record.get(name) for name in [*names, "mean"]} for record in records]


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


def contributions(judge: Judge, members: Members) -> list[dict[str, Any]]:
    """Return what each member adds: `member`, its score `alone`, of the others `without` it, and what it `adds`.

    `adds` is how much better the mean of all is than the mean of the others, larger is better whatever the metric,
    with the interval `low`, `high` of a paired bootstrap; an interval around 0 says that it may be chance. Nothing
    for fewer than two members.
    """
    names = member_names(members)
    if len(names) < 2:
        return []
    targets = np.asarray(judge.table.targets)
    whole = judge.values(stacked(members, names, mean=judge.mean))
    sign = 1 if judge.metric.maximise else -1
    records = []
    for name in names:
        alone = judge.values(stacked(members, [name], mean=judge.mean))
        others = judge.values(stacked(members, [other for other in names if other != name], mean=judge.mean))
        gain = asdict(paired(judge.metric, targets, whole, others, judge.table, groups=judge.groups))
        ends = sorted((sign * gain["low"], sign * gain["high"]))
        records.append(
            {"member": name, "alone": judge.metric(targets, alone, judge.table),
             "without": judge.metric(targets, others, judge.table),
             "adds": sign * gain["value"], "low": ends[0], "high": ends[1]}
        )  # fmt: skip
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
