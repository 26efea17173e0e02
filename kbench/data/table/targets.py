"""What is to be predicted, read from the text cells of a CSV.

Every problem of a column is collected, with counts and the first ids, rather than raised at the first row. To
add a way targets can be written, add a branch to `read_targets`; a task has one shape of array whatever the way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kbench.data.table.csv_files import UNKNOWN, numbers
from kbench.data.table.spellings import counts_of, plain, spelling_note
from kbench.errors import Problem, counted, first_names, visible

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?")
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_HOLES = frozenset({"nan", "null", "na", "n/a", "#n/a", "<na>", "n.a.", "-", "--", "?"})
"""Words that are seldom a class; `none` and `unknown` often are."""
_COARSE = 0.05  # steps of 32 bits in standard deviations, from which on numbers are no longer told apart well
_MOST = 1e38  # about the largest number of 32 bits


@dataclass(frozen=True)
class Targets:
    """Targets of all rows and what is wrong with them.

    Attributes:
        names: K target names.
        values: [N] int64 class index (`single_label`) or [N, K] float32, NaN where unknown; None without targets.
        problems: what makes the values unusable; then they are not used.
        notes: what the user should know.
        blank: [N] bool, rows without a target; None where there is none.
        lacking: what is said of them, where they are not left out.
    """

    names: tuple[str, ...]
    values: np.ndarray | None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    blank: np.ndarray | None = None
    lacking: tuple[Problem, ...] = ()


def read_targets(
    frame: pd.DataFrame,
    columns: Sequence[str],
    *,
    task: str,
    ids: np.ndarray,
    classes: Sequence[str] | None = None,
    separator: str = " ",
    empty_tags: bool = False,
) -> Targets:
    """Turn text columns into targets.

    Args:
        frame: text cells; an empty cell is an empty text.
        columns: target columns: one of labels, tags or numbers, or one of 0 and 1 (or numbers) per target.
        task: `single_label`, `multi_label` or `regression`.
        ids: [N] ids of the rows, for messages.
        classes: allowed labels in the order of the outputs; found in the column by default.
        separator: between the tags of one cell.
        empty_tags: whether an empty cell means no tag, rather than a missing target.

    Source: F-02.
    """
    if task == "regression":
        return _numbers(frame, columns, ids)
    if len(columns) > 1:
        return _indicators(frame, columns, ids, exclusive=task == "single_label")
    if task == "single_label":
        return _labels(frame[columns[0]], ids, classes)
    return _tags(frame[columns[0]], ids, classes, separator, empty_tags)


def _labels(column: pd.Series, ids: np.ndarray, classes: Sequence[str] | None) -> Targets:
    codes, classes_here = pd.factorize(column.to_numpy(dtype=object))
    name, none = str(column.name), unknown_words(classes_here, classes or ())
    names = tuple(classes) if classes else tuple(sorted_labels(label for label in classes_here if label not in none))
    index = {label: position for position, label in enumerate(names)}
    values = np.array([index.get(label, -1) for label in classes_here], dtype=np.int64)[codes]
    empty = np.array([label in none for label in classes_here], dtype=bool)[codes]
    problems = _unknown_problem(name, names, column[(values < 0) & ~empty])
    if len(names) == 1 and not classes:
        problems.append(Problem(name, f"every row has the label '{names[0]}'", "two classes or more"))
    lacking = _blank_problem(name, ids, empty, f"without a label{_words(classes_here, none)}")
    notes = (spelling_note(name, counts_of(column)), _odd_words_note(name, counts_of(column[~empty]), classes or ()))
    return Targets(names, values, tuple(problems), tuple(filter(None, notes)), empty, lacking)


def _tags(
    column: pd.Series, ids: np.ndarray, classes: Sequence[str] | None, separator: str, empty_tags: bool
) -> Targets:
    codes, cells = pd.factorize(column.to_numpy(dtype=object))
    tags = [split_tags(cell, separator) for cell in cells]
    name = str(column.name)
    names = tuple(classes) if classes else tuple(sorted_labels({tag for cell in tags for tag in cell}))
    index = {tag: position for position, tag in enumerate(names)}
    hot = np.zeros((len(cells), len(names)), dtype=np.float32)
    unknown: list[str] = []
    for row, cell in enumerate(tags):
        for tag in cell:
            if tag in index:
                hot[row, index[tag]] = 1
            else:
                unknown.append(tag)
    problems = _unknown_problem(name, names, unknown)
    empty = np.array([not cell for cell in tags], dtype=bool)[codes]
    counts = counts_of(tag for code in codes for tag in tags[code])
    notes = tuple(filter(None, [
        spelling_note(name, counts), _odd_words_note(name, counts, classes or ()),
        _separator_note(name, counts, tags, separator),
    ]))  # fmt: skip
    if empty_tags:
        return Targets(names, hot[codes], tuple(problems), notes)
    hint = "`data: {layout: {name: csv, empty_tags: true}}` if they have no tag"
    lacking = _blank_problem(name, ids, empty, "without a tag", hint)
    return Targets(names, hot[codes], tuple(problems), notes, empty, lacking)


def _odd_words_note(where: str, counts: Mapping[str, int], classes: Sequence[str]) -> str:
    """Return a note of classes that may be no class: words such as `NaN`, and words among numbers; or nothing."""
    free = [label for label in counts if label not in classes]
    words = [label for label in free if _NUMBER.fullmatch(label.strip()) is None]
    odd = words if len(free) - len(words) >= 2 else [label for label in words if plain(label) in _HOLES]
    if not odd or len(words) == len(free) == len(odd):
        return ""
    shown = ", ".join(f"'{visible(label)}' ({counted(counts[label], 'row')})" for label in odd[:5])
    return f"'{where}' has {shown}, which count as classes; leave such cells blank if they say that there is none"


def _separator_note(where: str, counts: Mapping[str, int], tags: Sequence[Sequence[str]], separator: str) -> str:
    """Return a note of tags that another sign seems to separate, or that a program wrote as a list; or nothing."""
    if any(tag[0] in "[({" or tag[-1] in "])}" for tag in counts):
        return f"'{where}' has tags with brackets: {first_names(list(counts))}; write the cells without them"
    for sign in ",;|":
        parts = Counter(part for tag in counts for part in set(split_tags(tag, sign)))
        shared = any(parts[part] > 1 for tag in counts if sign in tag for part in split_tags(tag, sign))
        if sign != separator.strip() and shared and max(map(len, tags), default=0) <= 1:
            return (
                f"'{where}' has tags such as {first_names(list(counts), 2)}, and '{sign}' seems to separate tags: "
                f'`data: {{layout: {{name: csv, separator: "{sign}"}}}}` makes {len(parts)} tags of them'
            )
    return ""


def split_tags(cell: str, separator: str) -> list[str]:
    """Return the tags of a cell; a blank separator stands for any white space."""
    parts = cell.split() if not separator.strip() else cell.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _indicators(frame: pd.DataFrame, columns: Sequence[str], ids: np.ndarray, *, exclusive: bool) -> Targets:
    read = _numbers(frame, columns, ids)
    values = np.asarray(read.values)  # [N, K]
    problems = list(read.problems)
    for position, name in enumerate(columns):
        cells = values[:, position]
        wrong = np.isfinite(cells) & (cells != 0) & (cells != 1)
        problems += _rows_problem(name, ids, wrong, "with a value other than 0 and 1")
    if not exclusive:
        return replace(read, problems=tuple(problems))
    known = np.nan_to_num(values, nan=0.0)
    if not problems:
        wrong = np.asarray(known.sum(axis=1) != 1) & ~np.asarray(read.blank)
        problems += _rows_problem(", ".join(columns), ids, wrong, "without exactly one 1")
    return replace(read, values=known.argmax(axis=1), problems=tuple(problems), notes=())


def _numbers(frame: pd.DataFrame, columns: Sequence[str], ids: np.ndarray) -> Targets:
    empty = np.stack([is_unknown(frame[name]) for name in columns], axis=1)  # [N, K]
    with np.errstate(over="ignore"):
        values = numbers(frame, columns).astype(np.float32)  # [N, K]
    problems = []
    for position, name in enumerate(columns):
        wrong = ~empty[:, position] & ~np.isfinite(values[:, position])
        cells = list(dict.fromkeys(frame[name][wrong]))
        what = f"without a finite number ({first_names(cells, 3)})" if cells else ""
        problems += _rows_problem(name, ids, wrong, what, _number_hint(cells))
        problems += _precision_problem(name, numbers(frame, [name])[:, 0])
    blank = np.asarray(empty.all(axis=1))
    words = {cell for name in columns for cell in frame[name][blank].unique()}
    lacking = _blank_problem(", ".join(columns), ids, blank, f"without a target{_words(words, words)}")
    unknown, every = int(empty[~blank].sum()), int(empty[~blank].size)
    notes = (f"{unknown:,} of {every:,} targets are unknown",) if unknown and not problems else ()
    return Targets(tuple(columns), values, tuple(problems), notes, blank, lacking)


def _number_hint(cells: Sequence[str]) -> str:
    """Return what to type where cells are no numbers."""
    if cells and all(_COMMA.fullmatch(cell.strip()) for cell in cells):
        return '`data: {layout: {name: csv, decimal: ","}}` if they have decimal commas'
    if cells and all(cell.strip().lower() in ("true", "false", "yes", "no") for cell in cells):
        return "write 1 and 0"
    return "write numbers such as 1.5, and leave cells blank whose number is not known"


def _precision_problem(where: str, values: np.ndarray) -> list[Problem]:
    """Return a problem where [N] float64 numbers differ by less than 32 bits can tell, as times in seconds do."""
    known = values[np.isfinite(values)]
    spread = float(known.std()) if len(known) else 0.0
    step = float(np.spacing(np.float32(np.abs(known).max()))) if spread and np.abs(known).max() < _MOST else 0.0
    if step <= _COARSE * spread:
        return []
    centre = float(f"{known.mean():.2g}") if abs(known.mean()) < 1e15 else float(known.mean())
    return [
        Problem(
            where,
            f"numbers round {known.mean():.10g} that differ by {spread:.3g}: 32 bits tell {step:.3g} apart there",
            f"subtract a number such as {centre:.10g} from all, and add it to the submission's again",
        )
    ]


def is_unknown(column: pd.Series) -> np.ndarray:
    """Return [N] bool, which cells of a column of numbers are empty or a word for a number that is not known."""
    return np.asarray([plain(cell) in UNKNOWN for cell in column], dtype=bool)


def unknown_words(cells: Iterable[str], classes: Sequence[str]) -> set[str]:
    """Return the labels that say there is none: blanks, and beside numbers words such as `NaN`.

    In a column of words `None` is a class, and so is whatever `data.classes` names.
    """
    blank = {label for label in cells if not plain(label)} - set(classes)
    words = {label for label in cells if plain(label) in UNKNOWN} - blank - set(classes)
    rest = [label for label in cells if label not in blank | words]
    return blank | words if rest and all(_NUMBER.fullmatch(label.strip()) for label in rest) else blank


def _words(cells: Iterable[str], none: Iterable[str]) -> str:
    """Return which words say that there is no target, in brackets, or nothing where cells are empty."""
    words = sorted({label for label in cells if label in set(none) and label.strip()})
    return f" ({first_names(words, 3)})" if words else ""


def _blank_problem(where: str, ids: np.ndarray, rows: np.ndarray, what: str, hint: str = "") -> tuple[Problem, ...]:
    """Return what is said of rows without a target, or nothing."""
    way = "fill the cells, or `data: {on_problem: drop}` leaves the rows out"
    return tuple(_rows_problem(where, ids, rows, what, f"{hint}; {way}" if hint else way))


def _rows_problem(where: str, ids: np.ndarray, rows: np.ndarray, what: str, hint: str = "") -> list[Problem]:
    """Return one problem that counts the rows and names the first, or none."""
    if not rows.any():
        return []
    return [
        Problem(
            where, f"{counted(int(rows.sum()), 'row')} {what}: {first_names([str(name) for name in ids[rows]])}", hint
        )
    ]


def _unknown_problem(where: str, names: Sequence[str], words: Iterable[str]) -> list[Problem]:
    counts = pd.Series(list(words), dtype=object).value_counts()
    if counts.empty:
        return []
    labels = first_names([str(label) for label in counts.index])
    return [
        Problem(
            where,
            f"{counted(int(counts.sum()), 'unknown label')}: {labels}",
            f"data.classes has {first_names(list(names))}",
        )
    ]


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Return distinct labels in order: by number when all are integers, by text otherwise."""
    distinct = set(labels)
    if all(_INTEGER.fullmatch(label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def detect_task(frame: pd.DataFrame, target: Sequence[str]) -> str:
    """Tell the task from the target columns of a table.

    One column: numbers with a fraction, or more than 20 integers most of which differ, are `regression`; cells
    of exactly one word each are `single_label`; several words make it `multi_label`. Several columns: 0 and 1
    with one 1 a row are `single_label`, other 0 and 1 `multi_label`, other numbers `regression`. Among numbers, empty
    cells and words such as `NaN` are numbers that are not known.

    Args:
        frame: text cells.
        target: the target columns.

    Source: F-02.
    """
    known = ~np.stack([is_unknown(frame[name]) for name in target], axis=1)  # [N, K]
    values = numbers(frame, target)
    if len(target) > 1:
        if not np.isin(values[known], (0, 1)).all():
            return "regression"
        whole = values[known.all(axis=1)]
        return "single_label" if len(whole) == len(values) and (whole.sum(axis=1) == 1).all() else "multi_label"
    cells = frame[target[0]][known[:, 0]]
    if len(cells) and cells.str.strip().str.fullmatch(_NUMBER.pattern).all():
        integers = cells.str.strip().str.fullmatch(_INTEGER.pattern).all()
        distinct = cells.nunique()
        return "single_label" if integers and (distinct <= 20 or distinct * 2 <= len(cells)) else "regression"
    return "multi_label" if any(len(split_tags(cell, " ")) > 1 for cell in cells.unique()) else "single_label"
