"""`kbench run` and `kbench demo`: every step of the job, in order, skipping what is done."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from kbench import console
from kbench.commands.run import run
from kbench.commands.workspace import init
from kbench.errors import ConfigError
from kbench.machine import cores
from kbench.metrics.metric import make_metric
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.submission.grading import grade
from kbench.workspace import Choice, Workspace, find_workspace


def demo(*, folder: str, jobs: int | None, device: str) -> dict[str, Any]:
    """Do the whole job on the embedded digits; report the score beside the out-of-fold score.

    Args:
        folder: where a workspace is made if there is none here.
        jobs: folds at once; by default one per two CPU cores: a process starts in seconds, and two threads keep busy.
        device: where models run.
    """
    started = time.perf_counter()
    try:
        workspace = find_workspace()
    except ConfigError:
        workspace = Workspace(init(folder))
        os.chdir(workspace.root)
    if not workspace.competition("digits").is_file():
        init(str(workspace.root))
    choice = Choice("digits")
    result = run(choice, TrainOptions(jobs=jobs or min(5, max(1, cores() // 2)), device=device), send=False)
    experiment = open_experiment(choice)
    solution = experiment.source().solution(experiment.data)
    assert solution is not None, "the embedded competition has its solution"
    sample = experiment.read_sample()
    test = {
        name: grade(
            Path(result["file"]), solution, sample=sample, format=experiment.format, metric=make_metric(name)
        ).score
        for name in ("accuracy", "log_loss")
    }
    seconds = time.perf_counter() - started
    console.result(
        f"out of fold: log loss {result['score']:.4f} [{result['low']:.4f}, {result['high']:.4f}] "
        f"({result['members']} models x {len(_views(choice))} views)"
    )
    console.result(f"test set:    log loss {test['log_loss']:.4f}, accuracy {test['accuracy']:.4f}")
    console.result(f"{seconds:.0f} s")
    said = {key: result[key] for key in ("file", "score", "low", "high", "members")}
    return {**said, "test": test, "seconds": seconds}


def _views(choice: Choice) -> tuple[Any, ...]:
    from kbench.runs.parts import build_views

    return build_views(open_experiment(choice).competition)
