"""The snapshots of a run as ensemble members: which count, what they are named, how they are loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kbench import files
from kbench.config.competition import Competition
from kbench.config.reading import validate
from kbench.errors import CheckpointError, PredictionError, first_names
from kbench.inference.row_pass import Member
from kbench.models.checkpoint import Checkpoint, load_strict, read_checkpoint, read_tensors, snapshot_tensors
from kbench.models.device import place, usable_precision
from kbench.models.layer_groups import load_head
from kbench.models.outputs import Units
from kbench.runs import parts
from kbench.runs.trained_config import read_config
from kbench.training.stage_plan import StagePlan
from kbench.workspace import RunPaths

if TYPE_CHECKING:
    from kbench.runs.run import Run


def kept_snapshots(run: Run, fold: int | str, *, subset: str = "fold") -> list[Checkpoint]:
    """Return the snapshots a fold keeps, in the order of training.

    Args:
        run: the run; snapshots of another training do not count.
        fold: which.
        subset: `fold` for models that did not see the fold's rows, `full` for those that saw all.

    Raises:
        CheckpointError: the fold is trained, and one of its snapshots is gone, damaged or unreadable.
    """
    paths, state = run.paths.fold(fold), run.state(fold)
    there = paths.snapshots()
    known = {paths.snapshot_named(name) for name in state.get("snapshots", ())}
    snapshots = []
    for path in sorted({*there, *known}):
        checkpoint = read_checkpoint(path, verify="time")
        if checkpoint is None and state["state"] == "done":
            raise _lost(run, fold, path)
        if checkpoint is None or checkpoint.info["training"] != run.trained_as["training"]:
            continue
        if checkpoint.info["kept"] and checkpoint.info["subset"] == subset:
            snapshots.append(checkpoint)
    order = {name: index for index, name in enumerate(run.competition.stages)}
    return sorted(snapshots, key=lambda one: (order.get(one.info["stage"], 0), one.info["epoch"], one.info["tag"]))


def _lost(run: Run, fold: int | str, path: Path) -> CheckpointError:
    option = "--full" if fold == "full" else f"--fold {fold}"
    return CheckpointError(
        f"fold {fold} of '{run.name}' is trained, and its snapshot '{path}' or the weights beside it are "
        f"{'damaged' if path.is_file() else 'gone'}",
        "every snapshot that was kept, as it was written",
        f"bring its files back, or train it again with `kbench train {option} --force`",
    )


def checkpoints(
    run: Run, fold: int | str, *, subset: str = "fold", only: Sequence[str] | None = None
) -> list[Checkpoint]:
    """Return the snapshots of a fold that are ensemble members.

    Of snapshots with equal weights the first counts. `STAGE-last` names the end of a stage, also where it is that of a
    cycle; models of all rows have no best epoch, so `STAGE-best` is their end too.

    Args:
        run: the run.
        fold: which.
        subset: as in `kept_snapshots`.
        only: names of stages or of snapshots (`stage-cycle`) that count; those of `ensemble.members` by default.
    """
    wanted = run.competition.ensemble.members if only is None else only
    snapshots = [one for one in kept_snapshots(run, fold, subset=subset) if one.checksum not in run.left_out]
    return without_twins(_named(snapshots, wanted, ends=("last", "best") if subset == "full" else ("last",)))


def _named(snapshots: list[Checkpoint], wanted: Sequence[str] | None, *, ends: Sequence[str]) -> list[Checkpoint]:
    """Return the snapshots some names are of; `ends` are tags that the end of a stage goes by."""
    if wanted is None:
        return snapshots
    last = {one.info["stage"]: one.info["step"] for one in sorted(snapshots, key=lambda one: int(one.info["step"]))}

    def names(one: Checkpoint) -> set[str]:
        stage, tag = one.info["stage"], one.info["tag"]
        at_end = one.info["step"] == last[stage] and tag not in ("best", "average")
        return {stage, one.member, *(f"{stage}-{end}" for end in ends if at_end)}

    return [one for one in snapshots if names(one) & set(wanted)]


def without_twins(snapshots: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return snapshots of a fold, of those with equal weights the first: a best epoch may be the end of a cycle."""
    seen: dict[tuple[str, str], Checkpoint] = {}
    for one in snapshots:
        seen.setdefault((one.checksum, one.body), one)
    return list(seen.values())


def weighed_at(run: Run, place: int | str, weights: Mapping[str, float], *, subset: str = "fold") -> dict[str, float]:
    """Return `stage-cycle` -> weight of the snapshots of a fold, for weights that were found for those of all folds.

    The weight of a member that the fold lacks, because it stopped earlier, is shared by all it has alike; out of fold
    they were its members there (`with_every_member`).

    Args:
        run: the run.
        place: a fold, or `full`.
        weights: `stage-cycle` -> weight.
        subset: `fold` or `full`, as in `checkpoints`.
    """
    shares: dict[str, float] = {}
    lost = 0.0
    for name, weight in weights.items():
        own = checkpoints(run, place, subset=subset, only=[name]) if weight > 0 else []
        lost += 0.0 if own else weight
        for one in own:
            shares[one.member] = shares.get(one.member, 0.0) + weight / len(own)
    if lost:
        others = needed_checkpoints(run, place, subset=subset)
        for one in others:
            shares[one.member] = shares.get(one.member, 0.0) + lost / len(others)
    return shares


def require_models(run: Run, names: Sequence[str], places: Sequence[int | str], *, subset: str) -> None:
    """Refuse weights of members that no place has a model of.

    Raises:
        PredictionError: there is such a member.
    """
    for name in names:
        if not any(checkpoints(run, place, subset=subset, only=[name]) for place in places):
            known = {one.member for place in places for one in checkpoints(run, place, subset=subset)}
            raise PredictionError(
                f"the member '{run.name}/{name}' has a weight, but no model of all rows",
                f"one of {first_names(sorted(known))}", "`--combine mean` with `--full`, or leave out `--full`",
            )  # fmt: skip


def needed_checkpoints(
    run: Run, fold: int | str, *, subset: str = "fold", only: Sequence[str] | None = None
) -> list[Checkpoint]:
    """Return `checkpoints`, of which there must be one, unless some names were asked for that the fold lacks.

    Raises:
        PredictionError: the fold has no snapshot to predict with.
    """
    members = checkpoints(run, fold, subset=subset, only=only)
    if not members and only is None:
        kept = [name for name, stage in run.competition.stages.items() if stage.keep and stage.subset == subset]
        raise PredictionError(
            f"fold {fold} of '{run.name}' has no snapshot to predict with",
            "snapshots of the stages " + (", ".join(kept) or "that say `keep: [cycles]`, `[best]` or `[last]`"),
            f"`kbench train --fold {fold}`" if kept else "add `keep: [cycles]` to the last stage and train again",
        )
    return members


def record_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what tells a snapshot from others: `fold`, `stage`, `tag`, and the checksum of its `weights`."""
    return {**{key: checkpoint.info[key] for key in ("fold", "stage", "tag")}, "weights": checkpoint.checksum}


def load_model(checkpoint: Checkpoint, *, device: torch.device | None = None) -> torch.nn.Module:
    """Return the network of a snapshot, in eval mode: [B, C, H, W] normalised images to logits [B, K, ...].

    Nothing else is needed: the run that the snapshot lies in says how the network is built.

    Args:
        checkpoint: the snapshot.
        device: where to; the CPU by default.
    """
    paths = RunPaths(checkpoint.path.parents[1])
    return _loaded(checkpoint, _trained_with(paths), device or torch.device("cpu"))


@cache
def _trained_with(paths: RunPaths) -> Competition:
    manifest = files.read_json(paths.manifest)
    content = read_config(paths, manifest)
    return validate(content, file=str(paths.config), folder=paths.plugins, name=manifest["competition"], record=True)


def _loaded(checkpoint: Checkpoint, competition: Competition, device: torch.device) -> torch.nn.Module:
    model = parts.build_model(
        competition, len(checkpoint.info["names"]), device=torch.device("cpu"), weights=None, channels_last=False,
        pretrained=False,
    )  # fmt: skip
    load_strict(model, snapshot_tensors(checkpoint), what=f"snapshot '{checkpoint.path}'")
    return place(model, device, channels_last=checkpoint.info.get("channels_last", True)).eval()


def member_of(
    run: Run,
    checkpoint: Checkpoint,
    *,
    out: Path,
    source: dict[str, Any],
    stages: dict[str, StagePlan],
    device: torch.device,
) -> Member:
    """Return a snapshot as a member that a pass over images runs.

    Args:
        run: the run.
        checkpoint: the snapshot.
        out: JSON of its predictions.
        source: what that JSON says.
        stages: name -> stage of the recipe.
        device: where the model runs.
    """
    info = checkpoint.info
    show, precision = stages[info["stage"]].show, usable_precision(info["precision"], device)
    engine = run.engine if run.engine is not None and run.engine.runs(checkpoint) else None

    def head_like(model: torch.nn.Module) -> torch.nn.Module:
        head: torch.nn.Module = copy.deepcopy(getattr(model, "head"))  # noqa: B009
        load_head(head, read_tensors(checkpoint.tensors))
        return head

    return Member(
        name=f"fold {info['fold']} {checkpoint.member}",
        load=partial(engine, checkpoint) if engine else partial(_loaded, checkpoint, run.competition, device),
        size=tuple(info["size"]), resize=info["crop"], scale=info["scale"], precision=precision, out=out,
        source=source, units=Units.of_checkpoint(info), augmentation=show.augmentation, train_crop=show.crop,
        body="" if engine else checkpoint.body, head=head_like,
        judged=stages[info["stage"]].valid_show.crop if info["crop"] == "keep" else None,
    )  # fmt: skip
