"""Pixels normalised by their own image, by the data set and by their region, against NumPy on all pixels at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kbench.data.dataset import Normalise
from kbench.data.images.by_image import ByImage
from kbench.data.images.channels import channels_of
from kbench.data.images.dropout import dropout_of
from kbench.data.images.normalise import Moments, choose
from kbench.data.images.regions import RegionImages, measure_regions


class Several:
    """Images in memory."""

    def __init__(self, *images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._images[row]


def noise(seed: int, *, low: float = 0, scale: float = 1, holes: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = (low + scale * rng.random((12, 15, 3))).astype(np.float32)
    image.reshape(-1)[rng.choice(image.size, holes, replace=False)] = np.nan
    return image


def test_an_image_is_brought_to_mean_0_and_deviation_1_and_nothing_unknown_counts() -> None:
    image = noise(0, low=700, scale=50, holes=20)
    image[:, :, 2] = 9
    made = ByImage("image")(image)
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.nanmean(made[:, :, :2], (0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(made[:, :, :2], (0, 1)), 1, atol=1e-4)
    assert np.unique(made[:, :, 2]).tolist() == [0]  # a constant band
    np.testing.assert_array_equal(np.isnan(made), np.isnan(image))


def test_ranges_go_from_0_to_1_and_channels_that_are_spared_stay() -> None:
    image = noise(1, low=-4, scale=9, holes=5)
    made = ByImage("minmax", spared=(False, False, True))(image)
    assert (np.nanmin(made[:, :, :2]), np.nanmax(made[:, :, :2])) == (0, 1)
    np.testing.assert_array_equal(made[:, :, 2], image[:, :, 2])
    low, high = np.nanpercentile(image[:, :, 0], (5, 90))
    made = ByImage("percentile", percentiles=(5, 90))(image)
    np.testing.assert_allclose(made[:, :, 0], (image[:, :, 0] - low) / (high - low), rtol=1e-4, atol=1e-5)


def test_a_window_is_the_square_around_each_pixel() -> None:
    image = noise(2, low=1000, holes=9)
    made = ByImage("window", window=5)(image)
    around = image[3:8, 4:9, 0].astype(np.float64)
    assert np.isfinite(image[5, 6, 0])
    assert made[5, 6, 0] == pytest.approx((image[5, 6, 0] - np.nanmean(around)) / np.nanstd(around), abs=1e-3)
    np.testing.assert_array_equal(np.isnan(made), np.isnan(image))


def test_moments_of_large_numbers_are_right_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbench.data.images.normalise._PIECE", 60)
    images = [noise(seed, low=1e7, holes=30).astype(np.float64) for seed in range(4)]
    moments = Moments()
    for image in images:
        moments.add(image)
    every = np.concatenate([image.reshape(-1, 3) for image in images])
    np.testing.assert_allclose(moments.mean, np.nanmean(every, 0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, np.nanstd(every - 1e7, 0), rtol=1e-6)
    assert moments.unknown


def test_bands_with_a_range_are_fixed_and_the_others_measured() -> None:
    images = Several(noise(0, holes=7), noise(1, holes=7))
    scale = choose(images, np.arange(2), mean=None, std=None, backbone=None, fixed=[(5.0, 2.0), None, (0.0, 4.0)],
                   masked=True)  # fmt: skip
    every = np.concatenate([images[row].reshape(-1, 3) for row in range(2)])
    assert (scale.mean[0], scale.std[0], scale.mean[2], scale.std[2]) == (5, 2, 0, 4)
    assert scale.mean[1] == pytest.approx(np.nanmean(every[:, 1]), rel=1e-5)


def test_a_region_has_its_own_statistics_and_one_that_training_lacks_those_of_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = RegionImages(Several(noise(0), noise(1, low=50, scale=7), noise(2, low=50, scale=7)), ["a", "b", "b"])
    rows = np.arange(3)
    whole = choose(images, rows, mean=None, std=None, backbone=None, masked=True)
    regions = measure_regions([(images, rows)], factor=1.0, rest=(whole.mean, whole.std))
    both = np.concatenate([images[row].reshape(-1, 3) for row in (1, 2)]).astype(np.float64)
    np.testing.assert_allclose(regions["b"], [both.mean(0), both.std(0)], rtol=1e-5)
    normalise = Normalise(scale=1.0, mean=whole.mean, std=whole.std, regions=regions)
    batch = torch.from_numpy(np.stack([images[0], images[1], images[2], images[2]]))
    made = normalise(batch, ("a", "b", "b", "elsewhere")).numpy()
    np.testing.assert_allclose(made[1:3].mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(made[1:3].std((0, 2, 3)), 1, atol=1e-3)
    np.testing.assert_allclose(made[0].mean((1, 2)), 0, atol=1e-4)
    plain = Normalise(scale=1.0, mean=whole.mean, std=whole.std)(batch[3:]).numpy()
    np.testing.assert_allclose(made[3:], plain, atol=1e-6)
    assert "region 'elsewhere' has no rows the model was trained on" in " ".join(capsys.readouterr().err.split())


def test_what_is_unknown_is_exactly_0_behind_the_normalisation() -> None:
    image = noise(3, holes=40)
    made = Normalise(scale=1.0, mean=[0.5] * 3, std=[0.1] * 3)(torch.from_numpy(image)[None])
    unknown = torch.from_numpy(np.isnan(image)).permute(2, 0, 1)[None]
    assert (made[unknown] == 0).all()
    assert made.isfinite().all()


def test_dates_are_left_out_as_often_as_said_and_one_that_is_there_stays() -> None:
    channels = channels_of({"S": ("1", "2"), "dem": ("1",)}, dates=tuple("abc"), dated={"S"})
    dropout = dropout_of(channels, "date", p=1.0, each=0.5)
    image = np.ones((2, 2, 7), np.float32)
    image[:, :, :2] = np.nan  # the first date is not there
    rng, gone = np.random.default_rng(0), []
    for _ in range(400):
        made = dropout(image, rng)
        out = np.isnan(made).all((0, 1))
        assert not out[6]
        assert (out[2], out[4]) == (out[3], out[5])
        gone.append([out[2], out[4]])
    assert not np.all(gone, axis=1).any()
    assert np.mean(gone, 0) == pytest.approx([1 / 3, 1 / 3], abs=0.07)  # of the four outcomes one is drawn anew
    assert np.isfinite(image[:, :, 2:]).all()
