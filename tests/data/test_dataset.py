from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_images import ArrayImages, drawn, write_images
from hypothesis import given
from hypothesis import strategies as st

from kbench import registry
from kbench.data.dataset import Draw, ImageDataset, Loader, Show, auto_workers, cut
from kbench.data.images.augment import Augmentation
from kbench.data.images.cache import DirectImages, Resize
from kbench.data.images.crops import Geometry, centre, random, squash
from kbench.data.images.readers import image
from kbench.errors import DataError, KbenchError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # fork, Python 3.12
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # two workers on one core
]


def keyed(position: int) -> Draw:
    return Draw(position, (1, 2, position))


def plain(position: int) -> Draw:
    return Draw(position)


def dataset(rows: int = 10, *, targets: np.ndarray | None = None, augment: str = "top_down") -> ImageDataset:
    augmentation = registry.build("augmentation", augment, {})
    return ImageDataset([ArrayImages(drawn(rows))], [Show((8, 8), random(), augmentation)], targets)


def loaded(loader: Loader, plan) -> list:
    return list(loader(plan))


def assert_same(one, other) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.rows.tolist() == right.rows.tolist()
        assert all(torch.equal(a, b) for a, b in zip(left.images, right.images, strict=True))


# -- plans ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 20), st.booleans())
def test_batches_cover_the_plan_in_order(count: int, size: int, lone: bool) -> None:
    batches = cut(count, size, plain, lone=lone)
    assert [draw.row for batch in batches for draw in batch] == list(range(count))
    assert all(len(batch) == size for batch in list(batches)[:-2])
    assert len(batches) == len(list(batches))


@given(st.integers(2, 60), st.integers(2, 20))
def test_a_lone_last_draw_joins_the_batch_before(count: int, size: int) -> None:
    sizes = [len(batch) for batch in cut(count, size, plain, lone=False)]
    assert min(sizes) > 1 or count == 1
    assert max(sizes) <= size + 1


def test_batches_of_one_stay_batches_of_one() -> None:
    assert [len(batch) for batch in cut(3, 1, plain, lone=False)] == [1, 1, 1]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 12), st.integers(0, 12))
def test_a_slice_of_batches_is_those_batches(count: int, size: int, first: int, last: int) -> None:
    batches = cut(count, size, keyed)
    assert list(batches[first:last]) == list(batches)[first:last]
    assert list(batches[first:]) == list(batches)[first:]


def test_batches_can_be_counted_from_the_end_and_end_with_an_index_error() -> None:
    batches = cut(10, 4, plain)
    assert batches[-1] == [Draw(8), Draw(9)]
    with pytest.raises(IndexError):
        batches[3]


def test_a_plan_of_millions_of_rows_makes_its_draws_when_they_are_asked_for() -> None:
    made: list[int] = []
    batches = cut(5_000_000, 64, lambda position: (made.append(position), Draw(position))[1])
    assert len(batches) == 78_125
    assert batches[70_000][0].row == 70_000 * 64
    assert len(made) == 64


# -- samples -------------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_its_key_alone() -> None:
    data = dataset()
    alone = [data[keyed(row)][0][0].tobytes() for row in range(10)]
    again = [data[keyed(row)][0][0].tobytes() for row in reversed(range(10))]
    assert again == alone[::-1]
    assert data[Draw(0, (1, 2, 3))][0][0].tobytes() != data[Draw(0, (1, 2, 4))][0][0].tobytes()


def test_a_sample_without_a_key_is_always_the_same() -> None:
    data = dataset(augment="none")
    assert data[Draw(3)][0][0].tobytes() == data[Draw(3)][0][0].tobytes()


def test_ways_of_showing_draw_differently_and_decode_once() -> None:
    class Counting(ArrayImages):
        reads = 0

        def __getitem__(self, row: int) -> np.ndarray:
            Counting.reads += 1
            return super().__getitem__(row)

    source = Counting(drawn(4))
    show = Show((8, 8), random(), registry.build("augmentation", "top_down", {}))
    shown, *_ = ImageDataset([source] * 3, [show] * 3, None)[keyed(1)]
    assert Counting.reads == 1
    assert len({each.tobytes() for each in shown}) == 3


def test_image_and_mask_are_shown_the_same_way() -> None:
    y, x = np.mgrid[0:20, 0:20]
    where = (20 * y + x).astype(np.float32)[:, :, None]
    augmentation = Augmentation(lambda rng: Geometry(0, 1, bool(rng.random() < 0.5), int(rng.integers(4))))
    for seed in range(8):
        shown, mask = Show((8, 8), random(), augmentation)(where, np.random.default_rng(seed), where)
        np.testing.assert_array_equal(shown, mask)


def test_an_image_of_another_shape_than_the_size_is_shown_at_the_size() -> None:
    for size in [(8, 8), (5, 9), (20, 30)]:
        images = ArrayImages(drawn(2), Resize("cover", *size))
        assert ImageDataset([images], [Show(size, centre())], None)[Draw(0)][0][0].shape == (*size, 3)


# -- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_batch_keeps_the_sources_dtype(dtype: type) -> None:
    images = drawn(4, channels=5, dtype=dtype)
    (batch,) = loaded(Loader(ImageDataset([ArrayImages(images)], [Show((10, 12), centre())], None)), cut(4, 4, plain))
    np.testing.assert_array_equal(batch.images[0].numpy(), images)
    assert batch.target is None


@pytest.mark.parametrize(
    "targets", [np.array([2, 0, 1, 1]), np.array([[0.5, np.nan]] * 4, dtype=np.float32)], ids=["classes", "values"]
)
def test_targets_come_with_their_rows(targets: np.ndarray) -> None:
    batches = loaded(Loader(dataset(4, targets=targets)), cut(4, 3, lambda place: keyed(3 - place)))
    assert torch.cat([batch.rows for batch in batches]).tolist() == [3, 2, 1, 0]
    found = torch.cat([batch.target for batch in batches])
    assert found.numpy().dtype == targets.dtype
    np.testing.assert_array_equal(found.numpy(), targets[::-1])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_a_batch(workers: int) -> None:
    plan = cut(23, 4, keyed)
    assert_same(loaded(Loader(dataset(23), workers=workers), plan), loaded(Loader(dataset(23)), plan))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_left_in_the_middle_begins_anew(workers: int) -> None:
    loader, plan = Loader(dataset(23), workers=workers), cut(23, 2, keyed)
    abandoned = loader(plan)
    next(abandoned)
    assert_same(loaded(loader, plan[5:]), loaded(Loader(dataset(23)), plan)[5:])
    still = loader(plan)
    next(still)
    del still
    assert_same(loaded(loader, plan), loaded(Loader(dataset(23)), plan))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_an_error_of_three_parts_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    rows = write_images(tmp_path, drawn(6))
    images = DirectImages(rows, image(_channels=3), Resize("keep", 0, 0))
    rows[4][0].write_bytes(b"no image")
    loader = Loader(ImageDataset([images], [Show((8, 8), centre())], None), workers=workers)
    with pytest.raises(DataError) as caught:
        loaded(loader, cut(6, 2, plain))
    assert "0004.png" in caught.value.what
    assert caught.value.todo
    assert len(loaded(loader, cut(4, 2, plain))) == 2


class Deadly(ArrayImages):
    """Kills the process that asks for row 3."""

    def __getitem__(self, row: int) -> np.ndarray:
        if row == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


def test_a_killed_worker_is_an_error_with_a_remedy() -> None:
    loader = Loader(ImageDataset([Deadly(drawn(6))], [Show((8, 8), centre())], None), workers=1)
    with pytest.raises(KbenchError, match="loads images ended") as caught:
        loaded(loader, cut(6, 2, plain))
    assert "workers" in caught.value.todo


def test_loading_stays_in_this_process_on_a_cpu_and_uses_the_cores_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    assert auto_workers("auto", device="cpu") == 0
    assert auto_workers("auto", device="cuda") == 8
    assert auto_workers("auto", device="cuda", jobs=4) == 3
    assert auto_workers("auto", device="cuda", jobs=16) == 1
    assert auto_workers(5, device="cpu") == 5


def test_numbers_of_a_dense_regression_are_interpolated_as_the_image_is_and_classes_are_not() -> None:
    """A height map that is turned and zoomed has heights in between (TfmType.PIXEL, F-10)."""
    y, x = np.mgrid[0:24, 0:30]
    plane = (3 * y + x).astype(np.float32)[:, :, None]
    turned = Augmentation(lambda rng: Geometry(angle=20.0, zoom=0.9, flip=True))
    show = Show((16, 16), centre(), turned)
    shown, numbers = show(plane, np.random.default_rng(0), plane)
    assert numbers is not None
    np.testing.assert_array_equal(numbers, shown)
    _, classes = show(plane, np.random.default_rng(0), (plane > 60).astype(np.uint8) * 7)
    assert classes is not None
    assert classes.dtype == np.uint8
    assert set(np.unique(classes)) == {0, 7}


@pytest.mark.parametrize("shrunk", [False, True])
def test_a_number_is_unknown_where_its_nearest_pixel_is_and_no_unknown_one_is_mixed_in(shrunk: bool) -> None:
    numbers = np.full((24, 24, 1), 5.0, dtype=np.float32)
    numbers[10:14, 10:14] = np.nan
    size, window = ((8, 8), squash()) if shrunk else ((16, 16), centre())
    show = Show(size, window, Augmentation(lambda rng: Geometry(angle=13.0)))
    _, made = show(np.zeros((24, 24, 3), np.uint8), np.random.default_rng(0), numbers)
    _, near = show(np.zeros((24, 24, 3), np.uint8), np.random.default_rng(0), np.isnan(numbers).astype(np.uint8))
    assert made is not None
    assert near is not None
    unknown = np.isnan(made)
    assert 0 < unknown.mean() < 0.2
    np.testing.assert_array_equal(unknown, near == 1)
    np.testing.assert_allclose(made[~unknown], 5.0, rtol=1e-6)


def test_sparse_numbers_stay_as_dense_as_they_are() -> None:
    rng = np.random.default_rng(0)
    numbers = np.where(rng.random((64, 64, 2)) < 0.05, 7.0, np.nan).astype(np.float32)
    for size, window in (((32, 32), squash()), ((48, 48), centre())):
        show = Show(size, window, Augmentation(lambda rng: Geometry(angle=9.0)))
        _, made = show(np.zeros((64, 64, 3), np.uint8), rng, numbers)
        assert made is not None
        known = ~np.isnan(made)
        assert 0.03 < known.mean() < 0.07
        np.testing.assert_allclose(made[known], 7.0, rtol=1e-5)


def test_numbers_that_are_only_cut_and_turned_are_the_same_to_the_bit() -> None:
    numbers = np.random.default_rng(0).normal(size=(20, 20, 1)).astype(np.float32)
    numbers[::3, ::2] = np.nan
    show = Show((20, 20), centre(), Augmentation(lambda rng: Geometry(flip=True, turns=1)))
    _, made = show(np.zeros((20, 20, 3), np.uint8), np.random.default_rng(0), numbers)
    np.testing.assert_array_equal(made, np.rot90(numbers[:, ::-1]))
