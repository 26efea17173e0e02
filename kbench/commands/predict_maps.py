"""Predict the maps of dense tasks: a fold's own rows, the test set, or new images; only what is not predicted yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kbench import console, files
from kbench.commands import parts
from kbench.commands.predict import member_of, needed_checkpoints
from kbench.commands.setup import Setup
from kbench.data.cache import Images
from kbench.data.dataset import auto_workers
from kbench.data.tables import Table
from kbench.ensemble import postprocess
from kbench.ensemble.postprocess import Rule
from kbench.errors import PredictionError
from kbench.inference import map_store
from kbench.inference.dense import MapJob, MapMember, readings, stream
from kbench.inference.map_store import MapStore, Row, Writing
from kbench.inference.maps import MapMaker
from kbench.inference.mask_set import MaskSet
from kbench.models.checkpoint import Checkpoint
from kbench.models.precision import choose_device
from kbench.tasks import SEGMENTATION
from kbench.training.context import KEEP
from kbench.workspace import RunPaths

_MOST = 16  # whole images at once, where the YAML names no number


@dataclass(frozen=True)
class MapPart:
    """Rows that a run predicts, and the snapshots that predict them.

    Attributes:
        setup: the run's configuration.
        table: the rows' table.
        rows: [N] of its rows.
        members: snapshots with the weight of each.
        device: where models run.
        path: JSON of the store.
        what: for the progress bar.
    """

    setup: Setup
    table: Table
    rows: np.ndarray
    members: Sequence[tuple[Checkpoint, float]]
    device: str
    path: Path
    what: str

    @property
    def ids(self) -> np.ndarray:
        """[N] ids of the rows."""
        return np.asarray(self.table.ids[self.rows])

    def source(self) -> dict[str, Any]:
        """Return what the maps depend on."""
        competition = self.setup.competition
        return {
            "members": [_member(one, share) for one, share in self.members],
            "folds": self.members[0][0].info["folds"], "views": competition.tta.model_dump(),
            "windows": competition.maps.windows.model_dump(), "mean": competition.ensemble.mean,
            "ids": files.digest([str(name) for name in self.ids]), "truth": self.table.masks is not None,
            "content": self._content,
        }  # fmt: skip

    @cached_property
    def _content(self) -> str:
        return parts.content_of(self.setup.competition, self.table, self.setup.workspace.cache())

    def job(self) -> tuple[MapJob, list[MapMember]]:
        """Return what the pass over the images does, and its models."""
        setup, competition = self.setup, self.setup.competition
        device, cache, names = choose_device(self.device), self.setup.workspace.cache(), self.setup.train.target_names
        masks = parts.masks_of(competition, self.table, cache, what=self.what)
        windows = parts.build_windows(competition)
        assert windows is not None, "asked only of dense tasks"
        make = MapMaker(
            windows, parts.build_views(competition), competition.task, device,
            geometric=competition.ensemble.mean == "geometric",
        )  # fmt: skip
        job = MapJob(
            rows=self.rows, images=self._images(), masks=None if masks is None else masks(KEEP), names=names, make=make,
            most=competition.loader.valid_batch_size or _MOST,
            workers=auto_workers(competition.loader.workers, device=device.type),
        )  # fmt: skip
        stages = {stage.name: stage for stage in parts.build_stages(competition)}
        several = len({checkpoint.info["fold"] for checkpoint, _ in self.members}) > 1
        members = []
        for checkpoint, share in self.members:
            one = member_of(setup, checkpoint, self.path, {}, stages, device)
            name = one.name if several else checkpoint.member  # so that folds have readings of the same names
            members.append(MapMember(name, one.load, one.scale, one.precision, share))
        return job, members

    def rows_again(self, places: np.ndarray | None = None) -> Iterator[Row]:
        """Predict the rows, or those at some places among them, and yield them, storing nothing."""
        job, members = self.job()
        job = job if places is None else replace(job, rows=self.rows[places])
        with console.bar(f"predicting {self.what}: {len(members)} models x {len(job.make.views)} views") as advance:
            for done, row in enumerate(stream(job, members), start=1):
                advance(done, len(job.rows))
                yield row

    def stored(self, *, force: bool = False) -> MapStore:
        """Return the store of the rows' maps; predicts where it does not fit any more."""
        if not force and self._known() is not None:
            return map_store.load(self.path)
        names, task = self.setup.train.target_names, self.setup.competition.task
        rule = postprocess.none(_names=names, _task=task).apply if task in SEGMENTATION else None
        keep = self._will_keep()
        if keep or force:  # else the masks a rule made are still those of these maps, if their source says so
            files.remove(self.path_of_ruled)
        return self._written(self.path, self.source(), keep=keep, rule=rule)

    def keeps(self, *, force: bool = False) -> bool:
        """Return whether the probabilities are in the store, or will be once it is made."""
        known = None if force else self._known()
        return self._will_keep() if known is None else bool(known["kept"])

    @property
    def path_of_ruled(self) -> Path:
        """The JSON of the masks a rule made of maps that were not kept."""
        return self.path.with_name("ruled.json")

    def ruled(self, rule: Rule, *, force: bool = False) -> MapStore:
        """Return the store of the masks a rule makes; predicts where they are not those of this rule."""
        path, source = self.path_of_ruled, {**self.source(), "rule": rule.source}
        known = None if force else files.read_seal(path)
        if known is not None and known["source"] == source:
            return map_store.load(path)
        return self._written(path, source, keep=False, rule=rule.apply)

    def _known(self) -> dict[str, Any] | None:
        """Return what the store says of itself, or None where it does not fit."""
        known = files.read_seal(self.path, verify=False)
        wanted = self.setup.competition.maps.keep
        fits = known is not None and known["source"] == self.source() and (known["kept"] or wanted != "on")
        return known if fits else None

    def _will_keep(self) -> bool:
        competition = self.setup.competition
        wanted = competition.maps.keep
        return competition.task not in SEGMENTATION or wanted == "on" or (wanted == "auto" and self._has_room())

    def _has_room(self) -> bool:
        images = self._images()
        height, width = images[int(self.rows[0])].shape[:2]
        needed = len(self.rows) * len(self.setup.train.target_names) * height * width
        return bool(needed < files.free_bytes(self.path.parent) / 10)

    def _images(self) -> Images:
        setup = self.setup
        opened = parts.opened_images(setup.competition, self.table, setup.workspace.cache(), what=self.what)
        return opened(KEEP)

    def _written(
        self, path: Path, source: dict[str, Any], *, keep: bool, rule: Callable[[np.ndarray], np.ndarray] | None
    ) -> MapStore:
        job, members = self.job()
        said = tuple(name for name, *_ in readings(job, members))
        writing = Writing(path, self.ids, job.names, self.setup.competition.task, source, said, keep, rule)
        return map_store.write(writing, self.rows_again())


def _member(checkpoint: Checkpoint, share: float) -> dict[str, Any]:
    info = checkpoint.info
    return {
        "fold": info["fold"], "stage": info["stage"], "tag": info["tag"], "training": info["training"],
        "weights": checkpoint.checksum, "share": share,
    }  # fmt: skip


def rows_of_fold(
    setup: Setup, paths: RunPaths, identity: dict[str, str], fold: int, device: str, *, limit: int | None = None
) -> MapPart:
    """Return a fold's own rows, predicted by its own snapshots.

    Args:
        setup: the competition.
        paths: the run.
        identity: its hashes.
        fold: which.
        device: where models run.
        limit: batches at most, of a smoke run.
    """
    found = needed_checkpoints(setup, paths, identity, fold)
    rows = np.flatnonzero(setup.folds.valid(fold))
    path = paths.fold(fold).predictions("oof", "maps")
    return MapPart(setup, setup.train, _few(rows, limit), [(one, 1.0) for one in found], device, path, f"fold {fold}")


def rows_of_test(
    setup: Setup,
    paths: RunPaths,
    identity: dict[str, str],
    folds: Sequence[int | str],
    device: str,
    *,
    table: Table | None = None,
    part: str = "test",
    subset: str = "fold",
    limit: int | None = None,
) -> MapPart:
    """Return the test set, or another table, predicted by the snapshots of some folds; each fold counts the same.

    Args:
        setup: the competition.
        paths: the run.
        identity: its hashes.
        folds: which folds' snapshots.
        device: where models run.
        table: other rows than the test set's.
        part: name of the rows.
        subset: `fold` or `full`, as in `checkpoints`.
        limit: batches at most, of a smoke run.
    """
    table = setup.test if table is None else table
    members = []
    for fold in folds:
        found = needed_checkpoints(setup, paths, identity, fold, subset=subset)
        members += [(one, 1.0 / len(found)) for one in found]
    name = part if subset == "fold" else f"{part}-{subset}"
    rows = _few(np.arange(len(table)), limit)
    return MapPart(setup, table, rows, members, device, paths.predictions(name), part)


def _few(rows: np.ndarray, limit: int | None) -> np.ndarray:
    if not len(rows):
        raise PredictionError("there is no row to predict", "one row or more", "`kbench check`")
    return rows if limit is None else rows[: 2 * limit]


def masks_of(part: MapPart, rule: Rule, *, force: bool = False) -> MaskSet:
    """Return the masks a rule makes of some rows; where maps are not kept, the masks are.

    Args:
        part: the rows.
        rule: the competition's.
        force: predict also what is predicted.
    """
    if part.setup.competition.maps.postprocess.name == "none":
        return part.stored(force=force).masks()
    if part.keeps(force=force):
        return masks_of_kept(part.stored(force=force), rule)
    return part.ruled(rule, force=force).masks()


def masks_of_kept(store: MapStore, rule: Rule) -> MaskSet:
    """Return the masks a rule makes of kept maps, each made when it is asked for."""
    return MaskSet(store.ids, store.names, store.task, store.source, lambda row: rule.apply(store.maps(row)))
