"""Grade predictions on the competition's local solution as their submission would be, keeping no file."""

from __future__ import annotations

from collections.abc import Callable

from kbench import files
from kbench.commands.setup import Setup
from kbench.errors import ConfigError
from kbench.inference.mask_set import MaskSet
from kbench.inference.predictions import Predictions
from kbench.metrics import Metric
from kbench.submission.check import read_sample, write_submission
from kbench.submission.grading import grade


def grader(setup: Setup, metric: Metric) -> Callable[[Predictions | MaskSet], float]:
    """Return the function from predictions of the test set, as they are sent, to their score.

    Raises:
        ConfigError: there is no solution on this machine.
    """
    solution = setup.source().solution(setup.data)
    if solution is None:
        raise ConfigError(
            f"--solution: '{setup.competition.name}' has no solution on this machine",
            "a source that grades here", "leave out --solution, or name the file under `source: {solution: FILE}`",
        )  # fmt: skip
    sample = read_sample(setup.sample)

    def score(sent: Predictions | MaskSet) -> float:
        with files.scratch_folder() as folder:
            file = write_submission(
                folder / f"trial{setup.format.suffix}", setup.format.build(sent, sample), sample=sample,
                format=setup.format, gzip=False,
            )  # fmt: skip
            return grade(file, solution, sample=sample, format=setup.format, metric=metric).score

    return score
