"""What pixel values mean to the network: scale, mean and standard deviation per channel.

A YAML's own numbers come first; three 8-bit channels take those of the backbone; anything else is measured on
the rows a fold trains on, never on rows it is judged on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure(images: Images, rows: np.ndarray) -> Scale:
    """Return mean and standard deviation of each channel, of up to 2,000 evenly chosen rows.

    Raises:
        DataError: pixels are NaN or infinite.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_ENOUGH, len(rows))).astype(int))]
    factor = scale_of(images)
    count, total, squares = 0, np.float64(0), np.float64(0)
    for row in chosen:
        image = images[int(row)]
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
    return Scale(factor, tuple(np.atleast_1d(mean).tolist()), tuple(np.maximum(np.atleast_1d(std), 1e-6).tolist()))


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
        return Scale(factor, tuple(mean), tuple(std))
    if backbone is not None and factor != 1.0 and images[0].shape[-1] == len(backbone[0]) == 3:
        return Scale(factor, tuple(backbone[0]), tuple(backbone[1]))
    return measure(images, rows)
