"""Readers: from the paths of one row to one array.

A reader is a registered factory; what it returns is called as `read(paths) -> [H, W, C]` and keeps the dtype of
the file. To add a format, write a factory here with `@register("reader")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from kbench.data.images.decoding import PLAIN, Decoding, decode
from kbench.data.images.quick import QuickReader
from kbench.errors import DataError
from kbench.registry import register

Reader = Callable[[Sequence[Path]], np.ndarray]


@register("reader")
def image(*, _channels: int = 3, _decoding: Decoding = PLAIN) -> Reader:
    """Read PNG, JPEG, TIFF, WebP and whatever else OpenCV decodes; 8 and 16 bits, RGB order.

    Several paths are stacked along the channels.

    Args:
        _channels: channels of the result: 1 (grey), 3 (RGB), or what the files hold together.
        _decoding: orientation and limit, of `input`.

    Returns:
        A reader of [H, W, C] arrays.
    """
    flag = {1: cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH, 3: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH}

    def read(paths: Sequence[Path]) -> np.ndarray:
        if len(paths) == 1:
            decoded = [decode(paths[0], flag.get(_channels, cv2.IMREAD_UNCHANGED), _decoding)]
        else:
            decoded = [decode(path, cv2.IMREAD_UNCHANGED, _decoding) for path in paths]
        if len({(part.shape[:2], part.dtype) for part in decoded}) > 1:
            raise DataError(
                f"images of one row differ in size or dtype: {', '.join(path.name for path in paths)}",
                "images of one size and dtype, to be stacked",
                "resize them, or name one image folder only",
            )
        stacked = decoded[0] if len(decoded) == 1 else np.concatenate(decoded, axis=2)
        if stacked.shape[2] != _channels:
            raise DataError(
                f"'{paths[0]}' has {stacked.shape[2]} channels",
                f"{_channels} channels (input.channels)",
                f"set `input: {{channels: {stacked.shape[2]}}}`",
            )
        return stacked

    return QuickReader(read, channels=_channels, decoding=_decoding, resize=resized) if _decoding.quick else read


def size_by(reader: Reader, paths: Sequence[Path]) -> tuple[int, int]:
    """Return the height and width of a row: from the heads of its files where the reader can, else from its pixels."""
    size = getattr(reader, "size", None)
    if size is not None:
        height, width = size(paths)
    else:
        height, width = reader(paths).shape[:2]
    return int(height), int(width)


def resized(image: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """Resize [H, W, C] to a height and width: averaging areas downwards and bilinear upwards, or the nearest pixel."""
    if size == image.shape[:2]:
        return image
    flag = cv2.INTER_AREA if size[0] * size[1] < image.shape[0] * image.shape[1] else cv2.INTER_LINEAR
    flag = cv2.INTER_NEAREST_EXACT if nearest else flag
    parts = [
        cv2.resize(image[:, :, first : first + 4], size[::-1], interpolation=flag).reshape(*size, -1)
        for first in range(0, image.shape[2], 4)  # OpenCV averages at most four channels at once
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def remembering(reader: Reader) -> Reader:
    """Return a reader that keeps its last image, read-only: a row shown at several sizes is decoded once.

    One that decodes for a size is left as it is.
    """
    if isinstance(reader, QuickReader):
        return reader
    last: list[tuple[tuple[Path, ...], np.ndarray]] = []

    def read(paths: Sequence[Path]) -> np.ndarray:
        known = last[0] if last else None  # one look: another thread may replace it
        if known is None or known[0] != tuple(paths):
            known = (tuple(paths), reader(paths))
            known[1].flags.writeable = False
            last[:] = [known]
        return known[1]

    return read
