"""From probability maps to masks: thresholds, small objects and holes, empty images (row D-14).

A post-process is a registered factory that returns a `Rule`. To add one, write a factory here with
`@register("postprocess")`. Parameters that say `tuned` are chosen by `tuning.py`, which hands back numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from kbench.errors import ConfigError, check_number, first_names, nearest
from kbench.registry import register
from kbench.tasks import exclusive

Tuned = Literal["tuned", "tuned_per_class"]
Number = float | dict[str, float] | Tuned
Flag = bool | dict[str, bool] | Tuned
NEUTRAL: dict[str, float | bool] = {
    "threshold": 0.5, "bias": 0.0, "min_object": 0, "min_hole": 0, "largest": False, "empty": 0,
}  # fmt: skip
"""What changes nothing, by parameter of `standard`."""
_RANGES = {"threshold": "[0, 1)", "bias": "(-inf, inf)", "min_object": "[0, inf)", "min_hole": "[0, inf)",
           "empty": "[0, inf)"}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A way from probabilities to a mask.

    Attributes:
        apply: [K, H, W] float32 probabilities -> [H, W] uint8 class index where classes exclude one another, else
            [K, H, W] uint8 0 or 1.
    """

    apply: Callable[[np.ndarray], np.ndarray]


@register("postprocess")
def none(*, _names: tuple[str, ...], _task: str) -> Rule:
    """Take the most probable class, or, where classes may overlap, those above one half."""
    if exclusive(_task, len(_names)):
        return Rule(lambda maps: np.asarray(maps.argmax(0)).astype(np.uint8))
    return Rule(lambda maps: (maps > 0.5).astype(np.uint8))


@dataclass(frozen=True)
class _Settings:
    """[K] values of each parameter; areas in pixels."""

    threshold: np.ndarray
    bias: np.ndarray
    min_object: np.ndarray
    min_hole: np.ndarray
    largest: np.ndarray
    empty: np.ndarray

    def removes(self) -> bool:
        """Return whether anything that is predicted may be taken away again."""
        return bool((self.min_object > 1).any() or self.largest.any() or (self.empty > 1).any())


@register("postprocess")
def standard(
    *, threshold: Number = 0.5, bias: Number = 0.0, min_object: Number = 0, min_hole: Number = 0, largest: Flag = False,
    empty: Number = 0, grid: dict[str, list[float | bool]] | None = None, _names: tuple[str, ...], _task: str,
) -> Rule:  # fmt: skip
    """Weigh classes, fill small holes, take away small objects, and empty images with too little of a class.

    A value is one for all classes, or one per class by name (`{car: 40, lane: 0}`; the others take what changes
    nothing), or `tuned` or `tuned_per_class`. Of classes that exclude one another, pixels that are taken away go to
    the next most probable class.

    Args:
        threshold: a class that may overlap others is predicted above it.
        bias: added to the logarithm of the probabilities of classes that exclude one another.
        min_object: connected pixels (by sides or corners) fewer than this are taken away.
        min_hole: enclosed pixels of other classes, connected by sides, are filled where they are fewer than this.
        largest: keep only the largest object of a class.
        empty: a class with fewer pixels than this in an image, after all else, is taken away.
        grid: values to try, by parameter, where a parameter is tuned.
        _names: the competition's classes.
        _task: its task.

    Raises:
        ConfigError: a value is out of range, of an unknown class, not used by the task, or not tuned yet.
    """
    given: dict[str, Any] = {"threshold": threshold, "bias": bias, "min_object": min_object, "min_hole": min_hole,
                             "largest": largest, "empty": empty}  # fmt: skip
    apart = exclusive(_task, len(_names))
    unused = "threshold" if apart else "bias"
    if given[unused] != NEUTRAL[unused]:
        what = "exclude one another" if apart else "may overlap"
        raise ConfigError(
            f"maps.postprocess.{unused} for classes that {what}",
            "`bias`, since the most probable class counts" if apart else "`threshold`, since each class stands alone",
            f"remove `{unused}` in the YAML",
        )
    for name in [*(grid or {})]:
        if name not in NEUTRAL:
            raise ConfigError(f"maps.postprocess.grid for '{name}'", f"one of {', '.join(NEUTRAL)}",
                              nearest(name, NEUTRAL))  # fmt: skip
    settings = _Settings(**{key: _per_class(key, value, _names) for key, value in given.items()})
    if apart:
        return Rule(lambda maps: _exclusive_mask(maps, settings))
    return Rule(lambda maps: np.stack([_layer(part, settings, k) for k, part in enumerate(maps)]))


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


def _layer(probabilities: np.ndarray, settings: _Settings, k: int) -> np.ndarray:
    """Return the [H, W] uint8 mask of one class alone."""
    layer: np.ndarray = (probabilities > settings.threshold[k]).astype(np.uint8)
    layer |= small_holes(layer, settings.min_hole[k])
    layer &= 1 - _unwanted(layer, settings, k)
    return layer


def _exclusive_mask(maps: np.ndarray, settings: _Settings) -> np.ndarray:
    scores = maps
    if settings.bias.any():
        scores = maps * np.exp(settings.bias.astype(np.float32))[:, None, None]
    mask: np.ndarray = scores.argmax(0).astype(np.uint8)
    for k in np.flatnonzero(settings.min_hole > 1).tolist():
        mask[small_holes((mask == k).astype(np.uint8), settings.min_hole[k]) != 0] = k
    if not settings.removes():
        return mask
    scores = scores.copy() if scores is maps else scores
    for k in range(len(maps)):
        gone = _unwanted((mask == k).astype(np.uint8), settings, k) != 0
        if gone.any():
            scores[k, gone] = -1  # to the next most probable class that was not taken away there either
            mask[gone] = scores[:, gone].argmax(0)
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


def _box(layer: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns that hold all of a layer; one pixel where it is empty."""
    left, top, width, height = cv2.boundingRect(layer)
    return slice(top, top + max(1, height)), slice(left, left + max(1, width))


def small_holes(layer: np.ndarray, least: float) -> np.ndarray:
    """Return the [H, W] uint8 pixels outside of a layer that it encloses, in holes of fewer pixels than `least`."""
    found = np.zeros_like(layer)
    if least <= 1:
        return found
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
        found[box] = inside.astype(np.uint8)[labels]
    return found
