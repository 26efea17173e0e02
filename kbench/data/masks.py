"""Masks: the targets of dense tasks, however a competition writes them.

A mask kind is a registered factory that returns a `MaskKind`: how the cells of a row are found and how they become an
array. Whatever the writing, the array of a row has the size of its image and is

    segmentation, two classes or more   [H, W, 1] uint8 class index, 255 where ignored
    segmentation of one class           [H, W, 1] uint8 0 or 1, 255 where ignored
    multi_label_segmentation            [H, W, K] uint8 0 or 1 per class, 255 where ignored
    dense_regression                    [H, W, K] float32 target units, NaN where unknown

Here are the kinds of one file per image; `mask_layers.py` has those of one layer per class. To add a way masks are
written, write a factory in either with `@register("mask")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from kbench.data.colours import Codec, colour_table
from kbench.data.images import decode
from kbench.data.listings import find_files, stem
from kbench.data.mask_classes import Lookup, lookup, names_problems, raise_masks
from kbench.data.rows import Cells, MaskKind, MaskRows, Request, Size, file_problems
from kbench.errors import ConfigError, DataError, Problem, first_names, nearest
from kbench.registry import register
from kbench.tasks import IGNORED

__all__ = ["MaskKind"]

_ON = (1, 255, 65535)  # how masks of one class say yes
_NODATA = 42113  # GDAL's TIFF tag


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
        pixels = _numbers(root / cells[0])
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


def _numbers(path: Path) -> np.ndarray:
    """Return [H, W, 1] unsigned pixel values; of a palette image, the numbers of its colours."""
    pixels = decode(path, cv2.IMREAD_UNCHANGED)
    if pixels.shape[2] in (3, 4):  # OpenCV shows a palette in its colours
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image)[:, :, None] if image.mode == "P" else pixels
        except UnidentifiedImageError:
            pass  # a kind of file OpenCV alone knows has no palette; its channels are refused below
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
        image = decode(root / cells[0], cv2.IMREAD_UNCHANGED)
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
) -> MaskKind:
    """Read images whose pixels are the target: TIFF or GeoTIFF, PNG of 16 bits, `.npy`; one channel per target.

    Args:
        folder: of the target images.
        suffix: what their names have after the id, such as `_agbm.tif`; found by default.
        scale: what pixels are multiplied by.
        nodata: pixel value that means unknown; by default what a GeoTIFF says itself. Infinite and NaN mean it too.
        _classes: `data.classes`: the names of the targets; `value` by default.

    Raises:
        ConfigError: names stand twice, or nothing is left of the values.
    """
    names = tuple(_classes) or ("value",)
    raise_masks(names_problems(names))
    if not np.isfinite(scale) or scale == 0:
        raise ConfigError(f"scale is '{scale}'", "a number other than 0", "correct data.masks.scale")

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        path = root / cells[0]
        found = _array(path) if path.suffix.lower() == ".npy" else decode(path, cv2.IMREAD_UNCHANGED)
        if found.shape[2] != len(names):
            raise DataError(
                f"the target '{cells[0]}' has {found.shape[2]} channels", f"{len(names)}: {first_names(names)}",
                "correct data.classes in the YAML, one name per channel",
            )  # fmt: skip
        unknown = nodata if nodata is not None else _own_nodata(path)
        numbers = found.astype(np.float32)
        wrong = ~np.isfinite(numbers)
        if unknown is not None:
            wrong |= numbers == np.float32(unknown)
        numbers = numbers * np.float32(scale)
        numbers[wrong] = np.nan
        return numbers

    return MaskKind(names, partial(one_file, folder=folder, suffix=suffix), read)


def _array(path: Path) -> np.ndarray:
    try:
        found: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {error}", "an array", "fetch it again") from error
    return np.asarray(found[:, :, None] if found.ndim == 2 else found)


def _own_nodata(path: Path) -> float | None:
    """Return the value a GeoTIFF says is no data, or None."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        with Image.open(path) as image:
            tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
            written = tags.get(_NODATA)
    except UnidentifiedImageError:
        return None  # a kind Pillow does not know, such as one of many bands; then only the YAML can say it
    try:
        return None if written is None else float(str(written).strip("\0 "))
    except ValueError:
        return None
