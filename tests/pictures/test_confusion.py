from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from looks import classes, labels, picture
from sklearn.metrics import confusion_matrix as sklearn_matrix
from sklearn.metrics import multilabel_confusion_matrix

from kbench.pictures import confusion


def test_the_matrix_is_scikit_learns_rows_true_columns_predicted() -> None:
    targets, p = classes()
    expected = sklearn_matrix(targets, p.argmax(axis=1), labels=range(5))
    np.testing.assert_array_equal(confusion.confusion_matrix(targets, p), expected)


def test_a_class_that_never_occurs_keeps_its_row_and_column() -> None:
    matrix = confusion.confusion_matrix(np.array([0, 2]), np.array([[0.9, 0.1, 0.0], [0.2, 0.1, 0.7]], np.float32))
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_each_label_has_scikit_learns_matrix() -> None:
    targets, p = labels()
    known = np.nan_to_num(targets)
    expected = multilabel_confusion_matrix(known > 0.5, p > 0.3)
    np.testing.assert_array_equal(confusion.label_confusion(known, p, threshold=0.3), expected)


def test_unknown_labels_do_not_count() -> None:
    targets, p = labels()
    assert confusion.label_confusion(targets, p).sum() == (~np.isnan(targets)).sum()


def test_every_label_may_have_a_threshold_of_its_own() -> None:
    targets, p = labels(k=2)
    both = confusion.label_confusion(targets, p, threshold=[0.2, 0.7])
    np.testing.assert_array_equal(both[0], confusion.label_confusion(targets, p, threshold=0.2)[0])
    np.testing.assert_array_equal(both[1], confusion.label_confusion(targets, p, threshold=0.7)[1])


def test_the_commonest_mistakes_come_first_with_their_share_of_the_true_class() -> None:
    matrix = np.array([[8, 2, 0], [5, 5, 0], [0, 0, 4]])
    assert confusion.confused_pairs(matrix, ["a", "b", "c"]) == [
        {"true": "b", "predicted": "a", "rows": 5, "share": 0.5},
        {"true": "a", "predicted": "b", "rows": 2, "share": 0.2},
    ]


def test_without_mistakes_there_are_no_pairs() -> None:
    assert confusion.confused_pairs(np.diag([3, 4]), ["a", "b"]) == []


@pytest.mark.parametrize("normalise", [False, True])
def test_the_diagonal_is_green_and_mistakes_are_red(tmp_path: Path, normalise: bool) -> None:
    matrix = np.array([[90, 10], [30, 70]])
    image = picture(confusion.draw_confusion(matrix, ["cat", "dog"], tmp_path / "c.png", normalise=normalise))
    blue, green, red = (image[..., channel].astype(int) for channel in range(3))
    assert ((green > red + 30) & (green > blue)).sum() > 500
    assert ((red > green + 30) & (red > blue + 30)).sum() > 500


@pytest.mark.slow
def test_names_of_120_classes_stay_readable(tmp_path: Path) -> None:
    matrix = np.diag(np.arange(1, 121))
    matrix[3, 7] = 5
    image = picture(confusion.draw_confusion(matrix, [f"a_breed_of_dogs_{k}" for k in range(120)], tmp_path / "c.png"))
    assert image.shape[0] / 120 >= 17  # pixels for each line of text


@pytest.mark.slow
def test_many_classes_do_not_make_a_picture_that_no_one_can_open(tmp_path: Path) -> None:
    image = picture(confusion.draw_confusion(np.eye(600, dtype=int), list(map(str, range(600))), tmp_path / "c.png"))
    assert max(image.shape) < 4000


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    picture(confusion.draw_confusion(np.eye(2, dtype=int), ["$1", "_{ $2"], tmp_path / "c.png"))


def test_found_missed_and_extra_labels_are_drawn(tmp_path: Path) -> None:
    targets, p = labels()
    counts = confusion.label_confusion(targets, p)
    picture(confusion.draw_label_confusion(counts, ["a", "b", "c", "d"], tmp_path / "l.png"))


@pytest.mark.parametrize("rows", [50, 4000])
def test_numbers_are_drawn_over_true_numbers_few_or_many(tmp_path: Path, rows: int) -> None:
    truth = np.random.default_rng(0).normal(size=(rows, 2))
    truth[0, 1] = np.nan
    picture(confusion.draw_scatter(truth, truth + 0.1, ["a", "b"], tmp_path / "s.png"))


def test_a_target_nobody_knows_gets_an_empty_picture(tmp_path: Path) -> None:
    picture(confusion.draw_scatter(np.full((3, 1), np.nan), np.zeros((3, 1)), ["a"], tmp_path / "s.png"))
