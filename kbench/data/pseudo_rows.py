"""Read pseudo-labels, and put their rows beside those of a table.

Rows of pseudo-labels only train (fold -1). Their ids get a prefix, since a test set may use the ids of the training
set again. `kbench/ensemble/pseudo_labels.py` says what the files are and writes them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from kbench import files, records
from kbench.data.images.cache import Images, name_of
from kbench.data.table.csv_files import numbers, read_frame, texts
from kbench.data.table.reading import Cells, MaskKind, MaskRows, Request, Size
from kbench.data.table.table import Table
from kbench.errors import DataError, first_names
from kbench.tasks import exclusive, is_dense

PREFIX = "pseudo/"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same masks give the same bytes


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of one place.

    Attributes:
        table: the rows, with prefixed ids, the images of the rows they label, and targets or masks.
        rows: [M] which rows of the unlabelled table they are.
        kind: reads the masks; None where there are none.
        checksum: of the JSON.
        origin: where they come from.
    """

    table: Table
    rows: np.ndarray
    kind: MaskKind | None
    checksum: str
    origin: dict[str, Any]


def labels_file(path: Path, place: str) -> Path:
    """Return the CSV of a place beside the JSON `path`."""
    return path.with_name(f"{place}.csv")


def masks_file(path: Path, place: str) -> Path:
    """Return the zip of a place's masks beside the JSON `path`."""
    return path.with_name(f"{place}-masks.zip")


def label_columns(names: tuple[str, ...], task: str) -> list[str]:
    """Return the columns that hold the labels."""
    if is_dense(task):
        return ["mask"]
    return ["label"] if task == "single_label" else [f"label: {name}" for name in names]


def stacked(mask: np.ndarray) -> np.ndarray:
    """Return a mask [H, W, M] as one grey image: its layers under one another."""
    return np.ascontiguousarray(mask.transpose(2, 0, 1).reshape(-1, mask.shape[1]))


def describe(path: Path) -> dict[str, Any]:
    """Return what the JSON of pseudo-labels says.

    Raises:
        DataError: there are none, or their files are damaged.
    """
    description = records.read_seal(path, verify="time")
    if description is None:
        raise DataError(
            f"there are no pseudo-labels at '{path}', or they are damaged", "files that match their JSON",
            "`kbench pseudo-label RUN` makes them",
        )  # fmt: skip
    return description


def read_pseudo(path: Path, place: str, *, unlabelled: Table, names: tuple[str, ...], folds: str) -> PseudoLabels:
    """Read the labels of a fold, or of `full`.

    Args:
        path: the JSON.
        place: `fold-0`, `fold-1` ... or `full`.
        unlabelled: the table of the rows that are labelled, such as the test set.
        names: the competition's classes.
        folds: hash of the folds a model is trained on.

    Raises:
        DataError: they are missing, of another task or other classes, of rows that are not there, or made on other
            folds: their makers may have seen what this fold validates.
    """
    description = describe(path)
    task = unlabelled.task
    wrong = [
        (description["task"] != task or tuple(description["names"]) != names, "another task or other classes"),
        (description["origin"]["folds"] != folds, "models trained on other folds"),
        (place not in description["places"], f"no labels for '{place}'"),
    ]
    for bad, what in wrong:
        if bad:
            raise DataError(
                f"the pseudo-labels at '{path}' are not for this training: {what}",
                "labels of a run of this competition on the same folds",
                "`kbench pseudo-label RUN` makes them anew",
            )
    frame = read_frame(labels_file(path, place), text=True)
    ids = texts(frame, "id")
    rows = np.minimum(np.searchsorted(unlabelled.ids, ids), len(unlabelled) - 1)
    missing = ids[unlabelled.ids[rows] != ids]
    if len(missing):
        raise DataError(
            f"the pseudo-labels at '{path}' are of {len(missing):,} unknown rows: {first_names(missing.tolist())}",
            "rows of the test set", "`kbench pseudo-label RUN` makes them anew",
        )  # fmt: skip
    chosen = unlabelled.select(rows)  # ids of both are sorted
    checksum = files.sha256(path)
    dense = is_dense(task)
    table = Table(
        ids=np.array([f"{PREFIX}{name}" for name in ids]), root=chosen.root, images=chosen.images, task=task,
        target_names=names, targets=None if dense else _targets(frame, names, task),
        masks=tuple((cell,) for cell in texts(frame, "mask").tolist()) if dense else None, encoded=dense,
        meta=chosen.meta,
    )  # fmt: skip
    kind = _kind(masks_file(path, place), names, task, checksum) if dense else None
    return PseudoLabels(table, rows, kind, checksum, description["origin"])


def _targets(frame: pd.DataFrame, names: tuple[str, ...], task: str) -> np.ndarray:
    columns = label_columns(names, task)
    if task == "single_label":
        index = {name: k for k, name in enumerate(names)}
        return np.array([index[name] for name in texts(frame, columns[0]).tolist()], dtype=np.int64)
    return numbers(frame, columns).astype(np.float32)


def _kind(archive: Path, names: tuple[str, ...], task: str, checksum: str) -> MaskKind:
    layers = 1 if exclusive(task, len(names)) else len(names)

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        raise AssertionError("pseudo-labels know their masks")

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        with zipfile.ZipFile(archive) as masks:
            image = cv2.imdecode(np.frombuffer(masks.read(cells[0]), dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        assert image is not None, "what was sealed can be read"
        return np.ascontiguousarray(image.reshape(layers, -1, image.shape[1]).transpose(1, 2, 0))

    return MaskKind(names, find, read, encoded=True, facts=[str(archive.name), checksum])


@dataclass(frozen=True)
class Joined:
    """Where the rows of two tables are in the table of both.

    Attributes:
        table: all rows, sorted by id; masks are those of `images`.
        first: [N] row of each row of the first table.
        second: [M] row of each row of the second one.
    """

    table: Table
    first: np.ndarray
    second: np.ndarray

    def images(self, first: Images, second: Images, *, rows: np.ndarray | None = None) -> Images:
        """Return the images, or the masks, of both tables.

        Args:
            first: of the first table.
            second: of the second one.
            rows: [M] where the rows of the second table are among the second images; in order by default.
        """
        places = np.empty((len(self.table), 2), dtype=np.int64)
        places[self.first] = np.stack([np.zeros_like(self.first), np.arange(len(self.first))], axis=1)
        inner = np.arange(len(self.second)) if rows is None else rows
        places[self.second] = np.stack([np.ones_like(self.second), inner], axis=1)
        return JoinedImages((first, second), places)


class JoinedImages:
    """Images of several sources behind one another.

    Args:
        sources: the images.
        places: [N, 2] source and row in it, of each row.
    """

    def __init__(self, sources: tuple[Images, ...], places: np.ndarray) -> None:
        self._sources, self._places = sources, places

    def __len__(self) -> int:
        return len(self._places)

    def name(self, row: int) -> str:
        """Return what the row is called in the source it comes from."""
        source, inner = (int(number) for number in self._places[row])
        return name_of(self._sources[source], inner)

    def __getitem__(self, row: int) -> np.ndarray:
        source, inner = (int(number) for number in self._places[row])
        return self._sources[source][inner]


def join(first: Table, second: Table) -> Joined:
    """Return the rows of two tables as one.

    Raises:
        DataError: a row of the second table shows the very images of one of the first, or has its id.
    """
    known = {(first.root, paths): place for place, paths in enumerate(first.images) if paths}
    again = [str(second.ids[row]) for row, paths in enumerate(second.images) if (second.root, paths) in known]
    if again:
        raise DataError(
            f"{len(again):,} rows with pseudo-labels show images of the training set: {first_names(again)}",
            "images that have no label: a fold would train on what it validates",
            "label another set, or leave `pseudo` out of the YAML",
        )
    assert first.root == second.root, "both tables lie in the competition's data folder"
    ids = np.concatenate([first.ids, second.ids])
    order = np.argsort(ids, kind="stable")
    place = np.empty(len(ids), dtype=np.int64)
    place[order] = np.arange(len(ids))
    images = [*first.images, *second.images]
    targets = None
    if first.targets is not None and second.targets is not None:
        targets = np.concatenate([first.targets, second.targets])[order]
    table = replace(
        first, ids=ids[order], images=tuple(images[row] for row in order), targets=targets, masks=None,
        meta=_meta(first, second, order),
    )  # fmt: skip
    return Joined(table, place[: len(first)], place[len(first) :])


def _meta(first: Table, second: Table, order: np.ndarray) -> pd.DataFrame | None:
    """Return the metadata of both, with the first one's columns; empty where the second has no such column."""
    if first.meta is None:
        return None
    other = pd.DataFrame(index=range(len(second))) if second.meta is None else second.meta
    both = pd.concat([first.meta, other.reindex(columns=first.meta.columns, fill_value="")], ignore_index=True)
    return pd.DataFrame(both.iloc[order].reset_index(drop=True))
