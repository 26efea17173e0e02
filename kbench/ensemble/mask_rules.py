"""From maps to what is sent: thresholds, openings, small objects and holes, empty images, conflicts (D-14, D-20, B-16).

A post-process is a registered factory that returns a `Rule`. To add one, write a factory here with
`@register("postprocess")`. Parameters that say `tuned` are chosen by `mask_tuning.py`, which hands back numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np

from kbench.errors import ConfigError, check_number, first_names, nearest
from kbench.registry import register
from kbench.tasks import SEGMENTATION, exclusive

Tuned = Literal["tuned", "tuned_per_class"]
Number = float | dict[str, float] | Tuned
Flag = bool | dict[str, bool] | Tuned
NEUTRAL: dict[str, float | bool] = {
    "threshold": 0.5, "bias": 0.0, "open": 0, "close": 0, "min_object": 0, "min_hole": 0, "largest": False, "empty": 0,
}  # fmt: skip
"""What changes nothing, by parameter of `standard`."""
_RANGES = {"threshold": "[0, 1)", "bias": "(-inf, inf)", "open": "[0, 1000]", "close": "[0, 1000]",
           "min_object": "[0, inf)", "min_hole": "[0, inf)",
           "empty": "[0, inf)"}  # fmt: skip


PICKING = ("threshold", "bias")
"""Parameters of `standard` that `Rule.pick` uses; the others are of `Rule.clean`."""


def _unchanged(mask: np.ndarray) -> np.ndarray:
    return mask


@dataclass(frozen=True)
class Rule:
    """A way from probabilities to a mask, in two steps.

    Attributes:
        pick: [K, H, W] float32 probabilities -> [H, W] uint8 class index where classes exclude one another, else
            [K, H, W] uint8 0 or 1.
        clean: such a mask -> a better one; what it is given stays as it is.
        source: name and parameters, for what is made with the rule; set where it is built from a YAML.
    """

    pick: Callable[[np.ndarray], np.ndarray]
    clean: Callable[[np.ndarray], np.ndarray] = _unchanged
    source: dict[str, Any] = field(default_factory=dict)

    def apply(self, maps: np.ndarray) -> np.ndarray:
        """Return the mask of [K, H, W] float32 probabilities."""
        return self.clean(self.pick(maps))


@register("postprocess", tasks=("dense_regression",))
def numbers(*, clamp: tuple[float | None, float | None] = (None, None), _names: tuple[str, ...], _task: str) -> Rule:
    """Keep predicted numbers within limits (B-16).

    Args:
        clamp: lowest and highest number, in target units, or null where there is no limit: `[0, null]` for what is
            never negative.
        _names: the competition's targets.
        _task: its task.

    Raises:
        ConfigError: the limits are no limits.
    """
    low, high = (-np.inf if clamp[0] is None else clamp[0]), (np.inf if clamp[1] is None else clamp[1])
    if not low < high:
        raise ConfigError(
            f"maps.postprocess.clamp is {list(clamp)}", "a lowest and a higher highest number, or null",
            "write `clamp: [0, null]`",
        )  # fmt: skip
    return Rule(lambda maps: np.clip(maps, low, high).astype(np.float32))


@register("postprocess")
def none(*, _names: tuple[str, ...], _task: str) -> Rule:
    """Take the most probable class, or, where classes may overlap, those above one half; numbers stay as they are."""
    if "regression" in _task:
        return Rule(_unchanged)
    if exclusive(_task, len(_names)):
        return Rule(_most_probable)
    return Rule(lambda maps: (maps > 0.5).astype(np.uint8))


def _most_probable(maps: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return [H, W] uint8 classes of the largest value, the first of equals, times [K] weights where there are some.

    One class is looked at after the other: nothing of the size of the maps is made, and it is faster than `argmax`.
    """
    shares = np.ones(len(maps), np.float32) if weights is None else weights
    best = maps[0] * shares[0]
    mask = np.zeros(best.shape, dtype=np.uint8)
    for k in range(1, len(maps)):
        value = maps[k] if shares[k] == 1 else maps[k] * shares[k]
        mask[value > best] = k
        np.maximum(best, value, out=best)
    return mask


@dataclass(frozen=True)
class _Settings:
    """[K] values of each parameter; areas in pixels."""

    threshold: np.ndarray
    bias: np.ndarray
    open: np.ndarray
    close: np.ndarray
    min_object: np.ndarray
    min_hole: np.ndarray
    largest: np.ndarray
    empty: np.ndarray

    def removers(self) -> list[int]:
        """Return the classes of which something that is predicted may be taken away again."""
        return np.flatnonzero((self.min_object > 1) | self.largest.astype(bool) | (self.empty > 1)).tolist()

    def fillers(self) -> list[int]:
        """Return the classes whose holes may be filled."""
        return np.flatnonzero(self.min_hole > 1).tolist()


@register("postprocess", tasks=SEGMENTATION)
def standard(
    *, threshold: Number = 0.5, bias: Number = 0.0, open: Number = 0, close: Number = 0, min_object: Number = 0,
    min_hole: Number = 0, largest: Flag = False, empty: Number = 0, priority: list[tuple[str, str]] | None = None,
    grid: dict[str, list[float | bool]] | None = None, _names: tuple[str, ...], _task: str,
) -> Rule:  # fmt: skip
    """Weigh classes, fill small holes, take away small objects, and empty images with too little of a class.

    A value is one for all classes, or one per class by name (`{car: 40, lane: 0}`; the others take what changes
    nothing), or `tuned` or `tuned_per_class`. Of classes that exclude one another, pixels that are taken away go to
    the class of the nearest pixel that stays, so that nothing small is left behind and maps kept in 8 bits, where a
    sure pixel's other classes are all 0, give the masks that exact ones give. Where nothing would stay, all does.

    Args:
        threshold: a class that may overlap others is predicted above it.
        bias: added to the logarithm of the probabilities of classes that exclude one another.
        open: width in pixels of the disc that an object must have room for; what is thinner is taken away.
        close: width in pixels of the disc that a gap must have room for; what is narrower is filled. After `open`.
        min_object: connected pixels (by sides or corners) fewer than this are taken away.
        min_hole: enclosed pixels of other classes, connected by sides, are filled where they are fewer than this.
        largest: keep only the largest object of a class.
        empty: a class with fewer pixels than this in an image, after all else, is taken away.
        priority: pairs of classes that may overlap: where both are predicted in the end, the second one is taken away;
            `"*"` is every other class. One pair after the other: `[[waterway_fast, "*"], [buildings, "*"]]`.
        grid: values to try, by parameter, where a parameter is tuned.
        _names: the competition's classes.
        _task: its task.

    Raises:
        ConfigError: a value is out of range, of an unknown class, not used by the task, or not tuned yet.
    """
    given: dict[str, Any] = {
        "threshold": threshold, "bias": bias, "open": open, "close": close, "min_object": min_object,
        "min_hole": min_hole, "largest": largest, "empty": empty,
    }  # fmt: skip
    apart = exclusive(_task, len(_names))
    unused = "threshold" if apart else "bias"
    if given[unused] != NEUTRAL[unused]:
        what = "exclude one another" if apart else "may overlap"
        raise ConfigError(
            f"maps.postprocess.{unused} for classes that {what}",
            "`bias`, since the most probable class counts" if apart else "`threshold`, since each class stands alone",
            f"remove `{unused}` in the YAML",
        )
    if apart and (priority or open or close):
        raise ConfigError(
            "maps.postprocess with open, close or priority for classes that exclude one another",
            "`min_object` and `min_hole`: a pixel of these classes is always one of them",
            "remove them in the YAML, or set `task: multi_label_segmentation`",
        )
    pairs = _pairs(priority or [], _names)
    for name in [*(grid or {})]:
        if name not in NEUTRAL:
            raise ConfigError(f"maps.postprocess.grid for '{name}'", f"one of {', '.join(NEUTRAL)}",
                              nearest(name, NEUTRAL))  # fmt: skip
    settings = _Settings(**{key: _per_class(key, value, _names) for key, value in given.items()})
    if apart:
        weights = np.exp(settings.bias.astype(np.float32))
        return Rule(lambda maps: _most_probable(maps, weights), lambda mask: _clean_index(mask, settings))
    above = settings.threshold.astype(np.float32)[:, None, None]
    return Rule(
        lambda maps: (maps > above).astype(np.uint8), lambda mask: _settled(_clean_layers(mask, settings), pairs)
    )


def _pairs(priority: Sequence[tuple[str, str]], names: Sequence[str]) -> list[tuple[int, list[int]]]:
    """Return (the class that stays, those that give way to it) by number, in the order of the YAML."""
    strange = [name for pair in priority for name in pair if name not in (*names, "*")]
    first = [pair for pair in priority if pair[0] == "*" or pair[0] == pair[1]]
    if strange or first:
        raise ConfigError(
            f"maps.postprocess.priority names {first_names(strange or list(first[0]))}",
            f'pairs of two of {first_names(list(names), 30)}, the second one perhaps `"*"`',
            nearest(strange[0], names) if strange else "correct maps.postprocess.priority in the YAML",
        )
    numbers = list(names)
    return [
        (numbers.index(stays), [k for k, name in enumerate(names) if name != stays and loses in (name, "*")])
        for stays, loses in priority
    ]


def _settled(mask: np.ndarray, pairs: Sequence[tuple[int, list[int]]]) -> np.ndarray:
    """Return [K, H, W] layers, of which the second of each pair gives way to the first; changed in place."""
    for stays, losing in pairs:
        for k in losing:
            mask[k] &= 1 - mask[stays]
    return mask


def _per_class(name: str, value: Any, names: Sequence[str]) -> np.ndarray:
    """Return [K] values of a parameter."""
    if value in ("tuned", "tuned_per_class"):
        raise ConfigError(
            f"maps.postprocess.{name} is not tuned yet", "a number, once out-of-fold maps are there",
            "`kbench ensemble` or `kbench score` tunes it",
        )  # fmt: skip
    by_name = value if isinstance(value, dict) else dict.fromkeys(names, value)
    strange = [key for key in by_name if key not in names]
    if strange:
        raise ConfigError(f"maps.postprocess.{name} names {first_names(strange)}",
                          f"some of {first_names(list(names), 30)}", nearest(strange[0], names))  # fmt: skip
    if name in _RANGES:
        for one in by_name.values():
            check_number(f"maps.postprocess.{name}", one, _RANGES[name])
    return np.array([by_name.get(key, NEUTRAL[name]) for key in names])


def _clean_layers(mask: np.ndarray, settings: _Settings) -> np.ndarray:
    mask = mask.copy()
    for k, layer in enumerate(mask):
        for operation, width in ((cv2.MORPH_OPEN, settings.open[k]), (cv2.MORPH_CLOSE, settings.close[k])):
            if width > 1:
                layer[:] = _morphed(layer, operation, int(width))
        layer |= small_holes(layer, settings.min_hole[k])
        layer &= 1 - _unwanted(layer, settings, k)
    return mask


def _morphed(layer: np.ndarray, operation: int, width: int) -> np.ndarray:
    """Return an [H, W] layer opened or closed by a disc; beyond the image all is as at its border."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    wide = cv2.copyMakeBorder(layer, width, width, width, width, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.morphologyEx(wide, operation, disc)[width:-width, width:-width])


def _clean_index(mask: np.ndarray, settings: _Settings) -> np.ndarray:
    mask = mask.copy()
    for k in settings.fillers():
        mask[small_holes((mask == k).astype(np.uint8), settings.min_hole[k]) != 0] = k
    gone = np.zeros_like(mask)
    for k in settings.removers():
        gone |= _unwanted((mask == k).astype(np.uint8), settings, k)
    return _filled(mask, gone)


def _filled(mask: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Return a [H, W] mask where pixels that are gone have the class of the nearest one that is not."""
    if not gone.any() or gone.all():
        return mask
    box = _box(gone, margin=1)  # the nearest that stays is never beyond the pixels around those that go
    part, doomed = mask[box], gone[box]
    _, labels = cv2.distanceTransformWithLabels(doomed, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    stays = doomed == 0
    class_of = np.zeros(int(labels.max()) + 1, dtype=np.uint8)
    class_of[labels[stays]] = part[stays]
    mask[box] = class_of[labels]
    return mask


def _unwanted(layer: np.ndarray, settings: _Settings, k: int) -> np.ndarray:
    """Return the [H, W] uint8 pixels of a layer that are to be taken away."""
    gone = np.zeros_like(layer)
    if settings.min_object[k] > 1 or settings.largest[k]:
        box = _box(layer)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(layer[box]), connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        doomed = areas < settings.min_object[k]
        if settings.largest[k] and count > 2:
            doomed |= np.arange(count) != 1 + int(areas[1:].argmax())
        doomed[0] = False
        if doomed.any():
            gone[box] = doomed.astype(np.uint8)[labels]
    if np.count_nonzero(layer) - np.count_nonzero(gone) < settings.empty[k]:
        return layer
    return gone


def _box(layer: np.ndarray, *, margin: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns that hold all of a layer, and a margin; one pixel where it is empty."""
    left, top, width, height = cv2.boundingRect(layer)
    return (slice(max(0, top - margin), top + max(1, height) + margin),
            slice(max(0, left - margin), left + max(1, width) + margin))  # fmt: skip


def small_holes(layer: np.ndarray, least: float) -> np.ndarray:
    """Return the [H, W] uint8 pixels outside of a layer that it encloses, in holes of fewer pixels than `least`."""
    kept = np.zeros_like(layer)
    if least <= 1:
        return kept
    box = _box(layer)  # what touches its edge goes on outside, where the layer is not
    inner = 1 - layer[box]
    height, width = inner.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inner, connectivity=4)
    inside = (stats[:, cv2.CC_STAT_LEFT] > 0) & (stats[:, cv2.CC_STAT_TOP] > 0)
    inside &= stats[:, cv2.CC_STAT_LEFT] + stats[:, cv2.CC_STAT_WIDTH] < width
    inside &= stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT] < height
    inside &= stats[:, cv2.CC_STAT_AREA] < least
    inside[0] = False  # label 0 is the layer itself
    if inside.any():
        kept[box] = inside.astype(np.uint8)[labels]
    return kept
