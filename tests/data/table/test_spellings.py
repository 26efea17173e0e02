"""Labels that are one to a reader, words for "unknown", rows without a target."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rows_on_disk import read, write

from kbench.data.table.spellings import plain, spelling_note, tidied
from kbench.data.table.targets import detect_task, read_targets
from kbench.errors import DataError


def labelled(root: Path, cells: list[str], header: str = "label") -> Path:
    ids = [f"a{row:03d}" for row in range(len(cells))]
    lines = [f'{name},"{cell}"' for name, cell in zip(ids, cells, strict=True)]
    return write(root, "\n".join([f"id,{header}", *lines]) + "\n", [f"train/{name}.png" for name in ids])


@pytest.mark.parametrize(
    "other",
    ["cat ", " cat", "Cat", "cat\u200b", "c\u00e0t\u0000"[:1] + "at\u00a0", "CAT"],
)
def test_labels_that_a_reader_cannot_tell_apart_are_named_with_counts(tmp_path: Path, other: str) -> None:
    """The trial label-trailing-space."""
    labelled(tmp_path, ["cat"] * 8 + [other] * 2 + ["dog"] * 9 + ["dogs"])
    table = read(tmp_path, csv="train.csv", images=("train",))
    assert len(table.target_names) == 4
    assert f"'cat' (8)/{other!r} (2)" in table.notes[0]
    assert "dog" not in table.notes[0]
    tidy = read(tmp_path, csv="train.csv", images=("train",), params={"tidy": True})
    assert tidy.target_names == ("cat", "dog", "dogs")
    assert np.bincount(tidy.targets).tolist() == [10, 9, 1]  # type: ignore[arg-type]
    assert tidy.notes == ()


def test_unicode_forms_are_one(tmp_path: Path) -> None:
    one, other = "r\u00e9publicain", unicodedata.normalize("NFD", "r\u00e9publicain")
    labelled(tmp_path, [one, one, other, "x"])
    assert "look alike" in read(tmp_path, csv="train.csv", images=("train",)).notes[0]
    assert read(tmp_path, csv="train.csv", images=("train",), params={"tidy": True}).target_names == (one, "x")
    assert plain("a\u00a0 b") == plain("A b")
    assert plain("a") != plain("\u00e1")


def test_tags_and_groups_are_held_against_each_other_too(tmp_path: Path) -> None:
    write(tmp_path, "id,tags,patient\na,sun Sea,p0\nb,sea,p0 \nc,Sun,p1\n", [f"train/{name}.png" for name in "abc"])
    request = {"csv": "train.csv", "images": ("train",), "task": "multi_label", "metadata": ("patient",)}
    notes = read(tmp_path, **request).notes
    assert [note.partition("'")[2].partition("'")[0] for note in notes] == ["tags", "patient"]
    tidy = read(tmp_path, **request, params={"tidy": True})
    assert tidy.column("patient").tolist() == ["p0", "p0", "p1"]
    assert len(tidy.target_names) == 2


def test_class_folders_are_held_against_each_other(tmp_path: Path) -> None:
    write(tmp_path, "", ["t/cat/1.png", "t/Cat/2.png", "t/dog/3.png"])
    assert "'Cat' (1)" in read(tmp_path, layout="folders", images=("t",)).notes[0]


# -- unknown ----------------------------------------------------------------------------------------------------

WORDS = ["NaN", "nan", "-", "None", "null", "n/a", "NA", "", " "]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_unknown_among_numbers_is_no_class(tmp_path: Path, word: str) -> None:
    """The trial nan-text-target."""
    ages = [f"{20 + row * 1.7:.1f}" for row in range(20)]
    ages[3] = word
    frame = pd.DataFrame({"id": range(20), "age": ages}).astype(str)
    assert detect_task(frame, ["age"]) == "regression"
    labelled(tmp_path, ages, "age")
    request = {"csv": "train.csv", "images": ("train",), "task": "regression"}
    with pytest.raises(DataError, match=r"1 row without a target.*: 'a003'.*on_problem: drop"):
        read(tmp_path, **request)
    table = read(tmp_path, **request, on_problem="drop")
    assert len(table) == 19
    assert "left out 1 of 20 rows, without a target: 'a003'" in table.notes[0]
    known = [float(age) for row, age in enumerate(ages) if row != 3]
    assert float(np.asarray(table.targets).mean()) == pytest.approx(np.mean(known), rel=1e-6)


@pytest.mark.parametrize("word", WORDS[:-2])
def test_a_word_for_unknown_among_grades_is_no_class(tmp_path: Path, word: str) -> None:
    labelled(tmp_path, ["0", "1", "2", word, "1", "0"])
    request = {"csv": "train.csv", "images": ("train",)}
    with pytest.raises(DataError, match="1 row without a label"):
        read(tmp_path, **request)
    assert read(tmp_path, **request, on_problem="drop").target_names == ("0", "1", "2")
    assert word in read(tmp_path, **request, classes=("0", "1", "2", word)).target_names


@pytest.mark.parametrize("word", ["None", "nan", "NA"])
def test_a_class_of_words_may_be_called_none(tmp_path: Path, word: str) -> None:
    labelled(tmp_path, ["ship", word, "ship", word])
    assert set(read(tmp_path, csv="train.csv", images=("train",)).target_names) == {"ship", word}
    frame = pd.DataFrame({"label": ["ship", word] * 4})
    assert detect_task(frame, ["label"]) == "single_label"


def test_tags_of_0_1_and_nan_stay_tags() -> None:
    frame = pd.DataFrame({"a": ["0", "1", "NaN"], "b": ["1", "", "0"]})
    assert detect_task(frame, ["a", "b"]) == "multi_label"
    targets = read_targets(frame, ["a", "b"], task="multi_label", ids=np.array(["x", "y", "z"]))
    np.testing.assert_array_equal(targets.values, [[0, 1], [1, np.nan], [np.nan, 0]])
    assert targets.problems == ()
    assert detect_task(pd.DataFrame({"a": ["0", "1"], "b": ["1", "0"]}), ["a", "b"]) == "single_label"


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_rows_without_a_label_are_dropped_where_the_yaml_says_so(tmp_path: Path, task: str) -> None:
    labelled(tmp_path, ["x", "", "y", " "])
    request = {"csv": "train.csv", "images": ("train",), "task": task}
    with pytest.raises(DataError, match="2 rows without a"):
        read(tmp_path, **request)
    table = read(tmp_path, **request, on_problem="drop")
    assert (table.ids.tolist(), table.target_names) == (["a000", "a002"], ("x", "y"))
    (tmp_path / "train" / "a000.png").unlink()
    table = read(tmp_path, **request, on_problem="drop", classes=("x", "y"))
    assert table.ids.tolist() == ["a002"]


def test_whole_numbers_of_a_column_that_once_had_holes_look_alike() -> None:
    """What pandas writes of 1 where a cell of the column was empty is 1.0."""
    note = spelling_note("patient", {"1": 3, "1.0": 2, "01": 1, "1.5": 1, "10": 1})
    assert "'1' (3)/'1.0' (2);" in note
    assert tidied(["1.0", "01", "1.5", "1"], {"1": 3, "1.0": 2, "01": 1, "1.5": 1}) == ["1", "01", "1.5", "1"]
    assert spelling_note("patient", {"1": 3, "01": 1, "1.5": 1, "10": 1}) == ""
