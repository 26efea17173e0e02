"""`kbench lr-find`: the learning-rate range test of a stage, without training the fold."""

from __future__ import annotations

from typing import Any

import torch

from kbench import console
from kbench.commands.fold_job import TrainOptions, prepare_fold
from kbench.commands.predict import checkpoints
from kbench.commands.runs import identity, run_paths
from kbench.commands.setup import Choice, open_setup
from kbench.data import seeds
from kbench.errors import ConfigError, nearest
from kbench.models.checkpoint import load_strict, snapshot_tensors
from kbench.report.curves import draw_lr_find
from kbench.training.resume import Progress
from kbench.training.stage import range_test


def lr_find(choice: Choice, *, fold: int, stage: str | None, device: str) -> dict[str, Any]:
    """Run the range test of a stage and draw its curve.

    A later stage starts from the fold's newest snapshot of the stage before it, if that is trained; else from the
    model as it begins, which is said.

    Args:
        choice: competition and experiment.
        fold: whose training rows are used.
        stage: which; the first by default.
        device: where the model runs.
    """
    setup = open_setup(choice)
    known = identity(setup)
    trained, scratch = run_paths(setup), setup.workspace.scratch(setup.competition.name, "lr-find")
    setup.folds.valid(fold)
    job = prepare_fold(setup, scratch, known, fold, TrainOptions(device=device))
    names = [plan.name for plan in job.stages]
    if stage is not None and stage not in names:
        raise ConfigError(f"there is no stage '{stage}'", f"one of {', '.join(names)}", nearest(stage, names))
    index = 0 if stage is None else names.index(stage)
    torch.manual_seed(seeds.number(seeds.MODEL, job.context.seed, job.context.number))
    model = job.build()
    before = [item for item in checkpoints(setup, trained, known, fold) if item.info["stage"] in names[:index]]
    if before:
        load_strict(model, snapshot_tensors(before[-1]), what=f"snapshot '{before[-1].path}'")
        console.note(f"starting from {before[-1].member} of fold {fold}")
    elif index:
        console.warn(f"stage {names[index - 1]} of fold {fold} has no snapshot: starting from the model as it begins")
    with console.Status() as status:
        status.show(f"range test of stage {names[index]}")
        curve = range_test(job.context, job.stages[index], model, progress=Progress(stage=index))
    csv = job.context.paths.lr_find(names[index])
    return {
        "stage": names[index],
        "fold": fold,
        "suggestion": curve.suggestion,
        "csv": str(csv),
        "picture": str(draw_lr_find(csv)),
    }
