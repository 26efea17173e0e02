from __future__ import annotations

import io
import struct
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import SHARED

from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request
from kbench.data.table.table import Table
from kbench.data.table.verify import (
    channel_warnings,
    image_sizes,
    look,
    look_at_images,
    unreadable_images,
    without_unreadable,
)
from kbench.errors import DataError


def quiet(what: str, done: int, total: int) -> None:
    pass


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def make(root: Path, **files: bytes) -> Table:
    """Return a table of files whose names have `__` for the dot."""
    names = sorted(name.replace("__", ".") for name in files)
    for name, content in files.items():
        (root / name.replace("__", ".")).write_bytes(content)
    return Table(np.array(names), root, tuple((name,) for name in names), "single_label", ())


def encoded(suffix: str, height: int = 40, width: int = 60) -> bytes:
    return bytes(cv2.imencode(suffix, noise(height, width))[1])


def tiff(bands: int, *, cut: int = 0) -> bytes:
    """Return a little TIFF of more bands than photographs have, written tag by tag."""
    data = bytes(8 * 6 * bands)
    tags = [(256, 6), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, bands), (278, 8), (279, len(data))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<2H2L", tag, 4, 1, value) for tag, value in tags)
    body = struct.pack("<2sHL", b"II", 42, 8 + len(data)) + data + directory + bytes(4)
    if cut:  # the directory first, so that the pixels are what is missing
        tags[5] = (273, 8 + len(directory) + 4)
        directory = struct.pack("<H", 9) + b"".join(struct.pack("<2H2L", tag, 4, 1, value) for tag, value in tags)
        body = struct.pack("<2sHL", b"II", 42, 8) + directory + bytes(4) + data[:-cut]
    return body


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_sizes_are_read_from_the_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix))
    assert look(path, deep=False) == look(path, deep=True) == (40, 60, 3)


def test_channels_are_what_a_reader_gets(tmp_path: Path) -> None:
    for mode, channels in (("L", 1), ("1", 1), ("P", 3), ("RGB", 3), ("RGBA", 4), ("I;16", 1)):
        path = tmp_path / f"{mode.replace(';', '')}.png"
        Image.new(mode, (5, 7)).save(path)
        assert look(path, deep=True) == (7, 5, channels)


def test_many_band_tiffs_and_arrays_are_understood(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(11))
    np.save(tmp_path / "b.npy", np.zeros((8, 6, 4), np.float32))
    np.save(tmp_path / "c.npy", np.zeros((8, 6), np.uint16))
    np.save(tmp_path / "d.npy", np.zeros(3))
    assert look(tmp_path / "a.tif", deep=True) == (8, 6, 11)
    assert look(tmp_path / "b.npy", deep=True) == (8, 6, 4)
    assert look(tmp_path / "c.npy", deep=True) == (8, 6, 1)
    assert look(tmp_path / "d.npy", deep=True) == "of neither shape, [H, W] or [H, W, C]"


def test_every_kind_of_fault_is_counted_and_named(tmp_path: Path) -> None:
    jpeg, png = encoded(".jpg", 200, 200), encoded(".png", 200, 200)
    table = make(
        tmp_path,
        a__jpg=jpeg,
        b__jpg=jpeg[: len(jpeg) // 2],
        c__png=png[: len(png) // 2],
        d__png=b"",
        e__png=b"<html>sign in</html>",
        f__tif=tiff(11, cut=50),
    )
    (tmp_path / "a.jpg").rename(tmp_path / "moved")
    found = {problem.what for problem in unreadable_images(table, jobs=2, progress=quiet, deep=True)}
    assert found == {
        "1 file missing: 'a.jpg'",
        "3 files truncated: 'b.jpg', 'c.png', 'f.tif'",
        "1 file empty: 'd.png'",
        "1 file of no known image format: 'e.png'",
    }


def test_truncated_files_are_found_by_decoding_alone(tmp_path: Path) -> None:
    jpeg = encoded(".jpg", 200, 200)
    table = make(tmp_path, a__jpg=jpeg[: len(jpeg) // 2])
    assert unreadable_images(table, progress=quiet) == []
    assert len(unreadable_images(table, progress=quiet, deep=True)) == 1


def test_rows_with_a_bad_image_or_mask_can_be_left_out(tmp_path: Path) -> None:
    good = encoded(".png")
    table = make(tmp_path, a__png=good, b__png=b"bad", c__png=good)
    (tmp_path / "m.png").write_bytes(good)
    (tmp_path / "n.png").write_bytes(b"bad")
    masked = Table(**{**table.__dict__, "masks": (("m.png",), ("m.png", ""), ("m.png", "n.png"))})
    report = look_at_images(masked, progress=quiet)
    left = without_unreadable(masked, report)
    assert left.ids.tolist() == ["a.png"]
    assert left.notes == ("left out 2 of 3 rows, with an unreadable image: 'b.png', 'c.png'",)
    assert without_unreadable(left, look_at_images(left, progress=quiet)) is left


def test_no_readable_image_at_all_is_an_error(tmp_path: Path) -> None:
    table = make(tmp_path, a__png=b"bad")
    with pytest.raises(DataError, match="no row is left"):
        without_unreadable(table, look_at_images(table, progress=quiet))


def test_sizes_are_counted_whatever_the_number_of_threads(tmp_path: Path) -> None:
    contents = {f"n{number}__png": encoded(".png", 10 + number % 3, 20) for number in range(200)}
    table = make(tmp_path, **contents)
    expected = Counter({(10, 20, 3): 67, (11, 20, 3): 67, (12, 20, 3): 66})
    assert image_sizes(table, jobs=1, progress=quiet) == image_sizes(table, jobs=8, progress=quiet) == expected


def test_progress_reaches_the_number_of_files(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    table = make(tmp_path, **{f"n{number}__png": encoded(".png") for number in range(100)})
    look_at_images(table, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("check images", 100, 100)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    look_at_images(make(tmp_path, a__png=encoded(".png")), progress=quiet)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == (limit, filters)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([".png", ".jpg", ".bmp", ".tif", ".webp"]), st.data())
def test_no_damage_raises(suffix: str, data: st.DataObject) -> None:
    content = bytearray(encoded(suffix, 12, 12) if data.draw(st.booleans()) else tiff(5))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        table = make(Path(folder), **{f"a__{suffix[1:]}": bytes(content[: data.draw(st.integers(1, len(content)))])})
        report = look_at_images(table, jobs=1, progress=quiet, deep=True)
        assert len(report.rows) + sum(report.sizes.values()) == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not on this machine")
def test_real_photographs_and_satellite_images_are_readable() -> None:
    dogs = read_table("csv", {}, Request(SHARED / "dogbreed", "test", "single_label", images=("test",)))
    assert unreadable_images(dogs, progress=quiet, deep=True) == []
    request = Request(SHARED / "s2_dense_regression", "test", "dense_regression", images=("test_features",))
    assert set(image_sizes(read_table("csv", {}, request), progress=quiet)) == {(64, 64, 2), (64, 64, 11)}


def pages(suffix: str, *, frames: int = 2, **options: Any) -> bytes:
    """Return an image of several pages or frames."""
    file, size = io.BytesIO(), (24, 16)
    first, *rest = [Image.new("RGB", size, (40 * number, 80, 120)) for number in range(frames)]
    first.save(file, format=suffix, save_all=True, append_images=rest, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["TIFF", "GIF", "PNG", "WEBP", "AVIF"])
def test_files_of_several_pages_or_frames_are_said_to_be(tmp_path: Path, suffix: str) -> None:
    table = make(tmp_path, many__png=pages(suffix), more__png=pages(suffix, frames=5), one__png=pages(suffix, frames=1))
    warnings = look_at_images(table, progress=quiet).warnings()
    assert len(warnings) == 1
    assert warnings[0].startswith("2 files have several pages or frames, of which the first alone is read: 'many.png'")


def test_overviews_of_a_tiff_are_no_pages(tmp_path: Path) -> None:
    content = bytearray(pages("TIFF"))
    table = make(tmp_path, a__tif=bytes(content))
    (first,) = struct.unpack("<L", content[4:8])
    (tags,) = struct.unpack("<H", content[first : first + 2])
    (second,) = struct.unpack("<L", content[first + 2 + 12 * tags : first + 6 + 12 * tags])
    content[second + 2 : second + 14] = struct.pack("<2H2L", 254, 4, 1, 1)  # reduced resolution, in place of the width
    (tmp_path / "a.tif").write_bytes(bytes(content))
    assert look_at_images(table, progress=quiet).warnings() == []


@pytest.mark.parametrize(("train", "test", "said"), [(3, 1, True), (1, 3, True), (3, 3, False), (1, 1, False)])
def test_a_grey_test_set_of_a_training_set_in_colours_is_said(
    tmp_path: Path, train: int, test: int, said: bool
) -> None:
    reports = []
    for name, channels in (("train", train), ("test", test)):
        content = bytes(cv2.imencode(".png", noise(8, 8, channels))[1])
        (tmp_path / name).mkdir()
        reports.append(look_at_images(make(tmp_path / name, a__png=content, b__png=content), progress=quiet))
    warnings = channel_warnings(*reports)
    assert bool(warnings) == said
    assert all("channels: 1" in text for text in warnings)


def test_grey_images_among_others_in_colours_are_nothing_to_say(tmp_path: Path) -> None:
    grey, colours = (bytes(cv2.imencode(".png", noise(8, 8, channels))[1]) for channels in (1, 3))
    mixed = look_at_images(make(tmp_path, a__png=grey, b__png=colours), progress=quiet)
    assert channel_warnings(mixed, look_at_images(make(tmp_path, a__png=grey), progress=quiet)) == []
