"""Polygons as WKT: `ImageId,ClassType,MultipolygonWKT`, one row per image and class (D-15 to D-17).

To add another format, see `base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from kbench.data.images.georeference import rasterio_or_raise, shapely_or_raise
from kbench.data.masks.polygons import EMPTY, Grid, as_wkt, check_inside, outlines, parsed, rasterised, read_grids
from kbench.data.table.csv_files import texts
from kbench.errors import DataError, Problem, SubmissionError, check_number, counted, first_names, nearest
from kbench.inference.map_store import MaskSet
from kbench.registry import register
from kbench.submission.formats.base import Format, check_task, id_column, one_column
from kbench.submission.formats.mask_cells import (
    Sizes,
    check_written,
    lacking,
    no_sizes,
    read_masks,
    refuse_maps,
    shown,
)
from kbench.tasks import SEGMENTATION, exclusive

_EXACT = 0.5  # simplified by this or less, every pixel stays what it is


@register("format")
def wkt(
    *, keys: tuple[str, str] = ("ImageId", "ClassType"), labels: dict[str, str] | None = None, first_class: int = 1,
    grid: str | None = None, simplify: float = 0.5, _names: tuple[str, ...], _task: str, _sizes: Sizes | None = None,
    _root: Path = Path(),
) -> Format:  # fmt: skip
    """Return the format with polygons along the edges of pixels, valid when they are read again.

    Up to `simplify: 0.5` the polygons of a mask are that mask, which is held against it when they are written.

    Args:
        keys: the columns of the sample that tell its rows apart: the image's, its first, and the class's, which a
            sample of one class may lack.
        labels: class -> its text in the class's column; its name, or its number where that is what the sample has.
        first_class: number of the first class.
        grid: CSV with id, Xmax and Ymin, below the data folder, such as `grid_sizes.csv`; without it coordinates are
            pixels.
        simplify: how far a line may be from the edges it stands for, in pixels.
        _names: the competition's classes.
        _task: its task.
        _sizes: image id -> its height and width.
        _root: the data folder.

    Raises:
        ConfigError: the task has no masks, a value is out of range, or shapely is missing.
    """
    check_task(_task, SEGMENTATION, format="wkt")
    check_number("simplify", simplify, "[0, 100]")
    shapely_or_raise("the format 'wkt'")
    rasterio_or_raise("the format 'wkt'")
    rows = _Rows(keys[0], keys[1], labels or {}, first_class, _names)
    size_of, grids = _sizes or no_sizes, cache(lambda: read_grids(_root / str(grid)))

    def grid_of(image: str) -> Grid:
        if grid is None:
            return Grid()
        if image not in grids():
            raise SubmissionError(
                f"'{grid}' has no size of '{image}'", "Xmax and Ymin of every image", "correct submission.format.grid"
            )
        return Grid.of(size_of(image), *grids()[image])

    def encoded(image: str, layer: np.ndarray) -> str:
        scale = grid_of(image)
        text = as_wkt(outlines(layer, simplify=simplify), scale)
        if simplify <= _EXACT:
            check_written(image, layer, rasterised(parsed(text, scale, of=image), layer.shape))
        return text

    def build(masks: MaskSet, sample: pd.DataFrame) -> pd.DataFrame:
        asked, problems = rows.asked(sample)
        absent = sorted({_names[k] for slots in asked.values() for k in slots if _names[k] not in masks.names})
        problems += lacking(list(asked), masks, where=id_column(sample))
        problems += [Problem("classes", f"the masks have no class {first_names(absent)}")] if absent else []
        refuse_maps(problems)
        cells = np.empty(len(sample), dtype=object)
        for image, slots in sorted(asked.items()):
            order = sorted(slots)
            numbers = [masks.names.index(_names[k]) for k in order]
            mask = shown(masks, int(np.searchsorted(masks.ids, image)), numbers)
            for place, k in enumerate(order):
                layer = (mask == place if mask.ndim == 2 else mask[place]).astype(np.uint8)
                cells[slots[k]] = encoded(image, layer)
        known = {name: texts(sample, name) for name in map(str, sample.columns)}
        return pd.DataFrame({**known, rows.column(sample): cells})

    def layer_of(text: str, image: str, k: int, *, wholly: bool) -> np.ndarray:
        what, size = f"'{image}', '{_names[k]}'", size_of(image)
        if not text.strip():
            raise DataError(f"{what} has no text", f"`{EMPTY}` where there is nothing", "write it")
        geometry = parsed(text, grid_of(image), of=what)
        check_inside(geometry, size, of=what, wholly=wholly)
        return rasterised(geometry, size)

    def parse(frame: pd.DataFrame, sample: pd.DataFrame) -> MaskSet:
        asked, _ = rows.asked(frame)
        cells = texts(frame, rows.column(frame)).tolist()
        written = sorted({k for slots in asked.values() for k in slots})

        def read(image: str) -> np.ndarray:
            slots, size = asked[image], size_of(image)
            layers = [
                layer_of(cells[slots[k]], image, k, wholly=False) if k in slots else np.zeros(size, dtype=np.uint8)
                for k in written
            ]
            return _one_mask(np.stack(layers), index=exclusive(_task, len(_names)))

        return read_masks(list(asked), [_names[k] for k in written], read, names=_names, task=_task)

    def problems_of(frame: pd.DataFrame, sample: pd.DataFrame, *, wholly: bool = True) -> list[Problem]:
        asked, problems = rows.asked(frame)
        if problems:
            return problems
        cells = texts(frame, rows.column(frame)).tolist()
        for image, slots in asked.items():
            for k, row in slots.items():
                try:
                    layer_of(cells[row], image, k, wholly=wholly)
                except (DataError, SubmissionError) as error:
                    problems.append(Problem(image, error.what))
        return problems[:20]

    return Format(
        ".csv", build, parse, problems_of, text=True, exact=True, key=(keys[1],),
        truth_problems=lambda frame, sample: problems_of(frame, sample, wholly=False),
        own_sample=rows.own_sample,
    )  # fmt: skip


class _Rows:
    """What the rows of a sample ask for: which image, and which class.

    Args:
        image: column with the image.
        label: column with the class.
        labels: class -> its text.
        first: number of the first class.
        names: K classes.
    """

    def __init__(self, image: str, label: str, labels: dict[str, str], first: int, names: tuple[str, ...]) -> None:
        self._image, self._label, self._labels, self._first, self._names = image, label, labels, first, names

    def column(self, frame: pd.DataFrame) -> str:
        """Return the column of the texts."""
        return one_column(frame.drop(columns=self._label, errors="ignore"), format="wkt")

    def asked(self, frame: pd.DataFrame) -> tuple[dict[str, dict[int, int]], list[Problem]]:
        """Return image -> class number -> row, and what is wrong with the rows."""
        columns = [str(name) for name in frame.columns]
        key = [self._label] if self._label in columns[1:] else []
        if not key and len(self._names) > 1:
            what = f"no column '{self._label}' tells {len(self._names)} classes apart; there are {first_names(columns)}"
            return {}, [Problem("submission.format.keys", what, nearest(self._label, columns))]
        images = texts(frame, columns[0]).tolist()
        written = texts(frame, key[0]).tolist() if key else [""] * len(images)
        called = self._called(set(written))
        asked: dict[str, dict[int, int]] = {}
        strange, twice = list[str](), list[str]()
        for row, (image, text) in enumerate(zip(images, written, strict=True)):
            k = called.get(text) if key else 0
            if k is None:
                strange.append(text)
            elif asked.setdefault(image, {}).setdefault(k, row) != row:
                twice.append(f"{image}, {text}")
        problems = []
        if strange:
            what = f"{counted(len(strange), 'row')} of no class: {first_names(sorted(set(strange)))}"
            problems.append(Problem(key[0], what, f"classes are called {first_names(list(called), 20)}"))
        if twice:
            problems.append(Problem(columns[0], f"rows that stand twice: {first_names(twice)}"))
        return asked, problems

    def _called(self, written: set[str]) -> dict[str, int]:
        """Return text -> class number."""
        called = {}
        for k, name in enumerate(self._names):
            number = str(k + self._first)
            plain = number if name not in written and number in written else name
            called[self._labels.get(name, plain)] = k
        return called

    def own_sample(self, images: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        """Return a row for every image and class."""
        named = [name for name in columns if name.lower() not in ("usage", self._label.lower())]
        text = named[1] if len(named) == 2 else "MultipolygonWKT"
        head = [named[0] if named else self._image, self._label, text]
        rows = [
            (image, self._labels.get(name, str(k + self._first)), EMPTY)
            for image in images
            for k, name in enumerate(self._names)
        ]
        return pd.DataFrame(rows, columns=head, dtype=str)


def _one_mask(layers: np.ndarray, *, index: bool) -> np.ndarray:
    """Return [k, H, W] layers, or [H, W] class numbers, 255 for none, of classes that exclude one another."""
    if not index:
        return layers
    mask: np.ndarray = layers.argmax(0).astype(np.uint8)
    return np.where(layers.any(0), mask, 255).astype(np.uint8)
