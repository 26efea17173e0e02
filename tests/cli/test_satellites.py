"""From files of several bands and dates to GeoTIFFs and polygons, as the satellite contests want them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_lines import CommandLine
from places import ROOT
from safetensors.numpy import load_file
from satellites import MASS_SIZE, mass_of, scene_of, write_biomass, write_scenes

pytestmark = pytest.mark.slow
rasterio = pytest.importorskip("rasterio")
shapely = pytest.importorskip("shapely")
tifffile = pytest.importorskip("tifffile")

BIOMASS = """
title: Biomass from months
task: dense_regression
source: {name: local, path: files, solution: files/solution}
data:
  train: {csv: features_metadata.csv, id: chip_id, images: train_features,
          where: {split: train, satellite: S1, month: September}}
  test: {csv: features_metadata.csv, id: chip_id, images: test_features,
         where: {split: test, satellite: S1, month: September}}
  classes: [agbm]
  masks: {name: values, folder: train_agbm, suffix: _agbm.tif}
folds: {strategy: kfold, n: 2, seed: 1}
metric: rmse_per_image
submission: {format: {name: raster_zip, file: '{id}_agbm.tif'}, sample: sample_submission.csv}
input:
  size: 24
  reader: raster
  files: {S1: '{id}_S1_{date}.tif', S2: '{id}_S2_{date}.tif'}
  dates: ['00', '01', '02']
  missing: mask
  bands:
    S1: {range: [[-25, 29], [-62, 28], [-25, 30], [-60, 22]]}
    S2: {count: 11}
model: {name: temporal, backbone: test_resnet, options: {decoder_channels: [16, 16, 8, 8, 8]}}
train:
  batch_size: 4
  lr: 3e-3
  crop: native
  loss: {name: rmse, ignore_above: 400}
  augment: {name: top_down, rotate: 0, light: 0, contrast: 0, zoom: 1}
stages:
  all: {schedule: {name: sgdr, cycles: 2, cycle_len: 3}, keep: [cycles]}
tta: flip
maps: {postprocess: {name: numbers, clamp: [0, null]}}
"""
SCENES = """
title: Houses and water
task: multi_label_segmentation
source: {name: local, path: files, solution: files/solution.csv}
data:
  train: {csv: train_wkt_v4.csv, images: '', where: {ClassType: '1'}}
  test: {csv: sample_submission.csv, images: '', where: {ClassType: '1'}}
  classes: [house, water]
  masks: {name: wkt, csv: train_wkt_v4.csv, grid: grid_sizes.csv}
folds: {strategy: kfold, n: 2, seed: 1}
metric: mean_iou
submission: {format: {name: wkt, grid: grid_sizes.csv}, sample: sample_submission.csv}
input:
  size: 24
  reader: raster
  files: {RGB: 'three_band/{id}.tif', P: 'sixteen_band/{id}_P.tif', M: 'sixteen_band/{id}_M.tif'}
  bands: {RGB: {names: [red, green, blue]}, P: {count: 1}, M: {count: 2}}
model: {name: unet_plain, options: {width: 8, depth: 2}}
train:
  batch_size: 8
  lr: 1e-2
  crop: native
  loss: bce
  augment: {name: top_down, rotate: 0, light: 0, contrast: 0, zoom: 1}
  sampler: {name: patches, per_image: 6, positive: 0.5, classes: [house]}
stages:
  all: {schedule: {name: sgdr, cycles: 2, cycle_len: 3}, keep: [cycles]}
tta: d4
maps:
  windows: {name: overlap, size: 24, stride: 8, edge: 4}
  postprocess: {name: standard, min_object: {house: 12}, open: {water: 3}, priority: [[house, '*']]}
"""


def line_of(root: Path, name: str) -> CommandLine:
    """Return a workspace with a shipped competition whose files are a look-alike in `files`."""
    text = (ROOT / "competitions" / f"{name}.yaml").read_text()
    source = next(one for one in text.splitlines() if one.startswith("source:"))
    line = CommandLine.of(root, name, text.replace(source, "source: {name: local, path: files}"))
    line.run("download")
    return line


def test_the_shipped_biomassters_fits_its_files(tmp_path: Path) -> None:
    write_biomass(tmp_path / "files", train=10, test=1, months=[f"{month:02d}" for month in range(12)])
    (tmp_path / "files" / "sample_submission.csv").unlink()
    line = line_of(tmp_path, "biomassters")
    small = ("--set", "model.backbone=test_efficientnet", "--set", "model.pretrained=false", "--set",
             "model.options.decoder_channels=[16, 16, 16, 16, 16]", "--set", "input.size=32")  # fmt: skip
    facts = line.json("check", "--images", *small)
    assert (facts["rows"], facts["test"]) == (10, 1)


def test_the_shipped_dstl_fits_its_files(tmp_path: Path) -> None:
    write_scenes(tmp_path / "files", train=5, test=2, whole=True)
    line = line_of(tmp_path, "dstl-satellite-imagery-feature-detection")
    facts = line.json("check", "--images", "--set", "input.size=32", "--set", "maps.windows.size=64", "--set",
                      "maps.windows.stride=32")  # fmt: skip
    assert (facts["rows"], facts["test"], facts["sample"]) == (5, 2, 20)


@pytest.fixture(scope="module")
def biomass(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    root = tmp_path_factory.mktemp("biomass")
    write_biomass(root / "files")
    line = CommandLine.of(root, "biomass", BIOMASS)
    line.run("download")
    line.run("train")
    return line


def test_chips_of_months_become_geotiffs_that_are_graded(biomass: CommandLine) -> None:
    file = Path(biomass.json("ensemble")["file"])
    errors = []
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == [f"{number:08x}_agbm.tif" for number in (8, 9, 10)]
        for number in (8, 9, 10):
            with tifffile.TiffFile(io.BytesIO(archive.read(f"{number:08x}_agbm.tif"))) as tif:
                said, place = tif.asarray(), tif.geotiff_metadata
            assert (said.shape, said.dtype) == ((MASS_SIZE, MASS_SIZE), np.float32)
            assert said.min() >= 0
            assert tuple(place["ModelTiepoint"][3:5]) == (2e5 + 1e4 * number, 7e6)
            errors.append(np.sqrt(np.square(said.astype(np.float64) - mass_of(number)).mean()))
    score = biomass.json("submit")["all_rows"]
    assert score == pytest.approx(np.mean(errors), rel=1e-5)
    constant = np.mean([mass_of(number).std() for number in (8, 9, 10)])
    assert score < 1.2 * constant  # it has learned the scale, in six epochs of a tiny network


def test_weights_of_members_are_found_on_maps_in_their_units(biomass: CommandLine) -> None:
    plain = biomass.json("ensemble")["score"]
    weighed = biomass.json("ensemble", "--combine", "weights")
    assert 0 < weighed["score"] < 1.05 * plain


def test_pixels_are_a_member_like_any_other(biomass: CommandLine) -> None:
    network = "model: {name: temporal, backbone: test_resnet, options: {decoder_channels: [16, 16, 8, 8, 8]}}"
    options = "{estimator: boosting, trees: 15, features: {blur: [3]}}"
    text = BIOMASS.replace(network, f"model: {{name: pixels, options: {options}}}")
    text = text.replace(
        "{name: sgdr, cycles: 2, cycle_len: 3}, keep: [cycles]", "{name: constant, epochs: 1}, keep: [last]"
    )
    assert text.count("pixels") == 1
    (biomass.root / "competitions" / "single.yaml").write_text(text)
    for words in (("download",), ("train",)):
        biomass.run(*words, "-c", "single")
    biomass.run("ensemble", "-c", "single")
    score = biomass.json("submit", "-c", "single")["all_rows"]
    constant = np.mean([mass_of(number).std() for number in (8, 9, 10)])
    assert score < 0.7 * constant
    (snapshot,) = (biomass.root / "runs" / "single" / "baseline-s0" / "fold-0").rglob("*.safetensors")
    assert "threshold" in load_file(snapshot)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "files")
    line = CommandLine.of(root, "scenes", SCENES)
    line.run("download")
    line.run("train")
    return line


def test_scenes_become_polygons_that_are_graded_by_class(scenes: CommandLine) -> None:
    log = (scenes.root / "runs" / "scenes" / "baseline-s0" / "fold-0" / "log.jsonl").read_text().splitlines()
    shares = [record["positive"] for record in map(json.loads, log) if record.get("event") == "epoch"]
    assert len(shares) == 6
    assert min(shares) >= 0.3  # of 18 patches an epoch
    frame = pd.read_csv(scenes.json("ensemble")["file"])
    assert list(zip(frame["ImageId"], frame["ClassType"], strict=True)) == [
        (f"600{number}_0_1", k) for number in (6, 7) for k in (1, 2)
    ]
    shapes = [shapely.from_wkt(text) for text in frame["MultipolygonWKT"]]
    assert all(shape.is_valid for shape in shapes)
    for house, water in (shapes[:2], shapes[2:]):
        assert house.intersection(water).area < 0.02 * water.area  # a house clears the water, to where lines are drawn
    score = scenes.json("submit")["all_rows"]
    whole = np.mean([scene_of(number)[1].mean((1, 2)) for number in (6, 7)])
    assert score > 2 * whole  # what saying everything everywhere is worth
