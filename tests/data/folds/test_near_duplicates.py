from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_images import write_png
from fold_tables import make_table
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from streets_and_salt import write_street

from kbench.data.folds.folds import Cut, Folds, make_folds
from kbench.data.folds.near_duplicates import (
    NEAR,
    clusters,
    frame_numbers,
    frame_pairs,
    hash_images,
    leaks,
    links,
    near_pairs,
    perceptual_hash,
)
from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request

real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not on this machine")


def picture(seed: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(8, 10)).astype(np.float32)
    smooth = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 50 * smooth, 0, 255).astype(np.uint8)


def differ(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def hashed(root: Path, table) -> list[bytes]:
    return hash_images(table, folder=root / "cache", progress=lambda done, total: None)


def test_a_copy_is_near_and_another_image_is_far() -> None:
    for seed in range(10):
        image = picture(seed)
        small = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)
        noisy = np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape) + 12, 0, 255).astype(np.uint8)
        for copy in (small, noisy):
            assert differ(perceptual_hash(image), perceptual_hash(copy)) <= NEAR
        assert differ(perceptual_hash(image), perceptual_hash(picture(100 + seed))) > 2 * NEAR


def test_flat_and_tiny_images_say_nothing() -> None:
    assert perceptual_hash(np.full((64, 64), 9, dtype=np.uint8)) == b""
    assert perceptual_hash(np.full((64, 64), 900, dtype=np.uint16)) == b""
    assert perceptual_hash(picture(0, (31, 80))) == b""
    assert near_pairs([b"", b""]).shape == (0, 2)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 60), distance=st.integers(0, 15), flips=st.integers(0, 18))
def test_bands_find_what_comparing_all_finds(seed: int, count: int, distance: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2, (4, 128))
    bits = base[rng.integers(0, 4, count)]
    for row in bits:
        row[rng.choice(128, rng.integers(0, flips + 1), replace=False)] ^= 1
    hashes = [np.packbits(row.astype(np.uint8)).tobytes() for row in bits]
    first = {value: row for row, value in reversed(list(enumerate(hashes)))}
    expected = {
        (a, b) for a in range(count) for b in range(a + 1, count)
        if (hashes[a] == hashes[b] and first[hashes[b]] == a)
        or (hashes[a] != hashes[b] and first[hashes[a]] == a and first[hashes[b]] == b
            and differ(hashes[a], hashes[b]) <= distance)
    }  # fmt: skip
    assert set(map(tuple, near_pairs(hashes, distance=distance).tolist())) == expected


def test_clusters_are_what_pairs_connect() -> None:
    assert clusters(6, np.array([[4, 5], [1, 3], [3, 4]])).tolist() == [0, 1, 2, 1, 1, 1]


def test_the_last_number_of_an_id_is_its_frame() -> None:
    drives, numbers = frame_numbers(np.array(["0001TP_006690", "a/b12c", "none"]))
    assert drives.tolist() == ["0001TP_", "a/bc", "none"]
    assert numbers.tolist() == [6690, 12, -1]


def test_what_all_frames_share_behind_their_number_is_not_taken_for_it() -> None:
    names = ["aachen_000000_000019_leftImg8bit", "aachen_000000_000020_leftImg8bit", "ulm_000001_000019_leftImg8bit",
             "ulm_000001_000021_leftImg8bit",
             "frame_0001_L1", "frame_0001_R1", "frame_0002_L1"]  # fmt: skip
    drives, numbers = frame_numbers(np.array(names))
    assert numbers.tolist() == [19, 20, 19, 21, 1, 1, 2]
    assert len(set(drives.tolist())) == 4
    assert drives[0] == drives[1]
    assert drives[4] == drives[6] != drives[5]


def test_neighbouring_frames_are_linked_but_not_across_a_gap_or_to_other_pictures() -> None:
    names = ["a_01", "a_02", "a_03", "a_40", "b_01", "x"]
    image = perceptual_hash(picture(1))
    hashes = [image, image, perceptual_hash(picture(2)), perceptual_hash(picture(2)), image, image]
    assert frame_pairs(np.array(names), hashes).tolist() == [[0, 1]]


def test_folds_that_split_near_duplicates_are_warned_of(tmp_path: Path) -> None:
    for row in range(8):
        write_png(tmp_path / f"r{row:05d}.png", np.repeat(picture(row // 2)[:, :, None], 3, axis=2))
    table = make_table(rows=8, root=str(tmp_path), targets=[0, 1] * 4)
    pairs = links(table, hashed(tmp_path, table))
    assert clusters(8, pairs).tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    split = Folds(table.ids, np.array([0, 1, 0, 0, 1, 1, 0, -1]), None, None, {})
    [warning] = leaks(split, pairs)
    assert warning.startswith("3 of 7 rows have a near-duplicate")
    assert "'r00000', 'r00001', 'r00006'" in warning
    whole = Folds(table.ids, np.array([0, 0, 1, 1, 0, 0, 1, 1]), None, None, {})
    assert leaks(whole, pairs) == []
    avoid = np.zeros((8, 2), dtype=bool)
    avoid[[0, 1], [1, 0]] = avoid[7, 0] = True
    assert leaks(Folds(split.ids, split.fold, None, None, {}, avoid), pairs) == []


def test_frames_of_a_drive_become_one_cluster_and_blocks_with_a_gap_leak_less(tmp_path: Path) -> None:
    root = write_street(tmp_path, size=(96, 144), train={("Tokyo1", "day"): 24, ("Saitama", "morning"): 24})
    table = read_table("csv", {}, Request(root=root, split="test", task="single_label", images=("seg_train_images",)))
    pairs = links(table, hashed(tmp_path, table))
    found = clusters(48, pairs)
    assert len(np.unique(found)) < 10
    assert not set(found[:24]) & set(found[24:])

    def leaking(strategy: str, **options: object) -> int:
        warnings = leaks(make_folds(table, strategy, Cut(3, 0), options), pairs)
        return int(re.match(r"\d+", warnings[0])[0]) if warnings else 0  # type: ignore[index]

    counts = [leaking("kfold"), leaking("blocks"), leaking("blocks", gap=3)]
    assert counts[0] > counts[1] > counts[2]


@real_data
def test_photographs_are_told_apart_and_frames_are_not(tmp_path: Path) -> None:
    cats = read_table("csv", {}, Request(root=SHARED / "dogcat", split="test", task="single_label", images=("train",)))
    cats = cats.select(np.arange(600))
    assert len(np.unique(clusters(600, links(cats, hashed(tmp_path, cats))))) == 600
    frames = read_table(
        "csv", {}, Request(root=SHARED / "camvid", split="test", task="single_label", images=("train/images",))
    )
    assert len(np.unique(clusters(len(frames), links(frames, hashed(tmp_path, frames))))) < 0.6 * len(frames)
