"""Unpack what a competition comes in: safely, whole or not at all, whatever the number of files.

An archive is first held against its own listing and the free disk, then unpacked into a folder beside the
target, and only then moved into place. The memory needed is 8 bytes a member. To support another kind of archive,
give `zips` a sibling whose listing yields `Member`s, and choose between them in `unpack`.
"""

from __future__ import annotations

import filecmp
import fnmatch
import hashlib
import os
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kbench import files
from kbench.errors import DataError, first_names
from kbench.sources import Fetched, Progress
from kbench.sources.zips import Zip, damaged, open_zip, refused

_BLOCK = 4096  # what a file costs on disk is counted in these
_REPORT = 4 << 20  # bytes, or 512 files, between two calls of `progress`
_LOCAL_HEADER = 30
_LEVELS = 3  # zips inside zips inside zips
_OTHERS = (".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")


def unpack(
    archive: Path,
    target: Path,
    *,
    progress: Progress,
    nested: bool = False,
    only: Sequence[str] = (),
    replace: bool = False,
) -> Fetched:
    """Unpack a zip into a folder; when anything is wrong, nothing of the folder changes.

    Files that are there already are kept; one of the same content is not written again. What macOS adds to its
    archives (`__MACOSX/`, `.DS_Store`) is left out.

    Args:
        archive: the zip.
        target: the folder; made when it is missing.
        progress: called with the archive's name, bytes unpacked and bytes in all.
        nested: unpack the zips inside too: `train.zip` into `train/`, whether or not its members begin with
            `train/`; a zip of that one file (`train.csv.zip`) becomes the file.
        only: patterns of the files wanted, such as `train/*`; `*` also stands for `/`. All by default.
        replace: overwrite files of the same name and other content.

    Returns:
        What was unpacked; `new` counts the files moved into the target.

    Raises:
        DataError: the archive is no zip, damaged, encrypted or unsafe, does not fit on the disk, or has a file
            that is in the target with another content.
    """
    if archive.suffix.lower() in _OTHERS:
        raise DataError(
            f"'{archive}' is no zip", "a zip, or a folder", "unpack it with its own program and give kbench the folder"
        )
    if target.is_symlink():
        raise DataError(
            f"'{target}' is a link to '{target.resolve()}'",
            "a folder of its own to unpack into",
            f"remove the link (`rm {target}`); that leaves the folder it points to as it is",
        )
    with files.staging_folder(target) as folder:
        _extract(open_zip(archive), folder, progress=progress, only=only, keep_zips=nested)
        if nested:
            _extract_nested(folder, progress=progress, levels=_LEVELS)
        return _settle(folder, target, only=only, replace=replace, origin=archive)


def copy_folder(
    source: Path, target: Path, *, progress: Progress, only: Sequence[str] = (), replace: bool = False
) -> Fetched:
    """Copy a folder's files into another with the promises of `unpack`; links are followed.

    Args:
        source: the folder.
        target: the folder copied into; made when it is missing.
        progress: called with the folder's name, bytes copied and bytes in all.
        only: patterns of the files wanted.
        replace: overwrite files of the same name and other content.

    Raises:
        DataError: they do not fit on the disk, or a file is in the target with another content.
    """
    wanted = [(name, size) for name, size in walk(source) if _matches(name, only)]
    total = _check_space(target, len(wanted), sum(size + _BLOCK for _, size in wanted), origin=source)
    with files.staging_folder(target) as folder:
        done = 0
        for name, size in wanted:
            files.make_folder((folder / name).parent)
            files.write_new(folder / name, _read(source / name))
            done += size + _BLOCK
            progress(f"copy {source.name}", done, total)
        return _settle(folder, target, only=(), replace=replace, origin=source)


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield (path relative to the folder, bytes) of every file below it; links are followed, hidden names left out."""
    seen, base = set(), len(os.path.join(folder, ""))
    for parent, names, found in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(found):
            if not name.startswith("."):
                path = os.path.join(parent, name)
                yield path[base:], os.stat(path).st_size


def _extract(archive: Zip, folder: Path, *, progress: Progress, only: Sequence[str], keep_zips: bool) -> None:
    count, total = _check_listing(archive)
    _check_space(folder, count, total + count * _BLOCK, origin=archive.path)
    what, done, written, reported = f"unpack {archive.path.name}", 0, 0, 0
    parent = folder
    with open(archive.path, "rb", buffering=1 << 17) as handle:
        for member in archive.members():
            if _is_junk(member.name) or not (
                _matches(member.name, only) or (keep_zips and member.name.lower().endswith(".zip"))
            ):
                continue
            path = folder / member.name
            if member.is_folder:
                files.make_folder(path)
                continue
            if path.parent != parent:
                parent = files.make_folder(path.parent)
            done += files.write_new(path, archive.chunks(handle, member))
            written += 1
            if done - reported > _REPORT or written % 512 == 0:
                progress(what, done, total)
                reported = done
    progress(what, done, total)


def _check_listing(archive: Zip) -> tuple[int, int]:
    """Hold every entry against the others before anything is written; return files and bytes."""
    count, size, packed = 0, 0, 0
    names, parents = array("Q"), {""}
    for member in archive.members():
        if member.is_folder:
            continue
        count, size, packed = count + 1, size + member.size, packed + member.packed + _LOCAL_HEADER
        names.append(_key(member.name))
        parents.add(member.name.rpartition("/")[0])
    if packed > archive.start:
        raise damaged(archive.path, "its members share bytes, as in a zip bomb")
    folders = {_key(above) for parent in parents for above in _and_above(parent)}
    keys = np.sort(np.frombuffer(names, dtype=np.uint64)) if count else np.empty(0, np.uint64)
    twice = {int(key) for key in keys[1:][keys[1:] == keys[:-1]]}
    twice |= {int(key) for key in np.intersect1d(keys, np.fromiter(folders, np.uint64, len(folders)))}
    if twice:
        _refuse_clash(archive, twice)
    return count, size


def _key(name: str) -> int:
    """Return 64 bits that are equal for names a file system may take for one: other case, other composition."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return int.from_bytes(hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _and_above(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _refuse_clash(archive: Zip, keys: set[int]) -> None:
    names = sorted(item.name for item in archive.members() if not item.is_folder and _key(item.name) in keys)
    shown = "' and '".join(names[:2]) if len(names) > 1 else f"{names[0]}' and the folder '{names[0]}"
    raise refused(archive.path, shown, "would be written to one place", "unpack it yourself and rename one of them")


def _check_space(folder: Path, count: int, size: int, *, origin: Path) -> int:
    """Refuse what the disk cannot hold, in bytes and in files; return the bytes."""
    free = files.free_bytes(folder)
    if size > free:
        raise DataError(
            f"'{origin}' needs {size / 1e9:,.1f} GB in {count:,} files, and {free / 1e9:,.1f} GB are free",
            "enough free disk for everything it says it holds",
            "free some space, or set KBENCH_DATA to a folder on a larger disk",
        )
    free_files = files.free_files(folder)
    if free_files is not None and count > free_files:
        raise DataError(
            f"'{origin}' has {count:,} files, and the disk can take {free_files:,} more",
            "enough free inodes",
            "remove some small files, or set KBENCH_DATA to a folder on another disk",
        )
    return size


def _extract_nested(folder: Path, *, progress: Progress, levels: int) -> None:
    for inner in _zips_below(folder):
        if not levels:
            raise DataError(
                f"'{inner.name}' is a zip more than {_LEVELS} zips deep",
                f"at most {_LEVELS} levels",
                "unpack it yourself and give kbench the folder",
            )
        place = files.make_folder(inner.with_name(f".{inner.name}.unpacked"))
        _extract(open_zip(inner), place, progress=progress, only=(), keep_zips=True)
        _extract_nested(place, progress=progress, levels=levels - 1)
        tops = {entry.name for entry in os.scandir(place)}
        home = inner.parent if tops == {inner.stem} else inner.parent / inner.stem
        files.remove(inner)  # what it holds takes its place; the outer archive still has it
        _merge(place, home, replace=False, origin=inner)
        files.remove(place)


def _zips_below(folder: Path) -> list[Path]:
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(".zip") and not name.startswith(".")
    )


def _settle(folder: Path, target: Path, *, only: Sequence[str], replace: bool, origin: Path) -> Fetched:
    """Move what is wanted from the staging folder into the target."""
    count, size = 0, 0
    for name, length in list(walk(folder)) if only else walk(folder):
        if _matches(name, only):
            count, size = count + 1, size + length
        else:
            files.remove(folder / name)
    if only and not count:
        raise DataError(
            f"no file of '{origin}' is called {first_names(list(only))}",
            "names or patterns of its files, such as `train/*`",
            "fetch without --file to get everything",
        )
    files.sync_disk()
    return Fetched(files=count, bytes=size, new=_merge(folder, target, replace=replace, origin=origin))


def merge(folder: Path, target: Path, *, replace: bool = False, origin: str = "") -> int:
    """Move a folder's files into another on the same disk; return how many were moved.

    Args:
        folder: what is moved; files that are in the target already, with the same content, stay behind.
        target: made when it is missing.
        replace: overwrite files of the same name and other content.
        origin: where they come from, for the message; the folder's name by default.

    Raises:
        DataError: a file is in the target with another content; nothing was moved.
    """
    return _merge(folder, target, replace=replace, origin=Path(origin) if origin else folder)


def _merge(new: Path, target: Path, *, replace: bool, origin: Path) -> int:
    """Move a folder's files into another; when one must not be overwritten, move nothing."""
    clashes = [str(path.relative_to(target)) for path in _clashes(new, target, replace=replace)]
    if clashes:
        raise DataError(
            f"{first_names(clashes)} in '{target}' differ from those of '{origin.name}' ({len(clashes):,} in all)",
            "files that are missing there, or the same; nothing was changed",
            "move your own files away, or fetch with --force to overwrite them",
        )
    return _move_into(new, target, replace=replace)


def _clashes(new: Path, target: Path, *, replace: bool) -> Iterator[Path]:
    for entry in os.scandir(new):
        there = target / entry.name
        if not os.path.lexists(there):
            continue
        if entry.is_dir() and there.is_dir() and not there.is_symlink():
            yield from _clashes(Path(entry.path), there, replace=replace)
        elif entry.is_dir() or there.is_symlink() or not there.is_file() or (not replace and not _same(entry, there)):
            yield there


def _same(entry: os.DirEntry[str], there: Path) -> bool:
    return entry.stat().st_size == there.stat().st_size and filecmp.cmp(entry.path, there, shallow=False)


def _move_into(new: Path, target: Path, *, replace: bool) -> int:
    if not os.path.lexists(target):
        count = sum(len(names) for _, _, names in os.walk(new))
        files.move(new, target)
        return count
    moved = 0
    for entry in os.scandir(new):
        there = target / entry.name
        if entry.is_dir():
            moved += _move_into(Path(entry.path), there, replace=replace)
        elif not there.exists() or (replace and not _same(entry, there)):
            files.move(Path(entry.path), there)
            moved += 1
    return moved


def _matches(name: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)


def _is_junk(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rpartition("/")[2] == ".DS_Store"


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            yield chunk
