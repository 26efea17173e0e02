from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from rows_on_disk import problems_of, read, write

from kbench import registry
from kbench.data.masks.kinds import index
from kbench.data.table.table import Table
from kbench.errors import DataError

real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not on this machine")
Read = Callable[..., Table]


PETS = "id,label\n0012,dog\n0003,cat\n7,dog\n"
PET_FILES = ["train/0012.png", "train/0003.png", "train/7.png"]


def test_rows_are_sorted_by_id_and_ids_stay_text(tmp_path: Path) -> None:
    table = read(write(tmp_path, PETS, PET_FILES), csv="train.csv", images=("train",))
    assert table.ids.tolist() == ["0003", "0012", "7"]
    assert table.images == (("train/0003.png",), ("train/0012.png",), ("train/7.png",))
    assert table.target_names == ("cat", "dog")
    assert table.targets is not None
    assert table.targets.tolist() == [0, 1, 1]
    assert table.targets.dtype == np.int64


def test_the_order_of_the_rows_in_the_file_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path, PETS, PET_FILES)
    first = read(tmp_path, csv="train.csv", images=("train",)).fingerprint()
    header, *rows = PETS.splitlines()
    write(tmp_path, "\n".join([header, *reversed(rows)]), [])
    assert read(tmp_path, csv="train.csv", images=("train",)).fingerprint() == first


@pytest.mark.parametrize("text", ["\ufeff" + PETS, PETS.replace("\n", "\r\n"), PETS.replace("dog", '"dog"')])
def test_byte_order_marks_line_ends_and_quotes_change_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, "", PET_FILES)
    (tmp_path / "train.csv").write_bytes(text.encode())
    assert read(tmp_path, csv="train.csv", images=("train",)).target_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("ids", "files", "suffix"),
    [
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"], None),
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"], ""),
        (["a", "b"], ["a.jpg", "b.jpg"], None),
        (["a", "b"], ["a.jpg", "b.jpg"], ".jpg"),
        (["a", "b"], ["a.jpg", "b.PNG", "notes.txt"], None),
        (["a", "b"], ["a_S2.tif", "a_S1.tif", "b_S2.tif"], "_S2.tif"),
        (["x/a", "y/b"], ["x/a.jpg", "y/b.jpg"], None),
        (["x/a.png", "y/b.png"], ["x/a.png", "y/b.png"], None),
        (["a.v1", "b.v2"], ["a.v1.jpg", "b.v2.jpg"], None),
        (["a", "b"], ["a.dcm", "b.dcm"], None),
        (["1", "2"], ["1.jpg", "2.jpg", "3.jpg"], None),
    ],
)
def test_images_are_found_with_and_without_a_suffix(
    tmp_path: Path, ids: list[str], files: list[str], suffix: str | None
) -> None:
    write(tmp_path, f"id,label\n{ids[0]},x\n{ids[1]},y\n", [f"train/{file}" for file in files])
    table = read(tmp_path, csv="train.csv", images=("train",), suffix=suffix)
    assert all((tmp_path / path).is_file() for (path,) in table.images)
    assert [path.startswith(f"train/{name}") for name, (path,) in zip(table.ids, table.images, strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize("images", [(), (".",), ("",)])
def test_images_may_lie_beside_the_csv(tmp_path: Path, images: tuple[str, ...]) -> None:
    write(tmp_path, "id,label\nsome/a,x\nsome/b,y\n", ["some/a.jpg", "some/b.jpg"])
    assert read(tmp_path, csv="train.csv", images=images).images == (("some/a.jpg",), ("some/b.jpg",))


def test_several_folders_give_several_images_a_row(tmp_path: Path) -> None:
    write(tmp_path, "id,label\na,x\nb,y\n", ["red/a.tif", "red/b.tif", "near/a.tif", "near/b.tif"])
    table = read(tmp_path, csv="train.csv", images=("red", "near"))
    assert table.images == (("red/a.tif", "near/a.tif"), ("red/b.tif", "near/b.tif"))


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    write(tmp_path, "label,height,name,site\nx,3,a,P1\ny,4,b,P2\n", ["train/a.png", "train/b.png"])
    table = read(
        tmp_path,
        csv="train.csv",
        images=("train",),
        id="name",
        target=("height",),
        task="regression",
        metadata=("site",),
    )
    assert table.ids.tolist() == ["a", "b"]
    assert table.target_names == ("height",)
    assert table.column("site").tolist() == ["P1", "P2"]


def test_every_wrong_column_is_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, PETS, PET_FILES)
    with pytest.raises(DataError) as caught:
        read(tmp_path, csv="train.csv", id="Id", target=("labels",), metadata=("site",), where={"fold": "1"})
    assert [line.split(":")[0] for line in problems_of(caught)] == [
        "data.id",
        "data.where",
        "data.target",
        "data.metadata",
    ]
    assert "did you mean 'label'?" in problems_of(caught)[2]


def test_where_keeps_some_rows(tmp_path: Path) -> None:
    write(tmp_path, "id,label,split\na,x,train\nb,y,train\nc,x,test\nd,y,extra\n", [f"i/{n}.png" for n in "abcd"])
    one = read(tmp_path, csv="train.csv", images=("i",), where={"split": "train"})
    two = read(tmp_path, csv="train.csv", images=("i",), where={"split": ["train", "extra"]})
    assert (one.ids.tolist(), two.ids.tolist()) == (["a", "b"], ["a", "b", "d"])


def test_a_value_no_row_has_is_named(tmp_path: Path) -> None:
    write(tmp_path, "id,label,split\na,x,train\n", ["i/a.png"])
    with pytest.raises(DataError, match="no row has 'trian' \\(did you mean 'train'"):
        read(tmp_path, csv="train.csv", images=("i",), where={"split": "trian"})


def test_all_problems_of_the_rows_come_together(tmp_path: Path) -> None:
    rows = ["a,x", "b,y", "b,y", ",x", "c,", "d,x", "../e,y"]
    write(tmp_path, "id,label\n" + "\n".join(rows), ["train/a.png", "train/b.png", "train/c.png"])
    with pytest.raises(DataError) as caught:
        read(tmp_path, csv="train.csv", images=("train",), suffix=".png", classes=("x", "z"))
    listed = problems_of(caught)
    assert any("1 empty id" in line for line in listed)
    assert any("1 repeated id: 'b'" in line for line in listed)
    assert any("1 unusable id: '../e'" in line for line in listed)
    assert any("1 row without a label: 'c'" in line for line in listed)
    assert any("3 unknown labels: 'y'" in line for line in listed)
    assert any("missing file" in line and "'train/d.png'" in line for line in listed)


def test_many_problems_are_counted_and_the_first_named(tmp_path: Path) -> None:
    rows = "".join(f"{number:04d},{'xy'[number % 2]}\n" for number in range(2000))
    write(tmp_path, f"id,label\n{rows}", ["train/other.png"])
    with pytest.raises(DataError, match=r"2,000 missing files: 'train/0000\.png'.* and 1,995 more") as caught:
        read(tmp_path, csv="train.csv", images=("train",))
    assert "'train' has files such as 'other.png'" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_two_images_for_one_id_are_named(tmp_path: Path) -> None:
    write(tmp_path, "id,label\na,x\nb,y\n", ["train/a.png", "train/a.jpg", "train/b.png"])
    with pytest.raises(DataError, match="1 id with two images: 'a'"):
        read(tmp_path, csv="train.csv", images=("train",))
    assert read(tmp_path, csv="train.csv", images=("train",), suffix=".png").images[0] == ("train/a.png",)


def test_an_image_folder_that_does_not_exist_gets_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, PETS, PET_FILES)
    with pytest.raises(DataError, match="did you mean 'train'"):
        read(tmp_path, csv="train.csv", images=("trian",))


def test_rows_without_an_image_are_dropped_only_when_told_and_said_so(tmp_path: Path) -> None:
    write(tmp_path, PETS, PET_FILES[:2])
    table = read(tmp_path, csv="train.csv", images=("train",), on_problem="drop")
    assert table.ids.tolist() == ["0003", "0012"]
    assert table.notes == ("left out 1 of 3 rows, without an image: '7'",)


def test_dropping_every_row_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, PETS, ["train/other.png"])
    with pytest.raises(DataError, match="no row is left, all are without an image"):
        read(tmp_path, csv="train.csv", images=("train",), on_problem="drop")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot read"),
        (b"id,label\n", "no rows are left"),
        (b"id;label\na;x\nb;y;z\n", "separated by commas"),
        (b"id,label\na,x,extra\n", "cannot read"),
        (b"id,label\na\nb,x\n", "1 row without a label"),
        (b"id,label,label\na,x,y\n", "twice"),
        (b"id,label\n\xff\xfe\xe9,x\n", "cannot read"),
        (b'id,label\n"a,x\n', "cannot read"),
    ],
)
def test_a_malformed_csv_is_a_data_error(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path, csv="train.csv")


def test_a_missing_csv_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path, csv="train.csv")


@pytest.mark.parametrize(
    ("labels", "names"), [("10 9 -1", ("-1", "9", "10")), ("b a B", ("B", "a", "b")), ("10 9 x", ("10", "9", "x"))]
)
def test_integer_labels_are_ordered_by_number(tmp_path: Path, labels: str, names: tuple[str, ...]) -> None:
    rows = "".join(f"{row},{label}\n" for row, label in enumerate(labels.split()))
    write(tmp_path, f"id,label\n{rows}", [f"i/{row}.png" for row in range(3)])
    assert read(tmp_path, csv="train.csv", images=("i",)).target_names == names


def test_given_classes_fix_the_order_of_the_outputs(tmp_path: Path) -> None:
    write(tmp_path, PETS, PET_FILES)
    table = read(tmp_path, csv="train.csv", images=("train",), classes=("dog", "fox", "cat"))
    assert table.target_names == ("dog", "fox", "cat")
    assert table.targets is not None
    assert table.targets.tolist() == [2, 0, 0]


def test_one_class_is_not_a_classification(tmp_path: Path) -> None:
    write(tmp_path, "id,label\na,x\nb,x\n", ["i/a.png", "i/b.png"])
    with pytest.raises(DataError, match="every row has the label 'x'"):
        read(tmp_path, csv="train.csv", images=("i",))


def test_tags_of_one_cell_become_indicators(tmp_path: Path) -> None:
    write(tmp_path, "id,tags\na,sky  road\nb,road\n", ["i/a.png", "i/b.png"])
    table = read(tmp_path, csv="train.csv", images=("i",), task="multi_label")
    assert table.target_names == ("road", "sky")
    assert table.targets is not None
    assert table.targets.tolist() == [[1, 1], [1, 0]]
    assert table.targets.dtype == np.float32


def test_tags_may_have_another_separator_and_rows_without_any(tmp_path: Path) -> None:
    write(tmp_path, "id,tags\na,big sky|road\nb,\n", ["i/a.png", "i/b.png"])
    with pytest.raises(DataError, match=r"1 row without a tag: 'b' \(.*empty_tags: true"):
        read(tmp_path, csv="train.csv", images=("i",), task="multi_label", params={"separator": "|"})
    params = {"separator": "|", "empty_tags": True}
    table = read(tmp_path, csv="train.csv", images=("i",), task="multi_label", params=params)
    assert table.target_names == ("big sky", "road")
    assert table.targets is not None
    assert table.targets.tolist() == [[1, 1], [0, 0]]


def test_unknown_tags_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "id,tags\na,sky raod\nb,road\n", ["i/a.png", "i/b.png"])
    with pytest.raises(DataError, match="1 unknown label: 'raod'"):
        read(tmp_path, csv="train.csv", images=("i",), task="multi_label", classes=("road", "sky"))


def test_indicator_columns_are_tags_with_holes(tmp_path: Path) -> None:
    write(tmp_path, "id,b,a\nx,1,0\ny,,1.0\n", ["i/x.png", "i/y.png"])
    table = read(tmp_path, csv="train.csv", images=("i",), task="multi_label", target=("b", "a"))
    assert table.target_names == ("b", "a")
    assert table.targets is not None
    np.testing.assert_array_equal(table.targets, np.array([[1, 0], [np.nan, 1]], dtype=np.float32))
    assert table.notes == ("1 of 4 targets are unknown",)


def test_indicator_columns_of_one_label_a_row_are_classes(tmp_path: Path) -> None:
    write(tmp_path, "id,b,a\nx,1,0\ny,0,1\n", ["i/x.png", "i/y.png"])
    table = read(tmp_path, csv="train.csv", images=("i",), target=("b", "a"))
    assert table.targets is not None
    assert (table.target_names, table.targets.tolist()) == (("b", "a"), [0, 1])
    write(tmp_path, "id,b,a\nx,1,1\ny,0,1\n", [])
    with pytest.raises(DataError, match="1 row without exactly one 1: 'x'"):
        read(tmp_path, csv="train.csv", images=("i",), target=("b", "a"))


@pytest.mark.parametrize("cell", ["2", "0.5", "-1"])
def test_indicators_are_0_or_1(tmp_path: Path, cell: str) -> None:
    write(tmp_path, f"id,b,a\nx,{cell},0\ny,0,1\n", ["i/x.png", "i/y.png"])
    with pytest.raises(DataError, match="1 row with a value other than 0 and 1: 'x'"):
        read(tmp_path, csv="train.csv", images=("i",), task="multi_label", target=("b", "a"))


def test_numbers_of_several_columns_are_targets(tmp_path: Path) -> None:
    write(tmp_path, "id,x,y\na,1e3, 2\nb,-0.5,\n", ["i/a.png", "i/b.png"])
    table = read(tmp_path, csv="train.csv", images=("i",), task="regression", target=("x", "y"))
    assert table.targets is not None
    np.testing.assert_array_equal(table.targets, np.array([[1000, 2], [-0.5, np.nan]], dtype=np.float32))


@pytest.mark.parametrize("cell", ["tall", "inf", "1e40", "True", "0x10"])
def test_what_is_no_finite_number_is_named(tmp_path: Path, cell: str) -> None:
    write(tmp_path, f"id,x\na,{cell}\nb,1\n", ["i/a.png", "i/b.png"])
    with pytest.raises(DataError, match=f"1 row without a finite number \\('{cell}'\\): 'a'"):
        read(tmp_path, csv="train.csv", images=("i",), task="regression")


def test_rows_without_any_target_are_named(tmp_path: Path) -> None:
    write(tmp_path, "id,x\na,\nb,1\n", ["i/a.png", "i/b.png"])
    with pytest.raises(DataError, match="1 row without a target: 'a'"):
        read(tmp_path, csv="train.csv", images=("i",), task="regression")


def test_a_csv_without_targets_is_named(tmp_path: Path) -> None:
    write(tmp_path, "id\na\n", ["i/a.png"])
    with pytest.raises(DataError, match="no column beside the id"):
        read(tmp_path, csv="train.csv", images=("i",))


def test_classes_say_nothing_where_columns_do(tmp_path: Path) -> None:
    write(tmp_path, "id,x\na,1\n", ["i/a.png"])
    with pytest.raises(DataError, match=r"data\.classes"):
        read(tmp_path, csv="train.csv", images=("i",), task="regression", classes=("x",))


def test_masks_are_found_by_id(tmp_path: Path) -> None:
    write(tmp_path, "id,site\na.jpg,1\nb.jpg,2\n", ["i/a.jpg", "i/b.jpg", "m/a_mask.png", "m/b_mask.png"])
    mask = index(folder="m", suffix="_mask.png", _classes=("sky", "road"))
    table = read(tmp_path, csv="train.csv", images=("i",), task="segmentation", mask=mask)
    assert table.masks == (("m/a_mask.png",), ("m/b_mask.png",))
    assert not table.encoded
    assert table.targets is None
    assert table.target_names == ("sky", "road")


def test_missing_masks_are_listed_or_dropped(tmp_path: Path) -> None:
    write(tmp_path, "id,site\na,1\nb,2\n", ["i/a.jpg", "i/b.jpg", "m/b.png"])
    with pytest.raises(DataError, match=r"1 missing file: 'm/a\.png'"):
        read(tmp_path, csv="train.csv", images=("i",), task="segmentation", mask=index(folder="m", _classes=("a", "b")))
    table = read(
        tmp_path,
        csv="train.csv",
        images=("i",),
        task="segmentation",
        mask=index(folder="m", _classes=("a", "b")),
        on_problem="drop",
    )
    assert (table.ids.tolist(), table.masks) == (["b"], (("m/b.png",),))
    assert "without an image or a mask" in table.notes[0]


def test_masks_need_no_csv(tmp_path: Path) -> None:
    write(tmp_path, "", ["i/a.jpg", "i/b.jpg", "m/a.png", "m/b.png"])
    mask = index(folder="m", _classes=("sky", "road"))
    table = read(tmp_path, images=("i",), task="segmentation", mask=mask)
    assert (table.ids.tolist(), table.masks) == (["a", "b"], (("m/a.png",), ("m/b.png",)))
    assert table.target_names == read(tmp_path, "test", images=("i",), task="segmentation", mask=mask).target_names


def test_the_fingerprint_covers_masks_and_their_classes(tmp_path: Path) -> None:
    write(tmp_path, "", ["i/a.jpg", "i/b.jpg", "m/a.png", "m/b.png", "n/a.png", "n/b.png"])
    prints = {
        read(tmp_path, images=("i",), task="segmentation", mask=index(folder=folder, _classes=names)).fingerprint()
        for folder in "mn"
        for names in [("sky", "road"), ("road", "sky")]
    }
    assert len(prints) == 4


def test_dense_tasks_need_masks(tmp_path: Path) -> None:
    write(tmp_path, "id,site\na,1\n", ["i/a.jpg"])
    with pytest.raises(DataError, match="'dense_regression' needs masks"):
        read(tmp_path, csv="train.csv", images=("i",), task="dense_regression")


def test_a_test_split_is_a_folder_of_images(tmp_path: Path) -> None:
    write(tmp_path, "", ["test/2.jpg", "test/10.jpg", "test/x/1.jpg", "test/readme.txt", "test/.hidden.jpg"])
    table = read(tmp_path, "test", images=("test",), classes=("a", "b"))
    assert table.ids.tolist() == ["10", "2", "x/1"]
    assert table.images == (("test/10.jpg",), ("test/2.jpg",), ("test/x/1.jpg",))
    assert (table.targets, table.target_names) == (None, ("a", "b"))
    assert table.notes == ("left out 1 file in 'test', no image by name",)


def test_a_test_split_may_be_a_csv_without_the_metadata_of_training(tmp_path: Path) -> None:
    write(tmp_path, "id,label\nb,0.5\na,0.5\n", ["test/a.jpg", "test/b.jpg"])
    table = read(tmp_path, "test", csv="train.csv", images=("test",), metadata=("site",), target=("gone",))
    assert table.ids.tolist() == ["a", "b"]
    assert (table.targets, table.meta) == (None, None)


def test_an_empty_test_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="'test' has no images"):
        read(tmp_path, "test", images=("test",))


def test_one_stem_twice_in_a_test_folder_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "", ["test/a.jpg", "test/a.png"])
    with pytest.raises(DataError, match="1 repeated id: 'a'"):
        read(tmp_path, "test", images=("test",))


@pytest.mark.parametrize("request_", [{}, {"images": ("test",), "id": "x"}])
def test_a_test_split_without_csv_needs_a_folder_alone(tmp_path: Path, request_: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="folder of images"):
        read(tmp_path, "test", **request_)


def test_a_training_split_of_the_csv_layout_needs_a_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the layout 'csv' needs a CSV"):
        read(tmp_path, images=("train",))


TREE = ["train/cats/1.jpg", "train/cats/2.jpg", "train/dogs/1.jpg", "valid/cats/1.jpg", "valid/dogs/9.png"]


def test_folders_are_classes(tmp_path: Path) -> None:
    table = read(write(tmp_path, "", TREE), layout="folders", images=("train",))
    assert table.ids.tolist() == ["cats/1", "cats/2", "dogs/1"]
    assert table.images[2] == ("train/dogs/1.jpg",)
    assert table.target_names == ("cats", "dogs")
    assert table.targets is not None
    assert table.targets.tolist() == [0, 0, 1]
    assert table.meta is None


def test_a_valid_folder_becomes_a_column_for_predefined_folds(tmp_path: Path) -> None:
    table = read(write(tmp_path, "", TREE), layout="folders", images=("train",), params={"valid": "valid"})
    assert table.ids.tolist() == ["train/cats/1", "train/cats/2", "train/dogs/1", "valid/cats/1", "valid/dogs/9"]
    assert table.column("split").tolist() == ["-1", "-1", "-1", "0", "0"]
    assert table.column("target").tolist() == ["cats", "cats", "dogs", "cats", "dogs"]


def test_files_outside_a_class_and_empty_classes_are_named(tmp_path: Path) -> None:
    write(tmp_path, "", [*TREE, "train/loose.jpg"])
    (tmp_path / "train" / "birds").mkdir()
    with pytest.raises(DataError) as caught:
        read(tmp_path, layout="folders", images=("train",))
    assert problems_of(caught) == [
        "data.train.images: class folders without an image: 'birds'",
        "class: 1 row without a label: 'loose' (fill the cells, or `data: {on_problem: drop}` leaves the rows out)",
    ]
    (tmp_path / "train" / "birds").rmdir()
    table = read(tmp_path, layout="folders", images=("train",), on_problem="drop")
    assert "loose" not in table.ids
    assert "1 of" in table.notes[0]


def test_folders_outside_the_given_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 unknown label: 'dogs'"):
        read(write(tmp_path, "", TREE), layout="folders", images=("train",), classes=("cats", "birds"))


def test_a_test_folder_beside_class_folders_is_flat(tmp_path: Path) -> None:
    table = read(write(tmp_path, "", ["test1/7.jpg"]), "test", layout="folders", images=("test1",))
    assert table.ids.tolist() == ["7"]


def test_the_folder_layout_says_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(
            write(tmp_path, "", TREE),
            layout="folders",
            csv="train.csv",
            task="regression",
            images=("train", "valid"),
            metadata=("site",),
        )
    assert len(problems_of(caught)) == 4


def test_layouts_are_registered_with_what_a_yaml_may_set() -> None:
    assert registry.names("layout") == ["csv", "folders", "pattern"]
    assert registry.bind("layout", "csv", {"empty_tags": True, "separator": "|"}, where="data.layout") == []
    assert registry.bind("layout", "folders", {"valid": 3, "root": "x"}, where="data.layout") != []


safe = st.text("abcXYZ019._-é ", min_size=1, max_size=6).filter(
    lambda name: name.strip(". ") == name and ".." not in name
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(safe, st.sampled_from(["x", "y"]), min_size=2, max_size=12), st.booleans(), st.randoms())
def test_a_table_is_its_file_whatever_the_names(labels: dict[str, str], in_ids: bool, random: Any) -> None:
    rows = list(labels.items())
    random.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "i").mkdir()
        for name in labels:
            (root / "i" / f"{name}.png").touch()
        suffix = ".png" if in_ids else ""
        text = "id,label\n" + "".join(f"{name}{suffix},{label}\n" for name, label in rows)
        (root / "train.csv").write_text(text, encoding="utf-8")
        table = read(root, csv="train.csv", images=("i",), classes=("x", "y"))
        assert table.targets is not None
        got = {str(name): table.target_names[target] for name, target in zip(table.ids, table.targets, strict=True)}
        assert got == {name + suffix: label for name, label in labels.items()}
        assert [path for (path,) in table.images] == [f"i/{name.removesuffix(suffix)}.png" for name in table.ids]


@real_data
def test_dogcat_carries_the_suffix_in_its_ids() -> None:
    train = read(SHARED / "dogcat", csv="train.csv", images=("train",))
    assert (len(train), train.target_names) == (2400, ("0", "1"))
    assert train.images[0] == ("train/cat.0.jpg",)
    test = read(SHARED / "dogcat", "test", images=("test",))
    named = read(SHARED / "dogcat", "test", csv="sample_submission.csv", images=("test",))
    assert test.ids.tolist() == named.ids.tolist()
    assert test.images == named.images


@real_data
def test_dogbreed_has_120_breeds() -> None:
    train = read(SHARED / "dogbreed", csv="labels.csv", images=("train",))
    assert (len(train), len(train.target_names)) == (746, 120)


@real_data
def test_camvid_has_tags_masks_and_routes() -> None:
    tags = read(
        SHARED / "camvid_multilabel", csv="train.csv", images=("train",), task="multi_label", metadata=("route",)
    )
    assert tags.targets is not None
    assert tags.targets.shape == (247, 9)
    assert set(tags.column("route")) >= {"0001TP"}
    root = SHARED / "camvid"
    mask = index(folder="train/masks", _classes=("a", "b"))
    masks = read(root, csv="train.csv", images=("train/images",), task="segmentation", mask=mask)
    assert masks.masks is not None
    assert all((root / path).is_file() for (path,) in masks.masks)


# Targets in file names -------------------------------------------------------------------------------------------

CATS = r"(?P<label>cat|dog)\.[0-9]+"
CAT_FILES = ["train/cat.0.jpg", "train/cat.10.jpg", "train/dog.0.jpg", "train/dog.2.jpg"]


def from_names(root: Path, regex: str = CATS, split: str = "train", **request: Any) -> Table:
    return read(root, split, layout="pattern", params={"regex": regex}, **{"images": ("train",), **request})


def test_labels_are_read_from_file_names(tmp_path: Path) -> None:
    table = from_names(write(tmp_path, "", CAT_FILES))
    assert table.ids.tolist() == ["cat.0", "cat.10", "dog.0", "dog.2"]
    assert table.target_names == ("cat", "dog")
    assert table.targets is not None
    assert table.targets.tolist() == [0, 0, 1, 1]
    assert table.images[1] == ("train/cat.10.jpg",)


def test_other_groups_of_a_pattern_are_metadata(tmp_path: Path) -> None:
    write(tmp_path, "", ["faces/7_P1_a.jpg", "faces/30_P2_b.jpg"])
    regex = r"(?P<label>\d+)_(?P<person>P\d)_."
    table = from_names(tmp_path, regex, images=("faces",), task="regression", metadata=("person",))
    assert table.targets is not None
    assert table.targets[:, 0].tolist() == [30.0, 7.0]
    assert table.column("person").tolist() == ["P2", "P1"]


def test_a_test_split_beside_a_pattern_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "", [*CAT_FILES, "test/1.jpg", "test/10.jpg"])
    assert from_names(tmp_path, split="test", images=("test",)).ids.tolist() == ["1", "10"]


def test_names_a_pattern_does_not_match_are_named_or_dropped(tmp_path: Path) -> None:
    write(tmp_path, "", [*CAT_FILES, "train/cow.1.jpg", "train/notes.txt"])
    with pytest.raises(DataError) as caught:
        from_names(tmp_path)
    assert problems_of(caught) == [
        "data.layout.regex: 1 name the pattern does not match: 'cow.1' (correct it, or `data: {on_problem: drop}`)"
    ]
    table = from_names(tmp_path, on_problem="drop")
    assert len(table) == 4
    assert table.notes == ("left out 1 file, no image by name", "left out 1 file, not matched by the pattern")


@pytest.mark.parametrize(
    ("regex", "request_", "says"),
    [
        ("(?P<label>", {}, "is no regular expression"),
        ("cat", {}, "has no group 'label'"),
        ("(?P<label>cow)", {}, "has a name the pattern matches"),
        ("(?P<label>cat).*", {"on_problem": "drop"}, "every row has the label 'cat'"),
        (CATS, {"csv": "train.csv"}, "reads no CSV"),
        (CATS, {"images": ("train", "more")}, "reads one image folder"),
        (CATS, {"metadata": ("age",)}, "has no column 'age'"),
        (CATS, {"task": "segmentation"}, "a name says no 'segmentation'"),
        (CATS, {"classes": ("cat",)}, "unknown label"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_named(tmp_path: Path, regex: str, request_: Any, says: str) -> None:
    write(tmp_path, "", CAT_FILES)
    with pytest.raises(DataError, match=says):
        from_names(tmp_path, regex, **request_)


@pytest.mark.parametrize(
    ("id", "suffix", "meant"),
    [
        ("A0", ".png", "train/a0.png"), ("a0.png", ".png", "train/a0.png"), ("train/a0.png", "", "train/a0.png"),
        ("a0.PNG", "", "train/a0.png"), ("a0.jpg", "", "train/a0.png"), ("a0\u200b", ".png", "train/a0.png"),
        ("cafe\u0301", ".png", "train/café.png"),
    ],
)  # fmt: skip
def test_a_missing_image_is_told_the_file_it_may_mean(tmp_path: Path, id: str, suffix: str, meant: str) -> None:
    text = f"id,label\n{id},dog\nb1{suffix and ''}{'' if suffix else '.png'},cat\n"
    write(tmp_path, text, ["train/a0.png", "train/b1.png", "train/café.png"])
    with pytest.raises(DataError) as caught:
        read(tmp_path, csv="train.csv", images=("train",), suffix=suffix)
    line = next(line for line in problems_of(caught) if "missing file" in line)
    assert f"may mean '{meant}'" in line
    assert "on_problem: drop" in line


def test_leaving_rows_out_is_not_advised_where_none_would_be_left(tmp_path: Path) -> None:
    write(tmp_path, PETS, ["train/other.png"])
    with pytest.raises(DataError) as caught:
        read(tmp_path, csv="train.csv", images=("train",), suffix=".png")
    line = problems_of(caught)[0]
    assert "3 missing files" in line
    assert "on_problem" not in line


def test_ids_with_blanks_round_them_are_refused_for_what_they_are(tmp_path: Path) -> None:
    write(tmp_path, "id,label\na0 ,dog\nb1,cat\n", ["train/a0.png", "train/b1.png"])
    with pytest.raises(DataError) as caught:
        read(tmp_path, csv="train.csv", images=("train",), suffix=".png")
    line = problems_of(caught)[0]
    assert "neither begin nor end with a blank" in line


@pytest.mark.parametrize("end", ["_mask.png", "-seg.tif", ".v2.png"])
def test_masks_whose_names_go_on_are_told_the_suffix_that_finds_them(tmp_path: Path, end: str) -> None:
    names = ["a0", "b1", "c2"]
    write(tmp_path, "id\n" + "\n".join(names) + "\n",
          [*(f"train/{name}.png" for name in names), *(f"masks/{name}{end}" for name in names)])  # fmt: skip
    read_with = {"csv": "train.csv", "images": ("train",), "suffix": ".png", "task": "segmentation"}
    with pytest.raises(DataError) as caught:
        read(tmp_path, **read_with, mask=index(folder="masks", _classes=("blob",)))
    line = next(line for line in problems_of(caught) if "missing file" in line)
    assert line.startswith("data.masks: ")
    assert f'`suffix: "{end}"` would find 3 of the first 3' in line
    table = read(tmp_path, **read_with, mask=index(folder="masks", suffix=end, _classes=("blob",)))
    assert table.masks == tuple((f"masks/{name}{end}",) for name in names)
