"""What is tuned on the rows of one fold is scored on the other fifths of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kbench.data.table.table import Table
from kbench.ensemble.mask_tuning import Tuned, tune
from kbench.ensemble.nested import parts_of
from kbench.metrics.metric import make_metric

SIDE, ROWS = 12, 25
rng = np.random.default_rng(3)
TRUTH = rng.random((ROWS, SIDE, SIDE)) < 0.3
MAPS = np.clip(0.5 + 0.02 * (TRUTH - 0.5) + rng.normal(0, 0.2, TRUTH.shape), 0.01, 0.99).astype(np.float32)


def table() -> Table:
    ids = np.array([f"r{row:02d}" for row in range(ROWS)])
    return Table(ids, Path(), ((),) * ROWS, "segmentation", ("blob",))


def maps(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    yield from ((int(row), MAPS[row][None]) for row in rows)


def tuned(*, metric: str = "dice_per_image", groups: np.ndarray | None = None) -> Tuned:
    return tune(
        maps, lambda row: TRUTH[row].astype(np.uint8)[:, :, None], fold_of=np.zeros(ROWS, dtype=int),
        metric=make_metric(metric), table=table(), groups=groups,
        params={"threshold": "tuned", "grid": {"threshold": [0.1, 0.2, 0.3, 0.4, 0.6, 0.7]}},
    )  # fmt: skip


def dice(row: int, threshold: float) -> float:
    mask = MAPS[row] > np.float32(threshold)
    both = mask.sum() + TRUTH[row].sum()
    return 1.0 if both == 0 else float(2 * (mask & TRUTH[row]).sum() / both)


def test_each_fifth_of_the_only_fold_is_cut_by_what_the_others_like_best() -> None:
    outcome = tuned().outcome
    grid, parts = [0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7], parts_of(np.zeros(ROWS), None)
    scores = np.array([[dice(row, threshold) for threshold in grid] for row in range(ROWS)])
    expected = np.empty(ROWS)
    for part in range(5):
        best = int(scores[parts != part].mean(axis=0).argmax())
        assert outcome.by_part[part]["threshold"] == grid[best]
        expected[parts == part] = scores[parts == part, best]
    assert outcome.nested.value == pytest.approx(expected.mean())
    assert outcome.plain.value == pytest.approx(scores.mean(axis=0).max())
    assert outcome.nested.value <= outcome.plain.value


def test_the_nested_gain_of_one_fold_is_over_the_untuned_rule() -> None:
    one = tuned()
    untuned = float(np.mean([dice(row, 0.5) for row in range(ROWS)]))
    assert one.before == pytest.approx(untuned)
    assert one.gain is not None
    assert one.gain.value == pytest.approx(one.outcome.nested.value - untuned)
    assert one.as_json()["nested"] == one.outcome.nested.value


def test_images_of_a_group_are_in_one_fifth() -> None:
    groups = np.arange(ROWS) // 5
    outcome = tuned(groups=groups).outcome
    assert sorted(outcome.by_part) == [0, 1, 2, 3, 4]
    assert all(len(np.unique(outcome.parts[groups == group])) == 1 for group in range(5))


def test_a_fifth_without_positives_is_no_obstacle() -> None:
    assert tuned(metric="mean_iou").outcome.nested.value > 0
