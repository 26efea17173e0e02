"""Predicted maps, one row at a time: masks and numbers as they are sent, and the store on disk they are read from.

A store is a file of compressed blobs with an index, the ids, what each reading of the pass was worth image by image
(`metrics/maps.py`), and a JSON with checksums that is written last. Probabilities are kept as 8 bits, target units
of a dense regression as float32. Masks are stored always, probabilities where there is room.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kbench import files, records
from kbench.errors import PredictionError
from kbench.tasks import SEGMENTATION, exclusive


@dataclass(frozen=True)
class MaskSet:
    """Predicted class masks by id; only the row that is asked for is in memory.

    Attributes:
        ids: [N] text, unique and sorted.
        names: K class names.
        task: `segmentation` or `multi_label_segmentation`.
        source: where they come from.
        read: row -> [H, W] uint8 class index where classes exclude one another (two classes or more), else
            [K, H, W] uint8 0 or 1.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    task: str
    source: dict[str, Any]
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the mask of a row."""
        return self.read(row)

    def layers(self, row: int) -> np.ndarray:
        """Return [K, H, W] bool, one layer per class."""
        mask = self.read(row)
        if exclusive(self.task, len(self.names)):
            return np.asarray(mask[None] == np.arange(len(self.names))[:, None, None])
        return mask.astype(bool)


@dataclass(frozen=True)
class NumberSet:
    """Predicted numbers per pixel by id; only the row that is asked for is in memory.

    Attributes:
        ids: [N] text, unique and sorted.
        names: K target names.
        task: `dense_regression`.
        source: where they come from.
        read: row -> [K, H, W] float32 in the targets' units.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    task: str
    source: dict[str, Any]
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the numbers of a row."""
        return self.read(row)


_FAST = 1  # zlib level: masks shrink a hundredfold, and a photograph's maps by half, at 100 MB/s and more


class Row(NamedTuple):
    """What is stored of a row.

    Attributes:
        maps: [K, H, W] float32 probabilities or target units.
        worth: [R, K, 3] of each reading, or None without truth.
    """

    maps: np.ndarray
    worth: np.ndarray | None


@dataclass(frozen=True)
class MapStore:
    """Maps that lie on disk.

    Attributes:
        path: the JSON.
        ids: [N] text, unique and sorted.
        names: K target names.
        task: a dense task.
        source: where they come from.
        readings: R names of what was measured; the last one is the mean of everything.
        worth: [R, N, K, 3] as `metrics.maps.measured` gives it, or None without truth.
        kept: whether probabilities are stored, not only masks.
    """

    path: Path
    ids: np.ndarray
    names: tuple[str, ...]
    task: str
    source: dict[str, Any]
    readings: tuple[str, ...]
    worth: np.ndarray | None
    kept: bool
    _index: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def maps(self, row: int) -> np.ndarray:
        """Return [K, H, W] float32 probabilities (multiples of 1/255) or target units.

        Raises:
            PredictionError: they were not kept.
        """
        if not self.kept:
            raise PredictionError(
                f"the probability maps of '{self.path.parent}' were not kept", "maps on disk",
                "set `maps: {keep: on}` in the YAML and run the command again",
            )  # fmt: skip
        height, width, *_, start, length = (int(number) for number in self._index[row])
        shape = (len(self.names), height, width)
        content = self._blob(start, length)
        if self.task not in SEGMENTATION:
            return np.frombuffer(content, dtype=np.float32).reshape(shape)
        return np.frombuffer(content, dtype=np.uint8).reshape(shape).astype(np.float32) / 255

    def mask(self, row: int) -> np.ndarray:
        """Return [H, W] uint8 class index where classes exclude one another, else [K, H, W] uint8 0 or 1."""
        height, width, start, length, *_ = (int(number) for number in self._index[row])
        layers = () if exclusive(self.task, len(self.names)) else (len(self.names),)
        return np.frombuffer(self._blob(start, length), dtype=np.uint8).reshape(*layers, height, width)

    def masks(self) -> MaskSet:
        """Return the masks of all rows."""
        return MaskSet(self.ids, self.names, self.task, self.source, self.mask)

    def _blob(self, start: int, length: int) -> bytes:
        with self.path.with_suffix(".bin").open("rb") as handle:
            handle.seek(start)
            return zlib.decompress(handle.read(length))


@dataclass(frozen=True)
class Writing:
    """What a store says of itself before its rows are known.

    Attributes:
        path: the JSON.
        ids: [N] text, unique and sorted.
        names: K target names.
        task: a dense task.
        source: where it comes from.
        readings: R names of what is measured.
        keep: whether probabilities are stored.
        mask: [K, H, W] maps -> the mask that is stored; None for a dense regression.
    """

    path: Path
    ids: np.ndarray
    names: tuple[str, ...]
    task: str
    source: dict[str, Any]
    readings: tuple[str, ...]
    keep: bool
    mask: Callable[[np.ndarray], np.ndarray] | None


def write(writing: Writing, rows: Iterator[Row]) -> MapStore:
    """Write the rows of a store, in the order of its ids, as they come; return it."""
    path = writing.path
    files.make_folder(path.parent)
    files.remove(path)  # what lies there counts no longer, even if this is not finished
    index = np.zeros((len(writing.ids), 6), dtype=np.int64)
    worth: list[np.ndarray] = []

    def chunks() -> Iterator[bytes]:
        place = 0
        for number, row in enumerate(rows):
            if row.worth is not None:
                worth.append(row.worth)
            index[number, :2] = row.maps.shape[1:]
            for column, content in ((2, _mask_bytes(writing, row.maps)), (4, _map_bytes(writing, row.maps))):
                index[number, column : column + 2] = place, len(content)
                place += len(content)
                yield content

    binary = records.write_chunks(path.with_suffix(".bin"), chunks())
    arrays = {"index": (path.with_suffix(".npy"), index)}
    if worth:
        arrays["worth"] = (path.with_name(f"{path.stem}-worth.npy"), np.stack(worth, axis=1))
    for file, values in arrays.values():
        with files.replacing(file) as temporary:
            np.save(temporary, values)
    ids = files.write_text(path.with_suffix(".ids"), "".join(f"{name}\n" for name in writing.ids))
    records.seal(
        path,
        {
            "task": writing.task, "names": list(writing.names), "source": writing.source,
            "readings": list(writing.readings), "kept": writing.keep,
        },
        parts={"ids": ids, **{name: file for name, (file, _) in arrays.items()}},
        sealed={"maps": binary},
    )  # fmt: skip
    return load(path)


def _mask_bytes(writing: Writing, maps: np.ndarray) -> bytes:
    return b"" if writing.mask is None else zlib.compress(np.ascontiguousarray(writing.mask(maps)).tobytes(), _FAST)


def _map_bytes(writing: Writing, maps: np.ndarray) -> bytes:
    if not writing.keep:
        return b""
    values = maps if writing.task not in SEGMENTATION else np.rint(maps * 255).astype(np.uint8)
    return zlib.compress(np.ascontiguousarray(values).tobytes(), _FAST)


def load(path: Path) -> MapStore:
    """Open a store.

    Raises:
        PredictionError: it does not exist, or is damaged.
    """
    description = records.read_seal(path, verify="time")
    if description is None:
        raise PredictionError(
            f"there are no predicted maps at '{path}', or they are damaged", "files that match their JSON",
            "`kbench predict --force` makes them again",
        )  # fmt: skip
    ids = np.array(files.read_lines(path.with_suffix(".ids")), dtype=str)
    worth = path.with_name(f"{path.stem}-worth.npy")
    return MapStore(
        path, ids, tuple(description["names"]), description["task"], description["source"],
        tuple(description["readings"]), np.load(worth) if "worth" in description["files"] else None,
        description["kept"], np.load(path.with_suffix(".npy"), mmap_mode="r"),
    )  # fmt: skip
