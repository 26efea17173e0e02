"""Files of bands and dates through the whole job, by region, some missing; and bad files as a user sees them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command_lines import CommandLine
from geotiffs import CORNER, geotiff

pytestmark = pytest.mark.slow

YAML = """
title: Biomass of months
task: dense_regression
source: {name: local, path: files}
data:
  train: {csv: train.csv, images: features}
  test: {csv: test.csv, images: features}
  masks: {name: values, folder: agbm, suffix: _agbm.tif}
  classes: [agbm]
  metadata: [area]
folds: {strategy: kfold, n: 2, seed: 1}
metric: rmse_per_image
submission: {format: {name: number_zip, file: "{id}_agbm.tif"}, sample: test.csv}
input:
  size: 32
  reader: raster
  files: {S1: "{id}_S1_{date}.tif", S2: "{id}_S2_{date}.tif"}
  dates: ["00", "01", "02"]
  missing: mask
  bands: {S1: {nodata: -9999, range: [[-25, 29]]}, S2: {names: [green, nir], scale: 10000}}
  derive: [ndwi]
  normalise: {by: region, group: area, region: {test: true}}
model: {name: smp, backbone: test_resnet}
train: {batch_size: 4, lr: 1e-3, crop: native, augment: {name: strong, turns: true}, axis_dropout: {axis: date}}
stages:
  all: {schedule: {name: one_cycle, epochs: 2}, keep: [last]}
tta: flip
"""
SIZE, ROWS, TEST = 32, 8, 2


def write(root: Path) -> Path:
    """Write chips whose biomass is in every month's radar, half of them without optics in some month."""
    lines = ["id,area"]
    for row in range(ROWS + TEST):
        rng, name = np.random.default_rng(row), f"c{row}"
        mass = np.kron(rng.random((4, 4)), np.ones((8, 8))).astype(np.float32) * 100
        for date in ("00", "01", "02"):
            radar = (mass[:, :, None] / 5 - 20 + rng.normal(size=(SIZE, SIZE, 1))).astype(np.float32)
            radar[:2, :3] = -9999
            geotiff(root / "features" / f"{name}_S1_{date}.tif", radar)
            if not (row % 2 and date == "01"):
                optics = rng.integers(100, 5000, (SIZE // 2, SIZE // 2, 2)).astype(np.uint16)
                geotiff(root / "features" / f"{name}_S2_{date}.tif", optics, step=20)
        if row < ROWS:
            geotiff(root / "agbm" / f"{name}_agbm.tif", mass)
            lines.append(f"{name},{'north' if row % 3 else 'south'}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    (root / "test.csv").write_text(
        "id,area\n" + "".join(f"c{ROWS + row},{'north' if row else 'east'}\n" for row in range(TEST))
    )
    return root


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    root = tmp_path_factory.mktemp("months")
    write(root / "files")
    made = CommandLine.of(root, "months", YAML)
    made.run("download")
    return made


def test_months_are_checked_trained_scored_and_sent(months: CommandLine) -> None:
    assert months.json("check", "--images")["test"] == TEST
    months.run("train", "--fold", "all")
    assert np.isfinite(months.json("score")["score"])
    made = months.json("ensemble")
    with zipfile.ZipFile(made["file"]) as archive:
        for row in range(TEST):
            said = archive.read(f"c{ROWS + row}_agbm.tif")
            (months.root / "one.tif").write_bytes(said)
            numbers = tifffile.imread(months.root / "one.tif")
            assert (numbers.shape, numbers.dtype) == ((SIZE, SIZE), np.float32)
            assert np.isfinite(numbers).all()


def test_a_snapshot_knows_the_statistics_it_was_trained_with(months: CommandLine) -> None:
    months.run("train", "--fold", "0")
    (found,) = (months.root / "runs" / "months" / "baseline-s0" / "fold-0").glob("*last*.json")
    scale = json.loads(found.read_text())["scale"]
    assert sorted(scale["regions"]) == ["east", "north", "south"]  # the test set counts, as the YAML says
    assert len(scale["mean"]) == 12
    for means, stds in scale["regions"].values():
        assert (means[0], stds[0]) == pytest.approx((-25, 54))  # a range is the same everywhere
        assert np.isfinite([means, stds]).all()


def test_bad_files_are_told_without_a_traceback(months: CommandLine, tmp_path: Path) -> None:
    root = write(tmp_path / "files")
    line = CommandLine.of(tmp_path, "months", YAML)
    line.run("download")
    features = root / "features"
    (features / "c0_S2_00.tif").write_bytes((features / "c0_S2_00.tif").read_bytes()[:700])
    geotiff(features / "c1_S2_00.tif", np.ones((16, 16, 3), np.uint16), step=20)
    geotiff(features / "c2_S2_00.tif", np.ones((16, 16, 2), np.uint16), step=20, corner=(CORNER[0] + 9000, CORNER[1]))
    geotiff(features / "c3_S2_00.tif", np.full((16, 16, 2), np.nan, np.float32), step=20)
    for path in features.glob("c4_*"):
        path.unlink()
    told = line.refused("check", "--images")
    assert "1 row without any file: 'c4'" in told
    assert line.json("check", "--images", "--set", "data.on_problem=drop")["rows"] == ROWS - 5
    geotiff(features / "c4_S1_00.tif", np.ones((SIZE, SIZE, 1), np.float32))
    told = line.refused("check", "--images")
    for text in (
        "1 file truncated", "c0_S2_00.tif", "the reader refuses (2 bands (input.bands.S2))", "c1_S2_00.tif",
        "the reader refuses (files of one place)", "c2_S2_00.tif", "nothing is known", "c3_S2_00.tif",
    ):  # fmt: skip
        assert text in told, f"'{text}' is not in {told}"


def test_a_date_outside_of_the_yaml_is_no_row_and_is_said(months: CommandLine) -> None:
    told = months.refused("check", "--set", "input.dates=[]")
    assert "has `{date}`, and there are no dates" in told
