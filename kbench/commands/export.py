"""`kbench export`: an ensemble becomes a bundle that predicts elsewhere, held against the runs it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kbench import files
from kbench.commands.ensemble import check_weights
from kbench.runs.blend import EnsembleOptions, blend
from kbench.runs.bundle import write_bundle
from kbench.runs.opening import open_run
from kbench.workspace import BundlePaths, Choice


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is made.

    Attributes:
        out: its folder.
        hours: time limit of the notebook that it runs in.
        half: store weights as float16.
        engine: what runs the networks: `torch`, `openvino` or `onnx`.
        wheels: put the kbench wheel, and those the notebook's image lacks, beside it.
    """

    out: Path = Path("bundle")
    hours: float = 9.0
    half: bool = False
    engine: str = "torch"
    wheels: bool = False


def export(choice: Choice, runs: Sequence[str], options: EnsembleOptions, how: ExportOptions) -> dict[str, Any]:
    """Write a bundle and return what it is.

    Args:
        choice: competition and experiment.
        runs: names of runs; the current experiment's alone when empty.
        options: how they are blended, as of `kbench ensemble`.
        how: what the bundle is like.
    """
    choices = [replace(choice, run=run) for run in runs] or [choice]
    check_weights(options.weights, len(choices))
    opened = [open_run(one, other_folds=options.mixed_folds) for one in choices]
    combined = blend(opened, options)
    with files.replacing_folder(how.out.absolute()) as folder:
        said = write_bundle(combined, folder, half=how.half)
        said |= {"hours": how.hours, "engine": how.engine}
        files.write_json(BundlePaths(folder).manifest, said)
    size = sum(path.stat().st_size for path in how.out.rglob("*") if path.is_file())
    return {"bundle": str(how.out), "members": len(said["members"]), "bytes": size}
