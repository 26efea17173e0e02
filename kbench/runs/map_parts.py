"""Rows whose maps a run predicts: the pass over the images, and the store that keeps what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbench import console, files
from kbench.data.dataset import auto_workers
from kbench.data.images.cache import Images
from kbench.data.table.table import Table
from kbench.ensemble import mask_rules
from kbench.ensemble.mask_rules import Rule
from kbench.inference import map_store
from kbench.inference.map_pass import MapJob, MapMember, readings, stream
from kbench.inference.map_store import MapStore, Row, Writing
from kbench.inference.maps import MapMaker
from kbench.inference.mean import mean_of_task
from kbench.models.checkpoint import Checkpoint
from kbench.models.device import choose_device
from kbench.runs import parts
from kbench.runs.members import member_of, needed_checkpoints, record_of, require_models, weighed_at
from kbench.runs.results import Rows, predicting, require_rows, whole
from kbench.tasks import SEGMENTATION
from kbench.training.fold_context import KEEP

if TYPE_CHECKING:
    from kbench.runs.run import Run

_MOST = 16  # whole images at once, where the YAML names no number


@dataclass(frozen=True)
class MapPart:
    """Rows that a run predicts, and the snapshots that predict them.

    Attributes:
        run: the run.
        rows: the table, and where models run.
        chosen: [N] of the table's rows.
        snapshots: snapshots with the weight of each.
        path: JSON of the store.
    """

    run: Run
    rows: Rows
    chosen: np.ndarray
    snapshots: Sequence[tuple[Checkpoint, float]]
    path: Path

    @property
    def ids(self) -> np.ndarray:
        """[N] ids of the rows."""
        return np.asarray(self.rows.table.ids[self.chosen])

    def source(self) -> dict[str, Any]:
        """Return what the maps depend on."""
        competition = self.run.competition
        return {
            "members": [_member(one, weight) for one, weight in self.snapshots],
            "folds": self.snapshots[0][0].info["folds"], "views": competition.tta.model_dump(),
            "windows": competition.maps.windows.model_dump(), "mean": competition.ensemble.mean,
            "ids": files.digest([str(name) for name in self.ids]), "truth": self.rows.table.masks is not None,
            "content": self._content,
        }  # fmt: skip

    @cached_property
    def _content(self) -> str:
        return parts.content_of(self.run.competition, self.rows.table, self.run.experiment.workspace.cache())

    def job(self) -> tuple[MapJob, list[MapMember]]:
        """Return what the pass over the images does, and its models."""
        experiment, competition, rows = self.run.experiment, self.run.competition, self.rows
        device, cache, names = choose_device(rows.device), experiment.workspace.cache(), experiment.train.target_names
        masks = parts.masks_of(competition, rows.table, cache, what=rows.part)
        windows = parts.build_windows(competition)
        assert windows is not None, "asked only of dense tasks"
        make = MapMaker(
            windows, parts.build_views(competition), competition.task, device,
            mean_of_task(competition.ensemble.mean, competition.task, len(names)),
        )  # fmt: skip
        job = MapJob(
            rows=self.chosen, images=self._images(), masks=None if masks is None else masks(KEEP), names=names,
            make=make, most=competition.loader.valid_batch_size or _MOST,
            workers=auto_workers(competition.loader.workers, device=device.type), clock=rows.clock,
        )  # fmt: skip
        stages = {stage.name: stage for stage in parts.build_stages(competition)}
        several = len({checkpoint.info["fold"] for checkpoint, _ in self.snapshots}) > 1
        members = []
        for checkpoint, weight in self.snapshots:
            one = member_of(self.run, checkpoint, out=self.path, source={}, stages=stages, device=device)
            name = one.name if several else checkpoint.member  # so that folds have readings of the same names
            members.append(MapMember(name, one.load, one.scale, one.precision, weight, one.units, checkpoint.checksum))
        return job, members

    def rows_again(self, places: np.ndarray | None = None) -> Iterator[Row]:
        """Predict the rows, or those at some places among them, and yield them, storing nothing."""
        job, members = self.job()
        job = job if places is None else replace(job, rows=self.chosen[places])
        with self._bar(members) as advance:
            for done, row in enumerate(stream(job, members), start=1):
                advance(done, len(job.rows))
                yield row

    def _bar(self, members: Sequence[MapMember]) -> Any:
        views = len(parts.build_views(self.run.competition))
        return console.bar(f"predicting {self.rows.part}: {len(members)} models x {views} views")

    def stored(self) -> MapStore:
        """Return the store of the rows' maps; predicts where it does not fit any more."""
        if not self.rows.force and self._known() is not None:
            return map_store.load(self.path)
        with predicting([self.path]):
            known = self.rows.force or self._known() is None  # another command may have predicted them meanwhile
            return self._all_written() if known else map_store.load(self.path)

    def _all_written(self) -> MapStore:
        names, task = self.run.experiment.train.target_names, self.run.competition.task
        rule = mask_rules.none(_names=names, _task=task).apply if task in SEGMENTATION else None
        keep = self._will_keep()
        if keep or self.rows.force:  # else the masks a rule made are still those of these maps, if their source says so
            files.remove(self._path_of_ruled)
        return self._written(self.path, self.source(), keep=keep, rule=rule)

    def keeps(self) -> bool:
        """Return whether the maps are in the store, or will be once it is made."""
        known = None if self.rows.force else self._known()
        return self._will_keep() if known is None else bool(known["kept"])

    @property
    def _path_of_ruled(self) -> Path:
        """The JSON of the masks a rule made of maps that were not kept."""
        return self.path.with_name("ruled.json")

    def ruled(self, rule: Rule) -> MapStore:
        """Return the store of the masks a rule makes; predicts where they are not those of this rule."""
        path, source = self._path_of_ruled, {**self.source(), "rule": rule.source}
        with predicting([path]):
            known = None if self.rows.force else whole(path)
            if known is not None and known["source"] == source:
                return map_store.load(path)
            return self._written(path, source, keep=False, rule=rule.apply)

    def _known(self) -> dict[str, Any] | None:
        """Return what the store says of itself, or None where it does not fit."""
        known = whole(self.path)
        wanted = self.run.competition.maps.keep
        fits = known is not None and known["source"] == self.source() and (known["kept"] or wanted != "on")
        return known if fits else None

    def _will_keep(self) -> bool:
        competition = self.run.competition
        wanted = competition.maps.keep
        return competition.task not in SEGMENTATION or wanted == "on" or (wanted == "auto" and self._has_room())

    def _has_room(self) -> bool:
        images = self._images()
        height, width = images[int(self.chosen[0])].shape[:2]
        needed = len(self.chosen) * len(self.run.experiment.train.target_names) * height * width
        return bool(needed < files.free_bytes(self.path.parent) / 10)

    def _images(self) -> Images:
        experiment = self.run.experiment
        cache = experiment.workspace.cache()
        return parts.opened_images(experiment.competition, self.rows.table, cache, what=self.rows.part)(KEEP)

    def _written(
        self, path: Path, source: dict[str, Any], *, keep: bool, rule: Callable[[np.ndarray], np.ndarray] | None
    ) -> MapStore:
        job, members = self.job()
        said = tuple(name for name, *_ in readings(job, members))
        writing = Writing(path, self.ids, job.names, self.run.competition.task, source, said, keep, rule)
        return map_store.write(writing, self.rows_again())


def _member(checkpoint: Checkpoint, weight: float) -> dict[str, Any]:
    record = record_of(checkpoint)
    return {**record, "training": checkpoint.info["training"], "share": weight}


def fold_part(
    run: Run,
    fold: int,
    *,
    device: str,
    limit: int | None = None,
    force: bool = False,
    weights: Mapping[str, float] | None = None,
) -> MapPart:
    """Return a fold's own rows, predicted by its own snapshots.

    Args:
        run: the run.
        fold: which.
        device: where models run.
        limit: batches at most, of a smoke run.
        force: predict again what is predicted.
        weights: `stage-cycle` -> weight; all alike by default.
    """
    train = run.experiment.train
    shares = None if weights is None else weighed_at(run, fold, weights)
    members = [one for one in needed_checkpoints(run, fold) if shares is None or one.member in shares]
    chosen = _few(np.flatnonzero(run.experiment.folds.valid(fold)), limit)
    name = "maps" if weights is None else f"maps-{files.digest(sorted(weights.items()))[:12]}"
    rows = Rows(train, f"fold {fold}", device, limit, force)
    shared = [(one, 1.0 if shares is None else shares[one.member]) for one in members]
    return MapPart(run, rows, chosen, shared, run.paths.fold(fold).predictions("oof", name))


def narrowed(part: MapPart, fold: int, number: int, ids: np.ndarray) -> MapPart:
    """Return a numbered part of a fold's rows, with files of its own.

    Args:
        part: the fold's rows.
        fold: which.
        number: of the part.
        ids: [n] of its rows.
    """
    path = part.run.paths.fold(fold).predictions(f"oof-{number}", part.path.stem)
    return replace(part, chosen=part.chosen[np.isin(part.ids, ids)], path=path)


def table_part(
    run: Run,
    rows: Rows,
    places: Sequence[int | str],
    *,
    subset: str = "fold",
    weights: Mapping[str, float] | None = None,
) -> MapPart:
    """Return the test set, or another table, predicted by the snapshots of some folds; each fold counts the same.

    Args:
        run: the run.
        rows: which.
        places: folds, or `full`, whose snapshots predict.
        subset: `fold` or `full`, as in `checkpoints`.
        weights: `stage-cycle` -> weight; those of a fold alike by default.

    Raises:
        PredictionError: a member with a weight has no model.
    """
    if weights is not None:
        require_models(run, [name for name, weight in weights.items() if weight > 0], places, subset=subset)
    snapshots: list[tuple[Checkpoint, float]] = []
    for place in places:
        members = needed_checkpoints(run, place, subset=subset)
        if weights is None:
            snapshots += [(one, 1.0 / len(members)) for one in members]
            continue
        shares = weighed_at(run, place, weights, subset=subset)
        snapshots += [(one, shares[one.member] / len(places)) for one in members if one.member in shares]
    name = rows.part if subset == "fold" else f"{rows.part}-{subset}"
    name += "" if weights is None else f"-{files.digest(sorted(weights.items()))[:12]}"
    chosen = _few(rows.places, rows.limit)
    return MapPart(run, rows, chosen, snapshots, run.paths.predictions(name))


def _few(rows: np.ndarray, limit: int | None) -> np.ndarray:
    return require_rows(rows) if limit is None else require_rows(rows)[: 2 * limit]


@dataclass(frozen=True)
class MapResult:
    """Maps of rows, read one row at a time.

    Attributes:
        ids: [N] text, unique and sorted.
        names: K target names.
        task: a dense task.
        read: row numbers -> yields (row, [K, H, W] float32), in any order; predicts again what was not kept.
        members: one record per model.
        weights: one number per model; they sum to 1.
        parts: what predicts them: one of the test set, or of each fold.
        fold_of: [N] which of the parts a row is of.
        mean: of the parts, where every one of them predicts every row.
        shares: weight of each part then.
        table: the rows that were asked for, those among them that cannot be read too; None of folds.
        slices: results of parts of the rows, in place of `parts`.
        gone: rows without a readable image -> their height and width, where nothing is predicted.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    task: str
    read: Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]
    members: list[dict[str, Any]]
    weights: list[float]
    parts: dict[int, MapPart] = field(default_factory=dict)
    fold_of: np.ndarray | None = None
    mean: str = "arithmetic"
    shares: np.ndarray | None = None
    table: Table | None = None
    slices: tuple[MapResult, ...] = ()
    gone: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @cached_property
    def stores(self) -> dict[int, MapStore]:
        """The store of each part; what is missing is predicted."""
        return {number: part.stored() for number, part in self.parts.items()}


def of_folds(run: Run, of_fold: dict[int, MapPart]) -> MapResult:
    """Return the rows of several folds together, each predicted by the snapshots of its fold."""
    order = np.argsort(np.concatenate([part.ids for part in of_fold.values()]))
    ids = np.concatenate([part.ids for part in of_fold.values()])[order]
    numbers = np.concatenate([np.full(len(part.ids), fold) for fold, part in of_fold.items()])[order]
    names, task = run.experiment.train.target_names, run.competition.task

    def read(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for fold, store in result.stores.items():
            own = np.searchsorted(ids, store.ids)
            places = np.flatnonzero(np.isin(own, rows))
            if store.kept:
                yield from ((int(own[place]), store.maps(int(place))) for place in places)
            elif len(places):
                again = of_fold[fold].rows_again(places)
                yield from ((int(row), one.maps) for row, one in zip(own[places], again, strict=True))

    members, weights = records_of([(part, 1.0) for part in of_fold.values()])
    result = MapResult(ids, names, task, read, members, weights, of_fold, numbers)
    return result


def records_of(shares: Sequence[tuple[MapPart, float]]) -> tuple[list[dict[str, Any]], list[float]]:
    """Return a record of each model, and its weight; all weights sum to 1."""
    total = sum(share for _, share in shares)
    records, weights = [], []
    for part, share in shares:
        whole = sum(weight for _, weight in part.snapshots)
        records += [{"run": part.run.name, **record_of(checkpoint)} for checkpoint, _ in part.snapshots]
        weights += [share / total * weight / whole for _, weight in part.snapshots]
    return records, weights
