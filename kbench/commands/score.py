"""`kbench score`: what the rows a run did not train on say of it."""

from __future__ import annotations

from typing import Any

from kbench.runs.opening import open_run
from kbench.workspace import Choice


def score(choice: Choice, *, device: str = "auto") -> dict[str, Any]:
    """Return the out-of-fold score of a run, as `score.json` holds it; what is missing is predicted.

    Args:
        choice: competition, experiment and run.
        device: where models run.

    Raises:
        PredictionError: no fold is trained.
    """
    return open_run(choice).out_of_fold(device=device).score
