"""What the formats of masks share: which rows a sample asks for, and that what is written is what was predicted.

Their rows hold one encoded mask per cell, so that only one decoded mask is in memory. `build_cells` decodes every cell
it has made and compares it with the mask; who writes a submission reads the file back and compares the cells. To add
such a format, see `base.py`; `run_lengths.py` is the shortest one. Files of many masks that are no CSV (a JSON object
by image, a zip of images) are read one image at a time; to read another kind of file, add a function here;
`check.read_sample` says which endings it knows.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import texts
from kbench.errors import ConfigError, Problem, SubmissionError, first_names, nearest, raise_all
from kbench.inference.map_store import MaskSet, NumberSet
from kbench.submission.formats.base import framed, id_column, near_id
from kbench.tasks import IGNORED, exclusive

Size = tuple[int, int]
Sizes = Callable[[str], Size]
CELL = "mask"  # column of the encoded masks where the file is no CSV


def chosen_names(classes: Sequence[str] | None, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes a format writes: all, or those of `submission.format.classes`.

    Raises:
        ConfigError: one of them is no class of the competition.
    """
    strange = [name for name in classes or () if name not in names]
    if strange:
        raise ConfigError(
            f"submission.format.classes names {first_names(strange)}",
            f"some of {first_names(list(names), 30)}",
            nearest(strange[0], names),
        )
    return tuple(names) if classes is None else tuple(classes)


def no_sizes(name: str) -> Size:
    """Refuse to decode what only the image says the size of."""
    raise ConfigError(
        f"the size of the image '{name}' is not known here",
        "a competition whose test images are at hand",
        "`kbench download`, and `data: {test: {images: FOLDER}}` in the YAML",
    )


def lacking(ids: Sequence[str], masks: MaskSet | NumberSet, *, where: str) -> list[Problem]:
    """Return a problem when some images are not predicted."""
    missing = [name for name in ids if not len(masks) or not _has(masks.ids, name)]
    if not missing:
        return []
    what = f"{len(missing):,} of {len(ids):,} images are not predicted: {first_names(missing)}"
    return [Problem(where, what, near_id(missing[0], masks.ids) if len(masks) else "")]


def _has(ids: np.ndarray, name: str) -> bool:
    return bool(ids[min(int(np.searchsorted(ids, name)), len(ids) - 1)] == name)


def refuse_maps(problems: Sequence[Problem]) -> None:
    """Raise one error that says all that keeps maps from being written; do nothing when there is nothing.

    Raises:
        SubmissionError: there are problems.
    """
    raise_all(
        problems[:20], error=SubmissionError, subject="the predictions do not cover the sample submission",
        expected="a prediction for every image, and a class or target for every row, that the sample asks for",
        todo="`kbench predict` makes them; data.classes and submission.format in the YAML say how they are written",
    )  # fmt: skip


def check_written(name: str, mask: np.ndarray, read: np.ndarray) -> None:
    """Hold a mask that was decoded again against the one that was encoded.

    Raises:
        SubmissionError: they differ.
    """
    if mask.shape != read.shape or not np.array_equal(mask, read):
        differ = int((mask != read).sum()) if mask.shape == read.shape else mask.size
        raise SubmissionError(
            f"the mask of '{name}' is not what its encoding says: {differ:,} pixels differ",
            "a mask that is the same after encoding and decoding",
            "look at submission.format in the YAML: classes, colours and values must be apart",
        )


def build_cells(
    masks: MaskSet,
    sample: pd.DataFrame,
    written: Sequence[str],
    *,
    image_of: Callable[[str], str],
    encode: Callable[[np.ndarray], Any],
    decode: Callable[[Any, np.ndarray], np.ndarray],
) -> pd.DataFrame:
    """Return a file's rows with one encoded mask per image of the sample, each decoded again and compared.

    Args:
        masks: the predictions.
        sample: the sample submission.
        written: the classes that are written.
        image_of: what a row of the sample is called -> the image's id.
        encode: mask, as `shown` has it -> cell.
        decode: (cell, a mask of the same shape) -> mask.

    Raises:
        SubmissionError: an image or a class is missing, or a mask is not what its cell says.
    """
    ids = texts(sample, id_column(sample)).tolist()
    absent = [name for name in written if name not in masks.names]
    problems = lacking([image_of(name) for name in ids], masks, where=id_column(sample))
    problems += [Problem("classes", f"the masks have no class {first_names(absent)}")] if absent else []
    refuse_maps(problems)
    chosen = [masks.names.index(name) for name in written]
    cells = np.empty(len(ids), dtype=object)
    for row, name in enumerate(ids):
        mask = shown(masks, int(np.searchsorted(masks.ids, image_of(name))), chosen)
        cells[row] = encode(mask)
        check_written(name, mask, decode(cells[row], mask))
    return framed(sample, {CELL: cells})


def shown(masks: MaskSet, row: int, written: Sequence[int]) -> np.ndarray:
    """Return a row's mask with only the written classes: [H, W] uint8, 255 elsewhere, or [k, H, W] 0 and 1.

    Args:
        masks: the masks.
        row: which.
        written: the classes' numbers among the names of the masks; they are numbered from 0 in the result.
    """
    mask = masks[row]
    if not exclusive(masks.task, len(masks.names)):
        return np.asarray(mask[list(written)] != 0).astype(np.uint8)
    renamed = np.full(IGNORED + 1, IGNORED, dtype=np.uint8)
    renamed[list(written)] = np.arange(len(written), dtype=np.uint8)
    return np.asarray(renamed[mask])


def read_masks(
    ids: Sequence[str], written: Sequence[str], read: Callable[[str], np.ndarray], *, names: Sequence[str], task: str
) -> MaskSet:
    """Return the masks of a file.

    Where it holds all of a competition's exclusive classes, a pixel of no class is one that is ignored. Where it holds
    some of them, such a pixel is of another class, so the file is read as layers.

    Args:
        ids: of the images, in any order.
        written: the classes of the file.
        read: image id -> mask, as `shown` has it.
        names: the competition's classes.
        task: its task.
    """
    order = np.array(sorted(ids), dtype=str)
    whole = tuple(written) == tuple(names)
    if whole or not exclusive(task, len(names)):
        return MaskSet(order, tuple(written), task, {"file": True}, lambda row: read(str(order[row])))

    def layers(row: int) -> np.ndarray:
        mask = read(str(order[row]))
        return np.asarray(mask[None] == np.arange(len(written))[:, None, None]).astype(np.uint8)

    return MaskSet(order, tuple(written), "multi_label_segmentation", {"file": True}, layers)


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of a JSON object in a file; only one value is in memory at a time.

    Raises:
        SubmissionError: the file is missing, is no JSON object, or has a key twice.
    """
    try:
        yield from _members(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error), "a JSON object with one key per image") from error


def _members(text: str) -> Iterator[tuple[str, Any]]:
    decoder, seen = json.JSONDecoder(object_pairs_hook=_no_key_twice), set()
    place = _after(text, 0, "{")
    if text[place : place + 1] == "}":
        return _end(text, place + 1)
    while True:
        key, place = decoder.raw_decode(text, place)
        if not isinstance(key, str) or key in seen:
            raise ValueError(f"the key {key!r} stands twice" if isinstance(key, str) else f"{key!r} is no key")
        seen.add(key)
        value, place = decoder.raw_decode(text, _after(text, _skip(text, place), ":"))
        yield key, value
        place = _skip(text, place)
        if text[place : place + 1] == "}":
            return _end(text, place + 1)
        place = _after(text, place, ",")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"a key stands twice among {first_names([key for key, _ in pairs])}")
    return content


def _skip(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


def _after(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != sign:
        raise ValueError(f"'{sign}' expected at character {place:,}")
    return _skip(text, place + 1)


def _end(text: str, place: int) -> None:
    if _skip(text, place) < len(text):
        raise ValueError(f"text after the object, at character {place:,}")


def keys_of(path: Path) -> list[str]:
    """Return the keys of a JSON object in a file."""
    return [key for key, _ in members(path)]


_TIME = (1980, 1, 1, 0, 0, 0)  # the same contents give the same bytes


def zipped(parts: Iterable[tuple[str, bytes]], *, compress: bool = False) -> Iterator[bytes]:
    """Yield a zip of names and contents in their order, piece by piece; one content is in memory at a time.

    Args:
        parts: names, each once, with contents.
        compress: whether contents are; those of images are already.
    """
    window = _Window()
    with zipfile.ZipFile(window, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in parts:
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = archive.compression
            archive.writestr(info, content)
            yield window.passed()
    yield window.passed()


class _Window(io.BytesIO):
    """The end of a file whose beginning was passed on: a zip returns to the head of what it is writing, no further."""

    def __init__(self) -> None:
        super().__init__()
        self._start = 0

    def tell(self) -> int:
        return self._start + super().tell()

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "as a zip seeks"
        return self._start + super().seek(place - self._start)

    def passed(self) -> bytes:
        """Return what was written since the last time."""
        content = self.getvalue()
        self._start += len(content)
        super().seek(0)
        self.truncate()
        return content


def opened_zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Return the names of a zip's files and the function that reads one; the zip is open as long as that is there.

    Raises:
        SubmissionError: it is missing, damaged, or has a name twice; reading a damaged file raises it too.
    """
    names = names_in(path)
    archive = zipfile.ZipFile(path)

    def read(name: str) -> bytes:
        with _readable(path):
            return archive.read(name)

    return names, read


def opened_files(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Return what `opened_zip` does, also of a folder, whose files may lie in folders.

    Raises:
        SubmissionError: as there, or a file of the folder cannot be read.
    """
    if not path.is_dir():
        return opened_zip(path)

    def read(name: str) -> bytes:
        with _readable(path / name):
            return (path / name).read_bytes()

    return names_below(path), read


def files_in(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of a zip's files.

    Raises:
        SubmissionError: it is missing, damaged, or has a name twice.
    """
    names, read = opened_zip(path)
    for name in names:
        yield name, read(name)


def names_in(path: Path) -> list[str]:
    """Return the names of a zip's files."""
    with _readable(path), zipfile.ZipFile(path) as archive:
        return _names(archive)


def names_below(path: Path) -> list[str]:
    """Return the names of a folder's files, those of folders in it with their path, sorted."""
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say it where a zip cannot be read in the block."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, str(error), "a zip with one file per image") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"names stand twice: {first_names(twice)}")
    return names


def _unreadable(path: Path, what: str, expected: str) -> SubmissionError:
    return SubmissionError(f"cannot read '{path}': {what}", expected, "write it again, or name the right file")
