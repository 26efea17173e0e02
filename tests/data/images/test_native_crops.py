"""Crops at an image's own resolution, and windows that show what is rare."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_images import drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.data.dataset import Show
from kbench.data.images.crops import Window, native, whole
from kbench.errors import ConfigError


@settings(max_examples=60)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_window_is_a_slice_of_the_image_or_the_image_in_its_reflection(
    height: int, width: int, size: tuple[int, int], seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    window = native().window((height, width), size, np.random.default_rng(seed))
    assert (window.height, window.width) == size
    shown, mask = Show(size, native())(image, np.random.default_rng(seed), image[:, :, :1])
    assert mask is not None
    np.testing.assert_array_equal(shown[:, :, :1], mask)
    rows = np.arange(size[0]) + int(window.top)
    columns = np.arange(size[1]) + int(window.left)
    assert size[0] > height or (rows[0] >= 0 and rows[-1] < height)
    assert size[1] > width or (columns[0] >= 0 and columns[-1] < width)
    inside = np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    kept = rows[(rows >= 0) & (rows < height)], columns[(columns >= 0) & (columns < width)]
    np.testing.assert_array_equal(shown[inside], image[np.ix_(*kept)])


def test_every_place_is_shown() -> None:
    tops = {native().window((12, 9), (8, 9), np.random.default_rng(seed)).top for seed in range(80)}
    assert tops == {0, 1, 2, 3, 4}


def test_a_scale_shows_less_or_more_of_the_image() -> None:
    crop = native(scale=(0.5, 2.0))
    windows = [crop.window((200, 200), (40, 60), np.random.default_rng(seed)) for seed in range(100)]
    assert {round(window.width / window.height, 1) for window in windows} == {1.5}
    assert min(window.height for window in windows) < 25
    assert max(window.height for window in windows) > 70


def test_the_whole_image_is_squashed_to_the_size() -> None:
    assert whole().window((30, 50), (8, 8), np.random.default_rng(0)) == Window(0, 0, 30, 50)
    assert Show((8, 8), whole())(drawn(1, size=(30, 50))[0], np.random.default_rng(0))[0].shape == (8, 8, 3)


@pytest.mark.parametrize("layers", [False, True])
def test_windows_are_chosen_for_what_is_rare(layers: bool) -> None:
    mask = np.zeros((100, 100, 3 if layers else 1), dtype=np.uint8)
    mask[97:99, 3:5, 1 if layers else 0] = 1
    image = np.zeros((100, 100, 3), dtype=np.uint8)

    def seen(**params: object) -> float:
        show = Show((20, 20), native(_names=("sky", "car", "bus"), **params))  # type: ignore[arg-type]
        shown = [show(image, np.random.default_rng(seed), mask)[1] for seed in range(200)]
        return float(np.mean([(part[:, :, 1 if layers else 0] == 1).any() for part in shown if part is not None]))

    assert seen() < 0.1
    assert 0.4 < seen(classes=["car"]) < 0.7
    assert seen(classes=["car"], prefer=1.0) == 1.0
    assert 0.35 < seen(classes=["car", "bus"], prefer=1.0) < 0.65  # no bus in this image
    assert seen(classes=["car"], prefer=0.0) < 0.1


def test_one_class_is_the_value_one() -> None:
    mask = np.zeros((64, 64, 1), dtype=np.uint8)
    mask[60, 60] = 1
    show = Show((8, 8), native(classes=["salt"], prefer=1.0, _names=("salt",)))
    shown = [show(mask, np.random.default_rng(seed), mask)[1] for seed in range(20)]
    assert all(part is not None and part.any() for part in shown)


@pytest.mark.parametrize("params", [{"classes": ["bus"]}, {"scale": (2.0, 1.0)}, {"prefer": 2.0}])
def test_what_is_not_there_or_out_of_range_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        native(_names=("car",), **params)  # type: ignore[arg-type]
