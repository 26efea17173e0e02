from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbench.data.table.csv_files import other_columns
from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request
from kbench.errors import DataError


def write(root: Path) -> Path:
    (root / "i").mkdir()
    (root / "labels").mkdir()
    for name, route in (("a", "T1"), ("b", "T2")):
        (root / "i" / f"{name}.png").touch()
        about = {"attributes": {"route": route, "time": None}, "frame": 7}
        (root / "labels" / f"{name}.json").write_text(json.dumps(about))
    (root / "train.csv").write_text("id,label\nb.png,x\na.png,y\n")
    (root / "depths.csv").write_text("id,z\nc,9\nb,005\na,12\n")
    return root


def test_columns_come_from_other_tables_and_from_a_file_per_image(tmp_path: Path) -> None:
    params = {"join": ["depths.csv"], "annotations": "labels/{id}.json"}
    for given in ({"csv": "train.csv"}, {"task": "segmentation", "split": "test"}):
        request = Request(
            **{"root": write(tmp_path) if given.get("csv") else tmp_path, "split": "train", "task": "single_label",
               "images": ("i",), "metadata": ("z", "attributes.route", "frame"), **given},
        )  # type: ignore[arg-type]  # fmt: skip
        table = read_table("csv", params, request)
        assert table.column("z").tolist() == ["12", "005"]
        assert table.column("attributes.route").tolist() == ["T1", "T2"]
        assert table.column("frame").tolist() == ["7", "7"]


def test_rows_without_a_value_are_an_error_in_training_and_empty_in_a_test_split(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "depths.csv").write_text("id,z\nb,5\n")
    place = {"root": tmp_path, "images": ("i",), "task": "single_label", "metadata": ("z",)}
    with pytest.raises(DataError, match=r"depths\.csv: has nothing of 1 row: 'a'"):
        read_table("csv", {"join": ["depths.csv"]}, Request(split="train", csv="train.csv", **place))  # type: ignore[arg-type]
    test = read_table("csv", {"join": ["depths.csv"]}, Request(split="test", **place))  # type: ignore[arg-type]
    assert test.column("z").tolist() == ["", "5"]


def test_a_column_that_is_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    request = Request(tmp_path, "train", "single_label", csv="train.csv", images=("i",), metadata=("deep",))
    with pytest.raises(DataError, match="no column 'deep'"):
        read_table("csv", {"join": ["depths.csv"], "annotations": "labels/{id}.json"}, request)
    assert other_columns(tmp_path, ["a"], ["deep"], join=["depths.csv"], annotations="labels/{id}.json") == ({}, [])
