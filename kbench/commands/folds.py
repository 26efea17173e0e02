"""`kbench download` and `kbench folds`: bring the data here, cut it into folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench import console
from kbench.data.folds.files import adopt_folds, read_folds, write_folds
from kbench.data.folds.folds import Cut, Folds, describe
from kbench.errors import FoldError
from kbench.runs.experiment import Experiment, open_experiment
from kbench.workspace import Choice


def folds(choice: Choice, *, adopt: str | None, force: bool) -> dict[str, Any]:
    """Show the folds; cut, adopt or re-cut them first where asked.

    Args:
        choice: the competition.
        adopt: someone's fold file to adopt.
        force: replace folds that exist.

    Raises:
        FoldError: there are other folds already, or the file does not fit.
    """
    setup = open_experiment(choice)
    path = setup.workspace.folds(setup.competition.name)
    if adopt is not None:
        made = _adopt(setup, Path(adopt), path, force=force)
    elif path.is_file() and not force:
        made = read_folds(path)
        made.check(setup.train)
    else:
        made = setup.cut_folds()
    return {
        "file": str(path), "hash": made.hash, "strategy": made.manifest["strategy"],
        "rows": describe(made, setup.train), "warnings": made.manifest.get("warnings", []),
    }  # fmt: skip


def _adopt(setup: Experiment, file: Path, path: Path, *, force: bool) -> Folds:
    section = setup.competition.folds
    cut = Cut(section.n, section.seed, tuple(section.by), section.group)
    made = adopt_folds(file, setup.to_cut(), cut=cut)
    if path.is_file() and not force and read_folds(path).hash != made.hash:
        raise FoldError(
            f"'{path}' holds other folds already", "no folds yet, or the same ones",
            f"`kbench folds --from {file} --force` replaces them; runs trained on the old ones must be trained again",
        )  # fmt: skip
    made.manifest["warnings"] += setup.leaking(made)
    write_folds(path, made)
    console.wrote(path)
    return made
