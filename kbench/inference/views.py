"""Test-time augmentation: views of an image, each undone on the prediction where the prediction is an image.

A view loads the image in one way (centre, corner, a random draw, another size) and maps the batch to and from
the network. The first view is the plain one. To add a set, write a factory here with `@register("views")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kbench.data.images.crops import Crop, Size, Window, centred
from kbench.errors import ConfigError, check_number
from kbench.registry import register

Map = Callable[[torch.Tensor], torch.Tensor]
Corner = Literal["centre", "top_left", "top_right", "bottom_left", "bottom_right"]


@dataclass(frozen=True)
class Load:
    """How the image is read for a view.

    Attributes:
        corner: which window of the image.
        draw: number of a random draw of the training augmentation, or None.
        scale: size of the image over the usual one.
        margin: size the image is brought to before the window is taken, over the window's.
    """

    corner: Corner = "centre"
    draw: int | None = None
    scale: float = 1.0
    margin: float = 1.0


PLAIN = Load()


def same(batch: torch.Tensor) -> torch.Tensor:
    """Return the batch."""
    return batch


@dataclass(frozen=True)
class View:
    """One way to look at an image.

    Attributes:
        name: for reports.
        load: how it is read.
        forward: [B, C, H, W] -> the same kind; what the network sees.
        inverse: undoes `forward` on [B, K, H, W] predictions; predictions [B, K] are left alone.
        weight: its share of the mean, relative to the others.
    """

    name: str
    load: Load = PLAIN
    forward: Map = same
    inverse: Map = same
    weight: float = 1.0


def window_of(load: Load, judged: Crop | None, size: Size) -> Callable[[Size, Size, np.random.Generator], Window]:
    """Return the function that picks the load's window of an image.

    Args:
        load: how the image is read.
        judged: the crop images were judged by, where they keep their own resolution; None: a window of what is shown.
        size: height and width the model is trained at. With `judged`, the window is as large as that crop's for this
            size, whatever size the view is shown at.
    """

    def window(image: Size, shown: Size, rng: np.random.Generator) -> Window:
        if judged is not None:
            own = judged.window(image, size, rng)
            shown = (int(own.height), int(own.width))
        if load.corner == "centre":
            return centred(image, shown)
        vertical, horizontal = load.corner.split("_")
        top = 0 if vertical == "top" else image[0] - shown[0]
        left = 0 if horizontal == "left" else image[1] - shown[1]
        return Window(top, left, *shown)

    return window


def is_plain(view: View) -> bool:
    """Return whether a view shows the image as it is judged while training."""
    return view.load == PLAIN and view.forward is same


def flip(batch: torch.Tensor) -> torch.Tensor:
    """Mirror left and right; its own inverse."""
    return batch.flip(-1)


def turn(batch: torch.Tensor, times: int) -> torch.Tensor:
    """Turn by quarter turns, counter-clockwise."""
    return torch.rot90(batch, times, (-2, -1))


@register("views")
def none() -> tuple[View, ...]:
    """The plain view alone."""
    return (View("plain"),)


@register("views", "flip")
def flip_views() -> tuple[View, ...]:
    """Plain and mirrored."""
    return (View("plain"), View("flip", forward=flip, inverse=flip))


@register("views")
def d4() -> tuple[View, ...]:
    """The square's 8 symmetries (D-11); exact on images that are not square, too."""
    views = []
    for mirrored in (False, True):
        for times in range(4):
            views.append(_symmetry(times, mirrored=mirrored))
    return tuple(views)


def _symmetry(times: int, *, mirrored: bool) -> View:
    if mirrored:
        return View(
            f"flip-turn{90 * times}",
            forward=lambda batch: turn(flip(batch), times),
            inverse=lambda batch: flip(turn(batch, -times)),
        )
    name = f"turn{90 * times}" if times else "plain"
    return View(name, forward=lambda batch: turn(batch, times), inverse=lambda batch: turn(batch, -times))


@register("views", tasks=("single_label", "multi_label", "regression"))
def five_crop(*, margin: float = 1.15) -> tuple[View, ...]:
    """The plain view and the four corners of a larger image.

    Args:
        margin: size the image is brought to over that of a window, above 1; 1.15 as in 256 px for 224.

    Raises:
        ConfigError: the margin is out of range.
    """
    check_number("tta.margin", margin, "(1, 10]")
    corners: Sequence[Corner] = ("top_left", "top_right", "bottom_left", "bottom_right")
    return (View("plain"), *(View(corner, Load(corner, margin=margin)) for corner in corners))


@register("views", tasks=("single_label", "multi_label", "regression"))
def random(*, n: int = 4) -> tuple[View, ...]:
    """The plain view and `n` draws of the training augmentation, seeded: fast.ai's TTA (F-24).

    The plain view counts ceil(n / 4) times, as in fast.ai 0.7.

    Args:
        n: number of draws.
    """
    check_number("tta.n", n, "[1, 1000]", whole=True)
    plain = View("plain", weight=float(-(-n // 4)))
    return (plain, *(View(f"draw{draw}", Load(draw=draw)) for draw in range(n)))


@register("views")
def scales(*, factors: list[float] | None = None, mirrored: bool = True) -> tuple[View, ...]:
    """The image at several sizes, each also mirrored.

    Args:
        factors: sizes over the usual one; [1, 0.75, 1.25] by default. The first is the plain view.
        mirrored: add the mirror image of each.
    """
    chosen = factors or [1.0, 0.75, 1.25]
    for factor in chosen:
        check_number("tta.factors", factor, "[0.1, 10]")
    if chosen[0] != 1 or len(set(chosen)) < len(chosen):
        raise ConfigError(
            f"tta.factors is {chosen}", "different factors, the first of them 1", "write `factors: [1, 1.25]`"
        )
    views = []
    for factor in chosen:
        views.append(View("plain" if factor == 1 else f"x{factor:g}", Load(scale=factor)))
        if mirrored:
            views.append(View(f"x{factor:g}-flip", Load(scale=factor), flip, flip))
    return tuple(views)
