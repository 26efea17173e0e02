"""Fold files: kbench's own (CSV and manifest), and other people's.

A fold file is a CSV `id,fold[,group][,stratum][,avoid]` sorted by id, small enough to commit and to compare, with a
JSON manifest beside it that is written last and holds a checksum of the rows. To read another kind of foreign
file, add a branch to `_columns`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kbench import files
from kbench.data.folds.folds import Cut, Folds, complete, group_warnings, id_difference
from kbench.data.folds.strata import groups_of, strata_of
from kbench.data.table.table import Table
from kbench.errors import FoldError, first_names

_FOLD_NAMES = ("fold", "folds", "kfold", "split")
_WORDS = {"train": -1, "valid": 0, "val": 0, "validation": 0}


def write_folds(path: Path, folds: Folds) -> Path:
    """Write folds as a CSV, then the manifest beside it.

    Args:
        path: the CSV; the manifest gets the ending `.json`.
        folds: what is written.

    Returns:
        `path`.
    """
    columns = {"id": folds.ids, "fold": folds.fold, "group": folds.groups, "stratum": folds.strata}
    if folds.avoid is not None:
        columns["avoid"] = np.array([" ".join(map(str, np.flatnonzero(row))) for row in folds.avoid], dtype=str)
    kept = {name: values for name, values in columns.items() if values is not None}
    with files.replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as handle:
        handle.write(",".join(kept) + "\n")
        for row in range(len(folds.ids)):
            handle.write(",".join(_quoted(str(values[row])) for values in kept.values()) + "\n")
    files.write_json(path.with_suffix(".json"), {**folds.manifest, "hash": folds.hash, "checksum": _checksum(kept)})
    return path


def _checksum(columns: Mapping[str, np.ndarray]) -> str:
    """Return what `files.digest` does of lists of text, a value at a time."""
    state = hashlib.sha256()
    for place, name in enumerate(sorted(columns)):
        state.update(f"{'{,'[place > 0]}{files.compact_json(name)}:[".encode())
        for row, value in enumerate(columns[name]):
            state.update(f"{',' if row else ''}{files.compact_json(str(value))}".encode())
        state.update(b"]")
    state.update(b"}" if columns else b"{}")
    return state.hexdigest()[:16]


def read_folds(path: Path) -> Folds:
    """Read folds that kbench wrote.

    Args:
        path: the CSV.

    Raises:
        DataError: the manifest is not JSON.
        FoldError: there are none, they have no manifest, or the CSV was edited.
    """
    manifest_path = path.with_suffix(".json")
    adopt = f"`kbench folds --from {path}` adopts it as it is; `kbench folds --force` cuts the folds anew"
    if not path.is_file():
        raise FoldError(f"there are no folds at '{path}'", "a fold file", "`kbench folds` cuts them")
    if not manifest_path.is_file():
        raise FoldError(f"'{path}' has no manifest", f"'{manifest_path.name}' beside it", adopt)
    manifest = files.read_json(manifest_path)
    texts = {name: np.array(values, dtype=str) for name, values in _csv_columns(path).items()}
    if not isinstance(manifest, dict) or manifest.pop("checksum", None) != _checksum(texts):
        raise FoldError(f"'{path}' was changed after it was written", "rows that match its manifest", adopt)
    manifest.pop("hash", None)
    fold = texts["fold"].astype(np.int64)
    avoid = _avoided(texts["avoid"].tolist(), int(fold.max(initial=-1)) + 1) if "avoid" in texts else None
    return Folds(texts["id"], fold, texts.get("stratum"), texts.get("group"), manifest, avoid)


def _avoided(texts: list[str], n: int) -> np.ndarray:
    """Return [N, n] bool of the numbers of the folds that must not train on each row."""
    avoid = np.zeros((len(texts), n), dtype=bool)
    for row, text in enumerate(texts):
        avoid[row, [int(number) for number in text.split()]] = True
    return avoid


def adopt_folds(path: Path, table: Table, *, cut: Cut | None = None) -> Folds:
    """Take folds from someone else's file.

    The file is a CSV with a column `fold`, `folds`, `kfold` or `split` (in any case) and ids in a column `id`,
    else in the first other one that has a name; or a JSON object that lists the ids of each fold. Folds are
    numbers from 0 (or from 1, then all are lowered by one), -1 or `train` for rows that only train; `valid`,
    `val` and `validation` mean fold 0.

    Args:
        path: the file.
        table: the rows that need folds.
        cut: the columns whose groups are held against the folds and whose strata are shown; without it the
            file's own columns `group` and `stratum`, if there are any.

    Returns:
        Folds whose manifest has the strategy `adopted`.

    Raises:
        DataError: there is no such column in the table.
        FoldError: the file cannot be read, ids differ, a value is no fold, or a group is in two folds.

    Source: row S-02 for the JSON.
    """
    columns = _columns(path)
    names, rows = _aligned(path, columns, table)
    raw = [columns[names["fold"]][row] for row in rows]
    fold = numbers_of_texts(table.ids, raw, f"'{path.name}'")
    strata, groups = (_texts(columns, names.get(name), rows) for name in ("stratum", "group"))
    if cut is not None:
        strata = strata_of(table, cut.by)
        groups = groups_of(table, cut.group) if cut.group is not None else None
    lowered = any(_number(text) != number for text, number in zip(raw, fold.tolist(), strict=True))
    warnings = [f"folds count from 1 in '{path.name}'; here they count from 0"] if lowered else []
    manifest = {
        "strategy": "adopted", "n": int(fold.max(initial=-1)) + 1, "seed": None, "by": list(cut.by) if cut else [],
        "group": cut.group if cut else names.get("group"), "options": {"file": path.name},
    }  # fmt: skip
    warnings += group_warnings(groups, fold)
    return Folds(table.ids, fold, strata, groups, complete(manifest, fold, table=table, warnings=warnings))


def read_assignment(path: Path, table: Table) -> np.ndarray:
    """Return [N] int64, the folds a foreign file gives the table's rows; the file is read as by `adopt_folds`.

    Raises:
        FoldError: the file cannot be read, ids differ, or a value is no fold.
    """
    columns = _columns(path)
    names, rows = _aligned(path, columns, table)
    return numbers_of_texts(table.ids, [columns[names["fold"]][row] for row in rows], f"'{path.name}'")


def numbers_of_texts(ids: np.ndarray, texts: list[str], where: str) -> np.ndarray:
    """Return [N] int64 folds written as text; folds that count from 1 are lowered by one.

    Args:
        ids: [N] text, for the message.
        texts: N values.
        where: what the message calls their origin.

    Raises:
        FoldError: a value is no fold.
    """
    numbers = [_number(text) for text in texts]
    bad = [row for row, number in enumerate(numbers) if number is None]
    if bad:
        raise FoldError(
            f"{where}: {len(bad):,} values are no fold, such as '{texts[bad[0]]}' of the id '{ids[bad[0]]}'",
            "whole numbers from 0, -1 or `train` for train-only rows, `valid` for fold 0",
            "correct these values",
        )
    folds = np.array(numbers, dtype=np.int64)
    used = folds[folds >= 0]
    if len(used) and used.min() == 1:
        folds[folds >= 0] -= 1
    return folds


def _number(text: str) -> int | None:
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    whole = word.removesuffix(".0")  # pandas writes whole numbers so when the column had a gap
    return int(whole) if whole == "-1" or (whole.isascii() and whole.isdigit() and len(whole) < 10) else None


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def _columns(path: Path) -> dict[str, list[str]]:
    """Return the named columns of a foreign file as text."""
    if path.suffix.lower() != ".json":
        return _csv_columns(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, _reason(error)) from error
    if not isinstance(content, dict) or not all(isinstance(ids, list) for ids in content.values()):
        raise _unreadable(path, "it is no JSON object of lists")
    pairs = [(str(name), fold) for fold, ids in content.items() for name in ids]
    return {"id": [name for name, _ in pairs], "fold": [fold for _, fold in pairs]}


def _csv_columns(path: Path) -> dict[str, list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            rows = (row for row in csv.reader(handle, strict=True) if row)
            header = next(rows, None)
            if header is None:
                raise _unreadable(path, "it is empty")
            columns: list[list[str]] = [[] for _ in header]
            known: dict[str, str] = {}  # folds, groups and strata stand in many rows: one text for all of them
            for number, row in enumerate(rows, start=2):
                if len(row) != len(header):
                    raise _unreadable(path, f"row {number} has {len(row)} values for {len(header)} columns")
                for place, value in enumerate(row):
                    columns[place].append(known.setdefault(value, value) if place else value)
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, _reason(error)) from error
    if len(set(header)) != len(header):
        raise _unreadable(path, "two columns have one name")
    return dict(zip(header, columns, strict=True))


def _reason(error: Exception) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else str(error)


def _unreadable(path: Path, reason: str) -> FoldError:
    return FoldError(
        f"cannot read the fold file '{path}': {reason}",
        "a UTF-8 CSV such as `id,fold`, or a JSON object {fold: [ids]}",
        "correct the file, or give another one",
    )


def _aligned(path: Path, columns: dict[str, list[str]], table: Table) -> tuple[dict[str, str], list[int]]:
    """Return what the columns for id, fold, group and stratum are called, and the file's row of each table row."""
    names = _names(path, columns)
    ids = np.array(columns[names["id"]], dtype=str)
    unique, first, counts = np.unique(ids, return_index=True, return_counts=True)
    twice = [str(name) for name in unique[counts > 1]]
    if twice:
        raise FoldError(
            f"'{path.name}': {len(twice):,} ids stand twice in the column '{names['id']}': {first_names(twice)}",
            "each id once",
            "remove the repeated rows",
        )
    if difference := id_difference(unique, table.ids):
        raise FoldError(
            f"'{path.name}' and the table have different ids: {difference}",
            f"a fold for each of the table's {len(table):,} ids and no other",
            f"write the ids in the column '{names['id']}' as in the table; fold -1 is for rows that only train",
        )
    return names, first.tolist()


def _names(path: Path, columns: dict[str, list[str]]) -> dict[str, str]:
    lower = {name.strip().lower(): name for name in reversed(columns)}
    fold = next((lower[name] for name in _FOLD_NAMES if name in lower), None)
    others = [name for name in columns if name.strip() and name != fold]
    if fold is None or not others:
        raise FoldError(
            f"'{path.name}' has the columns {first_names(list(columns))}",
            f"a column of ids and one called {', '.join(_FOLD_NAMES)}",
            "rename the column that holds the folds to `fold`",
        )
    names = {"fold": fold, "id": lower.get("id", others[0])}
    return names | {name: lower[name] for name in ("group", "stratum") if name in lower and lower[name] != names["id"]}


def _texts(columns: dict[str, list[str]], name: str | None, rows: list[int]) -> np.ndarray | None:
    return None if name is None else np.array([columns[name][row] for row in rows], dtype=str)
