from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbench.data.table.joins import other_columns
from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request
from kbench.errors import DataError, raise_all


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


def joined(root: Path, ids: list[str], text: str) -> list[str]:
    """Return the values of the column `z` of a joined table."""
    (root / "meta.csv").write_text(text)
    found, problems = other_columns(root, ids, ["z"], join=["meta.csv"], annotations=None)
    raise_all(problems, error=DataError, subject="rows", expected="", todo="")
    return list(found["z"])


def test_a_key_that_stands_twice_with_other_values_is_refused_with_both(tmp_path: Path) -> None:
    """The trial join-repeated-id: the last row does not win."""
    text = "id,z,note\na000,p0,x\na001,p0,y\na018,p9,x\na000,p9,x\n"
    with pytest.raises(DataError, match=r"meta\.csv: 1 id with several values: 'a000' has 'p0', 'p9' in 'z'"):
        joined(tmp_path, ["a000", "a001", "a018"], text)
    assert joined(tmp_path, ["a001", "a018"], text) == ["p0", "p9"]  # nothing asks for a000


def test_a_key_that_stands_twice_with_the_same_value_passes(tmp_path: Path) -> None:
    assert joined(tmp_path, ["a", "b"], "id,z,note\na,1,x\nb,2,y\na.png,1,z\n") == ["1", "2"]


def test_names_that_only_their_endings_tell_apart_get_each_what_is_theirs(tmp_path: Path) -> None:
    """The kind of the trial same-stem."""
    assert joined(tmp_path, ["x.jpg", "x.png", "y.png"], "id,z\nx.png,1\nx.jpg,2\ny,3\n") == ["2", "1", "3"]
    with pytest.raises(DataError, match=r"told apart by them: 'x\.jpg', 'x\.png'"):
        joined(tmp_path, ["x.jpg", "x.png"], "id,z\nx,1\n")
    with pytest.raises(DataError, match="'x' has '1', '2'"):
        joined(tmp_path, ["x"], "id,z\nx.png,1\nx.jpg,2\n")
    (tmp_path / "x.json").write_text("{}")
    problems = other_columns(tmp_path, ["x.jpg", "x.png"], ["z"], join=(), annotations="{id}.json")[1]
    assert "told apart" in problems[0].what
