"""Tables as spreadsheets write them, and images where they may lie."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rows_on_disk import problems_of, read, write

from kbench import registry
from kbench.data.table.csv_files import Dialect, dialect_of, numbers, read_frame, texts
from kbench.data.table.image_files import find_files, folders_of, list_images
from kbench.data.table.joins import other_columns
from kbench.data.table.reading import id_problems
from kbench.errors import DataError, SubmissionError
from kbench.submission.check import check_submission, read_sample, write_submission
from kbench.submission.formats.base import Format

PETS = [("a000", "cat, black"), ("a001", "dog"), ("a002", "cat, black"), ("a003", "dog")]
FILES = [f"train/{name}.png" for name, _ in PETS]
SIGNS = {";": "semicolons", "\t": "tabs", "|": "`|`"}


def table(sign: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    quoted = [tuple(f'"{cell}"' if sign in cell or ", " in cell else cell for cell in row) for row in rows]
    return "\n".join(sign.join(row) for row in [header, *quoted]) + "\n"


# -- separators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", SIGNS)
def test_a_table_shows_what_separates_its_cells(tmp_path: Path, sign: str) -> None:
    """The trial csv-semicolon."""
    write(tmp_path, table(sign, ("id", "label"), PETS), FILES)
    found = read(tmp_path, csv="train.csv", images=("train",))
    assert found.target_names == ("cat, black", "dog")
    assert np.bincount(found.targets).tolist() == [2, 2]  # type: ignore[arg-type]
    assert found.notes == (f"'train.csv' is separated by {SIGNS[sign]}",)


def test_a_table_of_commas_is_read_as_ever(tmp_path: Path) -> None:
    for text in ("id,tags\na,x;y\nb,z;w\n", 'id,tags\na,"x;y"\n', "id\na;b\n", "id,a b|c\n1,2\n"):
        (tmp_path / "t.csv").write_text(text)
        assert dialect_of(read_frame(tmp_path / "t.csv")) == Dialect()


def test_what_separates_cells_can_be_said(tmp_path: Path) -> None:
    write(tmp_path, "id;label\na000;x, y\na001;z\na002;z, z\na003;y\n", FILES)
    with pytest.raises(DataError, match=r"its one column|cannot read|missing"):
        read(tmp_path, csv="train.csv", images=("train",), params={"delimiter": ","})
    found = read(tmp_path, csv="train.csv", images=("train",), params={"delimiter": ";"})
    assert found.target_names == ("x, y", "y", "z", "z, z")
    assert found.notes == ()


def test_a_table_that_no_sign_cuts_alike_is_refused_with_what_to_type(tmp_path: Path) -> None:
    write(tmp_path, "id;label\na000;x\na001;y;z\n", FILES[:2])
    with pytest.raises(DataError, match='delimiter: ";"'):
        read(tmp_path, csv="train.csv", images=("train",))


@pytest.mark.parametrize("sign", SIGNS)
def test_decimal_commas_are_numbers(tmp_path: Path, sign: str) -> None:
    rows = [("a000", "1,5", "0007"), ("a001", "-2", "1"), ("a002", "NaN", "2,25"), ("a003", "1,25e2", "3")]
    write(tmp_path, table(sign, ("id", "x", "y"), rows), FILES)
    found = read(tmp_path, csv="train.csv", images=("train",), task="regression", target=("x", "y"))
    np.testing.assert_array_equal(found.targets, [[1.5, 7], [-2, 1], [np.nan, 2.25], [125, 3]])
    assert "decimal commas" in found.notes[0]
    frame = read_frame(tmp_path / "train.csv")
    assert numbers(frame, ["y"]).ravel().tolist() == [7, 1, 2.25, 3]
    assert dialect_of(frame) == Dialect(sign, ",")


def test_decimal_commas_among_commas_are_refused_by_name_or_said(tmp_path: Path) -> None:
    write(tmp_path, 'id,x\na000,"1,5"\na001,2\na002,3\na003,4\n', FILES)
    with pytest.raises(DataError, match=r"1 row without a finite number \('1,5'\): 'a000'"):
        read(tmp_path, csv="train.csv", images=("train",), task="regression")
    found = read(tmp_path, csv="train.csv", images=("train",), task="regression", params={"decimal": ","})
    assert np.asarray(found.targets).ravel().tolist() == [1.5, 2, 3, 4]


def test_labels_and_ids_with_commas_stay_text(tmp_path: Path) -> None:
    write(tmp_path, "id;tags\n1,5;1,2,3\n2,5;4\n", ["train/1,5.png", "train/2,5.png"])
    found = read(tmp_path, csv="train.csv", images=("train",), task="multi_label", params={"separator": ","})
    assert (found.ids.tolist(), found.target_names) == (["1,5", "2,5"], ("1", "2", "3", "4"))


def format_of(name: str, task: str, names: tuple[str, ...]) -> Format:
    made: Format = registry.build("format", name, {}, _names=names, _task=task)
    return made


@pytest.mark.parametrize("sign", [",", *SIGNS])
@pytest.mark.parametrize("decimal", [".", ","])
def test_a_submission_is_written_as_the_sample_is(tmp_path: Path, sign: str, decimal: str) -> None:
    cell = "0.5" if sign == "," else f"0{decimal}5"
    (tmp_path / "sample.csv").write_text(table(sign, ("id", "cat", "dog"), [("0001", cell, cell), ("1e5", cell, cell)]))
    sample, format = read_sample(tmp_path / "sample.csv"), format_of("probabilities", "single_label", ("cat", "dog"))
    frame = pd.DataFrame({"id": ["0001", "1e5"], "cat": [0.25, 0.125], "dog": [0.75, 0.875]})
    file = write_submission(tmp_path / "s.csv", frame, sample=sample, format=format)
    point = "." if sign == "," else decimal
    expected = [
        f"id{sign}cat{sign}dog",
        f"0001{sign}0{point}25{sign}0{point}75",
        f"1e5{sign}0{point}125{sign}0{point}875",
    ]
    assert file.read_text().splitlines() == expected
    assert numbers(check_submission(file, sample, format=format), ["dog"]).ravel().tolist() == [0.75, 0.875]


@pytest.mark.parametrize("header", [",cat,dog", "id ,cat,dog", " id,cat,dog", '"id, of image",cat,dog'])
def test_the_header_and_the_ids_of_a_sample_are_written_as_they_were_read(tmp_path: Path, header: str) -> None:
    """The trial sample-unnamed-id."""
    (tmp_path / "sample.csv").write_text(f"{header}\n0000,0.5,0.5\n1e5,0.5,0.5\n1.0,0.5,0.5\n")
    sample, format = read_sample(tmp_path / "sample.csv"), format_of("probabilities", "single_label", ("cat", "dog"))
    column = str(sample.columns[0])
    frame = pd.DataFrame({column: ["0000", "1e5", "1.0"], "cat": [0.0] * 3, "dog": [1.0] * 3})
    lines = write_submission(tmp_path / "s.csv", frame, sample=sample, format=format).read_text().splitlines()
    assert lines[0] == header
    assert [line.split(",")[0] for line in lines[1:]] == ["0000", "1e5", "1.0"]
    with pytest.raises(SubmissionError, match="columns are missing"):
        check_submission(frame.rename(columns={column: "Unnamed: 0"}), sample, format=format)


def test_a_column_without_a_name_can_still_be_called_by_its_place(tmp_path: Path) -> None:
    write(tmp_path, ",label\na000,x\na001,y\n", FILES[:2])
    assert read(tmp_path, csv="train.csv", images=("train",)).ids.tolist() == ["a000", "a001"]
    named = read(tmp_path, csv="train.csv", images=("train",), id="Unnamed: 0")
    assert named.ids.tolist() == ["a000", "a001"]


@pytest.mark.parametrize("sign", SIGNS)
def test_joined_and_packed_tables_are_read_alike(tmp_path: Path, sign: str) -> None:
    (tmp_path / "meta.csv.gz").write_bytes(gzip.compress(table(sign, ("id", "z"), [("b", "0,5"), ("a", "2")]).encode()))
    assert list(other_columns(tmp_path, ["a", "b"], ["z"], join=["meta.csv.gz"], annotations=None)[0]["z"]) == [
        "2", "0.5",
    ]  # fmt: skip
    write(tmp_path, "", FILES)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(table(sign, ("id", "label"), PETS).encode()))
    assert len(read(tmp_path, csv="train.csv.gz", images=("train",))) == 4


# -- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["train_part_*", "{train_part_1,train_part_2}", "train_part_?", "./train_part_*"])
def test_images_of_one_table_may_lie_in_several_folders(tmp_path: Path, pattern: str) -> None:
    """The trial images-two-folders."""
    places = [f"train_part_{1 + row % 2}/{name}.png" for row, (name, _) in enumerate(PETS)]
    write(tmp_path, table(";", ("id", "label"), PETS), places)
    found = read(tmp_path, csv="train.csv", images=(pattern,), suffix=".png")
    assert [paths[0] for paths in found.images] == places
    assert read(tmp_path, csv="train.csv", images=(pattern,)).images == found.images
    (tmp_path / "train_part_1" / "a001.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 id with two images: 'a001'"):
        read(tmp_path, csv="train.csv", images=(pattern,))
    (tmp_path / "train_part_1" / "a001.png").unlink()
    (tmp_path / "train_part_2" / "a001.png").unlink()
    with pytest.raises(DataError, match="1 missing file"):
        read(tmp_path, csv="train.csv", images=(pattern,))


def test_images_may_lie_in_folders_of_classes_and_of_numbers(tmp_path: Path) -> None:
    write(tmp_path, table(",", ("id", "label"), PETS),
          ["t/cat/a000.jpg", "t/dog/a001.jpg", "t/cat/x/a002.png", "t/a003.jpg"])  # fmt: skip
    found = read(tmp_path, csv="train.csv", images=("t/**",))
    assert [paths[0] for paths in found.images] == [
        "t/cat/a000.jpg", "t/dog/a001.jpg", "t/cat/x/a002.png", "t/a003.jpg",
    ]  # fmt: skip
    test = read(tmp_path, "test", images=("t/*",))
    assert test.ids.tolist() == ["a000", "a001", "x/a002"]


def test_a_folder_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path, "", ["a[1]/x.png", "a1/y.png", "b*/z.png"])
    assert folders_of(tmp_path, "a[1]") == ["a[1]"]
    assert folders_of(tmp_path, "b*") == ["b*"]
    assert list_images(tmp_path, "a*", suffix=None)[1] == ["a[1]/x.png", "a1/y.png"]
    (tmp_path / "a1" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert find_files(tmp_path, "a1/**", ["y"], suffix=".png").paths == ["a1/y.png"]
    with pytest.raises(DataError, match="does not exist"):
        folders_of(tmp_path, "c*")


def test_an_archive_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, "id,label\na,x\nb,y\n", ["train.zip"])
    with pytest.raises(DataError) as caught:
        read(tmp_path, csv="train.csv", images=("train",))
    assert "unpack 'train.zip'" in caught.value.todo


@pytest.mark.parametrize("given", ["./{}.png", "x\\{}.png", ".\\x\\{}.png", "x/{}"])
def test_paths_in_a_table_are_read_however_they_are_written(tmp_path: Path, given: str) -> None:
    files = [f"train/{'x/' if 'x' in given else ''}{name}.png" for name, _ in PETS]
    rows = [(given.format(name), label) for name, label in PETS]
    write(tmp_path, table(",", ("id", "label"), rows), files)
    found = read(tmp_path, csv="train.csv", images=("train",))
    assert [paths[0] for paths in found.images] == files
    assert found.ids.tolist() == [name for name, _ in rows]


@pytest.mark.parametrize("given", ["/data/me/train/{}.png", "C:\\data\\train\\{}.png"])
def test_absolute_paths_are_refused_with_what_is_needed(tmp_path: Path, given: str) -> None:
    write(tmp_path, table(",", ("id", "label"), [(given.format(name), label) for name, label in PETS]), FILES)
    for name in ("..\\a", "./../a", "x\\..\\a"):
        assert id_problems("id", np.array([name]))
    with pytest.raises(DataError, match="4 unusable ids") as caught:
        read(tmp_path, csv="train.csv", images=("train",))
    assert "such as 'a000.png'" in problems_of(caught)[0]


def test_ids_of_a_frame_are_text_however_cells_are_separated(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id;p\n0001;1\n1e5;2\n")
    assert texts(read_frame(tmp_path / "t.csv"), "id").tolist() == ["0001", "1e5"]
