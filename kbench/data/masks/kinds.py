"""Masks: the targets of dense tasks, however a competition writes them.

A mask kind is a registered factory that returns a `MaskKind`: how the cells of a row are found and how they become an
array. Whatever the writing, the array of a row has the size of its image and is

    segmentation, two classes or more   [H, W, 1] uint8 class index, 255 where ignored
    segmentation of one class           [H, W, 1] uint8 0 or 1, 255 where ignored
    multi_label_segmentation            [H, W, K] uint8 0 or 1 per class, 255 where ignored
    dense_regression                    [H, W, K] float32 target units, NaN where unknown

Here are the kinds of one file per image; `layers.py` has those of one file per class or object, and
`run_length_csv.py` those of run-length texts. To add a way masks are written, write a factory in one of them with
`@register("mask")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kbench.data.images.decoding import PLAIN, Decoding
from kbench.data.images.headers import Damaged, read_header
from kbench.data.masks.classes import (
    Codec,
    Lookup,
    colour_table,
    lookup,
    names_problems,
    raise_masks,
)
from kbench.data.masks.mask_files import Place, shared_problems, stray_files
from kbench.data.masks.pixels import ON, YesNo, as_grey, is_lossy, shown, stored, without_alpha, yes_no
from kbench.data.table.image_files import find_files, stem
from kbench.data.table.reading import Cells, MaskKind, MaskRows, Request, Size, file_problems
from kbench.errors import ConfigError, DataError, Problem, first_names, nearest
from kbench.registry import register
from kbench.tasks import IGNORED

__all__ = ["MaskKind"]

_OUTSIDE = 1 << 16  # stands for every pixel value that no YAML can name


def one_file(request: Request, frame: pd.DataFrame, ids: np.ndarray, *, folder: str, suffix: str | None) -> MaskRows:
    """Find the one mask file of each row.

    Args:
        request: which rows.
        frame: rows of the CSV; not looked at.
        ids: [N] ids.
        folder: of the masks, below the root.
        suffix: what their names have after the id; None finds it.
    """
    mask_files = find_files(request.root, folder, [stem(name) for name in ids], suffix=suffix)
    lacking, problems = file_problems(request, [mask_files], ids, masks=True)
    places = [Place(folder, suffix, mask_files.paths)]
    stray = stray_files(request, ids, places)
    problems += shared_problems(ids, places)
    return MaskRows(tuple((path,) for path in mask_files.paths), lacking, problems, (stray,) if stray else ())


@register("mask", tasks=("segmentation",))
def index(
    *,
    folder: str,
    suffix: str | None = None,
    values: dict[str, int | list[int]] | None = None,
    ignore: list[int] | None = None,
    rest: str | None = None,
    threshold: float | None = None,
    _classes: Sequence[str] = (),
    _decoding: Decoding = PLAIN,
) -> MaskKind:
    """Read images whose pixel values are class numbers; of palette images, the numbers of the colours.

    Args:
        folder: of the mask images.
        suffix: what their names have after the id, such as `_mask.png`; found by default.
        values: class -> its pixel value, or several that are merged into it; by default the classes count from 0.
            One class alone is 1, 255 or 65535, in one way in each file; beside `values` every other one is what it is
            not. Of JPEG, what is above half of the scale is the one class.
        ignore: pixel values that are neither trained on nor scored.
        rest: class of every value that is named nowhere, or `ignore`; such values are an error by default. Beside one
            class 0 stays what it is not, so that numbers of objects are `rest: CLASS`.
        threshold: pixels above it are the one class.
        _classes: `data.classes`; the names of `values` by default.
        _decoding: orientation and limit, of `input`.

    Raises:
        ConfigError: classes and values do not fit.

    Source: rows S-01 and S-11.
    """
    names = tuple(_classes) or tuple(values or ())
    rule = yes_no(threshold, ignore, _decoding)
    if threshold is not None and (len(names) != 1 or values is not None or rest is not None):
        raise ConfigError(
            "data.masks.threshold beside several classes, `values` or `rest`", "one class, which pixels above it are",
            "remove `threshold`, or the others",
        )  # fmt: skip
    if len(names) == 1 and values is None and rest in (None, *names):
        raise_masks(names_problems(names))
        return MaskKind(
            names, partial(one_file, folder=folder, suffix=suffix),
            partial(_yes_no, rule=rule, name=names[0], rest=rest), on=rule.on,
        )  # fmt: skip
    classes_of = _values(names, values, ignore=ignore or (), rest=rest)
    table = np.full(_OUTSIDE + 1, IGNORED if classes_of.rest is None else classes_of.rest, dtype=np.uint8)
    known = np.full(_OUTSIDE + 1, classes_of.rest is not None)
    for value, number in classes_of.classes.items():
        if not 0 <= value < _OUTSIDE:
            raise ConfigError(f"the pixel value {value}", "0 to 65535", "correct data.masks in the YAML")
        table[value], known[value] = number, True

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        pixels, scale = _numbers(root / cells[0], cells[0], alone=len(names) == 1, decoding=_decoding)
        _refuse_losses(root / cells[0], cells[0], "save the masks anew, or name `colour` with `codec: nearest`")
        if not known[_places(pixels)].all() and scale > 1 and known[_places(pixels * scale)].all():
            pixels = pixels * scale  # the YAML names the values that viewers show
        places = _places(pixels)
        strange = pixels[~known[places]]
        if strange.size:
            raise DataError(
                f"the mask '{cells[0]}' has the values {_listed(np.unique(strange))}",
                f"those of its {len(names)} classes, or of `ignore`: {np.flatnonzero(known).tolist()[:20]}",
                "correct data.classes, or `values`, `ignore` or `rest` of data.masks, or name another mask kind",
            )
        return np.asarray(table[places])

    return MaskKind(classes_of.names, partial(one_file, folder=folder, suffix=suffix), read)


def _values(
    names: Sequence[str], values: dict[str, int | list[int]] | None, *, ignore: Sequence[int], rest: str | None
) -> Lookup:
    """Return which class each pixel value is of; black is nothing where one class stands against `rest`."""
    values_of = {name: [place] for place, name in enumerate(names)} if values is None else {
        name: [value] if isinstance(value, int) else list(value) for name, value in values.items()
    }  # fmt: skip
    if len(names) != 1 or rest is None:
        return lookup(values_of, names=names, ignore=ignore, rest=rest)
    if values is None:  # nothing but yes and no, and what is neither is ignored
        values_of = {names[0]: [value for value in ON if value not in ignore]}
    classes_of = lookup(values_of, names=names, ignore=ignore, rest=rest)
    if classes_of.classes.setdefault(0, 0) == 1 and classes_of.rest == 1:
        raise_masks(
            [Problem("data.masks.rest", f"every pixel would be '{names[0]}'", "remove `rest`, or 0 of `values`")]
        )
    return classes_of


def _yes_no(
    root: Path, cells: Cells, size: Callable[[], Size], *, rule: YesNo, name: str, rest: str | None
) -> np.ndarray:
    """Return a file's mask of one class; with `rest` any number but 0 is the class."""
    soft = rule.threshold is not None
    pixels, _ = _numbers(root / cells[0], cells[0], alone=True, decoding=rule.decoding, soft=soft)
    if rest is not None:
        _refuse_losses(root / cells[0], cells[0], "write `threshold: 127` in data.masks instead of `rest`")
    if rule.threshold is not None or is_lossy(root / cells[0]):
        return rule.of_pixels(pixels, root, cells[0])
    values = np.setdiff1d(np.unique(pixels), [0, *rule.ignore])
    strange = np.setdiff1d(values, ON)
    if rest is None and len(strange):
        raise DataError(
            f"the mask '{cells[0]}' has the values {_listed(strange)}",
            f"0, and 1, 255 or 65535 for '{name}', or values of `ignore`: {list(rule.ignore)}",
            f"write in data.masks `rest: {name}` if all but 0 is the class, such as numbers of objects, `ignore: "
            f"{strange.tolist()[:4]}` if they are void, `values: {{{name}: {int(strange[0])}}}` if they say yes, or "
            f"`threshold: {min(127, int(values.max()) // 2)}` if brighter pixels are the class; or name several "
            "data.classes",
        )
    if rest is None:
        return rule.of_pixels(pixels, root, cells[0])
    layer = np.asarray(pixels != 0).astype(np.uint8)
    layer[np.isin(pixels, rule.ignore)] = IGNORED
    return layer


def _places(pixels: np.ndarray) -> np.ndarray:
    """Return where pixel values stand in a table of all that a YAML can name, the last place for all others."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    return np.where((pixels < 0) | (pixels > _OUTSIDE), _OUTSIDE, pixels).astype(np.int64)


def _refuse_losses(path: Path, cell: str, todo: str) -> None:
    """Refuse numbers of a file whose kind turns them into others."""
    if is_lossy(path):
        raise DataError(
            f"the mask '{cell}' was stored with losses, which turn its numbers into others",
            "a file without losses, such as PNG", todo,
        )  # fmt: skip


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:8].tolist())) + (f" and {len(values) - 8:,} more" if len(values) > 8 else "")


def _numbers(path: Path, cell: str, *, alone: bool, decoding: Decoding, soft: bool = False) -> tuple[np.ndarray, int]:
    """Return [H, W, 1] pixel values, of a palette image the numbers of its colours, and what viewers multiply them by.

    Args:
        path: the file.
        cell: its name, for messages.
        alone: whether it says only yes and no.
        decoding: orientation and limit, of `input`.
        soft: whether a threshold says from where on alpha is yes.
    """
    pixels, scale = stored(path, decoding)
    pixels = without_alpha(pixels, of=cell, alone=alone, soft=soft)
    grey = as_grey(pixels, lossy=is_lossy(path))
    pixels = pixels if grey is None else grey[:, :, None]
    if pixels.dtype.kind == "f" and np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all():
        pixels = pixels.astype(np.int64)
    if pixels.shape[2] != 1 or pixels.dtype.kind not in "ui":
        raise DataError(
            f"the mask '{path}' has {pixels.shape[2]} channels of {pixels.dtype}",
            "one channel of whole numbers, or grey",
            "name another mask kind in data.masks, such as colour; `kbench list mask`",
        )
    return pixels, scale


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
    classes_of = lookup(sources, names=names, ignore=outside, rest=rest, problems=problems)
    numbers = np.array(
        [classes_of.classes.get(place, classes_of.rest or 0) for place in range(len(table))], dtype=np.uint8
    )
    coder = Codec(np.array(list(table.values()), dtype=np.uint8), codec)

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        image = _shown_colours(root / cells[0], cells[0], _decoding)
        if image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        if image.dtype != np.uint8 or image.shape[2] != 3:
            raise DataError(
                f"the mask '{cells[0]}' has {image.shape[2]} channels of {image.dtype}", "a colour image of 8 bits",
                "name another mask kind in data.masks; `kbench list mask`",
            )  # fmt: skip
        return np.asarray(numbers[coder.decode(image, of=cells[0])][:, :, None])

    if len(names) == 1 and rest == names[0]:
        hint = f"write `merge: {{{names[0]}: [COLOURS]}}` instead"
        raise_masks([Problem("data.masks.rest", f"every pixel would be '{rest}'", hint)])
    facts = [[name, list(rgb)] for name, rgb in table.items()] + sorted(out)
    return MaskKind(classes_of.names, partial(one_file, folder=folder, suffix=suffix), read, facts=facts)


def _shown_colours(path: Path, cell: str, decoding: Decoding) -> np.ndarray:
    """Return [H, W, 1 or 3] colours as a viewer shows them, without alpha."""
    pixels, scale = shown(path, decoding)
    return without_alpha(pixels * scale if scale > 1 else pixels, of=cell, alone=False)


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
        pixels, _ = stored(path, _decoding)
        if pixels.shape[2] != len(names):
            raise DataError(
                f"the target '{cells[0]}' has {pixels.shape[2]} channels", f"{len(names)}: {first_names(names)}",
                "correct data.classes in the YAML, one name per channel",
            )  # fmt: skip
        unknown = nodata if nodata is not None else _own_nodata(path)
        with np.errstate(over="ignore", invalid="ignore"):  # what no float32 holds is infinite, and so unknown
            numbers = pixels.astype(np.float32)
            wrong = ~np.isfinite(numbers)
            if unknown is not None:
                wrong |= (pixels == unknown) | (numbers == np.float32(unknown))
            numbers = numbers * np.float32(scale)
        numbers[wrong | ~np.isfinite(numbers)] = np.nan
        return numbers

    return MaskKind(names, partial(one_file, folder=folder, suffix=suffix), read)


def _own_nodata(path: Path) -> float | None:
    """Return the value a GeoTIFF says is no data, or None."""
    try:
        with open(path, "rb") as file:
            header = read_header(file)
        return float(header.nodata) if header is not None and header.nodata else None
    except (Damaged, ValueError):
        return None
