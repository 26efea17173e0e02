"""The strong preset for dense tasks: what may happen to an image together with its mask (row S-17).

Positions change by the one warp of the crop, of image and mask alike; values change in the image alone. Where a piece
is cut out, the mask is ignored: nobody can know what was there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from kbench.data.augment import Augmentation, Mask, Pixels, as_dtype
from kbench.data.crops import Geometry, check_range
from kbench.errors import check_number
from kbench.registry import register
from kbench.tasks import IGNORED

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@register("augmentation")
def strong(
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    rotate: float = 15.0,
    turns: bool = False,
    light: float = 0.2,
    colour: float = 0.2,
    gamma: float = 0.3,
    blur: float = 1.5,
    noise: float = 0.04,
    cutout: float = 0.3,
    prob: float = 0.5,
) -> Augmentation:
    """Mirror, scale, rotate, change light, colour and sharpness, and cut a piece out.

    Args:
        scale: range of the factor things are shown larger by; what lies outside of the image is its reflection.
        rotate: largest angle in degrees.
        turns: whether quarter turns and upside-down images are possible: images seen from above.
        light: largest change of brightness and contrast, of a range of 1.
        colour: largest change of saturation and of each channel's gain.
        gamma: largest logarithm of the exponent.
        blur: largest standard deviation of a Gaussian, in pixels of the shown image.
        noise: largest standard deviation of noise, of a range of 1.
        cutout: largest side of the piece that is cut out, as a share of the image's; its mask is ignored.
        prob: probability of each of these; the mirror's is 1/2. Blur, noise and cutout happen half as often.

    Raises:
        ConfigError: a value is out of range.
    """
    check_range("scale", scale, "[0.05, 20]")
    check_number("rotate", rotate, "[0, 180]")
    for name, value in (("light", light), ("colour", colour), ("noise", noise), ("cutout", cutout), ("prob", prob)):
        check_number(name, value, "[0, 1]")
    check_number("gamma", gamma, "[0, 3]")
    check_number("blur", blur, "[0, 100]")

    def geometry(rng: np.random.Generator) -> Geometry:
        factor = math.exp(rng.uniform(math.log(scale[0]), math.log(scale[1]))) if rng.random() < prob else 1.0
        angle = float(rng.uniform(-rotate, rotate)) if rng.random() < prob else 0.0
        return Geometry(angle, factor, bool(rng.random() < 0.5), int(rng.integers(0, 4)) if turns else 0)

    changes = [(_lit(light), prob), (_tinted(colour), prob), (_curved(gamma), prob),
               (_blurred(blur), prob / 2), (_noisy(noise), prob / 2)]  # fmt: skip
    return Augmentation(geometry, _pixels(changes, cutout, prob / 2))


def _pixels(changes: list[tuple[Change, float]], cutout: float, often: float) -> Pixels:
    def pixels(image: np.ndarray, mask: Mask, rng: np.random.Generator) -> tuple[np.ndarray, Mask]:
        chosen = [change for change, probability in changes if rng.random() < probability]
        made = image
        if chosen:
            low, span = (0.0, 255.0) if image.dtype == np.uint8 else (float(image.min()), float(np.ptp(image)) or 1.0)
            values = (image.astype(np.float32) - low) / span
            for change in chosen:
                values = change(values, rng).reshape(image.shape)
            made = as_dtype(values * span + low, image.dtype)
        if cutout > 0 and rng.random() < often:
            return _cut_out(made, mask, cutout, rng)
        return made, mask

    return pixels


def _lit(light: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mean = np.float32(values.mean())
        factor, shift = 1 + rng.uniform(-light, light), rng.uniform(-light, light)
        return np.asarray((values - mean) * np.float32(factor) + mean + np.float32(shift))

    return change


def _tinted(colour: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        channels = values.shape[2]
        if channels == 3:
            grey = (values @ _LUMA)[:, :, None]
            values = grey + (values - grey) * np.float32(1 + rng.uniform(-colour, colour))
        return np.asarray(values * np.asarray(rng.uniform(1 - colour / 2, 1 + colour / 2, channels), dtype=np.float32))

    return change


def _curved(gamma: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(np.clip(values, 0, 1) ** np.float32(math.exp(rng.uniform(-gamma, gamma))))

    return change


def _blurred(blur: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sigma = rng.uniform(0, blur)
        return values if sigma < 0.1 else np.asarray(cv2.GaussianBlur(values, (0, 0), sigma))

    return change


def _noisy(noise: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        grain = rng.standard_normal(values.shape, dtype=np.float32)
        return np.asarray(values + grain * np.float32(rng.uniform(0, noise)))

    return change


def _cut_out(image: np.ndarray, mask: Mask, largest: float, rng: np.random.Generator) -> tuple[np.ndarray, Mask]:
    """Return the image with a rectangle of its mean colour, and the mask with the rectangle ignored."""
    height, width = image.shape[:2]
    sides = [max(1, round(rng.uniform(0.1, 1) * largest * side)) for side in (height, width)]
    top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip((height, width), sides, strict=True))
    place = (slice(top, top + sides[0]), slice(left, left + sides[1]))
    image = image.copy()
    image[place] = as_dtype(image.mean(axis=(0, 1)), image.dtype)
    if mask is None:
        return image, None
    mask = mask.copy()
    mask[place] = IGNORED if mask.dtype == np.uint8 else np.nan
    return image, mask
