"""CSV files whose ids are text: `0012` stays `0012` and `NA` is a name, not a hole.

Samples, submissions, solutions and other people's predictions are read here, so that a malformed file gives the
same three-part error everywhere. Numbers are taken out of such a frame with `numbers`. Cells may be separated by
commas, semicolons, tabs or `|`, which the file itself shows, as it does gzip and UTF-16; beside semicolons, tabs and
`|` a column of numbers with decimal commas is one of numbers.
"""

from __future__ import annotations

import csv
import gzip
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from kbench.errors import DataError, KbenchError, first_names, visible

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "`|`"}
_GZIP = b"\x1f\x8b"
_NO_TABLES = {
    b"PK\x03\x04": "a zip or a spreadsheet (.xlsx)", b"BZh": "packed with bzip2", b"\xfd7zX": "packed with xz",
    b"7z\xbc\xaf": "a 7z archive", b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls)", b"PAR1": "a Parquet file",
    b"(\xb5/\xfd": "packed with zstd",
}  # fmt: skip
"""First bytes -> what such a file is."""
_LOOK = 1 << 16  # bytes that show how cells are separated
_DECIMAL = re.compile(r"[+-]?[0-9]+(,[0-9]+)?([eE][+-]?[0-9]+)?")
UNKNOWN = frozenset(
    {"", "-", "--", ".", "?", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "none", "null", "nil", "unknown", "undefined"}
    | {"missing", "not available", "n.d.", "#null!", "#div/0!", "#value!", "#ref!"}
)
"""What cells of numbers hold, in small letters, where the number is not known."""


@dataclass(frozen=True)
class Dialect:
    """How a table is written.

    Attributes:
        delimiter: between cells.
        decimal: `.` or `,`.
    """

    delimiter: str = ","
    decimal: str = "."


def read_frame(
    path: Path,
    *,
    text: bool = False,
    error: type[KbenchError] = DataError,
    delimiter: str | None = None,
    decimal: str | None = None,
) -> pd.DataFrame:
    """Read a CSV, plain or gzip, whose first column is the id.

    Args:
        path: the file; `.gz` is unpacked.
        text: read every column as text, for class names such as `0012`.
        error: the class raised.
        delimiter: between cells; the one that the first lines show by default.
        decimal: `,` for numbers such as `1,5`, whose columns hold `1.5` then; looked for by default where cells are
            not separated by commas.

    Returns:
        Rows in the order of the file, under the names of its header; `dialect_of` says how it was written. The id
        column is text; the others are numbers where every cell is one, else text; nothing but an empty cell is empty.

    Raises:
        KbenchError: the file is missing, is no CSV, has rows of unequal length or a column twice.
    """
    path = Path(path)
    try:
        delimiter = delimiter or _delimiter(path)
        header = [str(name) for name in _read(path, header=None, nrows=1, dtype=str, sep=delimiter).iloc[0]]
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise ValueError(f"the column {first_names(repeated)} stands twice")
        frame = _read(path, dtype=str if text else {header[0]: str}, sep=delimiter, names=header, header=0)
    except (OSError, ValueError, EOFError, zlib.error, csv.Error, pd.errors.ParserWarning) as cause:
        what, todo = _what_is_wrong(path, cause)
        raise error(
            f"cannot read '{path}': {what}", "a CSV file in UTF-8 with one header line and rows of equal length", todo
        ) from cause
    commas = _with_points(frame, text=text) if decimal == "," or (decimal is None and delimiter != ",") else False
    frame.attrs["dialect"] = [delimiter, "," if commas or decimal == "," else "."]
    return frame


def dialect_of(frame: pd.DataFrame) -> Dialect:
    """Return how the file of a frame was written; with commas and points where it comes from none."""
    return Dialect(*frame.attrs.get("dialect", ()))


def _open(path: Path) -> IO[bytes]:
    """Open a file, unpacked where its first bytes are those of gzip.

    Raises:
        ValueError: it is another kind of file, which is named.
    """
    with path.open("rb") as handle:
        head = handle.read(4)
    kind = next((kind for begin, kind in _NO_TABLES.items() if head.startswith(begin)), None)
    if kind is not None:
        raise ValueError(f"it is {kind}")
    packed = head.startswith(_GZIP) or path.suffix == ".gz"
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _encoding(content: bytes) -> str:
    """Return how a table is encoded by its first bytes: UTF-16, with a mark or without, or else UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in content[:4])
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros, "utf-8-sig")


def _what_is_wrong(path: Path, cause: Exception) -> tuple[str, str]:
    """Return why a table cannot be read, and what to type."""
    look = f"look at the first lines of '{path}' and name the right file"
    if isinstance(cause, FileNotFoundError):
        return "no such file", look
    what = str(cause).strip()
    if what.startswith("it is "):
        return what, f"save it as CSV (unpack it first, where it is packed), and name that file instead of '{path}'"
    if isinstance(cause, UnicodeDecodeError):
        near = bytes(cause.object[max(0, cause.start - 8) : cause.start + 8]).decode("cp1252", errors="replace")
        new = path.with_name(f"{path.stem}-utf8{path.suffix}")
        return f"it is not in UTF-8, near '{visible(near)}'", (
            f"`iconv -f WINDOWS-1252 -t UTF-8 '{path}' > '{new}'` if that should be read '{visible(near)}', then name "
            f"'{new.name}' in the YAML"
        )
    return what, look


def _delimiter(path: Path) -> str:
    """Return what separates the cells of a file: the first sign that cuts its header, and its lines alike."""
    with _open(path) as handle:
        content = handle.read(_LOOK)
    lines = content.decode(_encoding(content), errors="replace").splitlines(keepends=True)
    whole = lines[:-1] if len(content) == _LOOK and len(lines) > 1 else lines  # the last one may be cut
    for sign in DELIMITERS:
        rows = [row for row in csv.reader(whole, delimiter=sign) if row]
        if rows and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows):
            return sign
    return ","


def _with_points(frame: pd.DataFrame, *, text: bool) -> bool:
    """Write columns of numbers with decimal commas with points, in place; return whether there was one."""
    any_commas = False
    for name in frame.columns[1:]:
        if pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_bool_dtype(frame[name]):
            continue
        cells = frame[name].astype(str).str.strip()
        known = cells[~cells.str.lower().isin(UNKNOWN)]
        plain = pd.to_numeric(known, errors="coerce").notna()
        commas = known[~plain]
        if not len(commas) or not commas.str.fullmatch(_DECIMAL.pattern).all():
            continue
        any_commas = True
        points = cells.where(~cells.index.isin(commas.index), cells.str.replace(",", "."))
        frame[name] = points if text or len(known) < len(cells) else pd.to_numeric(points)
    return any_commas


def _read(path: Path, **options: object) -> pd.DataFrame:
    with warnings.catch_warnings(), _open(path) as handle:
        warnings.simplefilter("error", pd.errors.ParserWarning)  # cells beyond the header would be dropped
        encoding = _encoding(handle.read(4))
        handle.seek(0)
        frame: pd.DataFrame = pd.read_csv(  # type: ignore[call-overload]
            handle, encoding=encoding, keep_default_na=False, index_col=False, low_memory=False, **options
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
