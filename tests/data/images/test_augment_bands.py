"""Augmentation of bands: each channel by itself, in its own units; what is unknown stays unknown."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from kbench.data.images.augment import basic, side_on, strong, top_down

DRAWS = 60


def bands(dtype: Any = np.float32) -> np.ndarray:
    """[40, 50, 3]: decibels around -15 with a standard deviation of 3, a share, and counts of thousands."""
    rng = np.random.default_rng(0)
    image = np.stack([rng.normal(-15, 3, (40, 50)), rng.random((40, 50)), rng.normal(5000, 900, (40, 50))], axis=2)
    return image.astype(dtype)


@pytest.mark.parametrize("preset", [basic, side_on, top_down])
def test_light_moves_each_band_by_a_share_of_its_own_range(preset: Any) -> None:
    image, pixels = bands(), preset(light=0.05, contrast=0.05).pixels
    mean, spread = image.mean((0, 1)), np.ptp(image, axis=(0, 1))
    moves = []
    for seed in range(DRAWS):
        made, _ = pixels(image, None, np.random.default_rng(seed))
        assert made.dtype == np.float32
        moves.append((made.mean((0, 1)) - mean) / spread)
        assert (np.abs(made - image) <= 0.05 * np.abs(image - mean) * 1.06 + 0.051 * spread).all()
    assert 0.03 < np.abs(moves).max() <= 0.051
    np.testing.assert_allclose(moves, np.repeat(np.array(moves)[:, :1], 3, 1), atol=1e-3)


def test_a_band_of_another_unit_changes_nothing_of_the_others() -> None:
    image = bands()
    other = image.copy()
    other[:, :, 2] *= 1000
    for augmentation in (top_down(light=0.3, contrast=0.3), strong(prob=1.0, cutout=0)):
        for seed in range(DRAWS // 4):
            one, _ = augmentation.pixels(image, None, np.random.default_rng(seed))
            two, _ = augmentation.pixels(other, None, np.random.default_rng(seed))
            np.testing.assert_allclose(one[:, :, :2], two[:, :, :2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "augmentation",
    [top_down(light=0.3), strong(prob=1.0), strong(prob=1.0, blur=5, cutout=1)],
    ids=["top_down", "strong", "blurred"],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_is(augmentation: Any, value: float) -> None:
    image = bands()
    image[3:6, 7, 0] = image[20, 20, 2] = value
    unknown = ~np.isfinite(image)
    whole = bands()
    for seed in range(DRAWS):
        made, _ = augmentation.pixels(image, None, np.random.default_rng(seed))
        np.testing.assert_array_equal(~np.isfinite(made), unknown)
        clean, _ = augmentation.pixels(whole, None, np.random.default_rng(seed))
        spread = whole.std((0, 1))
        far = (np.abs(made - clean) / spread)[~unknown]
        assert np.median(far) < 0.1


def test_a_channel_without_any_known_pixel_harms_nobody() -> None:
    image = bands()
    image[:, :, 1] = np.nan
    image[:, :, 2] = 7
    for augmentation in (top_down(light=0.3), strong(prob=1.0)):
        for seed in range(DRAWS // 4):
            made, _ = augmentation.pixels(image, None, np.random.default_rng(seed))
            assert np.isnan(made[:, :, 1]).all()
            assert np.isfinite(made[:, :, [0, 2]]).all()


@pytest.mark.parametrize(
    ("dtype", "channels"), [(np.uint16, 3), (np.int16, 3), (np.uint8, 2), (np.uint8, 4), (np.uint8, 6)]
)
def test_whole_numbers_stay_in_their_type_and_near_where_they_were(dtype: Any, channels: int) -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(100, 20, (30, 30, channels)).clip(0, 255).astype(dtype)
    for seed in range(DRAWS):
        made, _ = top_down(light=0.05, contrast=0.05).pixels(image, None, np.random.default_rng(seed))
        assert made.dtype == dtype
        assert np.abs(made.astype(float) - image).max() < 14


def test_photographs_are_changed_as_ever() -> None:
    rng, seen = np.random.default_rng(5), hashlib.sha256()
    for channels in (1, 3):
        for seed in range(30):
            image = (rng.random((37, 41, channels)) * 255).astype(np.uint8)
            mask = (rng.random((37, 41, 1)) * 3).astype(np.uint8)
            for augmentation in (basic(light=0.3, contrast=0.2), top_down(), side_on(), strong(prob=1.0), strong()):
                made, shown = augmentation.pixels(image, mask, np.random.default_rng(seed))
                seen.update(made.tobytes())
                seen.update(shown.tobytes())
    assert seen.hexdigest()[:16] == "2a91a6b20318a833", "the pixels of the version before bands had rules of their own"
