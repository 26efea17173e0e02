"""Drawn images, in memory and as files, for tests that need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kbench.data.images.cache import Resize


def drawn(rows: int, *, size: tuple[int, int] = (10, 12), channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    """[rows, H, W, C] noise; the class (row modulo 2) shows in a bright left or right half."""
    rng = np.random.default_rng(rows)
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    images = rng.random((rows, *size, channels)) * 0.6
    half = size[1] // 2
    images[0::2, :, :half] += 0.35
    images[1::2, :, half:] += 0.35
    return (images * top).astype(dtype)


def write_png(path: Path, image: np.ndarray) -> Path:
    """Write [H, W, C] of 1, 3 or 4 channels in RGB(A) order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    assert cv2.imwrite(str(path), np.ascontiguousarray(image[:, :, order]))
    return path


def write_images(folder: Path, images: Sequence[np.ndarray]) -> list[tuple[Path, ...]]:
    """Write one PNG per image; return the paths of each row."""
    return [(write_png(folder / f"{row:04d}.png", image),) for row, image in enumerate(images)]


class ArrayImages:
    """Images that lie in memory."""

    def __init__(self, images: Sequence[np.ndarray], resize: Resize | None = None) -> None:
        self.images, self.resize = images, resize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.images[row] if self.resize is None else self.resize(self.images[row])
