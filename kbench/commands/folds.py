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
    experiment = open_experiment(choice)
    path = experiment.workspace.folds(experiment.competition.name)
    if adopt is not None:
        folds = _adopt(experiment, Path(adopt), path, force=force)
    elif path.is_file() and not force:
        folds = read_folds(path)
        folds.check(experiment.train)
    else:
        folds = experiment.cut_folds()
    doubts = experiment.doubtful_rows()
    return {
        "file": str(path), "hash": folds.hash, "strategy": folds.manifest["strategy"],
        "rows": describe(folds, experiment.train), "warnings": [*folds.manifest.get("warnings", []), *doubts],
    }  # fmt: skip


def _adopt(experiment: Experiment, file: Path, path: Path, *, force: bool) -> Folds:
    section = experiment.competition.folds
    cut = Cut(section.n, section.seed, tuple(section.by), section.group, "n" not in section.model_fields_set)
    folds = adopt_folds(file, experiment.to_cut(), cut=cut)
    if path.is_file() and not force and read_folds(path).hash != folds.hash:
        raise FoldError(
            f"'{path}' holds other folds already", "no folds yet, or the same ones",
            f"`kbench folds --from {file} --force` replaces them; runs trained on the old ones must be trained again",
        )  # fmt: skip
    folds.manifest["warnings"] += experiment.leaking(folds)
    write_folds(path, folds)
    console.wrote(path)
    return folds
