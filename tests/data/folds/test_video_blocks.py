"""Blocks of frames: contiguous, balanced over drives, nothing near a validated frame in training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fold_tables import make_table
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.data.folds.files import read_folds, write_folds
from kbench.data.folds.folds import Cut, Folds, describe, make_folds
from kbench.data.folds.video_blocks import moments
from kbench.errors import ConfigError, DataError, FoldError


def frames(*counts: int, step: int = 30):
    """A table of drives `a`, `b` ... with so many frames, `step` apart."""
    ids = [f"{chr(97 + drive)}_{frame * step:06d}" for drive, count in enumerate(counts) for frame in range(count)]
    return make_table(ids, route=[name[0] for name in ids], time=[str(int(name[2:]) / 10) for name in ids])


def changes(values: np.ndarray) -> int:
    return int((values[1:] != values[:-1]).sum())


@pytest.mark.parametrize("by", [(), ("route",)])
def test_every_drive_is_in_every_fold_in_one_block(by: tuple[str, ...]) -> None:
    table = frames(40, 23, 8)
    folds = make_folds(table, "blocks", Cut(4, 1, by), {})
    assert folds.avoid is not None
    assert not folds.avoid.any()
    for route, count in zip("abc", (40, 23, 8), strict=True):
        fold = folds.fold[table.column("route") == route]
        assert changes(fold) == 3
        assert set(np.bincount(fold, minlength=4)) <= {count // 4, count // 4 + 1}
    assert np.ptp(np.bincount(folds.fold)) <= 1


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4), n=st.integers(2, 5), rounds=st.integers(1, 3),
    gap=st.integers(0, 100), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_nothing_within_the_gap_trains(counts: list[int], n: int, rounds: int, gap: int, seed: int) -> None:
    table = frames(*counts)
    if len(table) < n:
        return
    try:
        folds = make_folds(table, "blocks", Cut(n, seed), {"gap": gap, "rounds": rounds})
    except FoldError as error:
        assert "avoids every row" in error.what  # noqa: PT017
        return
    drive, time = table.column("route"), np.array([int(name[2:]) for name in table.ids])
    assert folds.avoid is not None
    for fold in range(n):
        train, valid = folds.train(fold), folds.valid(fold)
        assert not (train & valid).any()
        near = (drive[:, None] == drive[None]) & (np.abs(time[:, None] - time[None]) <= gap)
        if gap:
            assert not near[np.ix_(train, valid)].any()
        left_out = ~train & ~valid
        assert (left_out == folds.avoid[:, fold]).all()
        assert near[np.ix_(left_out, valid)].any(axis=1).all()
    sizes = np.bincount(folds.fold, minlength=n)
    assert sizes.max() - sizes.min() <= 1


def test_a_frame_near_one_fold_still_trains_the_others() -> None:
    folds = make_folds(frames(30), "blocks", Cut(3, 0), {"gap": 60})
    assert folds.avoid is not None
    assert sorted(folds.avoid.sum(axis=0).tolist()) == [2, 2, 4]
    assert folds.avoid.sum(axis=1).max() == 1
    assert [record["avoided"] for record in describe(folds, frames(30))] == folds.avoid.sum(axis=0).tolist()


def test_the_order_may_be_a_column() -> None:
    table = frames(12, 12)
    assert make_folds(table, "blocks", Cut(3, 0, ("route",)), {"order": "time", "gap": 3}).hash == make_folds(
        table, "blocks", Cut(3, 0, ("route",)), {"gap": 30}
    ).hash  # fmt: skip


def test_what_is_avoided_is_written_and_counts(tmp_path: Path) -> None:
    folds = make_folds(frames(30), "blocks", Cut(3, 0), {"gap": 60})
    again = read_folds(write_folds(tmp_path / "f.csv", folds))
    assert again.avoid is not None
    np.testing.assert_array_equal(again.avoid, folds.avoid)
    assert again.hash == folds.hash != Folds(folds.ids, folds.fold, None, None, {}).hash


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gap": -1}, ConfigError, "gap is '-1'"),
        ({"gap": 10_000}, FoldError, "avoids every row"),
        ({"order": "route"}, FoldError, "30 rows have no number"),
        ({"order": "x"}, DataError, "no column 'x'"),
        ({"rounds": 0}, ConfigError, "rounds"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_folds(frames(30), "blocks", Cut(3, 0), options)


def test_frames_need_numbers() -> None:
    with pytest.raises(FoldError, match="2 ids have no number: 'a', 'b'"):
        make_folds(make_table(["a", "b", "c1"]), "blocks", Cut(2, 0), {})


@settings(max_examples=50)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=3), gap=st.integers(1, 200), seed=st.integers(0, 9))
def test_a_moment_is_frames_of_one_drive_within_the_gap(counts: list[int], gap: int, seed: int) -> None:
    table = frames(*counts)
    table = table.select(np.random.default_rng(seed).permutation(len(table)))  # whatever their order
    found = moments(table, ("route",), gap=gap)
    assert found is not None
    times = np.array([int(name[2:]) for name in table.ids])
    for name in np.unique(found):
        rows = found == name
        assert len(set(table.column("route")[rows])) == 1
        assert np.ptp(times[rows]) <= gap
    starts = {(name.split()[0], float(name.split()[1])) for name in found}
    for drive in set(table.column("route")):
        own = sorted(start for of, start in starts if of == drive)
        assert all(after - before > gap for before, after in pairwise(own)), "moments are as long as may be"


def test_without_a_gap_every_frame_counts_for_itself() -> None:
    assert moments(frames(3), (), gap=0) is None
