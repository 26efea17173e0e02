"""A small table beside the images that says which classes masks have: their names, numbers and colours.

What a column is called helps, but its content decides: names are texts of which none stands twice, numbers are whole,
colours are three columns from 0 to 255.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import numbers, read_frame

Colour = tuple[int, int, int]
MOST = 254  # classes a mask tells apart
_NAMES = re.compile(r"name|class|label|category|title", re.IGNORECASE)
_NUMBERS = re.compile(r"id|index|value|pixel|number|code|label|class", re.IGNORECASE)
_CHANNELS = {"r": ("r", "red"), "g": ("g", "green"), "b": ("b", "blue")}
_VOID = re.compile(r"void|ignore[d]?|unlabell?ed|unknown|undefined", re.IGNORECASE)


@dataclass(frozen=True)
class ClassTable:
    """What a table says of classes.

    Attributes:
        path: below the data folder.
        names: of its rows, the ignored ones too.
        values: name -> number; empty where no column has numbers.
        colours: name -> red, green and blue; empty where no columns have them.
        ignored: names that the table says are neither trained nor scored, or that mean it.
        columns: whether `data.masks.colours` can read its colours as it is.
    """

    path: str
    names: tuple[str, ...]
    values: dict[str, int] = field(default_factory=dict)
    colours: dict[str, Colour] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    columns: bool = False


def class_table(root: Path, tables: Sequence[str]) -> ClassTable | None:
    """Return the first table that names classes and says how masks show them, or None.

    Args:
        root: the data folder.
        tables: paths below it.

    Raises:
        DataError: a table cannot be read.
    """
    for path in tables:
        frame = read_frame(root / path, text=True)
        known = _read(path, frame) if 1 <= len(frame) <= MOST + 1 else None
        if known is not None:
            return known
    return None


def _read(path: str, frame: pd.DataFrame) -> ClassTable | None:
    columns = [str(name) for name in frame.columns]
    rgb = [next((name for name in columns if name.strip().lower() in _CHANNELS[key]), None) for key in "rgb"]
    texts = [name for name in columns if name not in rgb and _are_names(frame[name])]
    if not texts:
        return None
    named = min(texts, key=lambda name: (_NAMES.search(name) is None, columns.index(name)))
    names = tuple(frame[named].str.strip())
    whole = [name for name in columns if name not in (named, *rgb) and _are_numbers(frame[name])]
    numbered = min(whole, key=lambda name: (_NUMBERS.search(name) is None, columns.index(name)), default=None)
    colours = _colours(frame, [name for name in rgb if name is not None])
    if numbered is None and not colours:
        return None
    values = {} if numbered is None else dict(zip(names, frame[numbered].astype(int), strict=True))
    flag = next((name for name in columns if name.strip().lower() in ("ignore", "ignored", "void")), None)
    marked = set() if flag is None else set(np.array(names)[frame[flag].str.strip().isin(["1", "true", "True"])])
    return ClassTable(
        path, names, values, dict(zip(names, colours, strict=True)) if colours else {},
        tuple(name for name in names if name in marked or _VOID.fullmatch(name)),
        columns=named.strip().lower() == "name" and {"r", "g", "b"} <= {name.strip().lower() for name in columns},
    )  # fmt: skip


def _are_names(column: pd.Series) -> bool:
    cells = column.str.strip()
    return bool(cells.ne("").all() and cells.is_unique and pd.to_numeric(cells, errors="coerce").isna().all())


def _are_numbers(column: pd.Series) -> bool:
    values = pd.to_numeric(column, errors="coerce")
    return bool(
        values.notna().all() and (values % 1 == 0).all() and values.between(0, 65535).all() and values.is_unique
    )


def _colours(frame: pd.DataFrame, columns: Sequence[str]) -> list[Colour]:
    if len(columns) != 3:
        return []
    values = numbers(frame, columns)
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 255).all()):
        return []
    return [(int(red), int(green), int(blue)) for red, green, blue in values]
