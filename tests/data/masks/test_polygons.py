"""Polygons and masks: the one is the other, to the pixel, on the contest's grid."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from kbench import registry
from kbench.data.table.reading import MaskRows, Request
from kbench.errors import ConfigError, DataError

shapely = pytest.importorskip("shapely")
rasterio = pytest.importorskip("rasterio")

from kbench.data.images.georeference import Georeference, geotiff  # noqa: E402
from kbench.data.masks.polygons import EMPTY, Grid, as_wkt, outlines, parsed, rasterised, read_grids  # noqa: E402

GRID = Grid.of((3349, 3396), 0.009169, -0.00904)
CLASSES = ("buildings", "misc", "road", "track", "trees", "crops", "waterway", "standing_water", "large", "small")


def scene(seed: int, size: tuple[int, int] = (300, 340)) -> dict[str, np.ndarray]:
    """Return a layer per class: rectangles, frames, lines of 5, discs, fields, a band, ellipses, vehicles of 2 x 3."""
    rng = np.random.default_rng(seed)
    layers = {name: np.zeros(size, np.uint8) for name in CLASSES}
    for _ in range(12):
        y, x, a, b = rng.integers(0, 270), rng.integers(0, 310), *rng.integers(10, 25, 2)
        layers["misc"][max(0, y - 3) : y + a + 3, max(0, x - 3) : x + b + 3] = 1
        layers["buildings"][y : y + a, x : x + b] = 1
        cv2.circle(layers["trees"], (int(x), int(y)), int(rng.integers(3, 7)), 1, -1)
        layers["small"][y : y + 2, x : x + 3] = 1
        layers["large"][y : y + 3, x : x + 6] = 1
    layers["misc"] &= 1 - cv2.dilate(layers["buildings"], np.ones((3, 3), np.uint8))
    xs = np.linspace(0, size[1], 24)
    for name, width in (("road", 5), ("track", 5), ("waterway", 7)):
        ys = rng.uniform(0.2, 0.8) * size[0] + 20 * np.sin(xs * rng.uniform(0.02, 0.05))
        cv2.polylines(layers[name], [np.c_[xs, ys].astype(np.int32)], False, 1, width)
    cv2.fillPoly(layers["crops"], [rng.integers(0, 300, (7, 2)).astype(np.int32)], 1)
    cv2.ellipse(layers["standing_water"], (100, 200), (11, 7), 33.0, 0, 360, 1, -1)
    return layers


def test_the_scaler_is_that_of_the_contest() -> None:
    assert GRID.across == pytest.approx(370269.418, abs=5e-4)
    assert GRID.down == pytest.approx(-370354.015, abs=5e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_a_mask_becomes_polygons_and_itself_again(name: str) -> None:
    layer = scene(3)[name]
    grid = Grid.of(layer.shape, 0.009169, -0.00904)
    text = as_wkt(outlines(layer, simplify=0.5), grid)
    assert shapely.from_wkt(text).is_valid
    geometry = parsed(text, grid, of=name)
    np.testing.assert_array_equal(rasterised(geometry, layer.shape), layer)
    assert geometry.area == pytest.approx(layer.sum(), rel=1e-3)
    digits = [part.partition(".")[2] for part in text.replace(",", " ").replace(")", " ").split() if "." in part]
    assert max(map(len, digits)) == 8


@pytest.mark.parametrize("layer", [
    np.eye(9, dtype=np.uint8), np.indices((8, 8)).sum(0) % 2, np.ones((5, 7)), np.zeros((5, 7)),
    np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]]),
    np.pad(1 - np.eye(6), 1, constant_values=1),
    np.random.default_rng(0).integers(0, 2, (40, 40)),
])  # fmt: skip
def test_corners_holes_and_noise_are_valid_and_exact(layer: np.ndarray) -> None:
    layer = layer.astype(np.uint8)
    grid = Grid.of(layer.shape, 0.009, -0.009)
    text = as_wkt(outlines(layer), grid)
    assert shapely.from_wkt(text).is_valid
    np.testing.assert_array_equal(rasterised(parsed(text, grid, of="it"), layer.shape), layer)
    assert (text == EMPTY) == (not layer.any())


def test_a_hole_is_no_part_of_it() -> None:
    text = "POLYGON ((1 1, 6 1, 6 5, 1 5, 1 1), (2 2, 4 2, 4 4, 2 4, 2 2))"
    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 1:6], expected[2:4, 2:4] = 1, 0
    np.testing.assert_array_equal(rasterised(parsed(text, Grid(), of="it"), (6, 8)), expected)


# -- the kind `wkt` ---------------------------------------------------------------------------------------------


ROWS = {
    ("6010_0_1", "1"): "MULTIPOLYGON (((0.001 -0.001, 0.002 -0.001, 0.002 -0.002, 0.001 -0.002, 0.001 -0.001)))",
    ("6010_0_1", "2"): EMPTY, ("6010_0_2", "1"): EMPTY, ("6010_0_2", "2"): EMPTY,
}  # fmt: skip
NAMES = np.array(["6010_0_1", "6010_0_2"])
SIZE = (90, 99)  # H' 89.01099, W' 98.01


def table(root: Path, rows: dict[tuple[str, str], str], grid: str = "6010_0_1,.01,-.01\n6010_0_2,.01,-.01\n") -> None:
    with (root / "polygons.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ImageId", "ClassType", "MultipolygonWKT"), *((*k, v) for k, v in rows.items())])
    (root / "grid_sizes.csv").write_text(f",Xmax,Ymin\n{grid}")


def kind(root: Path, **params: Any) -> Any:
    params = {"csv": "polygons.csv", "grid": "grid_sizes.csv", **params}
    classes = params.pop("classes", ("house", "road"))
    return registry.build("mask", "wkt", params, _classes=classes, _task="multi_label_segmentation", _root=root)


def find(root: Path, **params: Any) -> MaskRows:
    return kind(root, **params).find(Request(root, "train", "multi_label_segmentation"), pd.DataFrame(), NAMES)


def read(root: Path, row: int = 0, **params: Any) -> np.ndarray:
    rows = find(root, **params)
    assert rows.problems == []
    return kind(root, **params).read(root, rows.cells[row], lambda: SIZE)


def test_texts_become_layers_by_the_grid_of_their_scene(tmp_path: Path) -> None:
    table(tmp_path, ROWS)
    mask = read(tmp_path)
    expected = np.zeros((*SIZE, 2), np.uint8)
    expected[9:18, 10:20, 0] = 1  # rows 8.9 to 17.8, columns 9.8 to 19.6
    np.testing.assert_array_equal(mask, expected)
    assert not read(tmp_path, 1).any()


def test_a_run_of_one_class_leaves_the_others_out(tmp_path: Path) -> None:
    table(tmp_path, ROWS)
    only = {"classes": ("house",), "label": "ClassType", "labels": {"house": "1"}, "others": "ignore"}
    assert read(tmp_path, **only).sum() == 90
    problems = find(tmp_path, **{**only, "others": "error"}).problems
    assert [problem.what for problem in problems] == ["2 rows of no class: '2'"]


@pytest.mark.parametrize(("rows", "grid", "says"), [
    ({key: text for key, text in ROWS.items() if key != ("6010_0_2", "2")}, None, "6010_0_2, road"),
    ({**ROWS, ("6010_0_2", "1"): ""}, None, "6010_0_2, house"),
    ({**ROWS, ("6010_0_2", "11"): EMPTY}, None, "1 row of no class: '11'"),
    (ROWS, "6010_0_1,.01,-.01\n", "'grid_sizes.csv' lacks 1 image: '6010_0_2'"),
])  # fmt: skip
def test_what_a_table_lacks_is_told(rows: Any, grid: str | None, says: str, tmp_path: Path) -> None:
    table(tmp_path, rows, *([grid] if grid else []))
    [problem] = find(tmp_path).problems
    assert says in problem.what


@pytest.mark.parametrize(("text", "says"), [
    ("MULTIPOLYGON (((0.001 -0.001, 0.002", "is no WKT"),
    ("POLYGON ((0.001 -0.001, 0.002 -0.002, 0.002 -0.001, 0.001 -0.002, 0.001 -0.001))", "no valid polygon"),
    ("LINESTRING (0 0, 0.001 -0.001)", "is a LineString"),
    ("POLYGON ((0.001 0.001, 0.002 0.001, 0.002 0.002, 0.001 0.001))", "wholly outside of its image"),
])  # fmt: skip
def test_a_text_that_is_no_mask_is_told(
    text: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path, {**ROWS, ("6010_0_1", "1"): text})
    with pytest.raises(DataError, match=says):
        read(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["Xmax,Ymin\n1,2\n", ",Xmax,Ymin\na,nothing,-1\n", ",Xmax,Ymin\na,1,0\n"])
def test_a_wrong_grid_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "grid.csv").write_text(text)
    with pytest.raises(DataError):
        assert not read_grids(tmp_path / "grid.csv")


# -- the kind `geojson` -----------------------------------------------------------------------------------------


PLACE = Georeference(rasterio.CRS.from_epsg(32635).to_wkt(), (2.0, 0.0, 500_000.0, 0.0, -2.0, 6_000_000.0))


def features(root: Path, *items: tuple[str, Any], place: Georeference = PLACE) -> Any:
    (root / "images").mkdir()
    (root / "masks").mkdir()
    (root / "images" / "a.tif").write_bytes(geotiff(np.zeros((1, 6, 8), np.uint8), place))
    written = [{"type": "Feature", "properties": {"type": name}, "geometry": shape} for name, shape in items]
    (root / "masks" / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": written}))
    made = registry.build("mask", "geojson", {"folder": "masks", "label": "type"}, _classes=("house", "road"),
                          _task="multi_label_segmentation")  # fmt: skip
    request = Request(root, "train", "multi_label_segmentation", images=("images",), suffix=".tif", mask=made)
    rows = made.find(request, pd.DataFrame(), np.array(["a"]))
    assert rows.problems == []
    return made.read(root, rows.cells[0], lambda: (6, 8))


def box(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    """Return a box of pixel coordinates in those of the raster."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return {"type": "Polygon", "coordinates": [[[500_000 + 2 * x, 6_000_000 - 2 * y] for x, y in corners]]}


def test_geojson_lies_where_its_raster_says(tmp_path: Path) -> None:
    mask = features(tmp_path, ("house", box(1, 2, 4, 5)), ("road", box(6, 0, 8, 6)), ("tree", box(0, 0, 1, 1)))
    expected = np.zeros((6, 8, 2), np.uint8)
    expected[2:5, 1:4, 0], expected[:, 6:, 1] = 1, 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("shape", "place", "says"), [
    ({"type": "Point", "coordinates": [500_001, 5_999_999]}, PLACE, "Point"),
    (box(100, 100, 104, 104), PLACE, "wholly outside"),
    (box(1, 2, 4, 5), Georeference(), "does not say where"),
    ({"type": "Polygon"}, PLACE, "cannot be read"),
])  # fmt: skip
def test_geojson_that_is_no_mask_is_told(shape: Any, place: Georeference, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        features(tmp_path, ("house", shape), place=place)


@pytest.mark.parametrize("name", ["wkt", "geojson"])
def test_without_shapely_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shapely", None)
    params = {"csv": "a.csv"} if name == "wkt" else {"folder": "masks"}
    with pytest.raises(ConfigError) as caught:
        registry.build("mask", name, params, _classes=("a",))
    assert "pip install 'kaggle-kbench[satellite]'" in str(caught.value)
