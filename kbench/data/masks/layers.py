"""Masks of one file per class or per object."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kbench.data.images.decoding import PLAIN, Decoding
from kbench.data.masks.classes import background_of, names_problems, raise_masks, united, with_object
from kbench.data.masks.mask_files import Place, elsewhere, shared_problems, stray_files
from kbench.data.masks.pixels import YesNo, yes_no
from kbench.data.table.image_files import Listing, MatchedFiles, find_files, list_folders, stem
from kbench.data.table.names import strays
from kbench.data.table.reading import Cells, MaskKind, MaskRows, Request, Size, file_problems
from kbench.errors import DataError, Problem, counted, first_names, nearest
from kbench.registry import register
from kbench.tasks import SEGMENTATION


@register("mask", tasks=SEGMENTATION)
def per_class(
    *,
    folder: str,
    suffix: str | None = None,
    labels: dict[str, str] | None = None,
    missing: Literal["error", "empty"] = "error",
    unmatched: Literal["error", "ignore"] = "error",
    background: str | None = None,
    threshold: float | None = None,
    ignore: list[int] | None = None,
    _classes: Sequence[str] = (),
    _task: str = "multi_label_segmentation",
    _decoding: Decoding = PLAIN,
) -> MaskKind:
    """Read one image per class, black where the class is not.

    Args:
        folder: of the masks; `{class}` stands for the class, such as `masks/{class}`.
        suffix: what their names have after the id, such as `_{class}.png`; found by default.
        labels: class -> what `{class}` is for it; its name by default.
        missing: whether a file that is not there is an `error` or an `empty` mask.
        unmatched: whether files that name no image, beside images without any file, are an `error`, or left out
            (`ignore`).
        background: class without files, of the pixels no other class has; without it they are ignored, where classes
            exclude one another.
        threshold: pixels above it are the class. By default those that are not black, in one way in each file, and of
            JPEG those above half of the scale.
        ignore: pixel values that are neither trained on nor scored.
        _classes: `data.classes`.
        _task: the competition's task.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: classes, labels and places do not fit.
    """
    names, called, rule = tuple(_classes), labels or {}, yes_no(threshold, ignore, _decoding)
    problems = [*names_problems(names), *_label_problems(called, names)]
    if called and "{class}" not in folder + (suffix or ""):
        problems.append(Problem("data.masks.labels", "neither folder nor suffix has `{class}`", "remove `labels`"))
    if len(names) > 1 and "{class}" not in folder + (suffix or ""):
        problems.append(Problem("data.masks", "neither folder nor suffix has `{class}`", "such as `masks/{class}`"))
    raise_masks(problems)
    behind = background_of(background, names, _task)

    def place_of(k: int, paths: Sequence[str]) -> Place:
        label = called.get(names[k], names[k])
        end = None if suffix is None else suffix.replace("{class}", label)
        return Place(folder.replace("{class}", label), end, paths)

    def files_of(request: Request, ids: np.ndarray, k: int) -> MatchedFiles:
        if k == behind:
            return MatchedFiles([""] * len(ids), [], [], "")
        place = place_of(k, ())
        mask_files = find_files(request.root, place.folder, [stem(name) for name in ids], suffix=place.suffix)
        if missing == "error":
            return mask_files
        there = np.ones(len(ids), dtype=bool)
        there[mask_files.missing] = False
        paths = [path if is_there else "" for path, is_there in zip(mask_files.paths, there, strict=True)]
        return MatchedFiles(paths, [], mask_files.several, mask_files.example)

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        by_class = [files_of(request, ids, k) for k in range(len(names))]
        lacking, wrong = file_problems(request, by_class, ids, masks=True)
        places = [place_of(k, part.paths) for k, part in enumerate(by_class) if k != behind]
        wrong += shared_problems(ids, places)
        cells = tuple(zip(*(part.paths for part in by_class), strict=True))
        bare, stray = sum(not any(row) for row in cells), stray_files(request, ids, places)
        if stray and bare and unmatched == "error":
            hint = f"{counted(bare, 'image')} would have an empty mask; correct the names, or write `unmatched: ignore`"
            wrong.append(Problem("data.masks", stray, hint))
        return MaskRows(cells, lacking, wrong, (stray,) if stray else ())

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        layers = [_layer(root, cell, size(), rule) if cell else None for cell in cells]
        return united(layers, task=_task, background=behind, size=size(), of=_shown(cells))

    return MaskKind(names, find, read, on=rule.on)


@register("mask", tasks=SEGMENTATION)
def instances(
    *,
    folder: str,
    label: str | None = None,
    labels: dict[str, str] | None = None,
    background: str | None = None,
    threshold: float | None = None,
    ignore: list[int] | None = None,
    _classes: Sequence[str] = (),
    _task: str = "multi_label_segmentation",
    _decoding: Decoding = PLAIN,
) -> MaskKind:
    r"""Read one image per object, black where the object is not, and unite the objects of each class.

    Args:
        folder: of the objects of an image; `{id}` stands for its id, such as `masks/{id}`. An empty folder is an empty
            mask.
        label: regular expression of file names with the class in the group `label`, such as `\d+_(?P<label>\w+)\.png`;
            needed where there are several classes.
        labels: class -> its text in file names; its name by default.
        background: class without files, of the pixels no object has; without it they are ignored, where classes
            exclude one another.
        threshold: pixels above it are the object. By default those that are not black, in one way in each file, and of
            JPEG those above half of the scale.
        ignore: pixel values that are neither trained on nor scored.
        _classes: `data.classes`.
        _task: the competition's task.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: classes, labels and places do not fit.
    """
    names, called, rule = tuple(_classes), labels or {}, yes_no(threshold, ignore, _decoding)
    behind = background_of(background, names, _task) if names else None
    pattern, problems = _pattern(label)
    problems += [*names_problems(names), *_label_problems(called, names)]
    if "{id}" not in folder:
        problems.append(Problem("data.masks.folder", f"'{folder}' has no `{{id}}`", "such as `masks/{id}`"))
    if called and label is None:
        problems.append(Problem("data.masks.labels", "no `label` reads them from file names", "remove `labels`"))
    if pattern is None and len(names) - (behind is not None) > 1:
        problems.append(Problem("data.masks.label", f"needed for {len(names)} classes", r"`\d+_(?P<label>\w+)\.png`"))
    raise_masks(problems)
    numbers = {called.get(name, name): k for k, name in enumerate(names) if k != behind}
    alone = next(iter(numbers.values()), 0)

    def class_of(path: str) -> int | None:
        if pattern is None:
            return alone
        match = pattern.fullmatch(path.rpartition("/")[2])
        return None if match is None else numbers.get(match["label"])

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        cells: list[Cells] = []
        lacking = np.zeros(len(ids), dtype=bool)
        for row, name in enumerate(ids):
            place = folder.replace("{id}", stem(str(name)))
            lacking[row] = not (request.root / place).is_dir()
            cells.append(tuple(f"{place}/{file}" for file in sorted(Listing(request.root / place).names())))
        absent = [folder.replace("{id}", stem(str(name))) for name in ids[lacking]]
        strange = [path for paths in cells for path in paths if class_of(path) is None]
        wrong = shared_problems(ids, [])
        if absent and (request.on_problem == "error" or len(absent) == len(ids)):
            wrong.append(Problem("data.masks", f"{counted(len(absent), 'missing folder')}: {first_names(absent)}"))
        if strange:
            what = f"{counted(len(strange), 'file')} of no class: {first_names(strange)}"
            wrong.append(Problem("data.masks.label", what, f"classes are called {first_names(list(numbers), 20)}"))
        return MaskRows(tuple(cells), lacking, wrong, _stray_folders(request, folder, ids))

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        layers: list[np.ndarray | None] = [None] * len(names)
        for cell in cells:
            k, layer = class_of(cell), _layer(root, cell, size(), rule)
            assert k is not None, "`find` refuses such files"
            layers[k] = with_object(layers[k], layer)
        return united(layers, task=_task, background=behind, size=size(), of=_shown(cells))

    return MaskKind(names, find, read, on=rule.on)


def _stray_folders(request: Request, folder: str, ids: np.ndarray) -> tuple[str, ...]:
    """Return a note of the folders of objects that are of no image, where the id is the folder's whole name."""
    parent, _, last = folder.rpartition("/")
    if last != "{id}" or "{id}" in parent or not (request.root / parent).is_dir():
        return ()
    others, known = elsewhere(request), {stem(str(name)) for name in ids}
    strangers = [name for name in list_folders(request.root, parent) if name not in known and name not in others]
    return (f"folders in '{parent}' with {strays(strangers, ids)}",) if strangers else ()


def _pattern(label: str | None) -> tuple[re.Pattern[str] | None, list[Problem]]:
    try:
        pattern = None if label is None else re.compile(label)
    except re.error as error:
        return None, [Problem("data.masks.label", f"'{label}' is no regular expression: {error}")]
    if pattern is not None and "label" not in pattern.groupindex:
        return None, [Problem("data.masks.label", f"'{label}' has no group 'label'", r"such as `(?P<label>\w+)`")]
    return pattern, []


def _label_problems(labels: dict[str, str], names: Sequence[str]) -> list[Problem]:
    return [Problem("data.masks.labels", f"'{name}' is no class", nearest(name, names)) for name in labels
            if name not in names]  # fmt: skip


def _layer(root: Path, cell: str, size: Size, rule: YesNo) -> np.ndarray:
    """Return the [H, W] uint8 layer of a mask file of its image's size."""
    layer = rule.layer(root, cell)[:, :, 0]
    if layer.shape != size:
        raise DataError(
            f"the mask '{cell}' is {layer.shape[0]} x {layer.shape[1]} pixels",
            f"the {size[0]} x {size[1]} pixels of its image",
            "`kbench check` lists every such mask; correct data.masks in the YAML or the files",
        )
    return layer


def _shown(cells: Cells) -> str:
    return next((cell for cell in cells if cell), "")
