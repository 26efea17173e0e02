"""Crops that keep an image's own resolution: a window of it, or all of it (row S-07; CropType.NOOP of F-08).

A crop may look at the row's mask to show what is rare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kbench.data.crops import Crop, Size, Window, anywhere, centred, check_range
from kbench.errors import ConfigError, check_number, nearest
from kbench.registry import register

_STEP = 4  # every so many pixels of a mask are looked at first


@register("crop")
def native(
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    classes: list[str] | None = None,
    prefer: float = 0.5,
    _names: Sequence[str] = (),
) -> Crop:
    """Show a window of the size at the image's own resolution, anywhere in it.

    An image smaller than the window is shown whole in the centre, with its reflection around; one of the size as it
    is, which is fast.ai's CropType.NOOP. A row is judged on the centre, at the middle of the scales.

    Args:
        scale: range of the factor the window is shown larger by.
        classes: show these where the mask has them, each as often as the others.
        prefer: probability that a window is chosen for a class of `classes`.
        _names: the competition's classes.

    Raises:
        ConfigError: a value is out of range, or a class is not there.
    """
    check_range("scale", scale, "[0.01, 100]")
    check_number("prefer", prefer, "[0, 1]")
    strange = [name for name in classes or () if name not in _names]
    if strange:
        raise ConfigError(
            f"the crop 'native' is to show the class '{strange[0]}'", "names of data.classes",
            f"{nearest(strange[0], _names)} Correct `crop.classes`, or write data.classes",
        )  # fmt: skip
    wanted = [list(_names).index(name) for name in classes or ()]

    def size_of(size: Size, rng: np.random.Generator) -> Size:
        factor = rng.uniform(*scale) if scale[0] < scale[1] else scale[0]
        return _shrunk(size, factor)

    def window(image: Size, size: Size, rng: np.random.Generator) -> Window:
        return _placed(image, size_of(size, rng), rng, None)

    def masked(mask: np.ndarray, size: Size, rng: np.random.Generator) -> Window:
        shown = size_of(size, rng)
        point = None
        if rng.random() < prefer:
            point = _pixel_of(mask, wanted[int(rng.integers(len(wanted)))], len(_names), rng)
        return _placed((mask.shape[0], mask.shape[1]), shown, rng, point)

    middle = (scale[0] * scale[1]) ** 0.5
    judged = Crop("keep", lambda image, size, rng: centred(image, _shrunk(size, middle)), name=f"native {middle:g}")
    return Crop("keep", window, masked if wanted else None, judged)


@register("crop")
def whole() -> Crop:
    """Show the whole image, squashed to the size from its own resolution, as rows are judged; one of the size as it is.

    fast.ai's CropType.NO is `squash`, which shows the same from an image that is resized once. CropType.NOOP leaves
    images as they are, which only those of one size can be in a batch: there it is this crop.
    """
    return Crop("keep", lambda image, size, rng: Window(0, 0, *image), judged="whole")


def _shrunk(size: Size, factor: float) -> Size:
    return (max(1, round(size[0] / factor)), max(1, round(size[1] / factor)))


def _placed(image: Size, size: Size, rng: np.random.Generator, point: tuple[int, int] | None) -> Window:
    """Return a window of the size, around a pixel if one is given; what does not fit is centred."""
    if point is None:
        drawn = anywhere(image, size, rng)
        top, left = drawn.top, drawn.left
    else:
        top, left = (
            int(np.clip(pixel - rng.integers(0, side), 0, max(0, whole - side)))
            for pixel, side, whole in zip(point, size, image, strict=True)
        )
    middle = centred(image, size)
    return Window(middle.top if size[0] > image[0] else top, middle.left if size[1] > image[1] else left, *size)


def _pixel_of(mask: np.ndarray, number: int, count: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Return a pixel of a class, or None where the mask has none of it."""
    layer, value = (0, 1 if count == 1 else number) if mask.shape[2] == 1 else (number, 1)
    for step in (_STEP, 1):
        found = np.flatnonzero(mask[::step, ::step, layer] == value)
        if len(found):
            place = int(found[rng.integers(len(found))])
            across = -(-mask.shape[1] // step)
            return place // across * step, place % across * step
    return None
