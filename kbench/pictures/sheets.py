"""Sheets of images with what a model said about them, as one picture.

An image may have any number of channels and any dtype: `displayable` makes colours of it. To draw another kind of
sheet, hand `draw_sheet` groups of `Tile`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kbench.pictures.figures import DPI, MUTED, RIGHT, WRONG, blank_figure, save_figure, shorten

_LINE = 14  # pixels of a line of text
_GAP = 12
_HEADER = 26


@dataclass(frozen=True)
class Tile:
    """One image of a sheet.

    Attributes:
        image: [H, W, C] of any dtype and number of channels.
        lines: text under it.
        right: whether the model was right: a green or a red frame; None for a grey one.
    """

    image: np.ndarray
    lines: tuple[str, ...] = ()
    right: bool | None = None


@dataclass(frozen=True)
class Group:
    """Images that belong together, such as those of a class.

    Attributes:
        title: stands above them; may be empty.
        tiles: the images.
    """

    title: str
    tiles: Sequence[Tile]


def displayable(image: np.ndarray) -> np.ndarray:
    """Return [H, W, 3] uint8 to look at.

    One channel is grey; two are red and green; of more than three the first three are red, green and blue (a fourth
    one of photographs is transparency, of satellites infrared). Eight bits are shown as they are, other dtypes are
    stretched from their 1st to their 99th percentile, one stretch for all channels shown; values that are not finite
    are black.

    Args:
        image: [H, W, C].
    """
    shown = image[:, :, :3]
    if shown.dtype != np.uint8:
        values = shown.astype(np.float32)
        finite = np.isfinite(values)
        low, high = np.percentile(values[finite], (1, 99)) if finite.any() else (0.0, 1.0)
        if high <= low:
            low, high = low - 1, high + 1
        scaled = (np.where(finite, values, low) - low) / (high - low)
        shown = (np.clip(scaled, 0, 1) * 255 * finite).round().astype(np.uint8)
    if shown.shape[2] == 1:
        return np.repeat(shown, 3, axis=2)
    if shown.shape[2] == 2:
        return np.dstack([shown, np.zeros_like(shown[:, :, :1])])
    return np.ascontiguousarray(shown)


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """Return [h, w, 3] uint8 whose longer side is `side`; small images are enlarged with hard pixels."""
    shown = displayable(image)
    scale = side / max(shown.shape[:2])
    size = (max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST if scale > 2 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(shown, size, interpolation=how))


def draw_sheet(groups: Sequence[Group], path: Path, *, title: str = "", side: int = 132, across: int = 0) -> Path:
    """Draw groups of images; return the picture.

    Args:
        groups: what is shown; a single group runs over several lines.
        path: the PNG.
        title: stands above all.
        side: longer side of an image, in pixels.
        across: images beside each other; 8, or as many as the largest of several groups has, by default.
    """
    return save_figure(sheet(groups, title=title, side=side, across=across), path)


def sheet(groups: Sequence[Group], *, title: str = "", side: int = 132, across: int = 0) -> Any:
    """Return the figure `draw_sheet` saves."""
    groups = [group for group in groups if group.tiles]
    most = max((len(group.tiles) for group in groups), default=1)
    width = across or min(most, 8)
    beside = 2 if len(groups) >= 3 and width <= 4 else 1
    small = {id(tile): thumbnail(tile.image, side) for group in groups for tile in group.tiles}
    tall = max((image.shape[0] for image in small.values()), default=side)
    lines = max((len(tile.lines) for group in groups for tile in group.tiles), default=0)
    grid = _Grid(width, side, tall, tall + lines * _LINE + _GAP)
    stacks = [groups[place::beside] for place in range(beside)]
    top = 34 if title else 8
    bottom = max((top + sum(grid.height(group) for group in stack) for stack in stacks), default=0)
    size = (max(beside * grid.across, 12 * len(title) + 24), max(bottom, top + 40))
    figure, axes = _canvas(size)
    if title:
        _write(axes, 12, 20, title, size=10.5, weight="bold")
    if not groups:
        _write(axes, 12, top + 20, "there are none", size=9)
    canvas = np.full((size[1], size[0], 3), 255, dtype=np.uint8)
    for place, stack in enumerate(stacks):
        at = top
        for group in stack:
            _draw_group(axes, canvas, group, (place * grid.across + _GAP, at), grid=grid, small=small)
            at += grid.height(group)
    axes.imshow(canvas, extent=(0, size[0], size[1], 0), interpolation="nearest", zorder=0)
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    return figure


def room_below(figure: Any, pixels: int) -> float:
    """Make a sheet higher by some pixels of white below it; return their share of the height."""
    width, height = figure.get_size_inches()
    share = pixels / DPI / (height + pixels / DPI)
    figure.set_size_inches(width, height + pixels / DPI)
    for axes in figure.axes:
        axes.set_position((0, share, 1, 1 - share))
    return float(share)


@dataclass(frozen=True)
class _Grid:
    """Measures of a sheet, in pixels: images beside each other, their box, the step from line to line."""

    width: int
    side: int
    tall: int
    step: int

    @property
    def across(self) -> int:
        return self.width * (self.side + _GAP) + _GAP

    def height(self, group: Group) -> int:
        return (_HEADER if group.title else 0) + -(-len(group.tiles) // self.width) * self.step


def _canvas(size: tuple[int, int]) -> tuple[Any, Any]:
    figure = blank_figure(width=size[0] / DPI, height=size[1] / DPI, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def _draw_group(
    axes: Any,
    canvas: np.ndarray,
    group: Group,
    corner: tuple[int, int],
    *,
    grid: _Grid,
    small: dict[int, np.ndarray],
) -> None:
    left, top = corner
    if group.title:
        _write(axes, left, top + 17, shorten(group.title, grid.across // 9), size=8.5, weight="bold")
        top += _HEADER
    for place, tile in enumerate(group.tiles):
        x, y = left + place % grid.width * (grid.side + _GAP), top + place // grid.width * grid.step
        image = small[id(tile)]
        dy, dx = grid.tall - image.shape[0], (grid.side - image.shape[1]) // 2
        canvas[y + dy : y + dy + image.shape[0], x + dx : x + dx + image.shape[1]] = image
        _frame(axes, x + dx, y + dy, image.shape[1], image.shape[0], tile.right)
        for number, line in enumerate(tile.lines):
            text = shorten(line, (grid.side + 8) // 7)
            _write(axes, x, y + grid.tall + _LINE * (number + 1) - 1, text, size=6.8, colour="0.2")


def _frame(axes: Any, x: int, y: int, width: int, height: int, right: bool | None) -> None:
    from matplotlib.patches import Rectangle

    colour = MUTED if right is None else RIGHT if right else WRONG
    thin = 0.6 if right is None else 1.6
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=thin))


def _write(axes: Any, x: float, y: float, text: str, *, size: float, weight: str = "normal", colour: str = "0") -> None:
    axes.text(x, y, text, fontsize=size, fontweight=weight, color=colour, va="baseline", ha="left")
