from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_images import write_png

from kbench.data.images.cache import CachedImages, Resize
from kbench.data.masks.cache import DirectMasks, open_masks, sizes_of
from kbench.data.masks.kinds import index
from kbench.data.table.table import Table
from kbench.errors import DataError

KEEP = Resize("keep", 0, 0)


def table(root: Path, *, sizes: list[tuple[int, int]], mask_sizes: list[tuple[int, int]] | None = None) -> Table:
    """Return rows with images and masks of some sizes, class `row % 2` in the left half and 1 in the right one."""
    ids = [f"{row:02d}" for row in range(len(sizes))]
    for row, (size, mask_size) in enumerate(zip(sizes, mask_sizes or sizes, strict=True)):
        write_png(root / f"i/{ids[row]}.png", np.zeros((*size, 3), dtype=np.uint8))
        mask = np.ones((*mask_size, 1), dtype=np.uint8)
        mask[:, : mask_size[1] // 2] = row % 2
        write_png(root / f"m/{ids[row]}.png", mask)
    return Table(
        np.array(ids), root, tuple((f"i/{name}.png",) for name in ids), "segmentation", ("a", "b"),
        masks=tuple((f"m/{name}.png",) for name in ids),
    )  # fmt: skip


def opened(rows: Table, folder: Path, *, resize: Resize = KEEP, mode: str = "on", names: tuple[str, ...] = ("a", "b")):
    return open_masks(
        rows, kind=index(folder="m", _classes=names), kind_key="index", size_of=sizes_of(rows, None), resize=resize,
        folder=folder, mode=mode, progress=lambda done, total: None,
    )  # fmt: skip


@pytest.mark.parametrize("resize", [KEEP, Resize("cover", 6, 6), Resize("exact", 5, 9)])
def test_cached_masks_are_the_direct_ones_and_only_classes(tmp_path: Path, resize: Resize) -> None:
    rows = table(tmp_path, sizes=[(8, 10), (12, 9), (20, 30)])
    cached, direct = opened(rows, tmp_path / "cache", resize=resize), opened(rows, tmp_path, resize=resize, mode="off")
    assert isinstance(cached, CachedImages)
    assert isinstance(direct, DirectMasks)
    for row in range(3):
        assert cached[row].dtype == np.uint8
        np.testing.assert_array_equal(cached[row], direct[row])
        image = resize(np.zeros((*rows_size(rows, row), 3), dtype=np.uint8))
        assert cached[row].shape == (*image.shape[:2], 1)
        assert set(np.unique(cached[row])) <= {0, 1}


def rows_size(rows: Table, row: int) -> tuple[int, int]:
    return sizes_of(rows, None)(row)


def test_a_changed_mask_or_class_or_image_size_is_never_stale(tmp_path: Path) -> None:
    rows = table(tmp_path, sizes=[(8, 10), (8, 10)])
    assert opened(rows, tmp_path / "cache")[0][0, 0, 0] == 0
    write_png(tmp_path / "m/00.png", np.ones((8, 10, 1), dtype=np.uint8))
    assert opened(rows, tmp_path / "cache")[0][0, 0, 0] == 1
    opened(rows, tmp_path / "cache", names=("a", "b", "c"))
    assert len(list((tmp_path / "cache" / "images").glob("*.json"))) == 3
    write_png(tmp_path / "i/00.png", np.zeros((9, 10, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="is 8 x 10 pixels"):
        opened(rows, tmp_path / "cache")


def test_a_mask_of_another_size_than_its_image_is_an_error(tmp_path: Path) -> None:
    rows = table(tmp_path, sizes=[(8, 10), (8, 10)], mask_sizes=[(8, 10), (10, 8)])
    with pytest.raises(DataError, match=r"mask of 'i/01\.png' is 10 x 8 pixels") as caught:
        opened(rows, tmp_path / "cache")
    assert "8 x 10" in caught.value.expected
    assert not list((tmp_path / "cache").rglob("*.json.tmp"))


def test_sizes_come_from_the_header_or_from_a_reader(tmp_path: Path) -> None:
    rows = table(tmp_path, sizes=[(8, 10)])
    assert sizes_of(rows, None)(0) == sizes_of(rows, lambda paths: cv2.imread(str(paths[0])))(0) == (8, 10)
    (tmp_path / "i/00.png").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        sizes_of(rows, None)(0)
