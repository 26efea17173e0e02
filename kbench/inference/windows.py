"""What the network sees of an image at once, and how its answers become one map of the image (S-07 to S-10).

A kind of windows is a registered factory that returns a `Windows`. To add one, write a factory here with
`@register("windows")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kbench.data.images.crops import Size
from kbench.errors import ConfigError, check_number
from kbench.models.segmenter import padded
from kbench.registry import register
from kbench.tasks import exclusive

Model = Callable[[Tensor], Tensor]
Pixels = int | tuple[int, int]
_AT_ONCE = 1 << 28  # bytes of the widest layer in one forward pass
_WIDE = 16  # channels of that layer where a model does not say


@dataclass(frozen=True)
class Windows:
    """How maps of whole images are made.

    Attributes:
        predict: (model, images) -> [B, K, H, W] float32; `model` maps normalised [b, C, h, w] to [b, K, h, w]
            probabilities, images are normalised [B, C, H, W]. Its attribute `width`, if it has one, says how many
            channels its widest layer has at the size of the image: so many windows go through it at once as memory
            holds, whatever the bands.
    """

    predict: Callable[[Model, Tensor], Tensor]


@register("windows")
def full() -> Windows:
    """Show whole images; models pad them to what their layers can halve."""
    return Windows(lambda model, images: model(images))


@register("windows")
def resized(*, size: Pixels | None = None, scale: float | None = None) -> Windows:
    """Show whole images at another size; probabilities, not classes, are brought back bilinearly.

    Args:
        size: side in pixels, or [height, width].
        scale: or their size over the image's, such as 0.5.

    Raises:
        ConfigError: neither or both are given, or out of range.
    """
    if (size is None) == (scale is None):
        raise ConfigError(
            f"windows 'resized' with size '{size}' and scale '{scale}'", "one of the two", "write `scale: 0.5`"
        )
    if scale is not None:
        check_number("maps.windows.scale", scale, "(0, 4]")

    def predict(model: Model, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        wanted = _size(size) if scale is None else (max(1, round(height * scale)), max(1, round(width * scale)))
        shown = interpolate(images, wanted, mode="bilinear", antialias=True)
        return interpolate(model(shown), (height, width), mode="bilinear")

    return Windows(predict)


@register("windows")
def grid(*, size: Pixels = 512) -> Windows:
    """Cut the image into windows side by side; each pixel is seen once, the last ones are moved inwards.

    Args:
        size: side of a window in pixels, or [height, width]; smaller images are reflected to it.
    """
    return _tiles(size, None, smooth=False, edge=0)


@register("windows")
def overlap(
    *,
    size: Pixels = 512,
    stride: Pixels | None = None,
    smooth: bool = True,
    edge: int = 0,
    vote: bool = False,
    _task: str = "segmentation",
) -> Windows:
    """Blend overlapping windows by the mean of their probabilities.

    Args:
        size: side of a window in pixels, or [height, width].
        stride: distance of neighbours in pixels, or [down, across]; half the size by default.
        smooth: weigh a window's middle more than its border, by a raised cosine, so that no seam shows.
        edge: pixels of a window's border that are not looked at, but at the border of the image (D-10): there a network
            sees what it has filled in.
        vote: count each window's most probable class instead (S-09, the original's way).

    Raises:
        ConfigError: the stride is longer than what is looked at of a window, or numbers are to be voted for.
    """
    height, width = _size(size)
    steps = _size(stride) if stride is not None else (max(1, height // 2), max(1, width // 2))
    check_number("maps.windows.edge", edge, "[0, 16000]", whole=True)
    if steps[0] > height - 2 * edge or steps[1] > width - 2 * edge:
        inside = f" without a border of {edge}" if edge else ""
        raise ConfigError(
            f"windows of {height} x {width} pixels{inside} every {steps[0]} x {steps[1]} leave pixels out",
            "a stride no longer than the window" + (", its borders taken off" if edge else ""),
            "correct maps.windows.stride" + (" or maps.windows.edge" if edge else ""),
        )
    tiles = _tiles(size, steps, smooth=smooth, edge=edge)
    if not vote:
        return tiles
    if _task == "dense_regression":
        raise ConfigError("maps.windows.vote of numbers", "classes, which can be voted for", "remove `vote: true`")
    return Windows(lambda model, images: tiles.predict(_Voting(model, _task), images))


class _Voting:
    """A model whose answers are counted as votes."""

    def __init__(self, model: Model, task: str) -> None:
        self._model, self._task, self.width = model, task, getattr(model, "width", _WIDE)

    def __call__(self, cut: Tensor) -> Tensor:
        """Return the votes of each pixel."""
        return _vote(self._model(cut), self._task)


def _size(size: Pixels | None) -> Size:
    assert size is not None, "asked only where it is given"
    height, width = (size, size) if isinstance(size, int) else size
    check_number("maps.windows.size", height, "[1, 32000]", whole=True)
    check_number("maps.windows.size", width, "[1, 32000]", whole=True)
    return height, width


def starts(length: int, window: int, step: int) -> list[int]:
    """Return where windows begin that cover a length: every `step`, the last one moved inwards to end at the end."""
    if window >= length:
        return [0]
    places = list(range(0, length - window, step))
    return [*places, length - window]


def _tiles(size: Pixels, stride: Size | None, *, smooth: bool, edge: int) -> Windows:
    height, width = _size(size)
    steps = stride or (height, width)

    def predict(model: Model, images: Tensor) -> Tensor:
        area, place = padded(images, (max(height, images.shape[-2]), max(width, images.shape[-1])))
        corners = [
            (top, left)
            for top in starts(area.shape[-2], height, steps[0])
            for left in starts(area.shape[-1], width, steps[1])
        ]
        weight = _hill(height, width, area) if smooth else torch.ones(height, width, device=area.device)
        total: Tensor | None = None
        weights = torch.zeros(area.shape[-2:], device=area.device)
        wide = max(getattr(model, "width", _WIDE), images.shape[1])
        for some in _together(corners, height * width * len(area) * wide * 4):
            cut = torch.cat([area[..., top : top + height, left : left + width] for top, left in some])
            answers = model(cut)
            answers = answers.view(len(some), len(area), *answers.shape[1:])  # [windows, B, K, h, w]
            if total is None:
                total = torch.zeros(len(area), answers.shape[2], *area.shape[-2:], device=area.device)
            for (top, left), answer in zip(some, answers, strict=True):
                rows = _looked_at(top, height, area.shape[-2], edge)
                columns = _looked_at(left, width, area.shape[-1], edge)
                spot = (..., _moved(rows, top), _moved(columns, left))
                answer = answer[..., rows, columns]
                if stride is None:  # a pixel is one window's: the last one that shows it
                    total[spot], weights[spot[1:]] = answer, 1
                else:
                    total[spot] += answer * weight[rows, columns]
                    weights[spot[1:]] += weight[rows, columns]
        assert total is not None, "an image has a window"
        return (total / weights)[place]

    return Windows(predict)


def _looked_at(start: int, length: int, whole: int, edge: int) -> slice:
    """Return what is looked at of a window, along one axis: all but its borders that are not the image's."""
    return slice(edge if start > 0 else 0, length - edge if start + length < whole else length)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _together(corners: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Yield as many windows at a time as go through the network at once, one of `size` bytes."""
    count = max(1, _AT_ONCE // size)
    for first in range(0, len(corners), count):
        yield corners[first : first + count]


def _hill(height: int, width: int, like: Tensor) -> Tensor:
    """Return [h, w] weights above 0: a raised cosine, largest in the middle."""
    down, across = (
        torch.sin((torch.arange(count, device=like.device) + 0.5) * (torch.pi / count)) ** 2
        for count in (height, width)
    )
    return (down[:, None] * across[None]).clamp_min(1e-4).float()


def _vote(values: Tensor, task: str) -> Tensor:
    """Return 1 for the most probable of K maps [b, K, h, w], or for those above one half where each stands alone."""
    if not exclusive(task, values.shape[1]):
        return (values > 0.5).float()
    return torch.zeros_like(values).scatter_(1, values.argmax(1, keepdim=True), 1.0)
