"""Tell from a competition's files what they are: tables, image folders, ids, targets, the shape of a submission.

Evidence comes before names: the image folder is the one that has the ids' images, the id column the one whose
values name images. What remains open stays None. To let it recognise something new, add a field to `Facts` and
a function that finds it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from kbench.data.table.csv_files import numbers, read_frame
from kbench.data.table.image_files import list_images
from kbench.data.table.spellings import plain
from kbench.data.table.targets import detect_task, sorted_labels, split_tags, unknown_words
from kbench.data.table.verify import look
from kbench.drafting.dense import dense, group_of, ids_of
from kbench.drafting.files_of_rows import SeveralFiles, folder_of_test, several_files
from kbench.drafting.known import Facts, Images
from kbench.drafting.mask_formats import mask_format
from kbench.drafting.mask_pixels import Masks
from kbench.drafting.mask_places import ANSWERS
from kbench.drafting.run_length_tables import NAMED
from kbench.drafting.tree import Tree, inside, look_around, match, table_named, test_part


def discover(root: Path) -> Facts:
    """Look through a competition's folder.

    Args:
        root: the data folder; tables and image folders may be up to four levels down.

    Raises:
        DataError: a CSV, a mask or a folder cannot be read.
    """
    tree = look_around(root)
    sample_csv = table_named(tree.tables, ("sample", "submission"))
    rest = [name for name in tree.tables if name != sample_csv]
    train_csv = table_named(rest, ("train", "label"))
    test_csv = table_named([name for name in rest if name != train_csv], ("test",))
    if train_csv is None and len(rest) == 1 and test_csv is None:
        train_csv = rest[0]
    sample = read_frame(root / sample_csv, text=True) if sample_csv else None
    asked = [] if sample is None else [str(name) for name in sample.columns[1:]]
    frame = read_frame(root / train_csv, text=True) if train_csv else None
    several = None if frame is None else several_files(root, tree.folders, frame)
    if several is not None and frame is not None:
        return _of_several(tree, several, frame, str(train_csv), test_csv or sample_csv, sample_csv)
    facts = dense(tree, train_csv, [name for name in rest if name != test_csv], asked, sample)
    if facts is None:
        facts = _from_table(tree, train_csv, asked, sample) if train_csv else _from_folders(tree)
    tree = tree.without(facts.train)
    if facts.masks is not None:
        tree = replace(tree, folders=[name for name in tree.folders if not ANSWERS.search(name)])
    test, used_csv = _test(tree, test_csv, sample_csv)
    named = test is not None and any(name.partition("/")[0] in facts.classes for name in inside(tree, test))
    if facts.masks is not None:
        asks = mask_format(sample, ids_of(root, test, used_csv), facts.masks)
        facts = replace(facts, format=asks[0], format_params=asks[1], format_why=tuple(asks[2]))
    else:
        format, params = _format(facts.task, facts.classes, sample)
        facts = replace(facts, format=format, format_params=params)
    return replace(
        facts,
        test=test,
        test_csv=used_csv,
        test_by_class=named and used_csv is None,
        sample=sample_csv,
        size=_size(root, facts.train),
        archives=tuple(tree.archives) if facts.train is None or test is None else (),
    )


def _of_several(
    tree: Tree, several: SeveralFiles, frame: pd.DataFrame, train_csv: str, test_csv: str | None, sample: str | None
) -> Facts:
    """Return the facts of rows of several files each; what else there is, only targets of numbers are looked for."""
    ids = [] if test_csv is None else read_frame(tree.root / test_csv, text=True).iloc[:, 0].tolist()
    folder = folder_of_test(tree.root, tree.folders, several, ids)
    masks = None
    if several.targets is not None:
        kind = {"name": "values", "folder": several.targets[0], "suffix": several.targets[1]}
        masks = Masks("dense_regression", kind, ("value",), ("numbers per pixel; `value` is to be called as they are",))
    other = tuple(str(name) for name in frame.columns if name != several.id)
    return Facts(
        train_csv=train_csv, id=several.id, other=other, group=group_of(frame, other),
        task=None if masks is None else masks.task, classes=() if masks is None else masks.classes,
        train=Images(several.folder, None, ""), masks=masks, test=None if folder is None else Images(folder, None, ""),
        test_csv=None if folder is None else test_csv, sample=sample, format=None if masks is None else "number_zip",
        format_params={} if several.targets is None else {"file": "{id}" + several.targets[1]}, size=several.size,
        rows=len(frame), several=several,
    )  # fmt: skip


def _from_table(tree: Tree, table: str, asked: Sequence[str], sample: pd.DataFrame | None) -> Facts:
    frame = read_frame(tree.root / table, text=True)
    id_column, train = match(tree, frame, word="train")
    columns = [str(name) for name in frame.columns if name != id_column]
    target, classes = _target(frame, columns, asked)
    separator, why = None, list[str]()
    if any(NAMED.search(name) for name in [*asked[-1:], *target]):
        task: str | None = "segmentation"
        target, classes = (), ()
    else:
        task = detect_task(frame, target) if target else None
        if task in ("single_label", "multi_label") and len(target) == 1 and not classes:
            task, separator, reason = _words(frame[target[0]], sample, task)
            why += [reason] if reason else []
        classes = classes or _classes(frame, target, task, separator)
        if task is not None and task != "regression" and not 2 <= len(classes) <= max(20, len(frame) / 2):
            task, target, classes = None, (), ()  # one value, or one per row: a column of something else
    other = tuple(name for name in columns if name not in target and not NAMED.search(name))
    return Facts(
        train_csv=table,
        id=id_column,
        target=target,
        other=other,
        group=group_of(frame, other),
        task=task,
        classes=classes,
        train=train,
        separator=separator,
        why=tuple(why),
        rows=len(frame),
    )


def _words(column: pd.Series, sample: pd.DataFrame | None, task: str) -> tuple[str | None, str | None, str]:
    """Tell whole names from tags by the company that words keep.

    Args:
        column: cells of one target.
        sample: the sample submission.
        task: as the cells look at first sight.

    Returns:
        The task, None where the cells leave it open; what separates tags, None for a blank; why.
    """
    cells = {cell.strip() for cell in column.unique()} - {""}
    for sign in "|;,":
        parts = [split_tags(cell, sign) for cell in cells]
        if any(len(part) > 1 for part in parts) and _recombine(parts):
            return "multi_label", sign, f"its cells are tags divided by '{sign}': the same ones stand in other company"
    if task == "single_label":
        return task, None, ""
    parts = [cell.split() for cell in cells]
    whole = _recombine(parts)
    if not whole:
        return "single_label", None, "names of several words are classes: no word of one stands in another"
    asked = set() if sample is None or len(sample.columns) != 2 else set(sample.iloc[:, 1].unique())
    if asked and asked <= cells and len(asked) > 1 and len(cells) < len({word for part in parts for word in part}):
        return None, None, "TODO are its cells whole names (single_label) or tags divided by blanks (multi_label)?"
    return task, None, ""


def _recombine(parts: Sequence[Sequence[str]]) -> bool:
    """Return whether a part of a cell with several parts stands in another cell too."""
    counts = Counter(part for cell in parts for part in set(cell))
    return any(counts[part] > 1 for cell in parts if len(cell) > 1 for part in cell)


def _target(
    frame: pd.DataFrame, columns: Sequence[str], asked: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the target columns, and the class names where the sample submission has them as columns."""
    if asked and set(asked) <= set(columns):
        return tuple(asked), ()
    for column in columns:
        if len(asked) > 1 and set(asked) == set(frame[column].unique()):
            return (column,), tuple(asked)
    return tuple(columns[:1]), ()


def _classes(frame: pd.DataFrame, target: tuple[str, ...], task: str | None, separator: str | None) -> tuple[str, ...]:
    if len(target) != 1 or task == "regression":
        return target
    every = frame[target[0]].unique()
    cells = [cell for cell in every if cell not in unknown_words(every, ())]
    if task == "multi_label":
        return tuple(sorted_labels(tag for cell in cells for tag in split_tags(cell, separator or " ")))
    return tuple(sorted_labels(cells))


def _from_folders(tree: Tree) -> Facts:
    """Look for a folder with one folder of images per class."""
    inner = Counter(folder.rpartition("/")[0] for folder in tree.folders if "/" in folder)
    trees = [folder for folder, count in inner.items() if count > 1 and not test_part(folder)]
    if not trees:
        return Facts()
    train = max(trees, key=lambda name: ("train" in name.lower(), inner[name], name))
    valid = next((name for name in trees if name != train and "val" in name.lower()), None)
    names, paths, _ = list_images(tree.root, train, suffix=None)
    suffixes = {os.path.splitext(path)[1] for path in paths}
    return Facts(
        task="single_label",
        classes=tuple(sorted({name.partition("/")[0] for name in names})),
        train=Images(train, suffixes.pop() if len(suffixes) == 1 else None, paths[0]),
        by_class=True,
        valid=valid,
        rows=len(paths),
    )


def _test(tree: Tree, test_csv: str | None, sample_csv: str | None) -> tuple[Images | None, str | None]:
    """Return the test images, and the table of their ids unless the folder alone gives the same ids."""
    for table in (test_csv, sample_csv):
        if table is None:
            continue
        frame = read_frame(tree.root / table, text=True)
        column, images = match(tree, frame, word="test")
        if images is None:
            continue
        if frame[column].duplicated().any():  # a row per class or object: the folder has each image once
            return replace(images, suffix=images.suffix or None), None
        listed = list_images(tree.root, images.folder, suffix=images.suffix)[0]
        alone = table == sample_csv and images.suffix != "" and set(frame[column]) == set(listed)
        return images, None if alone else table
    tests = [name for name in tree.folders if test_part(name)]
    if not tests:
        return None, None
    part = test_part(tests[0])
    below = [name for name in tests if name == part or name.startswith(f"{part}/")]
    folder = below[0] if len(below) == 1 else os.path.commonpath(below)
    paths = list_images(tree.root, folder, suffix=None)[1]
    suffixes = {os.path.splitext(path)[1] for path in paths}
    return Images(folder, suffixes.pop() if len(suffixes) == 1 else None, paths[0]), None


def _format(
    task: str | None, classes: tuple[str, ...], sample: pd.DataFrame | None
) -> tuple[str | None, dict[str, str]]:
    """Tell the submission format, and what stands beside it, from the sample's columns and values."""
    if sample is None or len(sample.columns) < 2:
        return None, {}
    asked = [str(name) for name in sample.columns[1:]]
    if task in ("single_label", "multi_label") and len(asked) > 1:
        return ("probabilities" if set(asked) == set(classes) else None), {}
    if task == "multi_label":
        return "tags", {}
    if task == "single_label":
        if set(sample[asked[0]].unique()) <= set(classes):
            return "label", {}
        if len(classes) != 2 or pd.isna(numbers(sample, asked)).any():
            return None, {}
        yes = "1" if set(classes) == {"0", "1"} else _named(asked[0], classes)
        return "single_probability", {"target": yes or "TODO"}
    return ("value" if task == "regression" else None), {}


def _named(column: str, classes: Sequence[str]) -> str | None:
    """Return the class a column is called, but for case and spaces; None where it names none, or two."""
    alike = [name for name in classes if name == column] or [name for name in classes if plain(name) == plain(column)]
    return alike[0] if len(alike) == 1 else None


def _size(root: Path, images: Images | None) -> tuple[int, int, int] | None:
    if images is None:
        return None
    size = look(root / images.example, deep=False)
    return None if isinstance(size, str) else size
