"""What pixel values mean to the network: scale, mean and standard deviation per channel.

A YAML's own numbers come first; three 8-bit channels take those of the backbone; anything else is measured on
the rows a fold trains on, never on rows it is judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kbench.data.images.cache import Images
from kbench.errors import DataError

_ENOUGH = 2000  # images measured at most


@dataclass(frozen=True)
class Scale:
    """Normalisation of raw values: (x * scale - mean) / std.

    Attributes:
        scale: 1/255 for 8 bits, else 1.
        mean: C values in scaled units.
        std: C values in scaled units.
        dtype: of the raw values, such as `uint8`: what images of another element type mean is not known.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = ""


_KINDS = {
    "uint8": "8 bits", "uint16": "16 bits", "int16": "16 bits",
    "float32": "floating point", "float64": "floating point",
}  # fmt: skip


def check_dtype(dtype: Any, scale: Mapping[str, Any] | None, *, name: Callable[[], str]) -> None:
    """Hold the element type of an image against that of a normalisation.

    Signed and unsigned 16 bits are of one kind, as are 32 and 64 bits of floating point: their numbers mean the same.

    Args:
        dtype: of the image.
        scale: `scale`, `mean`, `std` and `dtype` of what a model was trained on, or None where nothing is known. Where
            `dtype` is missing (checkpoints of earlier versions), the factor tells 8 bits from all others.
        name: returns what the image is called, for the message.

    Raises:
        DataError: they are of different kinds.
    """
    if scale is None:
        return
    kind = _kind(str(np.dtype(dtype)))
    trained = scale.get("dtype") or ""
    known = _kind(trained) if trained else "8 bits" if scale["scale"] != 1.0 else "more than 8 bits"
    if kind == known or (not trained and kind != "8 bits" and known != "8 bits"):
        return
    raise DataError(
        f"'{name()}' has pixels of {kind} ({np.dtype(dtype)}), and the model was trained on images of {known}"
        + (f" ({trained})" if trained else ""),
        f"images of {known}, as those it was trained on",
        f"convert them to {trained or known} in the units of the training images, or train another run on such images",
    )


def _kind(dtype: str) -> str:
    return _KINDS.get(dtype, dtype)


def measure(images: Images, rows: np.ndarray) -> Scale:
    """Return mean and standard deviation of each channel, of up to 2,000 evenly chosen rows.

    Raises:
        DataError: pixels are NaN or infinite.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_ENOUGH, len(rows))).astype(int))]
    factor = scale_of(images)
    count, total, squares, dtype = 0, np.float64(0), np.float64(0), ""
    for row in chosen:
        image = images[int(row)]
        dtype = image.dtype.name
        pixels = image.reshape(-1, image.shape[-1]).astype(np.float64) * factor  # [H*W, C]
        count += len(pixels)
        total = total + pixels.sum(0)
        squares = squares + (pixels**2).sum(0)
    if not np.isfinite(squares).all():
        raise DataError(
            f"some of {len(chosen):,} measured images have pixels that are NaN or infinite",
            "finite pixels",
            "read them with an `input.reader` that fills them",
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    spread = np.maximum(np.atleast_1d(std), 1e-6)
    return Scale(factor, tuple(np.atleast_1d(mean).tolist()), tuple(spread.tolist()), dtype)


def _dtype_of(images: Images) -> str:
    return images[0].dtype.name if len(images) else ""


def scale_of(images: Images) -> float:
    """Return the factor that brings raw values to scaled units."""
    return 1 / 255 if len(images) and images[0].dtype == np.uint8 else 1.0


def choose(
    images: Images,
    rows: np.ndarray,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    backbone: Sequence[Sequence[float]] | None,
) -> Scale:
    """Return the YAML's numbers, else the backbone's for three 8-bit channels, else measured ones.

    Args:
        images: of the training table.
        rows: what the fold trains on.
        mean: from the YAML, or None.
        std: from the YAML, or None.
        backbone: mean and std the backbone was trained with, or None.
    """
    factor = scale_of(images)
    if mean is not None and std is not None:
        return Scale(factor, tuple(mean), tuple(std), _dtype_of(images))
    if backbone is not None and factor != 1.0 and images[0].shape[-1] == len(backbone[0]) == 3:
        return Scale(factor, tuple(backbone[0]), tuple(backbone[1]), _dtype_of(images))
    return measure(images, rows)
