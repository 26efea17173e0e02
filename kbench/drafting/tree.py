"""The folders and tables of a data folder, and which of them have the images of some ids."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kbench.data.table.image_files import ARCHIVES, clean, find_files, folders_of, list_images, stem
from kbench.drafting.known import Images
from kbench.drafting.mask_places import ANSWERS
from kbench.errors import DataError

_TABLES = (".csv", ".csv.gz", ".tsv")
_TEST = re.compile(r"(^|[^a-z])test(ing)?([^a-z]|$)", re.IGNORECASE)  # of a folder's name
_PROBE = 100  # ids held against a folder
_DEPTH = 4
_ALIKE = 20  # folders beside one another that differ in one part of their paths: one for each image


@dataclass(frozen=True)
class Tree:
    """Tables and folders with images in them, below a root."""

    root: Path
    tables: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)

    def without(self, images: Images | None) -> Tree:
        """Return it without the folders of some images."""
        taken = set() if images is None else {images.folder, *folders_of(self.root, images.folder)}
        return replace(self, folders=[name for name in self.folders if name not in taken])


def look_around(root: Path) -> Tree:
    """List the tables, archives and folders with images of a data folder.

    Raises:
        DataError: a folder cannot be listed.
    """
    tree = Tree(root)
    base = len(os.path.join(root, ""))
    for parent, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        below = parent[base:]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        if below and below.count("/") + 1 >= _DEPTH:
            folders.clear()
        tree.tables.extend(os.path.join(below, name) for name in sorted(names) if name.lower().endswith(_TABLES))
        tree.archives.extend(os.path.join(below, name) for name in sorted(names) if name.lower().endswith(ARCHIVES))
        if any(stem(name) != name for name in names if not name.startswith(".")):
            tree.folders.append(below)
    return tree


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"the folder '{error.filename}' cannot be listed: {error.strerror or error}", "folders you may read",
        f"look at its permissions (`ls -ld '{error.filename}'`), or move it out of the data folder",
    ) from error  # fmt: skip


def table_named(tables: Sequence[str], words: Sequence[str]) -> str | None:
    """Return the shallowest table whose name has one of the words, earlier words first."""
    for word in words:
        named = [name for name in tables if word in name.rpartition("/")[2].lower()]
        if named:
            return min(named, key=lambda name: (name.count("/"), len(name), name))
    return None


def match(tree: Tree, frame: pd.DataFrame, *, word: str) -> tuple[str, Images | None]:
    """Return the column whose values name images and the folder that has them; the first column if none does."""
    best = (0.5, 0, 0)
    matched: tuple[str, Images | None] = (str(frame.columns[0]), None)
    for position, column in enumerate(map(str, frame.columns[:8])):
        names = [name for name in dict.fromkeys(frame[column].head(_PROBE)) if name]
        for folder in dict.fromkeys([*_places(tree.folders), "", *_patterns(tree.folders)]):
            if set(folder) & set("*{") and best[0] == 1:
                continue  # one folder has them all
            share, images = (0.0, None) if ANSWERS.search(folder) else images_of(tree.root, folder, names)
            fits = (share, int(word in folder.lower()), -position) if share else (0.0, 0, 0)
            if images and fits > best:
                best, matched = fits, (column, images)
    return matched


def _patterns(folders: Sequence[str]) -> list[str]:
    """Return patterns of folders that may hold one table's images together: numbered parts, all below one folder."""
    numbered = Counter(re.sub(r"[0-9]+", "*", folder) for folder in folders if re.search(r"[0-9]", folder))
    parents = Counter(parent for folder in folders for parent in _parents(folder))
    return [*(name for name, count in numbered.items() if count > 1),
            *(f"{name}/**" for name, count in parents.items() if count > 1)]  # fmt: skip


def _parents(folder: str) -> list[str]:
    parts = folder.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def images_of(root: Path, folder: str, names: Sequence[str]) -> tuple[float, Images | None]:
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


def training_folder(tree: Tree) -> Images | None:
    """Return the folder with the training images where no table names them: called so, or the one with most images."""
    folders = [name for name in _places(tree.folders) if not ANSWERS.search(name) and not test_part(name)]
    listed = {name: list_images(tree.root, name, suffix=None)[1] for name in folders}
    best = max(folders, key=lambda name: ("train" in name.lower(), len(listed[name]), "*" in name), default=None)
    if best is None or not listed[best]:
        return None
    suffixes = {os.path.splitext(path)[1] for path in listed[best]}
    return Images(best, suffixes.pop() if len(suffixes) == 1 else None, listed[best][0])


def _places(folders: Sequence[str]) -> list[str]:
    """Return folders, and in place of many that differ in one part alone, such as `train/ID/images`, their pattern."""
    patterns: dict[str, list[str]] = {}
    for folder in folders:
        parts = folder.split("/")
        for place in range(len(parts) - 1):
            patterns.setdefault("/".join([*parts[:place], "*", *parts[place + 1 :]]), []).append(folder)
    many = {pattern: inner for pattern, inner in patterns.items() if len(inner) > 1}
    hidden = {folder for inner in many.values() if len(inner) > _ALIKE for folder in inner}
    return [*many, *(folder for folder in folders if folder not in hidden)]


def inside(tree: Tree, images: Images) -> list[str]:
    """Return the paths of the image folders below another one."""
    return [name.removeprefix(f"{images.folder}/") for name in tree.folders if name.startswith(f"{images.folder}/")]


def test_part(folder: str) -> str:
    """Return a folder down to the part of its path that says it is a test set's; empty where none does."""
    parts = folder.split("/")
    return next(("/".join(parts[: end + 1]) for end, part in enumerate(parts) if _TEST.search(part)), "")
