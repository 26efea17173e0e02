"""Mask images in a zip: class numbers, colours, or one image per class.

To add another format, see `base.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kbench.data.table.csv_files import texts
from kbench.errors import ConfigError, Problem, SubmissionError, first_names
from kbench.inference.map_store import MaskSet
from kbench.registry import register
from kbench.submission.formats.base import Format, asking, check_task, id_column
from kbench.submission.formats.mask_cells import (
    CELL,
    Sizes,
    build_cells,
    chosen_names,
    files_in,
    read_masks,
    zipped,
)
from kbench.tasks import IGNORED, SEGMENTATION, exclusive

_FIELDS = re.compile(r"\{(id|class)\}")
_RGB = 3


@register("format")
def mask_zip(
    *, file: str = "{id}.png", classes: list[str] | None = None, values: list[int] | None = None,
    colours: dict[str, list[int]] | None = None, _names: tuple[str, ...], _task: str, _sizes: Sizes | None = None,
) -> Format:  # fmt: skip
    """Return the format with PNG images in a zip.

    Classes that exclude one another are one image of grey values or colours, what is of none of them is black (or
    the first value no class has); others are one image of 0 and 255 per class.

    Args:
        file: name of an image in the zip: `{id}`, and `{class}` where every class has its own.
        classes: names of the classes that are written; all by default.
        values: grey value of each of them; 0, 1, 2 ... by default, or 255 for classes that have their own images.
        colours: red, green and blue of each of them, instead of values.
        _names: the competition's classes.
        _task: its task.
        _sizes: image id -> its height and width; images that are at hand hold the masks to their size.
    """
    check_task(_task, SEGMENTATION, format="mask_zip")
    written, apart = chosen_names(classes, _names), exclusive(_task, len(_names))
    code = _code(written, values, colours, apart=apart)
    fields = _FIELDS.findall(file)
    if "id" not in fields or (("class" in fields) == apart and (apart or len(written) > 1)):
        raise ConfigError(
            f"the submission format 'mask_zip' with the file name '{file}'",
            "`{id}`" if apart else "`{id}` and `{class}`, since classes may overlap",
            "set submission.format.file in the YAML, such as '{id}.png'",
        )

    def files_of(image: str) -> list[str]:
        if apart:
            return [file.replace("{id}", image)]
        return [file.replace("{id}", image).replace("{class}", name) for name in written]

    def image_of(name: str) -> str:
        """Return the image a row of the sample names: by its id, or by the file's name."""
        head, _, tail = file.partition("{id}")
        whole = not _FIELDS.search(head + tail) and name.startswith(head) and name.endswith(tail)
        return name[len(head) : len(name) - len(tail)] if whole and head + tail else name

    def build(masks: MaskSet, sample: pd.DataFrame) -> pd.DataFrame:
        return build_cells(
            masks, sample, written, image_of=image_of, encode=lambda mask: _encoded(mask, code),
            decode=lambda cell, mask: _decoded(cell, code, apart=apart),
        )  # fmt: skip

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> MaskSet:
        names = [image_of(name) for name in texts(frame, str(frame.columns[0])).tolist()]
        cells = dict(zip(names, frame[CELL].tolist(), strict=True))
        return read_masks(names, written, lambda image: _decoded(cells[image], code, apart=apart),
                          names=_names, task=_task)  # fmt: skip

    def problems(frame: pd.DataFrame, sample: pd.DataFrame) -> list[Problem]:
        faults = []
        for name, cell in zip(texts(frame, str(frame.columns[0])).tolist(), frame[CELL].tolist(), strict=True):
            try:
                size = _decoded(cell, code, apart=apart).shape[-2:]
            except SubmissionError as error:
                faults.append(Problem(name, error.what))
                continue
            right = size if _sizes is None else _sizes(image_of(name))
            if size != tuple(right):
                faults.append(Problem(name, f"a mask of {size[0]} x {size[1]} for an image of {right[0]} x {right[1]}"))
        return faults[:20]

    def encode(frame: pd.DataFrame) -> Iterator[bytes]:
        names = texts(frame, str(frame.columns[0])).tolist()
        pairs = zip(names, frame[CELL].tolist(), strict=True)
        parts = sorted(part for name, cell in pairs for part in zip(files_of(image_of(name)), cell, strict=True))
        return zipped(parts)

    def decode(path: Path, sample: pd.DataFrame) -> pd.DataFrame:
        ids = texts(sample, id_column(sample)).tolist()
        parts = dict(files_in(path))
        whole = [name for name in ids if set(files_of(image_of(name))) <= parts.keys()]
        cells = [tuple(parts.pop(part) for part in files_of(image_of(name))) for name in whole]
        rest = sorted(parts)
        return pd.DataFrame(
            {id_column(sample): [*whole, *rest], CELL: [*cells, *((parts[name],) for name in rest)]}, dtype=object
        )

    return Format(
        ".zip",
        build,
        parse,
        problems,
        exact=True,
        columns=(CELL,),
        encode=encode,
        decode=decode,
        image_of=image_of,
        own_sample=partial(asking, wanted=()),
    )


def _code(
    written: tuple[str, ...], values: list[int] | None, colours: dict[str, list[int]] | None, *, apart: bool
) -> np.ndarray:
    """Return [k + 1, 1 or 3] uint8 pixels of the classes and of none of them.

    Raises:
        ConfigError: they are not one per class, not apart, or no bytes.
    """
    values_of = [[value] for value in values] if values is not None else None
    if colours is not None:
        values_of = [colours.get(name, []) for name in written]
    if values_of is None:
        values_of = [[k] for k in range(len(written))] if apart else [[255]] * len(written)
    wrong = len(values_of) != len(written) or (values is not None and colours is not None)
    wrong |= any(len(pixel) != (1 if colours is None else _RGB) or not all(0 <= v <= IGNORED for v in pixel)
                 for pixel in values_of)  # fmt: skip
    wrong |= apart and len({tuple(pixel) for pixel in values_of}) < len(values_of)
    wrong |= not apart and any(not any(pixel) for pixel in values_of)
    if wrong:
        raise ConfigError(
            f"the submission format 'mask_zip' with the values {values} and the colours {colours}",
            f"a grey value or a colour of its own, from 0 to 255, for each of {first_names(list(written), 30)}",
            "correct submission.format.values or submission.format.colours in the YAML",
        )
    free = next(value for value in range(IGNORED + 1) if not any(set(pixel) == {value} for pixel in values_of))
    return np.array([*values_of, [free if apart else 0] * len(values_of[0])], dtype=np.uint8)


def _encoded(mask: np.ndarray, code: np.ndarray) -> tuple[bytes, ...]:
    """Return the PNG of an [H, W] index mask, or one per layer of [k, H, W]."""
    if mask.ndim == 2:
        return (_png(code[np.minimum(mask, len(code) - 1)]),)
    return tuple(_png(code[np.where(layer != 0, k, len(code) - 1)]) for k, layer in enumerate(mask))


def _png(pixels: np.ndarray) -> bytes:
    done, content = cv2.imencode(".png", pixels[:, :, ::-1] if pixels.shape[2] == _RGB else pixels)
    assert done, "OpenCV writes PNG"
    return content.tobytes()


def _decoded(cell: tuple[bytes, ...], code: np.ndarray, *, apart: bool) -> np.ndarray:
    """Return [H, W] class numbers, 255 for none, or [k, H, W] layers of 0 and 1.

    Raises:
        SubmissionError: an image cannot be decoded, or has pixels that mean nothing.
    """
    if apart:
        return _classes_of(cell[0], code)
    pairs = [_classes_of(content, code[[k, len(code) - 1]]) for k, content in enumerate(cell)]
    if len({pair.shape for pair in pairs}) > 1:
        raise SubmissionError("images of one row differ in size", "one size", "write the file again")
    return np.stack([pair == 0 for pair in pairs]).astype(np.uint8)


def _classes_of(content: bytes, code: np.ndarray) -> np.ndarray:
    """Return [H, W] uint8 numbers of the pixels among [k + 1, C] code words, 255 for the last."""
    flag = cv2.IMREAD_COLOR if code.shape[1] == _RGB else cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flag) if content else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.reshape(*pixels.shape[:2], -1).shape[2] != code.shape[1]:
        raise SubmissionError("no readable mask image", "PNG images as the format writes them", "write the file again")
    weights = np.array([1, 256, 65536][: code.shape[1]], dtype=np.int64)
    keys = pixels.reshape(*pixels.shape[:2], -1)[:, :, ::-1].astype(np.int64) @ weights
    words = code.astype(np.int64) @ weights
    order = np.argsort(words)
    place = np.searchsorted(words[order], keys).clip(max=len(words) - 1)
    if not np.array_equal(words[order][place], keys):
        raise SubmissionError("pixels that are no class", "the values of submission.format", "write the file again")
    numbers = np.arange(len(code), dtype=np.uint8)
    numbers[-1] = IGNORED
    return np.asarray(numbers[order][place])
