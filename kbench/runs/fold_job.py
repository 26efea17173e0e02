"""What a fold needs before it trains: its rows, stages, model builder and resume point.

Rows of pseudo-labels join those a fold trains on; those it validates stay what they are. To give a fold one more thing,
add it to `FoldContext` and fill it in `prepare_fold`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kbench import console
from kbench.console import bar
from kbench.data.dataset import auto_workers
from kbench.data.images.cache import Images, Resize
from kbench.data.images.regions import RegionImages
from kbench.data.masks.cache import open_masks, sizes_of
from kbench.data.pseudo_rows import Joined, PseudoLabels, join, read_pseudo
from kbench.errors import ConfigError, counted
from kbench.machine import keep_freed_memory
from kbench.models.checkpoint import Tensors
from kbench.models.device import choose_device
from kbench.runs import parts
from kbench.runs.experiment import Experiment, size_reader
from kbench.runs.parts import activations_of
from kbench.runs.run import Run
from kbench.runs.steps import decoding_of
from kbench.training.deadline import NONE, Deadline
from kbench.training.fold import begin
from kbench.training.fold_context import FoldContext, Log, Plan
from kbench.training.ranks import ALONE, Ranks
from kbench.training.resume import Progress
from kbench.training.stage_plan import StagePlan, for_full, with_limit


def place_of(fold: int | str) -> str:
    """Return the name of a fold's own labels."""
    return fold if isinstance(fold, str) else f"fold-{fold}"


def with_pseudo(context: FoldContext, experiment: Experiment) -> FoldContext:
    """Return a fold's context with the rows of its own pseudo-labels to train on, if the YAML names some."""
    path = experiment.pseudo()
    if path is None:
        return context
    labels = read_pseudo(
        path,
        place_of(context.fold),
        unlabelled=experiment.test,
        names=context.table.target_names,
        folds=experiment.folds.hash,
    )
    both = join(context.table, labels.table)
    tests = parts.opened_images(experiment.competition, experiment.test, experiment.workspace.cache(), what="test")
    images, masks, section = context.images, context.masks, experiment.competition.input.normalise

    def joined(resize: Resize) -> Images:
        shown, group = both.images(images(resize), tests(resize), rows=labels.rows), section.group
        return shown if section.by != "region" else RegionImages(shown, both.table.column(str(group)).tolist())

    return replace(
        context, table=both.table,
        train_rows=np.sort(np.concatenate([both.first[context.train_rows], both.second])),
        valid_rows=both.first[context.valid_rows],
        images=joined,
        masks=None if masks is None else _masks(experiment, both, labels, masks),
        activations=activations_of(
            experiment.competition, both.table, experiment.workspace.cache(), joined, device=context.device,
            plugins=experiment.plugin_files(),
        ),
    )  # fmt: skip


def _masks(
    experiment: Experiment, both: Joined, labels: PseudoLabels, masks: Callable[[Resize], Images]
) -> Callable[[Resize], Images]:
    section = experiment.competition.input
    sizes = sizes_of(labels.table, size_reader(experiment.competition), decoding_of(experiment.competition))
    opened: dict[Resize, Images] = {}

    def joined(resize: Resize) -> Images:
        if resize not in opened:
            assert labels.kind is not None, "a dense task has masks"
            with bar("decoding pseudo masks") as advance:
                made = open_masks(
                    labels.table, kind=labels.kind, kind_key="pseudo", size_of=sizes,
                    resize=resize, folder=experiment.workspace.cache(), mode=section.cache, progress=advance,
                )  # fmt: skip
            opened[resize] = both.images(masks(resize), made)
        return opened[resize]

    return joined


FULL = "full"
_FULL_NUMBER = 1_000_000  # what random numbers of a model of all rows derive from, beside the folds' 0, 1, 2 ...


@dataclass(frozen=True)
class TrainOptions:
    """How folds are trained.

    Attributes:
        force: train anew what exists.
        jobs: folds at once.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of a fold; None for all there are.
        limit: batches per stage of a smoke run.
        devices: that train each fold together.
        cluster: `dask://HOST:PORT` or `ray://HOST:PORT`, whose workers train folds; None for this machine.
        deadline: when to stop.
    """

    force: bool = False
    jobs: int = 1
    device: str = "auto"
    threads: int | None = None
    limit: int | None = None
    devices: int = 1
    cluster: str | None = None
    deadline: Deadline = NONE


@dataclass(frozen=True)
class FoldJob:
    """Everything `train_fold` asks for."""

    context: FoldContext
    stages: tuple[StagePlan, ...]
    build: Callable[[], torch.nn.Module]
    resumed: tuple[Progress, Tensors] | None


def fold_option(fold: int | str) -> str:
    """Return the option of `kbench train` that names a fold."""
    return "--full" if fold == FULL else f"--fold {fold}"


def prepare_fold(run: Run, fold: int | str, options: TrainOptions, ranks: Ranks = ALONE) -> FoldJob:
    """Return what `train_fold` needs; recorded threads are taken again."""
    experiment, competition, place = run.experiment, run.competition, run.paths.fold(fold)
    device = choose_device(options.device)
    if device.type == "cpu" and experiment.train.masks is None:
        keep_freed_memory()
    training, plan = run.trained_as["training"], run.plan(fold, ranks)
    use_threads(plan, options, ranks.count)
    stages = parts.build_stages(competition)
    if fold == FULL:
        stages = full_stages(run, plan, stages)
    if options.limit:
        stages = with_limit(stages)
    channels_last = parts.wants_channels_last(competition)
    images = parts.opened_images(competition, experiment.train, experiment.workspace.cache(), what="training")
    n_outputs = len(experiment.train.target_names)

    def build() -> torch.nn.Module:
        return parts.build_model(
            competition, n_outputs, device=device, weights=experiment.weights(), channels_last=channels_last
        )

    resumed = begin(place, training=training, ranks=ranks)
    if fold == FULL:
        train, valid = np.arange(len(experiment.train)), np.arange(0)
    else:
        train, valid = (np.flatnonzero(part(int(fold))) for part in (experiment.folds.train, experiment.folds.valid))
    context = FoldContext(
        fold=fold, number=_FULL_NUMBER if fold == FULL else int(fold), seed=competition.seed, table=experiment.train,
        train_rows=train, valid_rows=valid, images=images,
        scale=parts.build_scale(competition, parts.test_tiles(experiment)), device=device, paths=place,
        identity=run.trained_as, plan=plan, log=Log(place, lines=resumed[0].log_lines if resumed else 0, ranks=ranks),
        plan_of=run.plan,
        workers=auto_workers(competition.loader.workers, device=device.type, jobs=options.jobs * ranks.count),
        valid_batch_size=competition.loader.valid_batch_size,
        checkpoint_s=60 * competition.loader.checkpoint_minutes, limit=options.limit,
        masks=parts.masks_of(competition, experiment.train, experiment.workspace.cache(), what="training"),
        windows=parts.build_windows(competition), standardise=competition.model.standardise, deadline=options.deadline,
        activations=activations_of(
            competition, experiment.train, experiment.workspace.cache(), images, device=device,
            plugins=experiment.plugin_files(),
        ),
        ranks=ranks,
    )  # fmt: skip
    return FoldJob(with_pseudo(context, experiment), stages, build, resumed)


def use_threads(plan: Plan, options: TrainOptions, processes: int = 1) -> None:
    """Compute on as many CPU threads as the fold was begun with, shared by its processes; sums depend on the number."""
    threads = plan.get("threads") or options.threads or torch.get_num_threads()
    if plan.get("threads") is None:
        plan.set("threads", threads)
    torch.set_num_threads(max(1, int(threads) // processes))


def full_stages(run: Run, own: Plan, stages: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """Return the stages for training on all rows with the plan found on the folds.

    A rate that was to be found is the geometric mean of the folds'; a stage that stopped early ends after the
    folds' mean best epoch; a plateau's rate follows the geometric mean of the folds' rates, epoch by epoch.

    Raises:
        ConfigError: something was to be found and no fold is trained yet.
    """
    done = [fold for fold in range(run.experiment.folds.n) if run.state(fold)["state"] == "done"]
    begun = own.get("full")  # a training that goes on keeps the plan it began with
    if begun is None or begun["folds"] != done:
        plans = [run.plan(fold) for fold in done]
        of_folds = {"folds": done, "stages": {stage.name: _found(stage, run.name, plans) for stage in stages}}
        if begun is None:
            own.set("full", of_folds)
        elif begun["stages"] != of_folds["stages"]:
            console.note(
                f"the models of all rows keep the plan of folds {', '.join(map(str, begun['folds']))}; "
                f"`kbench train --full --force` makes them anew with that of {counted(len(done), 'fold')}"
            )
    return tuple(for_full(stage, own.get("full")["stages"][stage.name]) for stage in stages)


def _found(stage: StagePlan, name: str, plans: Sequence[Plan]) -> dict[str, Any]:
    lr, early_stop = stage.stage.lr, stage.stage.early_stop
    searched = lr == "find" or early_stop or stage.adaptive
    if searched and not plans:
        raise ConfigError(
            f"stage {stage.name} finds its plan on the folds, and no fold of '{name}' is trained",
            "one trained fold or more",
            "`kbench train --fold all` first, or set `lr:` and the epochs to numbers",
        )
    settings: dict[str, Any] = {"lr": lr}
    if lr == "find":
        rates = np.array([float(plan.get(f"lr/{stage.name}")) for plan in plans])
        settings["lr"] = float(np.exp(np.log(rates).mean()))
    ends = [plan.get(f"end/{stage.name}") for plan in plans]
    judged = bool(ends) and all(end["history"] for end in ends)  # a stage of all rows is not judged on the folds either
    if early_stop and judged:
        settings["epochs"] = max(1, round(float(np.mean([end["best_epoch"] + 1 for end in ends]))))
    if stage.adaptive and judged:
        settings["rates"] = _mean_rates(stage, settings["lr"], [end["history"] for end in ends])
    return settings


def _mean_rates(stage: StagePlan, lr: float | Sequence[float], histories: Sequence[Sequence[float]]) -> list[float]:
    """Return the geometric mean over folds of the schedule's factor in each epoch."""
    schedule = stage.schedule(1)
    top = float(lr) if isinstance(lr, float | int) else float(max(lr))
    length = max(len(history) for history in histories)
    factors = [[schedule.rate(epoch, top, history[:epoch]) / top for epoch in range(length)] for history in histories]
    return [float(value) for value in np.exp(np.log(np.array(factors)).mean(0))]
