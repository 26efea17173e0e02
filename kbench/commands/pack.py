"""`kbench pack` and `kbench unpack`: a run in one file, to go on with elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench import console
from kbench.runs import packing
from kbench.runs.opening import open_run
from kbench.workspace import Choice, find_workspace


def pack(choice: Choice, target: str | None) -> dict[str, Any]:
    """Write a run into one file.

    Args:
        choice: competition, experiment and run.
        target: the file; `RUN.zip` here by default.

    Returns:
        `run`, `file`, `files` (how many) and `bytes`.
    """
    run = open_run(choice, other_folds=True)
    path = Path(target or f"{run.name}.zip").absolute()
    said = packing.pack(run.paths, path, competition=run.competition.name)
    return {"run": run.name, "file": str(path), "files": len(said["files"]), "bytes": path.stat().st_size}


def unpack(file: str, *, name: str | None = None) -> dict[str, Any]:
    """Write the run of a pack into this workspace, and say what keeps it from going on as if it had stayed.

    Args:
        file: the pack.
        name: of the run; its own by default.

    Returns:
        `competition`, `run`, `folder`, `files` (how many) and `differs`: what of this machine is not as it was there.
    """
    workspace = find_workspace()
    paths, said = packing.unpack(Path(file), workspace, name=name)
    differs = packing.differences(said["here"])
    for text in differs:
        console.warn(f"{text}: an open fold goes on, but not bit for bit")
    return {
        "competition": said["competition"], "run": paths.name, "folder": str(paths.root), "files": len(said["files"]),
        "differs": differs,
    }  # fmt: skip
