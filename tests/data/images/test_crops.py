from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawn_images import drawn
from hypothesis import given
from hypothesis import strategies as st

from kbench.data.dataset import Show
from kbench.data.images.augment import Augmentation
from kbench.data.images.crops import Crop, Geometry, Window, centre, centred, googlenet, random, squash, warp
from kbench.errors import ConfigError

PLAIN = Geometry()
DTYPES = [np.uint8, np.uint16, np.int16, np.float32, np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def whole(image: np.ndarray) -> Window:
    return Window(0, 0, *image.shape[:2])


def through_affine(image: np.ndarray, window: Window, geometry: Geometry, size, **options) -> np.ndarray:
    """The same warp by the affine path: a zoom that is 1 but for rounding keeps it from being a slice."""
    nudged = Geometry(geometry.angle, float(np.nextafter(geometry.zoom, 2)), geometry.flip, geometry.turns)
    return warp(image, window, nudged, size, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 15])
def test_without_rotation_and_zoom_a_window_is_a_slice_exact_to_the_bit(dtype: type, channels: int) -> None:
    image = drawn(1, size=(20, 24), channels=channels, dtype=dtype)[0]
    shown = warp(image, Window(3, 5, 8, 10), PLAIN, (8, 10))
    assert shown.dtype == dtype
    np.testing.assert_array_equal(shown, image[3:11, 5:15])


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", [PLAIN, Geometry(flip=True), Geometry(turns=1), Geometry(flip=True, turns=3)])
def test_the_slice_equals_the_affine_warp(nearest: bool, dtype: type, geometry: Geometry) -> None:
    image = drawn(1, size=(20, 24), channels=5, dtype=dtype)[0]
    window = Window(4, 6, 10, 8) if geometry.turns % 2 else Window(4, 6, 8, 10)
    sliced = warp(image, window, geometry, (8, 10), nearest=nearest)
    warped = through_affine(image, window, geometry, (8, 10), nearest=nearest)
    assert sliced.shape == warped.shape == (8, 10, 5)
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    np.testing.assert_allclose(sliced.astype(float), warped.astype(float), atol=0.002 * top)


def test_a_whole_window_shown_at_another_size_is_what_resizing_gives() -> None:
    image = cv2.GaussianBlur(drawn(1, size=(24, 36))[0], (5, 5), 2)
    shown = warp(image, whole(image), PLAIN, (30, 40))
    resized = cv2.resize(image, (40, 30), interpolation=cv2.INTER_LINEAR)
    assert np.abs(shown.astype(int) - resized)[1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_an_image_shown_much_smaller_is_averaged_so_that_no_pixel_is_skipped(factor: int, channels: int) -> None:
    image = rng().integers(0, 256, (12 * factor, 16 * factor, channels)).astype(np.float32)
    shown = warp(image, whole(image), PLAIN, (12, 16))
    means = image.reshape(12, factor, 16, factor, channels).mean((1, 3))
    np.testing.assert_allclose(shown, means, rtol=1e-4)


def test_a_small_window_shown_much_smaller_is_averaged_too() -> None:
    image = rng().random((64, 64, 1)).astype(np.float32)
    shown = warp(image, Window(16, 8, 32, 48), PLAIN, (8, 12))
    means = image[16:48, 8:56].reshape(8, 4, 12, 4, 1).mean((1, 3))
    np.testing.assert_allclose(shown, means, rtol=1e-4)


def test_a_mask_is_never_averaged() -> None:
    mask = rng().integers(0, 2, (64, 64, 1)).astype(np.uint8) * 200
    assert set(np.unique(warp(mask, whole(mask), Geometry(angle=10), (8, 8), nearest=True))) <= {0, 200}


def test_a_positive_angle_turns_the_image_counter_clockwise() -> None:
    image = np.zeros((21, 21, 1), np.uint8)
    image[10, 14:] = 255  # a ray to the right
    shown = through_affine(image, whole(image), Geometry(angle=90), (21, 21))
    np.testing.assert_array_equal(shown, np.rot90(image))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_turns_come_after_the_flip(turns: int, flip: bool) -> None:
    image = drawn(1, size=(6, 6))[0]
    expected = np.rot90(image[:, ::-1] if flip else image, turns)
    np.testing.assert_array_equal(warp(image, whole(image), Geometry(flip=flip, turns=turns), (6, 6)), expected)


@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_keep_the_size_that_was_asked_for(turns: int) -> None:
    image = drawn(1, size=(30, 30))[0]
    window = Window(2, 2, 8, 12) if turns % 2 == 0 else Window(2, 2, 12, 8)
    assert warp(image, window, Geometry(turns=turns), (8, 12)).shape == (8, 12, 3)


def test_zoom_shows_the_middle_of_the_window() -> None:
    image = drawn(1, size=(32, 32), dtype=np.float32)[0]
    zoomed = warp(image, whole(image), Geometry(zoom=2), (16, 16))
    np.testing.assert_allclose(zoomed, image[8:24, 8:24], atol=1e-5)


@pytest.mark.parametrize("nearest", [False, True])
def test_borders_are_reflected(nearest: bool) -> None:
    image = drawn(1, size=(8, 9))[0]
    shown = warp(image, Window(-3, -2, 14, 13), PLAIN, (14, 13), nearest=nearest)
    np.testing.assert_array_equal(shown, np.pad(image, ((3, 3), (2, 2), (0, 0)), mode="reflect"))


def test_a_window_larger_than_the_image_is_reflected_more_than_once() -> None:
    image = drawn(1, size=(3, 3))[0]
    shown = warp(image, centred((3, 3), (11, 11)), PLAIN, (11, 11))
    np.testing.assert_array_equal(shown, np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect"))


@given(
    st.floats(-30, 30), st.floats(1, 1.5), st.booleans(), st.integers(0, 3), st.integers(0, 8), st.integers(0, 12),
    st.sampled_from([1, 3, 4, 5, 9]),
)  # fmt: skip
def test_image_and_mask_are_warped_alike(angle, zoom, flip, turns, top, left, channels) -> None:
    y, x = np.mgrid[0:24, 0:28]
    where = (100 * y + x).astype(np.float32)[:, :, None]  # every pixel says where it comes from
    image, geometry = np.repeat(where, channels, axis=2), Geometry(angle, zoom, flip, turns)
    window = Window(top, left, 16, 16)
    shown = warp(image, window, geometry, (16, 16))
    mask = warp(where, window, geometry, (16, 16), nearest=True)
    assert (shown == shown[:, :, :1]).all()
    rows, columns = mask // 100, mask % 100
    inside = (rows > 0) & (rows < 23) & (columns > 0) & (columns < 27)
    # OpenCV takes positions in 32nds of a pixel; the nearest one is at most half a pixel away in each direction
    assert np.abs(shown[:, :, :1] - mask)[inside].max(initial=0) <= 100 * 0.54 + 0.54


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 99))
def test_random_windows_lie_inside_the_image(height: int, width: int, seed: int) -> None:
    window = random().window((height, width), (8, 8), rng(seed))
    assert 0 <= window.top <= height - 8
    assert 0 <= window.left <= width - 8
    assert (window.height, window.width) == (8, 8)


def test_random_windows_reach_every_place_equally_often() -> None:
    drawn_ = rng()
    tops = [random().window((11, 8), (8, 8), drawn_).top for _ in range(4000)]
    assert np.bincount(np.array(tops, dtype=int)) == pytest.approx([1000] * 4, abs=120)


def test_the_centre_is_the_centre() -> None:
    assert centre().window((20, 31), (8, 9), rng()) == Window(6, 11, 8, 9)
    assert centre().resize == random().resize == "cover"


def test_squashing_shows_the_whole_image() -> None:
    assert squash().resize == "exact"
    assert squash().window((8, 12), (8, 12), rng()) == Window(0, 0, 8, 12)


def windows(crop: Crop, image: tuple[int, int], count: int) -> list[Window]:
    drawn_ = rng()
    return [crop.window(image, (16, 16), drawn_) for _ in range(count)]


def test_googlenet_draws_areas_and_aspects_in_their_ranges() -> None:
    image = (300, 400)
    found = windows(googlenet(swap=0.0), image, 1000)
    areas = np.array([window.height * window.width for window in found]) / (300 * 400)
    aspects = np.array([window.width / window.height for window in found])
    assert 0.079 <= areas.min() < 0.15
    assert 0.85 < areas.max() <= 1.0
    assert 0.74 <= aspects.min() < 0.78
    assert 1.3 < aspects.max() <= 1.35
    for window in found:
        assert 0 <= window.top <= 300 - window.height
        assert 0 <= window.left <= 400 - window.width


def test_googlenet_swaps_height_and_width_as_often_as_it_is_told() -> None:
    found = windows(googlenet(area=(0.2, 0.2), aspect=(1.3, 1.3), swap=0.25), (400, 400), 2000)
    assert np.mean([window.height > window.width for window in found]) == pytest.approx(0.25, abs=0.03)


def test_googlenet_shows_the_centre_where_no_window_fits() -> None:
    crop = googlenet(area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert crop.window((100, 400), (16, 16), rng()) == Window(0, 150, 100, 100)
    assert googlenet(tries=0).window((100, 100), (16, 32), rng()) == Window(25, 0, 50, 100)
    assert googlenet(tries=0).window((10, 10), (4, 3000), rng()) == Window(4, 0, 1, 10)


@pytest.mark.parametrize(
    "params",
    [{"area": (0.0, 1.0)}, {"area": (0.5, 1.1)}, {"area": (0.5, 0.2)}, {"aspect": (0.0, 1.0)}, {"aspect": (2.0, 1.0)},
     {"swap": 1.5}, {"tries": -1}],
)  # fmt: skip
def test_ranges_that_make_no_sense_are_an_error(params) -> None:
    with pytest.raises(ConfigError):
        googlenet(**params)


# -- zoom and padding as fast.ai has them (F-09) -------------------------------------------------------------------


def places(image: np.ndarray) -> np.ndarray:
    """Return [H, W, 2]: the row and the column of every pixel."""
    return np.stack(np.mgrid[0 : image.shape[0], 0 : image.shape[1]], axis=2).astype(np.float32)


@given(st.integers(8, 30), st.integers(8, 30), st.floats(1.01, 3), st.integers(0, 999))
def test_a_zoom_shows_a_smaller_window_anywhere_in_the_image(height: int, width: int, zoom: float, seed: int) -> None:
    zoomed = random().zoomed
    assert zoomed is not None
    window = zoomed((height, width), (8, 8), zoom, rng(seed))
    assert (window.height, window.width) == pytest.approx((8 / zoom, 8 / zoom))
    assert 0 <= window.top <= height - window.height
    assert 0 <= window.left <= width - window.width


def test_zoomed_windows_are_at_every_place_equally_often_and_one_warp_away() -> None:
    image = places(np.zeros((24, 24)))
    show = Show((24, 24), random(), Augmentation(lambda rng: Geometry(zoom=2.0)))
    shown = [show(image, rng(seed), image[:, :, :1])[0] for seed in range(600)]
    middles = np.array([one.mean(axis=(0, 1)) for one in shown])
    assert np.histogram(middles[:, 0], 4, (6 - 0.5, 18 - 0.5))[0] == pytest.approx([150] * 4, abs=45)
    assert np.histogram(middles[:, 1], 4, (6 - 0.5, 18 - 0.5))[0] == pytest.approx([150] * 4, abs=45)
    inner = shown[0][2:-2, 2:-2]
    np.testing.assert_allclose(np.diff(inner[:, :, 0], axis=0), 0.5, atol=0.04)  # one warp, in 32nds of a pixel


def test_other_crops_zoom_about_the_middle_of_what_they_show() -> None:
    image = places(np.zeros((24, 24)))
    for crop in (centre(), squash()):
        show = Show((24, 24), crop, Augmentation(lambda rng: Geometry(zoom=2.0)))
        np.testing.assert_allclose(show(image, rng(3))[0].mean(axis=(0, 1)), [11.5, 11.5], atol=0.1)


def test_padding_lets_windows_reach_into_the_reflection() -> None:
    image = drawn(1, size=(8, 8))[0]
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    show, seen = Show((8, 8), random(pad=4)), set()
    for seed in range(300):
        window = random(pad=4).window((8, 8), (8, 8), rng(seed))
        top, left = int(window.top), int(window.left)
        seen.add(top)
        np.testing.assert_array_equal(show(image, rng(seed))[0], padded[top + 4 : top + 12, left + 4 : left + 12])
    assert seen == set(range(-4, 5))
    zoomed = random(pad=4).zoomed
    assert zoomed is not None
    tops = [zoomed((8, 8), (8, 8), 2.0, rng(seed)).top for seed in range(300)]
    assert -2 <= min(tops) < -1.8  # four pixels of what is shown are two of the image
    assert 5.8 < max(tops) <= 6
    with pytest.raises(ConfigError, match="pad"):
        random(pad=-1)
