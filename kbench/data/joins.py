"""Metadata that lies beside the table of rows: in other tables, or in a JSON file per image.

To join another kind of file, write a function here and call it in `other_columns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbench import files
from kbench.data.frames import read_frame
from kbench.data.listings import stem
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
    keys = [stem(str(name)) for name in ids]
    found: dict[str, np.ndarray] = {}
    problems: list[Problem] = []
    for path in join:
        table = read_frame(root / path, text=True)
        names = [name for name in wanted if name in table.columns[1:] and name not in found]
        rows = {stem(name): row for row, name in enumerate(table.iloc[:, 0].tolist())}
        places = [rows.get(key, -1) for key in keys]
        problems += _lacking(path, keys, places) if names else []
        for name in names:
            cells = np.array([*table[name].tolist(), ""], dtype=object)  # -1 takes the last one
            found[name] = cells[places]
    if annotations is not None:
        found |= _annotated(root, keys, [name for name in wanted if name not in found], annotations, problems)
    return found, problems


def _annotated(
    root: Path, keys: Sequence[str], names: Sequence[str], annotations: str, problems: list[Problem]
) -> dict[str, np.ndarray]:
    paths = [root / annotations.replace("{id}", key) for key in keys]
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


def _lacking(path: str, keys: Sequence[str], places: Sequence[int]) -> list[Problem]:
    names = [key for key, place in zip(keys, places, strict=True) if place < 0]
    return [Problem(path, f"has nothing of {counted(len(names), 'row')}: {first_names(names)}")] if names else []
