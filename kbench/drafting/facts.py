"""Tell from a competition's files what they are: tables, image folders, ids, targets, the shape of a submission.

Evidence comes before names: the image folder is the one that has the ids' images, the id column the one whose
values name images. What remains open stays None. To let it recognise something new, add a field to `Facts` and
a function that finds it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kbench.data.table.csv_files import numbers, read_frame
from kbench.data.table.image_files import ARCHIVES, clean, find_files, folders_of, list_images, stem
from kbench.data.table.spellings import plain
from kbench.data.table.targets import detect_task, sorted_labels, split_tags, unknown_words
from kbench.data.table.verify import look

_TABLES = (".csv", ".csv.gz", ".tsv")
_TEST = re.compile(r"(^|[^a-z])test(ing)?([^a-z]|$)", re.IGNORECASE)  # of a folder's name
_PROBE = 100  # ids held against a folder
_DEPTH = 3
_MASKS = re.compile(r"(^|[^a-z])rle([^a-z]|$)|mask|encoded.?pixels", re.IGNORECASE)  # columns
_ANSWERS = re.compile(r"mask|target|annotation", re.IGNORECASE)  # folders


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
    """What the files of a competition say; None, or nothing, where they do not.

    Attributes:
        train_csv: table with the targets.
        id: its id column.
        target: its target columns.
        other: its other columns, without encoded masks.
        group: one of those whose values stand in several rows each, such as a patient or a route.
        task: a task's name.
        classes: class, tag or target names.
        train: images of the training rows; with `by_class` its folder has one folder per class.
        masks: target images of the training rows.
        by_class: whether folders, not a table, say the classes.
        test_by_class: whether the test images lie in folders that are named like classes.
        valid: a second folder of classes, held out by whoever made the data.
        test: images of the test rows.
        test_csv: table of the test ids, where the folder alone does not give them.
        sample: the sample submission.
        format: a submission format's name.
        format_params: what stands beside it; `TODO` where the files leave it open.
        separator: between the tags of a cell, where it is no blank.
        archives: packed files beside the tables, where no image was found.
        why: what was read out of the files and is not plain to see.
        size: height, width and channels of an image.
        rows: number of training rows.
    """

    train_csv: str | None = None
    id: str | None = None
    target: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    group: str | None = None
    task: str | None = None
    classes: tuple[str, ...] = ()
    train: Images | None = None
    masks: Images | None = None
    by_class: bool = False
    test_by_class: bool = False
    valid: str | None = None
    test: Images | None = None
    test_csv: str | None = None
    sample: str | None = None
    format: str | None = None
    format_params: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    archives: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    size: tuple[int, int, int] | None = None
    rows: int | None = None


@dataclass(frozen=True)
class _Tree:
    """Tables and folders with images in them, below a root."""

    root: Path
    tables: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)

    def without(self, images: Images | None) -> _Tree:
        taken = set() if images is None else {images.folder, *folders_of(self.root, images.folder)}
        return replace(self, folders=[name for name in self.folders if name not in taken])


def discover(root: Path) -> Facts:
    """Look through a competition's folder.

    Args:
        root: the data folder; tables and image folders may be up to three levels down.

    Raises:
        DataError: a CSV cannot be read.
    """
    tree = _look_around(root)
    sample_csv = _table_named(tree.tables, ("sample", "submission"))
    rest = [name for name in tree.tables if name != sample_csv]
    train_csv = _table_named(rest, ("train", "label"))
    test_csv = _table_named([name for name in rest if name != train_csv], ("test",))
    if train_csv is None and len(rest) == 1 and test_csv is None:
        train_csv = rest[0]
    sample = read_frame(root / sample_csv, text=True) if sample_csv else None
    asked = [] if sample is None else [str(name) for name in sample.columns[1:]]
    facts = _from_table(tree, train_csv, asked, sample) if train_csv else _from_folders(tree)
    tree = tree.without(facts.train).without(facts.masks)
    test, used_csv = _test(tree, test_csv, sample_csv)
    named = test is not None and any(name.partition("/")[0] in facts.classes for name in _inside(tree, test))
    format, params = _format(facts.task, facts.classes, sample)
    return replace(
        facts,
        test=test,
        test_csv=used_csv,
        test_by_class=named and used_csv is None,
        sample=sample_csv,
        format=format,
        format_params=params,
        size=_size(root, facts.train),
        archives=tuple(tree.archives) if facts.train is None or test is None else (),
    )


def _look_around(root: Path) -> _Tree:
    tree = _Tree(root)
    base = len(os.path.join(root, ""))
    for parent, folders, names in os.walk(root, followlinks=True):
        below = parent[base:]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        if below and below.count("/") + 1 >= _DEPTH:
            folders.clear()
        tree.tables.extend(os.path.join(below, name) for name in sorted(names) if name.lower().endswith(_TABLES))
        tree.archives.extend(os.path.join(below, name) for name in sorted(names) if name.lower().endswith(ARCHIVES))
        if any(stem(name) != name for name in names if not name.startswith(".")):
            tree.folders.append(below)
    return tree


def _table_named(tables: Sequence[str], words: Sequence[str]) -> str | None:
    """Return the shallowest table whose name has one of the words, earlier words first."""
    for word in words:
        named = [name for name in tables if word in name.rpartition("/")[2].lower()]
        if named:
            return min(named, key=lambda name: (name.count("/"), len(name), name))
    return None


def _from_table(tree: _Tree, table: str, asked: Sequence[str], sample: pd.DataFrame | None) -> Facts:
    frame = read_frame(tree.root / table, text=True)
    id_column, train = _match(tree, frame, word="train")
    columns = [str(name) for name in frame.columns if name != id_column]
    target, classes = _target(frame, columns, asked)
    masks, separator, why = None, None, list[str]()
    if any(_MASKS.search(name) for name in [*asked[-1:], *target]):
        task: str | None = "segmentation"
        target, classes = (), ()
        names = frame[id_column].head(_PROBE).tolist()
        tries = [_try(tree.root, folder, names) for folder in tree.folders if _ANSWERS.search(folder)]
        masks = max(tries, key=lambda item: item[0], default=(0.0, None))[1]
    else:
        task = detect_task(frame, target) if target else None
        if task in ("single_label", "multi_label") and len(target) == 1 and not classes:
            task, separator, reason = _words(frame[target[0]], sample, task)
            why += [reason] if reason else []
        classes = classes or _classes(frame, target, task, separator)
        if task is not None and task != "regression" and not 2 <= len(classes) <= max(20, len(frame) / 2):
            task, target, classes = None, (), ()  # one value, or one per row: a column of something else
    other = tuple(name for name in columns if name not in target and not _MASKS.search(name))
    return Facts(
        train_csv=table,
        id=id_column,
        target=target,
        other=other,
        group=next((name for name in other if 1 < frame[name].nunique() <= len(frame) / 2), None),
        task=task,
        classes=classes,
        train=train,
        masks=masks,
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


def _match(tree: _Tree, frame: pd.DataFrame, *, word: str) -> tuple[str, Images | None]:
    """Return the column whose values name images and the folder that has them; the first column if none does."""
    best = (0.5, 0, 0)
    match: tuple[str, Images | None] = (str(frame.columns[0]), None)
    for position, column in enumerate(map(str, frame.columns[:8])):
        names = [name for name in dict.fromkeys(frame[column].head(_PROBE)) if name]
        for folder in dict.fromkeys([*tree.folders, "", *_patterns(tree.folders)]):
            if set(folder) & set("*{") and best[0] == 1:
                continue  # one folder has them all
            share, images = (0.0, None) if _ANSWERS.search(folder) else _try(tree.root, folder, names)
            fits = (share, int(word in folder.lower()), -position) if share else (0.0, 0, 0)
            if images and fits > best:
                best, match = fits, (column, images)
    return match


def _patterns(folders: Sequence[str]) -> list[str]:
    """Return patterns of folders that may hold one table's images together: numbered parts, all below one folder."""
    numbered = Counter(re.sub(r"[0-9]+", "*", folder) for folder in folders if re.search(r"[0-9]", folder))
    parents = Counter(parent for folder in folders for parent in _parents(folder))
    return [*(name for name, count in numbered.items() if count > 1),
            *(f"{name}/**" for name, count in parents.items() if count > 1)]  # fmt: skip


def _parents(folder: str) -> list[str]:
    parts = folder.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _try(root: Path, folder: str, names: Sequence[str]) -> tuple[float, Images | None]:
    """Return the share of names that have an image in the folder, and how those are called."""
    files = find_files(root, folder, names, suffix=None)
    lacking = {*files.missing, *files.several}
    there = [(names[row], path) for row, path in enumerate(files.paths) if row not in lacking]
    paths = {name: path for name, path in there if stem(path) != path}
    if not paths:
        return 0.0, None
    suffixes = {path[path.rfind(clean(name)) + len(clean(name)) :] for name, path in paths.items()}
    suffix = suffixes.pop() if len(suffixes) == 1 else None
    return len(paths) / len(names), Images(folder, suffix, next(iter(paths.values())))


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


def _from_folders(tree: _Tree) -> Facts:
    """Look for a folder with one folder of images per class."""
    inner = Counter(folder.rpartition("/")[0] for folder in tree.folders if "/" in folder)
    trees = [folder for folder, count in inner.items() if count > 1 and not _test_part(folder)]
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


def _test(tree: _Tree, test_csv: str | None, sample_csv: str | None) -> tuple[Images | None, str | None]:
    """Return the test images, and the table of their ids unless the folder alone gives the same ids."""
    for table in (test_csv, sample_csv):
        if table is None:
            continue
        frame = read_frame(tree.root / table, text=True)
        column, images = _match(tree, frame, word="test")
        if images is None:
            continue
        listed = list_images(tree.root, images.folder, suffix=images.suffix)[0]
        alone = table == sample_csv and images.suffix != "" and set(frame[column]) == set(listed)
        return images, None if alone else table
    tests = [name for name in tree.folders if _test_part(name)]
    if not tests:
        return None, None
    part = _test_part(tests[0])
    below = [name for name in tests if name == part or name.startswith(f"{part}/")]
    folder = below[0] if len(below) == 1 else os.path.commonpath(below)
    paths = list_images(tree.root, folder, suffix=None)[1]
    suffixes = {os.path.splitext(path)[1] for path in paths}
    return Images(folder, suffixes.pop() if len(suffixes) == 1 else None, paths[0]), None


def _inside(tree: _Tree, images: Images) -> list[str]:
    """Return the paths of the image folders below another one."""
    return [name.removeprefix(f"{images.folder}/") for name in tree.folders if name.startswith(f"{images.folder}/")]


def _test_part(folder: str) -> str:
    """Return a folder down to the part of its path that says it is a test set's; empty where none does."""
    parts = folder.split("/")
    return next(("/".join(parts[: end + 1]) for end, part in enumerate(parts) if _TEST.search(part)), "")


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
