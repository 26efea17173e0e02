"""Masks as files with an image each, read the way a competition's table and mask kind do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from drawn_images import write_png

from kbench import registry
from kbench.data.images.cache import Resize
from kbench.data.masks.cache import DirectMasks, sizes_of
from kbench.data.table.layouts import read_table
from kbench.data.table.reading import MaskKind, Request
from kbench.data.table.table import Table

KEEP = Resize("keep", 0, 0)


def table_of(root: Path, kind: MaskKind, *, task: str = "segmentation", **request: Any) -> Table:
    given = {"images": ("i",), **request}
    return read_table("csv", {}, Request(root=root, split="train", task=task, mask=kind, **given))


def masks_of(root: Path, kind: MaskKind, *, task: str = "segmentation", **request: Any) -> list[np.ndarray]:
    table = table_of(root, kind, task=task, **request)
    direct = DirectMasks(table, kind, sizes_of(table, None), KEEP)
    return [direct[row] for row in range(len(table))]


def write(root: Path, name: str, pixels: Any, *, folder: str = "m", image: bool = True) -> None:
    """Write a mask and an image of its size."""
    pixels = np.asarray(pixels)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    write_png(root / folder / f"{name}.png", pixels)
    if image:
        write_png(root / "i" / f"{name}.png", np.zeros((*pixels.shape[:2], 3), dtype=np.uint8))


def layers(kind: str, **params: Any) -> MaskKind:
    return registry.build("mask", kind, {key: value for key, value in params.items() if key[0] != "_"},
                          **{key: value for key, value in params.items() if key[0] == "_"})  # fmt: skip
