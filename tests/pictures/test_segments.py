from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from kbench.data.table.table import Table
from kbench.inference.map_store import MaskSet
from kbench.metrics.maps import image_counts
from kbench.metrics.metric import make_metric
from kbench.pictures import segments
from kbench.pictures.confusion import draw_confusion

NAMES = ("road", "sky", "car")
SIZE = (40, 60)


def truth(row: int) -> np.ndarray:
    mask = np.zeros((*SIZE, 1), dtype=np.uint8)
    mask[: 10 + row] = 1
    mask[30:36, 5 * row : 5 * row + 9] = 2
    mask[-2:] = 255
    return mask


def image(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def table(n: int = 6) -> Table:
    ids = np.array([f"frame{row}" for row in range(n)])
    meta = pd.DataFrame({"light": ["day", "dusk"] * (n // 2)})
    return Table(ids, Path(), ((),) * n, "segmentation", NAMES, meta=meta)


def predicted(row: int) -> np.ndarray:
    mask = truth(row)[:, :, 0].copy()
    mask[mask == 255] = 0
    mask[: row * 3] = 0  # later images are worse
    return mask


MASKS = MaskSet(table().ids, NAMES, "segmentation", {}, predicted)
COUNTS = np.stack([image_counts(predicted(row), truth(row), n_classes=3) for row in range(6)])


def test_colours_are_apart() -> None:
    colours = segments.class_colours(20).astype(int)
    assert len({tuple(colour) for colour in colours}) == 20
    distance = np.abs(colours[:, None] - colours[None]).sum(2) + 999 * np.eye(20, dtype=int)
    assert distance.min() > 40


def test_a_painted_mask_shows_the_image_only_where_nothing_is() -> None:
    colours = segments.class_colours(3)
    shown = segments.paint(truth(0)[:, :, 0], colours)
    assert shown[0, 0].tolist() == colours[1].tolist()
    assert shown[-1, 0].tolist() == [96, 96, 96]
    layers = np.zeros((1, *SIZE), dtype=np.uint8)
    layers[0, :5] = 1
    over = segments.paint(layers, colours[:1], image(0))
    np.testing.assert_array_equal(over[5:], image(0)[5:])
    assert (over[:5] != image(0)[:5]).mean() > 0.5


def test_the_worst_images_come_first_and_those_without_a_score_not_at_all() -> None:
    scores = segments.image_scores(make_metric("mean_iou"), COUNTS, table())
    assert segments.worst_rows(scores, 3).tolist() == [5, 4, 3]
    contest = segments.image_scores(make_metric("iou_per_image"), COUNTS, table())
    np.testing.assert_allclose(scores, contest)
    assert segments.worst_rows(np.array([0.4, np.nan, 0.1]), 9).tolist() == [2, 0]
    assert segments.random_rows(100, 5).tolist() == segments.random_rows(100, 5).tolist()


@pytest.mark.parametrize("overlapping", [False, True])
def test_triplets_are_drawn_with_a_legend(overlapping: bool, tmp_path: Path) -> None:
    masks, real = MASKS, truth
    if overlapping:
        masks = MaskSet(table().ids, NAMES, "multi_label_segmentation", {},
                        lambda row: (predicted(row)[None] == np.arange(3)[:, None, None]).astype(np.uint8))  # fmt: skip

        def real(row: int) -> np.ndarray:
            return (truth(row) == np.arange(3)).astype(np.uint8)

    path = segments.draw_triplets([5, 4, 3], tmp_path / "t.png", images=image, truth=real, masks=masks, table=table(),
                                  scores=np.linspace(0, 1, 6), title="Worst")  # fmt: skip
    shown = cv2.imread(str(path))
    assert shown is not None
    for colour in segments.class_colours(3):
        assert (np.abs(shown[-30:, :, ::-1].astype(int) - colour).sum(2) < 12).sum() > 40  # swatches at the bottom


def test_classes_and_slices_have_their_own_numbers() -> None:
    rows = segments.class_rows(COUNTS, NAMES)
    assert [row["class"] for row in rows] == list(NAMES)
    assert rows[2]["iou"] == rows[2]["recall"] == 1
    assert rows[1]["precision"] == 1
    assert rows[1]["recall"] < 1
    assert sum(row["pixels"] for row in rows) == pytest.approx(1)
    assert segments.class_rows(np.zeros((2, 1, 3), int), ["x"])[0]["iou"] is None
    slices = segments.slice_rows(make_metric("mean_iou"), COUNTS, table(), "light", draws=100)
    assert [row["light"] for row in slices] == ["day", "dusk"]
    assert slices[0]["score"] > slices[1]["score"]
    assert slices[0]["low"] <= slices[0]["score"] <= slices[0]["high"]
    assert slices[0]["sky"] > slices[1]["sky"]


def test_pixels_are_confused_as_counted(tmp_path: Path) -> None:
    matrix = segments.pixel_confusion(MASKS, truth, table(), range(6))
    hits = np.diagonal(matrix)
    np.testing.assert_array_equal(np.stack([hits, matrix.sum(0) - hits, matrix.sum(1) - hits], 1), COUNTS.sum(0))
    assert draw_confusion(matrix, NAMES, tmp_path / "c.png", normalise=True, unit="pixels").is_file()
