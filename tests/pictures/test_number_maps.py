from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from looks import picture

from kbench.data.table.table import Table
from kbench.inference.map_store import NumberSet
from kbench.metrics.maps import image_errors
from kbench.metrics.metric import make_metric
from kbench.pictures import number_maps, segments
from kbench.pictures.figures import save_figure
from kbench.pictures.sheets import Group, Tile, room_below, sheet

NAMES, TASK, SIZE, N = ("height", "mass"), "dense_regression", (40, 60), 6
GREY = np.array(segments.VOID)


def truth(row: int) -> np.ndarray:
    """[H, W, 2]: a ramp and a level; the left edge is unknown, and all of the mass of the last row."""
    ramp = np.tile(np.linspace(0, 10, SIZE[1], dtype=np.float32), (SIZE[0], 1))
    numbers = np.stack([ramp, np.full(SIZE, 5 * row, dtype=np.float32)], axis=2)
    numbers[:, :6] = np.nan
    if row == N - 1:
        numbers[:, :, 1] = np.nan
    return numbers


def predicted(row: int) -> np.ndarray:
    """[2, H, W]: too high by the row's number where the ramp is high, and a mass that is right."""
    numbers = np.nan_to_num(truth(row), nan=3.0).transpose(2, 0, 1)
    numbers[0][:, SIZE[1] // 2 :] += row
    return numbers


def image(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def table(names: tuple[str, ...] = NAMES) -> Table:
    return Table(np.array([f"tile{row}" for row in range(N)]), Path(), ((),) * N, TASK, names)


NUMBERS = NumberSet(table().ids, NAMES, TASK, {}, predicted)
SUMS = np.stack([image_errors(predicted(row), truth(row)) for row in range(N)])


def near(shown: np.ndarray, colour: np.ndarray, most: int = 12) -> int:
    """Return how many pixels have a colour, about."""
    return int((np.abs(shown.astype(int) - colour).sum(2) < most).sum())


# -- pictures ---------------------------------------------------------------------------------------------------


def test_numbers_have_the_colour_of_their_place_between_the_limits_and_unknown_ones_are_grey() -> None:
    values = np.array([[0, 5, 10, 99, -99, np.nan]], dtype=np.float32)
    shown = number_maps.coloured(values, 0, 10)
    assert shown.dtype == np.uint8
    assert shown[0, 3].tolist() == shown[0, 2].tolist()
    assert shown[0, 4].tolist() == shown[0, 0].tolist()
    assert shown[0, 5].tolist() == GREY.tolist()
    assert len({tuple(colour) for colour in shown[0, :3].tolist()}) == 3
    assert shown[0, 0].sum() < shown[0, 1].sum() < shown[0, 2].sum()  # dark to light
    middle = number_maps.coloured(np.zeros((1, 1), np.float32), -3, 3, colours="RdBu_r")[0, 0]
    assert middle.min() > 230  # no error is white


def test_truth_and_prediction_share_one_scale_that_the_legend_shows(tmp_path: Path) -> None:
    path = number_maps.draw_numbers(
        [5, 3], tmp_path / "n.png", images=image, truth=truth, numbers=NUMBERS, table=table(),
        scores=np.linspace(0, 1, N), unit="t/ha", title="Worst",
    )  # fmt: skip
    shown = picture(path)[:, :, ::-1]
    legend = shown[-(46 * 2 + 22) :]
    for colours in ("viridis", "RdBu_r"):
        for value in (0.02, 0.98):
            colour = number_maps.coloured(np.full((1, 1), value), 0, 1, colours=colours)[0, 0]
            assert near(legend, colour) > 10, (colours, value)
    assert near(legend, GREY) > 40
    assert near(shown[: -len(legend)], GREY) > 6 * 40 * 3  # the unknown edge in truth and error, and a whole mass
    assert near(legend, np.array([255, 255, 255])) > legend.shape[0] * legend.shape[1] / 3


def test_a_number_is_drawn_in_one_colour_wherever_it_stands(tmp_path: Path) -> None:
    levels = {0: 0.0, 1: 4.0, 2: 10.0}  # the row's truth; the prediction is the truth of the next
    numbers = NumberSet(table(("mass",)).ids, ("mass",), TASK, {},
                        lambda row: np.full((1, *SIZE), levels[(row + 1) % 3], np.float32))  # fmt: skip
    path = number_maps.draw_numbers(
        [0, 1, 2], tmp_path / "n.png", images=image, numbers=numbers, table=table(("mass",)), side=100,
        truth=lambda row: np.full((*SIZE, 1), levels[row], np.float32),
    )  # fmt: skip
    shown = picture(path)[:-68, :, ::-1]
    tile = 100 * 67
    for value in levels.values():
        colour = number_maps.coloured(np.full((1, 1), value), 0, 10)[0, 0]
        assert tile * 1.8 < near(shown, colour, 6) < tile * 2.2  # once as a truth and once as a prediction


def test_a_truth_is_drawn_alone_where_nothing_is_predicted_yet(tmp_path: Path) -> None:
    path = number_maps.draw_numbers([0, 1], tmp_path / "n.png", images=image, truth=truth, table=table())
    both = number_maps.draw_numbers([0, 1], tmp_path / "b.png", images=image, truth=truth, table=table(),
                                    numbers=NUMBERS)  # fmt: skip
    assert picture(path).shape[1] < picture(both).shape[1]
    white = number_maps.coloured(np.zeros((1, 1), np.float32), -1, 1, colours="RdBu_r")[0, 0]
    assert near(picture(both), white, 3) > near(picture(path), white, 3) + 1000  # errors of 0


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_numbers_without_spread_and_without_truth_are_drawn(value: float, tmp_path: Path) -> None:
    numbers = NumberSet(table(("mass",)).ids, ("mass",), TASK, {}, lambda row: np.zeros((1, *SIZE), np.float32))
    path = number_maps.draw_numbers(
        [0], tmp_path / "n.png", images=image, numbers=numbers, table=table(("mass",)),
        truth=lambda row: np.full((*SIZE, 1), value, np.float32),
    )  # fmt: skip
    assert (near(picture(path), GREY) > 10_000) == np.isnan(value)


def test_large_maps_are_thinned_before_they_are_kept() -> None:
    shown = number_maps._few(np.full((3000, 2000, 2), np.nan, np.float32), 380)
    assert shown.shape == (2, 380, 253)
    assert np.isnan(shown).all()
    assert number_maps._few(truth(0), 380).shape == (2, *SIZE)


def test_room_below_a_sheet_leaves_its_images_as_they_are(tmp_path: Path) -> None:
    figure = sheet([Group("", [Tile(image(0))])], side=60)
    before = picture(save_figure(figure, tmp_path / "a.png"))
    share = room_below(figure, 50)
    after = picture(save_figure(figure, tmp_path / "b.png"))
    assert after.shape[0] == before.shape[0] + 50
    assert share == pytest.approx(50 / after.shape[0], abs=0.01)
    assert cv2.absdiff(after[:-50], before).max() < 3
    assert after[-49:].min() == 255


# -- numbers ----------------------------------------------------------------------------------------------------


def test_images_are_ranked_by_the_metric_or_by_their_root_mean_squared_error() -> None:
    each = segments.image_scores(make_metric("rmse_per_image"), SUMS, table())
    expected = [np.sqrt(np.nanmean((predicted(row) - truth(row).transpose(2, 0, 1)) ** 2, axis=(1, 2))).mean()
                for row in range(N - 1)]  # fmt: skip
    np.testing.assert_allclose(each[:-1], expected, rtol=1e-5)
    assert each[-1] == pytest.approx(np.sqrt(SUMS[-1, 0, 1] / SUMS[-1, 0, 0]))  # its mass is unknown
    np.testing.assert_array_equal(segments.image_scores(make_metric("rmse_pixels"), SUMS, table()), each)
    assert segments.worst_rows(each, 2, maximise=False).tolist() == [5, 4]


def test_truths_are_described_by_target() -> None:
    heights, masses = number_maps.truth_rows(truth, range(N), NAMES)
    values = np.stack([truth(row) for row in range(N)])
    assert (heights["target"], heights["images"], masses["images"]) == ("height", N, N - 1)
    assert heights["known"] == pytest.approx(1 - 6 / SIZE[1])
    assert heights["low"] == pytest.approx(np.nanmin(values[..., 0]))
    assert heights["mean"] == pytest.approx(np.nanmean(values[..., 0]), rel=1e-5)
    assert (masses["low"], masses["high"]) == (0, 5 * (N - 2))
    nothing = number_maps.truth_rows(lambda row: np.full((2, 2, 1), np.nan, np.float32), [0], ["mass"])
    assert nothing == [{"target": "mass", "images": 0, "known": 0, "low": None, "mean": None, "high": None}]


def test_targets_have_the_errors_of_all_their_pixels() -> None:
    rows = number_maps.target_rows(SUMS, NAMES)
    error = np.concatenate([(predicted(row) - truth(row).transpose(2, 0, 1))[0].ravel() for row in range(N)])
    error = error[~np.isnan(error)]
    assert (rows[0]["target"], rows[0]["images"], rows[0]["pixels"]) == ("height", N, len(error))
    assert rows[0]["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert rows[0]["mae"] == pytest.approx(np.abs(error).mean())
    assert (rows[1]["images"], rows[1]["rmse"], rows[1]["mae"]) == (N - 1, 0, 0)
    nothing = number_maps.target_rows(np.zeros((2, 1, 3)), ["mass"])[0]
    assert (nothing["pixels"], nothing["rmse"], nothing["mae"]) == (0, None, None)


def test_errors_by_decile_of_the_truth_are_those_of_its_pixels() -> None:
    rows = number_maps.decile_rows(NUMBERS, truth, table(), range(N))
    heights = [row for row in rows if row["target"] == "height"]
    real = np.concatenate([truth(row)[:, :, 0].ravel() for row in range(N)])
    error = np.concatenate([predicted(row)[0].ravel() for row in range(N)]) - real
    known = ~np.isnan(real)
    real, error = real[known], error[known]
    assert len(heights) == 10
    assert sum(row["pixels"] for row in heights) == len(real)
    assert all(len(real) / 15 < row["pixels"] < len(real) / 7 for row in heights)
    assert heights[0]["truth"].startswith(f"{real.min():g} to below ")
    assert heights[-1]["truth"].endswith(f" to {real.max():g}")
    tops = real >= float(heights[-1]["truth"].split()[0]) - 1e-3
    assert heights[-1]["pixels"] == tops.sum()
    assert heights[-1]["mean"] == pytest.approx(real[tops].mean())
    assert heights[-1]["rmse"] == pytest.approx(np.sqrt((error[tops] ** 2).mean()))
    assert heights[-1]["mae"] == heights[-1]["bias"] == pytest.approx(error[tops].mean())
    assert heights[0]["rmse"] == 0
    masses = [row for row in rows if row["target"] == "mass"]  # five values: fewer than ten ranges
    assert sum(row["pixels"] for row in masses) == (N - 1) * SIZE[0] * (SIZE[1] - 6)
    assert len(masses) < 10


def test_a_truth_of_one_value_is_one_range_and_an_unknown_one_is_none() -> None:
    numbers = NumberSet(table(("mass",)).ids, ("mass",), TASK, {}, lambda row: np.full((1, 2, 2), 3.0, np.float32))
    only = number_maps.decile_rows(numbers, lambda row: np.full((2, 2, 1), 2, np.float32), table(("mass",)), [0, 1])
    assert only == [{"target": "mass", "truth": "2 to 2", "pixels": 8, "mean": 2, "rmse": 1, "mae": 1, "bias": 1}]
    unknown = number_maps.decile_rows(
        numbers, lambda row: np.full((2, 2, 1), np.nan, np.float32), table(("mass",)), [0]
    )
    assert unknown == []
