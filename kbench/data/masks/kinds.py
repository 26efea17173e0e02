"""Masks: the targets of dense tasks, however a competition writes them.

A mask kind is a registered factory that returns a `MaskKind`: how the cells of a row are found and how they become an
array. Whatever the writing, the array of a row has the size of its image and is

    segmentation, two classes or more   [H, W, 1] uint8 class index, 255 where ignored
    segmentation of one class           [H, W, 1] uint8 0 or 1, 255 where ignored
    multi_label_segmentation            [H, W, K] uint8 0 or 1 per class, 255 where ignored
    dense_regression                    [H, W, K] float32 target units, NaN where unknown

Here are the kinds of one file per image; `mask_layers.py` has those of one layer per class. To add a way masks are
written, write a factory in either with `@register("mask")`.

Masks of one file per class or per object; `mask_runs.py` has those of run-length texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd

from kbench.data.images.decoding import PLAIN, Decoding, check_file, decode, decode_numbers
from kbench.data.images.headers import Damaged, read_header
from kbench.data.masks.classes import (
    Codec,
    Lookup,
    background_of,
    colour_table,
    lookup,
    names_problems,
    raise_masks,
    united,
)
from kbench.data.table.image_files import Found, Listing, find_files, stem
from kbench.data.table.reading import Cells, MaskKind, MaskRows, Request, Size, file_problems
from kbench.errors import ConfigError, DataError, Problem, counted, first_names, nearest
from kbench.registry import register
from kbench.tasks import IGNORED, SEGMENTATION

__all__ = ["MaskKind"]

_ON = (1, 255, 65535)  # how masks of one class say yes


def one_file(request: Request, frame: pd.DataFrame, ids: np.ndarray, *, folder: str, suffix: str | None) -> MaskRows:
    """Find the one mask file of each row.

    Args:
        request: which rows.
        frame: rows of the CSV; not looked at.
        ids: [N] ids.
        folder: of the masks, below the root.
        suffix: what their names have after the id; None finds it.
    """
    found = find_files(request.root, folder, [stem(name) for name in ids], suffix=suffix)
    lacking, problems = file_problems(request, [found], ids)
    return MaskRows(tuple((path,) for path in found.paths), lacking, problems)


@register("mask", tasks=("segmentation",))
def index(
    *,
    folder: str,
    suffix: str | None = None,
    values: dict[str, int | list[int]] | None = None,
    ignore: list[int] | None = None,
    rest: str | None = None,
    _classes: Sequence[str] = (),
    _decoding: Decoding = PLAIN,
) -> MaskKind:
    """Read images whose pixel values are class numbers; of palette images, the numbers of the colours.

    Args:
        folder: of the mask images.
        suffix: what their names have after the id, such as `_mask.png`; found by default.
        values: class -> its pixel value, or several that are merged into it; by default the classes count from 0.
            One class alone is 1, 255 or 65535, and every other value of `values` is what it is not.
        ignore: pixel values that are neither trained on nor scored.
        rest: class of every value that is named nowhere, or `ignore`; such values are an error by default.
        _classes: `data.classes`; the names of `values` by default.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: classes and values do not fit.

    Source: rows S-01 and S-11.
    """
    names = tuple(_classes) or tuple(values or ())
    given = _counted(names) if values is None else {
        name: [value] if isinstance(value, int) else list(value) for name, value in values.items()
    }  # fmt: skip
    found = lookup(given, names=names, ignore=ignore or (), rest=rest)
    if len(names) == 1 and values is None:  # nothing but yes and no
        found = Lookup(names, {0: 0, **dict.fromkeys(_ON, 1), **dict.fromkeys(ignore or (), IGNORED)}, None)
    table = np.full(1 << 16, IGNORED if found.rest is None else found.rest, dtype=np.uint8)
    known = np.full(1 << 16, found.rest is not None)
    for value, number in found.classes.items():
        if not 0 <= value < 1 << 16:
            raise ConfigError(f"the pixel value {value}", "0 to 65535", "correct data.masks in the YAML")
        table[value], known[value] = number, True

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        pixels = _numbers(root / cells[0], _decoding)
        if not known[pixels].all():
            strange = np.unique(pixels[~known[pixels]]).tolist()
            raise DataError(
                f"the mask '{cells[0]}' has the values {', '.join(map(str, strange[:8]))}",
                f"those of its {len(names)} classes, or of `ignore`: {np.flatnonzero(known).tolist()[:20]}",
                "correct data.classes, or `values`, `ignore` or `rest` of data.masks, or name another mask kind",
            )
        return np.asarray(table[pixels])

    return MaskKind(found.names, partial(one_file, folder=folder, suffix=suffix), read)


def _counted(names: Sequence[str]) -> dict[str, list[int]]:
    return {name: [place] for place, name in enumerate(names)}


def _numbers(path: Path, decoding: Decoding) -> np.ndarray:
    """Return [H, W, 1] unsigned pixel values; of a palette image, the numbers of its colours."""
    pixels = decode_numbers(path, decoding)
    if pixels.shape[2] != 1 or pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"the mask '{path}' has {pixels.shape[2]} channels of {pixels.dtype}",
            "one channel of 8 or 16 bits with class numbers",
            "name another mask kind in data.masks, such as colour; `kbench list mask`",
        )
    return pixels


@register("mask", tasks=("segmentation",))
def colour(
    *,
    folder: str,
    colours: dict[str, tuple[int, int, int]] | str,
    suffix: str | None = None,
    codec: Literal["strict", "nearest"] = "strict",
    merge: dict[str, list[str]] | None = None,
    ignore: list[str] | None = None,
    rest: str | None = None,
    _classes: Sequence[str] = (),
    _root: Path = Path(),
    _decoding: Decoding = PLAIN,
) -> MaskKind:
    """Read images whose colours are classes.

    Args:
        folder: of the mask images.
        colours: name -> [r, g, b], or a CSV below the data folder with columns name, r, g, b and perhaps ignore.
        suffix: what their names have after the id; found by default.
        codec: `strict` refuses any other colour; `nearest` takes the nearest one, for masks stored with losses.
        merge: class -> the names of `colours` that are it together.
        ignore: names of `colours` that are neither trained on nor scored.
        rest: class of every colour whose name is no class, or `ignore`; such names are an error by default. One
            class alone stands against all other colours.
        _classes: `data.classes`; the names of `colours` without the ignored ones by default.
        _root: the data folder.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: classes and colours do not fit.
        DataError: the colours cannot be read.

    Source: row S-01.
    """
    table, marked = colour_table(colours, _root)
    out, merged = {*marked, *(ignore or ())}, merge or {}
    places = {name: place for place, name in enumerate(table)}
    parts = {name for several in merged.values() for name in several}
    names = tuple(_classes) or tuple(dict.fromkeys([*(name for name in table if name not in out | parts), *merged]))
    known = {name: list(merged.get(name, [name] if name in table else [])) for name in names}
    asked = [*(ignore or ()), *(name for several in merged.values() for name in several)]
    problems = [
        Problem("data.masks", f"'{name}' is no name of `colours`", nearest(name, table))
        for name in asked
        if name not in table
    ]
    problems += [Problem("data.masks.merge", f"'{name}' is no class", nearest(name, names)) for name in merged
                 if name not in names]  # fmt: skip
    named = {part for several in known.values() for part in several} | out
    lost = [name for name in table if name not in named]
    if lost and rest is None and len(names) > 1:
        hint = "name them in data.classes, `merge`, `ignore` or `rest`"
        problems.append(Problem("data.masks", f"colours that are no class: {first_names(lost)}", hint))
    sources = {name: [places[part] for part in several if part in places] for name, several in known.items()}
    outside = [places[name] for name in sorted(out) if name in places]
    found = lookup(sources, names=names, ignore=outside, rest=rest, problems=problems)
    numbers = np.array([found.classes.get(place, found.rest or 0) for place in range(len(table))], dtype=np.uint8)
    coder = Codec(np.array(list(table.values()), dtype=np.uint8), codec)

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        image = decode(root / cells[0], cv2.IMREAD_UNCHANGED, _decoding)
        if image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        if image.dtype != np.uint8 or image.shape[2] not in (3, 4):
            raise DataError(
                f"the mask '{cells[0]}' has {image.shape[2]} channels of {image.dtype}", "a colour image of 8 bits",
                "name another mask kind in data.masks; `kbench list mask`",
            )  # fmt: skip
        return np.asarray(numbers[coder.decode(image, of=cells[0])][:, :, None])

    facts = [[name, list(rgb)] for name, rgb in table.items()] + sorted(out)
    return MaskKind(found.names, partial(one_file, folder=folder, suffix=suffix), read, facts=facts)


@register("mask", tasks=("dense_regression",))
def values(
    *,
    folder: str,
    suffix: str | None = None,
    scale: float = 1.0,
    nodata: float | None = None,
    _classes: Sequence[str] = (),
    _decoding: Decoding = PLAIN,
) -> MaskKind:
    """Read images whose pixels are the target: TIFF or GeoTIFF, PNG of 16 bits, `.npy`; one channel per target.

    Args:
        folder: of the target images.
        suffix: what their names have after the id, such as `_agbm.tif`; found by default.
        scale: what pixels are multiplied by.
        nodata: pixel value that means unknown; by default what a GeoTIFF says itself. Infinite and NaN mean it too.
        _classes: `data.classes`: the names of the targets; `value` by default.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: names stand twice, or nothing is left of the values.
    """
    names = tuple(_classes) or ("value",)
    raise_masks(names_problems(names))
    if not np.isfinite(scale) or scale == 0:
        raise ConfigError(f"scale is '{scale}'", "a number other than 0", "correct data.masks.scale")

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        path = root / cells[0]
        found = _array(path) if path.suffix.lower() == ".npy" else decode(path, cv2.IMREAD_UNCHANGED, _decoding)
        if found.shape[2] != len(names):
            raise DataError(
                f"the target '{cells[0]}' has {found.shape[2]} channels", f"{len(names)}: {first_names(names)}",
                "correct data.classes in the YAML, one name per channel",
            )  # fmt: skip
        unknown = nodata if nodata is not None else _own_nodata(path)
        with np.errstate(over="ignore", invalid="ignore"):  # what no float32 holds is infinite, and so unknown
            numbers = found.astype(np.float32)
            wrong = ~np.isfinite(numbers)
            if unknown is not None:
                wrong |= (found == unknown) | (numbers == np.float32(unknown))
            numbers = numbers * np.float32(scale)
        numbers[wrong | ~np.isfinite(numbers)] = np.nan
        return numbers

    return MaskKind(names, partial(one_file, folder=folder, suffix=suffix), read)


def _array(path: Path) -> np.ndarray:
    check_file(path)
    try:
        found: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read '{path}': {error}", "an array", "fetch it again") from error
    if found.ndim not in (2, 3) or found.dtype.kind not in "biuf":
        raise DataError(
            f"the target '{path}' has the shape {list(found.shape)} and the dtype {found.dtype}",
            "numbers [height, width] or [height, width, targets]", "write the array anew, channels last",
        )  # fmt: skip
    return np.asarray(found[:, :, None] if found.ndim == 2 else found)


def _own_nodata(path: Path) -> float | None:
    """Return the value a GeoTIFF says is no data, or None."""
    try:
        with open(path, "rb") as file:
            header = read_header(file)
        return float(header.nodata) if header is not None and header.nodata else None
    except (Damaged, ValueError):
        return None


@register("mask", tasks=SEGMENTATION)
def per_class(
    *,
    folder: str,
    suffix: str | None = None,
    labels: dict[str, str] | None = None,
    missing: Literal["error", "empty"] = "error",
    background: str | None = None,
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
        background: class without files, of the pixels no other class has; without it they are ignored, where classes
            exclude one another.
        _classes: `data.classes`.
        _task: the competition's task.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: classes, labels and places do not fit.
    """
    names, called = tuple(_classes), labels or {}
    problems = [*names_problems(names), *_label_problems(called, names)]
    if len(names) > 1 and "{class}" not in folder + (suffix or ""):
        problems.append(Problem("data.masks", "neither folder nor suffix has `{class}`", "such as `masks/{class}`"))
    raise_masks(problems)
    behind = background_of(background, names, _task)

    def found_of(request: Request, ids: np.ndarray, k: int) -> Found:
        if k == behind:
            return Found([""] * len(ids), [], [], "")
        label = called.get(names[k], names[k])
        end = None if suffix is None else suffix.replace("{class}", label)
        found = find_files(request.root, folder.replace("{class}", label), [stem(name) for name in ids], suffix=end)
        if missing == "error":
            return found
        there = np.ones(len(ids), dtype=bool)
        there[found.missing] = False
        paths = [path if is_there else "" for path, is_there in zip(found.paths, there, strict=True)]
        return Found(paths, [], found.several, found.example)

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        found = [found_of(request, ids, k) for k in range(len(names))]
        lacking, wrong = file_problems(request, found, ids)
        return MaskRows(tuple(zip(*(part.paths for part in found), strict=True)), lacking, wrong)

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        layers = [_layer(root, cell, size(), _decoding) if cell else None for cell in cells]
        return united(layers, task=_task, background=behind, size=size(), of=_shown(cells))

    return MaskKind(names, find, read)


@register("mask", tasks=SEGMENTATION)
def instances(
    *,
    folder: str,
    label: str | None = None,
    labels: dict[str, str] | None = None,
    background: str | None = None,
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
        _classes: `data.classes`.
        _task: the competition's task.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: classes, labels and places do not fit.
    """
    names, called = tuple(_classes), labels or {}
    behind = background_of(background, names, _task) if names else None
    pattern, problems = _pattern(label)
    problems += [*names_problems(names), *_label_problems(called, names)]
    if "{id}" not in folder:
        problems.append(Problem("data.masks.folder", f"'{folder}' has no `{{id}}`", "such as `masks/{id}`"))
    if pattern is None and len(names) - (behind is not None) > 1:
        problems.append(Problem("data.masks.label", f"needed for {len(names)} classes", r"`\d+_(?P<label>\w+)\.png`"))
    raise_masks(problems)
    numbers = {called.get(name, name): k for k, name in enumerate(names) if k != behind}
    alone = next(iter(numbers.values()), 0)

    def class_of(path: str) -> int | None:
        if pattern is None:
            return alone
        found = pattern.fullmatch(path.rpartition("/")[2])
        return None if found is None else numbers.get(found["label"])

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        cells: list[Cells] = []
        lacking = np.zeros(len(ids), dtype=bool)
        for row, name in enumerate(ids):
            place = folder.replace("{id}", stem(str(name)))
            lacking[row] = not (request.root / place).is_dir()
            cells.append(tuple(f"{place}/{file}" for file in sorted(Listing(request.root / place).names())))
        absent = [folder.replace("{id}", stem(str(name))) for name in ids[lacking]]
        strange = [path for paths in cells for path in paths if class_of(path) is None]
        wrong = []
        if absent and (request.on_problem == "error" or len(absent) == len(ids)):
            wrong.append(Problem("data.masks", f"{counted(len(absent), 'missing folder')}: {first_names(absent)}"))
        if strange:
            what = f"{counted(len(strange), 'file')} of no class: {first_names(strange)}"
            wrong.append(Problem("data.masks.label", what, f"classes are called {first_names(list(numbers), 20)}"))
        return MaskRows(tuple(cells), lacking, wrong)

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        layers: list[np.ndarray | None] = [None] * len(names)
        for cell in cells:
            k, layer = class_of(cell), _layer(root, cell, size(), _decoding)
            assert k is not None, "`find` refuses such files"
            before = layers[k]
            layers[k] = layer if before is None else before | layer
        return united(layers, task=_task, background=behind, size=size(), of=_shown(cells))

    return MaskKind(names, find, read)


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


def _layer(root: Path, cell: str, size: Size, decoding: Decoding) -> np.ndarray:
    """Return [H, W] bool, where a mask file is not black; alpha does not count."""
    pixels = decode(root / cell, cv2.IMREAD_UNCHANGED, decoding)
    if pixels.shape[:2] != size:
        raise DataError(
            f"the mask '{cell}' is {pixels.shape[0]} x {pixels.shape[1]} pixels",
            f"the {size[0]} x {size[1]} pixels of its image",
            "`kbench check` lists every such mask; correct data.masks in the YAML or the files",
        )
    return np.asarray((pixels[:, :, :3] != 0).any(axis=2))


def _shown(cells: Cells) -> str:
    return next((cell for cell in cells if cell), "")
