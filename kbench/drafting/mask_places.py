"""Where the masks of images lie: one file per image, one per class, or a folder of objects per image.

A folder of masks is one whose name says so (`masks`, `annotations`, `train_labels`, `gt`) and whose files are called
like images. What its files hold is told in `mask_pixels.py`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kbench.data.images.decoding import PLAIN
from kbench.data.masks.pixels import yes_no
from kbench.data.table.image_files import find_files, list_images, stem
from kbench.drafting.class_tables import ClassTable
from kbench.drafting.mask_pixels import OBJECT, Masks, masks_of_files
from kbench.errors import DataError

ANSWERS = re.compile(
    r"mask|target|annot|ground.?truth|(^|[/_. -])(labels?|gt|segmentations?)($|[/_. -])", re.IGNORECASE
)
_HALF = 0.5  # of the images, that must have a mask
_PROBE = 100
_CLASS_END = re.compile(r"([^A-Za-z0-9]+)(.*?)(\.[^.]+)")  # sign, class and ending behind an id
_OVERLAPS = 20  # images whose classes are held against each other


@dataclass(frozen=True)
class Place:
    """A folder with a mask of each image.

    Attributes:
        folder: below the root.
        suffix: what names have after the id; None where several endings stand.
        paths: of the masks of the images that were asked for.
        share: of those that have one.
    """

    folder: str
    suffix: str | None
    paths: list[str]
    share: float


def masks_beside(root: Path, folders: Sequence[str], names: Sequence[str], table: ClassTable | None) -> Masks | None:
    """Return how the masks of images lie and what they hold; None where there are none.

    Args:
        root: the data folder.
        folders: with images, below it.
        names: ids of training images.
        table: names, numbers and colours of classes.

    Raises:
        DataError: a file cannot be read.
    """
    answers = [folder for folder in folders if ANSWERS.search(folder)]
    names = list(dict.fromkeys(stem(name) for name in names))
    if not answers or not names:
        return None
    return (
        _single(root, answers, names, table) or _layers_in_folders(root, answers, names)
        or _layers_in_names(root, answers, names) or _objects(root, answers, names)
    )  # fmt: skip


def _place(root: Path, folder: str, names: Sequence[str]) -> Place:
    """Return a folder as the place of the masks of images."""
    files = find_files(root, folder, names, suffix=None)
    lacking = {*files.missing, *files.several}
    paths = {names[row]: path for row, path in enumerate(files.paths) if row not in lacking and stem(path) != path}
    suffixes = {path[path.rfind(name) + len(name) :] for name, path in paths.items()}
    suffix = next(iter(suffixes)) if len(suffixes) == 1 else None
    return Place(folder, suffix, list(paths.values()), len(paths) / len(names))


def truth_reader(root: Path, folders: Sequence[str], names: Sequence[str]) -> Callable[[str], np.ndarray | None]:
    """Return a function of an image's id that reads its mask file as [H, W] yes and no; None where there is none."""
    names = list(dict.fromkeys(stem(name) for name in names))
    places = [_place(root, folder, names) for folder in folders if ANSWERS.search(folder)] if names else []
    best = max(places, key=lambda place: place.share, default=None)
    paths = {} if best is None else {os.path.basename(stem(path)).removesuffix(stem(best.suffix or "")): path
                                     for path in best.paths}  # fmt: skip
    rule = yes_no(None, None, PLAIN)

    def truth_of(name: str) -> np.ndarray | None:
        path = paths.get(stem(name))
        try:
            return None if path is None else np.asarray(rule.layer(root, path)[:, :, 0] == 1)
        except DataError:
            return None  # no file of one class

    return truth_of


def _where(place: Place) -> dict[str, Any]:
    return {"folder": place.folder, **({"suffix": place.suffix} if place.suffix else {})}


def _single(root: Path, answers: Sequence[str], names: Sequence[str], table: ClassTable | None) -> Masks | None:
    """Return masks of one file per image, called like it or with one text behind its id."""
    if len(_siblings(root, answers, names)) > 1:
        return None
    best = max((_place(root, folder, names) for folder in answers), key=lambda place: place.share)
    if best.share < _HALF:
        best = max((_behind(root, folder, names) for folder in answers), key=lambda place: place.share)
    if best.share < _HALF:
        return None
    return masks_of_files(root, best.paths, _where(best), table)


def _behind(root: Path, folder: str, names: Sequence[str]) -> Place:
    """Return a folder whose files have the one text behind the id that most images have."""
    ends = Counter(end for _, end in _ends(root, folder, names))
    end, count = max(ends.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    if not count or sum(share >= count / 2 for share in ends.values()) > 1:
        return Place(folder, None, [], 0.0)
    prefix = f"{folder}/" if folder else ""
    paths = [f"{prefix}{name}{end}" for name in names if (root / f"{prefix}{name}{end}").is_file()]
    return Place(folder, end, paths, len(paths) / len(names))


def _ends(root: Path, folder: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return id and what follows it of the files in a folder that begin with an id, the longest that fits."""
    known = sorted(names, key=len, reverse=True)
    pairs = []
    for file in sorted(os.listdir(root / folder)):
        name = next((name for name in known if file.startswith(name)), None)
        if name is not None and stem(file) != file:
            pairs.append((name, file[len(name) :]))
    return pairs


# -- a file per class -----------------------------------------------------------------------------------------------


def _siblings(root: Path, answers: Sequence[str], names: Sequence[str]) -> list[Place]:
    """Return the folders beside one another that have masks of the same images, the most there are."""
    groups: dict[str, list[Place]] = {}
    for folder in answers:
        parent = folder.rpartition("/")[0]
        place = _place(root, folder, names) if parent and ANSWERS.search(parent) else None
        if place is not None and place.share > 0:
            groups.setdefault(parent, []).append(place)
    return max(groups.values(), key=len, default=[])


def _layers_in_folders(root: Path, answers: Sequence[str], names: Sequence[str]) -> Masks | None:
    places = _siblings(root, answers, names)
    if len(places) < 2:
        return None
    classes = sorted(place.folder.rpartition("/")[2] for place in places)
    suffixes = {place.suffix for place in places}
    suffix = suffixes.pop() if len(suffixes) == 1 else None
    parent = places[0].folder.rpartition("/")[0]
    where = {"folder": f"{parent}/{{class}}", **({"suffix": suffix} if suffix else {})}
    of_image: dict[str, dict[str, str]] = {}
    for place in places:
        for path in place.paths:
            of_image.setdefault(stem(path.rpartition("/")[2]), {})[place.folder.rpartition("/")[2]] = path
    return _layered(root, where, classes, of_image, len(names), f"'{parent}' has a folder for each class")


def _layers_in_names(root: Path, answers: Sequence[str], names: Sequence[str]) -> Masks | None:
    for folder in answers:
        pairs = [
            (name, re.fullmatch(r"([^A-Za-z0-9]+)(.*?)(\.[^.]+)", end)) for name, end in _ends(root, folder, names)
        ]
        cut = [(name, match) for name, match in pairs if match is not None and match[2]]
        counts = Counter(match[2] for _, match in cut)
        signs, ends = {match[1] for _, match in cut}, {match[3] for _, match in cut}
        common = [label for label, count in counts.items() if count > 1]
        if len({name for name, _ in cut}) < _HALF * len(names) or len(common) < 2 or len(signs) != 1 or len(ends) != 1:
            continue
        if all(label.isdigit() for label in common) and len(common) > 1 and len(common) < len(counts):
            continue  # objects that are numbered
        of_image: dict[str, dict[str, str]] = {}
        for name, match in cut:
            of_image.setdefault(name, {})[match[2]] = f"{folder}/{name}{match[0]}"
        where = {"folder": folder, "suffix": f"{signs.pop()}{{class}}{ends.pop()}"}
        return _layered(root, where, sorted(counts), of_image, len(names), "names of files end with a class")
    return None


def _layered(
    root: Path, where: dict[str, Any], classes: Sequence[str], of_image: dict[str, dict[str, str]], images: int,
    why: str,
) -> Masks:  # fmt: skip
    """Return masks of one file per class: classes that overlap, or leave pixels out, are tags of pixels."""
    complete = len(of_image) == images and all(len(files) == len(classes) for files in of_image.values())
    kind: dict[str, Any] = {"name": "per_class", **where, **({} if complete else {"missing": "empty"})}
    reasons = [why] + ([] if complete else ["not every image has a file of every class: those are empty masks"])
    shared, left = False, False
    for name in sorted(of_image)[:: max(1, len(of_image) // _OVERLAPS)]:
        total = _stacked(root, list(of_image[name].values()))
        shared, left = shared or bool((total > 1).any()), left or bool((total == 0).any())
    apart = not shared and not left
    reasons.append("classes share no pixel and leave none out" if apart else
                   "classes share pixels, so each is told apart" if shared else
                   "pixels of no class are left, so each class is told apart")  # fmt: skip
    return Masks("segmentation" if apart else "multi_label_segmentation", kind, tuple(classes), tuple(reasons))


def _stacked(root: Path, paths: Sequence[str]) -> np.ndarray:
    """Return [H, W] how many of the files say yes."""
    rule = yes_no(None, None, PLAIN)
    layers = [rule.layer(root, path)[:, :, 0] == 1 for path in paths]
    return np.asarray(sum(layer.astype(np.int64) for layer in layers if layer.shape == layers[0].shape))


# -- a folder per image ---------------------------------------------------------------------------------------------


def _objects(root: Path, answers: Sequence[str], names: Sequence[str]) -> Masks | None:
    """Return masks of one file per object, in a folder whose path has the image's id."""
    known, templates = set(names), Counter[str]()
    for folder in answers:
        parts = folder.split("/")
        for place, part in enumerate(parts):
            if part in known:
                templates["/".join([*parts[:place], "{id}", *parts[place + 1 :]])] += 1
    template, count = max(templates.items(), key=lambda item: item[1], default=("", 0))
    if count < _HALF * len(names):
        return None
    kind: dict[str, Any] = {"name": "instances", "folder": template}
    why = [f"'{template}' has a file for each object"]
    files = [
        path.rpartition("/")[2] for name in names[:_PROBE] for path in _listed(root, template.replace("{id}", name))
    ]
    words = [match for match in (re.fullmatch(r"[0-9]+[_-]([A-Za-z]\w*)\.\w+", file) for file in files) if match]
    labels = sorted({match[1] for match in words})
    if len(words) == len(files) and 1 < len(labels) < len(files) / 2:
        kind["label"] = r"\d+[_-](?P<label>\w+)\.\w+"
        why.append("names of files end with a class; objects may share pixels")
        return Masks("multi_label_segmentation", kind, tuple(labels), tuple(why))
    return Masks("segmentation", kind, (OBJECT,), (*why, "one class, as no name of a file tells: call it as you like"))


def _listed(root: Path, folder: str) -> list[str]:
    try:
        return list_images(root, folder, suffix=None)[1]
    except DataError:
        return []  # an image without a folder
