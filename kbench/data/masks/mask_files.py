"""Mask files and the images they are of: none is shared by two images, and one that is of none is never silent."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kbench.data.table.csv_files import read_frame
from kbench.data.table.image_files import IMAGE_SUFFIXES, Listing, folders_of, stem
from kbench.data.table.names import names_of, strays
from kbench.data.table.reading import Request
from kbench.errors import Problem, counted, first_names


@dataclass(frozen=True)
class Place:
    """Where the masks of a class lie.

    Attributes:
        folder: below the data folder.
        suffix: what names have after the id; None for any image ending.
        paths: of the masks that images have; empty ones where an image has none.
    """

    folder: str
    suffix: str | None
    paths: Sequence[str]


def elsewhere(request: Request) -> set[str]:
    """Return the ids that `where` leaves out of the rows, whole and without ending: they may have masks."""
    if not request.where or request.csv is None:
        return set()
    frame = read_frame(request.root / request.csv, text=True)
    every = frame[request.id or str(frame.columns[0])].tolist()
    return {*every, *map(stem, every)}


def shared_problems(ids: np.ndarray, places: Sequence[Place]) -> list[Problem]:
    """Return what is wrong where two images would be given one mask."""
    names = names_of(ids).shared()
    problems = []
    if names:
        what = f"{counted(len(names), 'image')} that only the ending tells apart: {first_names(names)}"
        problems.append(Problem("data.masks", what, "masks are found by the id without it; rename the images"))
    claims = Counter(path for place in places for path in place.paths if path)
    twice = [path for path, count in claims.items() if count > 1]
    if twice and not names:
        what = f"{counted(len(twice), 'file')} of two images or classes: {first_names(twice)}"
        problems.append(Problem("data.masks", what, "give the classes other texts in `labels`, or rename the files"))
    return problems


def stray_files(request: Request, ids: np.ndarray, places: Sequence[Place]) -> str:
    """Return a text that counts and names the mask files of no image, or nothing."""
    used = {path for place in places for path in place.paths if path}
    others, names = elsewhere(request), list[str]()
    for place in places:
        for folder in folders_of(request.root, place.folder):
            prefix = "" if folder in ("", ".") else f"{os.path.normpath(folder)}/"
            for file in sorted(Listing(request.root / folder).names()):
                name = _name(file, place.suffix)
                if name is not None and prefix + file not in used and name not in others:
                    names.append(name)
    names = list(dict.fromkeys(names))
    return f"masks in '{places[0].folder}' with {strays(names, ids)}" if names else ""


def _name(file: str, suffix: str | None) -> str | None:
    """Return the id a mask file is called by, or None where it is no such file."""
    if suffix:
        return file.removesuffix(suffix) if file.endswith(suffix) and file != suffix else None
    return os.path.splitext(file)[0] if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES else None
