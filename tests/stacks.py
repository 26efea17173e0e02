"""Small stacks of members that tests weigh: every member is the truth with noise of its own."""

from __future__ import annotations

import numpy as np
import toy

from kbench.ensemble.average import Stack
from kbench.metrics.metric import make_metric

METRICS = {"single_label": "log_loss", "multi_label": "f2_samples", "regression": "rmse"}


def stack(
    task: str = "single_label",
    *,
    noise: tuple[float, ...] = (1.0, 1.5, 3.0),
    rows: int = 120,
    k: int = 3,
    seed: int = 0,
    metric: str | None = None,
    mean: str = "arithmetic",
    folds: int = 3,
    groups: np.ndarray | None = None,
) -> Stack:
    """A stack of as many members as there are noises."""
    rng = np.random.default_rng(seed)
    names = tuple(f"t{place}" for place in range(k))
    if task == "single_label":
        targets: np.ndarray = rng.integers(0, k, rows)
        targets[:k] = np.arange(k)
        truth = np.eye(k)[targets] * 2
    elif task == "multi_label":
        targets = (rng.random((rows, k)) < 0.4).astype(np.float32)
        targets[0], targets[1] = 0, 1
        truth = targets * 3 - 2
    else:
        targets = rng.normal(size=(rows, k)).astype(np.float32)
        truth = targets
    values = np.stack([truth + rng.normal(size=truth.shape) * one for one in noise])
    if task == "single_label":
        values = np.exp(values)
        values /= values.sum(axis=2, keepdims=True)
    elif task == "multi_label":
        values = 1 / (1 + np.exp(-values))
    table = toy.table(rows, task=task, targets=targets, names=names)
    fold = np.arange(rows) % folds
    base = np.full(len(noise), 1 / len(noise))
    members = tuple(f"m{place}" for place in range(len(noise)))
    made = make_metric(metric or METRICS[task])
    return Stack(members, values.astype(np.float32), base, table, fold, made, mean, groups)  # type: ignore[arg-type]
