"""CSV files whose ids are text: `0012` stays `0012` and `NA` is a name, not a hole.

Samples, submissions, solutions and other people's predictions are read here, so that a malformed file gives the
same three-part error everywhere. Numbers are taken out of such a frame with `numbers`.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.errors import DataError, KbenchError, first_names


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
