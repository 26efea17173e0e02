"""The chapter of `kbench inspect` for segmentations: how much of every class there is, and masks over their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kbench.commands import parts
from kbench.commands.setup import Setup
from kbench.data.whole import class_pixels
from kbench.report import segments
from kbench.report.sheets import Group, Tile, draw_sheet
from kbench.tasks import exclusive
from kbench.training.context import KEEP

_COUNTED = 500  # masks at most
_SHOWN = 8


def mask_balance(setup: Setup) -> list[dict[str, Any]]:
    """Return one record per class: `class`, `images` that have it and their `share`, `pixels` (share of what is known).

    Up to 500 masks, evenly chosen, are counted.
    """
    table, cache = setup.train, setup.workspace.cache()
    masks = parts.masks_of(setup.competition, table, cache, what="training")
    assert masks is not None, "a segmentation has masks"
    names, opened = table.target_names, masks(KEEP)
    rows = np.unique(np.linspace(0, len(table) - 1, min(_COUNTED, len(table))).astype(int))
    counted = [class_pixels(opened, rows[place : place + 1], len(names), table.task) for place in range(len(rows))]
    pixels = np.stack([counts for counts, _ in counted])  # [n, K]
    known = sum(total for _, total in counted)
    return [
        {"class": name, "images": int((pixels[:, k] > 0).sum()), "share": float((pixels[:, k] > 0).mean()),
         "pixels": float(pixels[:, k].sum() / max(known, 1))}
        for k, name in enumerate(names)
    ]  # fmt: skip


def draw_masks(setup: Setup, path: Path) -> Path:
    """Draw images beside their masks, evenly chosen; return the picture."""
    table, cache, competition = setup.train, setup.workspace.cache(), setup.competition
    masks = parts.masks_of(competition, table, cache, what="training")
    assert masks is not None, "a segmentation has masks"
    images, truth = parts.opened_images(competition, table, cache, what="training")(KEEP), masks(KEEP)
    colours, index = segments.class_colours(len(table.target_names)), exclusive(table.task, len(table.target_names))
    groups = []
    for row in np.unique(np.linspace(0, len(table) - 1, min(_SHOWN, len(table))).astype(int)):
        image, mask = images[int(row)], segments.as_mask(truth[int(row)], index=index)
        tiles = [Tile(image, (str(table.ids[row]),)), Tile(segments.paint(mask, colours, image), ("mask",))]
        groups.append(Group("", tiles))
    return draw_sheet(groups, path, title="images and their masks; grey is ignored", across=2, side=220)
