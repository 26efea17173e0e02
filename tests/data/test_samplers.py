from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kbench import registry
from kbench.errors import ConfigError

CLASSES = np.array([0] * 60 + [1] * 7 + [2] * 30, dtype=np.int64)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(name: str, targets: np.ndarray | None, n: int, seed: int = 0, **params) -> np.ndarray:
    return registry.build("sampler", name, params, targets, n)(rng(seed))


def test_shuffle_visits_every_row_once() -> None:
    rows = draw("shuffle", None, 50)
    assert sorted(rows) == list(range(50))
    assert list(rows) != list(range(50))


def test_sequential_visits_the_rows_in_order() -> None:
    assert list(draw("sequential", None, 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["shuffle", "sequential", "balanced", "oversample"])
def test_the_same_generator_gives_the_same_epoch(name: str) -> None:
    rows = draw(name, CLASSES, 97, 4)
    assert np.array_equal(rows, draw(name, CLASSES, 97, 4))
    assert rows.dtype == np.int64


def test_balanced_draws_every_class_equally_often() -> None:
    rows = draw("balanced", CLASSES, 97, epoch_size=30_000)
    shares = np.bincount(CLASSES[rows]) / 30_000
    assert shares == pytest.approx([1 / 3] * 3, abs=0.015)
    assert len(np.unique(rows)) == 97


def test_balanced_draws_as_many_rows_as_there_are_by_default() -> None:
    assert len(draw("balanced", CLASSES, 97)) == 97


def test_balanced_weighs_a_row_by_its_rarest_tag() -> None:
    tags = np.zeros((100, 3), dtype=np.float32)
    tags[:90, 0] = 1
    tags[80:84, 1] = 1
    tags[2, 2] = np.nan
    rows = draw("balanced", tags, 100, epoch_size=40_000)
    share = np.bincount(rows, minlength=100) / 40_000
    # 86 rows of a tag with 90 rows, 4 rows of a tag with 4, 10 rows without a tag
    total = 86 / 90 + 1 + 1
    assert share[80:84].sum() == pytest.approx(1 / total, abs=0.015)
    assert share[90:].sum() == pytest.approx(1 / total, abs=0.015)


def test_oversample_brings_every_class_to_the_largest() -> None:
    rows = draw("oversample", CLASSES, 97)
    assert list(np.bincount(CLASSES[rows])) == [60, 60, 60]
    visits = np.bincount(rows)
    assert set(visits[:60]) == {1}
    assert set(visits[60:67]) == {8, 9}
    assert set(visits[67:]) == {2}


def test_oversample_to_a_fraction_leaves_larger_classes_alone() -> None:
    assert list(np.bincount(CLASSES[draw("oversample", CLASSES, 97, to=0.25)])) == [60, 15, 30]


def test_oversample_shuffles_the_same_rows_in_every_epoch() -> None:
    first, second = (draw("oversample", CLASSES, 97, seed) for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first), np.sort(second))


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=st.sampled_from([0, 1, np.nan])
    ),
    st.floats(0.01, 1),
)
def test_oversample_brings_every_tag_to_its_goal_and_drops_no_row(tags: np.ndarray, to: float) -> None:
    visits = np.bincount(draw("oversample", tags, len(tags), to=to), minlength=len(tags))
    present = np.column_stack([tags == 1, ~(tags == 1).any(axis=1)])
    before, after = present.sum(axis=0), (present * visits[:, None]).sum(axis=0)
    assert visits.min() >= 1
    assert (after[before > 0] >= to * before.max() - 1e-3).all()


@settings(deadline=None)
@given(arrays.arrays(np.int64, st.integers(1, 50), elements=st.integers(0, 6)), st.floats(0.01, 1))
def test_oversample_brings_every_class_exactly_to_its_goal(classes: np.ndarray, to: float) -> None:
    before = np.bincount(classes, minlength=7)
    after = np.bincount(classes[draw("oversample", classes, len(classes), to=to)], minlength=7)
    goal = np.ceil(np.round(to * before.max(), 6))
    assert np.array_equal(after[before > 0], np.maximum(before, goal)[before > 0])
    assert not after[before == 0].any()


def test_oversample_repeats_rows_whose_rarest_tag_it_is() -> None:
    tags = np.zeros((15, 3), dtype=np.float32)
    tags[:12, 0] = 1  # a common tag: 12 rows, the goal
    tags[[10, 12, 13], 1] = 1  # 3 rows, one of which also has the rarest tag
    tags[[10, 14], 2] = 1  # the rarest: 2 rows, 6 visits each
    visits = np.bincount(draw("oversample", tags, 15))
    assert visits.tolist() == [1] * 10 + [6, 1, 3, 3, 6]


@pytest.mark.parametrize("name", ["balanced", "oversample"])
@pytest.mark.parametrize("targets", [None, np.array([[0.5], [1.7]], dtype=np.float32)])
def test_targets_without_classes_are_an_error(name: str, targets: np.ndarray | None) -> None:
    with pytest.raises(ConfigError, match="neither classes nor tags"):
        draw(name, targets, 2)


@pytest.mark.parametrize(("name", "params"), [("balanced", {"epoch_size": 0}), ("oversample", {"to": 1.5})])
def test_a_wrong_parameter_is_an_error(name: str, params: dict) -> None:
    with pytest.raises(ConfigError):
        draw(name, CLASSES, 97, **params)


def test_patches_are_many_visits_of_each_row() -> None:
    sampler = registry.build("sampler", "patches", {"per_image": 5}, None, 7)
    epochs = [sampler(np.random.default_rng(seed)) for seed in range(2)]
    assert all(np.array_equal(np.bincount(epoch), np.full(7, 5)) for epoch in epochs)
    assert not np.array_equal(*epochs)
