"""From what a competition's masks hold to the classes of a YAML: pixel values, colours or layers.

`Lookup` says which class each source value is of (merging several into one is a list of them), `Codec` turns colours
into class numbers and back without a loss, `united` makes one array of a layer per class. To give a mask kind another
way of naming classes, write it here.

Source: row S-01; the original decoded by comparing one colour after the other and lost what interpolation had mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from kbench.data.table.csv_files import numbers, read_frame
from kbench.errors import ConfigError, DataError, Problem, first_names, nearest, raise_all
from kbench.tasks import IGNORED, exclusive

MOST = 254  # classes a mask of 8 bits tells apart, beside the ignored ones


@dataclass(frozen=True)
class Lookup:
    """Which class the source values of a mask are of.

    Attributes:
        names: K class names.
        classes: source -> class number, or 255 where its pixels are ignored.
        rest: class number of every other source; None where there must be none.
    """

    names: tuple[str, ...]
    classes: dict[int, int]
    rest: int | None


def lookup(
    sources: Mapping[str, Sequence[int]],
    *,
    names: Sequence[str],
    ignore: Sequence[int],
    rest: str | None,
    problems: Sequence[Problem] = (),
) -> Lookup:
    """Return the lookup of a mask kind.

    Args:
        sources: class name -> its source values.
        names: `data.classes`; the names of `sources` by default.
        ignore: sources that are neither trained on nor scored.
        rest: name of the class of every source named nowhere, `ignore`, or None: there must be none, or with one class
            alone, they are what it is not.
        problems: what is known to be wrong already.

    Raises:
        ConfigError: it lists every problem: unknown or repeated classes, sources of two classes, classes without one.
    """
    names = tuple(names) or tuple(sources)
    problems = [*problems, *names_problems(names)]
    problems += [
        Problem("data.masks", f"'{name}' is no class of data.classes", nearest(name, names))
        for name in sources
        if name not in names
    ]
    without = [name for name in names if not sources.get(name) and name != rest]
    if without:
        problems.append(Problem("data.masks", f"classes without a value: {first_names(without)}"))
    classes: dict[int, int] = dict.fromkeys(ignore, IGNORED)
    for name, values in sources.items():
        for value in values if name in names else ():
            if classes.setdefault(value, names.index(name)) != names.index(name):
                problems.append(Problem("data.masks", f"the value {value} is of two classes, or ignored", name))
    if rest is not None and rest not in (*names, "ignore"):
        problems.append(Problem("data.masks.rest", f"'{rest}' is no class", nearest(rest, [*names, "ignore"])))
    raise_masks(problems)
    number = None if rest is None else IGNORED if rest == "ignore" else names.index(rest)
    if len(names) == 1:  # the class against all else
        classes = {value: 1 if found == 0 else found for value, found in classes.items()}
        number = 0 if number is None else 1 if number == 0 else number
    return Lookup(names, classes, number)


def names_problems(names: Sequence[str]) -> list[Problem]:
    """Return what is wrong with class names: none, too many, repeated ones."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    problems = [Problem("data.classes", f"names stand twice: {first_names(twice)}")] if twice else []
    if not names:
        problems.append(Problem("data.classes", "the masks need class names", "`classes: [sky, road]`"))
    if len(names) > MOST:
        problems.append(Problem("data.classes", f"{len(names)} classes", f"{MOST} at most"))
    return problems


def raise_masks(problems: Sequence[Problem]) -> None:
    """Raise one ConfigError that lists what is wrong with `data.masks`; do nothing when there is none."""
    raise_all(
        problems, error=ConfigError, subject="data.masks", expected="what fits the classes and the files",
        todo="correct `data:` in the YAML; see `kbench list mask`",
    )  # fmt: skip


def united(
    layers: Sequence[np.ndarray | None], *, task: str, background: int | None, size: tuple[int, int], of: str
) -> np.ndarray:
    """Return one array of a layer per class, as in `kinds.py`.

    Args:
        layers: K layers [H, W] of 0 and 1, 255 where pixels are ignored; None where the class is nowhere.
        task: the competition's task.
        background: number of the class of the pixels no layer has; None: they are ignored.
        size: H and W.
        of: name of the row, for the message.

    Raises:
        DataError: two layers of classes that exclude one another share a pixel.
    """
    if not exclusive(task, len(layers)):
        array = np.zeros((*size, len(layers)), dtype=np.uint8)
        for k, layer in enumerate(layers):
            if layer is not None:
                array[:, :, k] = layer
        return array
    index = np.full(size, IGNORED, dtype=np.uint8)
    for k, layer in enumerate(layers):
        if layer is None:
            continue
        chosen = layer == 1
        shared = int(np.count_nonzero(chosen & (index != IGNORED)))
        if shared:
            raise DataError(
                f"{shared:,} pixels of '{of}' are of two classes, '{k}' and an earlier one",
                "classes that exclude one another",
                "set `task: multi_label_segmentation`, or correct data.masks in the YAML",
            )
        index[chosen] = k
    if background is not None:
        index[index == IGNORED] = background
        for layer in layers:
            if layer is not None:
                index[(layer == IGNORED) & (index == background)] = IGNORED
    return index[:, :, None]


def with_object(layer: np.ndarray | None, another: np.ndarray) -> np.ndarray:
    """Return a layer of 0, 1 and 255 with another object of its class; what is ignored of one may be of the other."""
    if layer is None:
        return another
    return np.where((layer == 1) | (another == 1), 1, np.maximum(layer, another)).astype(np.uint8)


def background_of(background: str | None, names: Sequence[str], task: str) -> int | None:
    """Return the number of the class of pixels that no layer has, or None.

    Raises:
        ConfigError: there is no such class, or classes may overlap.
    """
    if background is None:
        return None
    problems = []
    if background not in names:
        problems.append(Problem("data.masks.background", f"'{background}' is no class", nearest(background, names)))
    if not exclusive(task, len(names)):
        problems.append(Problem("data.masks.background", f"'{task}' of {len(names)} classes has no background class"))
    raise_masks(problems)
    return list(names).index(background)


_UNKNOWN = 255
Colour = Sequence[int]


@dataclass(frozen=True)
class Codec:
    """Colours and their numbers.

    Attributes:
        colours: [n, 3] uint8 RGB, n up to 255, no two alike.
        how: `strict` refuses any other colour, `nearest` takes the nearest one.
    """

    colours: np.ndarray
    how: Literal["strict", "nearest"] = "strict"
    _table: list[np.ndarray] = field(default_factory=list, repr=False, compare=False)

    def encode(self, numbers: np.ndarray) -> np.ndarray:
        """Return the [H, W, 3] uint8 colours of [H, W] numbers."""
        return np.take(self.colours, numbers, axis=0)

    def decode(self, image: np.ndarray, *, of: str) -> np.ndarray:
        """Return the [H, W] uint8 numbers of an [H, W, 3] uint8 image; every pixel is looked up in one table.

        Args:
            image: RGB.
            of: name of the file, for the message.

        Raises:
            DataError: with `strict`, it has colours that are not there; they are listed.
        """
        codes = _codes(image)
        classes: np.ndarray = np.take(self._lookup(), codes)
        strange = classes == _UNKNOWN
        if strange.any():
            others, places, counts = np.unique(codes[strange], return_inverse=True, return_counts=True)
            rgb = np.stack([others & 255, others >> 8 & 255, others >> 16], axis=1)
            if self.how == "strict":
                order = np.argsort(-counts, kind="stable")[:5]
                shown = ", ".join(f"{rgb[place].tolist()} ({counts[place]:,} pixels)" for place in order)
                raise DataError(
                    f"the mask '{of}' has {len(others):,} colours that no class has: {shown}",
                    "the colours of data.masks.colours alone",
                    "add them to the colours (and to `ignore`), or set data.masks.codec to nearest",
                )
            classes[strange] = _nearest(rgb, self.colours)[places]
        return classes

    def _lookup(self) -> np.ndarray:
        """Return [2^24] uint8, the number of each colour, made when it is first needed."""
        if not self._table:
            table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
            table[_codes(self.colours[None])[0]] = np.arange(len(self.colours), dtype=np.uint8)
            self._table.append(table)
        return self._table[0]


def _codes(image: np.ndarray) -> np.ndarray:
    """Return the three bytes of each pixel as one number, the first one lowest."""
    wide = np.zeros((*image.shape[:2], 4), dtype=np.uint8)
    wide[..., :3] = image[..., :3]
    return np.asarray(wide.view("<u4")[..., 0])


def _nearest(rgb: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return [M] uint8, which of the colours is nearest to each of [M, 3]; the first one of equals."""
    best = np.full(len(rgb), np.iinfo(np.int64).max)
    chosen = np.zeros(len(rgb), dtype=np.uint8)
    for number, colour in enumerate(colours.astype(np.int64)):
        distance = ((rgb.astype(np.int64) - colour) ** 2).sum(axis=1)
        closer = distance < best
        best[closer], chosen[closer] = distance[closer], number
    return chosen


def colour_table(table: Mapping[str, Colour] | str, root: Path) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return name -> RGB, and the names that the table itself says are ignored.

    Args:
        table: name -> [r, g, b], or the path of a CSV below the root with columns `name`, `r`, `g` and `b`, and
            perhaps `ignore` (1: neither trained on nor scored).
        root: the data folder.

    Raises:
        DataError: it lists every problem: a missing column, values out of range, colours or names that stand twice.
    """
    ignored: list[str] = []
    if isinstance(table, str):
        rows, ignored = _read_table(root / table)
    else:
        rows = [(name, tuple(colour)) for name, colour in table.items()]
    problems = [
        Problem(name, f"{list(colour)} is no colour", "three whole numbers from 0 to 255")
        for name, colour in rows
        if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
    ]
    for place, what in enumerate(("names", "colours")):
        items = [str(row[place]) for row in rows]
        twice = [item for item in dict.fromkeys(items) if items.count(item) > 1]
        problems += [Problem(what, f"some stand twice: {first_names(twice)}")] if twice else []
    if not 1 <= len(rows) <= _UNKNOWN:
        problems.append(Problem("colours", f"there are {len(rows)}", f"1 to {_UNKNOWN}"))
    raise_all(
        problems, error=DataError, subject="data.masks.colours", expected="one colour per name, and no other's",
        todo=f"correct '{table}'" if isinstance(table, str) else "correct data.masks.colours in the YAML",
    )  # fmt: skip
    return dict(rows), ignored


def _read_table(path: Path) -> tuple[list[tuple[str, tuple[int, ...]]], list[str]]:
    frame = read_frame(path, text=True)
    columns = {str(name).strip().lower(): str(name) for name in frame.columns}
    lacking = [name for name in ("name", "r", "g", "b") if name not in columns]
    if lacking:
        raise DataError(
            f"'{path}' has no column {first_names(lacking)}", "columns name, r, g and b", "rename its columns"
        )
    values = numbers(frame, [columns[key] for key in "rgb"])
    rows = [
        (name, tuple(int(value) if value == value and value == int(value) else -1 for value in colour))
        for name, colour in zip(frame[columns["name"]].str.strip(), values.tolist(), strict=True)
    ]
    marked = [text.strip().lower() in ("1", "true") for text in frame[columns["ignore"]]] if "ignore" in columns else []
    return rows, [name for (name, _), out in zip(rows, marked, strict=False) if out]
