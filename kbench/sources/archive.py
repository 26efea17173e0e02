"""Unpack what a competition comes in: safely, whole or not at all, whatever the number of files.

An archive is first held against its own listing and the free disk, then unpacked into a folder beside the
target, and only then moved into place. The memory needed is 8 bytes a member. To support another kind of archive,
give `zips` a sibling whose listing yields `Member`s, and choose between them in `unpack`.

Read a zip without trusting it: its listing one entry at a time, its members as checked chunks.

Python's `zipfile` keeps about a kilobyte for every member; competitions have 1.5 million of them. This reader
keeps none, and refuses what a data archive never has: paths that leave it, links, encryption, entries that
share bytes or are longer than they say (APPNOTE 6.3.10, sections 4.3 to 4.5). To support one more compression
method, add a row to `_DECOMPRESSORS`.
"""

from __future__ import annotations

import bz2
import filecmp
import fnmatch
import hashlib
import os
import re
import stat
import struct
import unicodedata
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from kbench import files
from kbench.errors import DataError, first_names
from kbench.sources import Fetched, Progress

_CHUNK = 1 << 20
_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED = 0
_DECOMPRESSORS: dict[int, Callable[[], Any]] = {8: lambda: zlib.decompressobj(-15), 12: bz2.BZ2Decompressor}
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_UTF8 = 0x0800
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a listing; its name is safe to join to a folder.

    Attributes:
        name: path with `/` between its parts; never absolute, never with `..`.
        is_folder: whether the entry is a folder.
        offset: where its local header begins in the file.
        packed: bytes in the archive.
        size: bytes it says it has when unpacked.
        crc: CRC-32 it says it has.
        method: compression method.
    """

    name: str
    is_folder: bool
    offset: int
    packed: int
    size: int
    crc: int
    method: int


@dataclass(frozen=True)
class Zip:
    """A zip file whose end record has been found.

    Attributes:
        path: the file.
        entries: how many entries its end record declares.
        start: where the listing begins in the file.
        length: bytes of the listing.
        shift: bytes in front of the first member that offsets do not count.
    """

    path: Path
    entries: int
    start: int
    length: int
    shift: int

    def members(self) -> Iterator[Member]:
        """Yield every entry of the listing, in its order.

        Raises:
            DataError: an entry is damaged, encrypted, no regular file or folder, or has an unsafe path.
        """
        with open(self.path, "rb") as handle:
            handle.seek(self.start)
            left = self.length
            for _ in range(self.entries):
                fixed = handle.read(_ENTRY.size)
                if len(fixed) < _ENTRY.size or not fixed.startswith(b"PK\x01\x02"):
                    raise damaged(self.path, "its listing ends too early")
                fields = _ENTRY.unpack(fixed)
                name_length, extra_length, comment_length = fields[10:13]
                text = handle.read(name_length + extra_length + comment_length)
                left -= len(fixed) + len(text)
                if left < 0 or len(text) < name_length + extra_length + comment_length:
                    raise damaged(self.path, "its listing ends too early")
                extra = text[name_length : name_length + extra_length]
                yield self._member(fields, text[:name_length], extra)
            if left:
                raise damaged(self.path, "its listing has more entries than it says")

    def _member(self, fields: tuple[Any, ...], raw_name: bytes, extra: bytes) -> Member:
        flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        offset = fields[16]
        packed, size, offset = self._wide(packed, size, offset, extra)
        shown = raw_name.decode("utf-8", "replace")
        if flags & _ENCRYPTED:
            raise refused(self.path, shown, "is encrypted", "unpack it with its password and give kbench the folder")
        kind = stat.S_IFMT(fields[15] >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refused(self.path, shown, "is a link or a special file")
        if method != _STORED and method not in _DECOMPRESSORS:
            raise refused(
                self.path, shown, f"uses compression method {method}", "unpack it with 7-Zip and give kbench the folder"
            )
        name, is_folder = self._name(raw_name, flags)
        if not is_folder and offset + self.shift + _LOCAL.size + packed > self.start:
            raise damaged(self.path, f"'{name}' reaches past its end")
        return Member(name, is_folder or kind == stat.S_IFDIR, offset + self.shift, packed, size, crc, method)

    def _wide(self, packed: int, size: int, offset: int, extra: bytes) -> tuple[int, int, int]:
        """Replace the fields that did not fit into 32 bits by those of the zip64 extra field."""
        if 0xFFFFFFFF not in (packed, size, offset):
            return packed, size, offset
        wide = _extra_field(extra, 1)
        values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
        try:
            size = next(values) if size == 0xFFFFFFFF else size
            packed = next(values) if packed == 0xFFFFFFFF else packed
            offset = next(values) if offset == 0xFFFFFFFF else offset
        except StopIteration as error:
            raise damaged(self.path, "an entry lacks its zip64 sizes") from error
        return packed, size, offset

    def _name(self, raw: bytes, flags: int) -> tuple[str, bool]:
        try:
            text = raw.decode("utf-8")  # many programs write UTF-8 without saying so
        except UnicodeDecodeError as error:
            if flags & _UTF8:
                raise damaged(self.path, f"the name {raw!r} is not UTF-8") from error
            text = raw.decode("cp437")
        path = text.replace("\\", "/")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in parts or not parts:
            raise refused(self.path, text, "would be written outside the target")
        if _CONTROL.search(path):
            raise refused(self.path, repr(text), "has control characters in its name")
        return "/".join(parts), path.endswith("/")

    def chunks(self, handle: IO[bytes], member: Member) -> Iterator[bytes]:
        """Yield a member's content and check it while doing so.

        Args:
            handle: the archive, open for reading in binary.
            member: an entry of `members`.

        Raises:
            DataError: it is longer or shorter than the listing says, damaged, or its CRC-32 differs.
        """
        total, crc = 0, 0
        try:
            for chunk in _inflated(_packed(handle, member, self.path), member):
                total += len(chunk)
                if total > member.size:
                    break
                crc = zlib.crc32(chunk, crc)
                yield chunk
        except (zlib.error, OSError, EOFError, ValueError) as error:
            raise damaged(self.path, f"'{member.name}' cannot be unpacked ({error})") from error
        if total != member.size:
            word = "longer" if total > member.size else "shorter"
            raise damaged(self.path, f"'{member.name}' is {word} than the {member.size:,} bytes the listing says")
        if crc != member.crc:
            raise damaged(self.path, f"'{member.name}' has a wrong checksum")


def _extra_field(extra: bytes, wanted: int) -> bytes:
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == wanted:
            return extra[4 : 4 + length]
        extra = extra[4 + length :]
    return b""


def _packed(handle: IO[bytes], member: Member, path: Path) -> Iterator[bytes]:
    handle.seek(member.offset)
    header = handle.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise damaged(path, f"'{member.name}' is not where the listing says")
    name_length, extra_length = _LOCAL.unpack(header)[-2:]
    handle.seek(name_length + extra_length, os.SEEK_CUR)
    left = member.packed
    while left:
        chunk = handle.read(min(left, _CHUNK))
        if not chunk:
            raise damaged(path, f"it is cut off inside '{member.name}'")
        left -= len(chunk)
        yield chunk


def _inflated(packed: Iterator[bytes], member: Member) -> Iterator[bytes]:
    """Yield at most `_CHUNK` bytes at a time, whatever the compression ratio."""
    if member.method == _STORED:
        yield from packed
        return
    decompressor = _DECOMPRESSORS[member.method]()
    for chunk in packed:
        while not decompressor.eof:
            inflated = decompressor.decompress(chunk, _CHUNK)
            if inflated:
                yield inflated
            chunk = getattr(decompressor, "unconsumed_tail", b"")  # zlib hands the rest back, bz2 keeps it
            if len(inflated) < _CHUNK and not chunk:
                break
    if not decompressor.eof:
        raise EOFError("its end is missing")


def open_zip(path: Path) -> Zip:
    """Find the end record of a zip.

    Raises:
        DataError: the file is missing, no zip, cut off, or one part of a split zip.
    """
    try:
        with open(path, "rb") as handle:
            return _find_end(handle, path)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}", "a readable zip", "check the path") from error


def _find_end(handle: IO[bytes], path: Path) -> Zip:
    file_size = handle.seek(0, os.SEEK_END)
    tail_start = max(0, file_size - _END.size - 0xFFFF)
    handle.seek(tail_start)
    tail = handle.read()
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail):
            break
        at = tail.rfind(b"PK\x05\x06", 0, at)
    else:
        raise damaged(path, "it is no zip, or its end is missing")
    end = tail_start + at
    wide = _find_end64(handle, path, end)
    if wide:
        disk, first_disk, entries, length, start, end = wide
    else:
        _, disk, first_disk, _, entries, length, start, _ = _END.unpack_from(tail, at)
    if disk or first_disk:
        raise refused(path, path.name, "is one part of a split zip", "join the parts into one zip first")
    shift = end - length - start
    if shift < 0 or length < entries * _ENTRY.size:
        raise damaged(path, "its listing is not where its end says")
    return Zip(path, entries, end - length, length, shift)


def _find_end64(handle: IO[bytes], path: Path, end: int) -> tuple[int, int, int, int, int, int] | None:
    position = end - _LOCATOR64.size - _END64.size
    if position < 0:
        return None
    handle.seek(position)
    block = handle.read(_END64.size + _LOCATOR64.size)
    if block[_END64.size :][:4] != b"PK\x06\x07":
        return None
    if not block.startswith(b"PK\x06\x06"):
        raise damaged(path, "its zip64 end is missing")
    _, _, _, _, disk, first_disk, _, entries, length, start = _END64.unpack_from(block)
    return disk, first_disk, entries, length, start, position


def damaged(path: Path, reason: str) -> DataError:
    """Return the error for an archive that is not whole."""
    return DataError(
        f"the archive '{path}' is damaged: {reason}", "a whole zip", "download or copy it again; nothing was changed"
    )


def refused(path: Path, name: str, reason: str, todo: str = "unpack it yourself if you trust it") -> DataError:
    """Return the error for an archive with something in it that kbench does not unpack."""
    return DataError(
        f"'{name}' in the archive '{path}' {reason}",
        "regular files and folders, each inside the archive's own folder; nothing was changed",
        todo,
    )


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
    count, total = _check_listing(archive, one_case=not tells_case(folder))
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


def tells_case(folder: Path) -> bool:
    """Return whether names that differ by case alone are two files in this folder, as on most disks of Linux."""
    probe = folder / ".kbench-case"
    files.write_bytes(probe, b"")
    try:
        return not probe.with_name(probe.name.upper()).exists()
    finally:
        files.remove(probe)


def _check_listing(archive: Zip, *, one_case: bool) -> tuple[int, int]:
    """Hold every entry against the others before anything is written; return files and bytes.

    Args:
        archive: its entries.
        one_case: names that differ by case alone would be one file.
    """
    count, size, packed = 0, 0, 0
    names, parents = array("Q"), {""}
    for member in archive.members():
        if member.is_folder:
            continue
        count, size, packed = count + 1, size + member.size, packed + member.packed + _LOCAL_HEADER
        names.append(_key(member.name, one_case))
        parents.add(member.name.rpartition("/")[0])
    if packed > archive.start:
        raise damaged(archive.path, "its members share bytes, as in a zip bomb")
    folders = {_key(above, one_case) for parent in parents for above in _and_above(parent)}
    keys = np.sort(np.frombuffer(names, dtype=np.uint64)) if count else np.empty(0, np.uint64)
    twice = {int(key) for key in keys[1:][keys[1:] == keys[:-1]]}
    twice |= {int(key) for key in np.intersect1d(keys, np.fromiter(folders, np.uint64, len(folders)))}
    if twice:
        _refuse_clash(archive, twice, one_case)
    return count, size


def _key(name: str, one_case: bool) -> int:
    """Return 64 bits that are equal for names a file system may take for one: other composition, other case."""
    folded = unicodedata.normalize("NFC", name)
    folded = folded.casefold() if one_case else folded
    return int.from_bytes(hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _and_above(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _refuse_clash(archive: Zip, keys: set[int], one_case: bool) -> None:
    names = sorted(item.name for item in archive.members() if not item.is_folder and _key(item.name, one_case) in keys)
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
