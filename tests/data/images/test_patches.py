"""Patches of scenes: how often they show what is looked for, and that it is logged as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kbench import registry
from kbench.data.images.crops import preferring
from kbench.training.loop import Feed

SIZE = (16, 16)


def share(crop_name: str, wanted: list[int], positive: float, mask: np.ndarray) -> float:
    """Return how many of 400 windows show a wanted class."""
    crop = preferring(registry.build("crop", crop_name, {}), wanted, 3, positive)
    rng, hits = np.random.default_rng(0), 0
    assert crop.masked is not None
    for _ in range(400):
        window = crop.masked(mask, SIZE, rng)
        rows = slice(int(window.top), int(window.top + window.height))
        columns = slice(int(window.left), int(window.left + window.width))
        assert (window.height, window.width) == SIZE
        hits += bool(mask[rows, columns][..., wanted].any())
    return hits / 400


@pytest.mark.parametrize("crop", ["random", "native"])
def test_half_of_the_patches_show_what_is_rare(crop: str) -> None:
    mask = np.zeros((200, 260, 3), np.uint8)
    mask[150, 31, 2] = 1  # by chance 256 of 45,325 windows
    assert share(crop, [1, 2], 0.5, mask) == pytest.approx(0.5, abs=0.06)
    assert share(crop, [2], 1.0, mask) == 1
    assert share(crop, [2], 0.0, mask) < 0.03
    assert share(crop, [0, 1], 1.0, mask) == 0  # none is there: patches lie anywhere


@pytest.mark.parametrize(("target", "wanted", "expected"), [
    (torch.tensor([[[0, 2]], [[1, -100]], [[0, 0]]]), (1, 2), 2),
    (torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]], [[[float("nan"), 0.0]], [[1.0, 0.0]]]]), (1,), 1),
])  # fmt: skip
def test_patches_that_show_a_wanted_class_are_counted(target: torch.Tensor, wanted: tuple, expected: int) -> None:
    feed = Feed(lambda batches: iter(()), nn.Identity(), torch.device("cpu"), wanted=wanted)
    found = feed.positive(target)
    assert found is not None
    assert int(found) == expected
    assert Feed(lambda batches: iter(()), nn.Identity(), torch.device("cpu")).positive(target) is None
