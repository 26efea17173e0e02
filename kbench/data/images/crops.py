"""Which part of an image a sample shows (F-08, row S-07), and one warp for crop, zoom, rotation and flips.

A crop is a registered factory; it says how images are resized before (`cover`, `exact`, `keep`: an image's own
resolution) and chooses a window, for which it may look at the row's mask to show what is rare. The window, the
augmentation's rotation, zoom and flips become one affine warp, so every pixel is touched once; without rotation and
zoom the warp is a slice and a flip, exact to the bit. To add a crop type, write a factory here with
`@register("crop")`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import cv2
import numpy as np

from kbench.data.images.readers import resized
from kbench.data.images.shown_masks import shown_mask
from kbench.errors import ConfigError, check_number, nearest
from kbench.registry import register

Size = tuple[int, int]
_LARGE = 4  # an image this many times larger than what is shown of it is cut before it is warped
_STEP = 4  # every so many pixels of a mask are looked at first


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels: its top left corner and its size."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class Crop:
    """A crop type.

    Attributes:
        resize: how images are resized before.
        window: called as `window((H, W), (height, width), rng)`; returns what is shown.
        masked: called instead where a row has a mask, with the [H, W, M] mask for its size; None: nothing changes.
        judged: how images of rows are shown when they are judged: the centre of a covered image, whole, or by a crop
            of its own.
        zoomed: called instead where the augmentation zooms in, as `zoomed((H, W), (height, width), zoom, rng)`, and
            returns the smaller window that is shown larger; None: the middle of the window.
        name: tells crops with the same `resize` apart in what is kept of their images.
    """

    resize: Literal["cover", "exact", "keep"]
    window: Callable[[Size, Size, np.random.Generator], Window]
    masked: Callable[[np.ndarray, Size, np.random.Generator], Window] | None = None
    judged: Literal["centre", "whole"] | Crop = "centre"
    zoomed: Callable[[Size, Size, float, np.random.Generator], Window] | None = None
    name: str = ""


@dataclass(frozen=True)
class Geometry:
    """What an augmentation does to positions.

    Attributes:
        angle: degrees, counter-clockwise.
        zoom: above 0; the window shrinks by it about its centre, or grows where it is below 1. Crops may choose the
            place of the smaller window themselves (`Crop.zoomed`).
        flip: mirror left and right.
        turns: quarter turns, counter-clockwise, after the flip.
    """

    angle: float = 0.0
    zoom: float = 1.0
    flip: bool = False
    turns: int = 0


def centred(image: Size, size: Size) -> Window:
    """Return the centre window."""
    return Window((image[0] - size[0]) // 2, (image[1] - size[1]) // 2, *size)


def anywhere(image: Size, size: Size, rng: np.random.Generator) -> Window:
    """Return a window of the size at a place drawn evenly."""
    top = int(rng.integers(0, max(0, image[0] - size[0]) + 1))
    left = int(rng.integers(0, max(0, image[1] - size[1]) + 1))
    return Window(top, left, *size)


@register("crop")
def random(*, pad: int = 0) -> Crop:
    """Show a window of the size, anywhere in the image (CropType.RANDOM).

    Where the augmentation zooms in, the window is anywhere in the larger image: fast.ai scales first, then crops.

    Args:
        pad: pixels of the image's reflection around it, of what is shown, that windows may reach into (`pad`, F-09).

    Raises:
        ConfigError: `pad` is negative.
    """
    check_number("pad", pad, "[0, 10000]", whole=True)

    def window(image: Size, size: Size, rng: np.random.Generator) -> Window:
        top, left = (int(rng.integers(-pad, max(0, image[axis] - size[axis]) + pad + 1)) for axis in (0, 1))
        return Window(top, left, *size)

    def zoomed(image: Size, size: Size, zoom: float, rng: np.random.Generator) -> Window:
        height, width, reach = size[0] / zoom, size[1] / zoom, pad / zoom
        top = rng.uniform(-reach, max(0.0, image[0] - height) + reach)
        left = rng.uniform(-reach, max(0.0, image[1] - width) + reach)
        return Window(top, left, height, width)

    return Crop("cover", window, zoomed=zoomed)


@register("crop")
def centre() -> Crop:
    """Show the centre (CropType.CENTER)."""
    return Crop("cover", lambda image, size, rng: centred(image, size))


@register("crop")
def squash() -> Crop:
    """Show the whole image, squashed to the size (CropType.NO; for CropType.NOOP see `whole`)."""
    return Crop("exact", lambda image, size, rng: Window(0, 0, *image))


@register("crop")
def googlenet(
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    swap: float = 0.5,
    tries: int = 10,
) -> Crop:
    """Show a window of random area and aspect of the original image (CropType.GOOGLENET).

    Args:
        area: range of the window's share of the image.
        aspect: range of width / height.
        swap: probability that height and width are exchanged.
        tries: draws before the centre is shown instead.

    Raises:
        ConfigError: a value is out of range.
    """
    check_range("area", area, "(0, 1]")
    check_range("aspect", aspect, "(0, inf)")
    check_number("swap", swap, "[0, 1]")
    check_number("tries", tries, "[0, 1000]", whole=True)

    def window(image: Size, size: Size, rng: np.random.Generator) -> Window:
        for _ in range(tries):
            target = rng.uniform(*area) * image[0] * image[1]
            ratio = rng.uniform(*aspect)
            width, height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if rng.random() < swap:
                width, height = height, width
            if 0 < width <= image[1] and 0 < height <= image[0]:
                return anywhere(image, (height, width), rng)
        side = min(image[0] / size[0], image[1] / size[1])
        return centred(image, (max(1, int(size[0] * side)), max(1, int(size[1] * side))))

    return Crop("keep", window)


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


def preferring(crop: Crop, wanted: Sequence[int], count: int, share: float) -> Crop:
    """Return a crop whose window has, in a share of the draws, a pixel of one of some classes, where the mask has one.

    Args:
        crop: says how large a window is, and where it lies in the other draws.
        wanted: class numbers; which comes first is drawn, and one that the mask lacks gives way to the next.
        count: number of classes of the task.
        share: of the draws.
    """

    def masked(mask: np.ndarray, size: Size, rng: np.random.Generator) -> Window:
        image, point = (mask.shape[0], mask.shape[1]), None
        looks = rng.random() < share
        for number in rng.permutation(np.asarray(wanted)).tolist() if looks else ():
            point = _pixel_of(mask, number, count, rng)
            if point is not None:
                break
        window = crop.window(image, size, rng)
        return window if point is None else _placed(image, (int(window.height), int(window.width)), rng, point)

    return replace(crop, masked=masked)


@register("crop")
def whole() -> Crop:
    """Show the whole image, squashed to the size from its own resolution, as rows are judged; one of the size as it is.

    fast.ai's CropType.NO is `squash`, which shows the same from an image that is resized once. CropType.NOOP leaves
    images as they are, which only those of one size can be in a batch: there it is this crop.
    """
    return Crop("keep", lambda image, size, rng: Window(0, 0, *image), judged="whole")


def check_range(name: str, values: tuple[float, float], interval: str) -> None:
    """Hold the lower and the upper end of a parameter's range against an interval; see `check_number`."""
    for value in values:
        check_number(name, value, interval)
    if values[0] > values[1]:
        raise ConfigError(f"{name} is '{list(values)}'", "the lower end first", f"correct `{name}:` in the YAML")


def before_turns(size: Size, geometry: Geometry) -> Size:
    """Return the height and width a window is shown at before the quarter turns."""
    return size if geometry.turns % 2 == 0 else (size[1], size[0])


def warp(image: np.ndarray, window: Window, geometry: Geometry, size: Size, *, nearest: bool = False) -> np.ndarray:
    """Show a window of an image under a geometry.

    An image shown at half its size or less is averaged down first, so that no pixel is skipped.

    Args:
        image: [H, W, C] of any dtype OpenCV warps.
        window: what is shown, before the quarter turns.
        geometry: rotation and zoom about the window's centre, then flip, then quarter turns.
        size: height and width of the result.
        nearest: take the nearest pixel (masks) instead of interpolating; borders are reflected either way.

    Returns:
        [height, width, C], contiguous.
    """
    shape = before_turns(size, geometry)
    if geometry.angle == 0 and geometry.zoom == 1 and _is_slice(window, shape, image):
        top, left = int(window.top), int(window.left)
        shown = image[top : top + shape[0], left : left + shape[1]]
    else:
        shown = _affine(image, window, geometry, shape, nearest=nearest)
    if geometry.flip:
        shown = shown[:, ::-1]
    if geometry.turns % 4:
        shown = np.rot90(shown, geometry.turns % 4)
    return np.ascontiguousarray(shown)


def _is_slice(window: Window, shape: Size, image: np.ndarray) -> bool:
    whole = window.top == int(window.top) and window.left == int(window.left)
    inside = 0 <= window.top <= image.shape[0] - window.height and 0 <= window.left <= image.shape[1] - window.width
    return whole and inside and (window.height, window.width) == shape


def _affine(image: np.ndarray, window: Window, geometry: Geometry, shape: Size, *, nearest: bool) -> np.ndarray:
    height, width = shape
    if not nearest:
        image, window = _averaged(image, window, shape, geometry.zoom)
    radians = math.radians(geometry.angle)
    cos, sin = math.cos(radians), math.sin(radians)
    down = window.height / (height * geometry.zoom)  # source pixels per shown pixel
    across = window.width / (width * geometry.zoom)
    centre_y, centre_x = window.top + (window.height - 1) / 2, window.left + (window.width - 1) / 2
    # shown (x, y) -> source: scale about the shown centre, rotate about the window's centre
    matrix = np.array([[cos * across, -sin * down, 0.0], [sin * across, cos * down, 0.0]])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix[:, 2] = np.array([centre_x, centre_y]) - matrix[:, :2] @ middle
    box, matrix = _touched(image, matrix, shape)
    change = partial(_warped, matrix=matrix, shape=shape)
    return shown_mask(change, box) if box.dtype.kind == "f" and not nearest else change(box, nearest=nearest)


def _touched(image: np.ndarray, matrix: np.ndarray, shape: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of an image that a warp touches, and the warp of it: a window costs what it shows of a scene."""
    places = np.array([[0, shape[1] - 1, 0, shape[1] - 1], [0, 0, shape[0] - 1, shape[0] - 1]])
    corners = matrix[:, :2] @ places + matrix[:, 2:]
    low, high = np.floor(corners.min(1)).astype(int) - 1, np.ceil(corners.max(1)).astype(int) + 2
    left, right = _with_reflection(int(low[0]), int(high[0]), image.shape[1])
    top, bottom = _with_reflection(int(low[1]), int(high[1]), image.shape[0])
    if (bottom - top) * (right - left) * _LARGE > image.shape[0] * image.shape[1]:
        return image, matrix
    moved = matrix.copy()
    moved[:, 2] -= (left, top)
    return image[top:bottom, left:right], moved


def _with_reflection(first: int, end: int, side: int) -> tuple[int, int]:
    """Return the range of an axis that holds some pixels, those outside as their reflection at the border."""
    before, behind = max(0, -first), max(0, end - side)
    if max(before, behind) >= side - 1 or end <= 1 or first >= side - 1:
        return 0, side
    begin, stop = max(0, first), min(side, end)
    if before:
        stop = max(stop, min(side, before + 1))
    if behind:
        begin = min(begin, max(0, side - 1 - behind))
    return begin, stop


def _warped(image: np.ndarray, *, matrix: np.ndarray, shape: Size, nearest: bool = False) -> np.ndarray:
    height, width = shape
    flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    warped = [
        cv2.warpAffine(
            image[:, :, first : first + 4], matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )
        for first in range(0, image.shape[2], 4)  # OpenCV warps at most four channels at once
    ]
    return np.concatenate([part.reshape(height, width, -1) for part in warped], axis=2)


def _averaged(image: np.ndarray, window: Window, shape: Size, zoom: float) -> tuple[np.ndarray, Window]:
    """Return the image averaged down by a whole factor, and the window in it."""
    factor = int(min(window.height / shape[0], window.width / shape[1]) / zoom)
    if factor < 2:
        return image, window
    size = (-(-image.shape[0] // factor), -(-image.shape[1] // factor))
    down, across = size[0] / image.shape[0], size[1] / image.shape[1]
    scaled = Window(window.top * down, window.left * across, window.height * down, window.width * across)
    return resized(image, size), scaled


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
        pixels = np.flatnonzero(mask[::step, ::step, layer] == value)
        if len(pixels):
            place = int(pixels[rng.integers(len(pixels))])
            across = -(-mask.shape[1] // step)
            return place // across * step, place % across * step
    return None
