"""From the grid of one raster to that of another: whole extents or georeferenced places onto one another.

A grid is where the pixels of a file lie. A map between two grids is of corner coordinates, so that it holds for pixels
of any size: the centre of pixel 0 is at 0.5. Upwards pixels are interpolated (cubic), downwards they are averaged by
the area they share. What is unknown (NaN) takes no part; what lies outside of a file is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from kbench.data.images.shown_masks import shown_mask

_NEAR = 1e-3  # of a pixel: grids this near are one


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie.

    Attributes:
        height: pixels.
        width: pixels.
        transform: (a, b, c, d, e, f): corner (x, y) of a pixel lies at (a x + b y + c, d x + e y + f); None where the
            file does not say.
        crs: coordinate reference system as text; empty where the file does not say.
    """

    height: int
    width: int
    transform: tuple[float, ...] | None = None
    crs: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def matrix(self) -> np.ndarray:
        """The transform as [3, 3]."""
        assert self.transform is not None, "asked only of georeferenced grids"
        return np.array([self.transform[:3], self.transform[3:6], (0.0, 0.0, 1.0)])


def between(target: Grid, source: Grid) -> np.ndarray:
    """Return [3, 3] from corner coordinates of a target grid to those of a source grid of the same reference system.

    By their georeference where both have one, else by their sizes: whole extent onto whole extent.
    """
    if target.transform is not None and source.transform is not None:
        return np.asarray(np.linalg.inv(source.matrix) @ target.matrix)
    return np.diag([source.width / target.width, source.height / target.height, 1.0])


def covered(matrix: np.ndarray, target: tuple[int, int], source: tuple[int, int]) -> np.ndarray:
    """Return [H, W] bool, which pixels of a target grid have their centre inside of a source."""
    xs, ys = np.meshgrid(np.arange(target[1]) + 0.5, np.arange(target[0]) + 0.5, sparse=True)
    across = matrix[0, 0] * xs + matrix[0, 1] * ys + matrix[0, 2]
    down = matrix[1, 0] * xs + matrix[1, 1] * ys + matrix[1, 2]
    inside = (across > -_NEAR) & (across < source[1] + _NEAR) & (down > -_NEAR) & (down < source[0] + _NEAR)
    return np.asarray(inside)


def onto(pixels: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring pixels onto a target grid.

    Args:
        pixels: [h, w, C] of a dtype OpenCV warps; of floating point NaN where unknown.
        matrix: [3, 3] of `between`.
        size: height and width of the target.

    Returns:
        [H, W, C] of the same dtype. What lies outside continues the border: `covered` tells it.
    """
    turned = abs(matrix[0, 1]) + abs(matrix[1, 0]) > 1e-9
    if not turned and pixels.shape[:2] == size and _is_shift(matrix, (0, 0)):
        return pixels
    change: Callable[..., np.ndarray]
    if turned or min(abs(matrix[0, 0]), abs(matrix[1, 1])) < 1 + 1e-9:
        change = _Interpolated(matrix, size)
    else:
        change = _Averaged(matrix, size)
    return shown_mask(change, pixels) if pixels.dtype.kind == "f" else change(pixels)


def _is_shift(matrix: np.ndarray, offset: tuple[float, float]) -> bool:
    same = abs(matrix[0, 0] - 1) < 1e-7 and abs(matrix[1, 1] - 1) < 1e-7
    return bool(same and np.all(np.abs(matrix[:2, 2] - offset) < _NEAR))


@dataclass(frozen=True)
class _Interpolated:
    """Cubic interpolation at the centres of the target's pixels, or the nearest pixel."""

    matrix: np.ndarray
    size: tuple[int, int]

    def __call__(self, pixels: np.ndarray, /, *, nearest: bool = False) -> np.ndarray:
        whole = np.diag([pixels.shape[1] / self.size[1], pixels.shape[0] / self.size[0], 1.0])
        extents = bool(np.abs(self.matrix - whole).max() < 1e-9)
        rounded = np.rint(self.matrix[:2, 2])
        if _is_shift(self.matrix, (rounded[0], rounded[1])):
            return _moved(pixels, int(rounded[1]), int(rounded[0]), self.size)
        parts = [
            self._resized(part, nearest) if extents else self._warped(part, nearest)
            for part in (pixels[:, :, first : first + 4] for first in range(0, pixels.shape[2], 4))
        ]
        return np.concatenate([part.reshape(*self.size, -1) for part in parts], axis=2)

    def _resized(self, part: np.ndarray, nearest: bool) -> np.ndarray:
        flag = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_CUBIC
        return cv2.resize(part, self.size[::-1], interpolation=flag)

    def _warped(self, part: np.ndarray, nearest: bool) -> np.ndarray:
        centres = self.matrix[:2].copy()
        centres[:, 2] += 0.5 * (centres[:, 0] + centres[:, 1]) - 0.5
        flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(part, centres, self.size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _moved(pixels: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Return pixels that begin at a corner, the border continued."""
    rows = np.clip(np.arange(top, top + size[0]), 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(left, left + size[1]), 0, pixels.shape[1] - 1)
    return np.ascontiguousarray(pixels[rows][:, columns])


@dataclass(frozen=True)
class _Averaged:
    """The mean of the area each of the target's pixels covers, or the pixel at its centre."""

    matrix: np.ndarray
    size: tuple[int, int]

    def __call__(self, pixels: np.ndarray, /, *, nearest: bool = False) -> np.ndarray:
        made = pixels if nearest else pixels.astype(np.float64)
        for axis, (scale, offset, count) in enumerate((
            (self.matrix[1, 1], self.matrix[1, 2], self.size[0]), (self.matrix[0, 0], self.matrix[0, 2], self.size[1])
        )):  # fmt: skip
            edges = offset + scale * np.arange(count + 1)
            if nearest:
                centres = np.floor((edges[:-1] + edges[1:]) / 2).astype(int)
                made = np.take(made, np.clip(centres, 0, made.shape[axis] - 1), axis=axis)
            else:
                made = _means(made, edges, axis)
        if pixels.dtype.kind in "iu" and not nearest:
            made = np.rint(made)
        return np.ascontiguousarray(made.astype(pixels.dtype))


def _means(values: np.ndarray, edges: np.ndarray, axis: int) -> np.ndarray:
    """Return the means of values between edges, in pixels along an axis; what lies outside has no part."""
    values = np.moveaxis(values, axis, 0)
    count = len(values)
    total = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
    held = np.clip(edges, 0, count)
    below = np.minimum(held.astype(int), count - 1)
    part = (held - below).reshape(-1, *[1] * (values.ndim - 1))
    sums = total[below] + part * values[below]
    widths = np.abs(np.diff(held))
    outside = np.where((edges[:-1] + edges[1:]) / 2 < 0, 0, count - 1)
    shape = (-1, *[1] * (values.ndim - 1))
    means = np.diff(sums, axis=0) * np.sign(np.diff(held)).reshape(shape) / np.maximum(widths, 1e-12).reshape(shape)
    made = np.where((widths > 1e-9).reshape(shape), means, values[outside])
    return np.moveaxis(made, 0, axis)
