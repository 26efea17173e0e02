"""The Python API for notebooks: a run with its table, folds, predictions, datasets and models.

    run = kbench.open_run(competition="digits")
    run.show_batch()

`open_run` gives the object that the commands work with (`kbench/runs/run.py`), so that what a notebook shows is what
was trained, scored and sent.
"""

from __future__ import annotations

from pathlib import Path

from kbench.runs import opening
from kbench.runs.experiment import open_experiment
from kbench.runs.run import Run
from kbench.workspace import Choice

__all__ = ["Run", "open_run"]


def open_run(
    run: str | None = None,
    *,
    competition: str | None = None,
    experiment: str | None = None,
    workspace: str | Path | None = None,
) -> Run:
    """Open a run, or an experiment that is not trained yet.

    Args:
        run: name of a run that exists; by default the one `kbench train` makes of the experiment. If that is not
            trained yet, the experiment is opened as its YAML stands: table, folds, datasets and batches are there,
            predictions and models are not.
        competition: its name; chosen as on the command line by default.
        experiment: its name; the baseline by default.
        workspace: a folder in the workspace; the current one by default.

    Raises:
        ConfigError: there is no such run, competition, experiment or workspace, or the YAML has problems.
    """
    choice = Choice(competition, experiment, run, workspace=None if workspace is None else Path(workspace))
    if run is None:
        opened = open_experiment(choice)
        paths = opening.run_paths(opened)
        if not paths.manifest.is_file():
            return Run(opened, paths, None)
    return opening.open_run(choice)
