"""The pixels of a mask file: numbers as the file stores them, and the rule by which they become yes and no.

Whatever a file is (PNG of 1 to 16 bits, TIFF of 32, JPEG, grey written as colours, a mask in the alpha channel,
`.npy`), it is read by this one rule in every mask kind, or refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kbench.data.images.decoding import PLAIN, Decoding, check_file, decode, decode_numbers
from kbench.data.images.headers import Damaged, read_header
from kbench.errors import ConfigError, DataError, check_number
from kbench.tasks import IGNORED

ON = (1, 255, 65535)  # how masks of one class say yes
_TINT = 16  # most difference between the channels of a grey picture that was stored with losses


def stored(path: Path, decoding: Decoding = PLAIN) -> tuple[np.ndarray, int]:
    """Return [H, W, C] numbers as a file stores them, and what its decoder multiplies them by to show them.

    Grey of 1, 2 or 4 bits is shown as 0 to 255 by every decoder; here it is 0 to 1, 3 or 15. Of a palette image the
    numbers are those of its colours, [H, W, 1].

    Raises:
        DataError: it cannot be read, or an array has not the shape [H, W] or [H, W, C].
    """
    if path.suffix.lower() == ".npy":
        return array(path), 1
    return _as_stored(decode_numbers(path, decoding), path)


def shown(path: Path, decoding: Decoding = PLAIN) -> tuple[np.ndarray, int]:
    """Return what `stored` does, but of a palette image its colours, [H, W, 3 or 4]."""
    if path.suffix.lower() == ".npy":
        return array(path), 1
    return _as_stored(decode(path, cv2.IMREAD_UNCHANGED, decoding), path)


def _as_stored(pixels: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    bits = _grey_bits(path) if pixels.shape[2] == 1 and pixels.dtype == np.uint8 else 8
    scale = 255 // ((1 << bits) - 1)
    return (pixels // scale if scale > 1 else pixels), scale


def array(path: Path) -> np.ndarray:
    """Return the [H, W, C] array of an `.npy` file; truth values are 0 and 1.

    Raises:
        DataError: it cannot be read, or has another shape.
    """
    check_file(path)
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read '{path}': {error}", "an array", "fetch it again") from error
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
        raise DataError(
            f"'{path}' has the shape {list(array.shape)} and the dtype {array.dtype}",
            "numbers [height, width] or [height, width, channels]", "write the array anew, channels last",
        )  # fmt: skip
    array = array.astype(np.uint8) if array.dtype == bool else array
    return np.asarray(array[:, :, None] if array.ndim == 2 else array)


def _grey_bits(path: Path) -> int:
    """Return the bits of a sample of a grey PNG or TIFF, 8 where it has more or its file does not say."""
    try:
        with open(path, "rb") as handle:
            header = read_header(handle)
    except Damaged:
        return 8
    grey = header is not None and header.channels == 1 and not header.palette
    return header.bits if header is not None and grey and header.bits in (1, 2, 4) else 8


def is_lossy(path: Path) -> bool:
    """Return whether a file's kind changes pixels near edges: JPEG, and WebP that is not lossless."""
    if path.suffix.lower() == ".npy":
        return False
    with open(path, "rb") as handle:
        head = handle.read(16)
    return head.startswith(b"\xff\xd8") or (head[:4] == b"RIFF" and head[8:15] == b"WEBPVP8" and head[15:16] == b" ")


def without_alpha(pixels: np.ndarray, *, of: str, alone: bool, soft: bool = False) -> np.ndarray:
    """Return [H, W, C] pixels without their alpha channel, or that channel where it holds the mask.

    Args:
        pixels: [H, W, C]; 2 and 4 channels end with alpha.
        of: name of the file, for the message.
        alone: whether the mask is one of yes and no, which alpha can hold: where all pixels have one colour and alpha
            differs, what is opaque is yes.
        soft: whether a threshold says from where on alpha is yes.

    Raises:
        DataError: alpha differs and is no such mask, has values in between, or hides pixels that the colours say yes
            to.
    """
    if pixels.shape[2] not in (2, 4):
        return pixels
    colour, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    if pixels.shape[2] == 4 and (colour == colour[:, :, :1]).all():
        colour = colour[:, :, :1]
    if alpha.min() == alpha.max():
        return colour
    if (colour == colour[:1, :1]).all():
        if alone and (soft or len(np.setdiff1d(np.unique(alpha), [0])) == 1):
            return alpha
        if alone:
            raise DataError(
                f"the mask '{of}' is in an alpha channel of the values {', '.join(map(str, np.unique(alpha)[:8]))}",
                "transparent and one other value",
                f"write `threshold: {int(alpha.max()) // 2}` in data.masks: pixels above it are the class",
            )
        raise DataError(
            f"the mask '{of}' has one colour everywhere, and an alpha channel that differs",
            "classes as colours or numbers; alpha says only yes or no",
            "save the masks without alpha, or name the kind `per_class` in data.masks",
        )
    hidden = int(((colour != 0).any(axis=2) & (alpha[:, :, 0] == 0)).sum())
    if alone and hidden:
        raise DataError(
            f"the mask '{of}' has {hidden:,} transparent pixels that are not black",
            "colours and alpha that say the same of what is the class",
            "save the masks without alpha",
        )
    return colour


@dataclass(frozen=True)
class YesNo:
    """How the pixels of a mask of one class become yes and no.

    Black (0) is no, any one other value is yes. Of files stored with losses (JPEG) what is above half of the scale is
    yes. Several other values are the numbers of objects, all of them yes, unless one of them is white (255, or 65535
    of 16 bits), they are 1 and 255, or no pixel is black: such a file says yes in two ways, and the YAML must say what
    is meant.

    Attributes:
        threshold: pixels above it are yes, whatever the file; None: by the rule above.
        ignore: pixel values that are neither trained on nor scored.
        decoding: orientation and limit, of `input`.
        on: value -> the first file that says yes by it; filled while files are read.
    """

    threshold: float | None = None
    ignore: tuple[int, ...] = ()
    decoding: Decoding = PLAIN
    on: dict[int, str] = field(default_factory=dict, compare=False)

    def layer(self, root: Path, cell: str) -> np.ndarray:
        """Return the [H, W, 1] uint8 layer of a file: 0, 1, or 255 where it is ignored.

        Raises:
            DataError: the file cannot be read, or does not say which of its values are yes.
        """
        pixels, _ = shown(root / cell, self.decoding)
        return self.of_pixels(pixels, root, cell)

    def of_pixels(self, pixels: np.ndarray, root: Path, cell: str) -> np.ndarray:
        """Return the layer of [H, W, C] pixels of a file; see `layer`."""
        pixels = without_alpha(pixels, of=cell, alone=True, soft=self.threshold is not None)
        lossy = is_lossy(root / cell)
        grey = as_grey(pixels, lossy=lossy)
        yes = self._of_colours(pixels, cell, lossy=lossy) if grey is None else self._of_grey(grey, cell, lossy=lossy)
        layer = yes.astype(np.uint8)
        if self.ignore and grey is not None:
            layer[np.isin(grey, self.ignore)] = IGNORED
        return layer[:, :, None]

    def _of_colours(self, pixels: np.ndarray, cell: str, *, lossy: bool) -> np.ndarray:
        if lossy and self.threshold is None:
            raise DataError(
                f"the mask '{cell}' has colours that were stored with losses",
                "black and white, or a file without losses",
                "write `threshold: 127` in data.masks: what is brighter in one channel is the class",
            )  # fmt: skip
        yes = np.asarray((pixels > (self.threshold or 0)).any(axis=2))
        if self.threshold is None and yes.all():
            raise DataError(
                f"the mask '{cell}' has several colours, and none of its pixels is black",
                "black where the class is not",
                "name the colours: the kind `colour` in data.masks for one file of all classes; or write `threshold: "
                "127`: what is brighter in one channel is the class",
            )
        return yes

    def _of_grey(self, grey: np.ndarray, cell: str, *, lossy: bool) -> np.ndarray:
        if self.threshold is not None:
            return np.asarray(grey > self.threshold)
        values = [value for value in np.unique(grey).tolist() if value != 0 and value not in self.ignore]
        if len(values) <= 1:
            if values:
                self.on.setdefault(values[0], cell)
            return np.asarray((grey != 0) & ~np.isin(grey, self.ignore))
        white = np.iinfo(grey.dtype).max if grey.dtype in (np.uint8, np.uint16) else None
        if lossy:
            return self._of_losses(grey, cell, float(white or 255))
        shown = ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")
        if white in values or values == [1, 255]:
            raise DataError(
                f"the mask '{cell}' has the values 0, {shown}: two ways to say yes, or pixels in between",
                "0 and one other value",
                f"write in data.masks `ignore: [{values[-1]}]` if that is void, `threshold: {int(values[-1]) // 2}` if "
                "brighter pixels are the class, or `threshold: 0` if all that is not black is",
            )
        if (grey != 0).all() and not np.isin(grey, self.ignore).any():
            raise DataError(
                f"the mask '{cell}' has the values {shown}, and none of its pixels is black",
                "black where the class is not",
                f"write `threshold: {int(values[0])}` in data.masks if what is above is the class, or `threshold: 0` "
                "if all is, such as numbers of objects that fill the image",
            )
        if not all(float(value).is_integer() and value > 0 for value in values):
            raise DataError(
                f"the mask '{cell}' has the values {shown}", "0 and one other value, or numbers of objects",
                "write `threshold: 0.5` in data.masks: pixels above it are the class",
            )  # fmt: skip
        return np.asarray(grey != 0) & ~np.isin(grey, self.ignore)

    def _of_losses(self, grey: np.ndarray, cell: str, white: float) -> np.ndarray:
        if grey.max() <= white / 2:
            raise DataError(
                f"the mask '{cell}' was stored with losses, and its brightest pixel is {grey.max()}",
                f"black and white: what is above {white / 2:g} is the class",
                f"write `threshold: {int(grey.max()) // 2}` in data.masks, or another level between no and yes",
            )
        self.on.setdefault(int(white), cell)
        return np.asarray(grey > white / 2)


def yes_no(threshold: float | None, ignore: Sequence[int] | None, decoding: Decoding) -> YesNo:
    """Return the rule of two options of a mask kind.

    Raises:
        ConfigError: the threshold is no number from 0 on, or 0 is ignored.
    """
    if threshold is not None:
        check_number("data.masks.threshold", threshold, "[0, inf)")
    if 0 in (ignore or ()):
        raise ConfigError("data.masks.ignore names 0", "values other than black", "correct data.masks.ignore")
    return YesNo(threshold, tuple(ignore or ()), decoding)


def as_grey(pixels: np.ndarray, *, lossy: bool) -> np.ndarray | None:
    """Return [H, W] values of pixels that are grey, whatever their channels; None where they have colours."""
    if pixels.shape[2] == 1:
        return np.asarray(pixels[:, :, 0])
    tint = int(np.ptp(pixels.astype(np.int64), axis=2).max()) if pixels.dtype.kind in "ui" else 1
    return np.asarray(pixels[:, :, 0]) if tint <= (_TINT if lossy else 0) else None
