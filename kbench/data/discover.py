"""Tell from a competition's files what they are: tables, image folders, ids, targets, the shape of a submission.

Evidence comes before names: the image folder is the one that has the ids' images, the id column the one whose
values name images. What remains open stays None. To let it recognise something new, add a field to `Facts` and
a function that finds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.frames import numbers, read_frame
from kbench.data.listings import find_files, list_images, stem
from kbench.data.targets import detect_task, sorted_labels, split_tags
from kbench.data.verify import look

_PROBE = 100  # ids held against a folder
_DEPTH = 3


@dataclass(frozen=True)
class Images:
    """An image folder and how its files are called.

    Attributes:
        folder: path below the root.
        suffix: what the names end with; empty if ids carry it, None if there are several.
        example: path of one image below the root.
    """

    folder: str
    suffix: str | None
    example: str


@dataclass(frozen=True)
class Facts:
    """What the files of a competition say; None where they do not.

    Attributes:
        train_csv: table with the targets.
        id: its id column.
        target: its target columns.
        other: its other columns.
        task: a task's name.
        classes: class, tag or target names.
        train: images of the training rows.
        test: images of the test rows.
        test_csv: table of the test ids, where the folder alone would not do.
        by_class: whether `train` has one folder per class and no table is needed.
        sample: the sample submission.
        format: a submission format's name.
        size: height, width and channels of an image.
    """

    train_csv: str | None = None
    id: str | None = None
    target: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    task: str | None = None
    classes: tuple[str, ...] = ()
    train: Images | None = None
    test: Images | None = None
    test_csv: str | None = None
    by_class: bool = False
    sample: str | None = None
    format: str | None = None
    size: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class _Tree:
    """Tables and image folders below a root."""

    root: Path
    tables: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def discover(root: Path) -> Facts:
    """Look through a competition's folder.

    Args:
        root: the data folder; CSVs and image folders may be up to three levels down.

    Raises:
        DataError: a CSV cannot be read.
    """
    tree = _look_around(root)
    sample = _named(tree.tables, ("sample",), ()) or _named(tree.tables, ("submission",), ())
    rest = [name for name in tree.tables if name != sample]
    test_csv = _named(rest, ("test",), ("train",))
    train_csv = _named([name for name in rest if name != test_csv], ("train", "label"), ())
    train_csv = train_csv or (rest[0] if len(rest) == 1 and not test_csv else None)
    sample_frame = read_frame(root / sample, text=True) if sample else None
    if train_csv is None:
        return _without_table(tree, sample, sample_frame)
    frame = read_frame(root / train_csv, text=True)
    id_column, train = _match(tree, frame, ("train",))
    target, classes = _target(frame, id_column, sample_frame)
    task = detect_task(frame, target) if target else None
    if target and not classes:
        classes = _classes(frame, target, task)
    test, used_csv = _test(tree, train, test_csv, sample)
    return Facts(
        train_csv=train_csv,
        id=id_column,
        target=target,
        other=tuple(str(name) for name in frame.columns if name != id_column and name not in target),
        task=task,
        classes=classes,
        train=train,
        test=test,
        test_csv=used_csv,
        sample=sample,
        format=_format(task, classes, target, sample_frame),
        size=_size(root, train),
    )


def _look_around(root: Path) -> _Tree:
    tree = _Tree(root)
    for parent, folders, names in os.walk(root, followlinks=True):
        below = os.path.relpath(parent, root).replace(os.curdir, "", 1) if parent == str(root) else parent[len(str(root)) + 1 :]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        if below.count("/") + bool(below) >= _DEPTH:
            folders.clear()
        prefix = f"{below}/" if below else ""
        tree.tables.extend(prefix + name for name in sorted(names) if name.lower().endswith(".csv"))
        if any(stem(name) != name for name in names if not name.startswith(".")):
            tree.folders.append(below)
    return tree


def _named(tables: Sequence[str], words: Sequence[str], not_words: Sequence[str]) -> str | None:
    """Return the shallowest table whose name has one of the words, earlier words first."""
    for word in words:
        found = [
            name
            for name in tables
            if word in name.rpartition("/")[2].lower()
            and not any(other in name.rpartition("/")[2].lower() for other in not_words)
        ]
        if found:
            return min(found, key=lambda name: (name.count("/"), len(name), name))
    return None


def _match(tree: _Tree, frame: pd.DataFrame, words: Sequence[str]) -> tuple[str | None, Images | None]:
    """Return the column whose values name images, and the folder that has most of them."""
    best: tuple[float, int, int] = (0.0, 0, 0)
    found: tuple[str | None, Images | None] = (None, None)
    for position, column in enumerate(map(str, frame.columns[:8])):
        probe = [name for name in dict.fromkeys(frame[column].head(_PROBE)) if name]
        for folder in [*tree.folders, ""] if probe else []:
            share, images = _try(tree.root, folder, probe)
            name = folder.lower()
            preference = sum(word in name for word in words) - sum(word in name for word in ("mask", "label", "target"))
            if images and (share, preference, -position) > best:
                best, found = (share, preference, -position), (column, images)
    return found if best[0] > 0.5 else (str(frame.columns[0]), None)


def _try(root: Path, folder: str, names: Sequence[str]) -> tuple[float, Images | None]:
    found = find_files(root, folder, names, suffix=None)
    lacking = set(found.missing)
    paths = [(name, path) for row, (name, path) in enumerate(zip(names, found.paths, strict=True)) if row not in lacking]
    if not paths:
        return 0.0, None
    suffixes = {path[len(f"{folder}/{name}" if folder else name) :] for name, path in paths}
    suffix = suffixes.pop() if len(suffixes) == 1 else None
    return len(paths) / len(names), Images(folder, suffix, paths[0][1])


def _target(
    frame: pd.DataFrame, id_column: str | None, sample: pd.DataFrame | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the target columns, and the class names where the sample submission says them."""
    columns = [str(name) for name in frame.columns if name != id_column]
    asked = [] if sample is None else [str(name) for name in sample.columns[1:]]
    if asked and all(name in columns for name in asked):
        return tuple(asked), ()
    for column in columns:
        if len(asked) > 1 and set(asked) == set(frame[column].unique()):
            return (column,), tuple(asked)
    return tuple(columns[:1]), ()


def _classes(frame: pd.DataFrame, target: tuple[str, ...], task: str | None) -> tuple[str, ...]:
    if len(target) > 1 or task == "regression":
        return target
    cells = frame[target[0]].unique()
    if task == "multi_label":
        return tuple(sorted_labels({tag for cell in cells for tag in split_tags(cell, " ")}))
    return tuple(sorted_labels(cell for cell in cells if cell))


def _test(
    tree: _Tree, train: Images | None, test_csv: str | None, sample: str | None
) -> tuple[Images | None, str | None]:
    """Return the test images, and the table of their ids unless the folder alone gives the same ids."""
    others = _Tree(tree.root, folders=[name for name in tree.folders if train is None or name != train.folder])
    for table in (test_csv, sample):
        if table:
            frame = read_frame(tree.root / table, text=True)
            column, images = _match(others, frame, ("test",))
            if images:
                alone = table == sample and set(frame[column]) == set(list_images(tree.root, images.folder, suffix=images.suffix)[0])
                return images, None if alone and images.suffix else table
    folder = next((name for name in others.folders if "test" in name.lower()), None)
    if folder is None:
        return None, None
    _, paths, _ = list_images(tree.root, folder, suffix=None)
    suffixes = {os.path.splitext(path)[1] for path in paths}
    return Images(folder, suffixes.pop() if len(suffixes) == 1 else None, paths[0]), None
