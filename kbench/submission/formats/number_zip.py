"""Numbers per pixel in a zip: TIFF, PNG or NPY files, one per image, or one per image and target.

To add another format, see `base.py`; GeoTIFFs are in `raster_zip.py`.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Literal

import cv2
import numpy as np

from kbench.errors import SubmissionError
from kbench.registry import register
from kbench.submission.formats.base import Format, check_task
from kbench.submission.formats.mask_cells import Sizes
from kbench.submission.formats.number_files import CELL, Codec, Naming, Pixels, check_format, zip_of_numbers

__all__ = ["CELL", "number_zip"]
Dtype = Literal["uint8", "uint16", "float32", "float64"]
_CHANNELS = {".png": (1, 3, 4), ".tif": (1, 3), ".tiff": (1, 3), ".npy": None}  # how many one file may hold


@register("format")
def number_zip(
    *, file: str = "{id}.tif", dtype: Dtype = "float32", scale: float = 1.0, offset: float = 0.0,
    tolerance: float | None = None, nodata: float | None = None, clip: list[float] | None = None,
    _names: tuple[str, ...], _task: str, _sizes: Sizes | None = None,
) -> Format:  # fmt: skip
    """Return the format with the predicted numbers as images or arrays in a zip.

    A pixel times `scale` plus `offset` is the number. Every number is read back and compared when it is written.

    Args:
        file: name of a file in the zip, with `{id}`; its ending is the kind: `.tif`, `.png` (whole numbers alone) or
            `.npy` ([H, W], or [H, W, K]). With `{target}` every target has a file of its own, else they are channels.
        dtype: of the pixels. Whole numbers are rounded to the nearest.
        scale: what a pixel is multiplied by.
        offset: what is added then.
        tolerance: how far a written number may be from the predicted one, in the targets' units; by default half of
            `scale` for whole numbers, which rounding needs, and 0 for the others, a rounding of float32 aside.
        nodata: pixel that a solution has where the truth is unknown, beside NaN; it is never written.
        clip: lowest and highest number that is sent; what lies beyond is set to it. By default nothing is, and a number
            that does not fit into `dtype` is refused.
        _names: the competition's targets.
        _task: its task.
        _sizes: image id -> its height and width; images that are at hand hold the numbers to their size.

    Raises:
        ConfigError: the file's name, or what says how numbers are written, makes no sense.
    """
    check_task(_task, ("dense_regression",), format="number_zip")
    naming = Naming(file, _names)
    codec = Codec(
        lambda values, image: _packed(values, naming.ending), partial(_unpacked, ending=naming.ending),
        compress=naming.ending == ".npy",
    )  # fmt: skip
    pixels = Pixels(np.dtype(dtype), scale, offset, tolerance, nodata, clip, codec)
    check_format("number_zip", naming, pixels, _problems(naming, pixels))
    return zip_of_numbers(naming, pixels, task=_task, sizes=_sizes)


def _problems(naming: Naming, pixels: Pixels) -> list[tuple[str, str]]:
    """Return what of a file's ending does not go with what is to be written."""
    channels, problems = naming.channels, list[tuple[str, str]]()
    if naming.ending not in _CHANNELS:
        problems.append(("file", f"'{naming.file}' ends in '{naming.ending}'; known: {', '.join(_CHANNELS)}"))
    elif channels not in (_CHANNELS[naming.ending] or (channels,)):
        what = (
            f"a '{naming.ending}' does not hold {channels} channels: `.npy` does, or `{{target}}` makes a file of each"
        )
        problems.append(("file", what))
    if naming.ending == ".png" and not pixels.whole:
        problems.append(("dtype", f"a PNG cannot hold {pixels.dtype}: uint8 or uint16 with `scale`, or another file"))
    return problems


def _packed(pixels: np.ndarray, ending: str) -> bytes:
    """Return the file of [C, H, W] pixels; channels of images are red, green, blue and alpha in their order."""
    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    if ending == ".npy":
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, allow_pickle=False)
        return buffer.getvalue()
    order = [2, 1, 0, 3][: pixels.shape[2]] if pixels.shape[2] > 1 else [0]
    done, content = cv2.imencode(ending, np.ascontiguousarray(pixels[:, :, order]))
    assert done, f"OpenCV writes {ending}"
    return content.tobytes()


def _unpacked(content: bytes, ending: str) -> np.ndarray:
    """Return [C, H, W] pixels of a file.

    Raises:
        SubmissionError: it cannot be read.
    """
    pixels: np.ndarray | None = None
    try:
        if ending == ".npy":
            pixels = np.load(io.BytesIO(content), allow_pickle=False)
        elif content:
            pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except (ValueError, EOFError, OSError, cv2.error):
        pass
    if pixels is None or pixels.ndim not in (2, 3) or not pixels.size or pixels.dtype.kind not in "biuf":
        raise SubmissionError(f"no readable '{ending}' file", "files as the format writes them", "write them again")
    if pixels.ndim == 2:
        return np.asarray(pixels[None])
    order = [2, 1, 0, 3][: pixels.shape[2]] if ending != ".npy" else list(range(pixels.shape[2]))
    return np.asarray(pixels[:, :, order].transpose(2, 0, 1))
