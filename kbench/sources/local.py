"""A competition the user already has on this machine: a folder, or a zip.

A folder is used where it is, through a link, so that 100 GB are not copied; a zip is unpacked. There is no
service behind it: with a solution file `kbench submit` grades here, without one it cannot grade.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbench import files
from kbench.errors import SourceError
from kbench.registry import register
from kbench.sources import Fetched, Progress, Source, Unserved
from kbench.sources.archive import copy_folder, unpack, walk

_RECORD = ".kbench-source.json"


@register("source")
def local(*, path: str, solution: str | None = None, copy: bool = False, _root: Path = Path()) -> Source:
    """Use a folder or a zip of the user's own.

    Args:
        path: the folder or zip, relative to the workspace; `~` is the home folder.
        solution: a CSV with the true targets of the test rows, or maps in the submission's own format, relative to the
            workspace; with it submissions are graded on this machine, those of a CSV by a `Usage` column in two parts.
        copy: copy a folder instead of linking to it.
        _root: the workspace's folder.
    """
    own = _Own(path=_place(path, _root), solution_file=_place(solution, _root) if solution else None, copy=copy)
    return Unserved(own.fetch, own.solution, own.refusal)


def _place(path: str, root: Path) -> Path:
    return Path(os.path.normpath(root.absolute() / Path(path).expanduser()))


@dataclass(frozen=True)
class _Own:
    """A folder or a zip, and perhaps its solution.

    Attributes:
        path: where it is.
        solution_file: the true targets of the test rows, or None.
        copy: whether a folder is copied rather than linked to.
    """

    path: Path
    solution_file: Path | None
    copy: bool

    def fetch(self, target: Path, *, files: Sequence[str], force: bool, progress: Progress) -> Fetched:
        """Link to the folder, copy it, or unpack the zip; what is there and whole is left as it is.

        Raises:
            SourceError: the path does not exist, or something else is in the target's place.
            DataError: the archive is damaged or unsafe, or a file would have to be overwritten.
        """
        if not self.path.exists():
            raise SourceError(
                f"'{self.path}' does not exist",
                "a folder or a zip with the competition's files",
                "correct `source: {name: local, path: ...}` in the YAML",
            )
        in_place = target.resolve() == self.path.resolve()
        if self.path.is_dir() and not in_place:
            self._refuse_inside(target)
        if self.path.is_dir() and (in_place or not self.copy):
            return self._link(target, files, in_place=in_place)
        return self._bring(target, files, force=force, progress=progress)

    def _link(self, target: Path, only: Sequence[str], *, in_place: bool) -> Fetched:
        if only:
            raise SourceError(
                f"--file {' '.join(only)}: the folder '{self.path}' is used where it is, whole",
                "no --file",
                "leave --file out, or set `copy: true` under `source:` to copy only some files",
            )
        if not in_place:
            _refuse_replacing(target, self.path)
            files.link_folder(target, self.path)
        sizes = [size for _, size in walk(self.path)]
        return Fetched(files=len(sizes), bytes=sum(sizes), new=0)

    def _refuse_inside(self, target: Path) -> None:
        """Refuse a folder that has the data folder in it: it would hold itself."""
        if self.path.resolve() in target.parent.resolve().parents or self.path.resolve() == target.parent.resolve():
            raise SourceError(
                f"'{self.path}' has the data folder '{target}' in it",
                "a folder beside it or below it",
                "name the folder of this competition alone, or set KBENCH_DATA to another place",
            )

    def _bring(self, target: Path, only: Sequence[str], *, force: bool, progress: Progress) -> Fetched:
        """Copy or unpack into the target, and record it once that is done."""
        if target.is_symlink():
            files.remove(target)  # a link made for another source; what it points to stays as it is
        origin = _origin(self.path)
        record = _read_record(target / _RECORD)
        if not force and not only and record.get("origin") == origin and _is_whole(target, record):
            return Fetched(files=record["files"], bytes=record["bytes"], new=0)
        if self.path.is_dir():
            fetched = copy_folder(self.path, target, progress=progress, only=only, replace=force)
        else:
            fetched = unpack(self.path, target, progress=progress, nested=True, only=only, replace=force)
        if not only:
            files.write_json(
                target / _RECORD,
                {
                    "origin": origin,
                    "files": fetched.files,
                    "bytes": fetched.bytes,
                    "folders": dict(_folders(target)),
                },
            )
        return fetched

    def solution(self, data: Path) -> Path | None:
        """Return the solution file, or None when there is none.

        Raises:
            SourceError: the YAML names one that does not exist.
        """
        if self.solution_file is not None and not self.solution_file.exists():
            raise SourceError(
                f"the solution file '{self.solution_file}' does not exist",
                "a CSV with the true targets of the test rows",
                "correct `solution:` under `source:` in the YAML, or remove it",
            )
        return self.solution_file

    def refusal(self, what: str) -> SourceError:
        """Return the error for what only a service does."""
        return SourceError(
            f"{what}: the competition comes from '{self.path}', no service takes submissions",
            "a solution file to grade with on this machine, or a source with a service",
            "add `solution: FILE.csv` under `source:` in the YAML, or upload the file yourself",
        )


def _refuse_replacing(target: Path, path: Path) -> None:
    """Refuse to put a link where files are."""
    if not target.is_symlink() and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise SourceError(
            f"'{target}' is there already and is no link",
            f"nothing there, or a link to '{path}'",
            f"move '{target}' away, or set `copy: true` under `source:` to add the folder's files to it",
        )


def _origin(path: Path) -> dict[str, Any]:
    """Return what tells one state of a source from another."""
    if path.is_dir():
        return {"folder": str(path)}
    status = path.stat()
    return {"zip": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_record(path: Path) -> dict[str, Any]:
    return dict(files.read_json(path)) if path.is_file() else {}


def _folders(target: Path) -> Counter[str]:
    """Return how many files each folder holds."""
    return Counter(os.path.dirname(name) for name, _ in walk(target))


def _is_whole(target: Path, record: dict[str, Any]) -> bool:
    there = _folders(target)
    return all(there[folder] >= count for folder, count in record["folders"].items())
