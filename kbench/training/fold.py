"""Train one fold: its stages in order, from the beginning or from where a killed run was.

The order of a fold: build the model, for each stage run it and leave its end, then mark the fold done. To a
caller it is a generator of notes, updates and epochs; who stops asking stops the training, and the next call
goes on from the last resume point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from kbench import console, files, records
from kbench.data import seeds
from kbench.errors import CheckpointError, Diverged
from kbench.models.checkpoint import Tensors, read_body, read_tensors, write_tensors
from kbench.models.layer_groups import HEAD, head_state, is_split
from kbench.training.events import Event, Note
from kbench.training.fold_context import FoldContext
from kbench.training.ranks import ALONE, Ranks
from kbench.training.resume import Progress, clear_resume, load_resume, lost_resume, part
from kbench.training.stage import run_stage
from kbench.training.stage_plan import StagePlan
from kbench.workspace import FoldPaths


def train_fold(
    context: FoldContext,
    stages: Sequence[StagePlan],
    build: Callable[[], nn.Module],
    *,
    resumed: tuple[Progress, Tensors] | None,
) -> Iterator[Event]:
    """Train a fold to its end.

    Args:
        context: what the fold is made of.
        stages: the recipe.
        build: makes the model with its pretrained weights, on its device; random parts from torch's seed.
        resumed: from `load_resume`, or None to begin.

    Yields:
        Notes, updates and epochs as they happen.

    Raises:
        Diverged: the loss is not finite; the fold is marked failed.
        TrainingError: it cannot go on now; the same command goes on from the last resume point.
    """
    torch.manual_seed(seeds.number(seeds.MODEL, context.seed, context.number))
    model = build()
    progress, tensors = resumed or (Progress(), None)
    if tensors is not None:
        restore(model, progress, tensors, context.paths)
        yield Note(f"going on from stage {stages[progress.stage].name}, epoch {progress.epoch}, batch {progress.batch}")
    try:
        for plan in stages[progress.stage :]:
            if tensors is None:
                model = _start(context, plan, model, build)
            yield from run_stage(context, plan, model, progress=progress, tensors=tensors)
            tensors = None
            if context.ranks.first:
                _leave_end(context.paths, plan, stages, model)
            context.ranks.wait()
            progress.next_stage()
    except Diverged as error:
        if not context.ranks.first:
            raise
        mark(context.paths, "failed", context.identity, error=error.what)
        context.log.add({"event": "failed", "what": error.what})
        raise
    context.log.add({"event": "done"})
    if not context.ranks.first:
        return
    mark(context.paths, "done", context.identity)
    clear_resume(context.paths)


def _leave_end(paths: FoldPaths, plan: StagePlan, plans: Sequence[StagePlan], model: nn.Module) -> None:
    """Write a stage's end: whole where a later stage starts from it; the head, if nothing else has learned so far.

    The head is for `kbench lr-find`, since the body of such a stage is the one the model is built with.
    """
    if plan.name in {other.stage.start for other in plans}:
        write_tensors(paths.end(plan.name), model.state_dict())
    elif all(one.stage.groups == "head" for one in plans[: plan.index + 1]) and is_split(model):
        write_tensors(paths.end(plan.name), head_state(model.get_submodule(HEAD.rstrip("."))))


def load_end(model: nn.Module, paths: FoldPaths, stage: str) -> bool:
    """Put the end of a stage into a model as it is built; return whether there is one."""
    end = paths.end(stage)
    if not end.is_file():
        return False
    model.load_state_dict({**model.state_dict(), **read_tensors(end)})
    return True


def restore(model: nn.Module, progress: Progress, tensors: Tensors, paths: FoldPaths) -> None:
    """Put back a resume point's model; one that trains on activations kept its head beside the frozen body."""
    state = part(tensors, "model/")
    if progress.body:
        state = {**read_body(paths, progress.body), **{f"{HEAD}{name}": value for name, value in state.items()}}
    model.load_state_dict(state)


def _start(context: FoldContext, plan: StagePlan, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    start = plan.stage.start
    if start == "previous":
        return model
    if start == "fresh":
        if plan.index == 0:
            return model
        torch.manual_seed(seeds.number(seeds.MODEL, context.seed, context.number, plan.index))
        return build()
    end = context.paths.end(start)
    if not end.is_file():
        raise CheckpointError(
            f"stage {plan.name} starts from stage {start}, and its end '{end}' is missing",
            "the weights that stage left",
            f"`kbench train --fold {context.fold} --force` trains the fold anew",
        )
    model.load_state_dict(read_tensors(end))
    return model


def begin(paths: FoldPaths, *, training: str, ranks: Ranks = ALONE) -> tuple[Progress, Tensors] | None:
    """Return the resume point of this training hash; without one, clear what another training left.

    The caller holds the fold's lock. Of several ranks the first one clears, and all read.
    """
    resumed = _begin(paths, training) if ranks.first else None
    ranks.wait()
    if not ranks.first:
        resumed = load_resume(paths, training=training)
    ranks.wait()  # before it is replaced
    return resumed


def _begin(paths: FoldPaths, training: str) -> tuple[Progress, Tensors] | None:
    files.remove_temporaries(paths.root)
    resumed = load_resume(paths, training=training)
    if resumed is None:
        lost = lost_resume(paths, training=training)
        if lost:
            console.warn(lost)
        clear_resume(paths)
    return resumed


def clear(paths: FoldPaths) -> None:
    """Remove everything of a fold but its lock and lease, which the caller holds."""
    held = {paths.lock, *(paths.lease(generation) for generation in paths.leases())}
    for path in paths.root.iterdir():
        if path not in held:
            files.remove(path)


def mark(paths: FoldPaths, state: str, identity: dict[str, str], *, error: str = "") -> None:
    """Write the fold's state: `done` or `failed`; of one that is done, the snapshots it has."""
    more: dict[str, Any] = {"error": error} if error else {}
    if state == "done":
        more["snapshots"] = [path.name for path in paths.snapshots()]
    files.write_json(paths.status, {"state": state, **identity, **more})


def state_of(paths: FoldPaths, *, training: str) -> dict[str, Any]:
    """Return the fold's state under a training hash: `done`, `failed`, `started` or `none`."""
    if paths.status.is_file():
        status = records.read_record(
            paths.status, keys={"state": str, "training": str},
            todo=f"delete '{paths.status}' and type the same again: the fold is trained from its last resume point",
        )  # fmt: skip
        if status["training"] == training:
            return status
    sealed = records.read_seal(paths.last, verify="size")
    return {"state": "started" if sealed and sealed.get("training") == training else "none"}
