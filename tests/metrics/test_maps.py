"""Counts of pixels and the metrics made of them, against scikit-learn and against hand examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kbench.data.table.table import Table
from kbench.ensemble.bootstrap import interval, paired
from kbench.errors import ConfigError, DataError
from kbench.metrics.maps import batch_counts, image_confusion, image_counts, image_errors, measured, truth_of
from kbench.metrics.metric import make_metric
from kbench.tasks import IGNORED


def rows(n: int, names: tuple[str, ...], task: str = "segmentation") -> Table:
    return Table(np.array([f"{row:05}" for row in range(n)]), Path(), ((),) * n, task, names)


def score(name: str, counts: np.ndarray, names: tuple[str, ...], task: str = "segmentation", **params: object) -> float:
    truth = counts[..., 0] + counts[..., 2]
    return make_metric(name, params)(truth, counts, rows(len(counts), names, task))


def index_pair(seed: int, k: int = 4, size: tuple[int, int] = (13, 17)) -> tuple[np.ndarray, np.ndarray]:
    """Return a predicted [H, W] and a true [H, W, 1] index mask with ignored pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, size).astype(np.uint8)
    mask = np.where(rng.random(size) < 0.5, truth, rng.integers(0, k, size)).astype(np.uint8)
    truth[rng.random(size) < 0.2] = IGNORED
    return mask, truth[:, :, None]


def layer_pair(seed: int, k: int = 3, size: tuple[int, int] = (9, 14)) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted [K, H, W] and true [H, W, K] layers with ignored pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (*size, k)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = IGNORED
    return rng.integers(0, 2, (k, *size)).astype(np.uint8), truth


# -- counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_confusion_of_classes_are_those_of_scikit_learn(seed: int) -> None:
    mask, truth = index_pair(seed)
    known = truth[:, :, 0] != IGNORED
    table = reference.confusion_matrix(truth[known][:, 0], mask[known], labels=range(4))
    np.testing.assert_array_equal(image_confusion(mask, truth, n_classes=4), table)
    counts = image_counts(mask, truth, n_classes=4)
    hits = np.diagonal(table)
    np.testing.assert_array_equal(counts, np.stack([hits, table.sum(0) - hits, table.sum(1) - hits], 1))
    ious = reference.jaccard_score(truth[known][:, 0], mask[known], labels=range(4), average=None)
    np.testing.assert_allclose(counts[:, 0] / counts.sum(1), ious)


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_layers_are_those_of_scikit_learn(seed: int) -> None:
    mask, truth = layer_pair(seed)
    counts = image_counts(mask, truth, n_classes=3)
    for k in range(3):
        known = truth[:, :, k] != IGNORED
        [[_, fp], [fn, tp]] = reference.confusion_matrix(truth[:, :, k][known], mask[k][known], labels=[0, 1])
        assert counts[k].tolist() == [tp, fp, fn]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_a_batch_counts_as_its_images_do_one_by_one(seed: int, batch: int) -> None:
    pairs = [index_pair(seed + image) for image in range(batch)]
    single = np.stack([image_counts(mask, truth, n_classes=4) for mask, truth in pairs])
    scores = torch.from_numpy(np.stack([np.eye(4, dtype=np.float32)[mask] for mask, _ in pairs])).permute(0, 3, 1, 2)
    target = torch.from_numpy(np.stack([truth[:, :, 0] for _, truth in pairs]).astype(np.int64))
    target[target == IGNORED] = -100
    np.testing.assert_array_equal(batch_counts(scores, target).numpy(), single)
    layers = [layer_pair(seed + image) for image in range(batch)]
    single = np.stack([image_counts(mask, truth, n_classes=3) for mask, truth in layers])
    soft = torch.from_numpy(np.stack([mask for mask, _ in layers]).astype(np.float32)) * 0.4 + 0.3
    real = np.stack([truth.transpose(2, 0, 1) for _, truth in layers]).astype(np.float32)
    real[real == IGNORED] = np.nan
    np.testing.assert_array_equal(batch_counts(soft, torch.from_numpy(real)).numpy(), single)


def test_a_pixel_of_no_class_is_only_missed() -> None:
    mask = np.array([[0, IGNORED, 1, IGNORED]], dtype=np.uint8)
    truth = np.array([[0, 0, 0, IGNORED]], dtype=np.uint8)[:, :, None]
    assert image_counts(mask, truth, n_classes=2).tolist() == [[1, 0, 2], [0, 1, 0]]


def test_classes_up_to_the_most_a_byte_holds_are_counted_apart() -> None:
    mask = np.arange(255, dtype=np.uint8).reshape(15, 17)
    counts = image_counts(mask, mask[:, :, None], n_classes=255)
    assert (counts == [1, 0, 0]).all()


def test_all_pixels_ignored_count_nothing() -> None:
    empty = np.full((3, 4, 1), IGNORED, np.uint8)
    assert not image_counts(np.zeros((3, 4), np.uint8), empty, n_classes=2).any()
    assert not image_counts(np.ones((1, 3, 4), np.uint8), empty, n_classes=1).any()


# -- metrics ----------------------------------------------------------------------------------------------------

STREET = ("car", "pedestrian", "lane")


def test_the_first_class_counts_like_any_other() -> None:
    # the original dropped index 0 as background, which was `car` with the full set of classes
    counts = np.array([[[0, 10, 90], [50, 0, 0], [50, 0, 0]]])
    assert score("mean_iou", counts, STREET) == pytest.approx(2 / 3)
    assert score("mean_iou", counts, STREET, classes=["pedestrian", "lane"]) == 1
    assert score("mean_iou", counts, STREET, classes=["car"]) == 0


@pytest.mark.parametrize("seed", range(3))
def test_iou_and_dice_of_a_data_set_are_those_of_all_pixels_in_one_row(seed: int) -> None:
    pairs = [index_pair(10 * seed + image) for image in range(6)]
    counts = np.stack([image_counts(mask, truth, n_classes=4) for mask, truth in pairs])
    truth = np.concatenate([truth[:, :, 0].ravel() for _, truth in pairs])
    mask = np.concatenate([mask.ravel() for mask, _ in pairs])
    truth, mask = truth[truth != IGNORED], mask[truth != IGNORED]
    names = ("a", "b", "c", "d")
    assert score("mean_iou", counts, names) == pytest.approx(reference.jaccard_score(truth, mask, average="macro"))
    assert score("mean_dice", counts, names) == pytest.approx(reference.f1_score(truth, mask, average="macro"))
    assert score("pixel_accuracy", counts, names) == pytest.approx(reference.accuracy_score(truth, mask))


def test_a_class_that_is_in_no_true_mask_is_left_out_or_counts_nothing() -> None:
    counts = np.array([[[10, 0, 0], [0, 3, 0], [5, 5, 0]]])
    assert score("mean_iou", counts, STREET) == pytest.approx(0.75)
    assert score("mean_iou", counts, STREET, absent="zero") == pytest.approx(0.5)
    assert score("mean_dice", counts, STREET) == pytest.approx((1 + 10 / 15) / 2)
    assert score("mean_dice", counts, STREET, absent="zero") == pytest.approx((1 + 10 / 15) / 3)


def test_the_contest_score_asks_only_for_what_is_in_the_image() -> None:
    counts = np.array([
        [[8, 0, 2], [0, 40, 0], [0, 0, 5]],  # pedestrian predicted and not there: free; lane missed: 0
        [[0, 0, 0], [6, 2, 4], [9, 1, 0]],
        [[0, 7, 0], [0, 0, 0], [0, 3, 0]],  # none of the classes: does not count
    ])  # fmt: skip
    each = [(0.8 + 0) / 2, (0.5 + 0.9) / 2]
    assert score("iou_per_image", counts, STREET) == pytest.approx(np.mean(each))
    assert score("iou_per_image", counts, STREET, classes=["car"]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "expected"),
    [
        (0, 0, 0, 1.0),  # both empty
        (0, 1, 0, 0.0),  # nothing there, something predicted
        (0, 0, 9, 0.0),
        (50, 50, 0, 0.0),  # 0.50 is not above 0.50
        (51, 49, 0, 0.1),
        (55, 45, 0, 0.1),  # 0.55 is not above 0.55
        (60, 0, 40, 0.2),
        (95, 5, 0, 0.9),
        (96, 4, 0, 1.0),
        (7, 0, 0, 1.0),
    ],
)
def test_the_tgs_score_of_one_image(tp: int, fp: int, fn: int, expected: float) -> None:
    assert score("tgs_iou", np.array([[[tp, fp, fn]]]), ("salt",)) == pytest.approx(expected)


def test_the_tgs_score_is_the_mean_over_images() -> None:
    assert score("tgs_iou", np.array([[[0, 0, 0]], [[0, 1, 0]], [[96, 4, 0]]]), ("salt",)) == pytest.approx(2 / 3)


def test_a_score_on_masks_without_the_classes_says_which_are_missing() -> None:
    with pytest.raises(DataError, match="no pixel of 'car', 'pedestrian', 'lane' in the true masks"):
        score("mean_iou", np.zeros((2, 3, 3), np.int64), STREET)


def test_a_class_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'lorry'.*\n?.*"):
        score("mean_iou", np.ones((1, 3, 3)), STREET, classes=["lorry"])
    with pytest.raises(ConfigError, match="each once"):
        score("iou_per_image", np.ones((1, 3, 3)), STREET, classes=["car", "car"])
    with pytest.raises(ConfigError, match="two classes or more"):
        score("pixel_accuracy", np.ones((1, 1, 3)), ("salt",))
    with pytest.raises(ConfigError, match="cannot score the task 'single_label'"):
        score("mean_iou", np.ones((1, 3, 3)), STREET, task="single_label")


# -- intervals --------------------------------------------------------------------------------------------------


def test_the_dice_of_an_image_is_1_where_there_is_nothing_and_nothing_is_predicted() -> None:
    counts = np.array([[[0, 0, 0]], [[0, 5, 0]], [[0, 0, 5]], [[3, 1, 1]]])
    assert score("dice_per_image", counts, ("salt",)) == pytest.approx((1 + 0 + 0 + 6 / 8) / 4)
    two = np.array([[[0, 0, 0], [3, 1, 1]]])
    assert score("dice_per_image", two, ("a", "b")) == pytest.approx((1 + 6 / 8) / 2)
    assert score("dice_per_image", two, ("a", "b"), classes=["b"]) == pytest.approx(6 / 8)


@pytest.mark.parametrize("name", ["mean_iou", "iou_per_image", "tgs_iou"])
def test_intervals_are_made_of_counts_as_of_any_predictions(name: str) -> None:
    pairs = [index_pair(seed) for seed in range(40)]
    counts = np.stack([image_counts(mask, truth, n_classes=4) for mask, truth in pairs])
    table = rows(len(pairs), ("a", "b", "c", "d"))
    truth = counts[..., 0] + counts[..., 2]
    metric = make_metric(name)
    found = interval(metric, truth, counts, table, draws=200)
    assert found.low <= found.value <= found.high
    better = np.stack([truth, np.zeros_like(truth), np.zeros_like(truth)], axis=2)
    gain = paired(metric, truth, better, counts, table, draws=200)
    assert gain.low > 0
    assert gain.value == pytest.approx(1 - found.value)
    groups = np.array([f"drive{row // 8}" for row in range(40)])
    assert interval(metric, truth, counts, table, groups=groups, draws=200).value == found.value


# -- numbers per pixel ------------------------------------------------------------------------------------------


def number_pair(seed: int, k: int = 2, size: tuple[int, int] = (7, 11)) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true [K, H, W] numbers, some of the truth unknown."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(20, 9, (k, *size)).astype(np.float32)
    numbers = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    return numbers, truth


@pytest.mark.parametrize("seed", range(4))
def test_sums_of_errors_are_those_of_a_batch_and_of_scikit_learn(seed: int) -> None:
    pairs = [number_pair(seed + image) for image in range(3)]
    sums = np.stack([image_errors(numbers, truth.transpose(1, 2, 0)) for numbers, truth in pairs])
    maps, target = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    np.testing.assert_allclose(measured(maps, target, "dense_regression").numpy(), sums, rtol=1e-12)
    for (numbers, truth), image in zip(pairs, sums, strict=True):
        for k in range(2):
            known = ~np.isnan(truth[k])
            said = (truth[k][known].astype(np.float64), numbers[k][known].astype(np.float64))
            expected = [known.sum(), known.sum() * reference.mean_squared_error(*said),
                        known.sum() * reference.mean_absolute_error(*said)]  # fmt: skip
            np.testing.assert_allclose(image[k], expected)
    np.testing.assert_array_equal(truth_of(sums, "dense_regression"), sums[..., 0])


def test_an_unknown_image_does_not_count_and_pixels_of_all_images_are_pooled() -> None:
    # two targets of three images: known pixels, sums of squared and of absolute errors
    sums = np.array([[[4, 16, 8], [1, 9, 3]], [[0, 0, 0], [0, 0, 0]], [[12, 0, 0], [0, 0, 0]]], dtype=float)
    names, task = ("height", "mass"), "dense_regression"
    assert regression("rmse_per_image", sums, names, task) == pytest.approx(((2 + 3) / 2 + 0) / 2)
    assert regression("mae_per_image", sums, names, task) == pytest.approx(((2 + 3) / 2 + 0) / 2)
    assert regression("rmse_pixels", sums, names, task) == pytest.approx((np.sqrt(16 / 16) + 3) / 2)
    assert make_metric("rmse_pixels").per_row is None
    with pytest.raises(DataError, match="no known pixel of 'mass'"):
        regression("rmse_pixels", sums[1:], names, task)


def regression(name: str, sums: np.ndarray, names: tuple[str, ...], task: str) -> float:
    return make_metric(name)(truth_of(sums, task), sums, rows(len(sums), names, task))
