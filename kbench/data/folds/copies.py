"""Images that stand in the data more than once: with other labels, or in the training and the test set.

Files are held against each other by their bytes, or by their pixels where something knows which grey pixels are equal
(`near_duplicates.hash_images`); equal grey is looked at again in colour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from kbench.data.images.decoding import decode
from kbench.data.table.csv_files import UNKNOWN
from kbench.data.table.spellings import plain
from kbench.data.table.table import Table
from kbench.errors import DataError, counted, first_names
from kbench.files import sha256

_SHOWN = 5


def equal_groups(table: Table, known: Sequence[str]) -> list[list[int]]:
    """Return groups of rows whose images are equal, among those of which something is known to be equal.

    Args:
        table: the rows.
        known: per row, a text that is equal where images may be; empty ones match nothing.
    """
    texts = np.array(known, dtype=bytes)
    order = np.argsort(texts, kind="stable")
    same = (texts[order][1:] == texts[order][:-1]) & (texts[order][1:] != b"")
    doubtful = np.zeros(len(texts), dtype=bool)
    doubtful[order[1:][same]] = doubtful[order[:-1][same]] = True
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in np.flatnonzero(doubtful).tolist():
        groups.setdefault(_pixels(table, row), []).append(row)
    return sorted(sorted(rows) for key, rows in groups.items() if len(rows) > 1 and key)


def _pixels(table: Table, row: int) -> tuple[str, ...]:
    """Return what tells the pixels of a row's images from others; nothing where one cannot be read."""
    digests = []
    for name in filter(None, table.images[row]):
        try:
            pixels = decode(table.root / name, cv2.IMREAD_UNCHANGED)
        except DataError:
            return ()
        state = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
        state.update(np.ascontiguousarray(pixels).tobytes())
        digests.append(state.hexdigest())
    return tuple(digests)


def contradictions(table: Table, groups: Iterable[list[int]]) -> list[str]:
    """Return a warning that names equal images whose targets differ; nothing when all agree.

    Args:
        table: training rows.
        groups: rows whose images are equal.
    """
    torn = []
    for rows in groups:
        targets = [_target(table, row) for row in rows]
        if len(set(targets)) > 1:
            torn.append(", ".join(f"'{table.ids[row]}' ({text})" for row, text in zip(rows, targets, strict=True)))
    if not torn:
        return []
    more = f"; and {len(torn) - _SHOWN:,} more" if len(torn) > _SHOWN else ""
    return [
        f"{counted(len(torn), 'image')} with two targets or more, under different ids: one is wrong, or all are "
        f"noise: {'; '.join(torn[:_SHOWN])}{more}"
    ]


def _target(table: Table, row: int) -> str:
    """Return a row's target in words; equal where targets are."""
    if table.targets is not None and table.targets.ndim == 1:
        return str(table.target_names[int(table.targets[row])])
    if table.targets is not None and table.task == "multi_label":
        values = table.targets[row]
        on = [name for name, value in zip(table.target_names, values, strict=True) if value == 1]
        unknown = [f"{name}?" for name, value in zip(table.target_names, values, strict=True) if np.isnan(value)]
        return " ".join([*on, *unknown]) or "no tag"
    if table.targets is not None:
        return ", ".join("?" if np.isnan(value) else f"{value:g}" for value in table.targets[row].tolist())
    if table.masks is None:
        return ""
    cells, root = table.masks[row], table.root
    written = cells if table.encoded else [sha256(root / cell) if (root / cell).is_file() else "" for cell in cells]
    return f"mask {hashlib.blake2b(chr(0).join(written).encode(), digest_size=3).hexdigest()}"


def same_files(train: Table, test: Table) -> list[tuple[int, int]]:
    """Return (training row, test row) of images that are the same, byte for byte; those of one size are opened."""
    sizes = [_sizes(table) for table in (train, test)]
    both = set(sizes[0]) & set(sizes[1]) - {()}
    first: dict[bytes, int] = {}
    for row, size in enumerate(sizes[0]):
        if size in both:
            first.setdefault(_content(train, row), row)
    rows = [row for row, size in enumerate(sizes[1]) if size in both]
    return sorted((first[key], row) for row in rows if (key := _content(test, row)) in first)


def _content(table: Table, row: int) -> bytes:
    """Return 16 bytes that tell the files of a row from others."""
    words = [sha256(table.root / name) if name else "" for name in table.images[row]]
    return hashlib.sha256(" ".join(words).encode()).digest()[:16]


def same_pixels(train: Table, test: Table, pixels: tuple[Sequence[str], Sequence[str]]) -> list[tuple[int, int]]:
    """Return (training row, test row) of images whose pixels are equal.

    Args:
        train: training rows.
        test: test rows.
        pixels: per row of each, a text that is equal where its grey pixels are; empty ones match nothing.
    """
    known: dict[str, int] = {}
    for row, text in enumerate(pixels[0]):
        known.setdefault(text, row)
    pairs = [(known[text], row) for row, text in enumerate(pixels[1]) if text and text in known]
    return [(one, other) for one, other in pairs if (looks := _pixels(train, one)) and looks == _pixels(test, other)]


def _sizes(table: Table) -> list[tuple[int, ...]]:
    """Return the sizes of the files of each row, one object for those of one size; nothing where one is no file."""
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    sizes = []
    for names in table.images:
        paths = [table.root / name for name in names if name]
        size = tuple(path.stat().st_size for path in paths) if all(path.is_file() for path in paths) else ()
        sizes.append(known.setdefault(size, size))
    return sizes


def leaked(train: Table, test: Table, pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Return a warning that names test images that are training images too; nothing when none is.

    Args:
        train: training rows.
        test: test rows.
        pairs: (training row, test row).
    """
    pairs = sorted(set(pairs))
    if not pairs:
        return []
    shown = ", ".join(f"'{test.ids[other]}' is '{train.ids[one]}'" for one, other in pairs[:_SHOWN])
    more = f" and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
    return [f"{counted(len(pairs), 'test image')} equal to a training image (a leak, or a gift): {shown}{more}"]


def unknown_groups(table: Table, column: str | None) -> list[str]:
    """Return a warning where rows without a group are held together as one; nothing where all have one.

    Args:
        table: training rows.
        column: name of the metadata column that groups them.
    """
    if column is None or table.meta is None or column not in table.meta.columns:
        return []
    cells = table.column(column)
    rows = np.array([plain(str(cell)) in UNKNOWN for cell in cells], dtype=bool)
    if not rows.any():
        return []
    words = sorted({str(cell) for cell in cells[rows]})
    return [
        f"{counted(int(rows.sum()), 'row')} have no '{column}' ({first_names(words)}) and are kept together as if they "
        f"were one group: {first_names([str(name) for name in table.ids[rows]])}"
    ]
