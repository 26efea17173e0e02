"""How mask files say classes: read some, look at their values or colours, and write `data.masks` for them.

Every guess says why, in a comment of the draft. What training would read wrong is read by the same functions here
(`kbench/data/masks/pixels.py`), so a draft and `kbench check` do not disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kbench.data.masks.pixels import ON, as_grey, is_lossy, stored, without_alpha
from kbench.drafting.class_tables import MOST, ClassTable, Colour
from kbench.errors import DataError, counted

_FILES = 200  # that are read, spread over all
_SHARED = 0.02  # distinct values per pixel, above which they are measurements
_TOLD = 8  # values or names a comment shows
OBJECT = "object"  # name of a class that has none
NAMELESS = "no file names it: call it as you like"


@dataclass(frozen=True)
class Masks:
    """What is known of the masks of a data set.

    Attributes:
        task: the task they make.
        kind: `data.masks`.
        classes: `data.classes`.
        why: what was read off the files or guessed, and from what.
        convention: of run lengths; empty where masks are files.
        long: whether their table has several rows of an image, and so is not the table of the rows.
    """

    task: str
    kind: dict[str, Any]
    classes: tuple[str, ...]
    why: tuple[str, ...] = ()
    convention: str = ""
    long: bool = False


@dataclass
class _Seen:
    """What the mask files that were read hold.

    Attributes:
        values: numbers of grey and palette files.
        each: the numbers of each of those.
        colours: colours of the others.
        lossy: whether files were stored with losses.
        wide: whether numbers have more than 8 bits.
        measured: whether numbers have fractions, a sign, bands, or are as many as pixels.
        whole: whether the regions of a number hang together, as objects do.
        files: how many were read.
    """

    values: set[int] = field(default_factory=set)
    each: list[set[int]] = field(default_factory=list)
    colours: set[Colour] = field(default_factory=set)
    lossy: bool = False
    wide: bool = False
    measured: bool = False
    whole: bool = True
    files: int = 0


def masks_of_files(root: Path, paths: Sequence[str], where: dict[str, Any], table: ClassTable | None) -> Masks:
    """Return what one mask file per image says.

    Args:
        root: the data folder.
        paths: of mask files below it.
        where: folder and suffix, as `data.masks` has them.
        table: names, numbers and colours of classes.

    Raises:
        DataError: a file cannot be read.
    """
    seen = look(root, paths)
    if seen.measured:
        why = "the pixels of its files are measurements: fractions, signs, bands, or as many values as pixels"
        return Masks("dense_regression", {"name": "values", **where}, ("value",), (why,))
    if seen.colours:
        return _coloured(seen, where, table)
    if seen.lossy:
        why = "its files are JPEG, whose values blur at edges: what is above half of the scale is the class"
        return _of_one(seen, {"name": "index", **where}, table, why)
    return _numbered(seen, where, table)


def look(root: Path, paths: Sequence[str]) -> _Seen:
    """Read some of the files, spread over all, and return what they hold."""
    seen = _Seen()
    for path in paths[:: max(1, len(paths) // _FILES)]:
        pixels, lossy = stored(root / path)[0], is_lossy(root / path)
        seen.files, seen.lossy = seen.files + 1, seen.lossy or lossy
        if pixels.shape[2] not in (1, 2, 3, 4) or (pixels.dtype.kind == "f" and (pixels != np.rint(pixels)).any()):
            seen.measured = True
            continue
        try:
            pixels = without_alpha(pixels, of=path, alone=True)
        except DataError:
            pixels = pixels[:, :, :-1]
        grey = as_grey(pixels, lossy=lossy)
        if grey is None:
            _see_colours(seen, pixels)
        else:
            _see_numbers(seen, grey, lossy=lossy)
    return seen


def _see_colours(seen: _Seen, pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8:
        seen.measured = True
    elif len(seen.colours) <= MOST:
        seen.colours |= {
            (int(red), int(green), int(blue)) for red, green, blue in np.unique(pixels.reshape(-1, 3), axis=0)
        }


def _see_numbers(seen: _Seen, grey: np.ndarray, *, lossy: bool) -> None:
    values = np.unique(grey)
    seen.wide = seen.wide or grey.dtype.itemsize > 1
    seen.measured = seen.measured or bool(values[0] < 0) or (not lossy and len(values) > max(MOST, _SHARED * grey.size))
    if seen.measured:
        return
    numbers = {int(value) for value in values}
    seen.values |= numbers
    seen.each.append(numbers)
    if not lossy and len(numbers) > 2:
        regions = sum(
            cv2.connectedComponents((grey == value).astype(np.uint8))[0] - 1 for value in list(numbers - {0})[:20]
        )
        seen.whole = seen.whole and regions <= 1.5 * min(20, len(numbers - {0}))


def _of_one(seen: _Seen, kind: dict[str, Any], table: ClassTable | None, *why: str) -> Masks:
    """Return masks of one class; its name is the one that a table has beside what is not it."""
    names = () if table is None else tuple(
        name for name in table.names if name not in table.ignored and table.values.get(name) != 0
        and table.colours.get(name) != (0, 0, 0)
    )  # fmt: skip
    name = names[0] if len(names) == 1 else OBJECT
    called = f"its name is from '{table.path}'" if table and len(names) == 1 else NAMELESS
    return Masks("segmentation", kind, (name,), (*why, f"one class; {called}"))


def _numbered(seen: _Seen, where: dict[str, Any], table: ClassTable | None) -> Masks:
    """Return masks whose numbers are classes, objects, or yes and no."""
    kind, values = {"name": "index", **where}, sorted(seen.values)
    if table is not None and len(table.names) - len(table.ignored) > 1:
        return _by_table(seen, kind, table)
    others = [value for value in values if value]
    if len(others) <= 1:
        said = f"its files hold 0 and {others[0]}" if others else "the files that were read are empty"
        masks = _of_one(seen, kind, table, f"{said} ({counted(seen.files, 'file')} read)")
        return masks if not others or others[0] in ON else _with(masks, values={masks.classes[0]: others[0]})
    if others == [1, 255]:
        masks = _of_one(seen, kind, table, "its files hold 0, 1 and 255: 255 is taken for void, that is not scored")
        return _with(masks, ignore=[255])
    if seen.whole and (seen.wide or len(others) > 40):
        masks = _of_one(seen, kind, table, f"numbers up to {others[-1]}, each in one piece: objects, all of one class")
        return _with(masks, rest=masks.classes[0])
    return _unnamed(seen, kind)


def _with(masks: Masks, **more: Any) -> Masks:
    return Masks(masks.task, {**masks.kind, **more}, masks.classes, masks.why)


def _by_table(seen: _Seen, kind: dict[str, Any], table: ClassTable) -> Masks:
    """Return masks whose numbers a table names, or counts."""
    values = table.values or {name: place for place, name in enumerate(table.names)}
    void = sorted({values[name] for name in table.ignored} | (seen.values - set(values.values())))
    classes = tuple(sorted((name for name in table.names if name not in table.ignored), key=lambda name: values[name]))
    why = [f"names and numbers are from '{table.path}'" if table.values else
           f"names are from '{table.path}', whose rows are counted from 0"]  # fmt: skip
    if table.ignored:
        why.append(f"{_listed(table.ignored)}: neither trained nor scored, as the table or its name says")
    strange = sorted(seen.values - set(values.values()))
    if strange:
        why.append(f"the values {_listed(strange)} stand in files and not in the table: taken for void")
    if [values[name] for name in classes] != list(range(len(classes))):
        kind["values"] = {name: values[name] for name in classes}
    return Masks("segmentation", {**kind, **({"ignore": void} if void else {})}, classes, tuple(why))


def _unnamed(seen: _Seen, kind: dict[str, Any]) -> Masks:
    """Return masks of numbers that nothing names."""
    values = sorted(seen.values)
    void = [values.pop()] if values[-1] == 255 and values[-2] < 200 else []
    why = [f"its files hold {_listed(values)}, and no table names them: call them as you like"]
    why += ["255 is taken for void, which is neither trained nor scored"] if void else []
    classes = tuple("background" if value == 0 else f"class_{value}" for value in values)
    if values != list(range(len(values))):
        kind["values"] = dict(zip(classes, values, strict=True))
    return Masks("segmentation", {**kind, **({"ignore": void} if void else {})}, classes, tuple(why))


def _coloured(seen: _Seen, where: dict[str, Any], table: ClassTable | None) -> Masks:
    """Return masks whose colours are classes."""
    kind: dict[str, Any] = {"name": "colour", **where}
    if table is not None and table.colours:
        kind["colours"] = table.path if table.columns else {name: list(rgb) for name, rgb in table.colours.items()}
        why = [f"names and colours are from '{table.path}'"]
        strange = seen.colours - set(table.colours.values())
        if seen.lossy or strange:
            kind["codec"] = "nearest"
            why.append("files have colours that the table has not: each is taken for the nearest one" if strange
                       else "files are stored with losses: each colour is taken for the nearest one")  # fmt: skip
        out = list(table.ignored)
        if out:
            kind["ignore"] = out
            why.append(f"{_listed(out)}: neither trained nor scored, as the table or its name says")
        return Masks("segmentation", kind, tuple(name for name in table.names if name not in out), tuple(why))
    others = sorted(seen.colours - {(0, 0, 0)})
    if len(others) <= 1 or seen.lossy:
        said = "its files are black and one colour"
        if seen.lossy:
            said = "its files are JPEG, whose colours blur: what is bright in one channel is the class"
        more = {"threshold": 127} if seen.lossy else {}
        return _of_one(seen, {**kind, "name": "per_class", **more}, table, said)
    if len(seen.colours) > MOST:
        return Masks("segmentation", {**kind, "colours": {"TODO": [0, 0, 0]}}, ("TODO",),
                     (f"TODO its files have more than {MOST} colours, and no table names them",))  # fmt: skip
    kind["colours"] = {_called(rgb): list(rgb) for rgb in sorted(seen.colours)}
    why = [f"its files have {len(seen.colours)} colours, and no table names them: call them as you like"]
    return Masks("segmentation", kind, tuple(kind["colours"]), tuple(why))


def _called(rgb: Colour) -> str:
    return "background" if rgb == (0, 0, 0) else "colour_{:02x}{:02x}{:02x}".format(*rgb)


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:_TOLD])) + (f" and {len(items) - _TOLD} more" if len(items) > _TOLD else "")
