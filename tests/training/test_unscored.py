"""A fold on which the metric has no value is trained, judged by its loss, and said beforehand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import toy
from drawn_images import drawn, write_images
from sklearn.metrics import roc_auc_score

from kbench.commands.train import train
from kbench.errors import DataError
from kbench.inference.predictions import load
from kbench.metrics.metric import Undefined, make_metric
from kbench.models.checkpoint import read_checkpoint
from kbench.runs.experiment import Experiment, open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import run_of, run_paths
from kbench.runs.out_of_fold import score_of_fold
from kbench.runs.unscored import unscored_folds
from kbench.training.events import Epoch, Note
from kbench.training.fold import train_fold
from kbench.training.resume import Progress
from kbench.workspace import Choice

pytestmark = pytest.mark.usefixtures("quick_disk")
CPU = TrainOptions(device="cpu")
ONE_KIND = np.arange(36) % 2 * (np.arange(36) < 27)  # the held-out quarter is of one class


def events(folder: Path, **changes: Any) -> list[Any]:
    stage = toy.stage(**{"monitor": make_metric("auc"), "schedule": ("constant", {"epochs": 3}), **changes})
    fold = toy.context(folder, table=toy.table(36, targets=ONE_KIND))
    return list(train_fold(fold, [stage], toy.build, resumed=None))


@pytest.mark.parametrize("changes", [
    {"keep": frozenset({"best"})}, {"early_stop": 1}, {"schedule": ("plateau", {"epochs": 3})},
    {"min_delta": 0.01},
], ids=str)  # fmt: skip
def test_a_fold_without_a_class_is_judged_by_its_loss_and_says_so(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = events(tmp_path, **changes)
    said = [event.text for event in made if isinstance(event, Note) and "no value" in event.text]
    assert len(said) == 1
    assert "no row of 'right'" in said[0]
    epochs = [event for event in made if isinstance(event, Epoch)]
    assert epochs
    assert {epoch.score for epoch in epochs} == {None}
    assert epochs[0].best
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["end/only"]["history"] == [-float(epoch.valid_loss or 0) for epoch in epochs]


def test_the_best_snapshot_of_such_a_fold_is_that_of_the_least_loss(tmp_path: Path) -> None:
    epochs = [event for event in events(tmp_path, keep=frozenset({"best"}), lr=0.2) if isinstance(event, Epoch)]
    found = read_checkpoint(tmp_path / "snapshot-only-best.json")
    assert found is not None
    assert found.info["epoch"] == int(np.argmin([epoch.valid_loss for epoch in epochs]))
    assert (found.info["score"], found.info["monitor"]) == (None, "loss")


def test_a_resume_point_of_an_earlier_version_is_read() -> None:
    assert Progress(**{"stage": 0, "epoch": 1}).by_loss is False


# -- what the metric says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "task", "targets", "why"), [
    ("auc", "single_label", np.array([0, 0, 2, 2]), "no row of 'b'"),
    ("auc", "multi_label", np.array([[1, 0, 0], [0, 1, 0.0]]), "fewer than two different known values of 'c'"),
    ("r2", "regression", np.array([[1, 2, 3], [1, 4, 5.0]]), "fewer than two different known values of 'a'"),
    ("mean_iou", "segmentation", np.zeros((4, 3), dtype=np.int64), "no pixel of 'a', 'b', 'c'"),
    ("rmse_per_image", "dense_regression", np.zeros((4, 3)), "no known pixel"),
], ids=str)  # fmt: skip
def test_a_metric_says_why_it_has_no_value(name: str, task: str, targets: np.ndarray, why: str) -> None:
    table = toy.table(len(targets), task=task, targets=targets, names=("a", "b", "c"))
    metric = make_metric(name)
    assert why in metric.undefined(targets, table)
    predictions = np.zeros((*targets.shape, 3)) if "iou" in name or "image" in name else np.full((len(targets), 3), 0.3)
    assert metric.or_none(targets, predictions, table) is None
    with pytest.raises(Undefined, match="has no value") as caught:
        metric(targets, predictions, table)
    assert isinstance(caught.value, DataError)
    assert "stratified" not in caught.value.todo  # the folds may be given


@pytest.mark.parametrize(("name", "task", "targets"), [
    ("auc", "single_label", np.array([0, 1, 2, 2])), ("accuracy", "single_label", np.array([0, 0])),
    ("r2", "regression", np.array([[1, 2, 3], [2, 4, 5.0]])),
    ("tgs_iou", "segmentation", np.zeros((4, 3), dtype=np.int64)),
    ("mean_iou", "segmentation", np.array([[0, 0, 1]])),
    ("rmse_per_image", "dense_regression", np.array([[0, 0, 1.0]])),
], ids=str)  # fmt: skip
def test_a_metric_that_has_a_value_is_not_warned_of(name: str, task: str, targets: np.ndarray) -> None:
    table = toy.table(len(targets), task=task, targets=targets, names=("a", "b", "c"))
    assert make_metric(name).undefined(targets, table) == ""


# -- whole runs -----------------------------------------------------------------------------------------------------

BASE = """
title: t
task: {task}
source: {{name: local, path: source}}
data: {data}
folds: {folds}
metric: {metric}
submission: {{format: {format}, sample: sample_submission.csv}}
input: {{size: 16}}
plugins: [model.py]
model: {{name: model_for_tests}}
stages:
  all: {{lr: 0.01, batch_size: 4, schedule: {{name: constant, epochs: 1}}, keep: [best]}}
"""
MODEL = """
from torch import nn

from kbench.registry import register


@register("model", "model_for_tests")
def model(n_outputs, in_channels):
    return {}
"""


def written(root: Path, name: str, model: str, **parts: str) -> Experiment:
    (root / "competitions" / name).mkdir(parents=True)
    (root / "competitions" / f"{name}.yaml").write_text(BASE.format(**parts))
    (root / "competitions" / name / "model.py").write_text(MODEL.format(model))
    (root / "data").mkdir()
    (root / "data" / name).symlink_to(root / "source", target_is_directory=True)
    return open_experiment(Choice(name, workspace=root))


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)


def test_a_class_of_one_row(tmp_path: Path) -> None:
    """The trial `auc-missing-class`: 10 cats, 10 dogs, one eel, two folds."""
    source = tmp_path / "source"
    labels = ["cat"] * 10 + ["dog"] * 10 + ["eel"]
    write_images(source / "train", drawn(21))
    write_csv(source / "train.csv", [["id", "label"], *([f"{row:04d}", label] for row, label in enumerate(labels))])
    data = "{train: {csv: train.csv, images: train, suffix: .png}, target: label}"
    model = "nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * in_channels, n_outputs))"
    setup = written(tmp_path, "rare", model, task="single_label", data=data, folds="{strategy: stratified, n: 2}",
                    metric="auc", format="probabilities")  # fmt: skip
    (without,) = [fold for fold in (0, 1) if 2 not in setup.train.targets[setup.folds.valid(fold)]]
    (said,) = unscored_folds(setup, every_mask=False)
    assert said.startswith(f"fold {without}: 'auc' has no value")
    assert "'eel'" in said
    result = train(setup, "all", CPU)
    assert (result["trained"], result["failed"]) == ([0, 1], [])
    scores = [score_of_fold(run_of(setup), fold).value for fold in (0, 1)]
    assert scores[without] is None
    assert scores[1 - without] is not None
    values = np.zeros((21, 3), dtype=np.float32)
    for fold in (0, 1):
        found = load(run_paths(setup).fold(fold).predictions("oof", "all-best"))
        values[setup.folds.valid(fold)] = found.values
    expected = roc_auc_score(setup.train.targets, values / values.sum(1, keepdims=True), multi_class="ovr")
    assert make_metric("auc")(setup.train.targets, values, setup.train) == pytest.approx(expected)


def test_a_fold_whose_masks_are_empty(tmp_path: Path) -> None:
    """The trial `fold-without-positives`: the masks of fold 1 are empty, the folds are given."""
    source = tmp_path / "source"
    names = write_images(source / "train", drawn(8))
    (source / "masks").mkdir()
    for row, image in enumerate(drawn(8)):
        mask = np.full(image.shape[:2], 255 if row < 4 else 0, dtype=np.uint8)
        mask[:, 4:] = 0
        cv2.imwrite(str(source / "masks" / f"{row:04d}.png"), mask // 255)
    write_csv(source / "train.csv", [["id", "fold"], *([f"{row:04d}", row // 4] for row in range(len(names)))])
    data = (
        "{masks: {name: index, folder: masks}, classes: [blob], metadata: [fold], "
        "train: {csv: train.csv, images: train, suffix: .png}}"
    )
    setup = written(tmp_path, "empty", "nn.Conv2d(in_channels, n_outputs, 1)", task="segmentation", data=data,
                    folds="{strategy: predefined, n: 2, options: {column: fold}}", metric="mean_iou",
                    format="{name: rle, convention: tgs}")  # fmt: skip
    (said,) = unscored_folds(setup, every_mask=True)
    assert "fold 1" in said
    assert "no pixel of 'blob'" in said
    result = train(setup, "all", CPU)
    assert (result["trained"], result["failed"]) == ([0, 1], [])
    assert score_of_fold(run_of(setup), 1).value is None
    assert score_of_fold(run_of(setup), 0).value is not None
