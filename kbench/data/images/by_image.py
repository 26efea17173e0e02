"""Normalisation that an image says by itself: its own mean, range or percentiles, or those around each pixel.

It belongs to how an image is read, so that caches, training and prediction have the same pixels; what is unknown (NaN)
takes no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from kbench.data.images.decoding import first_path
from kbench.data.images.normalise import Moments
from kbench.data.images.readers import Reader, size_by

By = Literal["image", "window", "minmax", "percentile"]
_FLAT = 1e-6  # standard deviation, or range, of a channel that says nothing


@dataclass(frozen=True)
class ByImage:
    """Brings the channels of an image [H, W, C] to a common range, as float32.

    Attributes:
        by: `image`, mean 0 and standard deviation 1; `window`, those of a square around each pixel; `minmax` and
            `percentile`, 0 to 1.
        window: side of the square in pixels, made odd.
        percentiles: that become 0 and 1.
        spared: [C], channels that stay as they are; none by default.
    """

    by: By
    window: int = 65
    percentiles: tuple[float, float] = (1.0, 99.0)
    spared: tuple[bool, ...] = ()

    def __call__(self, image: np.ndarray, name: str = "") -> np.ndarray:
        """Return [H, W, C] float32; a channel that does not vary becomes 0."""
        made = np.empty(image.shape, np.float32)
        for channel in range(image.shape[2]):
            values = image[:, :, channel]
            spared = bool(self.spared) and self.spared[channel]
            made[:, :, channel] = values if spared else self._brought(values)
        return made

    def _brought(self, values: np.ndarray) -> np.ndarray:
        if self.by == "window":
            return self._around(values)
        known = values[np.isfinite(values)]
        if not known.size:
            return np.full(values.shape, np.nan, np.float32)
        if self.by == "image":
            moments = Moments()
            moments.add(values[:, :, None])
            low, span = float(moments.mean[0]), float(moments.std[0])
        else:
            ends = (0.0, 100.0) if self.by == "minmax" else self.percentiles
            low, high = (float(end) for end in np.percentile(known, ends))
            span = high - low
        if span < _FLAT:
            return np.where(np.isfinite(values), np.float32(0), np.float32(np.nan))
        return np.asarray((values.astype(np.float64) - low) / span, dtype=np.float32)

    def _around(self, values: np.ndarray) -> np.ndarray:
        """Return values less the mean around each, over the standard deviation around it."""
        known = np.isfinite(values)
        if not known.any():
            return np.full(values.shape, np.nan, np.float32)
        middle = float(values[known].mean(dtype=np.float64))  # squares of large numbers would leave nothing
        held = np.where(known, values.astype(np.float64) - middle, 0.0)
        side = (self.window | 1, self.window | 1)

        def sums(array: np.ndarray) -> np.ndarray:
            return np.asarray(
                cv2.boxFilter(array, cv2.CV_64F, side, normalize=False, borderType=cv2.BORDER_REFLECT_101)
            )

        count = np.maximum(sums(known.astype(np.float64)), 1)
        mean = sums(held) / count
        deviation = np.sqrt(np.maximum(sums(held**2) / count - mean**2, 0))
        around = np.where(deviation > _FLAT, (held - mean) / np.maximum(deviation, _FLAT), 0)
        return np.where(known, around, np.nan).astype(np.float32)


class Finished:
    """A reader whose images go through steps of their own before anybody sees them.

    Args:
        reader: decodes a row.
        steps: (image, what it is called) -> image of the same size, in order.
    """

    def __init__(self, reader: Reader, steps: Sequence[Callable[[np.ndarray, str], np.ndarray]]) -> None:
        self._reader, self._steps = reader, list(steps)

    def __call__(self, paths: Sequence[Path]) -> np.ndarray:
        """Return [H, W, C] of a row."""
        return self.finish(self._reader(paths), str(first_path(paths)))

    def size(self, paths: Sequence[Path]) -> tuple[int, int]:
        """Return the height and width of a row."""
        return size_by(self._reader, paths)

    def finish(self, image: np.ndarray, name: str = "an image") -> np.ndarray:
        """Return an image that was not read here, such as an array in memory, as if it were."""
        for step in self._steps:
            image = step(image, name)
        return image
