"""CSV files whose ids are text: `0012` stays `0012` and `NA` is a name, not a hole.

Samples, submissions, solutions and other people's predictions are read here, so that a malformed file gives the
same three-part error everywhere. Numbers are taken out of such a frame with `numbers`.

Metadata that lies beside the table of rows: in other tables, or in a JSON file per image.

To join another kind of file, write a function here and call it in `other_columns`.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench import files
from kbench.data.table.image_files import stem
from kbench.errors import DataError, KbenchError, Problem, counted, first_names


def read_frame(path: Path, *, text: bool = False, error: type[KbenchError] = DataError) -> pd.DataFrame:
    """Read a CSV, plain or gzip, whose first column is the id.

    Args:
        path: the file; `.gz` is unpacked.
        text: read every column as text, for class names such as `0012`.
        error: the class raised.

    Returns:
        Rows in the order of the file. The id column is text; the others are numbers where every cell is one, else
        text; nothing but an empty cell is empty.

    Raises:
        KbenchError: the file is missing, is no CSV, has rows of unequal length or a column twice.
    """
    path = Path(path)
    try:
        header = [str(name) for name in _read(path, header=None, nrows=1, dtype=str).iloc[0]]
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise ValueError(f"the column {first_names(repeated)} stands twice")
        return _read(path, dtype=str if text else {header[0]: str})
    except (OSError, ValueError, EOFError, zlib.error, pd.errors.ParserWarning) as cause:
        what = "no such file" if isinstance(cause, FileNotFoundError) else str(cause).strip()
        raise error(
            f"cannot read '{path}': {what}",
            "a CSV file in UTF-8 with one header line and rows of equal length",
            f"look at the first lines of '{path}' and name the right file",
        ) from cause


def _read(path: Path, **options: object) -> pd.DataFrame:
    with warnings.catch_warnings(), gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
        warnings.simplefilter("error", pd.errors.ParserWarning)  # cells beyond the header would be dropped
        frame: pd.DataFrame = pd.read_csv(  # type: ignore[call-overload]
            handle, encoding="utf-8-sig", keep_default_na=False, index_col=False, low_memory=False, **options
        )
    return frame


def texts(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column as [N] numpy text, such as ids to compare with those of a table."""
    return np.array(frame[column].astype(str).tolist(), dtype=str)


def numbers(frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return columns as [N, K] float64; what is no number is NaN."""
    values = np.empty((len(frame), len(columns)))
    for position, name in enumerate(columns):
        column = frame[name]
        if pd.api.types.is_bool_dtype(column):
            values[:, position] = np.nan  # `True` is a word
        else:
            values[:, position] = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    return values


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
