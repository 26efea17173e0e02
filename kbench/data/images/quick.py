"""Photographs at a size, without every pixel of the file: `input: {decode: auto}`.

A JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1 of its size that still covers the size it is shown at, which
its cosine transform gives for less than the whole; then a bilinear filter, antialiased where much is left, does the
rest. Both together differ from `exact` by a grey level or less on photographs. Everything else (other files, more bits,
bands, masks, images shown at their own resolution) is read as ever.

Sources: libjpeg's scaled decoding, OpenCV's IMREAD_REDUCED_COLOR flags; torch's antialiased uint8 `interpolate`, which
is Pillow's resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from kbench.data.images.decoding import Decoding, decoded, stored, upright, usable
from kbench.data.images.headers import Header

Size = tuple[int, int]
SizeOf = Callable[[int, int], Size]
_NEAR = 1.5  # up to so many times the size, four neighbours are as near to the mean of an area as an antialiased filter
_COLOUR = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
_GREY = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}


class QuickReader:
    """Reads rows whole as another reader does, and photographs at a size.

    Args:
        read: the other reader.
        channels: 1 (grey) or 3 (RGB) of photographs.
        decoding: orientation and limit.
        resize: (image, size) -> image, for what is no photograph.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Path]], np.ndarray],
        *,
        channels: int,
        decoding: Decoding,
        resize: Callable[[np.ndarray, Size], np.ndarray],
    ) -> None:
        self._read, self._channels, self._decoding, self._resize = read, channels, decoding, resize

    def __call__(self, paths: Sequence[Path]) -> np.ndarray:
        """Return [H, W, C] of a row, every pixel of it."""
        return self._read(paths)

    def at_size(self, paths: Sequence[Path], size_of: SizeOf) -> np.ndarray:
        """Return [height, width, C] of a row at the size that `size_of(H, W)` says.

        Raises:
            DataError: as the other reader.
        """
        reduced = self._reduced(paths[0], size_of) if len(paths) == 1 and self._channels in (1, 3) else None
        if reduced is None:
            whole = usable(self._read(paths), name=str(paths[0]))
            return self.resized(whole, size_of(whole.shape[0], whole.shape[1]))
        return self.resized(*reduced)

    def resized(self, image: np.ndarray, size: Size) -> np.ndarray:
        """Return an image [H, W, C] at a size: a photograph that becomes smaller by the quick way."""
        height, width, channels = image.shape
        smaller = size[0] * size[1] < height * width
        return (
            shrunk(image, size)
            if smaller and image.dtype == np.uint8 and channels in (1, 3)
            else self._resize(image, size)
        )

    def _reduced(self, path: Path, size_of: SizeOf) -> tuple[np.ndarray, Size] | None:
        """Return a JPEG at the smallest scale that covers its size, and that size; None where that is the whole."""
        content, header = stored(path, self._decoding)
        if header is None or header.kind != "jpeg":
            return None
        size = size_of(*self._decoding.size(header))
        factor = next((factor for factor in (8, 4, 2) if _covers(self._decoding.size(header), factor, size)), 1)
        if factor == 1:
            flags = cv2.IMREAD_GRAYSCALE if self._channels == 1 else cv2.IMREAD_COLOR_RGB
        else:
            flags = (_GREY if self._channels == 1 else _COLOUR)[factor]
        pixels = decoded(path, content, flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels.shape[:2] != _scaled(header.stored, factor) or pixels.dtype != np.uint8:
            return None
        if factor > 1 and self._channels == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # OpenCV has no reduced RGB
        return self._turned(pixels, header), size

    def _turned(self, pixels: np.ndarray, header: Header) -> np.ndarray:
        return upright(pixels, header.orientation) if self._decoding.turned(header) else pixels


def _scaled(size: Size, factor: int) -> Size:
    return -(-size[0] // factor), -(-size[1] // factor)


def _covers(size: Size, factor: int, wanted: Size) -> bool:
    height, width = _scaled(size, factor)
    return height >= wanted[0] and width >= wanted[1]


def shrunk(image: np.ndarray, size: Size) -> np.ndarray:
    """Return an image [H, W, 1 or 3] of 8 bits at a smaller size: bilinear, antialiased where that shows."""
    if size == image.shape[:2]:
        return image
    if max(image.shape[0] / size[0], image.shape[1] / size[1]) <= _NEAR:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)
    import torch

    pixels = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
