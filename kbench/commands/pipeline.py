"""`kbench run` and `kbench demo`: every step of the job, in order, skipping what is done."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from kbench import console
from kbench.commands import workspace as workspace_commands
from kbench.commands.data import download
from kbench.commands.ensemble import EnsembleOptions, ensemble
from kbench.commands.fold_job import TrainOptions
from kbench.commands.setup import Choice, open_setup
from kbench.commands.submit import submit
from kbench.commands.train import train
from kbench.errors import ConfigError, TrainingError
from kbench.machine import cores
from kbench.metrics import make_metric
from kbench.submission.check import read_sample
from kbench.submission.grading import grade
from kbench.workspace import Workspace, find_workspace


def run(choice: Choice, options: TrainOptions, *, send: bool) -> dict[str, Any]:
    """Download, cut folds, train, ensemble; grade here or, if asked, send.

    Args:
        choice: competition and experiment.
        options: how folds are trained.
        send: send to the service, too; grading on this machine needs no asking.

    Raises:
        TrainingError: a fold failed.
    """
    setup = open_setup(choice)
    if not setup.data.exists():
        download(choice, only=(), force=False)
    trained = train(setup, "all", options)
    if trained["failed"]:
        raise TrainingError(
            f"folds {', '.join(map(str, trained['failed']))} failed", "every fold trained",
            "the folds' console.log says why; `kbench train` goes on with the unfinished ones",
        )  # fmt: skip
    made = ensemble(choice, [choice.run] if choice.run else [], EnsembleOptions(device=options.device))
    if send or setup.source().solution(setup.data) is not None:
        made["submitted"] = submit(choice, made["file"], wait=True, wait_s=900.0)
    return made


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
        workspace = Workspace(workspace_commands.init(folder))
        os.chdir(workspace.root)
    if not workspace.competition("digits").is_file():
        workspace_commands.init(str(workspace.root))
    choice = Choice("digits")
    made = run(choice, TrainOptions(jobs=jobs or min(5, max(1, cores() // 2)), device=device), send=False)
    setup = open_setup(choice)
    solution = setup.source().solution(setup.data)
    assert solution is not None, "the embedded competition has its solution"
    sample = read_sample(setup.sample)
    test = {
        name: grade(Path(made["file"]), solution, sample=sample, format=setup.format, metric=make_metric(name)).score
        for name in ("accuracy", "log_loss")
    }
    seconds = time.perf_counter() - started
    console.result(
        f"out of fold: log loss {made['score']:.4f} [{made['low']:.4f}, {made['high']:.4f}] "
        f"({made['members']} models x {len(_views(choice))} views)"
    )
    console.result(f"test set:    log loss {test['log_loss']:.4f}, accuracy {test['accuracy']:.4f}")
    console.result(f"{seconds:.0f} s")
    return {**{key: made[key] for key in ("file", "score", "low", "high", "members")}, "test": test, "seconds": seconds}


def _views(choice: Choice) -> tuple[Any, ...]:
    from kbench.commands.parts import build_views

    return build_views(open_setup(choice).competition)
