"""Read a zip without trusting it: its listing one entry at a time, its members as checked chunks.

Python's `zipfile` keeps about a kilobyte for every member; competitions have 1.5 million of them. This reader
keeps none, and refuses what a data archive never has: paths that leave it, links, encryption, entries that
share bytes or are longer than they say (APPNOTE 6.3.10, sections 4.3 to 4.5). To support one more compression
method, add a row to `_DECOMPRESSORS`.
"""

from __future__ import annotations

import bz2
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kbench.errors import DataError

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
