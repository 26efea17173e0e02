"""Masks of run-length texts in a CSV: one column, one per class, or one row per image and class (or object)."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kbench.data.masks import run_lengths
from kbench.data.masks.classes import background_of, names_problems, raise_masks, united, with_object
from kbench.data.masks.mask_files import elsewhere
from kbench.data.table.csv_files import read_frame
from kbench.data.table.names import AMBIGUOUS, cuts, names_of, strays
from kbench.data.table.reading import Cells, MaskKind, MaskRows, Request, Size
from kbench.errors import Problem, counted, first_names, nearest
from kbench.registry import register
from kbench.tasks import SEGMENTATION

OBJECTS = "|"  # between the texts of several objects of one class
_KEY = re.compile(r"\{(id|class)\}")


@dataclass(frozen=True)
class _Source:
    """Where the texts are.

    Attributes:
        table: text cells.
        id: name of the id column.
        columns: class number -> column of its texts; in a long table all the same one.
        label: column with the class of each row, or None.
        key: what an id is made of: `{id}`, and perhaps `{class}`.
        texts: text of a class -> its number.
        empties: texts of an empty mask.
    """

    table: pd.DataFrame
    id: str
    columns: dict[int, str]
    label: str | None
    key: str
    texts: dict[str, int]
    empties: set[str]


@register("mask", tasks=SEGMENTATION)
def rle(
    *,
    convention: str = "tgs",
    column: str | None = None,
    columns: dict[str, str] | None = None,
    csv: str | None = None,
    id: str | None = None,
    key: str = "{id}",
    label: str | None = None,
    labels: dict[str, str] | None = None,
    empty: list[str] | None = None,
    unmatched: Literal["error", "ignore"] = "error",
    background: str | None = None,
    _classes: Sequence[str] = (),
    _task: str = "segmentation",
) -> MaskKind:
    """Read run-length texts of a CSV; several rows of one image and class are its objects, and are united.

    Args:
        convention: how pixels are numbered and runs written: `tgs` (down the columns from 1), `carvana` (along the
            rows from 1), `columns_0`, `rows_0`, these with `_ends` for `start end` pairs, or `coco` counts.
        column: the texts of one class, or of every row's class in a long table; the second column by default.
        columns: class -> column of its texts, in a table of one row per image; the classes' names by default.
        csv: table with the texts, below the data folder; `data.train.csv` by default. In a table of its own an image
            may have several rows, or none: an empty mask.
        id: its id column; the first by default.
        key: what its ids are made of: `{id}` of the image, and `{class}` in a long table, such as `{id}_{class}`.
        label: column with the class of each row of a long table.
        labels: class -> its text in ids or in `label`; its name by default.
        empty: texts that mean an empty mask beside the empty one, such as `-1`.
        unmatched: whether rows that name no training image are an `error`, or left out (`ignore`), such as those of
            images that were put aside.
        background: class without texts, of the pixels no other class has; without it they are ignored, where classes
            exclude one another.
        _classes: `data.classes`.
        _task: the competition's task.

    Raises:
        ConfigError: classes and columns do not fit.

    Source: row S-01; the TGS convention of section 5.6.
    """
    rule, names, called = run_lengths.convention(convention), tuple(_classes), labels or {}
    long = label is not None or "{class}" in key
    problems = names_problems(names)
    columns_named = [*called, *(columns or ())]
    problems += [Problem("data.masks", f"'{name}' is no class", nearest(name, names)) for name in columns_named
                 if name not in names]  # fmt: skip
    if called and not long:
        problems.append(Problem("data.masks.labels", "no row names a class", "remove `labels`, or write `label:`"))
    if long and csv is None:
        problems.append(Problem("data.masks.csv", "a long table is no table of the rows", "write `csv:`"))
    if "{id}" not in key or len(_KEY.findall(key)) != len(set(_KEY.findall(key))):
        problems.append(Problem("data.masks.key", f"'{key}' has not one `{{id}}`", "such as `{id}_{class}`"))
    if label is not None and "{class}" in key:
        problems.append(Problem("data.masks.label", "the class stands in the ids already", "remove one of the two"))
    if long and columns:
        problems.append(Problem("data.masks.columns", "a long table has one column of texts", "write `column:`"))
    raise_masks(problems)
    behind = background_of(background, names, _task)
    wanted = [k for k in range(len(names)) if k != behind]
    texts = {called.get(names[k], names[k]): k for k in wanted}
    empties = {"", *(empty or ())}

    find = partial(
        find_texts, names=names, texts=texts, csv=csv, id=id, key=key, label=label, column=column, columns=columns,
        empties=empties, unmatched=unmatched,
    )  # fmt: skip

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        layers: list[np.ndarray | None] = [None] * len(names)
        for k, cell in enumerate(cells):
            for text in cell.split(OBJECTS) if cell else ():
                layers[k] = with_object(layers[k], run_lengths.decode(text, size(), rule))
        return united(layers, task=_task, background=behind, size=size(), of=next(filter(None, cells), "")[:40])

    return MaskKind(names, find, read, encoded=True, background=behind)


def find_texts(
    request: Request,
    frame: pd.DataFrame,
    ids: np.ndarray,
    *,
    names: Sequence[str],
    texts: dict[str, int],
    csv: str | None,
    id: str | None,
    key: str,
    label: str | None,
    column: str | None,
    columns: dict[str, str] | None,
    empties: set[str],
    unmatched: str,
    others: str = "error",
) -> MaskRows:
    """Return the texts of the classes of each row, one cell per class; the objects of one are joined by `OBJECTS`.

    Args:
        request: which rows.
        frame: rows of the CSV, of which the texts are a column where they have no table of their own.
        ids: [N] ids.
        names: K classes.
        texts: how a class with texts is called in the table -> its number.
        csv: the texts' own table; this and what follows as in `rle`.
        id: its id column.
        key: what its ids are made of.
        label: its column with the class of each row.
        column: of the texts of a long table.
        columns: class -> column of a wide one.
        empties: texts of an empty mask.
        unmatched: what becomes of rows of no image.
        others: what becomes of rows whose label is of no class.
    """
    long, wanted = label is not None or "{class}" in key, sorted(texts.values())
    table = frame if csv is None else read_frame(request.root / csv, text=True)
    id_column = id or (request.id if csv is None else None) or str(table.columns[0])
    rest = [str(name) for name in table.columns if name not in (id_column, label)]
    if long or len(wanted) == 1:
        first = column or (rest[0] if rest else "the run lengths")
        sources = {k: (columns or {}).get(names[k], first) for k in wanted}
    else:
        sources = {k: (columns or {}).get(names[k], names[k]) for k in wanted}
    asked = dict.fromkeys([id_column, *sources.values(), *([label] if label else [])])
    absent = [name for name in asked if name not in table.columns]
    nothing = np.zeros(len(ids), dtype=bool)
    if absent:
        there = f"'{csv or request.csv}' has"
        wrong = [
            Problem("data.masks", f"{there} no column '{name}'", nearest(name, map(str, table.columns)))
            for name in absent
        ]
        return MaskRows(tuple(() for _ in ids), nothing, wrong)
    if others == "ignore" and label is not None:
        table = table[table[label].isin(list(texts))]
    source = _Source(table, id_column, sources, label, key, texts, empties)
    gathered = _gathered(source, ids, len(names))
    return MaskRows(gathered.cells, nothing, *gathered.said(source, ids, elsewhere(request), unmatched))


@dataclass(frozen=True)
class _Gathered:
    """The texts of a table by row, and the rows of the table that are of no image, class or form.

    Attributes:
        cells: per image, one cell per class.
        known: number of rows of the table that are an image's.
        stray: ids of the table whose image is not there.
        strange: ids that are not made as the key says.
        unclear: ids that several images or classes fit.
        unknown: texts that are no class.
        bare: number of images without a row.
    """

    cells: tuple[Cells, ...]
    known: int
    stray: list[str]
    strange: list[str]
    unclear: list[str]
    unknown: list[str]
    bare: int

    def said(
        self, source: _Source, ids: np.ndarray, others: Container[str], unmatched: str
    ) -> tuple[list[Problem], tuple[str, ...]]:
        """Return what is wrong with the table, and what is only said of it.

        Args:
            source: the table.
            ids: [N] ids of the images.
            others: ids of rows that `where` leaves out; they may have texts.
            unmatched: `error`, or `ignore`.
        """
        where, problems = f"data.masks: column '{source.id}'", []
        if self.strange:
            what = f"{counted(len(self.strange), 'id')} not made as data.masks.key says: {first_names(self.strange)}"
            problems.append(Problem(where, what))
        if self.unclear:
            what = f"{counted(len(self.unclear), 'id')} that several images or classes fit: {first_names(self.unclear)}"
            problems.append(
                Problem(where, what, "give the classes other texts in `labels`, or write the ids with endings")
            )
        if self.unknown:
            what = f"{counted(len(self.unknown), 'row')} of no class: {first_names(list(dict.fromkeys(self.unknown)))}"
            problems.append(Problem("data.masks", what, f"classes are called {first_names(list(source.texts), 20)}"))
        stray = [name for name in dict.fromkeys(self.stray) if name not in others]
        if not self.known and not problems:
            problems.append(Problem(where, f"no id is that of an image: {strays(stray or list(self.stray), ids)}"))
        elif stray and unmatched == "error":
            hint = "correct the ids; or `unmatched: ignore` in data.masks, if these rows are not wanted"
            if self.bare:
                hint = f"{counted(self.bare, 'image')} would have an empty mask; {hint}"
            problems.append(Problem(where, strays(stray, ids), hint))
        return problems, (f"data.masks leaves out {strays(stray, ids)}",) if stray and unmatched == "ignore" else ()


def _gathered(source: _Source, ids: np.ndarray, count: int) -> _Gathered:
    """Return the texts of each row, one cell per class, and what is not a row's."""
    names = names_of(ids)
    texts_of: list[list[list[str]]] = [[[] for _ in range(count)] for _ in ids]
    stray, strange, unclear, unknown = list[str](), list[str](), list[str](), list[str]()
    columns = {k: source.table[name].tolist() for k, name in source.columns.items()}
    labels = None if source.label is None else source.table[source.label].tolist()
    seen = np.zeros(len(ids), dtype=bool)
    known = 0
    for place, text in enumerate(source.table[source.id].tolist()):
        ways = cuts(source.key, text, {"class": source.texts})
        fits = [(row, way) for way in ways if (row := names.row(way["id"])) is not None]
        if not ways:
            strange.append(text)
        elif len(fits) > 1 or any(row == AMBIGUOUS for row, _ in fits):
            unclear.append(text)
        else:
            row, way = fits[0] if fits else (None, ways[0])
            known += row is not None
            label = way.get("class") if labels is None else labels[place]
            if label is not None and label not in source.texts:
                unknown.append(str(label))
            elif row is None:
                stray.append(way["id"] if len(ways) == 1 else text)
            else:
                seen[row] = True
                for k in columns if label is None else (source.texts[label],):
                    cell = columns[k][place].strip()
                    if cell not in source.empties:
                        texts_of[row][k].append(cell)
    cells = tuple(tuple(OBJECTS.join(cell) for cell in row) for row in texts_of)
    return _Gathered(cells, known, stray, strange, unclear, unknown, int((~seen).sum()))
