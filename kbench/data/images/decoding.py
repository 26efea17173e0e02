"""From an image file to an array: one way to open, one limit, one rule for orientation, one message.

Images, masks and near-duplicates all come through here. A file's header is read first: what is too large is never
decoded, what the decoder would get wrong is refused, and what it gives back is held against the header. Files are
decoded as they are stored; turning them upright is a step of its own, the same for every kind of file.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, PngImagePlugin, TiffImagePlugin

from kbench.data.images.headers import Damaged, Header, read_header
from kbench.data.images.quiet import native_lines_muted
from kbench.errors import DataError, counted

cv2.setNumThreads(0)  # one row per thread or process; OpenCV's own threads only get in the way
MOST_PIXELS = 1 << 30
"""Pixels of the largest image that is decoded unless the YAML allows more."""
_DTYPES = ("uint8", "uint16", "int16", "float32", "float64")  # what OpenCV resizes and warps
_RGB = ("jpeg", "png", "webp", "bmp", "pnm")  # OpenCV gives these in RGB; 16-bit TIFF and AVIF come in wrong order
_PALETTES: dict[str, Any] = {
    "png": PngImagePlugin.PngImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}


@dataclass(frozen=True)
class Decoding:
    """How files become arrays, whatever they hold.

    Attributes:
        orientation: `apply` turns images and masks as their files say, `ignore` takes them as they are stored.
        max_pixels: height x width of the largest that is decoded.
        quick: photographs that are shown smaller than they are need not be decoded whole.
    """

    orientation: Literal["apply", "ignore"] = "apply"
    max_pixels: int = MOST_PIXELS
    quick: bool = False

    def size(self, header: Header) -> tuple[int, int]:
        """Return the height and width that decoding gives."""
        return header.upright if self.orientation == "apply" else header.stored

    def turned(self, header: Header | None) -> bool:
        """Return whether decoding turns an image."""
        return self.orientation == "apply" and header is not None and header.orientation > 1


PLAIN = Decoding()
NOWHERE = Path()
"""Stands for the path of a file that is not there and need not be."""


def path_of(root: Path, name: str) -> Path:
    """Return a table's path below its root; `NOWHERE` where a row lacks a file."""
    return root / name if name else NOWHERE


def is_there(path: Path) -> bool:
    """Return whether a path of a row is one."""
    return path != NOWHERE


def first_path(paths: Sequence[Path]) -> Path:
    """Return the first path of a row that is one."""
    return next(filter(is_there, paths), NOWHERE)


def decode(path: Path, flags: int, decoding: Decoding = PLAIN) -> np.ndarray:
    """Decode one image file with OpenCV.

    Args:
        path: the file.
        flags: OpenCV's; of a colour image `IMREAD_COLOR_RGB`, which is RGB for every kind of file.
        decoding: limit and orientation.

    Returns:
        [H, W, C] array of the file's dtype; colour is RGB(A).

    Raises:
        DataError: the file is missing, no file, empty, truncated, no image, too large, or of a kind that OpenCV gets
            wrong.
    """
    content, header = stored(path, decoding)
    return _pixels(path, content, header, flags=flags, decoding=decoding)


def decode_numbers(path: Path, decoding: Decoding = PLAIN) -> np.ndarray:
    """Return [H, W, C] pixel values as they are stored; of a palette image the numbers of its colours, [H, W, 1].

    Raises:
        DataError: as `decode`.
    """
    content, header = stored(path, decoding)
    if header is not None and header.palette:
        numbers = _palette_numbers(path, content, header)
        if numbers is not None:
            return upright(numbers, header.orientation) if decoding.turned(header) else numbers
    return _pixels(path, content, header, flags=cv2.IMREAD_UNCHANGED, decoding=decoding)


def _pixels(path: Path, content: np.ndarray, header: Header | None, *, flags: int, decoding: Decoding) -> np.ndarray:
    if header is not None and header.planes and header.dtype != "uint8":
        raise DataError(
            f"'{path}' stores its {header.channels} channels of {header.dtype or 'many bits'} one after another",
            "channels that are stored pixel by pixel, or 8 bits",
            "write `input: {reader: raster}`, or convert it (`gdal_translate -co INTERLEAVE=PIXEL IN OUT`)",
        )
    colour = flags != cv2.IMREAD_UNCHANGED and bool(flags & cv2.IMREAD_COLOR_RGB)
    if colour and header is not None and header.channels < 3 and header.dtype not in ("", "uint8", "uint16"):
        raise DataError(
            f"'{path}' has {counted(header.channels, 'channel')} of {header.dtype}, which cannot be shown as colours",
            "8 or 16 bits, or as many channels as the file has",
            f"set `input: {{channels: {header.channels}}}`, or convert the images to 8 or 16 bits",
        )
    swapped = colour and (header is None or header.kind not in _RGB)
    if swapped:
        flags = (flags & ~cv2.IMREAD_COLOR_RGB) | cv2.IMREAD_COLOR_BGR
    pixels = decoded(path, content, flags if flags < 0 else flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if header is not None and _contradicts(header, pixels):
        raise DataError(
            f"'{path}' says it has {header.height} x {header.width} x {header.channels} pixels of {header.dtype}, "
            f"and is decoded as {' x '.join(map(str, pixels.shape))} of {pixels.dtype}",
            "a kind of file that OpenCV decodes whole",
            "write `input: {reader: raster}`, which reads satellites' files, or convert it",
        )
    if swapped or (flags == cv2.IMREAD_UNCHANGED and pixels.shape[2] in (3, 4)):
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    return upright(pixels, header.orientation) if header is not None and decoding.turned(header) else pixels


def stored(path: Path, decoding: Decoding) -> tuple[np.ndarray, Header | None]:
    """Return a file's bytes, in which a TIFF says it is upright, and its header; None of an unknown kind.

    Raises:
        DataError: it cannot be read, or holds more pixels than are decoded.
    """
    content = _content(path)
    try:
        header = read_header(content)
    except Damaged as error:
        raise unreadable(path, content.size) from error
    if header is None:
        return content, None
    check_pixels(path, header, decoding)
    if header.tag is not None:  # OpenCV and Pillow turn TIFFs as they see fit
        place, order = header.tag
        content[place : place + 2] = (1, 0) if order == "<" else (0, 1)
    return content, header


def check_pixels(path: Path, header: Header, decoding: Decoding) -> None:
    """Raise a DataError where an image has more pixels than are decoded."""
    if header.pixels > decoding.max_pixels:
        raise DataError(
            f"'{path}' has {header.height:,} x {header.width:,} pixels",
            f"{decoding.max_pixels:,} pixels at most (input.max_pixels)",
            f"cut it into smaller images, or set `input: {{max_pixels: {header.pixels}}}` where "
            f"{header.pixels * header.channels / 1e9:.1f} GB of memory and more are free",
        )


def check_file(path: Path) -> None:
    """Raise a DataError where a path is not a regular file: a folder, a pipe, a device, or nothing."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _missing(path, error) from error
    if not stat.S_ISREG(mode):
        raise DataError(
            f"cannot read '{path}': it is {not_a_file(mode)}",
            "an image file",
            "`kbench check` lists every such path; move it away and fetch the file again",
        )


def not_a_file(mode: int) -> str:
    """Return what a path is in words, by its mode; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"


def _content(path: Path) -> np.ndarray:
    check_file(path)
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise _missing(path, error) from error


def _missing(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read '{path}': {error.strerror or error}", "an image file",
        "`kbench check` lists every missing image",
    )  # fmt: skip


def decoded(path: Path, content: np.ndarray, flags: int) -> np.ndarray:
    """Return [H, W, C] as OpenCV gives it; a DataError where it does not."""
    try:
        with native_lines_muted():
            decoded = cv2.imdecode(content, flags) if content.size else None
    except cv2.error as error:  # a header that contradicts itself, more memory than there is
        raise unreadable(path, content.size, f": {error.err}") from error
    if decoded is None:
        raise unreadable(path, content.size)
    return decoded[:, :, None] if decoded.ndim == 2 else decoded


def _contradicts(header: Header, pixels: np.ndarray) -> bool:
    """Return whether a decoder gave other pixels than a header promised, as OpenCV does of some TIFFs."""
    if header.kind == "tiff" and header.dtype and header.dtype != pixels.dtype.name:
        return True
    return header.kind in ("jpeg", "png", "tiff", "bmp", "webp") and pixels.shape[:2] != header.stored


def usable(image: np.ndarray, *, name: str) -> np.ndarray:
    """Return an image whose element type can be resized and warped.

    Raises:
        DataError: it is another one.
    """
    if image.dtype.name not in _DTYPES:
        raise DataError(
            f"'{name}' has pixels of {image.dtype}",
            f"pixels of {', '.join(_DTYPES)}",
            "convert them to what the model was trained on, or read them with another `input.reader`",
        )
    return image


def unreadable(path: Path, size: int, why: str = "") -> DataError:
    """Return the error of a file that is no whole image."""
    if path.suffix.lower() in (".tif", ".tiff"):
        return DataError(
            f"'{path}' is not a readable image ({size:,} bytes){why}", "a whole TIFF file that OpenCV reads",
            "write `input: {reader: raster}` if it is a satellite's: that reads any GeoTIFF; `kbench check --images` "
            "lists every such file; fetch it again, or set `data: {on_problem: drop}`, or `fill` for a test set",
        )  # fmt: skip
    return DataError(
        f"'{path}' is not a readable image ({size:,} bytes){why}",
        "a whole PNG, JPEG, TIFF or WebP file",
        "`kbench check --images` lists every such file; fetch it again, or set `data: {on_problem: drop}`, "
        "or `fill` for a test set",
    )


def _palette_numbers(path: Path, content: np.ndarray, header: Header) -> np.ndarray | None:
    """Return [H, W, 1] uint8 numbers of the colours of a palette image, or None where it is one of greys."""
    try:
        with native_lines_muted(), _PALETTES[header.kind](io.BytesIO(content.tobytes())) as image:
            return np.array(image)[:, :, None] if image.mode == "P" else None
    except (OSError, SyntaxError, ValueError, KeyError, EOFError) as error:
        raise unreadable(path, content.size, f": {error}") from error


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return [H, W, C] turned as an orientation of 1 to 8 says, contiguous.

    Source: EXIF 2.32, tag 0x112; TIFF 6.0, tag 274.
    """
    if orientation > 4:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
