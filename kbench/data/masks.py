"""Masks: the targets of dense tasks, however a competition writes them.

A mask kind is a registered factory that returns a `MaskKind`: how the cells of a row are found and how they become an
array. Whatever the writing, the array of a row has the size of its image and is

    segmentation, two classes or more   [H, W, 1] uint8 class index, 255 where ignored
    segmentation of one class           [H, W, 1] uint8 0 or 1, 255 where ignored
    multi_label_segmentation            [H, W, K] uint8 0 or 1 per class, 255 where ignored
    dense_regression                    [H, W, K] float32 target units, NaN where unknown

To add a way masks are written, write a factory here with `@register("mask")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.images import decode
from kbench.data.listings import find_files, stem
from kbench.data.rows import Request
from kbench.errors import DataError, Problem, counted, first_names
from kbench.registry import register
from kbench.tasks import IGNORED

Size = tuple[int, int]
Cells = tuple[str, ...]


@dataclass(frozen=True)
class MaskKind:
    """How a competition writes its masks.

    Attributes:
        names: K class names (or names of dense targets) in the order of the outputs.
        find: (request, rows of the CSV sorted by id, ids) -> the cells of each row (paths below the root, or encoded
            texts), and the problems.
        read: (root, cells of a row, size of its image asked for when it is needed) -> the row's array as above.
    """

    names: tuple[str, ...]
    find: Callable[[Request, pd.DataFrame, np.ndarray], tuple[tuple[Cells, ...], list[Problem]]]
    read: Callable[[Path, Cells, Callable[[], Size]], np.ndarray]


@register("mask", tasks=("segmentation",))
def index(
    *, folder: str, suffix: str | None = None, ignore: list[int] | None = None, _classes: Sequence[str] = ()
) -> MaskKind:
    """Read images whose pixel values are class numbers.

    Args:
        folder: of the mask images.
        suffix: what their names have after the id, such as `_mask.png`; found by default.
        ignore: pixel values that are neither trained on nor scored.
        _classes: `data.classes`.
    """
    names = tuple(_classes)
    table = np.full(256, IGNORED, dtype=np.uint8)
    table[: len(names)] = np.arange(len(names), dtype=np.uint8)
    known = np.zeros(256, dtype=bool)
    known[: len(names)] = True
    for value in ignore or ():
        table[value], known[value] = IGNORED, True

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> tuple[tuple[Cells, ...], list[Problem]]:
        found = find_files(request.root, folder, [stem(name) for name in ids], suffix=suffix)
        missing = [found.paths[row] for row in found.missing]
        problems = [
            Problem("data.masks", f"{counted(len(missing), 'missing mask')}: {first_names(missing)}", found.example)
        ]
        return tuple((path,) for path in found.paths), problems if missing else []

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        import cv2

        values = decode(root / cells[0], cv2.IMREAD_UNCHANGED)
        strange = np.setdiff1d(np.unique(values), np.flatnonzero(known))
        if values.shape[2] != 1 or len(strange):
            raise DataError(
                f"the mask '{cells[0]}' has {values.shape[2]} channels and the values {strange.tolist()[:8]}",
                f"one channel with class numbers from 0 to {len(names) - 1}, or those of `ignore`",
                "correct data.classes or data.masks.ignore in the YAML, or name another mask kind",
            )
        return np.asarray(table[values])

    return MaskKind(names, find, read)
