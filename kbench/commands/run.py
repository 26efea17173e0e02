"""`kbench run` and `kbench demo`: every step of the job, in order, skipping what is done."""

from __future__ import annotations

from typing import Any

from kbench.commands.download import download
from kbench.commands.ensemble import ensemble
from kbench.commands.submit import submit
from kbench.commands.train import train
from kbench.errors import TrainingError
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice


def run(choice: Choice, options: TrainOptions, *, send: bool) -> dict[str, Any]:
    """Download, cut folds, train, ensemble; grade here or, if asked, send.

    Args:
        choice: competition and experiment.
        options: how folds are trained.
        send: send to the service, too; grading on this machine needs no asking.

    Raises:
        TrainingError: a fold failed.
    """
    experiment = open_experiment(choice)
    if not experiment.data.exists():
        download(choice, only=(), force=False)
    trained = train(experiment, "all", options)
    if trained["stopped"]:
        options.deadline.stop()
    if trained["failed"]:
        raise TrainingError(
            f"folds {', '.join(map(str, trained['failed']))} failed", "every fold trained",
            "the folds' console.log says why; `kbench train` goes on with the unfinished ones",
        )  # fmt: skip
    submission = ensemble(choice, [choice.run] if choice.run else [], EnsembleOptions(device=options.device))
    if send or experiment.source().solution(experiment.data) is not None:
        submission["submitted"] = submit(choice, submission["file"], wait=True, wait_s=900.0)
    return submission
