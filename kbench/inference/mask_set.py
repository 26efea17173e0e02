"""Masks of many rows: what a segmentation predicts and sends, read one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kbench.tasks import exclusive


@dataclass(frozen=True)
class MaskSet:
    """Predicted class masks by id; only the row that is asked for is in memory.

    Attributes:
        ids: [N] text, unique and sorted.
        names: K class names.
        task: `segmentation` or `multi_label_segmentation`.
        source: where they come from.
        read: row -> [H, W] uint8 class index where classes exclude one another (two classes or more), else
            [K, H, W] uint8 0 or 1.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    task: str
    source: dict[str, Any]
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the mask of a row."""
        return self.read(row)

    def layers(self, row: int) -> np.ndarray:
        """Return [K, H, W] bool, one layer per class."""
        mask = self.read(row)
        if exclusive(self.task, len(self.names)):
            return np.asarray(mask[None] == np.arange(len(self.names))[:, None, None])
        return mask.astype(bool)
