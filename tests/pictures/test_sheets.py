from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from looks import picture

from kbench.pictures.sheets import Group, Tile, displayable, draw_sheet, sheet, thumbnail


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_channels_and_dtype_become_colours(channels: int, dtype: type) -> None:
    image = (np.random.default_rng(0).random((6, 9, channels)) * 200).astype(dtype)
    shown = displayable(image)
    assert shown.shape == (6, 9, 3)
    assert shown.dtype == np.uint8
    assert shown.max() > 150


def test_eight_bits_are_shown_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(displayable(image), image)


def test_grey_is_grey_and_the_fourth_channel_is_left_out() -> None:
    grey = np.full((2, 2, 1), 7, np.uint8)
    np.testing.assert_array_equal(displayable(grey), np.full((2, 2, 3), 7))
    rgba = np.dstack([np.full((2, 2), value, np.uint8) for value in (1, 2, 3, 4)])
    assert displayable(rgba)[0, 0].tolist() == [1, 2, 3]


def test_values_that_are_not_finite_are_black_and_disturb_no_others() -> None:
    image = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10, 1)
    image[0, 0] = np.nan
    image[0, 1] = np.inf
    shown = displayable(image)
    assert shown[0, :2].max() == 0
    assert shown[-1, -1, 0] == 255


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan])
def test_an_image_of_one_value_is_shown_without_a_warning(value: float) -> None:
    assert displayable(np.full((4, 4, 1), value, np.float32)).shape == (4, 4, 3)


@pytest.mark.parametrize("shape", [(8, 8, 1), (100, 50, 3), (50, 100, 3), (1, 300, 3)])
def test_thumbnails_keep_the_aspect(shape: tuple[int, int, int]) -> None:
    small = thumbnail(np.zeros(shape, np.uint8), 64)
    assert max(small.shape[:2]) == 64
    assert small.shape[0] / small.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.1, abs=1 / 64)


def test_small_images_keep_hard_pixels() -> None:
    image = np.array([[0, 255], [255, 0]], np.uint8)[..., None]
    assert set(np.unique(thumbnail(image, 64)).tolist()) == {0, 255}


def tiles(count: int, value: int = 0) -> list[Tile]:
    return [Tile(np.full((8, 8, 3), value, np.uint8), ("true cat", "said dog"), bool(k % 2)) for k in range(count)]


def test_every_tile_lies_on_the_sheet_at_full_resolution(tmp_path: Path) -> None:
    shown = picture(draw_sheet([Group("", tiles(5))], tmp_path / "s.png", side=50))
    assert (shown.max(axis=2) < 10).sum() > 5 * 46 * 46


def test_frames_are_green_where_right_and_red_where_wrong(tmp_path: Path) -> None:
    shown = picture(draw_sheet([Group("", tiles(2, 255))], tmp_path / "s.png", side=50)).astype(int)
    assert ((shown[..., 1] > shown[..., 2] + 60) & (shown[..., 0] < 140)).sum() > 100
    assert ((shown[..., 2] > shown[..., 1] + 100) & (shown[..., 2] > 150)).sum() > 100


def test_groups_of_four_stand_beside_each_other_and_long_ones_run_over_lines(tmp_path: Path) -> None:
    many = picture(draw_sheet([Group(f"class {k}", tiles(4)) for k in range(10)], tmp_path / "a.png"))
    one = picture(draw_sheet([Group("", tiles(24))], tmp_path / "b.png"))
    assert many.shape[1] == pytest.approx(one.shape[1], rel=0.05)
    assert one.shape[0] < 800


def test_landscapes_leave_no_empty_space_above_them(tmp_path: Path) -> None:
    wide = [Tile(np.zeros((10, 40, 3), np.uint8), ("id",))] * 3
    assert picture(draw_sheet([Group("", wide)], tmp_path / "w.png")).shape[0] < 120


def test_a_sheet_of_nothing_says_so(tmp_path: Path) -> None:
    shown = picture(draw_sheet([Group("cat", [])], tmp_path / "s.png", title="Most incorrect"))
    assert (shown < 100).any()


def test_long_and_strange_texts_are_shown_as_they_are(tmp_path: Path) -> None:
    tile = Tile(np.zeros((4, 4, 1), np.uint8), ("$x^2$ " * 40, "a\nb"))
    picture(draw_sheet([Group("$" * 200, [tile])], tmp_path / "s.png", title="$a_b"))


def test_a_sheet_can_be_had_as_a_figure() -> None:
    figure = sheet([Group("", tiles(3))])
    assert figure.get_size_inches()[0] > 1
