"""Padding reflects, and what was padded is cut back."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbench.models.segmenter import padded

SIDES = st.integers(1, 12)


@given(height=SIDES, width=SIDES, down=st.integers(0, 40), across=st.integers(0, 40))
def test_padding_is_numpys_reflection_and_is_undone(height: int, width: int, down: int, across: int) -> None:
    image = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    made, place = padded(image, (height + down, width + across))
    assert torch.equal(made[place], image)
    before = (down // 2, across // 2)
    pads = [(0, 0), (0, 0), (before[0], down - before[0]), (before[1], across - before[1])]
    if min(height, width) > 1:
        assert np.array_equal(made.numpy(), np.pad(image.numpy(), pads, mode="reflect"))
    assert set(made.flatten().tolist()) <= set(image.flatten().tolist())


def test_an_image_that_fits_is_not_touched() -> None:
    images = torch.rand(1, 3, 64, 32)
    assert padded(images, (64, 32))[0] is images


def test_padding_and_cutting_keep_the_memory_format() -> None:
    images = torch.rand(2, 3, 30, 30).to(memory_format=torch.channels_last)
    assert padded(images, (32, 32))[0].is_contiguous(memory_format=torch.channels_last)
