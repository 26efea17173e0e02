"""Mixing the images and targets of a batch: mixup, cutmix.

To add one, write a factory here with `@register("mix")` whose keywords are what a YAML may set and which returns
a `Mix`. All randomness comes from the generator, and the same draws are made whatever their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kbench.errors import TrainingError, check_number
from kbench.registry import register

Mix = Callable[[Tensor, Tensor, np.random.Generator, int], tuple[Tensor, Tensor]]
"""Called as `mix(images, targets, rng, n_outputs)`.

`images` is float [B, ..., H, W]. `targets` is int64 class indices [B, ...], which become float32 rows [B, K, ...]
with NaN for indices outside 0..K-1 (ignored pixels), or float [B, K, ...]; NaN stays NaN. The inputs are not changed.
"""


@register("mix")
def mixup(*, alpha: float = 0.2, prob: float = 1.0) -> Mix:
    """Return mixup: each image and its target become a weighted mean with another's (Zhang et al. 2017, equation 1).

    Args:
        alpha: the weight is drawn from Beta(alpha, alpha), once per batch.
        prob: how probable it is that a batch is mixed at all.

    Raises:
        ConfigError: a value is out of range.
    """
    _check(alpha, prob)

    def mix(images: Tensor, targets: Tensor, rng: np.random.Generator, n_outputs: int) -> tuple[Tensor, Tensor]:
        share, others, applied = _draw(rng, alpha, prob, images)
        targets = soft_targets(targets, n_outputs)
        if not applied:
            return images, targets
        return _blend(images, others, share), _blend(targets, others, share)

    return mix


@register("mix")
def cutmix(*, alpha: float = 1.0, prob: float = 1.0) -> Mix:
    """Return cutmix: a box of each image comes from another image (Yun et al. 2019, equations 1 and 2).

    Targets of a row are mixed by the box's true area; targets with the image's height and width get the box too.

    Args:
        alpha: the share that is kept is drawn from Beta(alpha, alpha), once per batch.
        prob: how probable it is that a batch is mixed at all.

    Raises:
        ConfigError: a value is out of range.
    """
    _check(alpha, prob)

    def mix(images: Tensor, targets: Tensor, rng: np.random.Generator, n_outputs: int) -> tuple[Tensor, Tensor]:
        share, others, applied = _draw(rng, alpha, prob, images)
        height, width = images.shape[-2:]
        rows, columns = box(rng, share, height, width)
        targets = soft_targets(targets, n_outputs)
        if not applied:
            return images, targets
        mixed = _paste(images, others, rows, columns)
        if targets.ndim > 2:
            _check_size(images, targets)
            return mixed, _paste(targets, others, rows, columns)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, _blend(targets, others, 1 - area / (height * width))

    return mix


def soft_targets(targets: Tensor, n_outputs: int) -> Tensor:
    """Return float32 targets [B, K, ...]: floats as they are, class indices one-hot, those outside 0..K-1 NaN rows."""
    if targets.is_floating_point():
        return targets.float()
    index = targets.unsqueeze(1)
    classes = torch.arange(n_outputs, device=targets.device).view(1, -1, *[1] * (targets.ndim - 1))
    return (index == classes).float().masked_fill((index < 0) | (index >= n_outputs), torch.nan)


def box(rng: np.random.Generator, share: float, height: int, width: int) -> tuple[slice, slice]:
    """Return rows and columns of a box of area `1 - share` around a uniform centre, cut at the image's edges."""
    side = math.sqrt(1 - share)
    spans = []
    for size in (height, width):
        half, centre = int(size * side) // 2, int(rng.integers(size))
        spans.append(slice(max(0, centre - half), min(size, centre + half)))
    return spans[0], spans[1]


def _draw(rng: np.random.Generator, alpha: float, prob: float, images: Tensor) -> tuple[float, Tensor, bool]:
    applied = bool(rng.random() < prob)
    share = float(rng.beta(alpha, alpha))
    others = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    return share, others, applied


def _blend(values: Tensor, others: Tensor, share: float) -> Tensor:
    return torch.lerp(values[others], values, share)


def _paste(values: Tensor, others: Tensor, rows: slice, columns: slice) -> Tensor:
    pasted = values.clone()
    pasted[..., rows, columns] = values[others][..., rows, columns]
    return pasted


def _check(alpha: float, prob: float) -> None:
    check_number("alpha", alpha, "(0, inf)")
    check_number("prob", prob, "[0, 1]")


def _check_size(images: Tensor, targets: Tensor) -> None:
    if targets.shape[-2:] != images.shape[-2:]:
        raise TrainingError(
            f"targets of '{list(targets.shape[-2:])}' pixels for images of '{list(images.shape[-2:])}'",
            "target images of the images' size, so that a box fits both",
            "use `mixup` in place of `cutmix`, or remove `mix:`",
        )
