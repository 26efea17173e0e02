"""One trained fold with a tuned post-process: every command says the same nested number, and labels it."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
from command_lines import CommandLine
from streets_and_salt import write_salt
from typer.testing import CliRunner

from kbench.api import open_run
from kbench.cli.app import app
from kbench.metrics.maps import image_counts
from kbench.metrics.metric import make_metric
from kbench.runs.map_results import truth_masks

pytestmark = pytest.mark.slow

SALT = """
task: segmentation
source: {name: local, path: files}
data:
  train: {csv: train.csv, images: train/images, suffix: .png}
  test: {csv: sample_submission.csv, images: test/images, suffix: .png}
  classes: [salt]
  masks: {name: rle, convention: tgs, column: rle_mask}
folds: {strategy: kfold, n: 2, seed: 1}
metric: tgs_iou
submission: {format: {name: rle, convention: tgs}}
input: {size: 32}
model: {name: smp, backbone: test_resnet}
train: {batch_size: 4, lr: 3e-3, crop: random, precision: fp32}
stages:
  all: {schedule: {name: sgdr, cycles: 2, cycle_len: 1}, keep: [cycles]}
maps: {postprocess: {name: standard, threshold: tuned, grid: {threshold: [0.35, 0.65]}}, keep: KEEP}
"""
TRUNCATED = 5e-6  # text has five digits


@pytest.fixture(scope="module", params=["on", "off"])
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CommandLine, str]:
    """A workspace whose fold 0 is trained, and what `train` said; maps are kept, or not."""
    root = tmp_path_factory.mktemp("salt")
    line = CommandLine.of(root, "salt", SALT.replace("KEEP", str(request.param)))
    write_salt(root / "files", train=16, test=2)
    line.run("download")
    with contextlib.chdir(root):
        done = CliRunner().invoke(app, ["train", "--fold", "0"])
    assert done.exit_code == 0, done.output
    return line, done.stderr


def test_train_score_and_sweep_say_the_same_nested_number(one: tuple[CommandLine, str]) -> None:
    line, said = one
    score = line.json("score")
    assert (score["nested_by"], sorted(score["postprocess"]["by_fold"])) == ("fifth", list("01234"))
    assert score["folds"]["0"] == score["score"] == score["postprocess"]["nested"]
    assert score["table"][0]["post-processed"] == score["score"]
    text = re.search(r"fold 0: tgs_iou ([0-9.]+) out of fold, nested", " ".join(said.split()))
    assert text is not None
    assert float(text[1]) == pytest.approx(score["score"], abs=TRUNCATED)
    printed = " ".join(line.run("score").split())
    assert f"tgs_iou {score['score']:.5f}" in printed
    assert "nested: each fifth of the only fold" in printed
    assert score["plain"]["value"] - score["score"] == pytest.approx(score["optimism"])
    rows = line.json("sweep", "tta=none")["rows"]
    (same,) = [row for row in rows if row["tta"] == '"none"']
    assert (same["score"], same["optimism"]) == (score["score"], score["optimism"])


def test_the_masks_that_are_shown_are_those_that_are_scored(one: tuple[CommandLine, str]) -> None:
    line, _ = one
    run = open_run("baseline-s0", workspace=line.root)
    oof = run.out_of_fold()
    masks, truth = oof.sent(), truth_masks(run.experiment, oof.table)
    counts = np.stack([image_counts(masks[row], truth(row), n_classes=1) for row in range(len(oof.table))])
    real = counts[..., 0] + counts[..., 2]
    assert make_metric("tgs_iou")(real, counts, oof.table) == pytest.approx(oof.score["score"])


def test_weights_found_on_one_fold_are_scored_on_the_other_fifths(one: tuple[CommandLine, str]) -> None:
    line, _ = one
    result = line.json("ensemble", "--combine", "greedy", "--name", "greedy")
    assert result["nested_by"] == "fifth"
    assert sum(result["weights"].values()) == pytest.approx(1)
    assert result["score"] <= result["plain"]["value"] + 0.2
