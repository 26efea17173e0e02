"""Images that know the region of each row, and what the pixels of each region are like (rows D-04 and S2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kbench.data.images.cache import Images, name_of
from kbench.data.images.normalise import Moments


class RegionImages:
    """Images of rows that belong to regions.

    Args:
        images: of the rows.
        labels: [N] text, the region of each row.
    """

    def __init__(self, images: Images, labels: Sequence[str]) -> None:
        self._images, self.labels = images, [str(label) for label in labels]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._images[row]

    def name(self, row: int) -> str:
        """Return the path of a row's first image."""
        return name_of(self._images, row)

    def region(self, row: int) -> str:
        """Return the region of a row."""
        return self.labels[row]


def region_of(images: Any, row: int) -> str:
    """Return the region of a row; empty where images know none."""
    region = getattr(images, "region", None)
    return "" if region is None else str(region(row))


def measure_regions(
    parts: Sequence[tuple[RegionImages, np.ndarray]], *, factor: float, rest: tuple[Sequence[float], Sequence[float]]
) -> dict[str, list[list[float]]]:
    """Return region -> [means, standard deviations], each of C channels.

    Args:
        parts: images and those of their rows that count.
        factor: of raw values.
        rest: means and standard deviations of the data set, for channels of which a region knows no pixel.
    """
    regions: dict[str, Moments] = {}
    for images, rows in parts:
        for row in rows:
            regions.setdefault(images.labels[int(row)], Moments()).add(images[int(row)], factor)
    found = {}
    for name, moments in sorted(regions.items()):
        known = np.asarray(moments.count > 0)
        mean, std = np.where(known, moments.mean, rest[0]), np.where(known, np.maximum(moments.std, 1e-6), rest[1])
        found[name] = [mean.tolist(), std.tolist()]
    return found
