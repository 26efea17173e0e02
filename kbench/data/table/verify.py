"""Look into every image of a table: can it be opened, and how large is it.

The quick way reads headers only; the deep one decodes every file as training will, with the competition's reader, and
so finds the truncated ones and those a reader does not take. Threads do the work, and only counts and names of files
are kept. Kinds of files are told in `kbench/data/images/headers.py`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from kbench.data.images.decoding import PLAIN, Decoding, decode, not_a_file, path_of
from kbench.data.images.headers import Damaged, read_header
from kbench.data.images.quiet import native_lines_muted
from kbench.data.images.readers import Reader
from kbench.data.table.reading import without
from kbench.data.table.table import Table
from kbench.errors import DataError, Problem, counted, first_names
from kbench.machine import cores
from kbench.sources import Progress

_LIKE = 200  # images that say how large one is that cannot be read
_BATCH = 64  # rows a thread takes at a time
UNKNOWN = "of no known image format"
Size = tuple[int, int, int]
"""Height, width and channels."""


@dataclass(frozen=True)
class Opening:
    """How a competition opens its files.

    Attributes:
        decoding: orientation and limit of images and masks.
        read: decodes the images of a row.
        headers: whether the header of a file tells what `read` gives; not where the reader is a plug-in's.
    """

    decoding: Decoding = PLAIN
    read: Reader | None = None
    headers: bool = True


@dataclass(frozen=True)
class ImageReport:
    """What a pass over all images found.

    Attributes:
        sizes: (height, width, channels) -> number of files.
        reasons: what is wrong -> paths, relative to the table's root.
        rows: row numbers with an unreadable image or mask.
        dtypes: element type of pixels -> paths of images.
        turned: paths of images that are turned upright while a mask of theirs is not.
        unlike: paths of other images whose mask is turned otherwise.
        paged: paths of files with pages or frames beyond the one that is read.
    """

    sizes: Counter[Size] = field(default_factory=Counter)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)
    dtypes: dict[str, list[str]] = field(default_factory=dict)
    turned: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    paged: list[str] = field(default_factory=list)

    def problems(self) -> list[Problem]:
        """Return one problem per kind of fault, with counts and the first names."""
        problems = [
            Problem("images", f"{counted(len(paths), 'file')} {reason}: {first_names(paths)}")
            for reason, paths in sorted(self.reasons.items())
        ]
        return [*problems, *dtype_problems({"": self})]

    def warnings(self) -> list[str]:
        """Return what may be right and may be wrong, for the user to decide."""
        unlike = f"{counted(len(self.unlike), 'image')} turned otherwise than their masks, as the files say: "
        return [*self._of_pages(), *self._of_turned(), *([unlike + first_names(self.unlike)] if self.unlike else [])]

    def _of_pages(self) -> list[str]:
        if not self.paged:
            return []
        what, have = counted(len(self.paged), "file"), "has" if len(self.paged) == 1 else "have"
        return [
            f"{what} {have} several pages or frames, of which the first alone is read: {first_names(self.paged)}; "
            "write the others as files of their own if they count"
        ]

    def _of_turned(self) -> list[str]:
        if not self.turned:
            return []
        what = counted(len(self.turned), "image")
        said = "is turned as its file says, and its mask is not" if len(self.turned) == 1 else (
            "are turned as their files say, and their masks are not"
        )  # fmt: skip
        return [
            f"{what} {said}: {first_names(self.turned)}; look at some (`kbench inspect`), and set "
            "`input: {orientation: ignore}` if masks were drawn on the pixels as they are stored"
        ]


def dtype_problems(reports: Mapping[str, ImageReport]) -> list[Problem]:
    """Return a problem where images have several element types, which no model takes together.

    Args:
        reports: name of a split -> its report; an empty name where there is only one.
    """
    by_dtype: dict[str, list[str]] = {}
    for split, report in reports.items():
        noun = f"{split} image" if split else "image"
        for dtype, paths in report.dtypes.items():
            by_dtype.setdefault(dtype, []).append(f"{counted(len(paths), noun)} such as '{paths[0]}'")
    if len(by_dtype) < 2:
        return []
    several = "; ".join(f"{dtype}: {' and '.join(places)}" for dtype, places in sorted(by_dtype.items()))
    return [Problem("images", f"pixels of {len(by_dtype)} element types: {several}", "convert them to one")]


def channel_warnings(train: ImageReport, test: ImageReport) -> list[str]:
    """Return a warning where all images of one split are grey and all of the other have colours."""
    splits = {"training": _channels(train), "test": _channels(test)}
    grey = [name for name, channels in splits.items() if channels and max(channels) == 1]
    colours = [name for name, channels in splits.items() if channels and min(channels) >= 3]
    if len(grey) != 1 or len(colours) != 1:
        return []
    return [
        f"all {colours[0]} images have colours, and all {grey[0]} images are grey: a network that looks at colours is "
        "lost on the others; `input: {channels: 1}` shows both in grey"
    ]


def _channels(report: ImageReport) -> set[int]:
    return {channels for _, _, channels in report.sizes if channels}


def unreadable_images(
    table: Table, *, progress: Progress, jobs: int | None = None, deep: bool = False
) -> list[Problem]:
    """Return one problem per kind of fault, with counts and the first names; see `look_at_images`."""
    return look_at_images(table, jobs=jobs, progress=progress, deep=deep).problems()


def image_sizes(table: Table, *, progress: Progress, jobs: int | None = None) -> Counter[Size]:
    """Return (height, width, channels) -> number of image files; see `look_at_images`."""
    return look_at_images(table, jobs=jobs, progress=progress).sizes


def look_at_images(
    table: Table, *, progress: Progress, jobs: int | None = None, deep: bool = False, opening: Opening | None = None
) -> ImageReport:
    """Open every image and mask of a table once.

    Args:
        table: the rows.
        progress: called with what is done, files done and files in all.
        jobs: number of threads; one per core by default.
        deep: decode the files too, as training does.
        opening: how the competition does; by default only headers and, where deep, whole files are looked at.
    """
    report, opening = ImageReport(), opening or Opening()
    total = sum(len(list(filter(None, paths))) for paths in [*table.images, *_mask_files(table)])
    done, work, jobs = 0, _batches(table), jobs or cores()
    with _quiet_pillow(), ThreadPoolExecutor(max_workers=jobs) as pool:
        while window := list(islice(work, jobs * 4)):  # so many batches are in memory, however many rows there are
            for rows, looks in zip(window, pool.map(partial(_look_at, table.root, deep, opening), window), strict=True):
                for row, looks_of_row in zip(rows, looks, strict=True):
                    _add(report, row, looks_of_row, masked=table.masks is not None)
                    done += len(looks_of_row)
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


@dataclass(frozen=True)
class _Row:
    """Paths of a row's images and masks, relative to the root; `paths` are those of its images as a reader takes them.

    Those of images that need not be there are empty.
    """

    number: int
    paths: tuple[str, ...]
    masks: tuple[str, ...]

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the images that are there."""
        return tuple(filter(None, self.paths))


def _batches(table: Table) -> Iterator[list[_Row]]:
    masks = _mask_files(table) or ((),) * len(table)
    rows = (_Row(number, paths, masks[number]) for number, paths in enumerate(table.images))
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _look_at(root: Path, deep: bool, opening: Opening, batch: Sequence[_Row]) -> list[list[Look | str]]:
    return [_look_at_row(root, deep, opening, row) for row in batch]


def _look_at_row(root: Path, deep: bool, opening: Opening, row: _Row) -> list[Look | str]:
    """Return what was found of a row's images, then of its masks."""
    whole = deep and opening.read is None
    images = [examined(root / path, deep=whole, decoding=opening.decoding) for path in row.images]
    if not opening.headers:  # only what no reader can read is a fault of the file
        images = [
            Look((0, 0, 0)) if look in (UNKNOWN, "damaged") or isinstance(look, Look) else look for look in images
        ]
    if deep and opening.read is not None and not any(isinstance(look, str) for look in images):
        images = _as_read(root, opening, row, [look for look in images if isinstance(look, Look)])
    return [*images, *(_look_at_mask(root / path, deep, opening) for path in row.masks)]


def _as_read(root: Path, opening: Opening, row: _Row, looks: list[Look]) -> list[Look | str]:
    """Return what the competition's reader makes of a row; what is wrong stands at each of its images."""
    assert opening.read is not None, "asked only where there is a reader"
    paths = row.images
    try:
        image = opening.read([path_of(root, path) for path in row.paths])
    except DataError as error:
        named = [f"'{root / path}'" in error.what for path in paths]
        if not opening.headers and len(paths) > 1 and any(named):  # the others are whole, as far as that is known
            whole = [examined(root / path, deep=True, decoding=opening.decoding) for path in paths]
            refused = f"that the reader refuses ({error.expected})"
            why = [reason if isinstance(reason, str) and reason != UNKNOWN else refused for reason in whole]
            return [reason if guilty else look for guilty, reason, look in zip(named, why, looks, strict=True)]
        reasons = [examined(root / path, deep=True, decoding=opening.decoding) for path in paths]
        if any(isinstance(reason, str) and reason != UNKNOWN for reason in reasons):
            return list(reasons)
        return [f"that the reader refuses ({error.expected})" for _ in paths]
    height, width, channels = image.shape
    if opening.headers and any(look.size[:2] != (height, width) for look in looks):
        return [f"of another size than decoding gives, {height} x {width}" for _ in paths]
    if opening.headers:
        return list(looks)
    return [Look((height, width, channels), image.dtype.name) for _ in paths]


def _look_at_mask(path: Path, deep: bool, opening: Opening) -> Look | str:
    look = examined(path, deep=deep and opening.read is None, decoding=opening.decoding)
    if not deep or opening.read is None or isinstance(look, str) or path.suffix.lower() == ".npy":
        return look
    try:
        decode(path, cv2.IMREAD_UNCHANGED, opening.decoding)
    except DataError as error:
        reason = examined(path, deep=True, decoding=opening.decoding)
        return reason if isinstance(reason, str) else f"that cannot be decoded ({error.expected})"
    return look


def _add(report: ImageReport, row: _Row, looks: Sequence[Look | str], *, masked: bool) -> None:
    """Add what was found of a row: its images, then its masks, which have the size of its first image."""
    images, masks = looks[: len(row.images)], looks[len(row.images) :]
    first = next((look for look in images if isinstance(look, Look)), None)
    for path, look in zip(row.images, images, strict=True):
        if isinstance(look, Look):
            report.sizes[look.size] += 1
            if look.dtype:
                report.dtypes.setdefault(look.dtype, []).append(path)
    for place, (path, look) in enumerate(zip((*row.images, *row.masks), looks, strict=True)):
        reason = look if isinstance(look, str) else ""
        if isinstance(look, Look) and look.pages:
            report.paged.append(path)
        if isinstance(look, Look) and place >= len(images) and first is not None and first.size[0]:
            reason = _mask_fault(look, first)
        if reason:
            report.reasons.setdefault(reason, []).append(path)
            report.rows.add(row.number)
    as_stored = [look for look in masks if isinstance(look, Look) and look.orientation == 1]
    if masked and first is not None and first.orientation > 1 and (as_stored or not row.masks):
        report.turned.append(row.images[0])
    elif any(isinstance(look, Look) and first is not None and look.orientation != first.orientation for look in masks):
        report.unlike.append(row.images[0])


def _mask_fault(mask: Look, image: Look) -> str:
    """Return what is wrong with the size of a mask; empty where it is that of its image."""
    if mask.size[:2] == image.size[:2]:
        return ""
    if image.orientation > 4 and mask.orientation == 1 and mask.size[:2] == image.size[1::-1]:
        return (
            f"of the size its image has as it is stored, and the image is turned (orientation {image.orientation}; "
            "`input: {orientation: ignore}` takes it as stored)"
        )
    return "of another size than its image"


def look(path: Path, *, deep: bool = False, decoding: Decoding = PLAIN) -> Size | str:
    """Return an image's height, width and channels, or in words what is wrong with the file.

    Headers are read, nothing is decoded: `.npy` through NumPy, the rest as `headers.py` knows them.

    Args:
        path: the file.
        deep: decode photographs too, and compare the places of a TIFF's pixels with the file's length.
        decoding: whether the size is that of the turned image, and how many pixels it may have.
    """
    look = examined(path, deep=deep, decoding=decoding)
    return look if isinstance(look, str) else look.size


@dataclass(frozen=True)
class Look:
    """What a file says of itself.

    Attributes:
        size: height, width and channels, as decoding gives them.
        dtype: of its pixels; empty where only decoding tells.
        orientation: how decoding turns it, as EXIF counts; 1 for not at all.
        pages: whether the file has more than the one that is read.
    """

    size: Size
    dtype: str = ""
    orientation: int = 1
    pages: bool = False


def examined(path: Path, *, deep: bool = False, decoding: Decoding = PLAIN) -> Look | str:
    """Return what `look` does, with the element type and whether the image is turned."""
    try:
        status = os.stat(path)
        if what := not_a_file(status.st_mode):
            return f"that is {what}"
        if status.st_size == 0:
            return "empty"
        if path.suffix.lower() == ".npy":
            return _look_at_array(path)
        return _look_at_image(path, deep, decoding)
    except FileNotFoundError:
        return "missing"
    except PermissionError:
        return "that may not be read"
    except (Damaged, OSError, SyntaxError, ValueError, EOFError, KeyError, struct.error, zlib.error) as error:
        reason = str(error).lower()
        cut = any(word in reason for word in ("truncated", "broken", "length is greater", "not enough"))
        return "truncated" if cut else "damaged"


def _look_at_image(path: Path, deep: bool, decoding: Decoding) -> Look | str:
    with open(path, "rb") as handle:
        header = read_header(handle)
        if header is None:
            return UNKNOWN
        if header.pixels > decoding.max_pixels:
            return f"with more than {decoding.max_pixels:,} pixels (input.max_pixels)"
        if deep and header.end > os.fstat(handle.fileno()).st_size:
            return "truncated"
    if deep and header.kind != "tiff" and (reason := _fault(path, decoding)):
        return reason
    orientation = header.orientation if decoding.turned(header) else 1
    return Look((*decoding.size(header), header.channels), header.dtype, orientation, header.pages)


def _fault(path: Path, decoding: Decoding) -> str:
    """Return in a word why a photograph cannot be decoded, which Pillow tells; empty where it can."""
    try:
        decode(path, cv2.IMREAD_UNCHANGED, decoding)
    except DataError:
        known = contextlib.suppress(UnidentifiedImageError, Image.DecompressionBombError)
        with native_lines_muted(), known, Image.open(path) as image:
            image.load()
        return "damaged"
    return ""


def _look_at_array(path: Path) -> Look | str:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3):
        return "of neither shape, [H, W] or [H, W, C]"
    height, width, channels = (*array.shape, 1)[:3]
    return Look((int(height), int(width), int(channels)), array.dtype.name)


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Let Pillow report by errors alone, and leave large images to `Decoding`; set and reset by one thread."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def stand_in_size(table: Table, row: int, decoding: Decoding) -> tuple[int, int]:
    """Return height and width for a row whose image cannot be read: what its head says, or most other rows have.

    Args:
        table: the rows, those that cannot be read marked.
        row: which.
        decoding: orientation and limit.

    Raises:
        DataError: no image of the table tells a size.
    """
    own = look(table.root / table.images[row][0], decoding=decoding)
    if not isinstance(own, str):
        return own[:2]
    gone = np.zeros(len(table), dtype=bool) if table.unreadable is None else table.unreadable
    others = [
        look(table.root / table.images[one][0], decoding=decoding) for one in np.flatnonzero(~gone)[:_LIKE].tolist()
    ]
    sizes = Counter(size[:2] for size in others if not isinstance(size, str))
    if not sizes:
        raise DataError(
            f"the image of '{table.ids[row]}' cannot be read, and no other one says how large it is",
            "an image of every row, or one at least", "fetch the files again (`kbench download --force`)",
        )  # fmt: skip
    return sizes.most_common(1)[0][0]
