from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_images import drawn, write_images, write_png

from kbench import files
from kbench.data.images import cache
from kbench.data.images.cache import (
    CachedImages,
    DirectImages,
    Resize,
    RowPaths,
    cache_entries,
    clear_cache,
    open_images,
)
from kbench.data.images.readers import image
from kbench.errors import DataError

KEEP = Resize("keep", 0, 0)


def opened(rows, folder: Path, *, resize: Resize = KEEP, channels: int = 3, mode="on", reader=None, key="image"):
    return open_images(
        rows, reader=reader or image(_channels=channels), reader_key=key, resize=resize, folder=folder, mode=mode,
        progress=lambda done, total: None,
    )  # fmt: skip


def pixels(images) -> list[np.ndarray]:
    return [np.array(images[row]) for row in range(len(images))]


def assert_equal(one, other) -> None:
    assert len(one) == len(other)
    for left, right in zip(pixels(one), pixels(other), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


class Counting:
    """A reader that counts."""

    def __init__(self, channels: int = 3) -> None:
        self.reads, self._read = 0, image(_channels=channels)

    def __call__(self, paths: Sequence[Path]) -> np.ndarray:
        self.reads += 1
        return self._read(paths)


@pytest.mark.parametrize("how", ["cover", "exact", "keep"])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (4, np.uint16)])
def test_the_cache_holds_what_decoding_gives(tmp_path: Path, how: str, channels: int, dtype: type) -> None:
    rows = write_images(tmp_path / "images", drawn(7, channels=channels, dtype=dtype))
    resize = Resize(how, 9, 6)
    cached = opened(rows, tmp_path / "cache", resize=resize, channels=channels)
    assert isinstance(cached, CachedImages)
    assert_equal(cached, DirectImages(rows, image(_channels=channels), resize))


def test_images_of_more_than_four_channels_are_cached_too(tmp_path: Path) -> None:
    bands = [write_images(tmp_path / str(band), drawn(5, channels=3)) for band in range(5)]
    rows = [tuple(path for (path,) in row) for row in zip(*bands, strict=True)]
    resize = Resize("exact", 4, 5)
    cached = opened(rows, tmp_path / "cache", resize=resize, channels=15)
    assert cached[0].shape == (4, 5, 15)
    assert_equal(cached, DirectImages(rows, image(_channels=15), resize))


def test_images_of_different_shapes_keep_them(tmp_path: Path) -> None:
    shapes = [(4, 7), (9, 3), (5, 5)]
    rows = write_images(tmp_path / "images", [drawn(1, size=size)[0] for size in shapes])
    assert [array.shape[:2] for array in pixels(opened(rows, tmp_path / "cache"))] == shapes


def test_a_second_opening_decodes_nothing(tmp_path: Path) -> None:
    rows, reader = write_images(tmp_path / "images", drawn(4)), Counting()
    opened(rows, tmp_path / "cache", reader=reader)
    before = reader.reads
    opened(rows, tmp_path / "cache", reader=reader)
    assert reader.reads == before


def changed_pixels(folder: Path, rows):
    write_png(rows[1][0], 255 - drawn(4)[1])
    return rows


def another_order(folder: Path, rows):
    return [rows[1], rows[0], *rows[2:]]


def fewer(folder: Path, rows):
    return rows[:-1]


def in_one_row(folder: Path, rows):
    return [(*rows[0], *rows[1]), *rows[2:]]


@pytest.mark.parametrize("change", [changed_pixels, another_order, fewer])
def test_changed_files_never_meet_stale_pixels(tmp_path: Path, change) -> None:
    rows = write_images(tmp_path / "images", drawn(4))
    opened(rows, tmp_path / "cache")
    rows = change(tmp_path, rows)
    assert_equal(opened(rows, tmp_path / "cache"), DirectImages(rows, image(_channels=3), KEEP))


def test_a_file_replaced_by_one_of_its_size_and_time_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "10.bmp", tmp_path / "20.bmp"
    for file in (path, other):
        cv2.imwrite(str(file), np.full((4, 4, 3), int(file.stem), np.uint8))
    rows = [(path,)]
    monkeypatch.setattr(cache, "_SETTLED_NS", -(10**12))  # as if the files were old: the memo is written
    opened(rows, tmp_path / "cache")
    stat = path.stat()
    assert stat.st_size == other.stat().st_size
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(rows, tmp_path / "cache")[0][0, 0, 0] == 20


def test_a_file_changed_twice_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images", [np.full((4, 4, 3), 10, np.uint8)])
    contents = [write_png(tmp_path / "other.png", np.full((4, 4, 3), v, np.uint8)).read_bytes() for v in (20, 30)]
    for content, value in zip(contents * 10, (20, 30) * 10, strict=True):
        rows[0][0].write_bytes(content)
        assert opened(rows, tmp_path / "cache")[0][0, 0, 0] == value


def test_old_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_images(tmp_path / "images", drawn(3))
    monkeypatch.setattr(cache, "_SETTLED_NS", -(10**12))
    first = cache.content_key(rows, tmp_path / "cache")
    (memo,) = (tmp_path / "cache" / "content").iterdir()
    assert files.read_json(memo) == {"content": first}
    files.write_json(memo, {"content": "remembered"})
    assert cache.content_key(rows, tmp_path / "cache") == "remembered"


@pytest.mark.parametrize(
    "other",
    [{"resize": Resize("exact", 5, 5)}, {"resize": Resize("cover", 5, 5)}, {"resize": Resize("exact", 5, 6)},
     {"key": ["another", "reader"]}],
)  # fmt: skip
def test_another_size_way_of_resizing_or_reader_has_a_cache_of_its_own(tmp_path: Path, other) -> None:
    rows = write_images(tmp_path / "images", drawn(3))
    opened(rows, tmp_path / "cache", resize=Resize("exact", 4, 4))
    opened(rows, tmp_path / "cache", **{"resize": Resize("exact", 4, 4), **other})
    assert len(cache_entries(tmp_path / "cache")) == 2


def test_the_same_files_under_other_names_share_a_cache(tmp_path: Path) -> None:
    images = drawn(3)
    for name in ("a", "b"):
        opened(write_images(tmp_path / name, images), tmp_path / "cache")
    assert len(cache_entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("suffix", [".bin", ".npy", ".json"])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_half_written_cache_does_not_exist(tmp_path: Path, suffix: str, damage: str) -> None:
    rows = write_images(tmp_path / "images", drawn(4))
    opened(rows, tmp_path / "cache")
    (found,) = (tmp_path / "cache" / "images").glob(f"*{suffix}")
    if damage == "missing":
        found.unlink()
    else:
        found.write_bytes(found.read_bytes()[:-3])
    assert not cache_entries(tmp_path / "cache")
    assert_equal(opened(rows, tmp_path / "cache"), DirectImages(rows, image(_channels=3), KEEP))


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images", drawn(4))
    opened(rows, tmp_path / "cache")
    (description,) = (tmp_path / "cache" / "images").glob("*.json")
    left = description.with_name(f".tmp-123-abcdef01-{description.stem}.bin")
    left.write_bytes(b"half")
    description.unlink()
    opened(rows, tmp_path / "cache")
    assert not left.exists()


def build_slowly(rows, folder: Path, log: Path) -> None:
    read = image(_channels=3)

    def slow(paths: Sequence[Path]) -> np.ndarray:
        time.sleep(0.002)
        files.append_line(log, paths[0].name)
        return read(paths)

    assert_equal(opened(rows, folder, reader=slow), DirectImages(rows, read, KEEP))


def test_two_processes_build_a_cache_once(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images", drawn(12))
    context = multiprocessing.get_context("spawn")
    both = [
        context.Process(target=build_slowly, args=(rows, tmp_path / "cache", tmp_path / "reads.txt")) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(files.read_lines(tmp_path / "reads.txt")) == 12 + 2  # and the first image for its dtype, twice


def test_a_cache_travels_to_another_process_as_a_path(tmp_path: Path) -> None:
    cached = opened(write_images(tmp_path / "images", drawn(50)), tmp_path / "cache")
    cached[0]
    sent = pickle.dumps(cached)
    assert len(sent) < 2000
    assert_equal(pickle.loads(sent), cached)


def test_cached_pixels_cannot_be_written_to(tmp_path: Path) -> None:
    cached = opened(write_images(tmp_path / "images", drawn(2)), tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        cached[0][0, 0, 0] = 1


@pytest.mark.parametrize("mode", ["on", "off"])
def test_images_of_two_dtypes_are_an_error_cached_or_not(tmp_path: Path, mode: str) -> None:
    rows = write_images(tmp_path / "images", [drawn(1)[0], drawn(1, dtype=np.uint16)[0]])
    with pytest.raises(DataError, match=r"0001\.png.*uint16"):
        pixels(opened(rows, tmp_path / "cache", mode=mode))


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_dtype_that_cannot_be_resized_is_an_error(tmp_path: Path, mode: str) -> None:
    rows = write_images(tmp_path / "images", drawn(2))
    with pytest.raises(DataError, match="int64"):
        opened(rows, tmp_path / "cache", mode=mode, reader=lambda paths: image(_channels=3)(paths).astype(np.int64))


def test_an_unreadable_image_leaves_no_cache_and_no_rubbish(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images", drawn(5))
    rows[3][0].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0003\.png"):
        opened(rows, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "images").iterdir()] == [".lock"]


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images", drawn(3))
    rows[1][0].unlink()
    with pytest.raises(DataError, match=r"0001\.png"):
        opened(rows, tmp_path / "cache")


def test_without_room_images_are_decoded_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_images(tmp_path / "images", drawn(4))
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: used._replace(free=2 * 4 * drawn(1)[0].nbytes))
    assert isinstance(opened(rows, tmp_path / "cache", mode="auto"), DirectImages)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: used._replace(free=10**9))
    assert isinstance(opened(rows, tmp_path / "cache", mode="auto"), CachedImages)


def test_a_full_disk_is_an_error_in_three_parts_and_loses_nothing(tmp_path: Path) -> None:
    small = write_images(tmp_path / "small", drawn(3))
    opened(small, tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache" / "images").iterdir()}
    large = write_images(tmp_path / "large", drawn(60, size=(40, 40)))
    program = f"""
import resource, sys
sys.path[:0] = {[*sys.path, str(Path(__file__).parent)]!r}
from pathlib import Path
from test_cache import opened
from kbench.errors import KbenchError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rows = [(path,) for path in sorted(Path({str(tmp_path / "large")!r}).iterdir())]
try:
    opened(rows, Path({str(tmp_path / "cache")!r}))
except KbenchError as error:
    assert "cannot write" in error.what and error.expected and error.todo
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "cache" / "images").iterdir()}
    assert {name: after[name] for name in before} == before
    assert {Path(name).suffix for name in set(after) - set(before)} == {".lock"}
    assert_equal(opened(large, tmp_path / "cache"), DirectImages(large, image(_channels=3), KEEP))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_clearing_removes_everything_and_says_how_much(tmp_path: Path) -> None:
    opened(write_images(tmp_path / "images", drawn(3)), tmp_path / "cache")
    (entry,) = cache_entries(tmp_path / "cache")
    assert (entry.rows, entry.resize) == (3, ["keep", 0, 0])
    assert clear_cache(tmp_path / "cache") >= entry.bytes
    assert not cache_entries(tmp_path / "cache")
    assert clear_cache(tmp_path / "cache") == 0


def test_paths_are_joined_when_they_are_asked_for() -> None:
    rows = RowPaths(Path("root"), [("a.png", "b/c.png"), ("d.png",)])
    assert list(rows) == [(Path("root/a.png"), Path("root/b/c.png")), (Path("root/d.png"),)]
    assert len(rows) == 2


def test_resizing_covers_the_size_and_keeps_the_aspect() -> None:
    assert Resize("cover", 8, 8)(drawn(1, size=(16, 24))[0]).shape[:2] == (8, 12)
    assert Resize("cover", 8, 16)(drawn(1, size=(16, 16))[0]).shape[:2] == (16, 16)
    assert Resize("exact", 8, 16)(drawn(1, size=(16, 16))[0]).shape[:2] == (8, 16)
    assert Resize("keep", 8, 16)(drawn(1, size=(5, 7))[0]).shape[:2] == (5, 7)


def test_an_image_that_fits_is_not_touched() -> None:
    pixels_ = drawn(1, size=(8, 8))[0]
    assert Resize("cover", 8, 8)(pixels_) is pixels_


@pytest.mark.parametrize("part", [".bin", ".npy"])
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "noise"])
def test_damaged_pixels_and_indices_are_found_and_made_anew(
    tmp_path: Path, part: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_images(tmp_path / "images", drawn(6))
    expected = pixels(opened(rows, tmp_path / "cache"))
    (file,) = (tmp_path / "cache" / "images").glob(f"*{part}")
    content = bytearray(file.read_bytes())
    times = file.stat()
    if how == "flipped":
        content[len(content) // 2] ^= 0x55
    damaged = {"flipped": bytes(content), "cut": bytes(content[:-3]), "emptied": b"", "noise": bytes(len(content))}[how]
    file.write_bytes(damaged)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = opened(rows, tmp_path / "cache")
    for left, right in zip(pixels(again), expected, strict=True):
        np.testing.assert_array_equal(left, right)
    assert "is damaged: it is made anew" in " ".join(capsys.readouterr().err.split())


def test_a_whole_cache_is_read_through_once_and_then_known_by_its_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_images(tmp_path / "images", drawn(6))
    opened(rows, tmp_path / "cache")
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    opened(rows, tmp_path / "cache")
    read: list[Path] = []
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path) or "")  # type: ignore[func-returns-value]
    opened(rows, tmp_path / "cache")
    assert read == []


def test_a_description_without_what_it_should_say_counts_as_none(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images", drawn(6))
    expected = pixels(opened(rows, tmp_path / "cache"))
    (path,) = (tmp_path / "cache" / "images").glob("*.json")
    known = files.read_json(path)
    files.write_json(path, {"files": known["files"]})
    assert cache_entries(tmp_path / "cache") == []
    for left, right in zip(pixels(opened(rows, tmp_path / "cache")), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_an_index_that_breaks_after_it_was_checked_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    images = opened(write_images(tmp_path / "images", drawn(6)), tmp_path / "cache")
    next((tmp_path / "cache" / "images").glob("*.npy")).write_bytes(b"junk")
    with pytest.raises(DataError, match="kbench cache --clear"):
        images[0]


def test_a_damaged_memo_is_made_again(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images", drawn(3))
    time.sleep(2.1)  # younger files are not remembered
    key = cache.content_key(rows, tmp_path / "cache")
    for memo in (tmp_path / "cache").rglob("*.json"):
        memo.write_text("{")
    assert cache.content_key(rows, tmp_path / "cache") == key


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, what: str) -> None:
    rows = write_images(tmp_path / "images", drawn(3))
    rows[1][0].unlink()
    rows[1][0].mkdir() if what == "folder" else os.mkfifo(rows[1][0])
    with pytest.raises(DataError, match=f"it is a {what}"):
        opened(rows, tmp_path / "cache")
    with pytest.raises(DataError, match=f"it is a {what}"):
        opened(rows, tmp_path / "cache", mode="off")[1]
