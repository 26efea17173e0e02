from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_images import ArrayImages, drawn

from kbench.data.dataset import Normalise
from kbench.data.images.normalise import choose, measure, scale_of
from kbench.errors import DataError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_eight_bits_are_scaled_by_255_and_everything_else_is_left() -> None:
    assert scale_of(ArrayImages(drawn(1))) == 1 / 255
    assert scale_of(ArrayImages(drawn(1, dtype=np.uint16))) == 1.0
    assert scale_of(ArrayImages(drawn(1, dtype=np.float32))) == 1.0


@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (5, np.uint16), (1, np.float32)])
def test_measured_statistics_are_those_of_all_pixels_per_channel(channels: int, dtype: type) -> None:
    images = drawn(20, channels=channels, dtype=dtype)
    found = measure(ArrayImages(images), np.arange(20))
    scaled = images.astype(np.float64) * found.scale
    np.testing.assert_allclose(found.mean, scaled.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(found.std, scaled.std((0, 1, 2)), rtol=1e-6)


def test_only_the_rows_a_fold_trains_on_are_measured() -> None:
    images = drawn(20)
    images[10:] = 255
    assert measure(ArrayImages(images), np.arange(10)) == measure(ArrayImages(images[:10]), np.arange(10))


def test_images_of_different_sizes_are_measured_by_their_pixels() -> None:
    images = [np.zeros((2, 2, 1), np.float32), np.ones((4, 6, 1), np.float32)]
    assert measure(ArrayImages(images), np.arange(2)).mean == pytest.approx((24 / 28,))


def test_a_flat_channel_does_not_divide_by_zero() -> None:
    found = measure(ArrayImages(np.full((3, 4, 4, 1), 7, np.uint8)), np.arange(3))
    shown = Normalise(scale=found.scale, mean=found.mean, std=found.std)(torch.full((1, 4, 4, 1), 7, dtype=torch.uint8))
    assert torch.isfinite(shown).all()


def test_pixels_that_are_not_finite_are_an_error_before_training() -> None:
    images = drawn(3, dtype=np.float32)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        measure(ArrayImages(images), np.arange(3))


def test_each_image_is_read_once_when_measured() -> None:
    class Counting(ArrayImages):
        reads = 0

        def __getitem__(self, row: int) -> np.ndarray:
            Counting.reads += 1
            return super().__getitem__(row)

    measure(Counting(drawn(9)), np.arange(9))
    assert Counting.reads == 10  # and once for the dtype


def test_the_yamls_numbers_come_first() -> None:
    found = choose(ArrayImages(drawn(3)), np.arange(3), mean=[0.1, 0.2, 0.3], std=[1, 2, 3], backbone=IMAGENET)
    assert (found.scale, found.mean, found.std) == (1 / 255, (0.1, 0.2, 0.3), (1, 2, 3))


def test_three_channels_of_eight_bits_take_the_backbones_statistics() -> None:
    found = choose(ArrayImages(drawn(3)), np.arange(3), mean=None, std=None, backbone=IMAGENET)
    assert (list(found.mean), list(found.std)) == IMAGENET


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (5, np.uint8), (3, np.uint16)])
def test_anything_else_is_measured(channels: int, dtype: type) -> None:
    images = ArrayImages(drawn(3, channels=channels, dtype=dtype))
    assert choose(images, np.arange(3), mean=None, std=None, backbone=IMAGENET) == measure(images, np.arange(3))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_a_batch_of_any_dtype_becomes_channels_first_float32(dtype: type) -> None:
    images = drawn(2, channels=5, dtype=dtype)
    mean, std = [1.0, 2, 3, 4, 5], [1.0, 2, 4, 8, 16]
    shown = Normalise(scale=0.5, mean=mean, std=std)(torch.from_numpy(images))
    assert shown.dtype == torch.float32
    expected = ((images.astype(np.float64) * 0.5 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(shown.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_normalised_batch_lies_channels_last_in_memory() -> None:
    shown = Normalise(scale=1, mean=[0] * 3, std=[1] * 3)(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    assert shown.is_contiguous(memory_format=torch.channels_last)
