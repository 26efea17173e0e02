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
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.images import decode
from kbench.data.listings import find_files, stem
from kbench.data.rows import Cells, MaskKind, MaskRows, Request, Size, file_problems
from kbench.errors import DataError
from kbench.registry import register
from kbench.tasks import IGNORED

__all__ = ["MaskKind"]


def one_file(request: Request, ids: np.ndarray, folder: str, *, suffix: str | None) -> MaskRows:
    """Find the one mask file of each row.

    Args:
        request: which rows.
        ids: [N] ids.
        folder: of the masks, below the root.
        suffix: what their names have after the id; None finds it.
    """
    found = find_files(request.root, folder, [stem(name) for name in ids], suffix=suffix)
    lacking, problems = file_problems(request, [found], ids)
    return MaskRows(tuple((path,) for path in found.paths), lacking, problems)


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

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        return one_file(request, ids, folder, suffix=suffix)

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
