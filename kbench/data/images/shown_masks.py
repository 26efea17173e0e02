"""Masks through the resizing or the warp of their image: classes take the nearest pixel, numbers are interpolated."""

from __future__ import annotations

from typing import Protocol

import numpy as np

_LEAST = 1e-3  # share of known pixels that a number is the mean of


class Change(Protocol):
    """A resizing or a warp of [H, W, C] pixels, which mixes neighbours or takes the nearest one."""

    def __call__(self, pixels: np.ndarray, /, *, nearest: bool = False) -> np.ndarray:
        """Return the changed pixels, of the same dtype."""


def shown_mask(change: Change, mask: np.ndarray) -> np.ndarray:
    """Return a mask as its image is shown.

    A number is unknown where the nearest pixel is; others are the mean of their known neighbours, weighed as those of
    the image are, so that nothing unknown spreads and nothing known is lost to it.

    Args:
        change: what is done to the image.
        mask: [H, W, M] uint8 classes, or float32 numbers, NaN where unknown.
    """
    if mask.dtype.kind != "f":
        return change(mask, nearest=True)
    known = ~np.isnan(mask)
    if known.all():
        return change(mask)
    shares = change(known.astype(np.float32))
    there = (change(known.astype(np.uint8), nearest=True) == 1) & (shares >= _LEAST)
    sums = change(np.where(known, mask, np.float32(0)))
    return np.asarray(np.divide(sums, shares, out=np.full_like(sums, np.nan), where=there))
