"""Unpack what a competition comes in: safely, whole or not at all, whatever the number of files.

An archive is first held against its own listing and the free disk, then unpacked into a folder beside the target, and
only then moved into place. `zipfile` reads it; here is what `zipfile` does not refuse and a data archive never has:
an end that is not the file's, names that leave the folder or meet in one place, links, encryption, entries that share
bytes or are shorter than they say (APPNOTE 6.3.10, sections 4.3 to 4.5). To support another kind of archive, give
`open_zip`, `members` and `content` siblings, and choose between them in `unpack`.
"""

from __future__ import annotations

import bz2
import copy
import filecmp
import fnmatch
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kbench import files
from kbench.errors import DataError, first_names
from kbench.sources import Fetched, Progress
from kbench.sources.names import one_place, tells_case

_CHUNK = 1 << 20
_BLOCK = 4096  # what a file costs on disk is counted in these
_REPORT = 4 << 20  # bytes, or 512 files, between two calls of `progress`
_LEVELS = 3  # zips inside zips inside zips
_OTHERS = (".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")

_END = struct.Struct("<4s4H2LH")  # the last record of a zip
_LOCAL_HEADER = 30  # bytes in front of a member's name
_ELSEWHERE = 0xFFFF  # what a field says whose value stands in the zip64 record
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_UTF8 = 0x0800
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FAULTS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError)


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
        with open_zip(archive) as opened:
            _extract(opened, folder, progress=progress, only=only, keep_zips=nested)
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
    for parent, names, leaves in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(leaves):
            if not name.startswith("."):
                path = os.path.join(parent, name)
                yield path[base:], os.stat(path).st_size


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


# -- reading a zip without trusting it -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a listing; its name is safe to join to a folder.

    Attributes:
        name: path with `/` between its parts; never absolute, never with `..`.
        is_folder: whether the entry is a folder.
        info: the entry as `zipfile` has it.
    """

    name: str
    is_folder: bool
    info: zipfile.ZipInfo


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip that is whole as far as its listing goes; it takes 0.7 KB of memory a member.

    Raises:
        DataError: the file is missing, no zip, cut off, one part of a split zip, or has another number of entries
            than it says.
    """
    entries = _declared(path)
    try:
        opened = zipfile.ZipFile(path)
    except _FAULTS as error:
        raise damaged(path, f"its listing cannot be read ({error})") from error
    with opened:
        if entries not in (_ELSEWHERE, len(opened.infolist())):
            raise damaged(path, f"its listing has {len(opened.infolist()):,} entries, its end says {entries:,}")
        yield opened


def _declared(path: Path) -> int:
    """Return how many entries the end record declares; `zipfile` takes any record, this one must end the file."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - _END.size - 0xFFFF))
            tail = handle.read()
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}", "a readable zip", "check the path") from error
    at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size + 4))
    if at < 0 or at + _END.size + _END.unpack_from(tail, at)[7] != len(tail):
        raise damaged(path, "it is no zip, or its end is missing")
    _, disk, first_disk, _, entries, *_ = _END.unpack_from(tail, at)
    if disk not in (0, _ELSEWHERE) or first_disk not in (0, _ELSEWHERE):
        raise refused(path, path.name, "is one part of a split zip", "join the parts into one zip first")
    return int(entries)


def members(opened: zipfile.ZipFile) -> Iterator[Member]:
    """Yield every entry of a listing, in its order.

    Raises:
        DataError: an entry is damaged, encrypted, no regular file or folder, or has an unsafe path.
    """
    path = _path(opened)
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.flag_bits & _ENCRYPTED:
            todo = "unpack it with its password and give kbench the folder"
            raise refused(path, info.filename, "is encrypted", todo)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refused(path, info.filename, "is a link or a special file")
        if info.compress_type not in _METHODS:
            todo = "unpack it with 7-Zip and give kbench the folder"
            raise refused(path, info.filename, f"uses compression method {info.compress_type}", todo)
        name, is_folder = _name(info, path)
        room = opened.start_dir - info.header_offset - _LOCAL_HEADER
        if not is_folder and (info.header_offset < 0 or info.compress_size > room):
            raise damaged(path, f"'{name}' reaches past its end")
        yield Member(name, is_folder or kind == stat.S_IFDIR, info)


def _name(info: zipfile.ZipInfo, path: Path) -> tuple[str, bool]:
    """Return a safe name, and whether it is a folder's."""
    text = info.orig_filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):  # many programs write UTF-8 without saying so
            text = text.encode("cp437").decode("utf-8")
    name = text.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or not parts:
        raise refused(path, text, "would be written outside the target")
    if _CONTROL.search(name):
        raise refused(path, repr(text), "has control characters in its name")
    return "/".join(parts), name.endswith("/")


def content(opened: zipfile.ZipFile, member: Member) -> Iterator[bytes]:
    """Yield a member's content, no more than the listing says, and check it while doing so.

    Raises:
        DataError: it is longer or shorter than the listing says, damaged, or its CRC-32 differs.
    """
    path, size, total, crc = _path(opened), member.info.file_size, 0, 0
    try:
        with _stream(opened, member.info) as stream:
            while chunk := stream.read(_CHUNK):
                total, crc = total + len(chunk), zlib.crc32(chunk, crc)
                if total > size:
                    break
                yield chunk
    except _FAULTS as error:
        raise damaged(path, f"'{member.name}' cannot be unpacked ({error})") from error
    if total != size:
        word = "longer" if total > size else "shorter"
        raise damaged(path, f"'{member.name}' is {word} than the {size:,} bytes the listing says")
    if crc != member.info.CRC:
        raise damaged(path, f"'{member.name}' has a wrong checksum")


def _stream(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member for `content`, which checks it; there is a byte too many to be seen where it is longer."""
    read = copy.copy(info)
    del read.CRC
    if info.compress_type != zipfile.ZIP_BZIP2:
        read.file_size += 1
        return opened.open(read)
    # `zipfile` inflates 4 KB of bzip2 at once, which can be gigabytes; `bz2` what is asked for
    read.compress_type, read.file_size = zipfile.ZIP_STORED, info.compress_size
    return bz2.BZ2File(opened.open(read))


def _path(opened: zipfile.ZipFile) -> Path:
    return Path(str(opened.filename))


def damaged(path: Path, reason: str) -> DataError:
    """Return the error for an archive that is not whole."""
    return DataError(
        f"the archive '{path}' is damaged: {reason}",
        "a whole zip; nothing was changed",
        "download or copy it again, or unpack it with another program and give kbench the folder",
    )


def refused(path: Path, name: str, reason: str, todo: str = "unpack it yourself if you trust it") -> DataError:
    """Return the error for an archive with something in it that kbench does not unpack."""
    return DataError(
        f"'{name}' in the archive '{path}' {reason}",
        "regular files and folders, each inside the archive's own folder; nothing was changed",
        todo,
    )


# -- from the archive to a staging folder ---------------------------------------------------------------------------


def _extract(
    opened: zipfile.ZipFile, folder: Path, *, progress: Progress, only: Sequence[str], keep_zips: bool
) -> None:
    count, total = _check_listing(opened, one_case=not tells_case(folder))
    _check_space(folder, count, total + count * _BLOCK, origin=_path(opened))
    what, done, written, reported = f"unpack {_path(opened).name}", 0, 0, 0
    parent = folder
    for member in members(opened):
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
        done += files.write_new(path, content(opened, member))
        written += 1
        if done - reported > _REPORT or written % 512 == 0:
            progress(what, done, total)
            reported = done
    progress(what, done, total)


def _check_listing(opened: zipfile.ZipFile, *, one_case: bool) -> tuple[int, int]:
    """Hold every entry against the others before anything is written; return files and bytes."""
    size, packed, path = 0, 0, _path(opened)
    places: dict[str, str] = {}
    folders: set[str] = set()
    for member in members(opened):
        if member.is_folder:
            continue
        size, packed = size + member.info.file_size, packed + member.info.compress_size + _LOCAL_HEADER
        place = one_place(member.name, one_case=one_case)
        if place in places:
            raise _meeting(path, f"{places[place]}' and '{member.name}")
        places[place] = member.name
        while (place := place.rpartition("/")[0]) and place not in folders:
            folders.add(place)
    if packed > opened.start_dir:
        raise damaged(path, "its members share bytes, as in a zip bomb")
    for place in sorted(folders & places.keys())[:1]:
        raise _meeting(path, f"{places[place]}' and the folder '{places[place]}")
    return len(places), size


def _meeting(path: Path, names: str) -> DataError:
    return refused(path, names, "would be written to one place", "unpack it yourself and rename one of them")


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
        with open_zip(inner) as opened:
            _extract(opened, place, progress=progress, only=(), keep_zips=True)
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


# -- from the staging folder to the target --------------------------------------------------------------------------


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
        while chunk := handle.read(_CHUNK):
            yield chunk
