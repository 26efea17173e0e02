"""`kbench compare`: which of some runs is better, and by what, or that nobody can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kbench.errors import ConfigError
from kbench.runs import compare as comparing
from kbench.runs.opening import open_run
from kbench.workspace import Choice


def compare(choice: Choice, names: Sequence[str], *, device: str = "auto") -> dict[str, Any]:
    """Hold runs against the first of them.

    Args:
        choice: the competition.
        names: runs, two or more.
        device: where models run.

    Returns:
        What `runs.compare.compare` returns.

    Raises:
        ConfigError: a run is named twice, or alone.
    """
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"{', '.join(names)} cannot be compared", "two runs or more, each named once",
            "`kbench list` shows the runs; `kbench compare RUN RUN`",
        )  # fmt: skip
    return comparing.compare([open_run(replace(choice, run=name)) for name in names], device=device)
