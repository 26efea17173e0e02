"""The command line of a workspace in this process, so that torch is loaded once."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from kbench.cli.app import app


class CommandLine:
    """What the user types in a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, root: Path, name: str, yaml: str) -> CommandLine:
        """Return that of a new workspace with one competition."""
        (root / "competitions").mkdir()
        (root / "competitions" / f"{name}.yaml").write_text(yaml)
        return cls(root)

    def run(self, *words: str) -> str:
        """Run a command; return what it wrote to stdout."""
        with contextlib.chdir(self.root):
            done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"kbench {' '.join(words)} -> {done.exit_code}\n{done.stderr}\n{done.exception!r}"
        return done.stdout

    def refused(self, *words: str) -> str:
        """Run a command that is refused; return what it said."""
        with contextlib.chdir(self.root):
            done = CliRunner().invoke(app, words)
        assert done.exit_code != 0, f"kbench {' '.join(words)}"
        return " ".join(f"{done.stderr} {done.exception}".split())

    def graded(self) -> float:
        """Return the score of a new submission of the baseline on the local solution."""
        self.run("ensemble")
        return float(self.json("submit")["all_rows"])

    def json(self, *words: str) -> dict[str, Any]:
        """Run a command with --json; return what it printed."""
        found: dict[str, Any] = json.loads(self.run(*words, "--json"))
        return found
