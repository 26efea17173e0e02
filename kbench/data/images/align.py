"""Files of a row that lie some pixels off one another are moved onto the first one (row D-02).

Each file is registered to another one along a graph (DSTL: M and A to P, P to RGB) by OpenCV's ECC, from a coarse scale
to the full one, and shifts are added up along it. What ECC says is held against the largest shift there may be and
against the gain in correlation: it converges on nonsense without an error. An answer that is not believed is no shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from kbench import console
from kbench.data.images.channels import Channel
from kbench.data.images.shown_masks import shown_mask

_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 500, 1e-7)
_SMALLEST = 64  # pixels of the coarsest image's shorter side
_WIDEST = 1536  # pixels of the finest: a middle part of a larger scene tells its shift as well
_SMOOTH, _SMOOTH_FINE = 5, 3  # pixels of the Gaussian ECC blurs with
_ENOUGH = 400_000  # pixels that bands are weighed by
_NUDGE = 8.0  # pixels that weighing bands may change a shift by


class Shift(NamedTuple):
    """Where the content of a file lies, in pixels right and down of where it should."""

    x: float
    y: float


NONE = Shift(0.0, 0.0)


@dataclass(frozen=True)
class Found:
    """What registering one file says.

    Attributes:
        file: name of the file.
        to: the file it is registered to.
        shift: of the file, off the one all are brought to.
        gain: in correlation.
        why: in words, where the answer was not believed; empty where it was.
    """

    file: str
    to: str
    shift: Shift
    gain: float
    why: str = ""


def grey(bands: np.ndarray) -> np.ndarray:
    """Return [H, W] float32, the mean of the bands [H, W, C], each from its 1st to its 99th percentile 0 to 1."""
    layers = []
    for place in range(bands.shape[2]):
        band = bands[:, :, place].astype(np.float32)
        known = np.isfinite(band)
        if not known.any():
            continue
        low, high = np.percentile(band[known][:: max(1, band.size // 500_000)], (1, 99))
        stretched = np.clip((band - low) / max(float(high - low), 1e-6), 0, 1)
        layers.append(np.where(known, stretched, np.float32(stretched[known].mean())))
    return np.asarray(np.mean(layers, axis=0), dtype=np.float32) if layers else np.zeros(bands.shape[:2], np.float32)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two images [H, W]; 0 where one of them does not vary."""
    first, second = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / norm if norm > 1e-9 else 0.0


def registered(target: np.ndarray, moving: np.ndarray, *, largest: float, gain: float) -> tuple[Shift, float, str]:
    """Return how far the content of an image lies off that of another one.

    Args:
        target: [H, W] float32.
        moving: [H, W] float32.
        largest: shift that is believed, in pixels.
        gain: in correlation, that an answer must bring.

    Returns:
        The shift, the gain, and in words why it is not believed, with no shift; empty where it is.
    """
    target, moving = (_middle(image) for image in (target, moving))
    shift = np.zeros(2)
    scale = 1.0
    while min(target.shape) * scale / 2 >= _SMALLEST and scale > 1 / 16:
        scale /= 2
    while scale <= 1 and np.hypot(*shift) <= 2 * largest:  # not where it is NaN
        small = [_scaled(image, scale) for image in (target, moving)]
        shift = _ecc(small[0], small[1], Shift(*(shift * scale)), _SMOOTH) / scale
        scale *= 2
    if not np.isfinite(shift).all():
        return NONE, 0.0, "ECC does not converge"
    if np.hypot(*shift) > largest:
        return NONE, 0.0, f"ECC says {np.hypot(*shift):.1f} px, more than the {largest:g} that are believed"
    inner = [_inner(image, largest) for image in (target, moving, moved(moving[:, :, None], Shift(*shift))[:, :, 0])]
    more = correlation(inner[0], inner[2]) - correlation(inner[0], inner[1])
    if more < gain and np.hypot(*shift) > 0.05:
        return NONE, more, f"correlation changes by {more:+.3f}, less than {gain:g}"
    return Shift(float(shift[0]), float(shift[1])), more, ""


def refined(target: np.ndarray, bands: np.ndarray, shift: Shift) -> Shift:
    """Return a shift that is held against the sum of bands which is most like the target, by least squares.

    Args:
        target: [H, W] float32.
        bands: [H, W, C] of several bands.
        shift: where they lie by their mean.
    """
    target = _middle(target)
    layers = np.stack([_middle(grey(bands[:, :, [place]])) for place in range(bands.shape[2])], axis=2)
    step = max(1, target.size // _ENOUGH)
    placed = moved(layers, shift).reshape(-1, bands.shape[2])[::step]
    weights = np.linalg.lstsq(np.c_[placed, np.ones(len(placed))], target.reshape(-1)[::step], rcond=None)[0]
    mixed = np.ascontiguousarray(layers @ weights[:-1], dtype=np.float32)
    better = Shift(*_ecc(target, mixed, shift, _SMOOTH_FINE).tolist())
    near = np.hypot(better.x - shift.x, better.y - shift.y) <= _NUDGE  # not where they are NaN
    return better if near else shift


def _ecc(target: np.ndarray, moving: np.ndarray, begin: Shift, smooth: int) -> np.ndarray:
    """Return [2] float64, the shift ECC ends at; NaN where it does not converge."""
    warp = np.array([[1, 0, begin.x], [0, 1, begin.y]], dtype=np.float32)
    every = np.full(target.shape, 255, np.uint8)
    try:
        _, found = cv2.findTransformECC(target, moving, warp, cv2.MOTION_TRANSLATION, _STEPS, every, smooth)
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return np.full(2, np.nan)
    return np.asarray(found, dtype=np.float64)[:, 2]


def _middle(image: np.ndarray) -> np.ndarray:
    top, left = (max(0, (side - _WIDEST) // 2) for side in image.shape)
    return np.ascontiguousarray(image[top : top + _WIDEST, left : left + _WIDEST])


def _scaled(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return image
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _inner(image: np.ndarray, margin: float) -> np.ndarray:
    cut = min(int(np.ceil(margin)), min(image.shape) // 4)
    return image[cut : image.shape[0] - cut, cut : image.shape[1] - cut]


def moved(pixels: np.ndarray, shift: Shift) -> np.ndarray:
    """Return [H, W, C] whose content is moved back by a shift, cubic; NaN where floating-point pixels have none."""
    matrix = np.array([[1, 0, shift.x], [0, 1, shift.y]], dtype=np.float64)
    height, width = pixels.shape[:2]

    def change(some: np.ndarray, /, *, nearest: bool = False) -> np.ndarray:
        flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP
        parts = [
            cv2.warpAffine(some[:, :, first : first + 4], matrix, (width, height), flags=flags,
                           borderMode=cv2.BORDER_REPLICATE).reshape(height, width, -1)
            for first in range(0, some.shape[2], 4)
        ]  # fmt: skip
        return np.concatenate(parts, axis=2)

    return shown_mask(change, pixels) if pixels.dtype.kind == "f" else change(pixels)


class Aligning:
    """Moves the files of an image onto one of them, each date by itself.

    Args:
        channels: of the image, in order.
        to: the file that stays.
        graph: file -> the file it is registered to; all paths end at `to`.
        largest: shift that is believed, in pixels of the image.
        gain: in correlation, that an answer must bring.
    """

    def __init__(
        self, channels: Sequence[Channel], to: str, graph: Mapping[str, str], *, largest: float, gain: float
    ) -> None:
        self._channels, self._to, self._graph = list(channels), to, dict(graph)
        self._largest, self._gain = largest, gain

    def __call__(self, image: np.ndarray, name: str = "an image") -> np.ndarray:
        """Return an image [H, W, C] of floating point, its files moved; NaN where they have no pixels then.

        A file that is not moved, as no answer is believed, is said.
        """
        made = image.copy()
        for date in dict.fromkeys(channel.date for channel in self._channels):
            for found in self.shifts(image, date):
                places = self._places(found.file, date)
                if found.why:
                    console.warn(f"'{name}': the file {found.file} stays where it is: {found.why}")
                if found.shift != NONE:
                    made[:, :, places] = self._uncovered(moved(image[:, :, places], found.shift), found.shift)
        return made

    def shifts(self, image: np.ndarray, date: str | None = None) -> list[Found]:
        """Return what is found of each file of a date that is moved, files before those registered to them."""
        known: dict[str, Shift] = {self._to: NONE}
        layers = {name: grey(image[:, :, self._places(name, date)]) for name in {self._to, *self._graph}
                  if self._places(name, date)}  # fmt: skip
        answers = []
        for name in ordered(self._graph, self._to):
            parent = self._graph[name]
            if name not in layers or parent not in layers:
                continue
            shift, gain, why = registered(layers[parent], layers[name], largest=self._largest, gain=self._gain)
            base = known.get(parent, NONE)
            known[name] = Shift(base.x + shift.x, base.y + shift.y) if not why else NONE
            bands = image[:, :, self._places(name, date)]
            if not why and bands.shape[2] > 1 and self._to in layers:
                known[name] = refined(layers[self._to], bands, known[name])
            answers.append(Found(name, parent, known[name], gain, why))
        return answers

    def _places(self, name: str, date: str | None) -> list[int]:
        return [place for place, channel in enumerate(self._channels) if channel.file == name and channel.date == date]

    def _uncovered(self, pixels: np.ndarray, shift: Shift) -> np.ndarray:
        height, width = pixels.shape[:2]
        ys, xs = np.arange(height) + shift.y, np.arange(width) + shift.x
        pixels[(ys < -0.5) | (ys > height - 0.5)] = np.nan
        pixels[:, (xs < -0.5) | (xs > width - 0.5)] = np.nan
        return pixels


def ordered(graph: Mapping[str, str], to: str) -> list[str]:
    """Return the files of a graph, each behind the one it is registered to; those that lead nowhere are left out."""
    names, done = list[str](), {to}
    while True:
        ready = [name for name, parent in graph.items() if parent in done and name not in done]
        if not ready:
            return names
        names += ready
        done |= set(ready)
