"""What every layout needs: the request for rows, the rows of a CSV, and what can be wrong with them.

Everything wrong with a split is collected as `Problem`s with counts and first names, and raised once. To add a
check, return its problems from a function here and add it to a layout.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import DELIMITERS, Dialect, dialect_of, read_frame
from kbench.data.table.image_files import MatchedFiles, clean, stem
from kbench.data.table.joins import other_columns
from kbench.data.table.names import meant
from kbench.data.table.spellings import counts_of, spelling_note
from kbench.data.table.table import Table
from kbench.errors import DataError, Problem, counted, first_names, nearest, raise_all, visible
from kbench.tasks import is_dense

Size = tuple[int, int]
Cells = tuple[str, ...]
_TRIED = 20  # ids whose files are looked for under longer names
_UNSAFE = re.compile(r"^[A-Za-z]:/|(^|/)\.\.?(/|$)|^/|//|/$|^\s|\s$|[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True)
class Request:
    """Which rows to read; the `data` section of a YAML as flat values.

    Attributes:
        root: the competition's data folder.
        split: `train` or `test`; a test split has no targets.
        task: a task of `config.competition.Task`.
        csv: table of ids, below the root; None for a folder alone.
        images: image folders below the root; several are stacked along the channels.
        suffix: what the image files end with; None finds it.
        id: id column; the first by default.
        where: keep rows whose column has this value, or one of these.
        target: target columns; the first one that is not the id by default.
        classes: class names in the order of the outputs; the sorted labels by default.
        mask: how the masks of a dense task are written; it names the classes.
        metadata: columns kept as text; in a test split those of them it has.
        on_problem: whether rows without an image or a target are an error or dropped (and noted); what a test
            split needs is marked instead, see `is_filled`.
        files: name -> pattern of the files of a row, below the image folder, with `{id}` and `{date}`; none where a
            row has one file in each folder of `images`.
        dates: what `{date}` stands for.
        missing: whether a file of a row that is not there is an error, drops the row, or stays unknown.
    """

    root: Path
    split: Literal["train", "test"]
    task: str
    csv: str | None = None
    images: tuple[str, ...] = ()
    suffix: str | None = None
    id: str | None = None
    where: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    target: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    mask: MaskKind | None = None
    metadata: tuple[str, ...] = ()
    on_problem: Literal["error", "drop", "fill"] = "error"
    files: Mapping[str, str] = field(default_factory=dict)
    dates: tuple[str, ...] = ()
    missing: Literal["error", "drop", "mask"] = "error"


@dataclass(frozen=True)
class MaskRows:
    """The masks of a split's rows.

    Attributes:
        cells: per row, paths below the root (an empty one where nothing is there) or encoded texts.
        lacking: [N] bool, rows whose mask is missing.
        problems: what is wrong; missing masks only where such rows are not dropped.
        notes: what the user should know.
    """

    cells: tuple[Cells, ...]
    lacking: np.ndarray
    problems: list[Problem]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskKind:
    """How a competition writes its masks; see `masks/kinds.py`.

    Attributes:
        names: K class names (or names of dense targets) in the order of the outputs.
        find: (request, rows of the CSV sorted by id, ids) -> their masks.
        read: (root, cells of a row, size of its image asked for when it is needed) -> the row's array.
        encoded: whether cells are texts rather than paths.
        facts: what `read` depends on beside the YAML, such as a colour table; JSON-like.
        background: number of the class of what no file or text is of, or None.
        on: pixel value -> the first file that said yes by it, filled by `read`; two of them are two ways to say yes.
    """

    names: tuple[str, ...]
    find: Callable[[Request, pd.DataFrame, np.ndarray], MaskRows]
    read: Callable[[Path, Cells, Callable[[], Size]], np.ndarray]
    encoded: bool = False
    facts: Any = None
    background: int | None = None
    on: dict[int, str] = field(default_factory=dict, compare=False)


def is_filled(split: str, on_problem: str, task: str) -> bool:
    """Return whether rows without a readable image stay, marked: a submission needs every row of its test set.

    Of dense tasks only with `fill`.
    """
    return split == "test" and (on_problem == "fill" or (on_problem == "drop" and not is_dense(task)))


def raise_problems(request: Request, problems: Sequence[Problem]) -> None:
    """Raise one DataError that lists every problem; do nothing when there is none."""
    raise_all(
        problems,
        error=DataError,
        subject=f"the {request.split} rows of '{request.root}'",
        expected="unique ids with an image each, and a target the task can use",
        todo=f"correct `data:` in the YAML or the files in '{request.root}', then run `kbench check`",
    )


@dataclass(frozen=True)
class Rows:
    """The rows of a CSV.

    Attributes:
        frame: text cells, sorted by id.
        id: name of the id column.
        target: the target columns.
        notes: what the user should know.
    """

    frame: pd.DataFrame
    id: str
    target: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_rows(
    request: Request, *, join: Sequence[str] = (), annotations: str | None = None, dialect: Dialect | None = None
) -> Rows:
    """Read the rows of the request's CSV.

    Args:
        request: which rows.
        join: other tables with metadata, and
        annotations: files with metadata; see `with_metadata`.
        dialect: how the CSV is written, an empty text for what the file itself shows.

    Raises:
        DataError: the CSV cannot be read, or the YAML names columns or values it does not have.
    """
    given = dialect or Dialect("", "")
    frame = read_frame(
        request.root / str(request.csv), text=True, delimiter=given.delimiter or None, decimal=given.decimal or None
    )
    asked = {name for name in (request.id, *request.target, *request.where, *request.metadata) if name}
    frame = frame.rename(columns=_unnamed([str(name) for name in frame.columns], asked))
    notes = _dialect_notes(str(request.csv), dialect_of(frame)) if dialect is None else ()
    columns = [str(name) for name in frame.columns]
    id_column = request.id or columns[0]
    target = request.target or tuple(name for name in columns if name != id_column)[:1]
    if id_column in columns:
        frame = with_metadata(request, frame, frame[id_column].tolist(), join=join, annotations=annotations)
        columns = [str(name) for name in frame.columns]
    wanted = [("id", id_column), *(("where", name) for name in request.where)]
    if request.split == "train":
        wanted += [*(("target", name) for name in request.target), *(("metadata", name) for name in request.metadata)]
    problems = [
        Problem(f"data.{key}", f"'{request.csv}' has no column '{name}'", nearest(name, columns))
        for key, name in wanted
        if name not in columns
    ]
    if columns[0].startswith("sep="):
        raise_problems(request, [Problem(str(request.csv), f"its first line is '{columns[0]}'", "remove that line")])
    sign = re.search(r"[,;\t| :]" if problems else r"[,;\t|]", columns[0]) if len(columns) == 1 else None
    if sign is not None:
        hint = f"`data: {{layout: {{name: csv, delimiter: {json.dumps(sign[0])}}}}}` if '{sign[0]}' separates its cells"
        problems.append(Problem(str(request.csv), f"its one column is '{columns[0]}', cells separated by commas", hint))
    raise_problems(request, problems)
    frame = _kept(request, frame)
    order = np.argsort(np.array(frame[id_column].tolist(), dtype=str), kind="stable")
    return Rows(frame.iloc[order].reset_index(drop=True), id_column, target, notes)


def _unnamed(columns: Sequence[str], asked: set[str]) -> dict[str, str]:
    """Return a column without a name -> what the YAML calls it: `Unnamed: 0` for the first one."""
    called = f"Unnamed: {columns.index('')}" if "" in columns else ""
    return {"": called} if called in asked else {}


def _dialect_notes(csv: str, dialect: Dialect) -> tuple[str, ...]:
    if dialect.delimiter == ",":
        return ()
    point = ", and its numbers have decimal commas" if dialect.decimal == "," else ""
    return (f"'{csv}' is separated by {DELIMITERS[dialect.delimiter]}{point}",)


def with_metadata(
    request: Request, frame: pd.DataFrame, ids: Sequence[str], *, join: Sequence[str], annotations: str | None
) -> pd.DataFrame:
    """Return rows with the metadata columns of other files; see `other_columns`.

    Args:
        request: which rows.
        frame: text cells.
        ids: of the rows, in the order of the frame.
        join: CSVs below the root whose first column is the id.
        annotations: path of a JSON file per image.

    Raises:
        DataError: a file cannot be read, or training rows are not in it.
    """
    wanted = [name for name in request.metadata if name not in frame.columns]
    added, problems = other_columns(request.root, ids, wanted, join=join, annotations=annotations)
    raise_problems(request, problems if request.split == "train" else [])
    return frame.assign(**added)


def _kept(request: Request, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows `where` keeps."""
    problems = []
    kept = np.ones(len(frame), dtype=bool)
    for name, value in request.where.items():
        wanted = [value] if isinstance(value, str) else list(value)
        there = set(frame[name].unique())
        problems += [
            Problem(f"data.where.{name}", f"no row has '{item}'", nearest(item, there))
            for item in wanted
            if item not in there
        ]
        kept &= frame[name].isin(wanted).to_numpy()
    if not problems and not kept.any():
        problems = [Problem(str(request.csv), "no rows are left", "a header and one row for each image")]
    raise_problems(request, problems)
    return frame[kept]


def id_problems(where: str, ids: np.ndarray) -> list[Problem]:
    """Return what makes sorted ids unusable: empty ones, repeated ones, ones that are no relative path."""
    problems = []
    empty = ids == ""
    if empty.any():
        problems.append(Problem(where, counted(int(empty.sum()), "empty id")))
    repeated = list(dict.fromkeys(str(name) for name in ids[1:][(ids[1:] == ids[:-1]) & ~empty[1:]]))
    if repeated:
        problems.append(Problem(where, f"{counted(len(repeated), 'repeated id')}: {first_names(repeated)}"))
    unsafe = [str(name) for name in ids if name and _UNSAFE.search(clean(name))]
    if unsafe:
        whole = re.match(r"/|[A-Za-z]:[\\/]", unsafe[0]) is not None
        short = re.split(r"[\\/]", unsafe[0])[-1]
        hint = f"names from the image folder on, such as '{short}'" if whole else "file names without `..` or breaks"
        if unsafe[0] != unsafe[0].strip() or visible(unsafe[0]) != unsafe[0]:
            hint = "ids that neither begin nor end with a blank"
        problems.append(Problem(where, f"{counted(len(unsafe), 'unusable id')}: {first_names(unsafe)}", hint))
    return problems


def file_problems(
    request: Request, per_folder: Sequence[MatchedFiles], ids: np.ndarray, *, masks: bool = False
) -> tuple[np.ndarray, list[Problem]]:
    """Return [N] bool, which rows lack a file, and what to report of them.

    Rows with two files for one id are always a problem; rows without one only where they are not dropped.

    Args:
        request: which rows.
        per_folder: their files in each folder.
        ids: [N] ids.
        masks: whether they are masks, not images.
    """
    where, noun = ("data.masks", "masks") if masks else ("data.images", "images")
    lacking = np.zeros(len(ids), dtype=bool)
    problems = []
    for part in per_folder:
        lacking[part.missing] = True
        if part.several:
            names = [str(ids[row]) for row in part.several]
            what = f"{counted(len(names), 'id')} with two {noun}: {first_names(names)}"
            hint = f"name the suffix, or the folder they are in; one is '{part.paths[part.several[0]]}'"
            problems.append(Problem(where, what, hint))
        if part.missing and request.on_problem == "error":
            paths = [part.paths[row] for row in part.missing]
            hint = meant(paths, sorted(part.there)) or _longer(ids[part.missing], part.there) or part.example
            if len(paths) < len(ids):
                way = "fill" if request.split == "test" else "drop"
                hint = f"{hint}; `data: {{on_problem: {way}}}` goes on without them"
            problems.append(Problem(where, f"{counted(len(paths), 'missing file')}: {first_names(paths)}", hint))
    return lacking, problems


def _longer(ids: np.ndarray, there: Iterable[str]) -> str:
    """Return which suffix would find a file of most ids, where names go on after them; or nothing."""
    names = {path.rpartition("/")[2] for path in there}
    ends = Counter(
        name.removeprefix(base)
        for base in (stem(clean(str(one))).rpartition("/")[2] for one in ids[:_TRIED])
        for name in names
        if name.startswith(base) and not name.removeprefix(base)[:1].isalnum()
    )
    end, count = max(ends.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    return f'`suffix: "{end}"` would find {count} of the first {min(len(ids), _TRIED)}' if end and count > 1 else ""


def marked(table: Table, rows: np.ndarray, why: str) -> Table:
    """Return a test table with some rows marked as unreadable, and a note that says how many and which.

    Args:
        table: the rows.
        rows: [N] bool, True for what cannot be read.
        why: completes the note: "1 of 6 test rows is *without an image*".

    Raises:
        DataError: no row is left that can be read.
    """
    if not rows.any():
        return table
    before = np.zeros(len(table), dtype=bool) if table.unreadable is None else table.unreadable
    names = [str(name) for name in table.ids[rows]]
    if (before | rows).all():
        raise DataError(
            f"no test row can be read, all are {why}: {first_names(names)}",
            "some rows that can be predicted",
            "correct `data.test` in the YAML, or `kbench download`",
        )
    note = f"{counted(len(names), 'test row')} of {len(table):,} {why}, filled with the training share: "
    return replace(table, unreadable=before | rows, notes=(*table.notes, note + first_names(names)))


def metadata(request: Request, frame: pd.DataFrame) -> pd.DataFrame | None:
    """Return the metadata columns there are, as text; None when there is none."""
    names = [name for name in request.metadata if name in frame.columns]
    return frame[names].astype(object).reset_index(drop=True) if names else None


def metadata_notes(request: Request, frame: pd.DataFrame) -> tuple[str, ...]:
    """Return notes of metadata values that are one to a reader and count as different."""
    names = [name for name in request.metadata if name in frame.columns]
    return tuple(note for name in names if (note := spelling_note(name, counts_of(frame[name]))))


def without(table: Table, rows: np.ndarray, why: str) -> Table:
    """Return a table without some rows, and a note that says how many and which.

    Args:
        table: the rows.
        rows: [N] bool, True for what goes.
        why: completes the note: "left out 12 of 900 rows *without an image*".

    Raises:
        DataError: no row would be left.
    """
    if not rows.any():
        return table
    names = [str(name) for name in table.ids[rows]]
    if rows.all():
        raise DataError(
            f"no row is left, all are {why}: {first_names(names)}",
            "some rows that can be used",
            "correct `images:` and `suffix:` in the YAML, or `kbench download`",
        )
    note = f"left out {len(names):,} of {len(table):,} rows, {why}: {first_names(names)}"
    return replace(table.select(~rows), notes=(*table.notes, note))
