"""What a run predicts, whichever it holds: rows of numbers, or maps that are never all in memory.

A metric can score it and a format can send it. What differs between the two is a pass over the images and a store, and
stands in `row_results.py` and `map_results.py`; everything above asks `Run.results` for one of them and uses the same
words of both. To add a kind of prediction, write a module with the functions of `Results` and name it in `run.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kbench import console, files, records, registry
from kbench.config.section import Component
from kbench.data.images.cache import Images, Resize
from kbench.data.table.table import Table, readable
from kbench.ensemble.average import Stack
from kbench.ensemble.bootstrap import Interval
from kbench.ensemble.combiners import Combiner
from kbench.ensemble.decisions import Decision
from kbench.ensemble.nested import Fit, Outcome, Recipe
from kbench.ensemble.pseudo_labels import Chosen, Sure
from kbench.errors import ConfigError, PredictionError, raise_all
from kbench.inference.clock import Clock
from kbench.inference.map_store import MaskSet, NumberSet
from kbench.inference.predictions import Predictions
from kbench.metrics.metric import Metric
from kbench.models.checkpoint import Checkpoint
from kbench.runs import parts
from kbench.runs.experiment import Experiment

if TYPE_CHECKING:
    from kbench.runs.run import Run

Sendable = Predictions | MaskSet | NumberSet
"""What a submission format takes."""


@dataclass(frozen=True)
class Rows:
    """Rows that are predicted.

    Attributes:
        table: their table.
        part: name of their folder beside `oof/`: `test`, or another split's.
        device: where models run.
        limit: batches at most, of a smoke run.
        force: predict again what is predicted.
        handed: resizing -> images that lie in no file of the table; None: those of the table.
        folder: where the predictions of handed images go.
        chosen: [n] of the table's rows, sorted; None: all of them.
        slices: parts of these rows whose predictions are put together, each predicted and kept by itself; none: all at
            once.
        clock: told how long each model takes.
        sizes: height and width of images that cannot be read, as far as their files say it.
        without: checksums of models that did not predict a slice of maps, whose means are kept.
    """

    table: Table
    part: str = "test"
    device: str = "auto"
    limit: int | None = None
    force: bool = False
    handed: Callable[[Resize], Images] | None = None
    folder: Path | None = None
    chosen: np.ndarray | None = None
    slices: tuple[Rows, ...] = ()
    clock: Clock | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    without: frozenset[str] = frozenset()

    @property
    def places(self) -> np.ndarray:
        """[n] which rows of the table are predicted."""
        return np.arange(len(self.table)) if self.chosen is None else self.chosen

    def readable(self) -> Rows:
        """Return those whose images can be read."""
        return replace(self, table=readable(self.table))


def whole(path: Path) -> dict[str, Any] | None:
    """Return what predictions say of themselves, or None where they have to be made; damaged ones are named."""
    description = records.read_seal(path, verify="time")
    if description is None and path.is_file():
        console.warn(f"'{path}' is damaged: its rows are predicted anew")
    return description


@contextlib.contextmanager
def predicting(paths: Sequence[Path]) -> Iterator[None]:
    """Hold the folders of predictions while they are made; another command that makes them waits, and says so."""
    with contextlib.ExitStack() as held:
        for folder in sorted({path.parent for path in paths}):
            note = f"another command predicts into '{folder}': waiting for it"
            held.enter_context(files.lock(folder / ".lock", on_wait=partial(console.note, note)))
            files.remove_temporaries(folder)
        yield


class Result(Protocol):
    """Predictions of some rows.

    Attributes:
        ids: [N] text, unique and sorted.
        names: K target names.
        members: one record per model: `run`, `fold`, `stage`, `tag`, `weights` (checksum); `foreign` for others' work.
        weights: one number per model; they sum to 1.
    """

    @property
    def ids(self) -> np.ndarray:
        """[N] ids of the rows."""

    @property
    def names(self) -> tuple[str, ...]:
        """K target names."""

    @property
    def members(self) -> list[dict[str, Any]]:
        """One record per model."""

    @property
    def weights(self) -> list[float]:
        """One number per model."""


@dataclass(frozen=True)
class Judged:
    """What is decided of out-of-fold predictions, and what that is worth.

    Attributes:
        outcome: nested and plain; its values are what the metric takes of the nested predictions.
        targets: [N, ...] what the metric takes as their truth.
        fit: what `Results.sent` applies: thresholds and cut points, a mask rule, or None.
        record: what the score says of it: `decision` or `postprocess`; empty where nothing is fitted.
        thresholds: what a lineage says of it.
        by_part: part -> what was applied to its rows, of mask rules; empty where it is `fit` everywhere.
    """

    outcome: Outcome[Any]
    targets: np.ndarray
    fit: Any = None
    record: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    by_part: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """One run's share of an ensemble.

    Attributes:
        run: the run.
        weight: its share of a plain mean, relative to the others.
        oof: its out-of-fold predictions, or None.
        places: folds, or `full`, whose models predict the test set; none for somebody else's predictions.
        subset: `fold` for models of the folds, `full` for those of all rows.
        missing: folds that are not trained.
    """

    run: Run
    weight: float = 1.0
    oof: Any = None
    places: tuple[int | str, ...] = ()
    subset: str = "fold"
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Weighed:
    """Members weighed by a combiner.

    Attributes:
        judged: what their mixture is worth, decided.
        outcome: of the weights: what `gains` takes.
        weights: member (`run/stage-cycle`, or a foreign run) -> weight.
    """

    judged: Judged
    outcome: Outcome[Fit]
    weights: dict[str, float]


class Results(Protocol):
    """How one kind of predictions is made, scored, averaged and sent.

    Attributes:
        TAKES_IMAGES: whether images can be predicted that are in no table.
    """

    TAKES_IMAGES: bool

    def out_of_fold(
        self, run: Run, folds: Sequence[int], *, device: str, limit: int | None = None, force: bool = False
    ) -> Any:
        """Return each fold's rows as its own snapshots predict them; what is missing is predicted."""

    def plain(self, result: Any, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """Return (truth, predictions) of a table's rows as a metric takes them, before anything is decided."""

    def judge(self, experiment: Experiment, result: Any, table: Table) -> Judged:
        """Return what the decision or mask rule of the YAML gives on out-of-fold predictions, nested."""

    def undecided(self, experiment: Experiment, why: str = "") -> Any:
        """Return what `sent` applies where there are no out-of-fold predictions: in a trial, or because of `why`."""

    def details(self, run: Run, result: Any, judged: Judged, table: Table) -> dict[str, Any]:
        """Return what a score says of the members of a run."""

    def joined(self, shares: Sequence[Share], table: Table, mean: str) -> Any:
        """Return the mean of several runs' out-of-fold predictions, of a table's rows."""

    def member_stack(self, experiment: Experiment, shares: Sequence[Share], table: Table) -> Stack:
        """Return the members of runs side by side, for combiners."""

    def run_stack(self, experiment: Experiment, shares: Sequence[Share], table: Table) -> Stack | None:
        """Return what a plain mean is made of side by side; None where that takes another pass over the images."""

    def weigh(
        self, experiment: Experiment, shares: Sequence[Share], table: Table, stack: Stack, recipe: Recipe
    ) -> Weighed:
        """Return members weighed by a combiner, and what that is worth."""

    def predict(
        self, shares: Sequence[Share], rows: Rows, *, mean: str, weights: Mapping[str, float] | None = None,
        ranks: bool = False,
    ) -> Any:  # fmt: skip
        """Return rows as members predict them: the plain mean of runs, or members with weights of their own."""

    def sent(self, experiment: Experiment, result: Any, fit: Any) -> Sendable:
        """Return predictions as a format takes them, decided."""

    def chosen(self, result: Any, sure: Sure) -> Iterator[Chosen]:
        """Yield the labels of the rows a result is sure of; nothing happens before the first one is asked for."""

    def view_reader(
        self, run: Run, checkpoint: Checkpoint, rows: Rows, chosen: np.ndarray
    ) -> Callable[[int], np.ndarray]:
        """Return place among chosen rows -> [1 + n, K, ...] float32, each view of it as a snapshot sees it."""

    def scored(self, experiment: Experiment, result: Any, judged: Judged) -> Sendable:
        """Return out-of-fold predictions as they are shown: rows before a decision, or each fold's masks."""

    def made(self, result: Any) -> None:
        """Make what a result reads lazily, such as the maps of a smoke run."""


# -- what both ask of the YAML -------------------------------------------------------------------------------------


def decision_of(experiment: Experiment) -> Decision | None:
    """Return the decision of `ensemble.decision`."""
    part = experiment.competition.ensemble.decision
    if part is None:
        return None
    decision: Decision = registry.build("decision", part.name, part.params)
    return decision


def recipe_of(experiment: Experiment, *, combine: str | None = None, prune: bool = False) -> Recipe:
    """Return what `ensemble:` asks for.

    Args:
        experiment: the configuration.
        combine: another combiner with its defaults, or None.
        prune: prune though the YAML does not say so.

    Raises:
        ConfigError: there is no such combiner, or it is for other tasks.
    """
    competition = experiment.competition
    part = competition.ensemble.combine
    if combine is not None and combine != part.name:
        problems = registry.bind("combiner", combine, {}, where="--combine", task=competition.task)
        raise_all(
            problems, error=ConfigError, subject=f"--combine {combine}", expected="a combiner for this task",
            todo="`kbench list combiner` shows them",
        )  # fmt: skip
        part = Component(name=combine)
    combiner: Combiner = registry.build("combiner", part.name, part.params)
    return Recipe(combiner, decision_of(experiment), prune or competition.ensemble.prune)


def is_plain(recipe: Recipe) -> bool:
    """Return whether all members are averaged as they are."""
    return not (recipe.combiner.fitted or recipe.combiner.ranks or recipe.prune)


def metric_of(experiment: Experiment) -> Metric:
    """Return the competition's metric."""
    return parts.build_metric(experiment.competition)


def fold_of(experiment: Experiment, table: Table) -> np.ndarray:
    """Return [N] int, the fold of each row of a table."""
    folds = experiment.folds
    return np.asarray(folds.fold[np.searchsorted(folds.ids, table.ids)])


# -- what both say of a score ----------------------------------------------------------------------------------------


def score_record(experiment: Experiment, judged: Judged, table: Table) -> dict[str, Any]:
    """Return a score as JSON: metric, direction, rows, `score` with its interval (nested, if anything is fitted).

    What is fitted adds `plain`, the score on the rows it was fitted on, `optimism`, how much better that is,
    `nested_by`, the parts that what was found on the others is scored on (`fold`, or `fifth` of the only fold), and
    `decision` or `postprocess`: what was found on all rows, and without each part's.
    """
    metric, outcome = metric_of(experiment), judged.outcome
    nested: Interval = outcome.nested
    record: dict[str, Any] = {
        "metric": metric.name, "maximise": metric.maximise, "rows": len(table), "score": nested.value,
        "low": nested.low, "high": nested.high, "level": nested.level, "interval": asdict(nested),
    }  # fmt: skip
    if outcome.by_part:
        gap = outcome.plain.value - nested.value
        by = "fold" if len(np.unique(fold_of(experiment, table))) > 1 else "fifth"
        record |= {
            "plain": asdict(outcome.plain), "optimism": gap if metric.maximise else -gap, "nested_by": by,
        }  # fmt: skip
    return record | judged.record


def fold_scores(experiment: Experiment, judged: Judged, table: Table) -> dict[str, Any]:
    """Return the score of each of the trained `folds`, None where the metric has no value on it, and their `spread`."""
    metric, numbers = metric_of(experiment), fold_of(experiment, table)
    scores = {}
    for fold in np.unique(numbers).tolist():
        rows = numbers == fold
        scores[str(fold)] = metric.or_none(judged.targets[rows], judged.outcome.values[rows], table.select(rows))
    known = [score for score in scores.values() if score is not None]
    return {"folds": scores, "spread": float(np.std(known)) if known else 0.0}


def require_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows, of which there must be one.

    Raises:
        PredictionError: there is none.
    """
    if not len(rows):
        raise PredictionError("there is no row to predict", "one row or more", "`kbench check`")
    return rows
