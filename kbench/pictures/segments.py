"""Where a segmentation errs: pictures with their masks, and numbers by class, slice and pair of classes.

Everything is made of counts of pixels, or of one image at a time. `images`, `truth` and `masks` are read by row, in
the order of the table. To add a view, write a function here that takes the same.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kbench.data.table.table import Table
from kbench.inference.map_store import MaskSet
from kbench.metrics.maps import image_confusion, rmse_per_image, truth_of
from kbench.metrics.metric import Metric
from kbench.metrics.segmentation import class_ious
from kbench.pictures.figures import DPI, save_figure, shorten
from kbench.pictures.sheets import Group, Tile, displayable, room_below, sheet
from kbench.pictures.tables import slice_table, slices_of
from kbench.tasks import IGNORED, SEGMENTATION

Read = Callable[[int], np.ndarray]
VOID = (96, 96, 96)  # what is not known


def class_colours(n: int) -> np.ndarray:
    """Return [n, 3] uint8 colours that can be told apart: hues by the golden ratio, in turn light and dark."""
    tints = ((0.75, 1.0), (0.95, 0.75), (0.5, 0.95))
    colours = [colorsys.hsv_to_rgb((0.6 + k * 0.61803399) % 1, *tints[k % 3]) for k in range(n)]
    return (np.array(colours).reshape(n, 3) * 255).round().astype(np.uint8)


def paint(mask: np.ndarray, colours: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Return [H, W, 3] uint8: classes in their colours, void grey, laid over the image where one is given.

    Args:
        mask: [H, W] class index, 255 where ignored, or [K, H, W] layers of 0 and 1 (255 where ignored); later layers
            cover earlier ones.
        colours: [K, 3] uint8.
        image: [H, W, C], shown through where nothing is predicted, and faintly elsewhere.
    """
    shape = mask.shape[-2:]
    below = np.full((*shape, 3), 255, np.uint8) if image is None else displayable(image)
    over, seen = below.copy(), np.zeros(shape, dtype=bool)
    layers = [mask == k for k in range(len(colours))] if mask.ndim == 2 else [layer == 1 for layer in mask]
    void = mask == IGNORED if mask.ndim == 2 else (mask == IGNORED).all(0)
    for layer, colour in [*zip(layers, colours, strict=True), (void, VOID)]:
        over[layer], seen = colour, seen | layer
    if image is None:
        return over
    mixed = cv2.addWeighted(below, 0.4, over, 0.6, 0)
    return np.where(seen[:, :, None], mixed, below)


def as_mask(truth: np.ndarray, *, index: bool) -> np.ndarray:
    """Return a true mask [H, W, M] as a predicted one looks: [H, W], or [K, H, W]."""
    return truth[:, :, 0] if index else truth.transpose(2, 0, 1)


def image_scores(metric: Metric, counts: np.ndarray, table: Table) -> np.ndarray:
    """Return [N] scores of the images; NaN where one has none.

    They are those of the metric where it is a mean over images, else the mean IoU of the classes in the image's truth,
    or the root mean squared error of numbers.

    Args:
        metric: the competition's.
        counts: [N, K, 3], or sums of errors.
        table: the N rows.
    """
    truth = truth_of(counts, table.task)
    if metric.per_row is not None:
        return metric.per_row(truth, counts, table)
    if table.task not in SEGMENTATION:
        return rmse_per_image(truth, counts, table)
    ious, present = class_ious(counts)
    sums, sizes = np.where(present, ious, 0).sum(1), present.sum(1)
    return np.asarray(np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0))


def worst_rows(scores: np.ndarray, k: int, *, maximise: bool = True) -> np.ndarray:
    """Return up to `k` row numbers, the worst first; rows without a score are left out."""
    rows = np.flatnonzero(~np.isnan(scores))
    order = scores[rows] if maximise else -scores[rows]
    return np.asarray(rows[np.argsort(order, kind="stable")][:k])


def random_rows(n: int, k: int, *, seed: int = 0) -> np.ndarray:
    """Return up to `k` of `n` row numbers in order, the same for the same seed."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:k])


def draw_triplets(
    rows: Sequence[int], path: Path, *, images: Read, truth: Read, masks: MaskSet, table: Table,
    scores: np.ndarray | None = None, title: str = "", side: int = 250,
) -> Path:  # fmt: skip
    """Draw image, truth and prediction of some rows beside each other, and which colour is which class (row S-15).

    Args:
        rows: row numbers of the table.
        path: the PNG.
        images: row -> [H, W, C].
        truth: row -> the true mask as a `MaskKind` reads it.
        masks: the predictions.
        table: the rows.
        scores: [N] of the images, written above them.
        title: stands above all.
        side: longer side of an image, in pixels.
    """
    colours = class_colours(len(masks.names))
    groups = [_triplet(int(row), images, truth, masks, table, scores, colours=colours) for row in rows]
    figure = sheet(groups, title=title, side=side, across=3)
    _legend(figure, masks.names, colours)
    return save_figure(figure, path)


def _triplet(
    row: int, images: Read, truth: Read, masks: MaskSet, table: Table, scores: np.ndarray | None, *,
    colours: np.ndarray,
) -> Group:  # fmt: skip
    image = images(row)
    said = masks[int(np.searchsorted(masks.ids, table.ids[row]))]
    real = as_mask(truth(row), index=said.ndim == 2)
    tiles = (
        Tile(image, ("image",)),
        Tile(paint(real, colours, image), ("truth",)),
        Tile(paint(said, colours, image), ("prediction",)),
    )
    return Group(image_title(table, row, scores), tiles)


def image_title(table: Table, row: int, scores: np.ndarray | None) -> str:
    """Return a row's id with its score, where it has one."""
    known = "" if scores is None or np.isnan(scores[row]) else f": {scores[row]:.3f}"
    return f"{table.ids[row]}{known}"


def _legend(figure: Any, names: Sequence[str], colours: np.ndarray) -> None:
    """Make room under a sheet and say there which colour is which class."""
    from matplotlib.patches import Patch

    longest = max(len(shorten(name, 24)) for name in [*names, "ignored"])
    columns = max(1, min(len(names) + 1, int(figure.get_figwidth() * DPI / (longest * 7 + 45))))
    room_below(figure, 18 * -(-(len(names) + 1) // columns) + 16)
    coded = [*zip(names, colours.tolist(), strict=True), ("ignored", list(VOID))]
    patches = [Patch(color=f"#{red:02x}{green:02x}{blue:02x}", label=shorten(name, 24))
               for name, (red, green, blue) in coded]  # fmt: skip
    figure.legend(handles=patches, loc="lower left", ncols=columns, frameon=False, fontsize=7.5, borderaxespad=0.4)


def class_rows(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one record per class: `class`, `images` and `pixels` (share of the truth), and its scores.

    Args:
        counts: [N, K, 3].
        names: K class names.
    """
    total = counts.sum(0, dtype=np.float64)
    real = total[:, 0] + total[:, 2]
    records = []
    for k, name in enumerate(names):
        tp, fp, fn = total[k].tolist()
        records.append({
            "class": name, "images": int((counts[:, k, 0] + counts[:, k, 2] > 0).sum()),
            "pixels": _ratio(real[k], real.sum()), "iou": _ratio(tp, tp + fp + fn),
            "dice": _ratio(2 * tp, 2 * tp + fp + fn), "recall": _ratio(tp, tp + fn), "precision": _ratio(tp, tp + fp),
        })  # fmt: skip
    return records


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def slice_rows(
    metric: Metric, counts: np.ndarray, table: Table, column: str, *, groups: np.ndarray | None = None, draws: int = 500
) -> list[dict[str, Any]]:
    """Return the score of each slice of the images with its interval, and of masks the IoU of each class in it.

    Args:
        metric: the competition's.
        counts: [N, K, 3].
        table: the N rows.
        column: a metadata column, such as a route or the light.
        groups: [N] labels; intervals draw whole groups.
        draws: resamples.

    Raises:
        DataError: there is no such column.
    """
    told = replace(table, targets=truth_of(counts, table.task))
    rows = slice_table(metric, told, counts, column, groups=groups, draws=draws)
    slices, _ = slices_of(table, column)
    for place, record in enumerate(rows if table.task in SEGMENTATION else ()):
        record |= {one["class"]: one["iou"] for one in class_rows(counts[slices == place], table.target_names)}
    return rows


def pixel_confusion(masks: MaskSet, truth: Read, table: Table, rows: Iterable[int]) -> np.ndarray:
    """Return [K, K] int64 pixels by true and predicted class of classes that exclude one another.

    Args:
        masks: the predictions.
        truth: row -> the true mask as a `MaskKind` reads it.
        table: the rows.
        rows: the row numbers that count; one image is in memory at a time.
    """
    k = len(masks.names)
    total = np.zeros((k, k), dtype=np.int64)
    for row in rows:
        total += image_confusion(masks[int(np.searchsorted(masks.ids, table.ids[row]))], truth(row), n_classes=k)
    return total
