"""Images that stand in the data more than once; which ones is known from how the files are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_images import write_png

from kbench.data.folds.copies import contradictions, leaked, same_files, same_pixels, unknown_groups
from kbench.data.folds.folds import Folds
from kbench.data.folds.near_duplicates import Prints, copies, hash_images, leaks, links, near_pairs
from kbench.data.table.table import Table


def picture(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def table(root: Path, pictures: list[np.ndarray], *, first: str = "a", **targets: object) -> Table:
    """Write images; return their rows, of the classes cat and dog in turn unless told otherwise."""
    ids = [f"{first}{row:03d}" for row in range(len(pictures))]
    for name, image in zip(ids, pictures, strict=True):
        write_png(root / f"{name}.png", image)
    given = {"task": "single_label", "target_names": ("cat", "dog"), "targets": np.arange(len(ids)) % 2, **targets}
    return Table(np.array(ids), root, tuple((f"{name}.png",) for name in ids), **given)  # type: ignore[arg-type]


def looked_at(rows: Table) -> Prints:
    return hash_images(rows, folder=rows.root / "cache", progress=lambda done, total: None)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_copies_with_other_labels_and_in_the_test_set_are_named_at_every_size(tmp_path: Path, side: int) -> None:
    """The trial duplicates-opposite-labels."""
    images = [picture(row, side) for row in range(12)]
    images[1], images[4] = images[0], images[2]
    train = table(tmp_path, images)
    test = table(tmp_path, [images[9], picture(50, side)], first="t")
    prints = looked_at(train)
    assert copies(train, prints) == [[0, 1], [2, 4]]
    [warning] = contradictions(train, copies(train, prints))
    assert "'a000' (cat), 'a001' (dog)" in warning
    assert not any(f"a{row:03d}" in warning for row in range(2, 12))
    pairs = same_files(train, test)
    assert leaked(train, test, pairs) == [
        "1 test image equal to a training image (a leak, or a gift): 't000' is 'a009'"
    ]
    assert same_pixels(train, test, (prints.pixels, looked_at(test).pixels)) == [(9, 0)]
    assert {tuple(pair) for pair in links(train, prints).tolist()} == {(0, 1), (2, 4)}
    split = Folds(train.ids, np.arange(12) % 3, None, None, {})
    assert "'a000', 'a001', 'a002', 'a004'" in leaks(split, links(train, prints))[0]


def test_equal_grey_of_other_colours_is_no_copy(tmp_path: Path) -> None:
    one = np.full((16, 16, 3), (60, 60, 60), dtype=np.uint8)
    other = one.copy()
    one[4:8, 4:8], other[4:8, 4:8] = (200, 0, 0), (0, 0, 0)
    other[4:8, 4:8, 1] = 102  # as bright as that red
    train = table(tmp_path, [one, other, one])
    assert looked_at(train).pixels[0] == looked_at(train).pixels[1]
    assert copies(train, looked_at(train)) == [[0, 2]]


def test_pixels_are_equal_whatever_the_file(tmp_path: Path) -> None:
    train, test = table(tmp_path, [picture(1, 16)]), table(tmp_path, [picture(1, 16)], first="t")
    path = tmp_path / "t000.png"
    path.write_bytes(path.read_bytes() + b"more")
    assert same_files(train, test) == []
    assert same_pixels(train, test, (looked_at(train).pixels, looked_at(test).pixels)) == [(0, 0)]


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        ({"task": "multi_label", "targets": np.array([[1, 0], [0, 0]], dtype=np.float32)}, "(cat), 'a001' (no tag)"),
        ({"task": "regression", "targets": np.array([[1.5, 2], [1.5, np.nan]], dtype=np.float32)}, "(1.5, 2)"),
        ({"task": "segmentation", "targets": None, "masks": (("1 2",), ("",)), "encoded": True}, "'a000' (mask"),
        ({"task": "segmentation", "targets": None, "masks": (("a000.png",), ("none.png",))}, "'a001' (mask"),
    ],
)
def test_targets_of_every_task_are_held_against_each_other(
    tmp_path: Path, targets: dict[str, object], shown: str
) -> None:
    image = picture(1, 16)
    torn = table(tmp_path, [image, image], **targets)
    assert shown in contradictions(torn, [[0, 1]])[0]
    same = {**targets}
    for key in ("targets", "masks"):
        if same.get(key) is not None:
            values = same[key]
            same[key] = np.stack([values[0]] * 2) if key == "targets" else (values[0], values[0])  # type: ignore[index]
    assert contradictions(table(tmp_path, [image, image], **same), [[0, 1]]) == []


def test_images_of_one_grey_alone_are_not_linked_but_held_against_each_other(tmp_path: Path) -> None:
    black = np.zeros((40, 40, 3), dtype=np.uint8)
    train = table(tmp_path, [black, black, picture(1, 40)])
    prints = looked_at(train)
    assert links(train, prints).shape == (0, 2)
    assert "'a000' (cat), 'a001' (dog)" in contradictions(train, copies(train, prints))[0]


def test_what_cannot_be_looked_at_is_known(tmp_path: Path) -> None:
    train = table(tmp_path, [picture(1, 16), picture(2, 16)])
    (tmp_path / "a001.png").write_bytes(b"\x89PNG")
    assert looked_at(train).unseen().tolist() == [False, True]


@pytest.mark.parametrize("word", ["nan", "", "None", "N/A", " "])
def test_rows_without_a_group_are_named(tmp_path: Path, word: str) -> None:
    meta = pd.DataFrame({"patient": ["p0", word, word, "p1"]}, dtype=object)
    train = table(tmp_path, [picture(row, 8) for row in range(4)], meta=meta)
    [warning] = unknown_groups(train, "patient")
    assert warning.startswith("2 rows have no 'patient'")
    assert "'a001', 'a002'" in warning
    assert unknown_groups(train, None) == unknown_groups(train, "site") == []
    assert unknown_groups(train.select(np.array([0, 3])), "patient") == []


def test_copies_are_found_among_thousands_of_images_that_are_all_similar() -> None:
    """Bands tell nothing apart there; samples of bits do, and the work grows with the number of images."""
    rng, count = np.random.default_rng(0), 6000
    bits = rng.integers(0, 2, 128) ^ (rng.random((count, 128)) < 0.15)
    for row in range(200):
        copy = bits[row].copy()
        copy[rng.choice(128, (2, 6, 12)[row % 3], replace=False)] ^= 1
        bits[count - 1 - row] = copy
    hashes = [np.packbits(row.astype(np.uint8)).tobytes() for row in bits]
    found = set(map(tuple, near_pairs(hashes).tolist()))
    planted = [(row, count - 1 - row) in found for row in range(200)]
    assert all(planted[0::3])
    assert all(planted[1::3])
    assert np.mean(planted[2::3]) > 0.9
    assert all(int((bits[a] ^ bits[b]).sum()) <= 12 for a, b in found)
