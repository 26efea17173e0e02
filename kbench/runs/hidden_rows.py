"""Rows predicted against the clock, slice by slice: what a notebook does with a hidden test set.

Every slice is kept by itself once it is predicted, so that what is killed goes on where it was. After each slice the
seconds of all rows are held against the limit; models are left out, the least gain for a second first, until they fit.
An image that cannot be read costs its own row, no other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kbench import console, files, records
from kbench.data.table.table import Table, readable
from kbench.data.table.verify import look, look_at_images
from kbench.errors import DataError, PredictionError, counted, first_names
from kbench.inference.clock import Clock
from kbench.runs.blend import Blend
from kbench.runs.experiment import Experiment, opening_of
from kbench.runs.leaving_out import Model, lessened, may_go, models_of, order
from kbench.runs.results import Rows
from kbench.runs.steps import decoding_of
from kbench.tasks import is_dense

CHECKPOINT_S = 180.0
"""Seconds of a slice: what is lost where a notebook is killed."""

_RESERVE = 0.92  # of the limit: what is not predicting, such as reading tables and writing the file
_FIRST = 2  # batches of the first slice, which shows how long an image takes
_BATCH = {True: 16, False: 64}  # images at once where the YAML names no number: of maps, of rows


@dataclass(frozen=True)
class Limit:
    """How long it may take.

    Attributes:
        seconds: in all; None: as long as it takes.
        checkpoint: seconds of a slice.
        clock: tells seconds.
    """

    seconds: float | None = None
    checkpoint: float = CHECKPOINT_S
    clock: Callable[[], float] = time.perf_counter


@dataclass
class Slice:
    """Rows that are predicted together.

    Attributes:
        start: the first one's place among the rows whose files are there.
        stop: behind the last one's.
        gone: ids of those that cannot be read.
        left_out: checksums of models that did not predict them.
        seconds: how long they took.
        loading: seconds of them that models were loaded in.
        models: models that run one body, joined by a space -> seconds.
    """

    start: int
    stop: int
    gone: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0
    loading: float = 0.0
    models: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hidden:
    """Rows that are all predicted.

    Attributes:
        combined: the ensemble, without the models that are left out.
        rows: to be read from what was predicted.
        left_out: names of models that are left out.
        forecast: seconds that the first slice foretold of all rows, or None where it was all there is.
        seconds: that predicting took.
    """

    combined: Blend
    rows: Rows
    left_out: list[str]
    forecast: float | None
    seconds: float


def predict_hidden(combined: Blend, table: Table, *, device: str, plan: Path, key: str, limit: Limit) -> Hidden:
    """Predict all rows of a table, or go on where a run before was killed.

    Args:
        combined: the ensemble.
        table: the rows; those whose file is missing are marked.
        device: where models run.
        plan: the JSON that says what is done.
        key: what tells these rows and this ensemble from others.
        limit: how long it may take.

    Raises:
        DataError: no image can be read.
        PredictionError: there is no row.
    """
    work = _Work(combined, readable(table), device, plan, key, limit)
    if not len(table):
        raise PredictionError("there is no row to predict", "one row or more", "look into the data folder's test set")
    with console.bar("predicting hidden rows") as advance:
        while work.done < len(work.table):
            work.predict_next()
            advance(work.done, len(work.table))
    return work.finished(table)


class _Work:
    """What is predicted, and what is left to do.

    Args:
        combined: the ensemble.
        table: the rows whose files are there.
        device: where models run.
        plan: the JSON that says what is done.
        key: what tells these rows and this ensemble from others.
        limit: how long it may take.
    """

    def __init__(self, combined: Blend, table: Table, device: str, plan: Path, key: str, limit: Limit) -> None:
        self.table, self._combined, self._device, self._plan, self._key = table, combined, device, plan, key
        self._limit, self._started = limit, limit.clock()
        self._models = models_of(combined.shares, combined.weights, combined.gains)
        known = _read(plan, key)
        self._slices = [Slice(**one) for one in known.get("slices", ())]
        self._forecast: float | None = known.get("forecast")
        self._before = sum(one.seconds for one in self._slices)
        self._left_out: frozenset[str] = frozenset(self._slices[-1].left_out if self._slices else ())
        if self._slices:
            console.note(f"going on after {self.done:,} of {len(table):,} rows that are predicted already")
        self._step = _step(combined)

    @property
    def done(self) -> int:
        """How many rows are behind us."""
        return self._slices[-1].stop if self._slices else 0

    def predict_next(self) -> None:
        """Predict the next slice; leave out models where the time is too short for the rest."""
        one = Slice(self.done, min(len(self.table), self.done + self._size()))
        clock, began = Clock(), self._limit.clock()
        one.left_out = sorted(self._left_out)
        self._predicted(one, clock)
        one.seconds, one.loading = self._limit.clock() - began, clock.loading
        one.models = {" ".join(models): seconds for models, seconds in clock.seconds.items()}
        self._slices.append(one)
        if self.done < len(self.table):
            needed = self._needed(self._kept())
            if self._forecast is None:
                self._forecast = one.seconds + needed
            self._hold_against_limit(needed)
        content = {"key": self._key, "forecast": self._forecast, "slices": [vars(part) for part in self._slices]}
        files.write_json(self._plan, content)

    def _size(self) -> int:
        """Return how many rows come next: few at first, then those of some minutes, whole batches always."""
        if not self._slices:
            return _FIRST * self._step
        rate = self._per_row(self._kept())
        return self._step * max(1, int(self._limit.checkpoint / max(rate, 1e-9) / self._step))

    def _predicted(self, one: Slice, clock: Clock) -> None:
        try:
            self._predict(one, clock)
        except DataError as error:
            one.gone = self._unreadable(one)
            if not one.gone:
                raise
            console.warn(
                f"{counted(len(one.gone), 'image')} cannot be read: {first_names(one.gone)}; their rows are filled "
                f"({error.what})"
            )
            self._predict(one, clock)

    def _predict(self, one: Slice, clock: Clock | None = None) -> None:
        rows = self._rows(one, clock)
        if len(rows.places):
            fewer = self._without(frozenset(one.left_out))
            fewer.results.made(fewer.predict(rows))

    def _rows(self, one: Slice, clock: Clock | None = None) -> Rows:
        places = np.arange(one.start, one.stop)
        places = places[~np.isin(self.table.ids[places], one.gone)]
        part = f"hidden-{one.start}-{one.stop}"
        return Rows(self.table, part, self._device, chosen=places, clock=clock, without=frozenset(one.left_out))

    def _unreadable(self, one: Slice) -> list[str]:
        part = self.table.select(np.arange(one.start, one.stop))
        opening = opening_of(self._combined.experiment.competition)
        report = look_at_images(part, deep=True, opening=opening, progress=lambda what, done, total: None)
        return [str(part.ids[row]) for row in sorted(report.rows)]

    def _kept(self) -> list[Model]:
        return [model for model in self._models if model.checksum not in self._left_out]

    def _without(self, left_out: frozenset[str]) -> Blend:
        shares, weights = lessened(self._combined.shares, self._combined.weights, left_out)
        return replace(self._combined, shares=tuple(shares), weights=weights)

    def _per_row(self, kept: list[Model]) -> float:
        """Return seconds of a row, as the last slice had it, of the models that are kept; without loading them."""
        last = self._slices[-1]
        rows, known = last.stop - last.start, {model.checksum for model in kept}
        bodies = sum(seconds for names, seconds in last.models.items() if known & set(names.split(" ")))
        other = last.seconds - last.loading - sum(last.models.values())
        return (bodies + max(other, 0.0)) / rows

    def _needed(self, kept: list[Model]) -> float:
        """Return the seconds that the rows left need; models are loaded anew in every slice."""
        last, left = self._slices[-1], len(self.table) - self.done
        seconds = left * self._per_row(kept)
        there = len(self._models) - len(last.left_out)
        slices = min(math.ceil(seconds / self._limit.checkpoint), math.ceil(left / self._step))
        return seconds + slices * last.loading * len(kept) / max(there, 1)

    def _hold_against_limit(self, needed: float) -> None:
        if self._limit.seconds is None:
            return
        left = self._limit.seconds * _RESERVE - self._before - (self._limit.clock() - self._started)
        if needed <= left:
            return
        kept, gone = self._kept(), list[Model]()
        for model in order(kept, self._seconds_of_models()):
            if self._needed(kept) <= left:
                break
            if may_go(model, kept):
                kept.remove(model)
                gone.append(model)
        self._left_out |= {model.checksum for model in gone}
        rows = len(self.table) - self.done
        console.warn(
            f"{rows:,} rows need {needed / 3600:.2f} h and {max(left, 0) / 3600:.2f} h are left: "
            + (f"left out: {', '.join(model.name for model in gone)}" if gone else "nothing can be left out any more")
        )

    def _seconds_of_models(self) -> dict[str, float]:
        last, seconds = self._slices[-1], dict[str, float]()
        for names, spent in last.models.items():
            together = names.split(" ")
            for name in together:
                seconds[name] = seconds.get(name, 0.0) + spent / len(together) / (last.stop - last.start)
        return seconds

    def finished(self, table: Table) -> Hidden:
        """Return all rows, with those that could not be read marked."""
        gone = [name for one in self._slices for name in one.gone]
        missing = np.zeros(len(table), dtype=bool) if table.unreadable is None else table.unreadable
        unreadable = missing | np.isin(table.ids, gone)
        if unreadable.all():
            raise DataError(
                f"none of {counted(len(table), 'image')} of '{table.root}' can be read", "images of the test rows",
                "look into the folder that `--data` names",
            )  # fmt: skip
        sizes = _sizes(self._combined.experiment, table, np.flatnonzero(unreadable))
        slices = tuple(rows for rows in map(self._rows, self._slices) if len(rows.places))
        marked = replace(table, unreadable=unreadable)
        rows = Rows(marked, "hidden", self._device, slices=slices, sizes=sizes)
        dense = is_dense(table.task)  # the mean of maps is kept, slice by slice, with the models each had
        combined = self._combined if dense else self._without(self._left_out)
        names = [model.name for model in self._models if model.checksum in self._left_out]
        return Hidden(combined, rows, names, self._forecast, sum(one.seconds for one in self._slices))


def _read(plan: Path, key: str) -> dict[str, Any]:
    """Return what is done already of the same rows by the same ensemble."""
    if not plan.is_file():
        return {}
    todo = f"remove '{plan}': the rows are predicted anew"
    known = records.read_record(plan, keys={"key": str, "slices": list}, todo=todo)
    return known if known["key"] == key else {}


def _step(combined: Blend) -> int:
    """Return rows that are whole batches of every run, so that slices change no batch."""
    sizes = [
        share.run.competition.loader.valid_batch_size or _BATCH[is_dense(share.run.competition.task)]
        for share in combined.shares
    ]
    common = math.lcm(*sizes)
    return common if common <= 4096 else max(sizes)


def _sizes(experiment: Experiment, table: Table, rows: np.ndarray) -> Mapping[str, tuple[int, int]]:
    """Return height and width of images that cannot be decoded, of those whose header says it."""
    sizes = {}
    for row in rows.tolist():
        size = look(table.root / table.images[row][0], decoding=decoding_of(experiment.competition))
        if not isinstance(size, str):
            sizes[str(table.ids[row])] = (int(size[0]), int(size[1]))
    return sizes
