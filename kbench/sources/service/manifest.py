"""What was fetched into a data folder: one line per file with its SHA-256, and a JSON that makes the list count.

Everything lies in `.download/` inside the data folder. What arrives is staged there, hashed and listed
(`pending.json`), then moved into place, and only then written down as fetched (`manifest.json`): a process killed
anywhere leaves something the next one finishes without fetching again. Lists are read one line at a time, since
competitions have more than a million files. To record one more fact of a fetch, add it to `Manifest.stage`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kbench import files, records
from kbench.errors import DataError, first_names
from kbench.sources import Fetched, Progress, archive


class Row(NamedTuple):
    """A fetched file: its SHA-256, bytes, time of last change in nanoseconds, and path in the data folder."""

    sha256: str
    size: int
    mtime: int
    name: str

    def line(self) -> bytes:
        """Return the line of a list that says this."""
        return f"{self.sha256} {self.size} {self.mtime} {self.name}\n".encode()


@dataclass(frozen=True)
class Manifest:
    """The record of what was fetched into a data folder, and the place where things are staged.

    Attributes:
        folder: the data folder.
    """

    folder: Path

    @property
    def store(self) -> Path:
        """What kbench keeps for itself, hidden in the data folder."""
        return self.folder / ".download"

    @property
    def got(self) -> Path:
        """What has been downloaded and is not yet in place, as it came."""
        return self.store / "got"

    @property
    def new(self) -> Path:
        """What goes into the data folder next, unpacked."""
        return self.store / "new"

    @property
    def one(self) -> Path:
        """Where a single zip of the listing is unpacked before its files join `new`."""
        return self.store / "one"

    def _seal(self, kind: str) -> Path:
        return self.store / f"{kind}.json"

    def _list(self, kind: str) -> Path:
        return self.store / f"{kind}.txt"

    def read(self, kind: str = "manifest") -> dict[str, Any] | None:
        """Return the description of what was fetched (`manifest`) or staged (`pending`), None when there is none."""
        return records.read_seal(self._seal(kind))

    def rows(self, kind: str = "manifest") -> Iterator[Row]:
        """Yield the files of a list that counts."""
        if self.read(kind) is None:
            return
        with open(self._list(kind), encoding="utf-8", newline="\n") as handle:
            for line in handle:
                sha256, size, mtime, name = line.rstrip("\n").split(" ", 3)
                yield Row(sha256, int(size), int(mtime), name)

    def holds(self, asked: Collection[str]) -> Fetched | None:
        """Return what is there when everything asked for was fetched and is unchanged, else None.

        Args:
            asked: patterns of the files wanted; none for all.

        Raises:
            DataError: a file was changed since it was fetched.
        """
        if not _covers(self.read(), asked):
            return None
        count, size, missing, changed = 0, 0, False, []
        for row in self.rows():
            state = _state(self.folder / row.name, row)
            count, size, missing = count + 1, size + row.size, missing or state == "missing"
            if state == "changed":
                changed.append(row.name)
        if changed:
            raise DataError(
                f"{len(changed):,} files in '{self.folder}' are not as they were fetched: {first_names(changed)}",
                "data files as they came",
                "`kbench download --force` fetches and overwrites them; first move away what you want to keep",
            )
        return None if missing else Fetched(files=count, bytes=size, new=0)

    def count(self) -> Fetched:
        """Return how much was fetched, as recorded."""
        sizes = [row.size for row in self.rows()]
        return Fetched(files=len(sizes), bytes=sum(sizes), new=0)

    def stage(self, *, asked: Collection[str], checked: str, source: str, progress: Progress) -> None:
        """Hash and list everything in `new`; from here on it is finished by `adopt`, whatever happens.

        Args:
            asked: the patterns it answers; none for all.
            checked: the weakest thing that vouches for it (`transfer.Arrived.checked`).
            source: where it comes from.
            progress: told the bytes hashed.
        """
        seal = records.write_chunks(self._list("pending"), self._hashed(progress))
        description = {"source": source, "checked": checked, "whole": not asked, "asked": sorted(asked)}
        records.seal(self._seal("pending"), description, parts={}, sealed={"list": seal})

    def _hashed(self, progress: Progress) -> Iterator[bytes]:
        total, done = sum(size for _, size in archive.walk(self.new)), 0
        for name, size in archive.walk(self.new):
            path = self.new / name
            yield Row(files.sha256(path), size, path.stat().st_mtime_ns, name).line()
            done += size
            progress("checksums", done, total)

    def adopt(self, *, replace: bool) -> int:
        """Move what is staged into the data folder and write it down as fetched; return how many files are new.

        Raises:
            DataError: a file of the user's own is in the way, and `replace` is not set.
        """
        pending, before = self.read("pending"), self.read()
        if pending is None:
            return 0
        new = 0
        if self.new.exists():
            new = archive.merge(self.new, self.folder, replace=replace, origin=pending["source"])
        adds = before is not None and not pending["whole"]  # else the list replaces the old one
        seal = records.write_chunks(self._list("manifest"), list(self._kept()) if adds else self._adopted())
        if adds and before is not None:
            pending["whole"] = before["whole"]
            pending["asked"] = sorted({*pending["asked"], *before["asked"]})
        del pending["files"]
        records.seal(self._seal("manifest"), pending, parts={}, sealed={"list": seal})
        self.clear()
        return new

    def _kept(self) -> Iterator[bytes]:
        fresh = {row.name for row in self.rows("pending")}
        yield from (row.line() for row in self.rows() if row.name not in fresh)
        yield from self._adopted()

    def _adopted(self) -> Iterator[bytes]:
        for row in self.rows("pending"):  # a file that was there already keeps its own time
            yield row._replace(mtime=os.stat(self.folder / row.name).st_mtime_ns).line()

    def clear(self) -> None:
        """Remove everything downloaded or staged; what is in the data folder stays."""
        for path in (self._seal("pending"), self._list("pending"), self.new, self.one, self.got):
            files.remove(path)


def _covers(description: Mapping[str, Any] | None, asked: Collection[str]) -> bool:
    if description is None:
        return False
    return bool(description["whole"] or (asked and set(asked) <= set(description["asked"])))


def _state(path: Path, row: Row) -> str:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    changed = status.st_size != row.size or (status.st_mtime_ns != row.mtime and files.sha256(path) != row.sha256)
    return "changed" if changed else "same"
