"""The image files of each row: one in each folder, or those that the patterns of `input.files` name, by file and date.

A file that is not there is a third thing beside one that is whole and one that is broken: where `input.missing: mask`
says so it is unknown, and its path is empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kbench.data.images.channels import places_of
from kbench.data.table.image_files import Listing, MatchedFiles, clean, find_files, folders_of, stem
from kbench.data.table.reading import Request, file_problems
from kbench.errors import Problem, counted, first_names, nearest

_DATE, _ID = "{date}", "{id}"


@dataclass(frozen=True)
class FileRows:
    """The image files of a split's rows.

    Attributes:
        paths: N tuples of paths below the root, empty where a file is unknown.
        lacking: [N] bool, rows without a file they need.
        problems: what is wrong; missing files only where such rows are not left out.
        notes: what the user should know.
        partial: [N] bool, rows that lack some of their files and may not; None where no row does.
    """

    paths: tuple[tuple[str, ...], ...]
    lacking: np.ndarray
    problems: list[Problem]
    notes: tuple[str, ...] = ()
    partial: np.ndarray | None = None

    @property
    def dropped(self) -> np.ndarray:
        """[N] bool, rows that `missing: drop` leaves out."""
        return np.zeros(len(self.paths), dtype=bool) if self.partial is None else self.partial


def find_images(request: Request, ids: np.ndarray, *, known: Sequence[Sequence[str]] = ()) -> FileRows:
    """Find the image files of each row.

    Args:
        request: which rows.
        ids: [N] ids.
        known: the paths of the first folders, where they are known.
    """
    if request.files:
        return _by_pattern(request, ids)
    folders = (request.images or ("",))[len(known) :]
    per_folder = [find_files(request.root, folder, ids.tolist(), suffix=request.suffix) for folder in folders]
    lacking, problems = file_problems(request, per_folder, ids)
    return FileRows(tuple(zip(*known, *(part.paths for part in per_folder), strict=True)), lacking, problems)


def _by_pattern(request: Request, ids: np.ndarray) -> FileRows:
    if len(request.images) > 1:
        what = f"{len(request.images)} folders beside `input.files`"
        return FileRows(((),) * len(ids), np.zeros(len(ids), dtype=bool), [
            Problem(f"data.{request.split}.images", what, "name one, and what is below it in `files`")
        ])  # fmt: skip
    folder = request.images[0] if request.images else ""
    dated = [name for name, pattern in request.files.items() if _DATE in pattern]
    places = places_of(list(request.files), dates=request.dates, dated=dated)
    stems = [stem(str(name)) for name in ids]
    names = [_names(request.files[file], stems, date) for file, date in places]
    per_folder = [find_files(request.root, folder, some, suffix="") for some in names]
    absent = np.zeros((len(ids), len(places)), dtype=bool)
    for place, part in enumerate(per_folder):
        absent[part.missing, place] = True
    notes = _strange_dates(request, folder, ids)
    if request.missing == "error":
        lacking, problems = file_problems(request, per_folder, ids)
        way = ", and `input: {missing: mask}` with what is in them unknown"
        problems = [replace(one, hint=one.hint + way) if "missing" in one.what else one for one in problems]
        return FileRows(tuple(zip(*(part.paths for part in per_folder), strict=True)), lacking, problems, notes)
    paths = tuple(
        tuple("" if absent[row, place] else part.paths[row] for place, part in enumerate(per_folder))
        for row in range(len(ids))
    )
    gone = np.asarray(absent.all(1))
    problems = _gone_problems(request, gone, ids, per_folder)
    if request.missing == "drop":
        return FileRows(paths, gone, problems, notes, absent.any(1) & ~gone)
    return FileRows(paths, gone, problems, (*_absent_notes(request, places, absent), *notes))


def _names(pattern: str, stems: Sequence[str], date: str | None) -> list[str]:
    return [pattern.replace(_DATE, date or "").replace(_ID, name) for name in stems]


def _gone_problems(
    request: Request, gone: np.ndarray, ids: np.ndarray, per_folder: Sequence[MatchedFiles]
) -> list[Problem]:
    """Return a problem that names the rows all of whose files are missing, where they are not left out."""
    if not gone.any() or request.on_problem != "error":
        return []
    names = [str(name) for name in ids[gone]]
    way = "fill" if request.split == "test" else "drop"
    what = f"{counted(len(names), 'row')} without any file: {first_names(names)}"
    hint = f"{per_folder[0].example}; `data: {{on_problem: {way}}}` goes on without them"
    return [Problem("input.files", what, hint)]


def _absent_notes(request: Request, places: Sequence[tuple[str, str | None]], absent: np.ndarray) -> tuple[str, ...]:
    """Return a note for each file that some rows lack, with the dates that lack it most."""
    notes = []
    for name in request.files:
        own = [place for place, (file, _) in enumerate(places) if file == name]
        count = int(absent[:, own].sum())
        if not count:
            continue
        dates = Counter({places[place][1]: int(absent[:, place].sum()) for place in own})
        most = ", ".join(f"{date} ({number:,})" for date, number in dates.most_common(3) if date and number)
        notes.append(
            f"{request.split}: {count:,} of {absent.shape[0] * len(own):,} '{name}' files are not there and are masked"
            + (f", most of {most}" if most else "")
        )
    return tuple(notes)


def _strange_dates(request: Request, folder: str, ids: np.ndarray) -> tuple[str, ...]:
    """Return a note of files that are of a row and of a date that `input.dates` does not have."""
    if not len(ids):
        return ()
    strange: dict[str, str] = {}
    known = {stem(str(name)) for name in ids}
    for pattern in (pattern for pattern in request.files.values() if _DATE in pattern and "/" not in pattern):
        parts = re.escape(pattern).replace(re.escape(_ID), "(?P<id>.+)", 1).replace(re.escape(_ID), "(?P=id)")
        shape = re.compile(parts.replace(re.escape(_DATE), "(?P<date>[^/]+)", 1).replace(re.escape(_DATE), "(?P=date)"))
        for one in folders_of(request.root, folder):
            for name in sorted(Listing(request.root / one).names()):
                match = shape.fullmatch(name)
                if match and match["date"] not in request.dates and match["id"] in known:
                    strange.setdefault(match["date"], name)
    if not strange:
        return ()
    shown = ", ".join(f"{date} ('{name}')" for date, name in list(strange.items())[:3])
    return (
        f"{request.split}: files of {counted(len(strange), 'date')} that `input.dates` does not have are not read: "
        f"{shown}; {nearest(next(iter(strange)), request.dates)}",
    )


def ids_of_files(request: Request) -> list[str]:
    """Return the sorted ids of the rows of a folder: the texts that make names of `input.files` those of its files.

    Where a file fits several names (`{id}.tif` and `{id}_P.tif`), the one with the shortest id counts.
    """
    shortest: dict[str, str] = {}
    folder = request.images[0] if request.images else ""
    for pattern in request.files.values():
        place, _, name = clean(pattern).rpartition("/")
        if _ID in place:
            continue
        dates = "|".join(map(re.escape, request.dates)) or "(?!)"
        parts = re.escape(name).replace(re.escape(_DATE), f"(?:{dates})")
        shape = re.compile(parts.replace(re.escape(_ID), "(?P<id>.+)", 1).replace(re.escape(_ID), "(?P=id)"))
        for one in folders_of(request.root, folder):
            for file in Listing(request.root / one / place).names():
                match, path = shape.fullmatch(file), f"{one}/{place}/{file}"
                if match and len(match["id"]) < len(shortest.get(path, file)):
                    shortest[path] = match["id"]
    return sorted(set(shortest.values()))
