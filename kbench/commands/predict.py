"""Predict the rows a run did not train on, the test set, or new images; only what is not predicted yet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kbench import console, files
from kbench.commands import parts
from kbench.commands.activating import activations_of
from kbench.commands.setup import Setup
from kbench.config import Competition
from kbench.data.cache import Images, Resize
from kbench.data.dataset import auto_workers
from kbench.data.tables import Table
from kbench.ensemble.average import aligned, ensemble_run
from kbench.errors import PredictionError
from kbench.inference.activations import Seen
from kbench.inference.predict import Job, Member, predict
from kbench.inference.predictions import Predictions, load
from kbench.machine import keep_freed_memory
from kbench.models.checkpoint import Checkpoint, load_strict, read_checkpoint, read_tensors, snapshot_tensors
from kbench.models.precision import choose_device, place, usable_precision
from kbench.models.split import load_head
from kbench.workspace import RunPaths


def checkpoints(
    setup: Setup, paths: RunPaths, identity: dict[str, str], fold: int | str, *, subset: str = "fold"
) -> list[Checkpoint]:
    """Return the snapshots of a fold that are ensemble members.

    `STAGE-last` names the end of a stage, also where it is that of a cycle; models of all rows have no best epoch, so
    `STAGE-best` is their end too.

    Args:
        setup: says which members are wanted (`ensemble.members`).
        paths: the run.
        identity: its hashes; snapshots of another training do not count.
        fold: which.
        subset: `fold` for models that did not see the fold's rows, `full` for those that saw all.
    """
    found = kept_snapshots(setup, paths, identity, fold, subset=subset)
    return _named(found, setup.competition.ensemble.members, ends=("last", "best") if subset == "full" else ("last",))


def kept_snapshots(
    setup: Setup, paths: RunPaths, identity: dict[str, str], fold: int | str, *, subset: str = "fold"
) -> list[Checkpoint]:
    """Return the snapshots a fold keeps, in the order of training; the arguments are those of `checkpoints`."""
    found = []
    for path in paths.fold(fold).snapshots():
        checkpoint = read_checkpoint(path)
        if checkpoint is None or checkpoint.info["training"] != identity["training"]:
            continue
        if checkpoint.info["kept"] and checkpoint.info["subset"] == subset:
            found.append(checkpoint)
    order = {name: index for index, name in enumerate(setup.competition.stages)}
    return sorted(found, key=lambda item: (order.get(item.info["stage"], 0), item.info["epoch"], item.info["tag"]))


def _named(found: list[Checkpoint], wanted: Sequence[str] | None, *, ends: Sequence[str]) -> list[Checkpoint]:
    """Return the snapshots some names are of; `ends` are tags that the end of a stage goes by."""
    if wanted is None:
        return found
    last = {one.info["stage"]: one.info["step"] for one in sorted(found, key=lambda one: int(one.info["step"]))}

    def names(one: Checkpoint) -> set[str]:
        stage, tag = one.info["stage"], one.info["tag"]
        at_end = one.info["step"] == last[stage] and tag not in ("best", "average")
        return {stage, one.member, *(f"{stage}-{end}" for end in ends if at_end)}

    return [one for one in found if names(one) & set(wanted)]


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


def needed_checkpoints(
    setup: Setup, paths: RunPaths, identity: dict[str, str], fold: int | str, *, subset: str = "fold"
) -> list[Checkpoint]:
    """Return `checkpoints`, of which there must be one.

    Raises:
        PredictionError: the fold has no snapshot to predict with.
    """
    found = checkpoints(setup, paths, identity, fold, subset=subset)
    if not found:
        kept = [name for name, stage in setup.competition.stages.items() if stage.keep and stage.subset == subset]
        raise PredictionError(
            f"fold {fold} of '{paths.name}' has no snapshot to predict with",
            "snapshots of the stages " + (", ".join(kept) or "that say `keep: [cycles]`, `[best]` or `[last]`"),
            f"`kbench train --fold {fold}`" if kept else "add `keep: [cycles]` to the last stage and train again",
        )
    return found


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


def source_of(setup: Setup, checkpoint: Checkpoint, ids: np.ndarray) -> dict[str, Any]:
    """Return what a member's predictions depend on."""
    info = checkpoint.info
    return {
        "fold": info["fold"], "stage": info["stage"], "tag": info["tag"], "training": info["training"],
        "folds": info["folds"], "weights": checkpoint.checksum, "body": checkpoint.body,
        "views": setup.competition.tta.model_dump(), "mean": setup.competition.ensemble.mean,
        "ids": files.digest([str(name) for name in ids]),
    }  # fmt: skip


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


def members_of(
    setup: Setup,
    paths: RunPaths,
    identity: dict[str, str],
    fold: int | str,
    part: str,
    *,
    subset: str = "fold",
) -> list[Predictions]:
    """Return the predictions of a fold's snapshots; they must have been made."""
    return [
        load(paths.fold(fold).predictions(part, checkpoint.member))
        for checkpoint in needed_checkpoints(setup, paths, identity, fold, subset=subset)
    ]


def fold_mean(members: Sequence[Predictions], mean: Any) -> Predictions:
    """Return the mean over a fold's snapshots."""
    return ensemble_run({0: members}, mean=mean)


def score_of_fold(setup: Setup, paths: RunPaths, fold: int) -> float:
    """Return the score of a fold's own rows: the mean over its snapshots and views."""
    identity = files.read_json(paths.manifest)
    predictions = fold_mean(members_of(setup, paths, identity, fold, "oof"), setup.competition.ensemble.mean)
    table = setup.train.select(setup.folds.valid(fold))
    values = aligned(predictions, ids=table.ids, names=table.target_names)
    return parts.build_metric(setup.competition)(table.targets, values, table)
