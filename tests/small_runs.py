"""Small competitions of every task, trained in a second: two folds or one, two snapshots, a few weights."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from drawn_images import drawn, write_images

from kbench.commands.train import train
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice

ROWS, TEST = 48, 10

MODEL = """
import torch
from torch import nn

from kbench.registry import register


class Small(nn.Module):
    def __init__(self, n_outputs, channels):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 4, 3), nn.Linear(16, n_outputs)
        self.layer_prefixes = [["conv."], ["fc."]]

    def forward(self, images):
        return self.fc(nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1))


@register("model", "small_for_tests")
def small(n_outputs, in_channels):
    return Small(n_outputs, in_channels)
"""

SPLIT = MODEL.replace(
    """        self.conv, self.fc = nn.Conv2d(channels, 4, 3), nn.Linear(16, n_outputs)
        self.layer_prefixes = [["conv."], ["fc."]]

    def forward(self, images):
        return self.fc(nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1))
""",
    """        generator = torch.Generator().manual_seed(0)
        self.conv, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(16, n_outputs)
        with torch.no_grad():
            self.conv.weight.normal_(generator=generator), self.conv.bias.zero_()  # as if pretrained
        self.layer_prefixes = [["conv."], ["head."]]

    def features(self, images):
        return nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1)

    def forward(self, images):
        return self.head(self.features(images))
""",
)
"""The same model, cut into a body as if pretrained and a head."""

YAML = """
title: Bright halves
task: {task}
source: {{name: local, path: source/{name}{solution}}}
data:
  train: {{csv: train.csv, images: train, suffix: .png}}
  test: {{images: test, suffix: .png}}
  target: {target}
  metadata: [site, age]
folds: {{strategy: kfold, n: 2, seed: 1}}
metric: {metric}
submission: {{format: {format}}}
plugins: [small.py]
input: {{size: 8, channels: {channels}, cache: off}}
model: {{name: small_for_tests}}
train: {{batch_size: 8, augment: side_on, precision: fp32}}
stages:
  first: {{groups: head, lr: {lr}, schedule: {{name: constant, epochs: 1}}}}
  all: {{lr: 0.02, lr_decay: 3, schedule: {{name: sgdr, cycles: 2, cycle_len: 1}}, keep: [cycles]}}
tta: flip
"""
TASKS = {
    "classes": {"task": "single_label", "target": "label", "metric": "log_loss", "lr": "find",
                "solution": ", solution: source/classes/solution.csv"},
    "labels": {"task": "multi_label", "target": "tags", "metric": "f2_samples", "lr": 0.02},
    "numbers": {"task": "regression", "target": "[level, width]", "metric": "rmse", "lr": 0.02, "format": "value"},
}  # fmt: skip
FOLDS = {"classes": "all", "labels": "0", "numbers": "0"}
COLUMNS = {"classes": ("left", "right"), "labels": ("bright", "left", "right"), "numbers": ("level", "width")}


def trained(root: Path) -> Path:
    """Write the competitions into a new workspace and train folds of each baseline; return the workspace."""
    written(root)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("KBENCH_"):
                patch.delenv(name)
        for name, folds in FOLDS.items():
            train(open_experiment(Choice(name, workspace=root)), folds, TrainOptions(device="cpu"))
    return root


def written(root: Path) -> Path:
    """Write the three competitions and their data into a new workspace; return it."""
    for name, task in TASKS.items():
        channels = 1 if name == "numbers" else 3
        _write_source(root / "source" / name, name, channels)
        folder = root / "competitions" / name
        folder.mkdir(parents=True)
        (folder / "small.py").write_text(MODEL)
        text = YAML.format(name=name, channels=channels, **{"format": "probabilities", "solution": "", **task})
        (root / "competitions" / f"{name}.yaml").write_text(text)
        (root / "data").mkdir(exist_ok=True)
        (root / "data" / name).symlink_to(root / "source" / name, target_is_directory=True)
    return root


def _write_source(folder: Path, name: str, channels: int) -> None:
    images = drawn(ROWS + TEST, channels=channels)
    write_images(folder / "train", images[:ROWS])
    write_images(folder / "test", images[ROWS:])
    header = {"classes": ["label"], "labels": ["tags"], "numbers": ["level", "width"]}[name]
    rows = [
        [f"{row:04d}", *_targets(name, row, images[row]), "north" if row % 3 else "south", "" if row == 5 else 20 + row]
        for row in range(ROWS)
    ]
    _write(folder / "train.csv", ["id", *header, "site", "age"], rows)
    ids = [f"{row:04d}" for row in range(TEST)]
    columns = COLUMNS[name]
    _write(folder / "sample_submission.csv", ["id", *columns], [[one, *[0.5] * len(columns)] for one in ids])
    if name == "classes":
        truth = [[one, ("left", "right")[row % 2], "Public"] for row, one in enumerate(ids)]
        _write(folder / "solution.csv", ["id", "label", "Usage"], truth)


def _targets(name: str, row: int, image: np.ndarray) -> list[str]:
    side = ("left", "right")[row % 2]
    if name == "classes":
        return [side]
    if name == "labels":
        return [f"bright {side}" if row % 4 else side]
    return [f"{image.mean() / 25:.3f}", "" if row == 7 else str(1 + row % 2)]


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with open(path, "w", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows([header, *rows])
