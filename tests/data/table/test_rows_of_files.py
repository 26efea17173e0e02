"""Rows of several files: patterns with ids and dates, files that are not there, dates nobody named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request
from kbench.errors import DataError

FILES = {"S1": "{id}_S1_{date}.tif", "S2": "{id}_S2_{date}.tif", "dem": "dem/{id}.tif"}
DATES = ("00", "01")


def folder(root: Path, *, ids: tuple[str, ...] = ("a", "b"), without: tuple[str, ...] = ()) -> Path:
    (root / "images" / "dem").mkdir(parents=True)
    for name in ids:
        for path in (
            f"{name}_S1_00.tif",
            f"{name}_S1_01.tif",
            f"{name}_S2_00.tif",
            f"{name}_S2_01.tif",
            f"dem/{name}.tif",
        ):
            if path not in without:
                (root / "images" / path).write_bytes(b"x")
    (root / "train.csv").write_text("id,value\n" + "".join(f"{name},1.5\n" for name in ids))
    return root


def table(root: Path, *, split: Any = "train", **more: Any) -> Any:
    asked: dict[str, Any] = {
        "csv": "train.csv" if split == "train" else None,
        "target": ("value",) if split == "train" else (),
    }
    asked |= {"images": ("images",), "files": FILES, **more}
    request = Request(root=root, split=split, task="regression", dates=DATES, **asked)
    return read_table("csv", {}, request)


def test_the_paths_of_a_row_are_in_the_order_of_its_channels(tmp_path: Path) -> None:
    assert table(folder(tmp_path)).images[1] == (
        "images/b_S1_00.tif", "images/b_S2_00.tif", "images/b_S1_01.tif", "images/b_S2_01.tif", "images/dem/b.tif",
    )  # fmt: skip


def test_a_file_that_is_not_there_is_an_error_drops_its_row_or_is_unknown(tmp_path: Path) -> None:
    root = folder(tmp_path, without=("a_S2_01.tif",))
    with pytest.raises(DataError, match=r"1 missing file: 'images/a_S2_01\.tif'.*missing: mask"):
        table(root)
    dropped = table(root, missing="drop")
    assert dropped.ids.tolist() == ["b"]
    assert "left out 1 of 2 rows, without all of its files: 'a'" in dropped.notes[-1]
    masked = table(root, missing="mask")
    assert masked.images[0][3] == ""
    assert masked.images[0][2] == "images/a_S1_01.tif"
    assert masked.notes == ("train: 1 of 4 'S2' files are not there and are masked, most of 01 (1)",)


def test_a_row_without_any_file_is_an_error_or_left_out(tmp_path: Path) -> None:
    every = tuple(f"a_{file}_{date}.tif" for file in ("S1", "S2") for date in DATES)
    root = folder(tmp_path, without=(*every, "dem/a.tif"))
    with pytest.raises(DataError, match="1 row without any file: 'a'"):
        table(root, missing="mask")
    assert table(root, missing="mask", on_problem="drop").ids.tolist() == ["b"]


def test_a_date_that_the_yaml_does_not_have_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "images" / "a_S1_07.tif").write_bytes(b"x")
    (note,) = table(root).notes
    assert "files of 1 date that `input.dates` does not have are not read: 07 ('a_S1_07.tif')" in note


def test_a_test_set_without_a_table_has_the_ids_of_its_files(tmp_path: Path) -> None:
    root = folder(tmp_path, ids=("a", "a_b"))
    assert table(root, split="test").ids.tolist() == ["a", "a_b"]
    short = table(root, split="test", files={"P": "{id}_S1_00.tif", "Q": "{id}_S2_{date}.tif"})
    assert [len(paths) for paths in short.images] == [3, 3]


def test_several_folders_beside_patterns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 folders beside `input\.files`"):
        table(folder(tmp_path), images=("images", "more"))


def test_tables_select_and_keep_unknown_paths(tmp_path: Path) -> None:
    root = folder(tmp_path, without=("b_S1_00.tif",))
    found = table(root, missing="mask").select(np.array([1]))
    assert found.images[0][0] == ""
