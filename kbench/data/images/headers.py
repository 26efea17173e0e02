"""What an image file says of itself before it is decoded: size, channels, element type, orientation.

Only the bytes that say so are read, whatever the file holds: a header costs microseconds and no memory. The kind of
a file is told by its first bytes, never by its name. To add a kind, write a function `(Bytes) -> Header` and name
its first bytes in `_KINDS`.

Sources: JPEG ITU-T T.81 annex B; PNG ISO/IEC 15948 section 11, eXIf; TIFF 6.0 section 2 and BigTIFF; EXIF 2.32 tag
0x112; WebP container specification; ISO/IEC 15444-1 annex A and I; Netpbm manuals.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

ORIENTATION = 0x112
"""TIFF's and EXIF's tag of how an image is to be turned."""
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT = 256, 257, 258, 262, 277, 284, 339
_OFFSETS, _COUNTS = (273, 324), (279, 325)  # of strips, of tiles
_NODATA, _SUBFILE = 42113, 254  # GDAL's; what a directory is beside the first
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_TAGS, _MOST_VALUES, _MOST_PIECES = 4096, 1 << 22, 1 << 16
_COLOURS = 3  # TIFF's photometric interpretation of a palette


class Damaged(Exception):
    """A header that contradicts itself or ends too early."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        kind: `jpeg`, `png`, `tiff`, `gif`, `bmp`, `webp`, `jp2`, `pnm`, `avif`, `hdr` or `sun`.
        height: pixels, as they are stored.
        width: pixels, as they are stored.
        channels: of an image decoded as it is; 3 where a palette has the colours.
        dtype: of a decoded image, such as `uint16`; empty where only decoding tells.
        orientation: 1 to 8 as EXIF counts them; 1 is upright, as is a file that does not say.
        palette: whether pixels are the numbers of colours.
        planes: whether channels are stored one after the other (TIFF's planar configuration 2).
        tag: where the orientation's two bytes are and their order (`<` or `>`), in a TIFF that has them.
        end: bytes the file must have at least; 0 where it does not say.
        nodata: what a GeoTIFF says means no data, as text; empty where it does not say.
        bits: of a sample of a PNG or TIFF, as stored.
        pages: whether it has further pages or frames, which no decoder here gives; thumbnails and overviews of a TIFF
            are none.
    """

    kind: str
    height: int
    width: int
    channels: int
    dtype: str = "uint8"
    orientation: int = 1
    palette: bool = False
    planes: bool = False
    tag: tuple[int, str] | None = None
    end: int = 0
    nodata: str = ""
    bits: int = 8
    pages: bool = False

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width as they are stored."""
        return self.height, self.width

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width once the image is turned as its orientation says."""
        return (self.width, self.height) if self.orientation > 4 else self.stored

    @property
    def pixels(self) -> int:
        """Height x width."""
        return self.height * self.width


class Bytes:
    """Bytes at an offset, of a file or of what was read of one.

    Args:
        source: an open binary file, or its content.
    """

    def __init__(self, source: IO[bytes] | np.ndarray | bytes) -> None:
        content: Any = source if isinstance(source, bytes | np.ndarray) else None
        self._view = None if content is None else memoryview(content)
        self._file: Any = source if content is None else None

    def at(self, offset: int, count: int) -> bytes:
        """Return `count` bytes.

        Raises:
            Damaged: the file ends before.
        """
        content = self.some(offset, count)
        if len(content) < count:
            raise Damaged("truncated")
        return content

    def some(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes, fewer at the end."""
        if self._view is not None:
            return bytes(self._view[offset : offset + count])
        self._file.seek(offset)
        return bytes(self._file.read(count))


def read_header(source: IO[bytes] | np.ndarray | bytes) -> Header | None:
    """Return what a file says of itself, or None where its first bytes are of no known kind.

    Args:
        source: an open binary file, or its content.

    Raises:
        Damaged: the header ends too early, or says what cannot be.
    """
    data = Bytes(source)
    start = data.some(0, 32)
    for kind, begins in _KINDS:
        if begins(start):
            try:
                header = kind(data)
            except (struct.error, IndexError, ValueError, OverflowError, MemoryError) as error:
                raise Damaged("damaged") from error
            if header.height < 1 or header.width < 1 or header.channels < 1:
                raise Damaged("damaged")
            return header if 1 <= header.orientation <= 8 else replace(header, orientation=1)
    return None


# -- one function per kind --------------------------------------------------------------------------------------


def _jpeg(data: Bytes) -> Header:
    place, orientation = 2, 1
    for _ in range(_MOST_PIECES):
        mark = data.at(place, 2)
        if mark[0] != 0xFF:
            place += 1  # bytes between two markers, which decoders pass over
            continue
        if mark[1] in (0xFF, 0x01, 0xD8) or 0xD0 <= mark[1] <= 0xD7:
            place += 1 if mark[1] == 0xFF else 2
            continue
        if mark[1] in (0xD9, 0xDA):
            break
        (size,) = struct.unpack(">H", data.at(place + 2, 2))
        if 0xC0 <= mark[1] <= 0xCF and mark[1] not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", data.at(place + 4, 6))
            return Header("jpeg", height, width, min(channels, 3), "uint8" if bits <= 8 else "", orientation)
        if mark[1] == 0xE1 and orientation == 1 and data.some(place + 4, 6) == b"Exif\0\0":
            orientation = _exif(data, place + 10)
        place += 2 + size
    raise Damaged("damaged")


def _png(data: Bytes) -> Header:
    width, height, bits, colour = struct.unpack(">IIBB", data.at(16, 10))
    channels = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}.get(colour, 0)  # grey with alpha is decoded as four channels
    orientation, place, pages = 1, 8, False
    for _ in range(_MOST_PIECES):
        head = data.some(place, 8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        if head[4:] == b"eXIf":
            orientation = _exif(data, place + 8)
        elif head[4:] == b"tRNS" and colour in (2, 3):
            channels = 4
        pages |= head[4:] == b"acTL"
        place += 12 + int(struct.unpack(">I", head[:4])[0])
    dtype = "uint16" if bits == 16 else "uint8"
    return Header("png", height, width, channels, dtype, orientation, colour == 3, bits=bits, pages=pages)


def _gif(data: Bytes) -> Header:
    width, height = struct.unpack("<HH", data.at(6, 4))
    return Header("gif", height, width, 3, palette=True, pages=_has_frames(data))


def _has_frames(data: Bytes) -> bool:
    """Return whether a GIF has a second image; its pieces are stepped over, not read."""
    flags = data.at(10, 1)[0]
    place, images = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    for _ in range(_MOST_PIECES):
        mark = data.some(place, 10)
        if mark[:1] == b",":
            images += 1
            place += 11 + (3 << (mark[9] & 7) + 1 if mark[9] & 0x80 else 0) if len(mark) == 10 else 11
        elif mark[:1] == b"!":
            place += 2
        else:
            break
        if images > 1:
            return True
        while size := data.some(place, 1)[:1].ljust(1, b"\0")[0]:
            place += 1 + size
        place += 1
    return False


def _bmp(data: Bytes) -> Header:
    (size,) = struct.unpack("<I", data.at(14, 4))
    if size == 12:
        width, height, _, bits = struct.unpack("<HHHH", data.at(18, 8))
    else:
        width, height, _, bits = struct.unpack("<iiHH", data.at(18, 12))
    step, first = (3 if size == 12 else 4), 14 + size
    (pixels,) = struct.unpack("<I", data.at(10, 4))
    colours = data.some(first, max(0, min(pixels - first, step << bits))) if bits <= 8 else b""
    grey = bits <= 8 and colours[0::step] == colours[1::step] == colours[2::step]
    return Header("bmp", abs(height), width, 1 if grey else 4 if bits == 32 and size > 56 else 3, palette=bits <= 8)


def _webp(data: Bytes) -> Header:
    kind = data.at(12, 4)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data.at(26, 4))
        return Header("webp", height & 0x3FFF, width & 0x3FFF, 3)
    if kind == b"VP8L":
        (packed,) = struct.unpack("<I", data.at(21, 4))
        return Header("webp", (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1, 4 if packed >> 28 & 1 else 3)
    if kind != b"VP8X":
        raise Damaged("damaged")
    flags, *sides = struct.unpack("<B3x3s3s", data.at(20, 10))
    width, height = (int.from_bytes(side, "little") + 1 for side in sides)
    orientation, place = 1, 12
    for _ in range(_MOST_PIECES if flags & 0x08 else 0):
        head = data.some(place, 8)
        if len(head) < 8:
            break
        if head[:4] == b"EXIF":
            skipped = 6 if data.some(place + 8, 6) == b"Exif\0\0" else 0
            orientation = _exif(data, place + 8 + skipped)
            break
        size = int(struct.unpack("<I", head[4:])[0])
        place += 8 + size + size % 2
    return Header("webp", height, width, 4 if flags & 0x10 else 3, orientation=orientation, pages=bool(flags & 0x02))


def _tiff(data: Bytes) -> Header:
    tags = dict(_directory(data, 0))
    bits = tags[_BITS][0] if _BITS in tags else (1,)
    channels = _first(tags, _SAMPLES, 1)
    palette = _first(tags, _PHOTOMETRIC, 1) == _COLOURS
    offsets = next((tags[tag][0] for tag in _OFFSETS if tag in tags), ())
    counts = next((tags[tag][0] for tag in _COUNTS if tag in tags), ())
    end = max((offset + count for offset, count in zip(offsets, counts, strict=False)), default=0)
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise Damaged("damaged")
    return Header(
        "tiff", _first(tags, _HEIGHT, 0), _first(tags, _WIDTH, 0), 3 if palette else channels,
        _element(int(bits[0]), _first(tags, _FORMAT, 1)) if len(set(bits)) == 1 else "",
        _first(tags, ORIENTATION, 1), palette, channels > 1 and _first(tags, _PLANAR, 1) == 2,
        (tags[ORIENTATION][1], "<" if data.at(0, 1) == b"I" else ">") if ORIENTATION in tags else None, end,
        bytes(tags[_NODATA][0]).decode("ascii", "replace").strip("\0 ") if _NODATA in tags else "",
        int(bits[0]), _has_pages(data),
    )  # fmt: skip


def _has_pages(data: Bytes) -> bool:
    """Return whether the second directory of a TIFF is a page, and no thumbnail, overview or mask of the first."""
    try:
        second = _next(data)
        return bool(second) and not _first(dict(_directory(data, 0, second)), _SUBFILE, 0) & 0b101
    except (Damaged, struct.error):
        return False  # decoders do not look there


def _next(data: Bytes) -> int:
    """Return where the second directory of a TIFF is, 0 where there is none."""
    order, big, first = _begin(data, 0)
    count, step = (">Q", 20) if big else (">H", 12)
    count = count.replace(">", order)
    size = struct.calcsize(count)
    (tags,) = struct.unpack(count, data.at(first, size))
    (second,) = struct.unpack(f"{order}{'Q' if big else 'I'}", data.at(first + size + step * tags, 8 if big else 4))
    return int(second)


def _element(bits: int, format: int) -> str:
    """Return the dtype of a TIFF's samples as OpenCV decodes them; empty where only decoding tells."""
    letter = {1: "uint", 2: "int", 3: "float", 4: "uint"}.get(format, "")
    if not letter or (letter == "float" and bits < 32):
        return ""
    size = next((size for size in (8, 16, 32, 64) if bits <= size), 0)
    return f"{letter}{size}" if size else ""


def _jp2(data: Bytes) -> Header:
    place = 0
    if data.at(0, 4) != b"\xff\x4f\xff\x51":
        place_of_box = data.some(0, 1 << 12).find(b"ihdr")
        if place_of_box < 0:
            raise Damaged("damaged")
        height, width, channels, bits = struct.unpack(">IIHB", data.at(place_of_box + 4, 11))
        if bits != 0xFF:
            return Header("jp2", height, width, channels, "uint8" if (bits & 0x7F) < 8 else "uint16")
        place = data.some(0, 1 << 16).find(b"\xff\x4f\xff\x51")
    x1, y1, x0, y0 = struct.unpack(">IIII", data.at(place + 8, 16))
    channels, bits = struct.unpack(">HB", data.at(place + 40, 3))
    return Header("jp2", y1 - y0, x1 - x0, channels, "uint8" if (bits & 0x7F) < 8 else "uint16")


def _pnm(data: Bytes) -> Header:
    text = data.some(0, 1 << 12)
    kind = text[1:2]
    if kind == b"7":
        fields = {key: int(value) for key, value in re.findall(rb"(?m)^(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d+)", text)}
        dtype = "uint8" if fields.get(b"MAXVAL", 255) < 256 else "uint16"
        return Header("pnm", fields.get(b"HEIGHT", 0), fields.get(b"WIDTH", 0), fields.get(b"DEPTH", 1), dtype)
    words = re.sub(rb"#[^\n]*", b"", text[2:]).split(None, 3)
    channels = 3 if kind in b"36F" else 1
    if kind in b"Ff":
        return Header("pnm", int(words[1]), int(words[0]), channels, "float32")
    top = 1 if kind in b"14" else int(words[2])
    return Header("pnm", int(words[1]), int(words[0]), channels, "uint8" if top < 256 else "uint16")


def _avif(data: Bytes) -> Header:
    text = data.some(0, 1 << 16)
    sizes = [struct.unpack(">II", text[match.end() + 4 : match.end() + 12]) for match in re.finditer(rb"ispe", text)]
    width, height = max(sizes, key=lambda size: int(size[0]) * int(size[1]))
    return Header("avif", height, width, 3, "", pages=text[8:12] == b"avis")  # what else, only decoding tells


def _hdr(data: Bytes) -> Header:
    sizes = re.search(rb"[-+]Y (\d+) [-+]X (\d+)", data.some(0, 1 << 12))
    if sizes is None:
        raise Damaged("damaged")
    return Header("hdr", int(sizes[1]), int(sizes[2]), 3, "")


def _sun(data: Bytes) -> Header:
    width, height, bits = struct.unpack(">III", data.at(4, 12))
    return Header("sun", height, width, 1 if bits <= 8 else 3, "")


_KINDS: list[tuple[Callable[[Bytes], Header], Callable[[bytes], bool]]] = [
    (_jpeg, lambda start: start[:3] == b"\xff\xd8\xff"),
    (_png, lambda start: start[:8] == b"\x89PNG\r\n\x1a\n"),
    (_tiff, lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (_gif, lambda start: start[:6] in (b"GIF87a", b"GIF89a")),
    (_bmp, lambda start: start[:2] == b"BM" and len(start) > 17 and start[15:18] == b"\0\0\0"),
    (_webp, lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP"),
    (_jp2, lambda start: start[4:12] == b"jP  \r\n\x87\n" or start[:4] == b"\xff\x4f\xff\x51"),
    (_pnm, lambda start: start[:1] == b"P" and start[1:2] in b"1234567Ff" and start[2:3].isspace()),
    (_avif, lambda start: start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"miaf")),
    (_hdr, lambda start: start[:10] == b"#?RADIANCE" or start[:6] == b"#?RGBE"),
    (_sun, lambda start: start[:4] == b"\x59\xa6\x6a\x95"),
]


# -- tags of TIFF and EXIF --------------------------------------------------------------------------------------

Tags = dict[int, tuple[tuple[int, ...], int]]
"""Tag -> its values, and where the first of them is in the file."""


def _first(tags: Tags, tag: int, otherwise: int) -> int:
    values = tags[tag][0] if tag in tags else ()
    return int(values[0]) if values else otherwise


def _exif(data: Bytes, base: int) -> int:
    """Return the orientation an EXIF block says, 1 where it does not or is damaged: decoders pass over such a one."""
    try:
        return _first(dict(_directory(data, base)), ORIENTATION, 1)
    except (Damaged, struct.error):
        return 1


def _begin(data: Bytes, base: int) -> tuple[str, bool, int]:
    """Return the order of bytes, whether offsets have 64 bits, and where the first directory is."""
    order = {b"II": "<", b"MM": ">"}.get(data.at(base, 2))
    if order is None:
        raise Damaged("damaged")
    (version,) = struct.unpack(f"{order}H", data.at(base + 2, 2))
    big = version == 43
    (first,) = struct.unpack(f"{order}{'Q' if big else 'I'}", data.at(base + (8 if big else 4), 8 if big else 4))
    return order, big, int(first)


def _directory(data: Bytes, base: int, first: int | None = None) -> Iterator[tuple[int, tuple[tuple[int, ...], int]]]:
    """Yield the whole-number tags of a directory, the first by default, of a TIFF or EXIF block from `base` on."""
    order, big, begin = _begin(data, base)
    first = begin if first is None else first
    number, entry = (f"{order}Q", f"{order}HHQ") if big else (f"{order}I", f"{order}HHI")
    head = 8 if big else 2
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", data.at(base + first, head))
    step, short = (20, 8) if big else (12, 4)
    block = data.at(base + first + head, step * min(int(count), _MOST_TAGS))
    for place in range(0, len(block), step):
        tag, kind, values = struct.unpack_from(entry, block, place)
        if tag not in _WANTED or kind not in _TYPES:
            continue
        letter = f"{order}{min(values, _MOST_VALUES)}{_TYPES[kind]}"  # bytes too, such as GDAL's texts
        size = struct.calcsize(letter)
        offset = base + first + head + place + step - short
        if size > short:
            offset = base + int(struct.unpack_from(number, block, place + step - short)[0])
        yield tag, (struct.unpack(letter, data.at(offset, size)), offset)


_WANTED = {
    _WIDTH,
    _HEIGHT,
    _BITS,
    _PHOTOMETRIC,
    _SAMPLES,
    _PLANAR,
    _FORMAT,
    ORIENTATION,
    _NODATA,
    _SUBFILE,
    *_OFFSETS,
    *_COUNTS,
}
