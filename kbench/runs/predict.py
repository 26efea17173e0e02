"""Predict the rows a run did not train on, the test set, or new images; only what is not predicted yet.

Predict the maps of dense tasks: a fold's own rows, the test set, or new images; only what is not predicted yet.

The views of a snapshot's predictions, each by itself: what test-time augmentation averages (F-24).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kbench import console, files
from kbench.config.competition import Competition
from kbench.data.dataset import auto_workers
from kbench.data.images.cache import Images, Resize
from kbench.data.table.table import Table
from kbench.ensemble import mask_rules
from kbench.ensemble.average import Mean, average, ensemble_run
from kbench.ensemble.mask_rules import Rule
from kbench.errors import ConfigError, PredictionError
from kbench.inference import map_store
from kbench.inference.activations import Seen
from kbench.inference.map_pass import MapJob, MapMember, readings, stream
from kbench.inference.map_store import MapStore, MaskSet, Row, Writing
from kbench.inference.maps import MapMaker
from kbench.inference.predictions import Predictions, load
from kbench.inference.row_pass import Job, Member, predict
from kbench.machine import keep_freed_memory
from kbench.models.checkpoint import Checkpoint, load_strict, read_tensors, snapshot_tensors
from kbench.models.device import choose_device, place, usable_precision
from kbench.models.layer_groups import load_head
from kbench.models.outputs import Units
from kbench.runs import parts
from kbench.runs.experiment import Setup
from kbench.runs.members import needed_checkpoints, source_of
from kbench.runs.parts import activations_of
from kbench.tasks import SEGMENTATION, is_dense
from kbench.training.fold_context import KEEP
from kbench.workspace import RunPaths


def predict_out_of_fold(
    setup: Setup,
    paths: RunPaths,
    identity: dict[str, str],
    folds: Sequence[int],
    device: str,
    *,
    part: str = "oof",
    limit: int | None = None,
    force: bool = False,
) -> None:
    """Predict each fold's rows with its own snapshots.

    Args:
        setup: the competition.
        paths: the run.
        identity: its hashes.
        folds: which.
        device: where the models run.
        part: folder of the predictions; the run's own views are in `oof`.
        limit: batches at most, of a smoke run.
        force: predict again what is predicted.
    """
    for fold in folds:
        rows = np.flatnonzero(setup.folds.valid(fold))
        members = [
            (checkpoint, paths.fold(fold).predictions(part, checkpoint.member))
            for checkpoint in needed_checkpoints(setup, paths, identity, fold)
        ]
        _predict(setup, setup.train, rows, members, device, what=f"fold {fold}", limit=limit, force=force)


def predict_test(
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
    force: bool = False,
) -> None:
    """Predict the test set, or another table, with every snapshot of some folds, decoding each image once.

    Args:
        setup: the competition.
        paths: the run.
        identity: its hashes.
        folds: which folds' snapshots.
        device: where the models run.
        table: other rows than the test set's.
        part: name of the rows, a folder beside `oof/`.
        subset: `fold` or `full`, as in `checkpoints`.
        limit: batches at most, of a smoke run.
        force: predict again what is predicted.
    """
    table = setup.test if table is None else table
    members = [
        (checkpoint, paths.fold(fold).predictions(part, checkpoint.member))
        for fold in folds
        for checkpoint in needed_checkpoints(setup, paths, identity, fold, subset=subset)
    ]
    _predict(setup, table, np.arange(len(table)), members, device, what=part, limit=limit, force=force)


def batch_size_of(competition: Competition) -> int:
    """Return how many images are judged and predicted at once."""
    return competition.loader.valid_batch_size or 64


def job_of(setup: Setup, ids: np.ndarray, rows: np.ndarray, images: Callable[[Resize], Images], device: str) -> Job:
    """Return what is predicted of rows, as a run predicts them.

    Args:
        setup: the competition.
        ids: [N] text.
        rows: [N] rows of the images.
        images: resizing -> images.
        device: where the models run.
    """
    competition, chosen = setup.competition, choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    return Job(
        ids=ids, rows=rows, images=images, names=setup.train.target_names, task=competition.task,
        views=parts.build_views(competition), mean=competition.ensemble.mean, device=chosen,
        batch_size=batch_size_of(competition),
        workers=auto_workers(competition.loader.workers, device=chosen.type), seed=competition.seed,
    )  # fmt: skip


def _predict(
    setup: Setup,
    table: Table,
    rows: np.ndarray,
    members: Sequence[tuple[Checkpoint, Path]],
    device: str,
    *,
    what: str,
    limit: int | None,
    force: bool,
) -> None:
    competition = setup.competition
    if limit:
        batch_size = batch_size_of(competition)
        rows = rows[: batch_size if competition.tta.name == "none" else limit * batch_size]
    images = parts.opened_images(competition, table, setup.workspace.cache(), what=what)
    job = job_of(setup, table.ids[rows], rows, images, device)
    stages = {stage.name: stage for stage in parts.build_stages(competition)}
    todo, content = [], parts.content_of(competition, table, setup.workspace.cache())
    for checkpoint, out in members:
        source = {**source_of(setup, checkpoint, job.ids), "content": content}
        known = None if force else files.read_seal(out, verify=False)
        if known is None or known["source"] != source:
            made = member_of(setup, checkpoint, out, source, stages, job.device)
            todo.append(made if limit else _with_activations(setup, table, job, made, checkpoint, stages))
    if not todo:
        return
    views = len(job.views)
    with console.bar(f"predicting {what}: {len(todo)} models x {views} views") as advance:
        for done in predict(job, todo):
            advance(done, len(rows))


def member_of(
    setup: Setup,
    checkpoint: Checkpoint,
    out: Path,
    source: dict[str, Any],
    stages: dict[str, Any],
    device: torch.device,
) -> Member:
    """Return a snapshot as a member that `inference.predict` runs.

    Args:
        setup: the competition.
        checkpoint: the snapshot.
        out: JSON of its predictions.
        source: what that JSON says.
        stages: name -> stage of the recipe.
        device: where the model runs.
    """
    info = checkpoint.info
    show, precision = stages[info["stage"]].show, usable_precision(info["precision"], device)

    def load_model() -> torch.nn.Module:
        competition = setup.competition
        model = parts.build_model(
            competition,
            len(info["names"]),
            device=torch.device("cpu"),
            weights=None,
            channels_last=False,
            pretrained=False,
        )
        load_strict(model, snapshot_tensors(checkpoint), what=f"snapshot '{checkpoint.path}'")
        return place(model, device, channels_last=info.get("channels_last", True)).eval()

    def head_like(model: torch.nn.Module) -> torch.nn.Module:
        head: torch.nn.Module = copy.deepcopy(getattr(model, "head"))  # noqa: B009
        load_head(head, read_tensors(checkpoint.tensors))
        return head

    return Member(
        name=f"fold {info['fold']} {checkpoint.member}", load=load_model, size=tuple(info["size"]), resize=info["crop"],
        scale=info["scale"], precision=precision, out=out, source=source, augmentation=show.augmentation,
        train_crop=show.crop, body=checkpoint.body, head=head_like,
        judged=stages[info["stage"]].valid_show.crop if info["crop"] == "keep" else None,
        units=Units.of_checkpoint(info),
    )  # fmt: skip


def _with_activations(
    setup: Setup, table: Table, job: Job, member: Member, checkpoint: Checkpoint, stages: dict[str, Any]
) -> Member:
    """Return a member that looks up the plain view where its head was trained on precomputed activations."""
    info = checkpoint.info
    if not info.get("precomputed"):
        return member
    show = stages[info["stage"]].valid_show
    seen = Seen(show, info["scale"], member.precision, info["channels_last"])
    made = activations_of(
        setup.competition, table, setup.workspace.cache(), job.images, device=job.device, plugins=setup.plugin_files()
    )
    return replace(member, precomputed=lambda model: made(model, seen).values)


def fold_mean(members: Sequence[Predictions], mean: Any) -> Predictions:
    """Return the mean over a fold's snapshots."""
    return ensemble_run({0: members}, mean=mean)


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
            members.append(MapMember(name, one.load, one.scale, one.precision, share, one.units))
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
        rule = mask_rules.none(_names=names, _task=task).apply if task in SEGMENTATION else None
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


@dataclass(frozen=True)
class ViewStack:
    """Rows as one snapshot sees them in every view, as fast.ai's `TTA` returns them.

    Attributes:
        views: 1 + n names; the first is the plain view.
        weights: [1 + n] float64 share of each view in the mean; they sum to 1.
        ids: [N] text, unique and sorted.
        names: K target names.
        values: [1 + n, N, K] float32 probabilities, or target units.
        task: the competition's.
    """

    views: tuple[str, ...]
    weights: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    task: str

    def mean(self, mean: Mean = "arithmetic") -> Predictions:
        """Return the mean over views as a run's predictions have it: of probabilities, or of their logarithms."""
        made = [Predictions(self.ids, self.names, values, self.task, {}) for values in self.values]
        return average(made, mean=mean, weights=self.weights.tolist())


def view_stack(
    setup: Setup, checkpoint: Checkpoint, table: Table, rows: np.ndarray, *, device: str = "auto"
) -> ViewStack:
    """Predict rows with a snapshot in one pass over the images, keeping every view of `tta:`.

    Args:
        setup: the run's configuration.
        checkpoint: the snapshot.
        table: of the rows.
        rows: [N] of the table; the stack is in memory, 4 x (1 + n) x N x K bytes.
        device: where the model runs.

    Raises:
        ConfigError: the task predicts maps.
    """
    competition = setup.competition
    if is_dense(competition.task):
        raise ConfigError(
            f"views of the task '{competition.task}', whose predictions are maps", "a task that predicts rows",
            "`kbench score` says what the views of maps add",
        )  # fmt: skip
    images = parts.opened_images(competition, table, setup.workspace.cache(), what="views")
    job = replace(job_of(setup, table.ids[rows], rows, images, device), apart=True)
    stages = {stage.name: stage for stage in parts.build_stages(competition)}
    with files.scratch_folder() as folder:
        member = member_of(setup, checkpoint, folder / "views.json", {}, stages, job.device)
        for _ in predict(job, [member]):
            pass
        made = load(member.out)
        values = np.ascontiguousarray(np.moveaxis(made.values, -1, 0))
    weights = np.array([view.weight for view in job.views])
    return ViewStack(
        tuple(view.name for view in job.views), weights / weights.sum(), made.ids, made.names, values, made.task
    )
