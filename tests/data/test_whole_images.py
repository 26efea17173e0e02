"""Whole images of any size: what goes through the network at once is bounded by pixels, not by the first image."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbench.data.whole_images import Group, WholeSample, batch_size, group, pixels_at_once
from kbench.errors import DataError

SMALL, LARGE = (4, 6), (20, 30)


def samples(sizes: list[tuple[int, int]], *, masks: bool = True) -> list[WholeSample]:
    return [
        (row, np.full((*size, 3), row, np.uint8), np.full((*size, 1), row, np.uint8) if masks else None, "")
        for row, size in enumerate(sizes)
    ]


def grouped(sizes: list[tuple[int, int]], pixels: int, *, masks: bool = True) -> list[Group]:
    found = group(samples(sizes, masks=masks), pixels=pixels)
    assert isinstance(found, list)
    return found


def test_large_images_after_small_ones_are_not_put_together() -> None:
    images = [image for _, image, *_ in samples([SMALL] * 3 + [LARGE] * 3)]
    size = batch_size(images, pixels=700, most=16)
    assert size == 16  # as the first image says
    groups = grouped([SMALL] * 3 + [LARGE] * 3, 700)
    assert [some.rows for some in groups] == [[0, 1, 2], [3], [4], [5]]


def test_an_image_beyond_the_bound_goes_alone() -> None:
    assert [some.rows for some in grouped([LARGE, SMALL, SMALL, LARGE], 50)] == [[0], [1, 2], [3]]


@given(st.lists(st.sampled_from([SMALL, (6, 4), LARGE]), min_size=1, max_size=12), st.integers(1, 2000), st.booleans())
def test_every_row_stands_in_one_group_of_its_size_within_the_bound(
    sizes: list[tuple[int, int]], pixels: int, masks: bool
) -> None:
    groups = grouped(sizes, pixels, masks=masks)
    assert sorted(row for some in groups for row in some.rows) == list(range(len(sizes)))
    for some in groups:
        count, height, width, _ = some.images.shape
        assert count == 1 or count * height * width <= pixels
        assert (some.masks is not None) is masks
        for place, row in enumerate(some.rows):
            assert (height, width) == sizes[row]
            assert (some.images[place] == row).all()
            assert some.masks is None or bool((some.masks[place] == row).all())


def test_the_first_error_takes_the_place_of_the_batch() -> None:
    error = DataError("a picture is torn", "a whole one", "look at it")
    assert group([*samples([SMALL]), error], pixels=100) is error


def test_the_bound_is_of_map_values() -> None:
    assert pixels_at_once(20) * 20 <= 1 << 25
    assert batch_size([np.zeros((1216, 1936, 3), np.uint8)], pixels=pixels_at_once(20), most=16) == 1
    assert isinstance(grouped([SMALL], 100)[0].images, torch.Tensor)
