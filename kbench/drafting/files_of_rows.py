"""Rows of several files, told by their names: `<id>_<file>.tif`, or one for each date, `<id>_<file>_<date>.tif`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.images.headers import Damaged, read_header
from kbench.data.table.image_files import Listing

_NAME = re.compile(
    r"_(?P<file>[A-Za-z][A-Za-z0-9]*)(?:_(?P<date>[0-9][A-Za-z0-9-]*))?(?P<ending>\.tiff?)", re.IGNORECASE
)
_TARGET = re.compile(r"(?:_[A-Za-z][A-Za-z0-9]*)?\.tiff?", re.IGNORECASE)
_ANSWERS = re.compile(r"mask|target|label|agbm|annotation", re.IGNORECASE)
_PROBE = 200  # ids that are looked for


@dataclass(frozen=True)
class SeveralFiles:
    """The files of rows.

    Attributes:
        folder: they lie in.
        id: column of the table that names them.
        files: name of each file -> its pattern, with `{id}` and `{date}`.
        dates: in order; none where names have none.
        bands: name of each file -> how many bands one of them has.
        size: height, width and bands of the largest of them.
        targets: (folder, suffix) of target images of numbers, or None.
    """

    folder: str
    id: str
    files: dict[str, str]
    dates: tuple[str, ...]
    bands: dict[str, int]
    size: tuple[int, int, int]
    targets: tuple[str, str] | None = None


def several_files(root: Path, folders: Sequence[str], frame: pd.DataFrame) -> SeveralFiles | None:
    """Return the files of a table's rows where each has several, else None.

    Args:
        root: the data folder.
        folders: with images, below it.
        frame: the table, text cells.
    """
    for column in map(str, frame.columns):
        ids = [str(name) for name in frame[column].head(_PROBE) if str(name)]
        for folder in folders:
            names = Listing(root / folder).names()
            parts = {(match["file"], match["date"], match["ending"]): name for one in ids for name in _of(one, names)
                     if (match := _NAME.fullmatch(name[len(one) :]))}  # fmt: skip
            files = list(dict.fromkeys(sorted(file for file, _, _ in parts)))
            if len(parts) < 2 or len(ids) < 2:
                continue
            made = _described(root / folder, parts, files)
            if made is not None:
                patterns, dates, bands, size = made
                targets = _targets(root, [other for other in folders if other != folder], ids)
                return SeveralFiles(folder, column, patterns, dates, bands, size, targets)
    return None


def folder_of_test(root: Path, folders: Sequence[str], found: SeveralFiles, ids: Sequence[str]) -> str | None:
    """Return the folder of the test rows' files, which are called like those of the training rows."""
    date = found.dates[0] if found.dates else ""
    wanted = [pattern.replace("{date}", date) for pattern in found.files.values()]
    for folder in folders:
        names = Listing(root / folder).names()
        if any(pattern.replace("{id}", str(one)) in names for one in ids[:_PROBE] for pattern in wanted):
            return folder
    return None


def _of(one: str, names: set[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{one}_")]


def _described(
    folder: Path, parts: dict[tuple[str, str | None, str], str], files: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...], dict[str, int], tuple[int, int, int]] | None:
    patterns, bands, sizes = dict[str, str](), dict[str, int](), list[tuple[int, int, int]]()
    dates = sorted({date for _, date, _ in parts if date is not None})
    for file in files:
        own = [(date, ending, name) for (one, date, ending), name in parts.items() if one == file]
        dated = any(date is not None for date, _, _ in own)
        patterns[file] = "{id}_" + file + ("_{date}" if dated else "") + own[0][1]
        try:
            with open(folder / own[0][2], "rb") as handle:
                header = read_header(handle)
        except (OSError, Damaged):
            return None
        if header is None:
            return None
        bands[file] = header.channels
        sizes.append((header.height, header.width, header.channels))
    return patterns, tuple(dates), bands, max(sizes)


def _targets(root: Path, folders: Sequence[str], ids: Sequence[str]) -> tuple[str, str] | None:
    """Return the folder of one floating-point image for each id, and what its name has behind the id."""
    for folder in folders:
        names = Listing(root / folder).names()
        endings = {name[len(one) :] for one in ids for name in names if name.startswith(one)}
        if not _ANSWERS.search(folder) or len(endings) != 1 or not _TARGET.fullmatch(ending := endings.pop()):
            continue
        example = next(name for name in sorted(names) if name.endswith(ending))
        try:
            with open(root / folder / example, "rb") as handle:
                header = read_header(handle)
        except (OSError, Damaged):
            continue
        if header is not None and header.dtype and np.dtype(header.dtype).kind == "f":
            return folder, ending
    return None
