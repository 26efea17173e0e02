"""A whole competition YAML that tests change; the shipped ones may be tuned without touching a test."""

from __future__ import annotations

from typing import Any

from kbench.config.yaml12 import parse_yaml

DIGITS = """
title: Handwritten digits
task: single_label
source: {name: embedded, dataset: digits}
data:
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  target: label
folds: {strategy: stratified, n: 5, by: [target], seed: 42}
metric: log_loss
submission: {format: probabilities, sample: sample_submission.csv}

# the baseline experiment
seed: 0
input: {size: 32, channels: 1}
model: {backbone: resnet10t}
train: {batch_size: 64, optimizer: adamw, weight_decay: 0.05, augment: {name: basic, rotate: 12, zoom: 1.15}}
stages:
  cycles:
    lr: find
    schedule: {name: sgdr, cycles: 3, cycle_len: 2, cycle_mult: 2}
    keep: [cycles]
tta: {name: random, n: 4}
ensemble: {mean: arithmetic}
"""


def digits() -> dict[str, Any]:
    """Return the mapping of the YAML."""
    content: dict[str, Any] = parse_yaml(DIGITS, name="digits.yaml")
    return content
