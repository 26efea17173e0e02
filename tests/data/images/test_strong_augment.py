"""The strong preset: image and mask move alike, the mask is never lit."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_images import drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.data.dataset import Show
from kbench.data.images.augment import strong
from kbench.data.images.crops import Geometry, native, random, warp
from kbench.errors import ConfigError

QUIET = {"light": 0.0, "colour": 0.0, "gamma": 0.0, "blur": 0.0, "noise": 0.0, "cutout": 0.0}


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), channels=st.sampled_from([1, 2, 3, 7]), dtype=st.sampled_from(["u1", "u2", "f4"]))
def test_pixels_change_the_image_alone_but_for_what_is_cut_out(seed: int, channels: int, dtype: str) -> None:
    image = drawn(1, size=(24, 30), channels=channels, dtype=np.dtype(dtype))[0]
    mask = np.random.default_rng(seed).integers(0, 5, (24, 30, 1)).astype(np.uint8)
    before = image.copy(), mask.copy()
    pixels = strong(prob=1.0).pixels
    assert pixels is not None
    made, made_mask = pixels(image, mask, np.random.default_rng(seed))
    assert made_mask is not None
    assert (made.dtype, made.shape, made_mask.dtype, made_mask.shape) == (
        image.dtype, image.shape, mask.dtype, mask.shape,
    )  # fmt: skip
    out = made_mask == 255
    np.testing.assert_array_equal(made_mask[~out], mask[~out])
    if out.any():
        rows, columns = np.flatnonzero(out[:, :, 0].any(1)), np.flatnonzero(out[:, :, 0].any(0))
        assert out.sum() == len(rows) * len(columns) <= 0.31**2 * 24 * 30 + 24
        cut = made[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (cut == cut[:1, :1]).all()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])
    again, _ = pixels(image, mask, np.random.default_rng(seed))
    np.testing.assert_array_equal(made, again)


def test_unknown_numbers_are_what_is_cut_out_of_a_dense_target() -> None:
    pixels = strong(prob=1.0, cutout=0.5, **{key: 0.0 for key in QUIET if key != "cutout"}).pixels
    assert pixels is not None
    image, target = drawn(1, size=(20, 20))[0], np.ones((20, 20, 2), dtype=np.float32)
    found = [pixels(image, target, np.random.default_rng(seed))[1] for seed in range(10)]
    assert any(np.isnan(mask).any() for mask in found if mask is not None)
    for mask in found:
        assert mask is not None
        assert set(mask[~np.isnan(mask)]) == {1.0}


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(16, 16), (20, 12)]), turns=st.booleans())
def test_image_and_mask_are_warped_alike_and_the_mask_has_only_its_own_values(
    seed: int, size: tuple[int, int], turns: bool
) -> None:
    """The image is the smooth position of each pixel; the mask, taken from the nearest one, must say the same."""
    y, x = np.mgrid[0:40, 0:50].astype(np.float32)
    where = np.stack([y, x], axis=2)
    augmentation = strong(prob=1.0, turns=turns, scale=(0.7, 2.0), **QUIET)
    for crop in (random(), native()):
        shown, mask = Show(size, crop, augmentation)(where, np.random.default_rng(seed), where.astype(np.uint8))
        assert mask is not None
        assert shown.shape == mask.shape == (*size, 2)
        mask = mask.astype(np.float32)
        assert set(np.unique(mask)) <= set(np.arange(50.0))
        assert np.abs(shown - mask).max() <= 1.01


def test_scales_cover_their_range_both_ways() -> None:
    geometry = strong(scale=(0.5, 2.0), prob=1.0).geometry
    assert geometry is not None
    zooms = np.array([geometry(np.random.default_rng(seed)).zoom for seed in range(400)])
    assert 0.5 <= zooms.min() < 0.55
    assert 1.8 < zooms.max() <= 2.0
    assert 0.4 < (zooms < 1).mean() < 0.6


def test_below_one_the_surroundings_are_a_reflection() -> None:
    image = np.zeros((20, 20, 1), dtype=np.uint8) + np.arange(100, 120, dtype=np.uint8)[:, None, None]
    made = warp(image, random().window((20, 20), (20, 20), np.random.default_rng(0)), Geometry(zoom=0.5), (20, 20))
    assert (made.min(), made.max()) >= (100, 118)
    assert made[0, 0, 0] > made[4, 0, 0] < made[9, 0, 0] < made[14, 0, 0] > made[19, 0, 0]


@pytest.mark.parametrize(
    "params", [{"scale": (2.0, 0.5)}, {"scale": (0.0, 1.0)}, {"cutout": 1.5}, {"blur": -1}, {"prob": 2}]
)
def test_what_is_out_of_range_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        strong(**params)  # type: ignore[arg-type]
