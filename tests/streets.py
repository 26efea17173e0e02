"""A small segmentation: bright squares on a dark ground, with a network of three layers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kbench import files

DENSE = """
import torch
from torch import nn

from kbench.registry import register


class Dense(nn.Module):
    def __init__(self, n_outputs, channels):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, n_outputs, 1)
        self.layer_prefixes = [["a."], ["b."], ["c."]]

    def forward(self, images):
        return self.c(self.b(self.a(images).relu()).relu())


@register("model", "dense_for_tests")
def dense(n_outputs, in_channels):
    return Dense(n_outputs, in_channels)
"""
STREET = """
title: Bright squares
task: segmentation
source: {name: local, path: source/street}
data:
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  classes: [ground, square]
  masks: {name: index, folder: masks}
folds: {strategy: kfold, n: 2, seed: 1}
metric: {name: mean_iou}
submission: {format: {name: rle, id: "{id}_{class_index}"}}
plugins: [dense.py]
input: {size: 16, cache: off}
model: {name: dense_for_tests}
train: {batch_size: 4, precision: fp32}
stages:
  all: {lr: 0.05, schedule: {name: constant, epochs: 6}, keep: [last]}
"""


def write_street(root: Path) -> None:
    files.write_text(root / "competitions" / "street.yaml", STREET)
    files.write_text(root / "competitions" / "street" / "dense.py", DENSE)
    ids = [f"f{row:02d}" for row in range(12)]
    for name, folder, has_masks in [
        *((one, "train", True) for one in ids),
        *((f"g{k}", "test", False) for k in range(4)),
    ]:
        rng = np.random.default_rng(sum(map(ord, name)))
        mask = np.zeros((16, 16), np.uint8)
        y, x = rng.integers(0, 9, 2)
        mask[y : y + 7, x : x + 7] = 1
        image = rng.integers(0, 60, (16, 16, 3)).astype(np.uint8) + 150 * mask[:, :, None]
        for path, pixels in ((root / "data" / "street" / folder, image), (root / "data" / "street" / "masks", mask)):
            if pixels is image or has_masks:
                files.make_folder(path)
                cv2.imwrite(str(path / f"{name}.png"), pixels)
    files.write_text(root / "data" / "street" / "train.csv", "id\n" + "".join(f"{name}\n" for name in ids))
    asked = "".join(f"g{row}_{k},\n" for row in range(4) for k in range(2))
    files.write_text(root / "data" / "street" / "sample_submission.csv", f"id,rle\n{asked}")
