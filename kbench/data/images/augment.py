"""Augmentations: what may happen to a training image without changing its target.

An augmentation is a registered factory. It has two parts: `geometry(rng)` draws rotation, zoom, flip and turns, which
become one warp together with the crop, the same for every image and mask of a row; `pixels(image, mask, rng)` changes
values, of the image alone; where it cuts a piece out, the mask is ignored: nobody can know what was there. `basic`,
`side_on` and `top_down` are the lesson's (F-07, F-09), `strong` is for dense tasks (row S-17); `pipeline` takes any
Albumentations transforms written in the YAML. To add a preset, write a factory here with `@register("augmentation")`.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np

from kbench.data.images.crops import Geometry, check_range
from kbench.errors import ConfigError, DataError, check_number, nearest
from kbench.registry import register
from kbench.tasks import IGNORED

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its version check asks the network on import

Mask = np.ndarray | None
Draw = Callable[[np.random.Generator], Geometry]
Pixels = Callable[[np.ndarray, Mask, np.random.Generator], tuple[np.ndarray, Mask]]
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """Two draws per sample, either of which may be missing.

    Attributes:
        geometry: draws what happens to positions.
        pixels: changes the shown [H, W, C] image (and its [H, W, 1] mask).
    """

    geometry: Draw | None = None
    pixels: Pixels | None = None


NO_AUGMENTATION = Augmentation()


class Change(Protocol):
    """What may happen to values of a range of 1; of bands, to those of each by itself."""

    def __call__(self, values: np.ndarray, rng: np.random.Generator, *, photograph: bool) -> np.ndarray:
        """Return [H, W, C] float32 changed; what is not finite stays where it is."""


@register("augmentation")
def none() -> Augmentation:
    """Leave images as they are."""
    return NO_AUGMENTATION


@register("augmentation")
def basic(
    *, rotate: float = 10.0, light: float = 0.05, contrast: float = 0.05, zoom: float = 1.0, prob: float = 0.75
) -> Augmentation:
    """Rotate a little and change the light (transforms_basic, F-07).

    Args:
        rotate: largest angle in degrees.
        light: largest change of brightness, of a range of 1; of bands, of the range of each.
        contrast: largest change of contrast.
        zoom: largest zoom (max_zoom, F-09); of which part, the crop says: `random` shows any.
        prob: probability of the rotation and of the zoom.

    Raises:
        ConfigError: a value is out of range.
    """
    return Augmentation(_mild(rotate, zoom, prob), _lighting(light, contrast))


@register("augmentation")
def side_on(
    *, rotate: float = 10.0, light: float = 0.05, contrast: float = 0.05, zoom: float = 1.1, prob: float = 0.75
) -> Augmentation:
    """`basic` and a mirror with probability 1/2: photographs taken from the side (transforms_side_on, F-07)."""
    return Augmentation(_mirrored(_mild(rotate, zoom, prob), turns=False), _lighting(light, contrast))


@register("augmentation")
def top_down(
    *, rotate: float = 10.0, light: float = 0.05, contrast: float = 0.05, zoom: float = 1.05, prob: float = 0.75
) -> Augmentation:
    """`basic` and one of the square's 8 symmetries: images seen from above (transforms_top_down, F-07)."""
    return Augmentation(_mirrored(_mild(rotate, zoom, prob), turns=True), _lighting(light, contrast))


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
        light: largest change of brightness and contrast, of a range of 1; of bands, of the range of each.
        colour: largest change of saturation and of each channel's gain.
        gamma: largest logarithm of the exponent.
        blur: largest standard deviation of a Gaussian, in pixels of the shown image.
        noise: largest standard deviation of noise, of a range of 1; of bands, of the range of each.
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


@register("augmentation")
def pipeline(*, transforms: Sequence[dict[str, Any] | str]) -> Augmentation:
    """Apply Albumentations transforms, in order.

    Args:
        transforms: each a class name of Albumentations, or `{name: Rotate, limit: 30, p: 0.5}`; `{name: OneOf,
            transforms: [...]}` and its like hold others. What comes into an image from outside is unknown to its mask.
    """
    names = [{"name": item} if isinstance(item, str) else dict(item) for item in transforms]
    composed: dict[float, Any] = {}  # made on first use, in the process that uses it

    def pixels(image: np.ndarray, mask: Mask, rng: np.random.Generator) -> tuple[np.ndarray, Mask]:
        fill = math.nan if mask is not None and mask.dtype.kind == "f" else float(IGNORED)
        kind = 0.0 if math.isnan(fill) else fill
        if kind not in composed:
            composed[kind] = _compose(names, fill)
        compose = composed[kind]
        compose.set_random_seed(int(rng.integers(0, 2**31)))
        arrays = {"image": image.copy()} if mask is None else {"image": image.copy(), "mask": mask.copy()}
        try:
            result = compose(**arrays)
        except Exception as error:  # a transform may dislike a number of channels or a dtype in any way
            raise DataError(
                f"the transforms {_names(names)} fail on an image of {image.shape} {image.dtype}: {error}",
                "transforms that take such images",
                "remove the transform from `augment:`",
            ) from error
        return _like(image, result["image"], names), None if mask is None else _like(mask, result["mask"], names)

    _compose(names, IGNORED)  # names and parameters are checked when the part is built
    return Augmentation(None, pixels)


def _mirrored(mild: Draw, *, turns: bool) -> Draw:
    def geometry(rng: np.random.Generator) -> Geometry:
        return replace(mild(rng), flip=bool(rng.random() < 0.5), turns=int(rng.integers(0, 4)) if turns else 0)

    return geometry


def _mild(rotate: float, zoom: float, prob: float) -> Draw:
    check_number("rotate", rotate, "[0, 180]")
    check_number("zoom", zoom, "[1, 100]")
    check_number("prob", prob, "[0, 1]")

    def geometry(rng: np.random.Generator) -> Geometry:
        angle = float(rng.uniform(-rotate, rotate)) if rng.random() < prob else 0.0
        factor = float(rng.uniform(1.0, zoom)) if rng.random() < prob else 1.0
        return Geometry(angle, factor)

    return geometry


def _lighting(light: float, contrast: float) -> Pixels | None:
    """Return the lesson's RandomLighting: (x - mean) * factor + mean + beta, clipped to the range (F-09).

    The range of photographs is 0..255. Bands have neither a common range nor a common meaning: each is changed about
    its own mean, `beta` is a share of its own range, and only what the dtype cannot hold is clipped.
    """
    check_number("light", light, "[0, 1]")
    check_number("contrast", contrast, "[0, 100]")
    if light == 0 and contrast == 0:
        return None

    def pixels(image: np.ndarray, mask: Mask, rng: np.random.Generator) -> tuple[np.ndarray, Mask]:
        beta = float(rng.uniform(-light, light))
        drawn = float(rng.uniform(-contrast, contrast))
        factor = drawn + 1 if drawn >= 0 else -1 / (drawn - 1)
        if is_photograph(image):
            mean = float(cv2.mean(image.reshape(-1, 1))[0])
            shift = mean * (1 - factor) + beta * 255
            table = np.clip(np.arange(256, dtype=np.float32) * factor + shift + 0.5, 0, 255).astype(np.uint8)
            return cv2.LUT(image, table).reshape(image.shape), mask
        each, (_, span) = means(image), range_of(image)
        shifts = each * np.float32(1 - factor) + np.float32(beta) * span
        return as_dtype(image.astype(np.float32) * np.float32(factor) + shifts, image.dtype), mask

    return pixels


def _pixels(changes: list[tuple[Change, float]], cutout: float, often: float) -> Pixels:
    def pixels(image: np.ndarray, mask: Mask, rng: np.random.Generator) -> tuple[np.ndarray, Mask]:
        chosen = [change for change, probability in changes if rng.random() < probability]
        augmented = image
        if chosen:
            low, span = (0.0, 255.0) if is_photograph(image) else range_of(image)
            values = (image.astype(np.float32) - low) / span
            for change in chosen:
                values = change(values, rng, photograph=is_photograph(image)).reshape(image.shape)
            augmented = as_dtype(values * span + low, image.dtype)
            if image.dtype.kind == "f":
                augmented = np.where(np.isfinite(image), augmented, image)
        if cutout > 0 and rng.random() < often:
            return _cut_out(augmented, mask, cutout, rng)
        return augmented, mask

    return pixels


def _lit(light: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator, *, photograph: bool) -> np.ndarray:
        mean = np.float32(values.mean()) if photograph else means(values)
        factor, shift = 1 + rng.uniform(-light, light), rng.uniform(-light, light)
        return np.asarray((values - mean) * np.float32(factor) + mean + np.float32(shift))

    return change


def _tinted(colour: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator, *, photograph: bool) -> np.ndarray:
        if photograph and values.shape[2] == 3:
            grey = (values @ _LUMA)[:, :, None]
            values = grey + (values - grey) * np.float32(1 + rng.uniform(-colour, colour))
        gains = np.asarray(rng.uniform(1 - colour / 2, 1 + colour / 2, values.shape[2]), dtype=np.float32)
        if photograph:
            return np.asarray(values * gains)
        mean = means(values)
        return np.asarray((values - mean) * gains + mean)

    return change


def _curved(gamma: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator, *, photograph: bool) -> np.ndarray:
        return np.asarray(np.clip(values, 0, 1) ** np.float32(math.exp(rng.uniform(-gamma, gamma))))

    return change


def _blurred(blur: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator, *, photograph: bool) -> np.ndarray:
        sigma = rng.uniform(0, blur)
        if sigma < 0.1:
            return values
        known = None if photograph else np.isfinite(values)
        if known is None or known.all():
            return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma))
        weights = cv2.GaussianBlur(known.astype(np.float32), (0, 0), sigma).reshape(values.shape)
        mixed = cv2.GaussianBlur(np.where(known, values, np.float32(0)), (0, 0), sigma).reshape(values.shape)
        return np.where(known, mixed / np.maximum(weights, np.float32(1e-6)), values)

    return change


def _noisy(noise: float) -> Change:
    def change(values: np.ndarray, rng: np.random.Generator, *, photograph: bool) -> np.ndarray:
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
    if is_photograph(image):
        image[place] = as_dtype(image.mean(axis=(0, 1)), image.dtype)
    else:
        mean = as_dtype(means(image), image.dtype)
        image[place] = np.where(np.isfinite(image[place]), mean, image[place])
    if mask is None:
        return image, None
    mask = mask.copy()
    mask[place] = IGNORED if mask.dtype == np.uint8 else np.nan
    return image, mask


def is_photograph(image: np.ndarray) -> bool:
    """Return whether an image [H, W, C] is one of 8 bits, grey or RGB, whose values are shares of one range."""
    return bool(image.dtype == np.uint8 and image.shape[2] in (1, 3))


def means(image: np.ndarray) -> np.ndarray:
    """Return [C] float32, the mean of each channel's finite pixels; 0 of a channel without any."""
    pixels = image.reshape(-1, image.shape[2])
    known = np.isfinite(pixels)
    if known.all():
        return np.asarray(pixels.mean(0, dtype=np.float64), dtype=np.float32)
    total = np.where(known, pixels, 0).sum(0, dtype=np.float64)
    return np.asarray(total / np.maximum(known.sum(0), 1), dtype=np.float32)


def range_of(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [C] float32 where the range of each channel begins and how far it goes: finite pixels alone count."""
    channels = image.shape[2]
    pixels = image.reshape(-1, channels)
    known = np.isfinite(pixels)
    low = np.where(known, pixels, np.inf).min(0)
    span = np.where(known, pixels, -np.inf).max(0) - low
    there = known.any(0)
    low, span = np.where(there, low, 0), np.where(there & (span > 0), span, 1)
    return low.astype(np.float32), span.astype(np.float32)


def as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return values as a dtype, rounded and clipped to what it can hold."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    converted: np.ndarray = values.astype(dtype)
    return converted


def _names(items: list[dict[str, Any]]) -> str:
    return ", ".join(str(item.get("name")) for item in items)


def _like(original: np.ndarray, augmented: Any, items: list[dict[str, Any]]) -> np.ndarray:
    """Return what transforms made of an array; size and dtype must be as before."""
    if not (isinstance(augmented, np.ndarray) and augmented.dtype == original.dtype and augmented.size == original.size
            and augmented.shape[:2] == original.shape[:2]):  # fmt: skip
        raise ConfigError(
            f"the transforms {_names(items)} turn an image of {original.shape} {original.dtype} into "
            f"{tuple(augmented.shape)} {augmented.dtype}",
            "transforms that keep size and dtype: sizes and normalisation are set under `input:`",
            "remove resizing, cropping and normalising transforms from `augment:`",
        )
    kept: np.ndarray = np.ascontiguousarray(augmented).reshape(original.shape)
    return kept


def _compose(items: Sequence[dict[str, Any] | str], fill: float) -> Any:
    """Return the transforms in order; `fill` is what masks hold where an image shows what lay outside."""
    import albumentations

    return albumentations.Compose([_transform(item, fill) for item in items])


def _transform(item: dict[str, Any] | str, fill: float) -> Any:
    import albumentations

    params: dict[str, Any] = {"name": item} if isinstance(item, str) else dict(item)
    name = params.pop("name", None)
    factory = getattr(albumentations, str(name), None)
    kinds = (albumentations.BasicTransform, albumentations.BaseCompose)
    if not (isinstance(factory, type) and issubclass(factory, kinds)) or issubclass(factory, albumentations.Compose):
        known = [key for key, value in vars(albumentations).items() if isinstance(value, type)]
        raise ConfigError(
            f"Albumentations has no transform '{name}'", "the name of one of its classes", nearest(str(name), known)
        )
    held = {key: params[key] for key in ("transforms", "first", "second") if key in params}
    if issubclass(factory, albumentations.BaseCompose):
        for key, inner in held.items():
            params[key] = [_transform(one, fill) for one in inner] if key == "transforms" else _transform(inner, fill)
    filled = inspect.signature(factory).parameters.get("fill_mask")
    if filled is not None and filled.default == 0:
        params.setdefault("fill_mask", fill)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # it only warns of a parameter it does not know
            return factory(**params)
    except (TypeError, ValueError, UserWarning) as error:
        raise ConfigError(
            f"the transform '{name}' does not take {item}: {error}", "its documented parameters", "correct the YAML"
        ) from error
