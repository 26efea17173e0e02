"""Decode every image once: one memory-mapped array with offsets per table, reader and size.

The cache holds images in the source's dtype, resized as a stage needs them. Its key is the content of the files
(a hash memoised on path, size and times of change), the reader and the resizing, so a changed file, order or size
never meets stale pixels. It is built once under a lock and shared by folds and processes; its JSON is
written last, so a half-built cache does not exist. `kbench cache` shows and clears it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from kbench import console, files, records
from kbench.data.images.decoding import check_file, first_path, is_there, not_a_file, path_of, usable
from kbench.data.images.quick import QuickReader
from kbench.data.images.readers import Reader, resized
from kbench.data.images.shown_masks import shown_mask
from kbench.errors import DataError

_VERSION = 2  # of the pixels a key stands for; raise it when resizing changes
_SETTLED_NS = 2 * 10**9  # a file changed less than this ago may change again without a new time
Rows = Sequence[tuple[Path, ...]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Resize:
    """How an image is brought to a size before it is cached.

    Attributes:
        how: `cover`: the aspect is kept and the image just covers the size (fast.ai's shorter side, F-06);
            `exact`: squashed to the size; `keep`: left alone.
        height: pixels.
        width: pixels.
    """

    how: Literal["cover", "exact", "keep"]
    height: int
    width: int

    @property
    def key(self) -> list[Any]:
        """The three as a list, for a cache's key."""
        return [self.how, self.height, self.width]

    def __call__(self, image: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Resize [H, W, C]; area averaging downwards and bilinear upwards, or the nearest pixel (masks).

        What is unknown (NaN) takes no part in its neighbours.
        """
        if self.how == "keep":
            return image
        change = partial(resized, size=self.size(*image.shape[:2]))
        if nearest or image.dtype.kind != "f":
            return change(image, nearest=nearest)
        return shown_mask(change, image)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width an image of a size is brought to."""
        if self.how == "keep":
            return height, width
        if self.how == "exact":
            return self.height, self.width
        scale = max(self.height / height, self.width / width)
        return max(self.height, round(height * scale)), max(self.width, round(width * scale))

    def read(self, reader: Reader, paths: Sequence[Path]) -> np.ndarray:
        """Return a row's image at the size, decoded whole only where the reader has no quicker way."""
        if self.how != "keep" and isinstance(reader, QuickReader):
            return reader.at_size(paths, self.size)
        return self(usable(reader(paths), name=str(first_path(paths))))


class RowPaths(Sequence[tuple[Path, ...]]):
    """The image paths of each row, joined to their folder when they are asked for.

    Args:
        root: the folder.
        images: per row, paths relative to it.
    """

    def __init__(self, root: Path, images: Sequence[tuple[str, ...]]) -> None:
        self._root, self._images = root, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: Any) -> Any:
        return tuple(path_of(self._root, name) for name in self._images[row])


class Images(Protocol):
    """Random access to the images of a table's rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray:
        """Return [H, W, C] of one row; must not be written to."""


def name_of(images: Images, row: int) -> str:
    """Return what a row is called in messages: the path of its image, where images know it."""
    name = getattr(images, "name", None)
    return f"row {row}" if name is None else str(name(row))


class DirectImages:
    """Images decoded each time they are asked for; for data larger than the disk's free space."""

    def __init__(self, rows: Rows, reader: Reader, resize: Resize) -> None:
        self._rows, self._reader, self._resize = rows, reader, resize
        self._dtype = usable(reader(rows[0]), name=str(first_path(rows[0]))).dtype if rows else None

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, row: int) -> str:
        """Return the path of a row's first image."""
        return str(first_path(self._rows[row]))

    def __getitem__(self, row: int) -> np.ndarray:
        paths = self._rows[row]
        image = self._resize.read(self._reader, paths)
        if image.dtype != self._dtype:
            raise DataError(
                f"'{first_path(paths)}' has pixels of {image.dtype}, the first image {self._dtype}",
                "images of one dtype",
                "convert them, or read them with another `input.reader`",
            )
        return image


class CachedImages:
    """Images of one memory-mapped file; opened on first use, so it travels to workers as two paths.

    Args:
        description: the JSON.
        rows: the image paths of each row, for messages.
    """

    def __init__(self, description: Path, rows: Rows = ()) -> None:
        self._path, self._rows = description, rows
        self._index: np.ndarray | None = None
        self._data: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_rows": self._rows, "_index": None, "_data": None}

    def name(self, row: int) -> str:
        """Return the path of a row's first image."""
        return str(first_path(self._rows[row])) if len(self._rows) else f"row {row}"

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        if self._index is None or self._data is None:
            binary = self._path.with_suffix(".bin")
            try:
                description = files.read_json(self._path)
                self._index = np.load(self._path.with_suffix(".npy"), allow_pickle=False)
                self._data = (
                    np.memmap(binary, dtype=description["dtype"], mode="r") if binary.stat().st_size else np.empty(0)
                )
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"the cached images '{self._path}' cannot be read: {error}",
                    "what was written there",
                    "run the same command again, or `kbench cache --clear` before it",
                ) from error
        return self._index, self._data

    def __len__(self) -> int:
        return len(self._open()[0])

    def __getitem__(self, row: int) -> np.ndarray:
        index, data = self._open()
        offset, *shape = (int(number) for number in index[row])
        return np.asarray(data[offset : offset + shape[0] * shape[1] * shape[2]]).reshape(shape)


def open_images(
    rows: Rows,
    *,
    reader: Reader,
    reader_key: Any,
    resize: Resize,
    folder: Path,
    mode: Literal["auto", "on", "off"],
    progress: Progress,
) -> Images:
    """Return the images of a table's rows, from the cache where there is room for it.

    Args:
        rows: the image paths of each row.
        reader: decodes one row.
        reader_key: JSON-like description of the reader.
        resize: applied before caching.
        folder: the cache folder.
        mode: `auto` caches when the images need less than half of the free disk.
        progress: called as `progress(done, total)` while the cache is built.
    """
    if mode == "off" or not rows:
        return DirectImages(rows, reader, resize)
    key = files.digest([_VERSION, content_key(rows, folder), reader_key, resize.key])
    return cached(
        lambda: DirectImages(rows, reader, resize), key=key, resize=resize, folder=folder, mode=mode, progress=progress,
        rows=rows,
    )  # fmt: skip


def cached(
    make: Callable[[], Images],
    *,
    key: str,
    resize: Resize,
    folder: Path,
    mode: Literal["auto", "on"],
    progress: Progress,
    rows: Rows = (),
) -> Images:
    """Return images from the cache, built once; as they are where there is no room for it.

    Args:
        make: returns the images, decoded each time they are asked for.
        key: what identifies their pixels.
        resize: how they are resized.
        folder: the cache folder.
        mode: `auto` caches when the images need less than half of the free disk.
        progress: called as `progress(done, total)` while the cache is built.
        rows: the image paths of each row, for messages.
    """
    description = folder / "images" / f"{key}.json"
    if read_whole(description, folder) is None:
        if mode == "auto" and not _has_room(direct := make(), folder):
            return direct
        with files.lock(folder / "images" / f"{key}.lock"):
            if read_whole(description, folder) is None:
                say_if_damaged(description)
                files.remove_temporaries(description.with_suffix(".bin"))
                _build(description, make(), resize=resize, progress=progress)
    return CachedImages(description, rows)


def read_whole(path: Path, folder: Path) -> dict[str, Any] | None:
    """Return what a sealed part of the cache says of itself, or None where it does not exist or is damaged.

    Its files are read and held against their checksums once, and again as soon as their sizes or times are others: who
    opens it later looks at those alone.

    Args:
        path: the JSON.
        folder: the cache folder.
    """
    description = records.read_seal(path, verify="size")
    if description is None or not {"rows", "resize", "made"} <= set(description):
        return None
    parts = [tuple(path.with_name(entry["file"]) for entry in description["files"].values())]
    whole = memoised(folder, "whole", parts, lambda: records.read_seal(path) is not None, key=description["files"])
    return description if whole else None


def say_if_damaged(path: Path) -> None:
    """Say that a part of the cache is made anew, where there is one that `read_whole` does not take."""
    if path.is_file():
        console.warn(f"'{path}' is damaged: it is made anew")


def _has_room(images: Images, folder: Path) -> bool:
    probes = np.linspace(0, len(images) - 1, min(8, len(images)))
    largest = max(images[round(position)].nbytes for position in probes)
    return largest * len(images) < files.free_bytes(folder) / 2


def stat_key(rows: Rows) -> tuple[str, bool]:
    """Return a hash of all paths, sizes and times of change, and whether a later change is sure to show in it.

    The time a file's state last changed counts beside that of its content: nobody can set it back.

    Raises:
        DataError: a file is missing.
    """
    stats, newest, now = hashlib.sha256(), 0, time.time_ns()
    for paths in rows:
        for path in paths:
            if not is_there(path):
                stats.update(b"-\n")
                continue
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(
                    f"'{path}' cannot be found", "every image of the table", "`kbench check` lists all"
                ) from error
            if not_a_file(stat.st_mode):
                check_file(path)
            stats.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode())
            newest = max(newest, stat.st_ctime_ns)
    return stats.hexdigest()[:32], newest < now - _SETTLED_NS


def memoised(folder: Path, what: str, rows: Rows, make: Callable[[], Any], *, key: Any = None) -> Any:
    """Return JSON-like facts about some files, made once until one of them is touched.

    Args:
        folder: the cache folder.
        what: name of the facts, a folder of their own.
        rows: the files.
        make: returns the facts.
        key: JSON-like, what the facts depend on beside the files.

    Raises:
        DataError: one of the files is missing, or is none.
    """
    stats, settled = stat_key(rows)
    memo = folder / what / f"{stats if key is None else files.digest([stats, key])}.json"
    with contextlib.suppress(DataError, KeyError, TypeError):  # missing or damaged: the facts are made again
        return files.read_json(memo)[what]
    facts = make()
    if settled:
        files.write_json(memo, {what: facts})
    return facts


def file_digests(rows: Rows, folder: Path) -> list[str]:
    """Return the SHA-256 of all files, in order; memoised on paths, sizes and times of change.

    That of a file that need not be there is of nothing.
    """

    def make() -> list[str]:
        return list(_ordered((path for paths in rows for path in paths), _checksum))

    return list(memoised(folder, "digests", rows, make))


def _checksum(path: Path) -> str:
    if not is_there(path):
        return hashlib.sha256().hexdigest()
    try:
        return files.sha256(path)
    except OSError as error:
        raise DataError(
            f"cannot read '{path}': {error.strerror or error}",
            "a file you may read",
            "look at its permissions and at the disk, then run the same command again",
        ) from error


def content_key(rows: Rows, folder: Path) -> str:
    """Return a hash of the content of all files, in order; memoised on paths, sizes and times of change."""

    def make() -> str:
        content = hashlib.sha256()
        for digest in file_digests(rows, folder):
            content.update(bytes.fromhex(digest))
        shape = ",".join(str(len(paths)) for paths in rows)
        return hashlib.sha256(content.digest() + shape.encode()).hexdigest()

    return str(memoised(folder, "content", rows, make))


def _ordered(items: Iterator[Any], function: Callable[[Any], Any], *, threads: int = 4) -> Iterator[Any]:
    """Yield `function(item)` in order, a bounded number of items ahead, in threads."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Any] = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _build(description: Path, images: Images, *, resize: Resize, progress: Progress) -> None:
    index = np.zeros((len(images), 4), dtype=np.int64)

    def chunks() -> Iterator[bytes]:
        offset = 0
        for row, image in enumerate(_ordered(iter(range(len(images))), images.__getitem__)):
            index[row] = (offset, *image.shape)
            offset += image.size
            progress(row + 1, len(images))
            yield np.ascontiguousarray(image).tobytes()

    binary = records.write_chunks(description.with_suffix(".bin"), chunks())
    with files.replacing(description.with_suffix(".npy")) as temporary:
        np.save(temporary, index)
    records.seal(
        description,
        {
            "dtype": images[0].dtype.str,
            "rows": len(images),
            "resize": resize.key,
            "made": time.time(),
        },
        parts={"index": description.with_suffix(".npy")},
        sealed={"data": binary},
    )


@dataclass(frozen=True)
class CacheEntry:
    """One cached table.

    Attributes:
        key: of the file.
        what: `images`, or `activations` of a frozen body.
        rows: of the table.
        resize: how images were resized, height and width.
        bytes: on disk.
        made: when, in seconds since 1970.
    """

    key: str
    what: str
    rows: int
    resize: list[Any]
    bytes: int
    made: float


def cache_entries(folder: Path) -> list[CacheEntry]:
    """Return what the cache holds, oldest first."""
    entries = []
    for path in [*(folder / "images").glob("*.json"), *(folder / "activations").glob("*.json")]:
        seal = records.read_seal(path, verify="size")
        if seal and {"rows", "resize", "made"} <= set(seal):
            size = sum(entry["bytes"] for entry in seal["files"].values())
            entries.append(CacheEntry(path.stem, path.parent.name, seal["rows"], seal["resize"], size, seal["made"]))
    return sorted(entries, key=lambda entry: entry.made)


def clear_cache(folder: Path) -> int:
    """Remove the cache, half-built parts included; return the bytes freed."""
    freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    if folder.exists():
        files.remove(folder)
    return freed
