"""`kbench status`: what of a run is trained, running, failed, left, and who has it."""

from __future__ import annotations

from typing import Any

from kbench.runs.fold_job import FULL
from kbench.runs.fold_processes import last_record
from kbench.runs.leases import lease_of
from kbench.runs.opening import open_run
from kbench.runs.run import Run
from kbench.workspace import Choice


def status(choice: Choice) -> dict[str, Any]:
    """Return where a run's folds are.

    Args:
        choice: competition, experiment and run.

    Returns:
        `competition`, `run`, `trained`, `running`, `failed`, `left` (folds), and `folds`: one record each with its
        `state` (`trained`, `running`, `silent`, `failed`, `started` or `none`), `worker` (`host`, `process`,
        `heartbeat_s`, or None), and `stage`, `epoch`, `epochs`, `score` of its last finished epoch.
    """
    run = open_run(choice)
    full = [FULL] if run.paths.fold(FULL).root.is_dir() else []
    records = [_fold(run, fold) for fold in (*range(run.experiment.folds.n), *full)]
    states = {
        "trained": ("trained",), "running": ("running",), "failed": ("failed",), "left": ("silent", "started", "none"),
    }  # fmt: skip
    return {
        "competition": run.competition.name, "run": run.name,
        **{name: [one["fold"] for one in records if one["state"] in kinds] for name, kinds in states.items()},
        "folds": records,
    }  # fmt: skip


def _fold(run: Run, fold: int | str) -> dict[str, Any]:
    place = run.paths.fold(fold)
    state, lease = run.state(fold), lease_of(place)
    word, worker = {"done": "trained"}.get(state["state"], state["state"]), None
    if lease is not None and lease.state != "free":
        word = "running" if lease.state == "held" else "silent"
        owner = lease.owner
        worker = {"host": owner.get("host"), "process": owner.get("process"), "heartbeat_s": round(lease.age, 1)}
    last = last_record(run.paths, fold) or {}
    return {
        "fold": fold, "state": word, "worker": worker, "error": state.get("error"),
        "stage": last.get("stage"), "epoch": last["epoch"] + 1 if last else None, "epochs": last.get("epochs"),
        "score": last.get("score"),
    }  # fmt: skip
