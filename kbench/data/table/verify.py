"""Look into every image of a table: can it be opened, and how large is it.

The quick way reads headers only; the deep one decodes every file and so finds the truncated ones. Threads do
the work, and only counts and the names of bad files are kept. To support another kind of file, add a branch to
`look`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from kbench.data.table.reading import without
from kbench.data.table.table import Table
from kbench.errors import Problem, counted, first_names
from kbench.machine import cores
from kbench.sources import Progress

_BATCH = 64  # files a thread takes at a time
_MOST_PIXELS = 1 << 30  # OpenCV's own limit
_ORIENTATION = 0x112
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
Size = tuple[int, int, int]
"""Height, width and channels."""


@dataclass(frozen=True)
class ImageReport:
    """What a pass over all images found.

    Attributes:
        sizes: (height, width, channels) -> number of files.
        reasons: what is wrong -> paths, relative to the table's root.
        rows: row numbers with an unreadable image or mask.
    """

    sizes: Counter[Size] = field(default_factory=Counter)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)


def unreadable_images(
    table: Table, *, progress: Progress, jobs: int | None = None, deep: bool = False
) -> list[Problem]:
    """Return one problem per kind of fault, with counts and the first names; see `look_at_images`."""
    report = look_at_images(table, jobs=jobs, progress=progress, deep=deep)
    return [
        Problem("images", f"{counted(len(paths), 'file')} {reason}: {first_names(paths)}")
        for reason, paths in sorted(report.reasons.items())
    ]


def image_sizes(table: Table, *, progress: Progress, jobs: int | None = None) -> Counter[Size]:
    """Return (height, width, channels) -> number of image files; see `look_at_images`."""
    return look_at_images(table, jobs=jobs, progress=progress).sizes


def look_at_images(table: Table, *, progress: Progress, jobs: int | None = None, deep: bool = False) -> ImageReport:
    """Open every image and mask of a table once.

    Args:
        table: the rows.
        progress: called with what is done, files done and files in all.
        jobs: number of threads; one per core by default.
        deep: decode the files too, which finds truncated ones.
    """
    report, shapes = ImageReport(), dict[int, Size]()
    total = sum(len(paths) for paths in [*table.images, *_mask_files(table)])
    done, work, jobs = 0, _batches(table), jobs or cores()
    with _quiet_pillow(), ThreadPoolExecutor(max_workers=jobs) as pool:
        while window := list(islice(work, jobs * 4)):  # so many batches are in memory, however many rows there are
            for batch, looks in zip(window, pool.map(partial(_look_at, table.root, deep), window), strict=True):
                _add(report, batch, looks, shapes)
                done += len(batch)
                progress("check images", done, total)
    return report


def without_unreadable(table: Table, report: ImageReport) -> Table:
    """Return the rows whose images can be read, with a note that names the others."""
    bad = np.zeros(len(table), dtype=bool)
    bad[sorted(report.rows)] = True
    return without(table, bad, "with an unreadable image")


def _mask_files(table: Table) -> tuple[tuple[str, ...], ...]:
    """Return the mask files of each row; nothing where masks are no files."""
    if table.encoded or table.masks is None:
        return ()
    return tuple(tuple(filter(None, cells)) for cells in table.masks)


def _batches(table: Table) -> Iterator[list[tuple[int, str, bool]]]:
    """Yield lists of (row number, path, whether it is an image rather than a mask)."""
    masks = _mask_files(table) or ((),) * len(table)
    files = (
        item
        for row, paths in enumerate(table.images)
        for item in [*((row, path, True) for path in paths), *((row, path, False) for path in masks[row])]
    )
    while batch := list(islice(files, _BATCH)):
        yield batch


def _look_at(root: Path, deep: bool, batch: Sequence[tuple[int, str, bool]]) -> list[Size | str]:
    return [look(root / path, deep=deep) for _, path, _ in batch]


def _add(
    report: ImageReport, batch: Sequence[tuple[int, str, bool]], looks: Sequence[Size | str], shapes: dict[int, Size]
) -> None:
    """Add what was found; `shapes` has the size of the last row's image, since a row's masks follow its images."""
    for (row, path, is_image), found in zip(batch, looks, strict=True):
        reason = found if isinstance(found, str) else ""
        if isinstance(found, str):
            pass
        elif is_image:
            report.sizes[found] += 1
            if row not in shapes:
                shapes.clear()
                shapes[row] = found
        elif row in shapes and found[:2] != shapes[row][:2]:
            reason = "of another size than its image"
        if reason:
            report.reasons.setdefault(reason, []).append(path)
            report.rows.add(row)


def look(path: Path, *, deep: bool) -> Size | str:
    """Return an image's height, width and channels, or in words what is wrong with the file.

    Photographs go through Pillow, `.npy` through NumPy. TIFFs, which have kinds no one library knows, are held
    against their own directory; `deep` compares the places of their strips or tiles with the file's length.

    Args:
        path: the file.
        deep: decode it too.
    """
    try:
        if os.path.getsize(path) == 0:
            return "empty"
        if path.suffix.lower() == ".npy":
            return _look_at_array(path)
        return _look_at_image(path, deep)
    except FileNotFoundError:
        return "missing"
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, struct.error, zlib.error) as error:
        reason = str(error).lower()
        cut = any(word in reason for word in ("truncated", "broken", "length is greater", "not enough"))
        return "truncated" if cut else "damaged"


def _look_at_image(path: Path, deep: bool) -> Size | str:
    with open(path, "rb") as handle:
        if handle.read(4) in _TIFF:
            return _look_at_tiff(handle, deep)
    try:
        with Image.open(path) as image:
            if deep and image.height * image.width > _MOST_PIXELS:
                return f"with more than {_MOST_PIXELS:,} pixels"
            if deep:
                image.load()
            channels = 3 if image.mode == "P" else len(image.getbands())
            lying = channels != 4 and image.getexif().get(_ORIENTATION, 1) > 4  # decoders turn it upright
            return *((image.width, image.height) if lying else (image.height, image.width)), channels
    except UnidentifiedImageError:
        return "of no known image format"


def _look_at_tiff(handle: IO[bytes], deep: bool) -> Size | str:
    handle.seek(0)
    head = handle.read(16)
    directory = TiffImagePlugin.ImageFileDirectory_v2(head if 43 in head[2:4] else head[:8])
    handle.seek(directory.next)
    directory.load(handle)
    offsets = directory.get(TiffImagePlugin.STRIPOFFSETS) or directory.get(TiffImagePlugin.TILEOFFSETS) or ()
    counts = directory.get(TiffImagePlugin.STRIPBYTECOUNTS) or directory.get(TiffImagePlugin.TILEBYTECOUNTS) or ()
    end = max((offset + count for offset, count in zip(offsets, counts, strict=True)), default=0)
    if deep and end > os.fstat(handle.fileno()).st_size:
        return "truncated"
    height, width = directory[TiffImagePlugin.IMAGELENGTH], directory[TiffImagePlugin.IMAGEWIDTH]
    return int(height), int(width), int(directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))


def _look_at_array(path: Path) -> Size | str:
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    if len(shape) not in (2, 3):
        return "of neither shape, [H, W] or [H, W, C]"
    return int(shape[0]), int(shape[1]), int(shape[2]) if len(shape) == 3 else 1


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Let Pillow report by errors alone, and leave large images to `_MOST_PIXELS`; set and reset by one thread."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
