"""GeoTIFFs in a zip: numbers and georeference are those of the prediction and of the image, read by another library."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kbench import registry
from kbench.errors import ConfigError, KbenchError, SubmissionError
from kbench.inference.map_store import NumberSet
from kbench.metrics.metric import make_metric
from kbench.submission.check import check_submission, read_sample, write_submission
from kbench.submission.formats.base import Format
from kbench.submission.grading import grade

rasterio = pytest.importorskip("rasterio")
tifffile = pytest.importorskip("tifffile")

from kbench.data.images.georeference import Georeference, from_geotiff, geotiff, read_georeference  # noqa: E402

TASK = "dense_regression"
SIZES = {"aa": (5, 7), "bb": (6, 4)}
IDS = np.array(sorted(SIZES))
HERE = Georeference("", (10.000000001, 0.0, 385_123.456789, 0.0, -10.000000001, 6_672_345.987654))


def place(image: str) -> Georeference:
    crs = rasterio.CRS.from_epsg(32635).to_wkt()
    return Georeference(crs, HERE.transform if image == "aa" else (*HERE.transform[:2], 7.5, *HERE.transform[3:]))


def numbers(names: tuple[str, ...] = ("agbm",), change: Any = None) -> NumberSet:
    def read(row: int) -> np.ndarray:
        values = np.random.default_rng(row).normal(100, 50, (len(names), *SIZES[str(IDS[row])])).astype(np.float32)
        return values if change is None else change(values)

    return NumberSet(IDS, names, TASK, {}, read)


def made(names: tuple[str, ...] = ("agbm",), **params: Any) -> Format:
    params = {"file": "{id}_agbm.tif", **params}
    return registry.build(
        "format", "raster_zip", params, _names=names, _task=TASK, _sizes=SIZES.__getitem__, _places=place
    )


def sample_of(*rows: str) -> pd.DataFrame:
    return pd.DataFrame({"filename": rows or ("bb_agbm.tif", "aa_agbm.tif")})


def written(folder: Path, format: Format, given: NumberSet | None = None) -> Path:
    frame = format.build(given or numbers(), sample_of())
    return write_submission(folder / "s.zip", frame, sample=sample_of(), format=format)


def archive(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


def contents_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_another_library_reads_the_numbers_and_the_place(tmp_path: Path) -> None:
    file = written(tmp_path, made())
    contents = contents_of(file)
    assert list(contents) == ["bb_agbm.tif", "aa_agbm.tif"]
    for row, name in enumerate(IDS):
        content = contents[f"{name}_agbm.tif"]
        with tifffile.TiffFile(io.BytesIO(content)) as tif:
            assert tif.pages[0].dtype == np.float32
            np.testing.assert_array_equal(tif.asarray(), numbers()[row][0])
            a, _, c, _, e, f = place(str(name)).transform
            assert tuple(tif.geotiff_metadata["ModelPixelScale"]) == (a, -e, 0)
            assert tuple(tif.geotiff_metadata["ModelTiepoint"]) == (0, 0, 0, c, f, 0)
            assert tif.geotiff_metadata["ProjectedCSTypeGeoKey"] == 32635
    assert file.read_bytes() == written(tmp_path, made()).read_bytes()


def test_numbers_come_back_and_whole_ones_are_rounded(tmp_path: Path) -> None:
    format = made(dtype="int16")
    read = format.parse(check_submission(written(tmp_path, format), sample_of(), format=format), sample_of())
    assert read.ids.tolist() == IDS.tolist()
    for row in range(2):
        np.testing.assert_array_equal(read[row], np.rint(numbers()[row]))


def test_bands_and_images_without_a_place(tmp_path: Path) -> None:
    names = ("low", "high")
    format = registry.build("format", "raster_zip", {}, _names=names, _task=TASK)
    sample = pd.DataFrame({"id": ["aa", "bb"]})
    file = write_submission(tmp_path / "s.zip", format.build(numbers(names), sample), sample=sample, format=format)
    pixels, where = from_geotiff(contents_of(file)["aa.tif"])
    np.testing.assert_array_equal(pixels, numbers(names)[0])
    assert where == Georeference()


def test_a_folder_and_a_zip_of_rasters_grade_alike_and_unknown_pixels_do_not_count(tmp_path: Path) -> None:
    format, sample = made(), sample_of()
    file = written(tmp_path, format)
    truth = {name: numbers()[row][0] + (3 if name == "aa" else 1) for row, name in enumerate(IDS)}
    truth["aa"][0, 0] = np.nan
    folder = tmp_path / "answers"
    folder.mkdir()
    answers = {f"{name}_agbm.tif": geotiff(values[None], Georeference()) for name, values in truth.items()}
    for name, content in answers.items():
        (folder / name).write_bytes(content)
    packed = archive(tmp_path / "answers.zip", answers)
    for solution in (folder, packed):
        means = grade(file, solution, sample=sample, format=format, metric=make_metric("rmse_per_image"))
        assert means.score == pytest.approx(2.0, abs=1e-5)  # of errors 3 and 1
    pooled = grade(file, packed, sample=sample, format=format, metric=make_metric("rmse_pixels"))
    assert pooled.score == pytest.approx(np.sqrt((34 * 9 + 24) / 58), abs=1e-5)
    assert read_sample(folder)["id"].tolist() == sorted(answers)


@pytest.mark.parametrize(("change", "says"), [
    (lambda values: np.where(values > 100, np.nan, values), "NaN or infinite"),
    (lambda values: np.where(values > 100, np.inf, values), "NaN or infinite"),
])  # fmt: skip
def test_what_is_no_number_is_not_written(change: Any, says: str) -> None:
    with pytest.raises(SubmissionError, match=says):
        made().build(numbers(change=change), sample_of())


def test_negative_numbers_are_refused_where_the_file_has_none_and_clipped_where_asked(tmp_path: Path) -> None:
    below = numbers(change=lambda values: values - 200)
    with pytest.raises(SubmissionError, match="does not fit into uint16"):
        made(dtype="uint16").build(below, sample_of())
    format = made(clip=[0.0, 400.0])
    read = format.parse(check_submission(written(tmp_path, format, below), sample_of(), format=format), sample_of())
    np.testing.assert_array_equal(read[0], below[0].clip(0, 400))


def other_size(values: np.ndarray) -> np.ndarray:
    return values[:, 1:]


@pytest.mark.parametrize(("broken", "says"), [
    (lambda files: {"aa_agbm.tif": files["aa_agbm.tif"]}, "1 of 2 ids are missing"),
    (lambda files: {**files, "aa_agbm.tif": geotiff(numbers()[0].astype(np.float64), place("aa"))}, "float64"),
    (lambda files: {**files, "aa_agbm.tif": geotiff(other_size(numbers()[0]), place("aa"))}, "4 x 7 pixels"),
    (lambda files: {"aa.tif": files["aa_agbm.tif"], "bb_agbm.tif": files["bb_agbm.tif"]}, "aa.tif"),
    (lambda files: {**files, "aa_agbm.tif": geotiff(numbers()[0], place("bb"))}, "it lies at"),
    (lambda files: {**files, "aa_agbm.tif": files["aa_agbm.tif"][:50]}, "no readable GeoTIFF"),
])  # fmt: skip
def test_a_wrong_zip_is_told(broken: Any, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = contents_of(written(tmp_path, made()))
    path = archive(tmp_path / "wrong.zip", broken(files))
    with pytest.raises(SubmissionError, match=says):
        check_submission(path, sample_of(), format=made())
    assert capfd.readouterr() == ("", "")  # nothing of GDAL


def test_a_place_survives_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(geotiff(np.zeros((1, 3, 4), np.float32), place("aa")))
    assert read_georeference(path).transform == HERE.transform
    (tmp_path / "b.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(KbenchError, match="cannot be read"):
        read_georeference(tmp_path / "b.tif")


def test_a_file_that_is_no_geotiff_is_refused() -> None:
    with pytest.raises(ConfigError, match="GeoTIFFs end in"):
        made(file="{id}.png")


def test_without_rasterio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(ConfigError) as caught:
        made()
    assert "pip install 'kaggle-kbench[satellite]'" in str(caught.value)
