"""What a report is made of while it is being made: a run, its out-of-fold predictions, the files written so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kbench import files
from kbench.errors import ConfigError
from kbench.metrics.metric import Metric
from kbench.pictures import tables
from kbench.report.page import Grid, Picture
from kbench.runs import parts
from kbench.runs.experiment import Experiment, label_threshold
from kbench.runs.out_of_fold import OutOfFold
from kbench.runs.results import Sendable
from kbench.runs.run import Run
from kbench.submission.check import write_submission
from kbench.submission.grading import grade


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes:
        k: images per class of a sheet; six times as many where classes are not told apart.
        by_class: whether sheets have a line per class; None where there are up to 20 of them.
        slices: metadata columns of the slice tables; all that tell rows apart when empty.
        views: also predict with the plain view alone, to see what the others add; maps are always judged so.
        solution: also grade growing ensembles of folds on the competition's local solution.
        device: where models run, if something is not predicted yet.
    """

    k: int = 4
    by_class: bool | None = None
    slices: tuple[str, ...] = ()
    views: bool = False
    solution: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Look:
    """A run and its out-of-fold predictions, while the report is made.

    Attributes:
        run: the run.
        oof: its predictions of the rows of its trained folds.
        options: what is shown.
        written: files so far.
    """

    run: Run
    oof: OutOfFold
    options: ReportOptions
    written: list[str]

    @property
    def experiment(self) -> Experiment:
        """The run's configuration, tables and folds."""
        return self.run.experiment

    @cached_property
    def values(self) -> np.ndarray:
        """[N, K] predictions in the order of the rows, before anything is decided; [N, K, 3] of maps."""
        return self.run.results.plain(self.oof.result, self.oof.table)[1]

    @cached_property
    def targets(self) -> np.ndarray:
        """Targets of the rows."""
        return self.oof.targets

    @cached_property
    def metric(self) -> Metric:
        """The competition's metric."""
        return parts.build_metric(self.experiment.competition)

    @cached_property
    def threshold(self) -> Any:
        """Above which a label is predicted; one, or a list of one per label."""
        decision = self.oof.score.get("decision", {}).get("found", {})
        if "thresholds" in decision:
            return list(decision["thresholds"].values())
        return decision.get("threshold", label_threshold(self.experiment.competition))

    @cached_property
    def groups(self) -> np.ndarray | None:
        """[N] labels that intervals draw, or None."""
        return self.experiment.groups(self.oof.table)

    @property
    def folds(self) -> list[int]:
        """The trained folds."""
        return [int(fold) for fold in self.oof.score["folds"]]

    def place(self, name: str) -> Path:
        """Where a picture goes."""
        return self.run.paths.pictures / name

    def picture(self, path: Path, caption: str = "") -> Picture:
        """Note a picture that was drawn; return it as part of the page."""
        self.written.append(str(path))
        return Picture(f"{path.parent.name}/{path.name}", caption)

    def grid(self, rows: list[dict[str, Any]], name: str, caption: str) -> Grid:
        """Write records as CSV; return them as part of the page."""
        path = tables.write_table(rows, self.place(name))
        self.written.append(str(path))
        return Grid(rows, caption, f"{path.parent.name}/{path.name}")


def grader(experiment: Experiment, metric: Metric) -> Callable[[Sendable], float]:
    """Return the function from predictions of the test set, as they are sent, to their score.

    Raises:
        ConfigError: there is no solution on this machine.
    """
    solution = experiment.source().solution(experiment.data)
    if solution is None:
        raise ConfigError(
            f"--solution: '{experiment.competition.name}' has no solution on this machine",
            "a source that grades here", "leave out --solution, or name the file under `source: {solution: FILE}`",
        )  # fmt: skip
    sample = experiment.read_sample()

    def score(sent: Sendable) -> float:
        with files.scratch_folder() as folder:
            file = write_submission(
                folder / f"trial{experiment.format.suffix}", experiment.format.build(sent, sample), sample=sample,
                format=experiment.format, gzip=False,
            )  # fmt: skip
            return grade(file, solution, sample=sample, format=experiment.format, metric=metric).score

    return score
