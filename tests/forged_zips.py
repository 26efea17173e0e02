"""Zips with any lie in them, written field by field."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Entry:
    name: str | bytes
    data: bytes = b"data"
    method: int = 8
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    flags: int = 0
    mode: int = 0o100644
    offset: int | None = None
    extra: bytes = b""


def forge(
    path: Path, entries: list[Entry], *, count: int | None = None, prefix: bytes = b"", wide: bool = False
) -> Path:
    """Write a zip whose listing says what the entries say, true or not."""
    body, listing = prefix, b""
    for entry in entries:
        name = entry.name if isinstance(entry.name, bytes) else entry.name.encode()
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(entry.data) + packer.flush() if entry.method == 8 else entry.data
        offset = len(body) - len(prefix) if entry.offset is None else entry.offset
        size = len(entry.data) if entry.size is None else entry.size
        length = len(packed) if entry.packed is None else entry.packed
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        extra, shown = entry.extra, size
        if size > 0xFFFFFFFF:
            extra, shown = struct.pack("<2HQ", 1, 8, size) + extra, 0xFFFFFFFF
        common = struct.pack("<4H3L", entry.flags, entry.method, 0, 0, crc, length, shown)
        if entry.offset is None:
            body += b"PK\x03\x04" + struct.pack("<H", 20) + common + struct.pack("<2H", len(name), 0) + name + packed
        listing += b"PK\x01\x02" + struct.pack("<2H", 3 << 8, 20) + common
        listing += struct.pack("<5H2L", len(name), len(extra), 0, 0, 0, entry.mode << 16, offset) + name + extra
    number = len(entries) if count is None else count
    start = len(body) - len(prefix)
    if wide:
        record = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, number, number, len(listing), start)
        locator = b"PK\x06\x07" + struct.pack("<LQL", 0, len(body) + len(listing), 1)
        end = record + locator + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, *(0xFFFFFFFF,) * 2, 0)
    else:
        end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, number, number, len(listing), start, 0)
    path.write_bytes(body + listing + end)
    return path
