"""Padding reflects, and what was padded is cut back."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbench.models.padding import padded, to_multiple

SIDES = st.integers(1, 12)


@given(height=SIDES, width=SIDES, down=st.integers(0, 40), across=st.integers(0, 40))
def test_padding_is_numpys_reflection_and_is_undone(height: int, width: int, down: int, across: int) -> None:
    image = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    made, place = padded(image, (height + down, width + across))
    assert torch.equal(made[place], image)
    before = (down // 2, across // 2)
    pads = [(0, 0), (0, 0), (before[0], down - before[0]), (before[1], across - before[1])]
    expected = np.pad(image.numpy(), pads, mode="reflect") if min(height, width) > 1 else None
    if expected is not None:
        assert np.array_equal(made.numpy(), expected)


@given(height=SIDES, width=SIDES, divisor=st.integers(1, 64))
def test_sides_become_multiples(height: int, width: int, divisor: int) -> None:
    made, place = to_multiple(torch.zeros(2, 3, height, width), divisor)
    assert made.shape[-2] % divisor == made.shape[-1] % divisor == 0
    assert made[place].shape == (2, 3, height, width)
    assert made.shape[-2] - height < divisor
