"""Tell from files what the masks of a data set are, and of which images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from kbench.data.table.csv_files import read_frame
from kbench.data.table.image_files import list_images, stem
from kbench.data.table.verify import look
from kbench.drafting.class_tables import class_table
from kbench.drafting.known import Facts, Images
from kbench.drafting.mask_pixels import Masks
from kbench.drafting.mask_places import masks_beside, truth_reader
from kbench.drafting.run_length_tables import NAMED, Columns, masks_of_runs, run_columns
from kbench.drafting.tree import Tree, match, training_folder


def dense(
    tree: Tree, train_csv: str | None, tables: Sequence[str], asked: Sequence[str], sample: pd.DataFrame | None
) -> Facts | None:
    """Return the facts of a task whose targets are masks; None where none were seen, or something else is asked for.

    Args:
        tree: the data folder.
        train_csv: table that may have the training rows, or run lengths.
        tables: all tables but those of the test set.
        asked: columns of the sample submission but the first.
        sample: the sample submission.

    Raises:
        DataError: a table or a mask cannot be read.
    """
    frame = read_frame(tree.root / train_csv, text=True) if train_csv else None
    id_column, train = ("", None) if frame is None else match(tree, frame, word="train")
    if train_csv and train is None and class_table(tree.root, [train_csv]) is not None:
        train_csv = frame = None  # `labels.csv` may be the names of classes
    columns = None if frame is None else run_columns(frame)
    if frame is not None and not _masks_asked(frame, columns, asked, sample):
        return None
    rows = frame is not None and train is not None and not frame[id_column].duplicated().any()
    names = frame[id_column].tolist() if rows and frame is not None else []
    if train is None:
        train = training_folder(tree)
    if train is None:
        return None
    names = names or list_images(tree.root, train.folder, suffix=train.suffix)[0]
    others = [name for name in tables if name != train_csv]
    csv, masks = _runs(tree, [*([train_csv] if train_csv else []), *others], id_column, train, names)
    if masks is None:
        masks = masks_beside(tree.root, tree.folders, names, class_table(tree.root, others))
    if masks is None:
        return None
    if frame is None or not rows:
        return Facts(task=masks.task, classes=masks.classes, train=_named(train), masks=masks, rows=len(names))
    if csv == train_csv and masks.convention:
        masks = replace(masks, kind={key: value for key, value in masks.kind.items() if key not in ("csv", "id")})
    held = () if columns is None else columns.texts
    other = tuple(str(name) for name in frame.columns if name not in (id_column, *held) and not NAMED.search(str(name)))
    return Facts(
        train_csv=train_csv, id=id_column, other=other, group=group_of(frame, other), task=masks.task,
        classes=masks.classes, train=train, masks=masks, rows=len(frame),
    )  # fmt: skip


def _named(train: Images) -> Images:
    """Return images whose ids are the names of their files, which no table has with their ending."""
    return replace(train, suffix=train.suffix or None)


def _runs(
    tree: Tree, tables: Sequence[str], id_column: str, train: Images, names: Sequence[str]
) -> tuple[str | None, Masks | None]:
    """Return the first table with run lengths, and the masks it says."""
    for csv in tables:
        frame = read_frame(tree.root / csv, text=True)
        columns = run_columns(frame)
        if columns is not None:
            first = id_column if id_column in frame.columns and csv == tables[0] else str(frame.columns[0])
            masks = masks_of_runs(
                csv, frame, columns, first, images=names, size_of=size_reader(tree.root, train),
                truth_of=truth_reader(tree.root, tree.folders, names),
            )  # fmt: skip
            return csv, masks
    return None, None


def _masks_asked(
    frame: pd.DataFrame, columns: Columns | None, asked: Sequence[str], sample: pd.DataFrame | None
) -> bool:
    """Return whether a submission may be one of masks: no column of the sample is a target of another kind."""
    if sample is None or not asked or any(NAMED.search(name) for name in asked):
        return True
    others = [str(name) for name in frame.columns if columns is None or name not in columns.texts]
    values = [set(frame[name]) for name in others]
    taken = set(asked) & set(others)
    other = taken == set(asked) or (bool(taken) and columns is None)
    return not (other or any(set(asked) <= cells for cells in values))


def size_reader(root: Path, train: Images) -> Callable[[str], tuple[int, int] | None]:
    """Return a function that tells the height and width of a training image by its id."""
    names, paths, _ = list_images(root, train.folder, suffix=train.suffix)
    known = {stem(name): path for name, path in zip(names, paths, strict=True)}

    def size_of(name: str) -> tuple[int, int] | None:
        path = known.get(stem(name))
        size = None if path is None else look(root / path, deep=False)
        return None if size is None or isinstance(size, str) else size[:2]

    return size_of


def ids_of(root: Path, images: Images | None, table: str | None) -> list[str]:
    """Return the ids of the test images."""
    if images is None:
        return []
    if table is None:
        return list_images(root, images.folder, suffix=images.suffix)[0]
    return read_frame(root / table, text=True).iloc[:, 0].tolist()


def group_of(frame: pd.DataFrame, columns: Sequence[str]) -> str | None:
    """Return a column whose values stand in several rows each, such as a patient or a route."""
    return next((name for name in columns if 1 < frame[name].nunique() <= len(frame) / 2), None)
