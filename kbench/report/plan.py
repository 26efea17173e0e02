"""The learning rates of every stage as one picture, before anything is trained.

Schedules are pure functions of the update, so the picture is exact; a rate that is still to be found is drawn in
units of itself. To show more of a stage, add a field to `StageRates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kbench.report.figures import SERIES, blank_figure, save_figure, shorten, tidy

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
