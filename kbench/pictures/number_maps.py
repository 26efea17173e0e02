"""Where a dense regression errs: pictures of its numbers, and errors by target and by size of the truth.

One image is in memory at a time. `images` and `truth` are read by row, in the order of the table, and predictions by
id. To add a view, write a function here that takes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from kbench.data.table.table import Table
from kbench.inference.map_store import NumberSet
from kbench.pictures.figures import DPI, save_figure, shorten
from kbench.pictures.segments import VOID, Read, image_title
from kbench.pictures.sheets import Group, Tile, room_below, sheet

_VALUES, _ERRORS = "viridis", "RdBu_r"  # colour maps of matplotlib: low to high, below and above 0
_BAR = 46  # pixels of a line of the legend
_SAMPLED = 2000  # pixels of an image that say where deciles end


@dataclass(frozen=True)
class _Shown:
    """A row's maps as they are drawn: [h, w, C] image; [K, h, w] truth and prediction, if there is one."""

    image: np.ndarray
    truth: np.ndarray
    said: np.ndarray | None


def draw_numbers(
    rows: Sequence[int], path: Path, *, images: Read, truth: Read, table: Table, numbers: NumberSet | None = None,
    scores: np.ndarray | None = None, unit: str = "", title: str = "", side: int = 190,
) -> Path:  # fmt: skip
    """Draw image, truth, prediction and error of some rows beside each other, with a legend of their colours.

    All truths and predictions of a target share one scale of colours, from the 1st to the 99th percentile of what is
    shown; its errors (prediction minus truth) share another around 0. Where the truth is unknown it is grey.

    Args:
        rows: row numbers of the table.
        path: the PNG.
        images: row -> [H, W, C].
        truth: row -> [H, W, K] float32 target units, NaN where unknown, as a `MaskKind` reads it.
        table: the rows.
        numbers: the predictions; without them image and truth are drawn.
        scores: [N] of the images, written above them.
        unit: of the targets, such as `t/ha`; stands in the legend.
        title: stands above all.
        side: longer side of an image, in pixels.
    """
    names = table.target_names
    shown = [_shown(int(row), images, truth, numbers, table, side) for row in rows]
    scales = [_scales_of(shown, k) for k in range(len(names))]
    groups = [
        Group(_title(table, int(row), scores, k), _tiles(one, k, scales[k]))
        for row, one in zip(rows, shown, strict=True)
        for k in range(len(names))
    ]
    figure = sheet(groups, title=title, side=side, across=2 if numbers is None else 4)
    _legend(figure, [f"{name} [{unit}]" if unit else name for name in names], scales)
    return save_figure(figure, path)


def _shown(row: int, images: Read, truth: Read, numbers: NumberSet | None, table: Table, side: int) -> _Shown:
    said = None
    if numbers is not None:
        said = numbers[int(np.searchsorted(numbers.ids, table.ids[row]))].transpose(1, 2, 0)
    return _Shown(images(row), _few(truth(row), 2 * side), None if said is None else _few(said, 2 * side))


def _few(values: np.ndarray, side: int) -> np.ndarray:
    """Return [K, h, w] of [H, W, K] values, the longer side at most `side`: pixels are left out, none are mixed."""
    scale = min(1.0, side / max(values.shape[:2]))
    size = (max(1, round(values.shape[1] * scale)), max(1, round(values.shape[0] * scale)))
    return np.stack([
        cv2.resize(np.ascontiguousarray(values[:, :, k]), size, interpolation=cv2.INTER_NEAREST_EXACT)
        for k in range(values.shape[2])
    ])  # fmt: skip


def _title(table: Table, row: int, scores: np.ndarray | None, k: int) -> str:
    return image_title(table, row, scores) + (f", {table.target_names[k]}" if len(table.target_names) > 1 else "")


class _Scales(NamedTuple):
    """The limits of a target's colours: lowest and highest number, and largest error, if there is any."""

    low: float
    high: float
    error: float | None


def _scales_of(shown: Sequence[_Shown], k: int) -> _Scales:
    maps = [part[k] for one in shown for part in (one.truth, one.said) if part is not None]
    values = np.concatenate([np.empty(0), *(part[np.isfinite(part)] for part in maps)])
    low, high = (float(end) for end in np.percentile(values, (1, 99))) if len(values) else (0.0, 0.0)
    if high <= low:
        low, high = low - 1, high + 1
    errors = [np.abs(one.said[k] - one.truth[k]).ravel() for one in shown if one.said is not None]
    if not errors:
        return _Scales(low, high, None)
    known = np.concatenate([error[np.isfinite(error)] for error in errors])
    return _Scales(low, high, (float(np.percentile(known, 99)) if len(known) else 0.0) or 1.0)


def _tiles(shown: _Shown, k: int, scales: _Scales) -> tuple[Tile, ...]:
    tiles = (Tile(shown.image, ("image",)), Tile(coloured(shown.truth[k], scales.low, scales.high), ("truth",)))
    if shown.said is None or scales.error is None:
        return tiles
    error = coloured(shown.said[k] - shown.truth[k], -scales.error, scales.error, colours=_ERRORS)
    return (*tiles, Tile(coloured(shown.said[k], scales.low, scales.high), ("prediction",)), Tile(error, ("error",)))


def coloured(values: np.ndarray, low: float, high: float, *, colours: str = _VALUES) -> np.ndarray:
    """Return [H, W, 3] uint8 of [H, W] numbers, those beyond the limits as the limits are; NaN is grey.

    Args:
        values: the numbers.
        low: has the first colour.
        high: has the last one.
        colours: a colour map of matplotlib.
    """
    from matplotlib import colormaps

    known = ~np.isnan(values)
    shares = (np.where(known, values, low).astype(np.float64) - low) / (high - low)
    painted = (colormaps[colours](shares.clip(0, 1))[..., :3] * 255).round().astype(np.uint8)
    painted[~known] = VOID
    return np.asarray(painted)


def _legend(figure: Any, names: Sequence[str], scales: Sequence[_Scales]) -> None:
    """Make room under a sheet and say there which colour is which number and which error, target by target."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch

    share = room_below(figure, _BAR * len(names) + 22)
    height = figure.get_figheight() * DPI
    for line, (name, (low, high, most)) in enumerate(zip(names, scales, strict=True)):
        bars = [(0.03, name, low, high, _VALUES)]
        bars += [] if most is None else [(0.53, f"error of {name}", -most, most, _ERRORS)]
        for left, label, first, last, colours in bars:
            axes = figure.add_axes((left, share - (_BAR * line + 24) / height, 0.44, 10 / height))
            bar = figure.colorbar(ScalarMappable(Normalize(first, last), colours), cax=axes, orientation="horizontal")
            bar.ax.tick_params(labelsize=6.5, pad=1, length=2)
            bar.ax.set_title(shorten(label, 60), fontsize=7.5, loc="left", pad=2)
    grey = Patch(color=f"#{VOID[0]:02x}{VOID[1]:02x}{VOID[2]:02x}", label="unknown")
    figure.legend(handles=[grey], loc="lower left", frameon=False, fontsize=7.5, borderaxespad=0.2)


def truth_rows(truth: Read, rows: Iterable[int], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one record per target: `target`, `images` and `known` share of pixels, `low`, `mean`, `high`.

    Args:
        truth: row -> [H, W, K] float32, NaN where unknown; one is in memory at a time.
        rows: the row numbers that count.
        names: K target names.
    """
    images, counts, sums = np.zeros(len(names), int), np.zeros(len(names)), np.zeros(len(names))
    ends, pixels = np.array([[np.inf] * len(names), [-np.inf] * len(names)]), 0
    for row in rows:
        values = truth(row).astype(np.float64)
        known = ~np.isnan(values)
        pixels += values.shape[0] * values.shape[1]
        images += known.any((0, 1))
        counts += known.sum((0, 1))
        sums += np.where(known, values, 0).sum((0, 1))
        ends[0] = np.minimum(ends[0], np.where(known, values, np.inf).min((0, 1)))
        ends[1] = np.maximum(ends[1], np.where(known, values, -np.inf).max((0, 1)))
    return [
        {"target": name, "images": int(images[k]), "known": float(counts[k] / max(pixels, 1)),
         **(dict.fromkeys(("low", "mean", "high")) if not counts[k] else
            {"low": float(ends[0, k]), "mean": float(sums[k] / counts[k]), "high": float(ends[1, k])})}
        for k, name in enumerate(names)
    ]  # fmt: skip


def target_rows(sums: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one record per target: `target`, `images` and `pixels` that are known, `rmse` and `mae` of all pixels.

    Args:
        sums: [N, K, 3] known pixels, sums of squared and of absolute errors (`metrics/maps.py`).
        names: K target names.
    """
    total = sums.sum(0, dtype=np.float64)
    return [
        {"target": name, "images": int((sums[:, k, 0] > 0).sum()), "pixels": int(total[k, 0]),
         "rmse": float(np.sqrt(total[k, 1] / total[k, 0])) if total[k, 0] else None,
         "mae": float(total[k, 2] / total[k, 0]) if total[k, 0] else None}
        for k, name in enumerate(names)
    ]  # fmt: skip


def decile_rows(numbers: NumberSet, truth: Read, table: Table, rows: Iterable[int]) -> list[dict[str, Any]]:
    """Return the error by decile of the truth: one record per target and tenth of its known pixels, low to high.

    A record has `target`, `truth` (from, to below), `pixels`, `mean` (of the truth), `rmse`, `mae` and `bias` (mean of
    prediction minus truth). Where many pixels have one value there are fewer records. The limits are those of up to
    2,000 pixels of each image, evenly chosen; the pixels are all counted.

    Args:
        numbers: the predictions.
        truth: row -> [H, W, K] float32, NaN where unknown.
        table: the rows.
        rows: the row numbers that count; each truth is read twice, each prediction once.
    """
    chosen, names = [int(row) for row in rows], numbers.names
    edges = _decile_edges(truth, chosen, len(names))
    sums = [np.zeros((max(len(limits) - 1, 0), 5)) for limits in edges]
    for row in chosen:
        said, real = numbers[int(np.searchsorted(numbers.ids, table.ids[row]))], truth(row)
        for k, limits in enumerate(edges):
            known = ~np.isnan(real[:, :, k])
            if len(limits):
                sums[k] += _decile_sums(real[:, :, k][known], said[k][known], limits)
    return [
        record for name, limits, total in zip(names, edges, sums, strict=True)
        for record in _decile_records(name, limits, total)
    ]  # fmt: skip


def _decile_edges(truth: Read, rows: Sequence[int], k: int) -> list[np.ndarray]:
    """Return the limits of each target's deciles, each once; the first and the last are those of all its pixels."""
    sampled: list[list[np.ndarray]] = [[] for _ in range(k)]
    ends = np.array([[np.inf, -np.inf]] * k)
    for row in rows:
        real = truth(row)
        for place in range(k):
            values = real[:, :, place][~np.isnan(real[:, :, place])]
            if len(values):
                sampled[place].append(values[np.linspace(0, len(values) - 1, min(_SAMPLED, len(values))).astype(int)])
                ends[place] = min(ends[place, 0], values.min()), max(ends[place, 1], values.max())
    return [
        _limits(low, high, parts) if parts else np.empty(0) for (low, high), parts in zip(ends, sampled, strict=True)
    ]


def _limits(low: float, high: float, sampled: Sequence[np.ndarray]) -> np.ndarray:
    inner = np.quantile(np.concatenate(sampled).astype(np.float64), np.arange(1, 10) / 10)
    return np.unique([low, *inner, high]) if low < high else np.array([low, high])


def _decile_sums(truth: np.ndarray, said: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return [bins, 5] sums over [n] pixels: their number, truth, squared, absolute and signed errors."""
    real, error = truth.astype(np.float64), said.astype(np.float64) - truth
    place = np.clip(np.searchsorted(limits, real, side="right") - 1, 0, max(len(limits) - 2, 0))
    parts = (np.ones(len(real)), real, error**2, np.abs(error), error)
    bins = len(limits) - 1
    return np.stack([np.bincount(place, weights=part, minlength=bins)[:bins] for part in parts], axis=1)


def _decile_records(name: str, limits: np.ndarray, sums: np.ndarray) -> list[dict[str, Any]]:
    last = len(limits) - 2
    return [
        {"target": name, "truth": f"{low:g} to {'' if place == last else 'below '}{high:g}", "pixels": int(total[0]),
         "mean": total[1] / total[0], "rmse": float(np.sqrt(total[2] / total[0])), "mae": total[3] / total[0],
         "bias": total[4] / total[0]}
        for place, ((low, high), total) in enumerate(zip(pairwise(limits.tolist()), sums.tolist(), strict=True))
        if total[0]
    ]  # fmt: skip
