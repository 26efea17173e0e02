"""Predict the rows a run did not train on, the test set, or new images; only what is not predicted yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kbench import files
from kbench.errors import PredictionError
from kbench.inference.predictions import Predictions, load
from kbench.models.checkpoint import Checkpoint, read_checkpoint
from kbench.runs.experiment import Setup
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


def source_of(setup: Setup, checkpoint: Checkpoint, ids: np.ndarray) -> dict[str, Any]:
    """Return what a member's predictions depend on."""
    info = checkpoint.info
    return {
        "fold": info["fold"], "stage": info["stage"], "tag": info["tag"], "training": info["training"],
        "folds": info["folds"], "weights": checkpoint.checksum, "body": checkpoint.body,
        "views": setup.competition.tta.model_dump(), "mean": setup.competition.ensemble.mean,
        "ids": files.digest([str(name) for name in ids]),
    }  # fmt: skip


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
