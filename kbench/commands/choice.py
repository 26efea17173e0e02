"""What the user chose on the command line; imports nothing heavy, so that `kbench list` stays quick."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kbench import console
from kbench.errors import ConfigError
from kbench.workspace import Workspace


@dataclass(frozen=True)
class Choice:
    """What the user chose on the command line.

    Attributes:
        competition: `-c`, or None.
        experiment: `-e`, or None for the baseline.
        run: `--run`, or None.
        assignments: `--set` overrides.
        workspace: a folder in the workspace; the current one by default.
    """

    competition: str | None = None
    experiment: str | None = None
    run: str | None = None
    assignments: tuple[str, ...] = ()
    workspace: Path | None = None

    @property
    def of_a_part(self) -> bool:
        """Whether it may cover some of the targets alone, to be joined by other runs."""
        return self.experiment is not None or any(one.startswith("data.target=") for one in self.assignments)


def current(workspace: Workspace, given: str | None) -> str | None:
    """Return the competition given, named by `KBENCH_COMPETITION`, or chosen by `kbench use`; else None."""
    return given or os.environ.get("KBENCH_COMPETITION") or workspace.chosen()


def choose(workspace: Workspace, given: str | None) -> str:
    """Return the competition to work on: the current one, the only one, or `digits`.

    Raises:
        ConfigError: there are several and none was chosen.
    """
    names = workspace.competition_names()
    name = current(workspace, given)
    if name:
        return name
    if len(names) == 1:
        return names[0]
    if "digits" in names:
        console.note("no competition chosen: taking 'digits' (choose one with `kbench use NAME` or -c NAME)")
        return "digits"
    raise ConfigError(
        "no competition is chosen" if names else f"'{workspace.competitions}' has no competition",
        f"one of {', '.join(names)}" if names else "a YAML there",
        "`kbench use NAME`" if names else "`kbench new NAME` drafts one",
    )
