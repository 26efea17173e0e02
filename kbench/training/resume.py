"""The resume point of a fold: everything a killed run needs to go on as if it had not been killed.

All random numbers derive from counters, so a resume point is counters, scores and tensors. The tensors are
written first, under a new name; then `last.json`, which names and checksums them, is replaced; then the old
tensors are removed. At any moment one whole resume point exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kbench import files, records
from kbench.errors import DataError
from kbench.models.checkpoint import Tensors, read_tensors, write_tensors
from kbench.training.update import Learner
from kbench.workspace import FoldPaths


@dataclass
class Progress:
    """Where a fold is.

    Attributes:
        stage: number of the stage.
        epoch: number of the epoch in the stage.
        batch: batches of the epoch already used.
        step: updates of the stage already made.
        log_lines: lines the log had.
        history: score of each finished epoch of the stage, larger is better.
        best: score of the best epoch of the stage, or None.
        best_epoch: its number, or None.
        micro_batch: images per forward pass.
        meter: running sums of the epoch: total, count, images, and patches that showed a class looked for.
        averaged: states in the running mean of weights.
        best_loss: validation loss of the best epoch.
        body: digest of the frozen body, where the tensors hold the head alone.
        by_loss: whether epochs of the stage are judged by the loss, because the metric has no value on the rows.
        lone_said: whether batches of one image were spoken of.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    log_lines: int = 0
    history: list[float] = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None
    micro_batch: int = 0
    meter: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    body: str = ""
    averaged: int = 0
    best_loss: float | None = None
    by_loss: bool = False
    lone_said: bool = False

    def next_stage(self) -> None:
        """Go to the beginning of the next stage."""
        vars(self).update(vars(Progress(stage=self.stage + 1)))


def save_resume(paths: FoldPaths, progress: Progress, tensors: Mapping[str, torch.Tensor], *, training: str) -> None:
    """Replace the resume point.

    Args:
        paths: files of the fold.
        progress: the counters.
        tensors: from `learner_tensors`.
        training: the training hash.
    """
    before = records.read_seal(paths.last, verify="size")
    name = f"last-{progress.stage}-{progress.epoch}-{progress.batch}.safetensors"
    weights = paths.last.with_name(name)
    write_tensors(weights, tensors)
    records.seal(paths.last, {"training": training, "progress": asdict(progress)}, parts={"tensors": weights})
    old = before["files"].get("tensors", {}).get("file") if before else None
    if old and old != name:
        files.remove(paths.last.with_name(old))


def load_resume(paths: FoldPaths, *, training: str) -> tuple[Progress, Tensors] | None:
    """Return the resume point of this training hash, or None when there is none."""
    sealed = records.read_seal(paths.last)
    progress = None if sealed is None or "tensors" not in sealed["files"] else _progress(sealed)
    if sealed is None or progress is None or sealed.get("training") != training:
        return None
    return progress, read_tensors(paths.last.with_name(sealed["files"]["tensors"]["file"]))


def lost_resume(paths: FoldPaths, *, training: str) -> str:
    """Return what is lost where a fold's resume point is there but cannot be used; empty where none is, or it is whole.

    Args:
        paths: files of the fold.
        training: the training hash; the resume point of another one is nobody's loss.
    """
    if not paths.last.is_file() or load_resume(paths, training=training) is not None:
        return ""
    known = read_loosely(paths.last)
    if known.get("training", training) != training:
        return ""
    progress = _progress(known)
    where = "its last resume point" if progress is None else (
        f"stage {progress.stage + 1}, epoch {progress.epoch + 1}, batch {progress.batch}"
    )  # fmt: skip
    entries = known.get("files")
    entry = entries.get("tensors") if isinstance(entries, dict) else None
    named = paths.last.with_name(str(entry["file"])) if isinstance(entry, dict) and "file" in entry else None
    if progress is None or named is None:
        why = f"'{paths.last}' is damaged"
    else:
        why = f"its tensors '{named}' are {'damaged' if named.is_file() else 'missing'}"
    return f"the resume point cannot be used: {why}; what was trained up to {where} is lost, and the fold begins anew"


def read_loosely(path: Path) -> dict[str, Any]:
    """Return a JSON object of whatever a file still holds; empty where it is none."""
    try:
        content = files.read_json(path)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def _progress(sealed: Mapping[str, Any]) -> Progress | None:
    """Return the counters of a resume point, or None where they are damaged."""
    default, known = vars(Progress()), sealed.get("progress")
    if not isinstance(known, dict) or not set(known) <= set(default):
        return None
    counters = all(type(value) is type(default[key]) for key, value in known.items() if default[key] is not None)
    return Progress(**known) if counters else None


def clear_resume(paths: FoldPaths) -> None:
    """Remove the resume point of a finished fold."""
    files.remove(paths.last)
    for weights in paths.root.glob("last-*.safetensors"):
        files.remove(weights)


def learner_tensors(learner: Learner) -> Tensors:
    """Return model, moving average and optimiser state as named tensors."""
    tensors = {f"model/{name}": value for name, value in learner.model.state_dict().items()}
    if learner.averaged is not None:
        tensors |= {f"averaged/{name}": value for name, value in learner.averaged.module.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    if learner.scaler.is_enabled():
        scaler: dict[str, Any] = learner.scaler.state_dict()
        tensors["scaler/scale"] = torch.tensor(float(scaler["scale"]))
        tensors["scaler/growth"] = torch.tensor(int(scaler["_growth_tracker"]))
    return tensors


def restore_learner(learner: Learner, tensors: Tensors) -> None:
    """Put a resume point's tensors back."""
    learner.model.load_state_dict(part(tensors, "model/"))
    if learner.averaged is not None:
        learner.averaged.module.load_state_dict(part(tensors, "averaged/"))
    state: dict[int, dict[str, Any]] = {}
    for name, value in part(tensors, "optimizer/").items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    if state:
        groups = learner.optimizer.state_dict()["param_groups"]
        learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
        _lay_out(learner.optimizer)
    if "scaler/scale" in tensors:
        scaler = learner.scaler.state_dict()
        scaler["scale"] = float(tensors["scaler/scale"])
        scaler["_growth_tracker"] = int(tensors["scaler/growth"])
        learner.scaler.load_state_dict(scaler)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser's state the memory layout of its parameters, as if it had never left: files have none."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose name begins with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
