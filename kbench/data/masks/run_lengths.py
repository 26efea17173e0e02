"""Run-length texts of masks, in the conventions competitions use.

A text holds runs of pixels of a class, as pairs of numbers divided by spaces; what differs is in which order pixels
are numbered, from which number on, and what the second number of a pair says. Encoding and decoding work on whole
arrays: nothing here loops over pixels or runs.

To add a convention of this kind, add a row to `CONVENTIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kbench.errors import ConfigError, DataError, nearest
from kbench.tasks import IGNORED

Size = tuple[int, int]
_EMPTY = frozenset({"-1", "0", "nan", "none", "null", "empty", "n/a", "na", "-", "0 0", "1 0", "1 1 0"})
"""What people write, in small letters, where there is nothing; `empty` says which of them are meant."""


@dataclass(frozen=True)
class Convention:
    """How the pixels of an image are numbered, and what numbers say.

    Attributes:
        order: down the columns, or along the rows.
        first: number of the first pixel.
        second: what follows the start of a run: its `length`, its last pixel (`end`), or neither: the numbers are
            lengths of runs of 0 and 1 in turn, 0 first (`counts`).
    """

    order: Literal["columns", "rows"]
    first: int
    second: Literal["length", "end", "counts"] = "length"


CONVENTIONS = {
    "tgs": Convention("columns", 1),  # TGS salt, Airbus ships, Severstal, HuBMAP: the usual one of Kaggle
    "carvana": Convention("rows", 1),  # Carvana, Sartorius
    "columns_0": Convention("columns", 0),
    "rows_0": Convention("rows", 0),
    "columns_ends": Convention("columns", 1, "end"),
    "rows_ends": Convention("rows", 1, "end"),
    "columns_0_ends": Convention("columns", 0, "end"),
    "rows_0_ends": Convention("rows", 0, "end"),
    "coco": Convention("columns", 0, "counts"),  # COCO's uncompressed counts
}


@dataclass(frozen=True)
class Runs:
    """Runs of equal pixels in the order of a convention, numbered from 0 whatever it says.

    Attributes:
        starts: [R] int64.
        lengths: [R] int64.
        values: [R] uint8 class index.
    """

    starts: np.ndarray
    lengths: np.ndarray
    values: np.ndarray

    def of(self, value: int) -> tuple[np.ndarray, np.ndarray]:
        """Return starts and lengths of the runs of one value."""
        chosen = self.values == value
        return self.starts[chosen], self.lengths[chosen]

    def check_apart(self) -> None:
        """Refuse runs that share a pixel.

        Raises:
            DataError: two of them do.
        """
        order = np.argsort(self.starts, kind="stable")
        if (self.starts[order][1:] < (self.starts + self.lengths)[order][:-1]).any():
            raise DataError("two classes share a pixel", "classes that exclude one another", "one class per pixel")


def convention(name: str) -> Convention:
    """Return a convention by its name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in CONVENTIONS:
        raise ConfigError(
            f"unknown run-length convention '{name}'", f"one of {', '.join(CONVENTIONS)}", nearest(name, CONVENTIONS)
        )
    return CONVENTIONS[name]


def runs_of(mask: np.ndarray, rule: Convention) -> Runs:
    """Return the runs of equal values of an [H, W] uint8 mask, all values together."""
    flat = mask.ravel(order="F" if rule.order == "columns" else "C")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return Runs(starts, np.diff(starts, append=flat.size), flat[starts])


def as_text(starts: np.ndarray, lengths: np.ndarray, rule: Convention, *, pixels: int | None = None) -> str:
    """Return the text of [R] sorted runs; empty where there are none.

    Args:
        starts: [R] int64 from 0.
        lengths: [R] int64.
        rule: the convention.
        pixels: number of pixels of the image; without it, counts end with the last run of 1.
    """
    edges = np.empty(2 * len(starts), dtype=np.int64)
    edges[::2], edges[1::2] = starts, starts + lengths
    if rule.second == "counts" and len(starts):
        rest = [] if pixels is None or pixels == edges[-1] else [pixels - int(edges[-1])]
        return _joined([*np.diff(edges, prepend=0).tolist(), *rest])
    if rule.second == "length":
        edges[1::2] = lengths
        edges[::2] += rule.first
    else:
        edges[::2] += rule.first
        edges[1::2] += rule.first - 1
    return _joined(edges.tolist())


def _joined(numbers: list[int]) -> str:
    return str(numbers)[1:-1].replace(",", "")  # faster than joining texts


def encode(layer: np.ndarray, rule: Convention) -> str:
    """Return the text of an [H, W] mask of 0 and 1."""
    padded = np.zeros(layer.size + 2, dtype=bool)
    padded[1:-1] = layer.ravel(order="F" if rule.order == "columns" else "C")
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return as_text(edges[::2], edges[1::2] - edges[::2], rule, pixels=layer.size)


def parse(text: str, size: Size, rule: Convention) -> tuple[np.ndarray, np.ndarray]:
    """Return starts (from 0) and lengths of the runs of a text.

    Raises:
        DataError: it holds no pairs of whole numbers, or runs that are empty, out of order, overlap or leave the
            image; the first such run is named.
    """
    numbers = _numbers(text, rule)
    if rule.second == "counts":
        return _counted(text, numbers, size, rule)
    if numbers.size % 2:
        raise _wrong(text, rule, f"{numbers.size} numbers")
    starts = numbers[::2] - rule.first
    lengths = numbers[1::2] if rule.second == "length" else numbers[1::2] - numbers[::2] + 1
    ends = starts + lengths
    early = np.concatenate([[False], starts[1:] < ends[:-1]])
    faults = {
        "a run without pixels": lengths < 1,
        f"pixels outside of an image of {size[0]} x {size[1]}": (starts < 0) | (starts > size[0] * size[1] - lengths),
        "runs that overlap or are not in order": early,
    }
    for what, wrong in faults.items():
        if wrong.any():
            place = int(wrong.argmax())
            raise _wrong(text, rule, f"{what}: '{numbers[2 * place]} {numbers[2 * place + 1]}', run {place + 1}")
    return starts, lengths


def _numbers(text: str, rule: Convention) -> np.ndarray:
    """Return the whole numbers of a text, [n] int64."""
    if not text.strip("0123456789 ") and text.isascii():
        plain: np.ndarray = np.fromstring(text, dtype=np.int64, sep=" ")  # faster than splitting
        return plain
    try:
        return np.array(text.strip("[] ").replace(",", " ").split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise _wrong(text, rule, "something that is no whole number") from error


def _counted(text: str, counts: np.ndarray, size: Size, rule: Convention) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and lengths of the runs of 1, given the lengths of runs of 0 and 1 in turn."""
    wrong = counts < 0
    wrong[1:] |= counts[1:] < 1
    edges = np.cumsum(counts)
    wrong |= edges > size[0] * size[1]
    if wrong.any():
        place = int(wrong.argmax())
        what = f"a count that is no run of an image of {size[0]} x {size[1]}: '{counts[place]}', number {place + 1}"
        raise _wrong(text, rule, what)
    return edges[: len(counts) - 1 : 2], counts[1::2]


def fill(runs: Runs, size: Size, rule: Convention, *, rest: int = IGNORED) -> np.ndarray:
    """Return the [H, W] uint8 mask of runs in any order that are apart; pixels of no run have the value `rest`."""
    order = np.argsort(runs.starts, kind="stable")
    edges = np.zeros(2 * len(order) + 2, dtype=np.int64)
    edges[1:-1:2], edges[2:-1:2], edges[-1] = runs.starts[order], (runs.starts + runs.lengths)[order], size[0] * size[1]
    values = np.full(2 * len(order) + 1, rest, dtype=np.uint8)
    values[1::2] = runs.values[order]
    flat = np.repeat(values, edges[1:] - edges[:-1])
    return flat.reshape(size[::-1]).T if rule.order == "columns" else flat.reshape(size)


def decode(text: str, size: Size, rule: Convention) -> np.ndarray:
    """Return the [H, W] uint8 mask of 0 and 1 that a text describes.

    Raises:
        DataError: the text is wrong; see `parse`.
    """
    starts, lengths = parse(text, size, rule)
    return fill(Runs(starts, lengths, np.ones(len(starts), dtype=np.uint8)), size, rule, rest=0)


def _wrong(text: str, rule: Convention, what: str) -> DataError:
    todo = f"look at the file, and at the convention in the YAML: {', '.join(CONVENTIONS)}"
    if text.strip().lower() in _EMPTY:
        todo = f'`empty: ["{text.strip()}"]` in data.masks if it says that there is nothing, or {todo}'
    pairs = {"length": "pairs `start length`", "end": "pairs `start end`", "counts": "counts of 0 and 1 in turn"}
    return DataError(
        f"the run-length text '{text[:40]}{'...' if len(text) > 40 else ''}' has {what}",
        f"{pairs[rule.second]}, divided by spaces, sorted and without overlap",
        todo,
    )
