"""What files say of themselves: records and logs as kbench wrote them, and the seal of an artifact of several files.

An artifact exists when its JSON does, says what it said when it was written, and names every file beside it with size
and checksum; whatever is missing, half-written or changed does not exist, so that a killed command leaves nothing that
counts.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from kbench import files
from kbench.errors import DataError

_OWN = "of_itself"  # of the description itself; those of earlier versions have none


def read_record(path: Path, *, keys: Mapping[str, type | tuple[type, ...]], todo: str) -> dict[str, Any]:
    """Read a JSON object that kbench wrote.

    Args:
        path: the file.
        keys: what it must hold -> its type.
        todo: what to do where it is damaged.

    Raises:
        DataError: the file is missing, not JSON, no object, or something it must hold is missing or of another type.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        wrong = _wrong(content, keys)
    except (OSError, ValueError, RecursionError) as error:
        wrong = str(error)
    if wrong:
        raise DataError(f"'{path}' is damaged: {wrong}", "a JSON file as kbench wrote it", todo)
    return dict(content)


def read_records(path: Path, *, keys: Mapping[str, type | tuple[type, ...]], only: Mapping[str, str]) -> list[Any]:
    """Return the records of a log, one JSON object per line; none when it is missing, a half-written last line is not.

    Args:
        path: the log.
        keys: what each record must hold -> its type.
        only: records that have these values; all others are left out, whatever they hold.

    Raises:
        DataError: a line is no JSON object, or a record lacks something.
    """
    records = []
    for number, line in enumerate(files.read_lines(path), 1):
        try:
            record = json.loads(line)
            wrong = _wrong(record, {})
            if not wrong and any(record.get(key) != value for key, value in only.items()):
                continue
            wrong = wrong or _wrong(record, keys)
        except (ValueError, RecursionError) as error:
            wrong = str(error)
        if wrong:
            raise DataError(
                f"line {number} of '{path}' is damaged: {wrong}", "one JSON object per line, as kbench wrote it",
                f"remove the line (`sed -i {number}d '{path}'`) and type the same again; nothing else depends on it",
            )  # fmt: skip
        records.append(record)
    return records


def _wrong(content: Any, keys: Mapping[str, type | tuple[type, ...]]) -> str:
    """Return what is wrong with an object; empty if nothing is."""
    if not isinstance(content, dict):
        return f"it holds {json.dumps(content)[:40]} in place of an object"
    missing = [key for key in keys if key not in content]
    if missing:
        return f"it lacks '{missing[0]}'"
    strange = [key for key, kind in keys.items() if not isinstance(content[key], kind)]
    return f"'{strange[0]}' is {json.dumps(content[strange[0]])[:40]}" if strange else ""


def write_chunks(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Write a whole file atomically from chunks, hashing on the way; return its entry for `seal`."""
    state = hashlib.sha256()
    with files.replacing(path) as temporary, open(temporary, "wb") as handle:
        for chunk in chunks:
            handle.write(chunk)
            state.update(chunk)
    return {"file": path.name, **_size_and_time(path), "sha256": state.hexdigest()}


def seal(
    path: Path,
    description: dict[str, Any],
    *,
    parts: dict[str, Path],
    sealed: dict[str, dict[str, Any]] | None = None,
    timed: bool = True,
) -> Path:
    """Write the JSON that makes an artifact of several files exist.

    Args:
        path: the JSON file.
        description: what it says besides the checksums.
        parts: name -> file beside `path`; size, time of the last change and SHA-256 of each are recorded.
        sealed: name -> entry of files hashed while they were written (`write_chunks`).
        timed: record times too; without them the same content gives the same JSON, and is read to be verified.
    """
    entries = dict(sealed or {})
    for name, file in parts.items():
        entries[name] = {"file": file.name, **_size_and_time(file), "sha256": files.sha256(file)}
    if not timed:
        entries = {name: {key: entry[key] for key in ("file", "bytes", "sha256")} for name, entry in entries.items()}
    content = {**description, "files": entries}
    return files.write_json(path, {**content, _OWN: _own(content)})


def _own(content: Mapping[str, Any]) -> str:
    """Return a checksum of what a description says, as JSON gives it back."""
    return files.digest(json.loads(files.compact_json({key: content[key] for key in content if key != _OWN})))


@functools.cache
def _sha256(file: Path, changed_ns: int) -> str:
    """Return the checksum of a file as it was changed last; one that was carried without its time is read once."""
    return files.sha256(file)


def _size_and_time(file: Path) -> dict[str, int]:
    status = file.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def read_seal(path: Path, *, verify: Literal["size", "time", "content"] = "content") -> dict[str, Any] | None:
    """Return a sealed description, or None when the artifact does not exist.

    Args:
        path: the JSON file.
        verify: what is compared: sizes alone; the checksum of files that were changed or copied since they were sealed
            (`time`), so that gigabytes are not read to be opened; or that of all.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        entries = description["files"]
        if description.get(_OWN) not in (None, _own(description)):
            return None  # edited by hand
        for entry in entries.values():
            file = path.with_name(entry["file"])
            now = _size_and_time(file)
            if now["bytes"] != entry["bytes"]:
                return None
            same = verify == "time" and now["changed_ns"] == entry.get("changed_ns")
            if verify != "size" and not same:
                known = _sha256(file, now["changed_ns"]) if verify == "time" else files.sha256(file)
                if known != entry["sha256"]:
                    return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # missing, half-written or foreign: by definition it does not exist
    return dict(description)
