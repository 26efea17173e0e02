"""A dense regression written as a shipped competition is: one band of 32 bits with no data, a folder as sample."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_lines import CommandLine
from drawn_images import write_png

pytestmark = pytest.mark.slow

BIOMASS = """
title: Biomass from above
task: dense_regression
source: {name: local, path: files, solution: answers.zip}
data:
  train: {csv: train.csv, images: features, suffix: .png}
  test: {images: test_features, suffix: .png}
  classes: [agbm]
  masks: {name: values, folder: agbm, suffix: _agbm.tif, nodata: -9999}
folds: {strategy: kfold, n: 2, seed: 1}
metric: rmse_per_image
submission: {format: {name: number_zip, file: '{id}_agbm.tif'}, sample: submission_format}
input: {size: 32}
model: {name: smp, backbone: test_resnet}
train: {batch_size: 4, lr: 1e-3, monitor: rmse_per_image, crop: native, augment: {name: strong, turns: true},
        loss: {name: huber, delta: 10}}
stages:
  all: {schedule: {name: sgdr, cycles: 2, cycle_len: 1}, keep: [cycles]}
tta: d4
maps: {windows: {name: overlap, size: 32, stride: 16}}
"""
SIZE = (48, 40)
ROWS, TEST = 8, 3


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an [H, W, 3] uint8 image and its [H, W] float32 biomass, in t/ha; -9999 under a cloud."""
    rng = np.random.default_rng(number)
    wood = cv2.GaussianBlur(rng.random(SIZE).astype(np.float32), (0, 0), 4)
    wood = (wood - wood.min()) / np.ptp(wood)
    image = np.stack([wood * 200, 255 - wood * 200, wood * 90 + rng.random(SIZE) * 20], axis=2)
    mass = np.square(wood) * 300
    mass[5:12, 5:12] = -9999
    return image.astype(np.uint8), mass.astype(np.float32)


@pytest.fixture(scope="module")
def biomass(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The data, downloaded; nothing trained."""
    root = tmp_path_factory.mktemp("biomass")
    files = root / "files"
    (files / "agbm").mkdir(parents=True)
    (files / "submission_format").mkdir()
    lines = ["id,tile"]
    for row in range(ROWS):
        image, mass = scene(row)
        write_png(files / "features" / f"s{row}.png", image)
        assert cv2.imwrite(str(files / "agbm" / f"s{row}_agbm.tif"), mass)
        lines.append(f"s{row},t{row // 2}")
    (files / "train.csv").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(root / "answers.zip", "w") as answers:
        for row in range(TEST):
            image, mass = scene(100 + row)
            write_png(files / "test_features" / f"u{row}.png", image)
            assert cv2.imwrite(str(files / "submission_format" / f"u{row}_agbm.tif"), np.zeros(SIZE, np.float32))
            truth = np.where(mass == -9999, np.nan, mass).astype(np.float32)
            answers.writestr(f"u{row}_agbm.tif", cv2.imencode(".tif", truth)[1].tobytes())
    made = CommandLine.of(root, "biomass", BIOMASS)
    made.run("download")
    return made


def test_inspect_shows_the_targets(biomass: CommandLine) -> None:
    told = biomass.json("inspect", "--samples", "1")
    [target] = told["balance"]
    known = np.concatenate([mass[mass != -9999] for _, mass in map(scene, range(ROWS))]).astype(np.float64)
    assert (target["target"], target["images"]) == ("agbm", ROWS)
    assert target["known"] == pytest.approx(known.size / (ROWS * SIZE[0] * SIZE[1]))
    np.testing.assert_allclose([target["low"], target["mean"], target["high"]],
                               [known.min(), known.mean(), known.max()], rtol=1e-6)  # fmt: skip
    [picture] = [Path(file) for file in told["files"] if Path(file).name == "targets.png"]
    assert cv2.imread(str(picture)).std() > 10


def test_the_yaml_has_no_problem_and_a_format_that_cannot_hold_its_numbers_has_one(biomass: CommandLine) -> None:
    assert biomass.json("check", "--images")["sample"] == TEST
    told = biomass.refused("check", "--set", "submission.format={name: number_zip, file: '{id}_agbm.png'}")
    assert "a PNG cannot hold float32" in told
    told = biomass.refused("check", "--set", "submission.format={name: mask_zip}")
    assert "cannot write the task 'dense_regression'" in told
    assert "the metric 'rmse' is not for the task" in biomass.refused("check", "--set", "metric=rmse")


def test_every_step_is_tried_on_two_batches(biomass: CommandLine) -> None:
    assert biomass.json("train", "--smoke")["rows"] == TEST
    assert [path.name for path in (biomass.root / "runs" / "biomass").iterdir() if path.name != "inspect"] == []


def test_a_fold_is_judged_while_it_trains_as_its_score_says(biomass: CommandLine) -> None:
    biomass.run("train", "--fold", "0")
    run = biomass.root / "runs" / "biomass" / "baseline-s0"
    log = [json.loads(line) for line in (run / "fold-0" / "log.jsonl").read_text().splitlines()]
    judged = [record["score"] for record in log if "score" in record]
    assert len(judged) == 2
    assert np.isfinite(judged).all()
    assert judged[0] < 300
    plain = [one["score"] for one in biomass.json("score")["growth"] if one["ensemble"].endswith("plain view")]
    assert plain[:2] == pytest.approx(judged, rel=1e-4)


def test_it_is_sent_graded_and_reported(biomass: CommandLine) -> None:
    biomass.run("train")
    made = biomass.json("ensemble")
    with zipfile.ZipFile(Path(made["file"])) as archive:
        assert archive.namelist() == [f"u{row}_agbm.tif" for row in range(TEST)]
        each = []
        for row in range(TEST):
            said = cv2.imdecode(np.frombuffer(archive.read(f"u{row}_agbm.tif"), np.uint8), cv2.IMREAD_UNCHANGED)
            mass = scene(100 + row)[1].astype(np.float64)
            each.append(np.sqrt(((said - mass)[mass != -9999] ** 2).mean()))
    assert biomass.json("submit")["all_rows"] == pytest.approx(np.mean(each), rel=1e-5)
    assert Path(biomass.json("report", "--solution")["page"]).is_file()
