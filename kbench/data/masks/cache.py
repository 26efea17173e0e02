"""Masks of a table's rows, read like images: decoded once into the same kind of memory-mapped cache.

A mask is held against the size of its image before it is used. Masks are resized as their images are, taking the
nearest pixel of classes, and interpolating numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kbench import files
from kbench.data.images.cache import Images, Progress, Resize, cached, content_key
from kbench.data.images.decoding import PLAIN, Decoding, is_there, path_of
from kbench.data.images.readers import Reader, size_by
from kbench.data.images.shown_masks import shown_mask
from kbench.data.table.reading import MaskKind, Size
from kbench.data.table.table import Table
from kbench.data.table.verify import look
from kbench.errors import DataError, FoldError, KbenchError, Problem
from kbench.tasks import SEGMENTATION

_SHOWN = 10  # rows with a wrong mask that are named
_VERSION = 3  # of the pixels a key stands for; raise it when reading masks changes


class DirectMasks:
    """Masks decoded each time they are asked for.

    Args:
        table: rows with masks.
        kind: reads them.
        size_of: row -> height and width of its image.
        resize: as the images are resized.
    """

    def __init__(self, table: Table, kind: MaskKind, size_of: Callable[[int], Size], resize: Resize) -> None:
        assert table.masks is not None, "asked only for rows with masks"
        self._root, self._images, self._masks = table.root, table.images, table.masks
        self._kind, self._size_of, self._resize = kind, size_of, resize

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, row: int) -> np.ndarray:
        size = self._size_of(row)
        mask = self._kind.read(self._root, self._masks[row], lambda: size)
        if mask.shape[:2] != size:
            raise DataError(
                f"the mask of '{next(filter(None, self._images[row]))}' is {mask.shape[0]} x {mask.shape[1]} pixels",
                f"the {size[0]} x {size[1]} pixels of its image",
                "`kbench check` lists every such mask; correct data.masks in the YAML or the files",
            )
        return shown_mask(self._resize, mask)


def open_masks(
    table: Table,
    *,
    kind: MaskKind,
    kind_key: Any,
    size_of: Callable[[int], Size],
    resize: Resize,
    folder: Path,
    mode: Literal["auto", "on", "off"],
    progress: Progress,
) -> Images:
    """Return the masks of a table's rows, from the cache where there is room for it.

    Args:
        table: rows with masks.
        kind: reads them.
        kind_key: JSON-like description of the kind.
        size_of: row -> height and width of its image.
        resize: as the images are resized; nearest pixels of classes.
        folder: the cache folder.
        mode: `auto` caches when the masks need less than half of the free disk.
        progress: called as `progress(done, total)` while the cache is built.

    Returns:
        Arrays as in `kinds.py`, by row.
    """

    def make() -> DirectMasks:
        return DirectMasks(table, kind, size_of, resize)

    if mode == "off" or table.masks is None or not len(table):
        return make()
    written: Any = table.masks
    if not kind.encoded:
        written = content_key([tuple(table.root / cell for cell in cells if cell) for cells in table.masks], folder)
        written = [written, [[bool(cell) for cell in cells] for cells in table.masks]]
    key = files.digest(["mask", _VERSION, written, kind_key, kind.names, kind.facts, resize.key, _sizes(table, folder)])
    return cached(make, key=key, resize=resize, folder=folder, mode=mode, progress=progress)


def _sizes(table: Table, folder: Path) -> str:
    """Return what the sizes of the images depend on."""
    rows = [tuple(path_of(table.root, name) for name in paths) for paths in table.images]
    several = any(len(paths) > 1 and not is_there(paths[0]) for paths in rows)
    return content_key(rows if several else [paths[:1] for paths in rows], folder)


def sizes_of(table: Table, reader: Reader | None, decoding: Decoding = PLAIN) -> Callable[[int], Size]:
    """Return row -> height and width of its image.

    Args:
        table: the rows.
        reader: decodes a row; None where the header of its first file tells.
        decoding: whether that is the size of the turned image.
    """

    def size(row: int) -> Size:
        paths = tuple(path_of(table.root, name) for name in table.images[row])
        if reader is None:
            header = look(paths[0], decoding=decoding)
            if isinstance(header, str):
                raise DataError(
                    f"'{paths[0]}' is {header}, so the size of its mask is not known", "an image file",
                    "`kbench check` lists every such file; fetch it again, or set `data: {on_problem: drop}`",
                )  # fmt: skip
            return header[0], header[1]
        return size_by(reader, paths)

    return size


@dataclass(frozen=True)
class MaskReport:
    """What reading every mask once found.

    Attributes:
        problems: what is wrong, each fault with the first rows that have it.
        images: class -> number of images that show it, of those that could be read; none for a regression.
        rows: numbers of the rows with a wrong mask.
    """

    problems: list[Problem]
    images: dict[str, int]
    rows: list[int]


def look_at_masks(
    table: Table, *, kind: MaskKind, size_of: Callable[[int], Size], progress: Progress, jobs: int = 1
) -> MaskReport:
    """Read every mask once.

    Args:
        table: rows with masks.
        kind: reads them.
        size_of: row -> height and width of its image.
        progress: called as `progress(done, total)`.
        jobs: number of threads.
    """
    direct = DirectMasks(table, kind, size_of, Resize("keep", 0, 0))

    def look_at(row: int) -> KbenchError | np.ndarray:
        try:
            return _shown(direct[row], len(kind.names))
        except KbenchError as error:
            return error

    problems, bad, images = list[Problem](), list[int](), np.zeros(len(kind.names), dtype=np.int64)
    with ThreadPoolExecutor(jobs) as pool:
        for row, look in enumerate(pool.map(look_at, range(len(direct)))):
            progress(row + 1, len(direct))
            if isinstance(look, KbenchError):
                bad.append(row)
                hint = "" if problems else look.todo
                problems += (
                    [Problem(f"data.masks: row '{table.ids[row]}'", look.what, hint)] if len(bad) <= _SHOWN else []
                )
            else:
                images += look
    if len(bad) > len(problems):
        problems.append(Problem("data.masks", f"and {len(bad) - len(problems):,} more rows with a wrong mask"))
    counts = {} if table.task not in SEGMENTATION else dict(zip(kind.names, images.tolist(), strict=True))
    return MaskReport(problems, counts, bad)


def _shown(mask: np.ndarray, count: int) -> np.ndarray:
    """Return [K] bool, which classes a mask shows; of numbers none."""
    if mask.dtype.kind == "f":
        return np.zeros(count, dtype=bool)
    if mask.shape[2] == count:
        return np.asarray((mask == 1).any(axis=(0, 1)))
    return np.isin(np.arange(count), mask)


def images_with_text(table: Table, kind: MaskKind) -> dict[str, int]:
    """Return class -> number of images with a text of it, where masks are texts; nothing where they are files."""
    if not kind.encoded or table.masks is None:
        return {}
    wanted = [(k, name) for k, name in enumerate(kind.names) if k != kind.background]
    return {name: sum(bool(cells[k]) for cells in table.masks) for k, name in wanted}


def coverage(
    table: Table, *, kind: MaskKind, size_of: Callable[[int], Size], progress: Progress, jobs: int = 1
) -> np.ndarray:
    """Return [N] text, how much of each image its one class covers: `00` nothing, `01` to `10` by tenths; to balance.

    Args:
        table: rows with masks of one class.
        kind: reads them.
        size_of: row -> height and width of its image.
        progress: called as `progress(done, total)`.
        jobs: number of threads.

    Raises:
        FoldError: there are several classes.
    """
    if len(kind.names) != 1 or table.masks is None:
        raise FoldError(
            f"`by: [coverage]` with {len(kind.names)} classes", "masks of one class",
            "write metadata columns, or use `strategy: kfold`",
        )  # fmt: skip
    direct, tenths = DirectMasks(table, kind, size_of, Resize("keep", 0, 0)), []
    with ThreadPoolExecutor(jobs) as pool:
        for row, mask in enumerate(pool.map(direct.__getitem__, range(len(direct)))):
            tenths.append(math.ceil(10 * float((mask == 1).mean())))
            progress(row + 1, len(direct))
    return np.array([f"{tenth:02d}" for tenth in tenths])
