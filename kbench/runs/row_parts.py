"""What the snapshots of a run say of rows: arrays that are made once, each by one command, every image decoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbench import console, files, registry
from kbench.data.dataset import auto_workers
from kbench.data.images.cache import Images, Resize
from kbench.data.table.table import Table
from kbench.ensemble.average import concat
from kbench.inference.activations import Seen
from kbench.inference.mean import mean_of_task
from kbench.inference.predictions import Predictions, load
from kbench.inference.row_pass import Job, Member, predict_members
from kbench.machine import keep_freed_memory
from kbench.models.checkpoint import Checkpoint
from kbench.models.device import choose_device
from kbench.runs import parts
from kbench.runs.members import member_of, needed_checkpoints
from kbench.runs.results import Rows, predicting, whole

if TYPE_CHECKING:
    from kbench.config.section import Component
    from kbench.runs.run import Run

Members = Mapping[int | str, Mapping[str, Predictions]]
"""fold, or `full` -> `stage-cycle` -> predictions."""


def member_predictions(
    run: Run,
    rows: Rows,
    places: Sequence[int | str],
    *,
    chosen: np.ndarray | None = None,
    subset: str = "fold",
    only: Sequence[str] | None = None,
    views: Component | None = None,
) -> Members:
    """Return what the snapshots of some folds say of rows; what is not predicted yet is, every image decoded once.

    Args:
        run: the run.
        rows: which.
        places: folds, or `full`, whose snapshots predict.
        chosen: [n] of the table's rows; all by default.
        subset: `fold` or `full`, as in `checkpoints`.
        only: names of stages or snapshots that count; those of `ensemble.members` by default.
        views: other views than those of `tta:`.
    """
    if run.foreign:
        return {0: {run.name: load(run.paths.predictions(rows.part))}}
    if rows.slices:
        parts_of = [member_predictions(run, one, places, subset=subset, only=only, views=views) for one in rows.slices]
        return _put_together(run, rows, parts_of)
    chosen = rows.places if chosen is None else chosen
    wanted = [
        (place, checkpoint, _file(run, rows, place, checkpoint))
        for place in places
        for checkpoint in needed_checkpoints(run, place, subset=subset, only=only)
    ]
    _predict_missing(run, rows, chosen, [(checkpoint, out) for _, checkpoint, out in wanted], views)
    members: dict[int | str, dict[str, Predictions]] = {place: {} for place in places}
    for place, checkpoint, out in wanted:
        members[place][checkpoint.member] = load(out)
    return members


def _put_together(run: Run, rows: Rows, parts_of: Sequence[Members]) -> Members:
    """Return members of all rows from those of slices of them."""
    first, *_ = parts_of
    whole: dict[int | str, dict[str, Predictions]] = {place: {} for place in first}
    for place, of_place in first.items():
        for name in of_place:
            out = run.paths.fold(place).predictions(rows.part, name)
            whole[place][name] = concat([of_slice[place][name] for of_slice in parts_of], out=out)
    return whole


def _file(run: Run, rows: Rows, place: int | str, checkpoint: Checkpoint) -> Path:
    """Return the JSON of a snapshot's predictions."""
    if rows.folder is not None:
        return rows.folder / f"{place}-{checkpoint.member}.json"
    return run.paths.fold(place).predictions(rows.part, checkpoint.member)


def _predict_missing(
    run: Run, rows: Rows, chosen: np.ndarray, wanted: Sequence[tuple[Checkpoint, Path]], views: Component | None
) -> None:
    competition, table, cache = run.competition, rows.table, run.experiment.workspace.cache()
    images = rows.handed or parts.opened_images(competition, table, cache, what=rows.part)
    job = job_of(run, table.ids[chosen], chosen, images, rows.device, views=views)
    if rows.handed is not None:  # what is handed over lies in this process
        job = replace(job, workers=0)
    job = replace(job, clock=rows.clock)
    if rows.limit:
        few = job.batch_size if len(job.views) == 1 else rows.limit * job.batch_size
        job = replace(job, ids=job.ids[:few], rows=job.rows[:few])
    stages = {stage.name: stage for stage in parts.build_stages(competition)}
    content = "" if rows.handed is not None else parts.content_of(competition, table, cache)

    def missing() -> list[tuple[Checkpoint, Member]]:
        members = []
        for checkpoint, out in wanted:
            source = {**source_of(run, checkpoint, job.ids, views), "content": content}
            known = None if rows.force else whole(out)
            if known is None or known["source"] != source:
                member = member_of(run, checkpoint, out=out, source=source, stages=stages, device=job.device)
                members.append((checkpoint, member))
        return members

    if not missing():
        return
    live = rows.limit or rows.handed is not None or rows.chosen is not None
    with predicting([out for _, out in wanted]):  # another command may have predicted them meanwhile
        todo = [one if live else _with_activations(run, table, job, one, snapshot) for snapshot, one in missing()]
        if not todo:
            return
        what = f"{rows.part}: {len(todo)} models x {len(job.views)} views"
        with console.bar(f"predicting {what}") as advance:
            for done in predict_members(job, todo):
                advance(done, len(job.rows))


def job_of(
    run: Run,
    ids: np.ndarray,
    rows: np.ndarray,
    images: Callable[[Resize], Images],
    device: str,
    *,
    views: Component | None = None,
) -> Job:
    """Return what is predicted of rows, as a run predicts them.

    Args:
        run: the run.
        ids: [N] text.
        rows: [N] rows of the images.
        images: resizing -> images.
        device: where the models run.
        views: other views than those of `tta:`.
    """
    competition, chosen, names = run.competition, choose_device(device), run.experiment.train.target_names
    if chosen.type == "cpu":
        keep_freed_memory()
    return Job(
        ids=ids, rows=rows, images=images, names=names, task=competition.task,
        views=parts.build_views(competition) if views is None else registry.build("views", views.name, views.params),
        mean=mean_of_task(competition.ensemble.mean, competition.task, len(names)), device=chosen,
        batch_size=competition.loader.valid_batch_size or 64,
        workers=auto_workers(competition.loader.workers, device=chosen.type), seed=competition.seed,
    )  # fmt: skip


def source_of(run: Run, checkpoint: Checkpoint, ids: np.ndarray, views: Component | None = None) -> dict[str, Any]:
    """Return what a member's predictions depend on."""
    info = checkpoint.info
    return {
        "fold": info["fold"], "stage": info["stage"], "tag": info["tag"], "training": info["training"],
        "folds": info["folds"], "weights": checkpoint.checksum, "body": checkpoint.body,
        "views": (views or run.competition.tta).model_dump(), "mean": run.competition.ensemble.mean,
        "ids": files.digest([str(name) for name in ids]),
    }  # fmt: skip


def _with_activations(run: Run, table: Table, job: Job, member: Member, checkpoint: Checkpoint) -> Member:
    """Return a member that looks up the plain view where its head was trained on precomputed activations."""
    info = checkpoint.info
    if not info.get("precomputed"):
        return member
    stage = next(stage for stage in parts.build_stages(run.competition) if stage.name == info["stage"])
    seen = Seen(stage.valid_show, info["scale"], member.precision, info["channels_last"])
    features = parts.activations_of(
        run.competition, table, run.experiment.workspace.cache(), job.images, device=job.device,
        plugins=run.experiment.plugin_files(),
    )  # fmt: skip
    return replace(member, precomputed=lambda model: features(model, seen).values)
