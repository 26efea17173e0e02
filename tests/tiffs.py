"""TIFF files written tag by tag: any number of bands, any element type, any orientation."""

from __future__ import annotations

import struct

import numpy as np


def tiff(pixels: np.ndarray, *, orientation: int = 0, planes: bool = False, big_endian: bool = False) -> bytes:
    """Return the file of [H, W] or [H, W, C] pixels, uncompressed.

    Args:
        pixels: whole numbers or floats.
        orientation: value of tag 274; 0 for none.
        planes: store the channels one after the other (planar configuration 2).
        big_endian: byte order.
    """
    order = ">" if big_endian else "<"
    height, width, channels = (*pixels.shape, 1)[:3]
    laid = np.moveaxis(pixels.reshape(height, width, channels), 2, 0) if planes else pixels
    data = laid.astype(pixels.dtype.newbyteorder(order)).tobytes()
    parts = channels if planes else 1
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8 * pixels.dtype.itemsize] * channels), 259: ("H", [1]),
        262: ("H", [2 if channels > 2 else 1]), 273: ("I", [0] * parts), 277: ("H", [channels]), 278: ("I", [height]),
        279: ("I", [len(data) // parts] * parts), 284: ("H", [2 if planes else 1]),
        339: ("H", [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * channels),
    }  # fmt: skip
    if orientation:
        tags[274] = ("H", [orientation])
    if channels == 2 or channels > 3:
        tags[338] = ("H", [0] * (channels - (1 if channels == 2 else 3)))
    after = 8 + 2 + 12 * len(tags) + 4
    long = sum(size for kind, values in tags.values() if (size := struct.calcsize(kind) * len(values)) > 4)
    tags[273] = ("I", [after + long + place * (len(data) // parts) for place in range(parts)])
    entries, extra = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", after + len(extra))
            extra, packed = extra + packed, place
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + packed.ljust(4, b"\0")
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + extra + data
