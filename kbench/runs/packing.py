"""A run as one file: to a data set of a service, a bucket or a stick, and back, on this machine or another one.

A pack is a ZIP file without compression (weights do not get smaller). Its first entry, `PACK`, names every other one
with size and SHA-256, and the machine it was made on. What is unpacked is written beside its place and moved there once
every byte is right; nothing is ever written outside of it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kbench import files, machine
from kbench.errors import DataError
from kbench.runs import leases
from kbench.runs.opening import environment, read_manifest
from kbench.workspace import FoldPaths, RunPaths, Workspace, check_name

PACK = "pack"
_FORMAT = 1
_CHUNK = 1 << 20
_LONGEST = 64 << 20  # bytes of `PACK`
_EXACT = {  # what a fold must find as it was to go on bit for bit -> how a message names it
    "python": "Python", "torch": "PyTorch", "cuda": "CUDA", "machine": "the architecture", "processor": "the processor",
    "system": "the system",
}  # fmt: skip


def pack(paths: RunPaths, target: Path, *, competition: str) -> dict[str, Any]:
    """Write a run into one file, while no worker trains it.

    Args:
        paths: the run.
        target: the file.
        competition: whose run it is.

    Returns:
        What `PACK` says: `competition`, `run`, `training`, `here`, and `files` with size and checksum.

    Raises:
        FoldBusy: a fold of it is being trained.
        DataError: it cannot be read or written.
    """
    manifest = read_manifest(paths)
    with ExitStack() as held:
        for lock in paths.fold_locks():
            held.enter_context(leases.holding(FoldPaths(lock.parent), todo="wait until it is trained, or stop it"))
        members = {path.relative_to(paths.root).as_posix(): path for path in paths.portable()}
        said = {
            "format": _FORMAT, "competition": competition, "run": paths.name, "training": manifest["training"],
            "folds": manifest["folds"], "here": here(),
            "files": {name: {"size": path.stat().st_size, "sha256": files.sha256(path)}
                      for name, path in members.items()},
        }  # fmt: skip
        with files.replacing(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(PACK, json.dumps(said, indent=2))
            for name, path in members.items():
                archive.write(path, name)
    return said


def here() -> dict[str, Any]:
    """Return what of this machine a training depends on."""
    return {**environment(), "processor": machine.processor()}


def unpack(file: Path, workspace: Workspace, *, name: str | None = None) -> tuple[RunPaths, dict[str, Any]]:
    """Write the run of a pack into a workspace.

    Args:
        file: the pack.
        workspace: where to.
        name: of the run; its own by default.

    Returns:
        Its files, and what `PACK` says.

    Raises:
        DataError: the file is no pack, is damaged or cut off, names a place outside of the run, or the run is there.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            said = _said(archive, file)
            paths = workspace.run(check_name(str(said["competition"]), of="a competition"), name or str(said["run"]))
            if paths.root.exists():
                raise DataError(
                    f"'{paths.root}' is there already", "a run that is not here yet",
                    f"`kbench unpack {file} --run NAME` gives it another name",
                )  # fmt: skip
            with files.replacing_folder(paths.root) as folder:
                _write(archive, said["files"], RunPaths(folder), file)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise _damaged(file, str(error)) from error
    return paths, said


def _write(archive: zipfile.ZipFile, members: Mapping[str, Any], paths: RunPaths, file: Path) -> None:
    for name, known in members.items():
        path, summed = paths.inside(name), hashlib.sha256()
        files.make_folder(path.parent)
        with archive.open(name) as handle:
            size = files.write_new(path, _chunks(handle, summed, known["size"]))
        if size != known["size"] or summed.hexdigest() != known["sha256"]:
            raise _damaged(file, f"'{name}' is not what was packed")
    files.sync_disk()


def _chunks(handle: IO[bytes], summed: Any, size: int) -> Iterator[bytes]:
    """Yield an entry's content, up to one byte more than it should have."""
    left = size + 1
    while left and (chunk := handle.read(min(_CHUNK, left))):
        summed.update(chunk)
        left -= len(chunk)
        yield chunk


def _said(archive: zipfile.ZipFile, file: Path) -> dict[str, Any]:
    """Return what a pack says of itself, held against its entries."""
    names = archive.namelist()
    if PACK not in names or archive.getinfo(PACK).file_size > _LONGEST:
        raise _damaged(file, f"it has no entry '{PACK}'")
    try:
        said = json.loads(archive.read(PACK))
        members = {str(name): (int(known["size"]), str(known["sha256"])) for name, known in said["files"].items()}
        kind, _, _, _ = int(said["format"]), said["run"], said["competition"], dict(said["here"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, f"'{PACK}' cannot be read: {error}") from error
    if kind != _FORMAT:
        raise _damaged(file, f"it is of format {kind}, and this version of kbench reads {_FORMAT}")
    outside = [name for name in members if not _is_inside(name)]
    if outside:
        raise _damaged(file, f"'{outside[0]}' is a place outside of the run")
    if sorted(names) != sorted([PACK, *members]):
        raise _damaged(file, "its entries are not those it names")
    return dict(said)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = path.as_posix() == name and not path.is_absolute() and "\\" not in name and ":" not in name
    return plain and bool(path.parts) and not any(part.startswith(".") for part in path.parts)


def _damaged(file: Path, why: str) -> DataError:
    return DataError(f"'{file}' cannot be unpacked: {why}", "a file that `kbench pack` wrote", "pack the run again")


def differences(there: Mapping[str, Any]) -> list[str]:
    """Return what of this machine is not as where a run was packed: its open folds do not go on bit for bit."""
    now = here()
    return [
        f"{word} was {there.get(key) or 'not known'}, and is {now.get(key) or 'not known'}"
        for key, word in _EXACT.items() if there.get(key) != now.get(key)
    ]  # fmt: skip
