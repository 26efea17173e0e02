"""The check before anything is written or sent: a submission against the sample.

Columns, ids and their order are checked here, cells by the format's own rules; every problem is listed at once.
To add a rule for one format, add it to that format's `problems`.
"""

from __future__ import annotations

import gzip as gz
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from kbench import files
from kbench.data.table.csv_files import Dialect, dialect_of, read_frame, texts
from kbench.errors import Problem, SubmissionError, counted, first_names, nearest
from kbench.submission.formats.base import Format, id_column, near_id, refuse, row_keys, target_columns
from kbench.submission.formats.mask_cells import keys_of, names_below, names_in


def read_sample(path: Path) -> pd.DataFrame:
    """Read the sample submission; its ids are text.

    Of a JSON object the keys are the ids, of a zip and of a folder the names of its files.

    Whether an id may have several rows is the format's to say; see `sample_problems`.

    Raises:
        SubmissionError: it is missing, cannot be read, or is empty.
    """
    read = names_below if path.is_dir() else {".json": keys_of, ".zip": names_in}.get(path.suffix.lower())
    sample = read_frame(path, error=SubmissionError) if read is None else pd.DataFrame({"id": read(path)}, dtype=str)
    if not len(sample):
        raise SubmissionError(
            f"the sample '{path}' has no rows", "a row for every id, the id in the first column",
            "`kbench download --force`, or set submission.sample in the YAML",
        )  # fmt: skip
    return sample


def sample_problems(sample: pd.DataFrame, format: Format) -> list[Problem]:
    """Return a problem where several rows of a sample have one id and the format cannot tell them apart."""
    known, counts = np.unique(row_keys(sample, format), return_counts=True)
    if format.several or not (counts > 1).any():
        return []
    column, twice = id_column(sample), known[counts > 1]
    what = f"the sample has several rows of {counted(len(twice), 'id')}: {first_names(twice.tolist())}"
    if format.image_of is str:
        return [Problem(column, what, "formats of this task write one row per id; correct submission.sample")]
    labels = [name for name in target_columns(sample) if not sample[[column, name]].duplicated().any()]
    nearest_format = f"label: {labels[0]}" if labels else "objects: true"
    why = "one row per image and class" if labels else "one row per object"
    return [Problem(column, what, f"`submission: {{format: {{name: rle, {nearest_format}}}}}` writes {why}")]


def part_of(sample: pd.DataFrame, names: Sequence[str], task: str) -> pd.DataFrame:
    """Return the sample with the columns of these targets alone, which is what their run by itself can fill.

    It is the whole sample where it lacks one of them, or where all labels of a row are predicted together.
    """
    if task == "single_label" or not set(names) <= set(target_columns(sample)):
        return sample
    return sample[[id_column(sample), *names]]


def find_problems(frame: pd.DataFrame, sample: pd.DataFrame, *, format: Format) -> list[Problem]:
    """Return everything that is wrong with the rows of a submission; cells only where the columns are right."""
    sample = wanted(sample, format)
    problems = sample_problems(sample, format)
    if problems:
        return problems
    problems = _column_problems([str(name) for name in frame.columns], [str(name) for name in sample.columns])
    if {id_column(sample), *(name for name in format.key if name in sample.columns)} <= set(frame.columns):
        have, want = row_keys(frame, format), row_keys(sample, format)
        if format.several:
            have, want = (np.array(list(dict.fromkeys(keys.tolist())), dtype=str) for keys in (have, want))
        problems += id_problems(have, want, id_column(sample))
    if set(sample.columns) <= set(frame.columns):
        problems += format.problems(frame, sample)
    return problems


def wanted(sample: pd.DataFrame, format: Format) -> pd.DataFrame:
    """Return the sample as the format's rows look: with its own columns after the id where the file is no CSV."""
    if format.columns is None:
        return sample
    return pd.DataFrame({id_column(sample): texts(sample, id_column(sample)), **dict.fromkeys(format.columns, "")})


def check_submission(source: Path | pd.DataFrame, sample: pd.DataFrame, *, format: Format) -> pd.DataFrame:
    """Return a submission's rows if nothing is wrong with them.

    Args:
        source: the file (a CSV plain or gzip), or its rows.
        sample: the sample submission.
        format: the competition's format.

    Raises:
        SubmissionError: the file cannot be read, or has problems; all of them are listed.
    """
    frame = source if isinstance(source, pd.DataFrame) else read_rows(source, sample, format=format)
    subject = "the submission" if isinstance(source, pd.DataFrame) else f"'{source}'"
    refuse(subject, find_problems(frame, sample, format=format), wanted(sample, format))
    return frame


def read_rows(path: Path, sample: pd.DataFrame, *, format: Format) -> pd.DataFrame:
    """Return the rows of a submission's file, unchecked.

    Raises:
        SubmissionError: it cannot be read.
    """
    if format.decode is not None:
        return format.decode(path, sample)
    return read_frame(path, text=format.text, error=SubmissionError)


def write_submission(
    path: Path, frame: pd.DataFrame, *, sample: pd.DataFrame, format: Format, gzip: bool = False
) -> Path:
    r"""Check rows, write them, read them back and check again; return the file.

    Of masks every cell must come back as it was written; that cells say what the masks say was seen when they were
    made. The same rows give the same bytes: numbers have nine digits, lines end in `\n`, and the gzip header holds no
    time and no name; cells are separated as the sample's are. When a check fails nothing is written and a file that
    was there stays.

    Args:
        path: the file; `.gz` is added for gzip.
        frame: the rows.
        sample: the sample submission.
        format: the competition's format.
        gzip: whether to compress.

    Raises:
        SubmissionError: the rows have problems, or the format cannot be compressed.
        DataError: the disk is full.
    """
    if gzip and format.encode is not None:
        raise SubmissionError(
            f"submission.gzip for a '{format.suffix}' file", "gzip for CSV files", "set `submission: {gzip: false}`"
        )
    check_submission(frame, sample, format=format)
    target = path.with_name(f"{path.name}.gz") if gzip and path.suffix != ".gz" else path
    with files.replacing(target) as temporary:
        files.write_new(temporary, (format.encode or partial(_csv, gzip=gzip, dialect=dialect_of(sample)))(frame))
        written = check_submission(temporary, sample, format=format)
        if format.exact and not _same_cells(frame, written):
            raise SubmissionError(
                f"'{target}' does not hold what was written to it", "the same cells when the file is read back",
                "look at the disk, then write it again",
            )  # fmt: skip
    return target


def _csv(frame: pd.DataFrame, *, gzip: bool, dialect: Dialect) -> Iterator[bytes]:
    content = frame.to_csv(
        index=False, lineterminator="\n", float_format="%.9g", sep=dialect.delimiter, decimal=dialect.decimal
    ).encode()
    yield gz.compress(content, compresslevel=6, mtime=0) if gzip else content


def _same_cells(frame: pd.DataFrame, written: pd.DataFrame) -> bool:
    return all(frame[name].tolist() == written[name].tolist() for name in frame.columns)


def _column_problems(have: list[str], want: list[str]) -> list[Problem]:
    missing, extra = [name for name in want if name not in have], [name for name in have if name not in want]
    problems = []
    if missing:
        what = f"{len(missing)} columns are missing: {first_names(missing)}"
        problems.append(Problem("columns", what, nearest(missing[0], extra) if extra else ""))
    if extra:
        problems.append(Problem("columns", f"{len(extra)} columns are not in the sample: {first_names(extra)}"))
    if not missing and not extra and have != want:
        place = next(k for k, (name, right) in enumerate(zip(have, want, strict=True)) if name != right)
        problems.append(Problem("columns", f"in another order: column {place + 1} is '{have[place]}'",
                                f"the sample has '{want[place]}' there"))  # fmt: skip
    return problems


def id_problems(have: np.ndarray, want: np.ndarray, where: str) -> list[Problem]:
    """Return what is wrong with [N] ids: repeated, missing, unknown, or else in another order."""
    known, counts = np.unique(have, return_counts=True)
    twice, missing, extra = known[counts > 1], np.setdiff1d(want, known), np.setdiff1d(known, want)
    problems = []
    if len(twice):
        problems.append(Problem(where, f"{len(twice):,} ids stand twice: {first_names(twice.tolist())}"))
    if len(missing):
        what = f"{len(missing):,} of {len(want):,} ids are missing: {first_names(missing.tolist())}"
        problems.append(Problem(where, what, near_id(str(missing[0]), extra) if len(extra) else ""))
    if len(extra):
        problems.append(Problem(where, f"{len(extra):,} ids are not in the sample: {first_names(extra.tolist())}"))
    if not problems and not np.array_equal(have, want):
        row = int((have != want).argmax())
        what = f"ids in another order: row {row + 1} is '{have[row]}'"
        problems.append(Problem(where, what, f"the sample has '{want[row]}' there"))
    return problems
