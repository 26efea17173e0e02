"""Masks of polygons: WKT texts in a CSV, and GeoJSON files in the coordinates of their raster (D-15).

Outlines run along the edges of pixels, whose corners are whole numbers, and a pixel is inside where its middle is: so a
mask becomes polygons and the same mask again, which contours through the middles of pixels do not give. To read another
kind of file with polygons, turn it into shapely's geometries of pixel coordinates and give them to `rasterised`.

Shapely and rasterio are the extra `satellite`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kbench.data.images.georeference import rasterio_or_raise, read_georeference, shapely_or_raise
from kbench.data.masks.classes import background_of, names_problems, raise_masks, united, with_object
from kbench.data.masks.mask_files import Place, shared_problems, stray_files
from kbench.data.masks.run_length_csv import OBJECTS, find_texts
from kbench.data.table.csv_files import numbers, read_frame, texts
from kbench.data.table.image_files import find_files, stem
from kbench.data.table.reading import Cells, MaskKind, MaskRows, Request, Size, file_problems
from kbench.errors import DataError, Problem, counted, first_names, nearest
from kbench.registry import register
from kbench.tasks import SEGMENTATION

EMPTY = "MULTIPOLYGON EMPTY"
_DECIMALS = 8
_SMALL = re.compile(r"-?[0-9.]+e-[0-9]+")  # which shapely writes with all their digits
_SLACK = 1.0  # pixels a polygon may reach beyond its image


@dataclass(frozen=True)
class Grid:
    """How the coordinates of a scene's texts become pixels: x * across = column, y * down = row.

    Attributes:
        across: pixels of a unit of x.
        down: pixels of a unit of y; below 0 where y points up.
    """

    across: float = 1.0
    down: float = 1.0

    @classmethod
    def of(cls, size: Size, x_max: float, y_min: float) -> Grid:
        """Return the grid of a scene of H x W pixels by DSTL's rule: W' = W * W / (W + 1) pixels for Xmax, H' alike."""
        height, width = size
        return cls(width * width / (width + 1) / x_max, height * height / (height + 1) / y_min)


def read_grids(path: Path) -> dict[str, tuple[float, float]]:
    """Return id -> Xmax and Ymin of a `grid_sizes.csv`, whose first column, maybe without a name, is the id.

    Raises:
        DataError: it cannot be read, or has no such numbers.
    """
    frame = read_frame(path, text=True)
    lacking = [name for name in ("Xmax", "Ymin") if name not in frame.columns[1:]]
    if lacking:
        raise DataError(
            f"'{path}' has no column {first_names(lacking)}", "columns of the id, Xmax and Ymin",
            "name the right file in `grid:`",
        )  # fmt: skip
    values = numbers(frame, ["Xmax", "Ymin"])
    ids = texts(frame, str(frame.columns[0])).tolist()
    wrong = [name for name, pair in zip(ids, values.tolist(), strict=True) if not np.isfinite(pair).all() or 0 in pair]
    if wrong:
        raise DataError(
            f"'{path}' has no size of {first_names(wrong)}", "Xmax and Ymin that are numbers, not 0", "correct the file"
        )
    return {name: (float(x), float(y)) for name, (x, y) in zip(ids, values.tolist(), strict=True)}


def parsed(text: str, grid: Grid, *, of: str) -> Any:
    """Return the geometry of a text in pixel coordinates.

    Args:
        text: WKT of a polygon, or several.
        grid: of its scene.
        of: what it is, for messages.

    Raises:
        DataError: it is no WKT, no polygon, or crosses itself.
    """
    shapely = shapely_or_raise("a WKT mask")
    expected = f"a POLYGON or MULTIPOLYGON, `{EMPTY}` where there is nothing"
    try:
        geometry = shapely.from_wkt(text)
    except shapely.errors.GEOSException as error:
        raise DataError(f"{of}: '{text[:40]}' is no WKT: {error}", expected, "correct the text") from error
    if geometry.is_empty:
        return shapely.MultiPolygon()
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        raise DataError(f"{of} is a {geometry.geom_type}", expected, "correct the text")
    if not geometry.is_valid:
        why = shapely.is_valid_reason(geometry)
        raise DataError(f"{of} is no valid polygon: {why}", "rings that do not cross", "repair it with `make_valid`")
    return shapely.transform(geometry, lambda points: points * (grid.across, grid.down))


def check_inside(geometry: Any, size: Size, *, of: str, wholly: bool) -> None:
    """Refuse a geometry of pixel coordinates outside of its image.

    Args:
        geometry: of shapely.
        size: H and W.
        of: what it is, for the message.
        wholly: whether all of it must lie inside, a pixel or less aside; else a part is enough.

    Raises:
        DataError: it does not.
    """
    if geometry.is_empty:
        return
    left, top, right, bottom = geometry.bounds
    beyond = max(-left, -top, right - size[1], bottom - size[0])
    nowhere = right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]
    if nowhere or (wholly and beyond > _SLACK):
        raise DataError(
            f"{of} lies {'wholly ' if nowhere else ''}outside of its image of {size[0]} x {size[1]} pixels: "
            f"columns {left:.1f} to {right:.1f}, rows {top:.1f} to {bottom:.1f}",
            "polygons inside the image", "look at Xmax and Ymin of its grid, and at the signs",
        )  # fmt: skip


def rasterised(geometry: Any, size: Size) -> np.ndarray:
    """Return the [H, W] uint8 pixels, 0 or 1, whose middles are inside a geometry of pixel coordinates."""
    rasterio = rasterio_or_raise("a mask of polygons")
    if geometry.is_empty:
        return np.zeros(size, dtype=np.uint8)
    return np.asarray(rasterio.features.rasterize([geometry], out_shape=size, fill=0, default_value=1, dtype="uint8"))


def outlines(layer: np.ndarray, *, simplify: float = 0.5) -> Any:
    """Return the valid MultiPolygon, in pixel coordinates, of an [H, W] layer of 0 and 1.

    Args:
        layer: pixels that touch at corners alone are of two polygons.
        simplify: how far a line may be from the edges it stands for, in pixels; up to 0.5 no pixel changes.
    """
    rasterio, shapely = rasterio_or_raise("a mask of polygons"), shapely_or_raise("a mask of polygons")
    layer = np.ascontiguousarray(layer != 0).astype(np.uint8)
    drawn = rasterio.features.shapes(layer, mask=layer.astype(bool), connectivity=4)
    parts = shapely.simplify([shapely.geometry.shape(part) for part, _ in drawn], simplify)
    return _polygons(shapely, shapely.MultiPolygon([one for part in parts for one in _apart(shapely, part)]))


def _apart(shapely: Any, geometry: Any) -> list[Any]:
    """Return the polygons that a geometry is made of, itself repaired; lines and points are no area and go."""
    whole = geometry if geometry.is_valid else shapely.make_valid(geometry)
    return [part for part in shapely.get_parts(whole) if part.geom_type == "Polygon" and part.area > 0]


def _polygons(shapely: Any, geometry: Any) -> Any:
    return geometry if geometry.is_valid else shapely.MultiPolygon(
        [one for part in shapely.get_parts(shapely.make_valid(geometry)) for one in _apart(shapely, part)]
    )  # fmt: skip


def as_wkt(geometry: Any, grid: Grid) -> str:
    """Return the text of a MultiPolygon of pixel coordinates, with 8 decimals, that is valid when it is read again.

    Raises:
        DataError: rounding makes it cross itself, and repairing does not help.
    """
    shapely = shapely_or_raise("a WKT mask")
    if geometry.is_empty:
        return EMPTY
    placed = shapely.transform(geometry, lambda points: points / (grid.across, grid.down))
    for _ in range(4):
        text = str(shapely.to_wkt(placed, rounding_precision=_DECIMALS))
        text = _SMALL.sub(lambda number: f"{float(number[0]):.{_DECIMALS}f}", text)
        placed = shapely.from_wkt(text)
        if placed.is_valid:
            return text
        placed = _polygons(shapely, placed)
    raise DataError(
        f"polygons of {_DECIMALS} decimals cross themselves", "a grid on which a pixel is more than its rounding",
        "look at Xmax and Ymin of the grid",
    )  # fmt: skip


@register("mask", tasks=SEGMENTATION)
def wkt(
    *,
    csv: str,
    id: str | None = None,
    label: str | None = None,
    column: str | None = None,
    labels: dict[str, str] | None = None,
    grid: str | None = None,
    empty: list[str] | None = None,
    unmatched: Literal["error", "ignore"] = "error",
    others: Literal["error", "ignore"] = "error",
    background: str | None = None,
    _classes: Sequence[str] = (),
    _task: str = "segmentation",
    _root: Path = Path(),
) -> MaskKind:
    """Read polygons as WKT of a CSV with a row for each image and class: `ImageId,ClassType,MultipolygonWKT`.

    Args:
        csv: the table, below the data folder.
        id: its id column; the first by default.
        label: its column with the class; the second by default, where there are several classes.
        column: its column with the texts; the next one by default.
        labels: class -> its text in `label`; its name, or its number from 1 where that is what the table has.
        grid: CSV with id, Xmax and Ymin, below the data folder, such as `grid_sizes.csv`; without it coordinates are
            pixels, from the upper left corner of the image.
        empty: texts that mean an empty mask beside `MULTIPOLYGON EMPTY`.
        unmatched: whether rows that name no training image are an `error`, or left out (`ignore`).
        others: whether rows of classes that `data.classes` does not name are an `error`, or left out (`ignore`), as
            where a run learns some of the classes.
        background: class of the pixels no other class has; without it they are ignored, where classes exclude one
            another.
        _classes: `data.classes`.
        _task: the competition's task.
        _root: the data folder.

    Raises:
        ConfigError: classes do not fit, or shapely is missing.
        DataError: the grid cannot be read.

    Source: rows D-15 to D-17; oracle 6.3.
    """
    shapely_or_raise("the mask kind 'wkt'")
    rasterio_or_raise("the mask kind 'wkt'")
    names, called = tuple(_classes), labels or {}
    problems = names_problems(names)
    problems += [Problem("data.masks.labels", f"'{name}' is no class", nearest(name, names)) for name in called
                 if name not in names]  # fmt: skip
    raise_masks(problems)
    behind = background_of(background, names, _task)
    wanted = [k for k in range(len(names)) if k != behind]

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        table = read_frame(request.root / csv, text=True)
        id_column = id or str(table.columns[0])
        rest = [str(name) for name in table.columns if name != id_column]
        tells = label or (rest[0] if len(wanted) > 1 and len(rest) > 1 else None)
        known = set(table[tells].str.strip()) if tells in table.columns else set()
        written = {_called(called, names[k], k, known): k for k in wanted}
        rows = find_texts(
            request, frame, ids, names=names, texts=written, csv=csv, id=id, key="{id}", label=tells,
            column=column or next((name for name in rest if name != tells), None), columns=None,
            empties=set(), unmatched=unmatched, others=others,
        )  # fmt: skip
        lost = _lost(rows, ids, [names[k] for k in wanted], wanted)
        grids = {} if grid is None else read_grids(request.root / grid)
        off = [str(name) for name in ids if grid is not None and str(name) not in grids and stem(name) not in grids]
        if off:
            lost.append(Problem("data.masks.grid", f"'{grid}' lacks {counted(len(off), 'image')}: {first_names(off)}"))
        if rows.problems or lost:
            return MaskRows(rows.cells, rows.lacking, [*rows.problems, *lost], rows.notes)
        places = [_grid_text(grids, str(name)) for name in ids]
        cells = tuple((place, *row) for place, row in zip(places, rows.cells, strict=True))
        return MaskRows(cells, rows.lacking, [], rows.notes)

    nothing = {*(empty or ())}

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        place, *written = cells
        x_max, y_min = json.loads(place) if place else (0, 0)
        height_width = size()
        scale = Grid.of(height_width, x_max, y_min) if place else Grid()
        layers: list[np.ndarray | None] = [None] * len(names)
        for k, cell in enumerate(written):
            for text in cell.split(OBJECTS) if cell else ():
                what = f"the mask of '{names[k]}'"
                if text in nothing:
                    continue
                geometry = parsed(text, scale, of=what)
                check_inside(geometry, height_width, of=what, wholly=False)
                layers[k] = with_object(layers[k], rasterised(geometry, height_width))
        return united(layers, task=_task, background=behind, size=height_width, of=next(iter(written), "")[:40])

    return MaskKind(names, find, read, encoded=True, background=behind)


def _called(labels: dict[str, str], name: str, place: int, known: set[str]) -> str:
    """Return how a table calls a class: as the YAML says, by its name, or by its number from 1."""
    if name in labels:
        return labels[name]
    return str(place + 1) if name not in known and str(place + 1) in known else name


def _lost(rows: MaskRows, ids: np.ndarray, names: Sequence[str], wanted: Sequence[int]) -> list[Problem]:
    """Return a problem where an image has no row of a class."""
    lost = [
        f"{image}, {name}"
        for image, cells in zip(ids.tolist(), rows.cells, strict=True)
        for name, k in zip(names, wanted, strict=True)
        if len(cells) > k and not cells[k]
    ]
    if not lost or rows.problems:
        return []
    what = f"{counted(len(lost), 'mask')} of an image and class without a text: {first_names(lost)}"
    return [Problem("data.masks.csv", what, f"`{EMPTY}` where there is nothing")]


def _grid_text(grids: dict[str, tuple[float, float]], name: str) -> str:
    pair = grids.get(name) or grids.get(stem(name))
    return "" if pair is None else json.dumps(pair)


@register("mask", tasks=SEGMENTATION)
def geojson(
    *,
    folder: str,
    images: str | None = None,
    suffix: str | None = None,
    label: str | None = None,
    labels: dict[str, str] | None = None,
    background: str | None = None,
    _classes: Sequence[str] = (),
    _task: str = "segmentation",
) -> MaskKind:
    """Read polygons of GeoJSON files, one per image, in the coordinate system of the image's raster.

    Args:
        folder: of the files.
        images: folder of the rasters that say where on Earth the pixels lie; that of `data.train.images` by default.
        suffix: what the files' names have after the id; `.geojson` by default.
        label: property with the class of a feature; needed where there are several classes.
        labels: class -> its text in `label`; its name by default. Features of other texts are left out.
        background: class of the pixels no other class has.
        _classes: `data.classes`.
        _task: the competition's task.

    Raises:
        ConfigError: classes do not fit, or shapely is missing.
    """
    shapely_or_raise("the mask kind 'geojson'")
    rasterio_or_raise("the mask kind 'geojson'")
    names = tuple(_classes)
    problems = names_problems(names)
    behind = background_of(background, names, _task)
    wanted = [k for k in range(len(names)) if k != behind]
    if label is None and len(wanted) > 1:
        problems.append(
            Problem("data.masks.label", f"{len(wanted)} classes that nothing tells apart", "write `label:`")
        )
    raise_masks(problems)
    written = {(labels or {}).get(names[k], names[k]): k for k in wanted}

    def find(request: Request, frame: pd.DataFrame, ids: np.ndarray) -> MaskRows:
        stems = [stem(name) for name in ids]
        files = find_files(request.root, folder, stems, suffix=suffix or ".geojson")
        rasters = find_files(request.root, images or next(iter(request.images), ""), stems, suffix=request.suffix)
        lacking, problems = file_problems(request, [files, rasters], ids)
        places = [Place(folder, suffix or ".geojson", files.paths)]
        stray = stray_files(request, ids, places)
        problems += shared_problems(ids, places)
        cells = tuple(zip(files.paths, rasters.paths, strict=True))
        return MaskRows(cells, lacking, problems, (stray,) if stray else ())

    def read(root: Path, cells: Cells, size: Callable[[], Size]) -> np.ndarray:
        height_width = size()
        layers: list[np.ndarray | None] = [None] * len(names)
        for text, geometry in _features(root / cells[0], root / cells[1], label):
            k = wanted[0] if label is None else written.get(text)
            if k is not None:
                check_inside(geometry, height_width, of=f"a '{text}' of '{cells[0]}'", wholly=False)
                layers[k] = with_object(layers[k], rasterised(geometry, height_width))
        return united(layers, task=_task, background=behind, size=height_width, of=cells[0])

    return MaskKind(names, find, read, background=behind)


def _features(path: Path, raster: Path, label: str | None) -> list[tuple[str, Any]]:
    """Return the class text and the geometry, in pixel coordinates, of each polygon of a file.

    Raises:
        DataError: it cannot be read, a feature has no class or is no polygon, or the raster lies nowhere.
    """
    shapely, place = shapely_or_raise("a GeoJSON mask"), read_georeference(raster)
    if place.transform is None:
        raise DataError(
            f"the raster '{raster}' does not say where its pixels lie", "a georeferenced raster",
            "name the folder of such rasters in `data.masks.images`",
        )  # fmt: skip
    from rasterio import Affine

    inverse: Any = ~Affine(*place.transform)
    flat = [inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f]
    expected, shapes = "a FeatureCollection of polygons", list[tuple[str, Any]]()
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        for feature in features:
            geometry = shapely.geometry.shape(feature["geometry"])
            text = "" if label is None else str(feature["properties"][label])
            shapes.append((text, shapely.affinity.affine_transform(geometry, flat)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.GEOSException) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"the mask '{path}' cannot be read: {why}", expected, "correct the file") from error
    for text, geometry in shapes:
        if geometry.geom_type not in ("Polygon", "MultiPolygon") or not geometry.is_valid:
            what = geometry.geom_type if geometry.is_valid else shapely.is_valid_reason(geometry)
            raise DataError(f"a feature '{text}' of '{path}': {what}", expected, "repair it with `make_valid`")
    return shapes
