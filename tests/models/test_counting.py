"""Pixel counts are those of a confusion matrix, image by image, ignored pixels left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from kbench.models.counting import confusion, pixel_counts


@pytest.mark.parametrize("classes", [2, 5, 20])
def test_exclusive_counts_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, (3, 17, 23, 1)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    predicted = rng.integers(0, classes, (3, 17, 23)).astype(np.uint8)
    both = confusion(torch.from_numpy(predicted), torch.from_numpy(truth), classes)
    counts = pixel_counts(torch.from_numpy(predicted), torch.from_numpy(truth), "segmentation", classes)
    for image in range(3):
        known = truth[image, ..., 0] != 255
        expected = confusion_matrix(truth[image, ..., 0][known], predicted[image][known], labels=range(classes))
        assert np.array_equal(both[image].numpy(), expected)
        hit = expected.diagonal()
        assert np.array_equal(counts[image].numpy(), np.stack([hit, expected.sum(0) - hit, expected.sum(1) - hit], 1))


@pytest.mark.parametrize(("task", "classes"), [("multi_label_segmentation", 3), ("segmentation", 1)])
def test_layers_are_counted_each_for_itself(task: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    truth = rng.choice(np.array([0, 1, 255], dtype=np.uint8), (2, 9, 11, classes))
    predicted = rng.integers(0, 2, (2, classes, 9, 11)).astype(np.uint8)
    counts = pixel_counts(torch.from_numpy(predicted), torch.from_numpy(truth), task, classes).numpy()
    for image, k in np.ndindex(2, classes):
        true, found = truth[image, ..., k], predicted[image, k]
        known = true != 255
        pairs = [(1, 1), (0, 1), (1, 0)]
        expected = [((true == t) & (found == f)).sum() for t, f in pairs]
        assert counts[image, k].tolist() == [int(number) for number in expected]
        assert counts[image, k].sum() <= known.sum()
