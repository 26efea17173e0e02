"""`kbench lr-find`: the learning-rate range test of a stage, without training the fold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kbench import console
from kbench.data import seeds
from kbench.errors import ConfigError, nearest
from kbench.models.checkpoint import load_strict, snapshot_tensors
from kbench.pictures.curves import draw_lr_find
from kbench.runs import parts
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions, prepare_fold
from kbench.runs.members import kept_snapshots
from kbench.runs.opening import run_of
from kbench.runs.run import Run
from kbench.training.fold import load_end, restore
from kbench.training.lr_finder import level_note
from kbench.training.resume import Progress, load_resume
from kbench.training.stage import range_test
from kbench.workspace import Choice


def lr_find(choice: Choice, *, fold: int, stage: str | None, device: str) -> dict[str, Any]:
    """Run the range test of a stage and draw its curve.

    A later stage starts from what the fold has left of the stage it follows: its resume point, the end of that
    stage, or the newest snapshot before; else from the model as it begins, which is said.

    Args:
        choice: competition and experiment.
        fold: whose training rows are used.
        stage: which; the first by default.
        device: where the model runs.
    """
    experiment = open_experiment(choice)
    run = run_of(experiment)
    trial = replace(run, paths=experiment.workspace.scratch(run.competition.name, "lr-find"))
    experiment.folds.valid(fold)
    job = prepare_fold(trial, fold, TrainOptions(device=device))
    names = [plan.name for plan in job.stages]
    if stage is not None and stage not in names:
        raise ConfigError(f"there is no stage '{stage}'", f"one of {', '.join(names)}", nearest(stage, names))
    index = 0 if stage is None else names.index(stage)
    torch.manual_seed(seeds.number(seeds.MODEL, job.context.seed, job.context.number))
    model = job.build()
    plan = job.stages[index]
    if plan.stage.start != "fresh" and index:
        start = names[index - 1] if plan.stage.start == "previous" else plan.stage.start
        source = _begin(run, fold, names, index, model) if run.state(fold)["state"] != "none" else ""
        if source:
            console.note(f"starting from {source} of fold {fold}")
        else:
            console.warn(f"fold {fold} has nothing left of stage {start}: starting from the model as it begins")
    with console.bar("range test") as advance:
        context = replace(job.context, tell=lambda what, done, total: advance(done, total, what))
        curve = range_test(context, job.stages[index], model, progress=Progress(stage=index))
    csv = job.context.paths.lr_find(names[index])
    picture = draw_lr_find(csv)
    if curve.suggested is None:  # the error says to look at them
        console.wrote(csv)
        console.wrote(picture)
    if curve.judged.level:
        console.warn(level_note(names[index], curve.suggestion))
    return {
        "stage": names[index],
        "fold": fold,
        "suggestion": curve.suggestion,
        "level": curve.judged.level,
        "csv": str(csv),
        "picture": str(picture),
    }


def _begin(run: Run, fold: int, names: list[str], index: int, model: nn.Module) -> str:
    """Put what a fold has left of the stage before into a model as it is built; return where it is from, or "".

    Args:
        run: the trained run.
        fold: which.
        names: of the stages.
        index: the stage that is to begin; it follows another.
        model: is changed.
    """
    paths, start = run.paths.fold(fold), parts.build_stages(run.competition)[index].stage.start
    before = names[index - 1] if start == "previous" else start
    resumed = load_resume(paths, training=run.trained_as["training"]) if start == "previous" else None
    if load_end(model, paths, before):
        return f"the end of stage {before}"
    if resumed is not None and resumed[0].stage == index - 1:
        restore(model, *resumed, paths)
        return f"stage {before} as far as it is trained"
    snapshots = [one for one in kept_snapshots(run, fold) if one.info["stage"] in names[:index]]
    if not snapshots:
        return ""
    load_strict(model, snapshot_tensors(snapshots[-1]), what=f"snapshot '{snapshots[-1].path}'")
    return snapshots[-1].member
