"""Metadata that lies beside the table of rows: in other tables, or in a JSON file per image.

To join another kind of file, write a function here and call it in `other_columns`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench import files
from kbench.data.table.csv_files import read_frame
from kbench.data.table.image_files import stem
from kbench.data.table.names import meant
from kbench.errors import Problem, counted, first_names


def other_columns(
    root: Path, ids: Sequence[str], wanted: Sequence[str], *, join: Sequence[str], annotations: str | None
) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """Return columns of other files, aligned with the ids.

    Args:
        root: the data folder.
        ids: of the rows, in their order.
        wanted: names of the columns; those that are nowhere are left out.
        join: CSVs below the root whose first column is the id.
        annotations: path of a JSON file per image, with `{id}` for its id; columns are its keys, and those of objects
            in it after a dot: `attributes.route`.

    Returns:
        [N] text per column, empty where a row has none, and a problem per file that lacks rows.

    Raises:
        DataError: a file cannot be read.
    """
    keys = [str(name) for name in ids]
    columns: dict[str, np.ndarray] = {}
    problems: list[Problem] = []
    for path in join:
        table = read_frame(root / path, text=True)
        names = [name for name in wanted if name in table.columns[1:] and name not in columns]
        if not names:
            continue
        places, wrong = _joined(path, table, names, keys)
        problems += [*wrong, *_lacking(path, keys, places, table.iloc[:, 0].tolist())]
        for name in names:
            cells = np.array([*table[name].tolist(), ""], dtype=object)  # -1 takes the last one
            columns[name] = cells[places]
    if annotations is not None:
        problems += _shared(annotations, keys, range(len(keys))) if "{id}" in annotations else []
        columns |= _annotated(root, keys, [name for name in wanted if name not in columns], annotations, problems)
    return columns, problems


def _joined(
    path: str, table: pd.DataFrame, names: Sequence[str], keys: Sequence[str]
) -> tuple[list[int], list[Problem]]:
    """Return the row of each key in a joined table, -1 where it has none, and what is wrong with its ids.

    A key is a whole id, or one without its image ending. An id may stand there more than once with the same values.
    """
    ids = table.iloc[:, 0].tolist()
    cells = list(zip(*(table[name].tolist() for name in names), strict=True))
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        for key in {name, stem(name)}:
            rows.setdefault(key, []).append(row)
    every = [rows.get(key) or rows.get(stem(key), []) for key in keys]
    torn = [(key, hits) for key, hits in zip(keys, every, strict=True) if len({cells[row] for row in hits}) > 1]
    problems = []
    if torn:
        key, hits = torn[0]
        values = first_names(list(dict.fromkeys("', '".join(cells[row]) for row in hits)))
        what = f"{counted(len(torn), 'id')} with several values: '{key}' has {values} in {first_names(names)}"
        problems.append(Problem(path, what, "which one is right only you can say: remove the other rows"))
    places = [hits[0] if hits else -1 for hits in every]
    by_stem = [place if place >= 0 and ids[place] != key else -1 for key, place in zip(keys, places, strict=True)]
    return places, [*problems, *_shared(path, keys, by_stem)]


def _shared(path: str, keys: Sequence[str], places: Sequence[int]) -> list[Problem]:
    """Return a problem where keys that only their endings tell apart would share what is found without them."""
    stems = [stem(key) for key, place in zip(keys, places, strict=True) if place >= 0]
    twice = [name for name, count in Counter(stems).items() if count > 1]
    names = [key for key in dict.fromkeys(keys) if stem(key) in twice]
    if len(names) <= len(twice):
        return []
    what = f"is looked up without endings, and {counted(len(names), 'id')} are told apart by them: {first_names(names)}"
    return [Problem(path, what, "rename the images, or write the ids with their endings")]


def _annotated(
    root: Path, keys: Sequence[str], names: Sequence[str], annotations: str, problems: list[Problem]
) -> dict[str, np.ndarray]:
    paths = [root / annotations.replace("{id}", stem(key)) for key in keys]
    there = [0 if path.is_file() else -1 for path in paths]
    problems += _lacking(annotations, keys, there)
    contents: list[Any] = [
        files.read_json(path) if place == 0 else {} for path, place in zip(paths, there, strict=True)
    ]
    columns = {name: [_at(content, name) for content in contents] for name in names}
    return {
        name: np.array(values, dtype=object) for name, values in columns.items() if any(value != "" for value in values)
    }


def _at(content: Any, name: str) -> str:
    for key in name.split("."):
        content = content.get(key, "") if isinstance(content, dict) else ""
    return str(content)


def _lacking(path: str, keys: Sequence[str], places: Sequence[int], ids: Sequence[str] = ()) -> list[Problem]:
    """Return a problem where a file has no row of some keys; with the id of the file that the first may mean."""
    names = [stem(key) for key, place in zip(keys, places, strict=True) if place < 0]
    if not names:
        return []
    return [Problem(path, f"has nothing of {counted(len(names), 'row')}: {first_names(names)}", meant(names, ids))]
