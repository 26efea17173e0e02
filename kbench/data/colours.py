"""Colour-coded masks: from colours to class numbers and back, losslessly.

Source: row S-01; the original decoded by comparing one colour after the other and lost what interpolation had mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from kbench.data.frames import numbers, read_frame
from kbench.errors import DataError, Problem, first_names, raise_all

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
        found: np.ndarray = np.take(self._lookup(), codes)
        strange = found == _UNKNOWN
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
            found[strange] = _nearest(rgb, self.colours)[places]
        return found

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


def colour_table(given: Mapping[str, Colour] | str, root: Path) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return name -> RGB, and the names that the table itself says are ignored.

    Args:
        given: name -> [r, g, b], or the path of a CSV below the root with columns `name`, `r`, `g` and `b`, and
            perhaps `ignore` (1: neither trained on nor scored).
        root: the data folder.

    Raises:
        DataError: it lists every problem: a missing column, values out of range, colours or names that stand twice.
    """
    ignored: list[str] = []
    if isinstance(given, str):
        rows, ignored = _read_table(root / given)
    else:
        rows = [(name, tuple(colour)) for name, colour in given.items()]
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
        todo=f"correct '{given}'" if isinstance(given, str) else "correct data.masks.colours in the YAML",
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
