"""What a competition's rows are, before anything is trained: targets, image sizes, missing values.

Each picture has a function that counts and one that draws. To add a look at the data, write such a pair here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kbench.data.table.table import Table
from kbench.pictures.figures import SERIES, blank_figure, new_figure, save_figure, shorten, tidy

_LARGEST = 24.0  # inches


def balance_table(table: Table) -> list[dict[str, Any]]:
    """Return one record per target.

    Classes and labels: `target`, `rows` that have it and their `share`. Regression: `target`, `rows` (known), `mean`,
    `std`, `min`, `median`, `max`. Nothing for tables without scalar targets.
    """
    if table.targets is None:
        return []
    if table.task == "regression":
        return [_number_row(name, table.targets[:, k]) for k, name in enumerate(table.target_names)]
    counts = positives(table)
    known = np.full(len(counts), len(table)) if table.targets.ndim == 1 else (~np.isnan(table.targets)).sum(axis=0)
    return [
        {"target": name, "rows": int(count), "share": float(count / max(1, total))}
        for name, count, total in zip(table.target_names, counts, known, strict=True)
    ]


def positives(table: Table) -> np.ndarray:
    """Return [K] rows of each class or label."""
    assert table.targets is not None, "asked only of rows with targets"
    if table.targets.ndim == 1:
        return np.bincount(table.targets, minlength=len(table.target_names))
    return np.asarray(np.nansum(table.targets, axis=0).astype(np.int64))


def _number_row(name: str, values: np.ndarray) -> dict[str, Any]:
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        return {"target": name, "rows": 0, **dict.fromkeys(("mean", "std", "min", "median", "max"))}
    return {
        "target": name, "rows": len(known), "mean": float(known.mean()), "std": float(known.std()),
        "min": float(known.min()), "median": float(np.median(known)), "max": float(known.max()),
    }  # fmt: skip


def draw_balance(table: Table, path: Path) -> Path:
    """Draw rows per class or label, or the distribution of every regression target; return the picture.

    Up to 60 classes keep their order; more are sorted by size, so that the long tail shows.
    """
    if table.task == "regression":
        return _draw_distributions(table, path)
    counts, names = positives(table), list(table.target_names)
    if len(names) > 60:
        order = np.argsort(-counts, kind="stable")
        counts, names = counts[order], [names[place] for place in order]
    line = min(0.3, max(0.13, _LARGEST / len(names)), _LARGEST / len(names))
    figure, axes = new_figure(width=7.5, height=len(names) * line + 1.2)
    size = min(9.0, line * 52)
    if size >= 4:
        places = np.arange(len(names))
        axes.barh(places, counts, color=SERIES[0], height=0.8)
        axes.set_yticks(places, [shorten(name, 30) for name in names], fontsize=size)
        for place, count in zip(places, counts, strict=True):
            axes.text(count, place, f" {count:,}", va="center", fontsize=size, color="0.3")
    else:
        edges = np.arange(len(names) + 1) - 0.5
        axes.stairs(counts, edges, orientation="horizontal", fill=True, color=SERIES[0])
        axes.set(ylabel=f"{len(names):,} targets, the largest first")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.1)
    what = "rows per class" if table.task == "single_label" else "rows that have a label"
    axes.set_title(f"{what}: {int(counts.min()):,} to {int(counts.max()):,}", fontsize=10, loc="left")
    tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="rows")
    return save_figure(figure, path)


def _draw_distributions(table: Table, path: Path) -> Path:
    assert table.targets is not None, "asked only of rows with targets"
    count = len(table.target_names)
    across = min(3, count)
    down = -(-count // across)
    figure = blank_figure(width=4.0 * across + 0.5, height=2.8 * down + 0.4)
    for place, name in enumerate(table.target_names):
        axes = figure.add_subplot(down, across, place + 1)
        values = table.targets[:, place]
        axes.hist(values[~np.isnan(values)], bins=40, color=SERIES[0])
        unknown = int(np.isnan(values).sum())
        axes.set_title(shorten(name, 40) + (f" ({unknown:,} unknown)" if unknown else ""), fontsize=10, loc="left")
        axes.set(ylabel="rows")
        tidy(axes)
    return save_figure(figure, path)


def cooccurrence(targets: np.ndarray) -> np.ndarray:
    """Return [K, K] int64: rows that have both labels; the diagonal counts each label's rows.

    Args:
        targets: [N, K] 0 and 1, NaN where unknown.
    """
    has = np.nan_to_num(targets).astype(np.float32)
    return np.asarray(np.rint(has.T @ has).astype(np.int64))


def draw_cooccurrence(matrix: np.ndarray, names: Sequence[str], path: Path) -> Path:
    """Draw which labels come together: of the rows with the label of a line, the share with that of a column."""
    k = len(matrix)
    cell = min(0.5, max(0.16, 8 / k), _LARGEST / k)
    share = matrix / np.maximum(np.diagonal(matrix)[:, None], 1)
    figure, axes = new_figure(width=k * cell + 2.6, height=k * cell + 2.0)
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = min(9.0, cell * 45)
    axes.set_xticks(range(k), [shorten(name, 24) for name in names], rotation=90, fontsize=size)
    axes.set_yticks(range(k), [shorten(name, 24) for name in names], fontsize=size)
    if cell >= 0.28:
        for row, column in np.argwhere(matrix):
            colour = "white" if share[row, column] > 0.55 else "0.2"
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=min(8.0, cell * 22), color=colour)
    axes.set(xlabel="also has", ylabel="of the rows with")
    axes.set_title("labels that come together, per cent", fontsize=10, loc="left")
    axes.tick_params(length=0)
    figure.colorbar(drawn, ax=axes, shrink=0.6)
    return save_figure(figure, path)


Sizes = Mapping[tuple[int, int, int], int]
"""(height, width, channels) -> number of images."""


def size_table(sizes: Mapping[str, Sizes], *, limit: int = 10) -> list[dict[str, Any]]:
    """Return the commonest image sizes of each split: `split`, `height`, `width`, `channels`, `images`."""
    return [
        {"split": split, "height": size[0], "width": size[1], "channels": size[2], "images": count}
        for split, sizes_of_split in sizes.items()
        for size, count in Counter(sizes_of_split).most_common(limit)
    ]


def draw_sizes(sizes: Mapping[str, Sizes], path: Path) -> Path:
    """Draw the heights, widths and aspects of images, training and test beside each other; return the picture.

    Args:
        sizes: split -> its sizes.
        path: the PNG.
    """
    figure = blank_figure(width=11, height=3.4)
    looks = (("height", "pixels"), ("width", "pixels"), ("width / height", "aspect"))
    for place, (what, unit) in enumerate(looks):
        axes = figure.add_subplot(1, 3, place + 1)
        columns = {split: _column(sizes_of_split, place) for split, sizes_of_split in sizes.items() if sizes_of_split}
        bins = _bins([values for values, _ in columns.values()])
        for colour, (split, (values, weights)) in zip(SERIES, columns.items(), strict=False):
            share = weights / weights.sum()
            axes.hist(values, bins=bins, weights=share, color=colour, alpha=0.55, label=split)
        axes.set_title(what, fontsize=10, loc="left")
        axes.set(xlabel=unit, ylabel="share of images" if not place else "")
        tidy(axes)
        if place == 2 and len(columns) > 1:
            axes.legend(frameon=False)
    return save_figure(figure, path)


def _column(sizes: Sizes, place: int) -> tuple[np.ndarray, np.ndarray]:
    shape = np.array(list(sizes), dtype=np.float64)
    values = shape[:, 1] / shape[:, 0] if place == 2 else shape[:, place]
    return values, np.array(list(sizes.values()), dtype=np.float64)


def _bins(columns: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate(columns)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or max(0.1 * abs(high), 0.5)
    return np.linspace(low - margin, high + margin, 31)


def missing_table(table: Table) -> list[dict[str, Any]]:
    """Return what is not known of the rows: `column`, `missing`, `share`; columns without a gap are left out."""
    gaps: list[tuple[str, int]] = []
    if table.targets is not None and table.targets.ndim == 2:
        unknown = np.isnan(table.targets).sum(axis=0)
        gaps += [(str(name), int(count)) for name, count in zip(table.target_names, unknown, strict=True)]
    if table.meta is not None:
        for name in table.meta.columns:
            cells = np.char.lower(np.char.strip(table.column(str(name)).astype(str)))
            gaps.append((str(name), int(np.isin(cells, ("", "nan", "na", "null", "none")).sum())))
    return [{"column": name, "missing": count, "share": count / max(1, len(table))} for name, count in gaps if count]
