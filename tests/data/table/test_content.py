from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from drawn_images import drawn, write_png

from kbench.data.table.content import Content
from kbench.data.table.table import Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Rows with two images and a mask each."""
    pixels = drawn(12)
    for row in range(4):
        write_png(tmp_path / "data" / f"a{row}.png", pixels[row])
        write_png(tmp_path / "data" / f"b{row}.png", pixels[row + 4])
        write_png(tmp_path / "data" / f"m{row}.png", pixels[row + 8][:, :, :1])
    rows = range(4)
    return Table(
        np.array([f"r{row}" for row in rows]), tmp_path / "data", tuple((f"a{row}.png", f"b{row}.png") for row in rows),
        "segmentation", ("x",), masks=tuple((f"m{row}.png",) for row in rows),
    )  # fmt: skip


def kept(table: Table, folder: Path, *, exact: bool) -> tuple[Content, dict, Path]:
    content = Content(table, folder / "cache", exact=exact)
    return content, content.keep(folder / "content.json"), folder / "content.json"


def again(table: Table, folder: Path, *, exact: bool) -> Content:
    return Content(table, folder / "cache", exact=exact)


@pytest.mark.parametrize("name", ["a1.png", "b2.png", "m3.png"])
def test_a_file_that_changed_under_its_name_is_named(table: Table, tmp_path: Path, name: str) -> None:
    _, known, path = kept(table, tmp_path, exact=True)
    assert again(table, tmp_path, exact=True).changes(known, path) == []
    before = table.root / name
    content, times = before.read_bytes(), before.stat()
    write_png(before, 255 - drawn(3)[0][:, :, : 1 if name[0] == "m" else 3])
    os.utime(before, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert again(table, tmp_path, exact=True).changes(known, path) == [f"  1 file changed: '{name}'"]
    before.write_bytes(content)
    assert again(table, tmp_path, exact=True).changes(known, path) == []


def test_files_that_come_and_go_are_named(table: Table, tmp_path: Path) -> None:
    _, known, path = kept(table, tmp_path, exact=True)
    fewer = table.select(np.array([0, 2, 3]))
    (line,) = again(fewer, tmp_path, exact=True).changes(known, path)
    assert line == "  3 files not there any more: 'a1.png', 'b1.png', 'm1.png'"
    _, known, path = kept(fewer, tmp_path, exact=True)
    (line,) = again(table, tmp_path, exact=True).changes(known, path)
    assert line == "  3 files new: 'a1.png', 'b1.png', 'm1.png'"


def test_an_exchange_of_two_files_is_a_change(table: Table, tmp_path: Path) -> None:
    _, known, path = kept(table, tmp_path, exact=True)
    one, other = (table.root / "a0.png"), (table.root / "a1.png")
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    assert again(table, tmp_path, exact=True).changes(known, path) == ["  2 files changed: 'a0.png', 'a1.png'"]


def test_without_reading_only_sizes_count(table: Table, tmp_path: Path) -> None:
    _, known, path = kept(table, tmp_path, exact=False)
    assert again(table, tmp_path, exact=False).changes(known, path) == []
    assert again(table, tmp_path, exact=True).changes(known, path) == [], "the cache may be switched between folds"
    with open(table.root / "a1.png", "ab") as file:
        file.write(b"more")
    for exact in (False, True):
        assert again(table, tmp_path, exact=exact).changes(known, path) == ["  1 file changed: 'a1.png'"]


def test_switching_the_cache_off_compares_what_is_known_of_both(table: Table, tmp_path: Path) -> None:
    _, known, path = kept(table, tmp_path, exact=True)
    assert again(table, tmp_path, exact=False).changes(known, path) == []
    (table.root / "b0.png").write_bytes(b"short")
    assert again(table, tmp_path, exact=False).changes(known, path) == ["  1 file changed: 'b0.png'"]


def test_a_lost_list_does_not_hide_a_change(table: Table, tmp_path: Path) -> None:
    _, known, path = kept(table, tmp_path, exact=True)
    path.unlink()
    assert again(table, tmp_path, exact=True).changes(known, path) == []
    (table.root / "b0.png").write_bytes(b"short")
    assert again(table, tmp_path, exact=True).changes(known, path) == ["  which ones is not known"]


def test_runs_of_earlier_versions_say_nothing_of_their_files(table: Table, tmp_path: Path) -> None:
    assert again(table, tmp_path, exact=True).changes(None, tmp_path / "none") == []
