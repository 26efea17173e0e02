"""GeoTIFFs of any bands and dtypes, brought onto one grid: right pixels, and what a user sees where that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from geotiffs import CORNER, geotiff
from places import SHARED

from kbench.data.images.decoding import NOWHERE, PLAIN, Decoding
from kbench.data.images.raster_files import Window, _loaded
from kbench.data.images.rasters import RasterReader, Slot, Stack, raster
from kbench.data.images.readers import image, size_by
from kbench.errors import ConfigError, DataError

RAW = SHARED / "satellite_raw" / "spacenet_solaris"


def numbers(*shape: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 100, shape).astype(dtype)


def two(first: int, second: int, *, masked: bool = False, nodata: tuple[float, ...] = ()) -> RasterReader:
    """A reader of rows of two files, A and B."""
    stack = Stack((Slot("A", first, nodata=nodata), Slot("B", second, nodata=nodata)), masked)
    return RasterReader(first + second, PLAIN, stack)


@pytest.mark.parametrize(
    ("stored", "read"),
    [("uint8", "uint8"), ("int8", "int16"), ("uint16", "uint16"), ("int16", "int16"), ("uint32", "float64"),
     ("int32", "float64"), ("float32", "float32"), ("float64", "float64")],
)  # fmt: skip
def test_every_real_dtype_is_read_as_tifffile_reads_it(tmp_path: Path, stored: str, read: str) -> None:
    pixels = numbers(6, 7, 5, dtype=stored)
    found = raster(_channels=5)([geotiff(tmp_path / "a.tif", pixels)])
    assert found.dtype == read
    other = tifffile.imread(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, other if other.shape == found.shape else other.transpose(1, 2, 0))


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", numbers(4, 4).astype(np.complex64))
    with pytest.raises(DataError, match="pixels of complex64"):
        raster(_channels=1)([path])


def test_files_of_a_row_have_a_dtype_that_holds_them_all(tmp_path: Path) -> None:
    a = geotiff(tmp_path / "a.tif", numbers(4, 4, 2, dtype="uint16"))
    b = geotiff(tmp_path / "b.tif", numbers(4, 4, 3, dtype="int16"))
    read = two(2, 3)([a, b])
    assert (read.shape, read.dtype) == ((4, 4, 5), np.int32)


def test_a_finer_file_is_averaged_and_a_coarser_one_lies_where_its_georeference_says(tmp_path: Path) -> None:
    """A ramp along x is a ramp on every grid: pixel centres tell its values."""
    xs = CORNER[0] + 10 * (np.arange(20) + 0.5)
    base = geotiff(tmp_path / "a.tif", np.tile(xs, (10, 1)))
    fine = np.tile(CORNER[0] + 30 + 2.5 * (np.arange(40) + 0.5), (40, 1))  # 100 x 100 m from 30 m on
    coarse = np.tile(CORNER[0] - 120 + 40 * (np.arange(12) + 0.5), (10, 1))
    for name, pixels, step, left in (("fine.tif", fine, 2.5, 30), ("coarse.tif", coarse, 40, -120)):
        path = geotiff(tmp_path / name, pixels, step=step, corner=(CORNER[0] + left, CORNER[1]))
        read = two(1, 1, masked=True)([base, path])
        known = np.isfinite(read[:, :, 1])
        np.testing.assert_allclose(
            read[:, :, 1][known], read[:, :, 0][known], atol=2
        )  # OpenCV's cubic is a 20th of a pixel off a ramp
        assert known[5].tolist() == ([3 <= x < 13 for x in range(20)] if name == "fine.tif" else [True] * 20)


def test_files_without_georeference_are_laid_whole_extent_onto_whole_extent(tmp_path: Path) -> None:
    base = geotiff(tmp_path / "a.tif", numbers(40, 60, dtype="float32"), step=None)
    ramp = np.tile(np.arange(6, dtype=np.float32), (4, 1))
    found = two(1, 1)([base, geotiff(tmp_path / "b.tif", ramp, step=None)])[20, :, 1]
    centres = (np.arange(60) + 0.5) / 10 - 0.5
    np.testing.assert_allclose(found[15:-15], centres[15:-15], atol=0.05)


def test_a_window_has_the_pixels_of_the_whole(tmp_path: Path) -> None:
    a = geotiff(tmp_path / "a.tif", numbers(64, 80, dtype="float32"))
    b = geotiff(tmp_path / "b.tif", numbers(16, 20, 2, dtype="float32"), step=40)
    whole = two(1, 2)([a, b])
    part = two(1, 2).read([a, b], Window(10, 20, 30, 40))
    np.testing.assert_array_equal(part[:, :, 0], whole[10:40, 20:60, 0])
    np.testing.assert_allclose(part[:, :, 1:], whole[10:40, 20:60, 1:], atol=100 / 32)
    assert two(1, 2).size([a, b]) == size_by(two(1, 2), [a, b]) == (64, 80)


def test_what_the_yaml_or_the_file_says_is_no_data_is_unknown_and_takes_no_part_in_its_neighbours(
    tmp_path: Path,
) -> None:
    a = geotiff(tmp_path / "a.tif", np.full((8, 8), 5, np.uint16))
    coarse = np.full((4, 4), 7, np.int16)
    coarse[1, 1] = -9999
    b = geotiff(tmp_path / "b.tif", coarse, step=20, nodata=-9999)
    for reader in (two(1, 1), two(1, 1, nodata=(-9999.0,))):
        read = reader([a, b])
        assert read.dtype == np.float32
        assert np.isnan(read[2:4, 2:4, 1]).all()
        assert np.unique(read[np.isfinite(read)]).round(3).tolist() == [5, 7]


def test_a_file_that_is_not_there_is_unknown_and_the_next_one_gives_the_grid(tmp_path: Path) -> None:
    b = geotiff(tmp_path / "b.tif", numbers(5, 6, 3))
    read = two(2, 3, masked=True)([NOWHERE, b])
    assert (read.shape, read.dtype) == ((5, 6, 5), np.float32)
    assert np.isnan(read[:, :, :2]).all()
    np.testing.assert_array_equal(read[:, :, 2:], numbers(5, 6, 3))
    with pytest.raises(DataError, match="all files of a row are missing"):
        two(2, 3, masked=True)([NOWHERE, NOWHERE])


def test_files_that_lie_elsewhere_or_cover_a_part_are_said(tmp_path: Path) -> None:
    a = geotiff(tmp_path / "a.tif", numbers(8, 8))
    far = geotiff(tmp_path / "far.tif", numbers(8, 8), corner=(CORNER[0] + 5000, CORNER[1]))
    half = geotiff(tmp_path / "half.tif", numbers(8, 8), corner=(CORNER[0] + 40, CORNER[1]))
    with pytest.raises(DataError, match="do not overlap"):
        two(1, 1)([a, far])
    with pytest.raises(DataError, match=r"covers 50.0% of 'a.tif', and uint16 has no value"):
        two(1, 1)([a, half])
    read = two(1, 1, masked=True)([a, half])
    assert np.isnan(read[:, :4, 1]).all()
    np.testing.assert_array_equal(read[:, 4:, 1], numbers(8, 8)[:, :4])


def test_another_reference_system_is_brought_over_and_one_that_is_not_said_is_refused(tmp_path: Path) -> None:
    """A blob has the same place on the ground in UTM 30 and in degrees."""
    from rasterio.warp import transform

    ys, xs = np.mgrid[:80, :80]
    blob = np.exp(-((xs - 50) ** 2 + (ys - 30) ** 2) / 40).astype(np.float32)
    a = geotiff(tmp_path / "a.tif", blob)
    lon, lat = transform("EPSG:32630", "EPSG:4326", [CORNER[0]], [CORNER[1]])
    step = 9e-5
    rows, columns = np.mgrid[:120, :140]
    x, y = transform("EPSG:4326", "EPSG:32630", (lon[0] - 0.001 + step * (columns + 0.5)).ravel().tolist(),
                     (lat[0] + 0.001 - step * (rows + 0.5)).ravel().tolist())  # fmt: skip
    px, py = (np.array(x) - CORNER[0]) / 10 - 0.5, (CORNER[1] - np.array(y)) / 10 - 0.5
    other = np.exp(-((px - 50) ** 2 + (py - 30) ** 2) / 40).reshape(120, 140).astype(np.float32)
    b = geotiff(tmp_path / "b.tif", other, step=step, corner=(lon[0] - 0.001, lat[0] + 0.001), crs="EPSG:4326")
    read = two(1, 1, masked=True)([a, b])
    assert np.nanmax(np.abs(read[:, :, 1] - read[:, :, 0])) < 0.01
    silent = geotiff(tmp_path / "silent.tif", blob, crs=None)
    with pytest.raises(DataError, match="does not say its reference system"):
        two(1, 1)([a, silent])


def test_other_bands_than_the_yaml_says_are_refused(tmp_path: Path) -> None:
    a, b = geotiff(tmp_path / "a.tif", numbers(4, 4, 2)), geotiff(tmp_path / "b.tif", numbers(4, 4, 13))
    with pytest.raises(DataError, match=r"b\.tif' has 13 bands") as caught:
        two(2, 11)([a, b])
    assert caught.value.expected == "11 bands (input.bands.B)"
    with pytest.raises(DataError, match="a file has 13 bands"):
        raster(_channels=11)([b])


def test_numbers_that_are_not_finite_need_a_word_of_what_they_mean(tmp_path: Path) -> None:
    pixels = numbers(4, 4, dtype="float32")
    pixels[1, 2] = np.nan
    path = geotiff(tmp_path / "a.tif", pixels)
    with pytest.raises(DataError, match="1 pixels that are nan, first in band 1") as caught:
        raster(_channels=1)([path])
    assert "nodata: nan" in caught.value.todo
    stack = Stack((Slot("A", 1, nodata=(float("nan"),)),))
    assert np.isnan(RasterReader(1, PLAIN, stack)([path])).sum() == 1
    assert np.isnan(raster(_channels=1)([geotiff(tmp_path / "b.tif", pixels, nodata=-1)])).sum() == 1


def test_a_truncated_strip_is_told_and_nothing_of_gdal_reaches_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = geotiff(tmp_path / "a.tif", numbers(200, 200, 3))
    path.write_bytes(path.read_bytes()[:60_000])
    (tmp_path / "text.tif").write_text("no image")
    for broken in (path, tmp_path / "text.tif"):
        with pytest.raises(DataError, match="is not a readable raster"):
            raster(_channels=3)([broken])
    with pytest.raises(DataError, match="No such file"):
        raster(_channels=3)([tmp_path / "none.tif"])
    assert capfd.readouterr() == ("", "")


def test_a_raster_above_the_limit_is_not_decoded(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", numbers(20, 20))
    with pytest.raises(DataError, match="20 x 20 pixels"):
        raster(_channels=1, _decoding=Decoding(max_pixels=399))([path])


def test_the_reader_of_photographs_names_this_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for dtype in ("uint16", "uint32"):
        path = geotiff(tmp_path / f"{dtype}.tif", numbers(9, 9, 11, dtype=dtype), interleave="band")
        with pytest.raises(DataError) as caught:
            image(_channels=11)([path])
        assert "reader: raster" in caught.value.todo
    assert capfd.readouterr() == ("", "")


def test_without_rasterio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ConfigError) as caught:
        raster()
    assert caught.value.todo == "pip install 'kaggle-kbench[satellite]'"
    _loaded.cache_clear()


@pytest.mark.skipif(not RAW.is_dir(), reason="the raw satellite tiles are not on this machine")
def test_real_panchromatic_and_multispectral_tiles_are_stacked_by_georeference() -> None:
    read = two(1, 4)([RAW / "pan1.tif", RAW / "ms1.tif"])
    assert (read.shape, read.dtype) == ((600, 600, 5), np.float64)
    assert np.isfinite(read).all()
    pan, colours = read[:, :, 0], read[:, :, 1:].mean(2)
    assert np.corrcoef(pan.ravel(), colours.ravel())[0, 1] > 0.8
    other = tifffile.imread(RAW / "pan1.tif")
    np.testing.assert_array_equal(read[:, :, 0], other)
