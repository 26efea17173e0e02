"""`kbench download` and `kbench folds`: bring the data here, cut it into folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kbench import console
from kbench.runs.experiment import open_experiment
from kbench.workspace import Choice


def download(choice: Choice, *, only: Sequence[str], force: bool) -> dict[str, Any]:
    """Fetch a competition's files and make it the current competition."""
    experiment = open_experiment(choice)
    with console.bar(f"fetching {experiment.competition.name}") as advance:
        fetched = experiment.source().fetch(
            experiment.data, files=list(only), force=force, progress=lambda what, done, total: advance(done, total)
        )
    experiment.workspace.choose(experiment.competition.name)
    return {"folder": str(experiment.data), "files": fetched.files, "bytes": fetched.bytes, "new": fetched.new}
