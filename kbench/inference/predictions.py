"""Predictions of one member or ensemble: ids, named targets, probabilities.

They hold probabilities (target units for regression), never logits, and name their targets, so that members
that cover different targets can be combined per target. On disk: an `.npy` array, opened as a memory map, an
`.ids` text file, and a JSON with checksums that is written last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kbench import files, records
from kbench.errors import PredictionError, first_names

_BLOCK = 1 << 24  # values checked or copied at a time: 64 MB of float32


@dataclass(frozen=True)
class Predictions:
    """Probabilities by id and target.

    Attributes:
        ids: [N] text, unique and sorted.
        names: K target names.
        values: [N, K, ...] float32; a memory map when it was read from disk. Probabilities in 0..1, or target
            units for regression.
        task: the competition's task.
        source: where it comes from: run, fold, stage, cycle, views, hashes.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    task: str
    source: dict[str, Any]

    def __post_init__(self) -> None:
        if self.values.ndim < 2 or self.values.shape[:2] != (len(self.ids), len(self.names)):
            raise PredictionError(
                f"predictions of shape {self.values.shape} for {len(self.ids):,} ids and {len(self.names)} targets",
                "values of shape [ids, targets, ...]",
                "predict again with `kbench predict --force`",
            )
        if len(self.ids) > 1 and not bool(np.all(self.ids[1:] > self.ids[:-1])):
            raise PredictionError("ids are not unique and sorted", "each id once, sorted", "sort the rows by id")
        for rows in blocks(self.values.shape):
            self._check_block(rows)

    def _check_block(self, rows: slice) -> None:
        block = self.values[rows]
        bad = ~np.isfinite(block)
        if self.task not in ("regression", "dense_regression"):
            bad |= (block < 0) | (block > 1 + 1e-6)
        if bad.any():
            first = rows.start + int(np.argwhere(bad)[0][0])
            raise PredictionError(
                f"id '{self.ids[first]}' has the value {block[bad][0]}",
                "finite values" if "regression" in self.task else "probabilities between 0 and 1",
                "look at the training log of this fold; an imported file must hold probabilities, not logits",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the row number of each id.

        Raises:
            PredictionError: some of the ids are not predicted.
        """
        rows = np.searchsorted(self.ids, ids)
        known = rows < len(self.ids)
        known[known] = self.ids[rows[known]] == ids[known]
        if not known.all():
            raise PredictionError(
                f"{int((~known).sum()):,} ids are not predicted: {first_names([str(name) for name in ids[~known]])}",
                "a prediction for every id",
                "`kbench predict --force`",
            )
        return rows

    def select(self, ids: np.ndarray) -> Predictions:
        """Return the predictions of some ids, sorted by id."""
        ids = np.sort(ids)
        return replace(self, ids=ids, values=self.values[self.rows_of(ids)])


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of rows that cover an array of this shape a few megabytes at a time."""
    width = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    step = max(1, _BLOCK // width)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def create_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Return a new zeroed float32 memory map in an `.npy` file; it counts only once `save_seal` has sealed it."""
    files.make_folder(path.parent)
    array: np.memmap = files.create_npy(path, shape, "float32")
    return array


def array_path(path: Path) -> Path:
    """Return the array's file beside the JSON `path`."""
    return path.with_suffix(".npy")


def save(path: Path, predictions: Predictions) -> Path:
    """Write predictions; `path` is the JSON. An array that already lies in place is not copied."""
    array = array_path(path)
    if Path(getattr(predictions.values, "filename", None) or "") == array:
        files.sync(predictions.values)
    else:
        with files.replacing(array) as temporary:
            np.save(temporary, np.ascontiguousarray(predictions.values, dtype=np.float32))
    ids = files.write_text(path.with_suffix(".ids"), "".join(f"{name}\n" for name in predictions.ids))
    description = {"task": predictions.task, "names": list(predictions.names), "source": predictions.source}
    return records.seal(path, description, parts={"values": array, "ids": ids})


def load(path: Path) -> Predictions:
    """Read predictions; the values stay on disk as a memory map.

    Raises:
        PredictionError: they do not exist, or are damaged.
    """
    description = records.read_seal(path, verify="time")
    if description is None:
        raise PredictionError(
            f"there are no predictions at '{path}', or they are damaged",
            "a JSON, an .npy and an .ids file that match",
            "`kbench predict --force` makes them again",
        )
    values = np.load(array_path(path), mmap_mode="r", allow_pickle=False)
    ids = np.array(files.read_lines(path.with_suffix(".ids")), dtype=str)
    return Predictions(ids, tuple(description["names"]), values, description["task"], description["source"])
