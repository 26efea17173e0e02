"""Whole dates or files of a training image are left out, as they may be missing in what is predicted (row B-10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kbench.data.images.channels import Channel

Axis = Literal["date", "file"]


@dataclass(frozen=True)
class Dropout:
    """Makes dates, or files, of an image unknown.

    Attributes:
        groups: places of the channels that go together; channels without a date never go by dates.
        p: probability that an image is changed.
        each: probability that each group is left out then; drawn anew until one that is there stays.
    """

    groups: tuple[tuple[int, ...], ...]
    p: float
    each: float

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return [H, W, C] of floating point with NaN where a group is left out."""
        if rng.random() >= self.p or len(self.groups) < 2:
            return image
        there = np.array([bool(np.isfinite(image[:, :, list(group)]).any()) for group in self.groups])
        gone = rng.random(len(self.groups)) < self.each
        while there.any() and not (there & ~gone).any():
            gone = rng.random(len(self.groups)) < self.each
        if not gone.any():
            return image
        made = image.copy()
        made[:, :, [place for group, out in zip(self.groups, gone, strict=True) if out for place in group]] = np.nan
        return made


def dropout_of(channels: Sequence[Channel], axis: Axis, p: float, each: float) -> Dropout:
    """Return what leaves out dates, or files, of images.

    Args:
        channels: of an image, in order.
        axis: what is left out at once.
        p: see `Dropout`.
        each: likewise.
    """
    places: dict[str, list[int]] = {}
    for place, channel in enumerate(channels):
        key = channel.date if axis == "date" else channel.file
        if key is not None:
            places.setdefault(key, []).append(place)
    return Dropout(tuple(map(tuple, places.values())), p, each)
