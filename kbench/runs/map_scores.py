"""What snapshots, views and the mask rule of a run are worth out of fold: tables of scores, counted from stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kbench.data.table.table import Table
from kbench.ensemble.bootstrap import paired
from kbench.errors import PredictionError
from kbench.inference.map_store import MapStore
from kbench.metrics.maps import truth_of
from kbench.runs.experiment import Experiment
from kbench.runs.map_parts import MapResult
from kbench.runs.results import Judged, fold_of, metric_of

if TYPE_CHECKING:
    from kbench.runs.run import Run

MEAN = "mean"  # name of the reading of all members together; what is said of it may follow, after a comma


def measured(store: MapStore) -> np.ndarray:
    """Return what the pass over the images measured of each reading of a store.

    Raises:
        PredictionError: it had no truth.
    """
    if store.worth is None:
        raise PredictionError(
            f"the maps at '{store.path}' were made without their truth", "masks of the training rows",
            "`kbench predict --force`",
        )  # fmt: skip
    return store.worth


def gathered(result: MapResult, table: Table, pick: Callable[[MapStore], np.ndarray]) -> np.ndarray:
    """Return [N, K, 3] in the order of the table, of what is picked from each fold's store."""
    stores = result.stores.values()
    ids = np.concatenate([store.ids for store in stores])
    values = np.concatenate([pick(store) for store in stores])
    return np.asarray(values[np.argsort(ids)][np.searchsorted(np.sort(ids), table.ids)])


def readings_of(result: MapResult, table: Table) -> dict[str, np.ndarray]:
    """Return what every reading is worth: name -> [N, K, 3]; the mean of everything is the last.

    A snapshot that a fold lacks, because it stopped earlier, is worth there what the mean of the others is.
    """
    names = list(dict.fromkeys(name for store in result.stores.values() for name in store.readings))
    names.sort(key=lambda name: name.partition(",")[0] == MEAN)  # stable: means come last

    def reading(name: str, store: MapStore) -> np.ndarray:
        known = list(store.readings)
        own = name if name in known else name.replace(name.partition(",")[0], MEAN)
        return np.asarray(measured(store)[known.index(own)])

    return {name: gathered(result, table, partial(reading, name)) for name in names}


def details(run: Run, result: MapResult, judged: Judged, table: Table) -> dict[str, Any]:
    """Return `members`, a `table` of what each scores in each fold, and the `growth` of the ensemble; see `Results`."""
    readings, metric, numbers = readings_of(result, table), metric_of(run.experiment), fold_of(run.experiment, table)
    records = []
    for fold in result.parts:
        rows = numbers == fold
        few = table.select(rows)
        own = result.stores[fold].readings
        lacks = [name for name in readings if name not in own and len(result.parts[fold].snapshots) > 1]
        scores = {
            name: None if name in lacks else metric.or_none(truth_of(worth[rows], few.task), worth[rows], few)
            for name, worth in readings.items()
        }
        if run.competition.maps.postprocess.name != "none":
            scores["post-processed"] = metric.or_none(judged.targets[rows], judged.outcome.values[rows], few)
        records.append({"fold": fold, "rows": len(few), **scores})
    if run.competition.maps.postprocess.name != "none":
        readings["mean, post-processed"] = judged.outcome.values
    return {
        "members": sum(len(part.snapshots) for part in result.parts.values()), "table": records,
        "growth": growth(run.experiment, table, readings),
    }  # fmt: skip


def growth(experiment: Experiment, table: Table, readings: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return what snapshots, views and a rule add, out of fold: one record per reading.

    A record has the reading's name, its score, and the gain of the last reading over it with its interval.

    Args:
        experiment: the competition.
        table: the N rows.
        readings: name -> [N, K, 3].
    """
    metric, groups = metric_of(experiment), experiment.groups(table)
    last, whole = list(readings.items())[-1]
    records = []
    for name, worth in readings.items():
        truth = truth_of(worth, table.task)
        record: dict[str, Any] = {"ensemble": name, "score": metric(truth, worth, table)}
        if name != last:
            gain = paired(metric, truth, whole, worth, table, groups=groups)
            record |= {"gain": gain.value, "low": gain.low, "high": gain.high}
        records.append(record)
    return records
