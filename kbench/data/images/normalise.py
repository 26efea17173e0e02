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
_PIECE = 1 << 21  # numbers that are measured at once


@dataclass(frozen=True)
class Scale:
    """Normalisation of raw values: (x * scale - mean) / std.

    Attributes:
        scale: 1/255 for 8 bits, else 1.
        mean: C values in scaled units.
        std: C values in scaled units.
        dtype: of the raw values, such as `uint8`: what images of another element type mean is not known.
        regions: region -> [C means, C standard deviations] in scaled units; None where regions do not count.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = ""
    regions: dict[str, list[list[float]]] | None = None

    def known(self) -> dict[str, Any]:
        """Return it as JSON, for plans and checkpoints; regions only where they count."""
        said = {"scale": self.scale, "mean": list(self.mean), "std": list(self.std), "dtype": self.dtype}
        return said if self.regions is None else {**said, "regions": self.regions}


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


def measure(images: Images, rows: np.ndarray, *, masked: bool = False) -> Scale:
    """Return mean and standard deviation of each channel, of up to 2,000 evenly chosen rows.

    Args:
        images: of a table.
        rows: which of them.
        masked: whether NaN means that nothing is known, and takes no part.

    Raises:
        DataError: pixels are NaN or infinite, or a channel has no known pixel.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_ENOUGH, len(rows))).astype(int))]
    factor, moments, dtype = scale_of(images), Moments(), ""
    for row in chosen:
        image = images[int(row)]
        dtype = image.dtype.name
        moments.add(image, factor)
    if not masked and moments.unknown:
        raise DataError(
            f"some of {len(chosen):,} measured images have pixels that are NaN or infinite",
            "finite pixels",
            "read them with `input: {reader: raster}`, which knows missing data, or a reader that fills them",
        )
    spread = np.maximum(moments.std, 1e-6)
    return Scale(factor, tuple(moments.mean.tolist()), tuple(spread.tolist()), dtype)


class Moments:
    """Count, mean and variance of the known pixels of each channel, of any number of images.

    Pixels are taken in pieces of bounded size, whose moments are joined (Chan, Golub and LeVeque 1979, equation 2.1),
    so that neither a large scene nor a large mean costs memory or precision.
    """

    def __init__(self) -> None:
        self.count, self._mean, self._squares, self.unknown = np.zeros(1), np.zeros(1), np.zeros(1), False

    def add(self, image: np.ndarray, factor: float = 1.0) -> None:
        """Add the pixels of an image [H, W, C] times a factor; those that are not finite take no part."""
        step = max(1, _PIECE // max(1, image.shape[1] * image.shape[2]))
        for top in range(0, image.shape[0], step):
            self._join(image[top : top + step].reshape(-1, image.shape[2]).astype(np.float64) * factor)

    def _join(self, values: np.ndarray) -> None:
        known = np.isfinite(values)
        here = known.sum(0)
        if known.all():
            mean = values.mean(0)
            squares = np.square(values - mean).sum(0)
        else:
            self.unknown = True
            mean = np.where(known, values, 0).sum(0) / np.maximum(here, 1)
            squares = np.square(np.where(known, values - mean, 0)).sum(0)
        both = self.count + here
        delta = mean - self._mean
        share = np.maximum(both, 1)
        self._squares = self._squares + squares + np.square(delta) * self.count * here / share
        self._mean = self._mean + delta * here / share
        self.count = both

    @property
    def mean(self) -> np.ndarray:
        """[C] float64; 0 of a channel without a known pixel."""
        return np.atleast_1d(self._mean)

    @property
    def std(self) -> np.ndarray:
        """[C] float64; 1 of a channel without a known pixel."""
        variance = np.atleast_1d(self._squares / np.maximum(self.count, 1))
        return np.asarray(np.where(np.atleast_1d(self.count) > 0, np.sqrt(variance), 1.0))


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
    fixed: Sequence[tuple[float, float] | None] = (),
    masked: bool = False,
) -> Scale:
    """Return the YAML's numbers, else the backbone's for three 8-bit channels, else measured ones.

    Args:
        images: of the training table.
        rows: what the fold trains on.
        mean: from the YAML, or None.
        std: from the YAML, or None.
        backbone: mean and std the backbone was trained with, or None.
        fixed: per channel what is taken off a raw value and what it is divided by then, or None where that is
            measured; nothing where all are.
        masked: whether NaN means that nothing is known.
    """
    factor = scale_of(images)
    if any(one is not None for one in fixed):
        every = all(one is not None for one in fixed)
        rest = Scale(factor, (0.0,) * len(fixed), (1.0,) * len(fixed), _dtype_of(images)) if every else measure(
            images, rows, masked=masked
        )  # fmt: skip
        pairs = [
            (one[0] * factor, one[1] * factor) if one is not None else own
            for one, own in zip(fixed, zip(rest.mean, rest.std, strict=True), strict=True)
        ]
        return Scale(factor, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), rest.dtype)
    if mean is not None and std is not None:
        return Scale(factor, tuple(mean), tuple(std), _dtype_of(images))
    if backbone is not None and factor != 1.0 and images[0].shape[-1] == len(backbone[0]) == 3:
        return Scale(factor, tuple(backbone[0]), tuple(backbone[1]), _dtype_of(images))
    return measure(images, rows, masked=masked)
