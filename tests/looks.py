"""What the tests of pictures share: tables and predictions, and reading a PNG back."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kbench.data.table.table import Table


def picture(path: Path) -> np.ndarray:
    """[H, W, 3] of a PNG that was drawn."""
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is no picture"
    return image


def table(
    targets: np.ndarray, *, task: str = "single_label", names: tuple[str, ...] = ("cat", "dog"), **meta: list[str]
) -> Table:
    """A table without images; columns of `meta` are text."""
    count = len(targets)
    return Table(
        ids=np.array([f"r{row:05d}" for row in range(count)]),
        root=Path(),
        images=((),) * count,
        task=task,
        target_names=names,
        targets=np.asarray(targets),
        meta=pd.DataFrame(meta, dtype=object) if meta else None,
    )


def classes(rows: int = 200, k: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[N] classes and [N, K] probabilities that are often right."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(k, size=rows)
    logits = rng.normal(size=(rows, k)) + 1.5 * np.eye(k)[targets]
    p = np.exp(logits)
    return targets, (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def labels(rows: int = 200, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[N, K] labels, some unknown, and their probabilities."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, k)) < 0.4).astype(np.float32)
    p = np.clip(0.5 + 0.3 * (targets - 0.5) + rng.normal(0, 0.25, (rows, k)), 0, 1).astype(np.float32)
    targets[rng.random((rows, k)) < 0.05] = np.nan
    return targets, p
