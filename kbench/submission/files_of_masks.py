"""Files of many masks that are no CSV: a JSON object by image, a zip of images; read one image at a time.

To read another kind of file, add a function here; `check.read_sample` says which endings it knows.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kbench.errors import SubmissionError, first_names


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of a JSON object in a file; only one value is in memory at a time.

    Raises:
        SubmissionError: the file is missing, is no JSON object, or has a key twice.
    """
    try:
        yield from _members(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error), "a JSON object with one key per image") from error


def _members(text: str) -> Iterator[tuple[str, Any]]:
    decoder, seen = json.JSONDecoder(object_pairs_hook=_no_key_twice), set()
    place = _after(text, 0, "{")
    if text[place : place + 1] == "}":
        return _end(text, place + 1)
    while True:
        key, place = decoder.raw_decode(text, place)
        if not isinstance(key, str) or key in seen:
            raise ValueError(f"the key {key!r} stands twice" if isinstance(key, str) else f"{key!r} is no key")
        seen.add(key)
        value, place = decoder.raw_decode(text, _after(text, _skip(text, place), ":"))
        yield key, value
        place = _skip(text, place)
        if text[place : place + 1] == "}":
            return _end(text, place + 1)
        place = _after(text, place, ",")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"a key stands twice among {first_names([key for key, _ in pairs])}")
    return content


def _skip(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


def _after(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place : place + 1] != sign:
        raise ValueError(f"'{sign}' expected at character {place:,}")
    return _skip(text, place + 1)


def _end(text: str, place: int) -> None:
    if _skip(text, place) < len(text):
        raise ValueError(f"text after the object, at character {place:,}")


def keys_of(path: Path) -> list[str]:
    """Return the keys of a JSON object in a file."""
    return [key for key, _ in members(path)]


def files_in(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of a zip's files.

    Raises:
        SubmissionError: it is missing, damaged, or has a name twice.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = _names(archive)
            for name in names:
                yield name, archive.read(name)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, str(error), "a zip with one file per mask") from error


def names_in(path: Path) -> list[str]:
    """Return the names of a zip's files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _names(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, str(error), "a zip with one file per mask") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"names stand twice: {first_names(twice)}")
    return names


def _unreadable(path: Path, what: str, expected: str) -> SubmissionError:
    return SubmissionError(f"cannot read '{path}': {what}", expected, "write it again, or name the right file")
