"""Fold files: written, read, edited, adopted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fold_tables import classes, make_table, routes
from hypothesis import given, settings
from hypothesis import strategies as st
from places import GOLDEN

from kbench.data.folds.files import adopt_folds, read_folds, write_folds
from kbench.data.folds.folds import Cut, Folds, make_folds
from kbench.errors import DataError, FoldError


def small_folds():
    table = make_table(
        [f"{row:04d}" for row in range(24)],
        targets=classes(24, 0.4),
        patient=[f"p{row // 2:02d}" for row in range(24)],
        site=["north, upper", "south"] * 12,
    )
    return table, make_folds(table, "stratified_group", Cut(3, 42, ("site",), "patient"), {})


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_the_files_are_these_bytes(tmp_path, suffix):
    write_folds(tmp_path / "folds.csv", small_folds()[1])
    assert (tmp_path / f"folds{suffix}").read_bytes() == (GOLDEN / f"folds{suffix}").read_bytes()


@pytest.mark.parametrize("strategy", ["kfold", "stratified", "multilabel", "holdout"])
def test_the_folds_of_thirty_rows_are_these(strategy):
    golden = json.loads((GOLDEN / "fold_strategies.json").read_text())
    table = make_table(rows=30, targets=classes(30))
    assert make_folds(table, strategy, Cut(4, 42), {}).fold.tolist() == golden[strategy]


def test_read_returns_what_was_written(tmp_path):
    _, folds = small_folds()
    again = read_folds(write_folds(tmp_path / "x.csv", folds))
    assert again.ids.tolist() == folds.ids.tolist()
    assert again.fold.tolist() == folds.fold.tolist()
    assert again.groups.tolist() == folds.groups.tolist()
    assert again.strata.tolist() == folds.strata.tolist()
    assert again.manifest == folds.manifest
    assert again.hash == folds.hash


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(_TEXT, min_size=2, max_size=12, unique=True), strata=_TEXT)
def test_any_text_survives_writing_and_reading(tmp_path_factory, ids, strata):
    ids = np.unique(np.array(ids))
    if len(ids) < 2:
        return
    folds = Folds(ids, np.arange(len(ids)) % 2, np.array([strata] * len(ids)), None, {"strategy": "kfold"})
    again = read_folds(write_folds(tmp_path_factory.mktemp("folds") / "x.csv", folds))
    assert again.ids.tolist() == ids.tolist()
    assert again.strata.tolist() == folds.strata.tolist()


def test_ids_stay_text(tmp_path):
    table = make_table(["0012", "1e5", "NA", "007"])
    again = read_folds(write_folds(tmp_path / "x.csv", make_folds(table, "kfold", Cut(2, 0), {})))
    assert again.ids.tolist() == ["0012", "007", "1e5", "NA"]


def test_windows_line_ends_are_no_edit(tmp_path):
    path = write_folds(tmp_path / "x.csv", small_folds()[1])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_folds(path).n == 3


@pytest.mark.parametrize(("old", "new"), [("\n0003,", "\n0099,"), (",p01,", ",p07,"), ("\n0002,", "\n0002,1")])
def test_an_edited_file_is_refused_with_the_way_to_adopt_it(tmp_path, old, new):
    path = write_folds(tmp_path / "x.csv", small_folds()[1])
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(FoldError, match="changed after it was written") as error:
        read_folds(path)
    assert f"kbench folds --from {path}" in error.value.todo


def test_a_file_with_rows_left_out_is_refused(tmp_path):
    path = write_folds(tmp_path / "x.csv", small_folds()[1])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(FoldError, match="changed after it was written"):
        read_folds(path)


def test_a_missing_file_is_an_error_that_says_how_to_cut_folds(tmp_path):
    with pytest.raises(FoldError, match="no folds at") as error:
        read_folds(tmp_path / "x.csv")
    assert "kbench folds" in error.value.todo


def test_a_file_without_its_manifest_does_not_count(tmp_path):
    path = write_folds(tmp_path / "x.csv", small_folds()[1])
    path.with_suffix(".json").unlink()
    with pytest.raises(FoldError, match="no manifest"):
        read_folds(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_manifest_is_an_error(tmp_path, content):
    path = write_folds(tmp_path / "x.csv", small_folds()[1])
    path.with_suffix(".json").write_text(content)
    with pytest.raises((FoldError, DataError)):
        read_folds(path)


@pytest.mark.parametrize("content", [b"", b"id,fold\na\n", b"\xff\xfe", b'id,fold\n"a,0\n', b"id,id\na,0\n"])
def test_a_damaged_table_of_folds_is_an_error(tmp_path, content):
    path = write_folds(tmp_path / "x.csv", small_folds()[1])
    path.write_bytes(content)
    with pytest.raises(FoldError):
        read_folds(path)


# ------------------------------------------------------------------------------------ adoption


def adopted(tmp_path, text, ids=("a", "b", "c"), name="team.csv", **options):
    (tmp_path / name).write_text(text)
    return adopt_folds(tmp_path / name, make_table(list(ids)), **options)


@pytest.mark.parametrize(
    "text",
    [
        "id,fold\nc,1\na,0\nb,1\n",
        "image_name,height,KFold\na,9,0\nb,8,1\nc,7,1\n",
        "Fold,Id,other\n1,b,x\n0,a,y\n1,c,z\n",
        ",filename,split\n0,a,0\n1,b,1\n2,c,1\n",
        "\ufeffid,fold\r\na,0.0\r\nb,1.0\r\nc,1.0\r\n",
        'id,fold\n"a","0"\n\nb, 1\nc,1\n',
    ],
)
def test_fold_files_of_many_makes_are_adopted(tmp_path, text):
    folds = adopted(tmp_path, text)
    assert folds.fold.tolist() == [0, 1, 1]
    assert folds.manifest["strategy"] == "adopted"
    assert folds.manifest["options"] == {"file": "team.csv"}
    assert folds.manifest["warnings"] == []


def test_a_json_of_lists_is_adopted(tmp_path):
    assert adopted(tmp_path, '{"0": ["a"], "1": ["c", "b"]}', name="folds_split.json").fold.tolist() == [0, 1, 1]


def test_words_of_a_single_split_are_adopted(tmp_path):
    assert adopted(tmp_path, "id,split\na,train\nb,Valid\nc,TRAIN\n").fold.tolist() == [-1, 0, -1]


def test_folds_that_count_from_one_are_lowered_and_the_manifest_says_so(tmp_path):
    folds = adopted(tmp_path, "id,fold\na,1\nb,2\nc,-1\n")
    assert folds.fold.tolist() == [0, 1, -1]
    assert folds.manifest["warnings"] == ["folds count from 1 in 'team.csv'; here they count from 0"]


def test_other_ids_are_listed_with_counts(tmp_path):
    with pytest.raises(FoldError) as error:
        adopted(tmp_path, "id,fold\na,0\nb.jpg,1\nc.jpg,1\n")
    assert "2 without a fold: 'b', 'c'; 2 not in the table: 'b.jpg', 'c.jpg'" in error.value.what


def test_repeated_ids_are_listed(tmp_path):
    with pytest.raises(FoldError, match="1 ids stand twice in the column 'id': 'a'"):
        adopted(tmp_path, "id,fold\na,0\na,1\nb,1\nc,1\n")


@pytest.mark.parametrize("value", ["", "x", "1.5", "-2", "1e3", "٣", "test", "99999999999999999999"])
def test_a_value_that_is_no_fold_is_quoted_with_its_id(tmp_path, value):
    with pytest.raises(FoldError) as error:
        adopted(tmp_path, f"id,fold\na,0\nb,{value}\nc,1\n")
    assert f"1 values are no fold, such as '{value}' of the id 'b'" in error.value.what


def test_a_wild_fold_number_costs_no_memory(tmp_path):
    with pytest.raises(FoldError, match="fold 1 is empty"):
        adopted(tmp_path, "id,fold,group\na,0,x\nb,999999999,y\nc,0,z\n")


def test_a_gap_between_folds_is_an_error(tmp_path):
    with pytest.raises(FoldError, match="fold 1 is empty"):
        adopted(tmp_path, "id,fold\na,0\nb,2\nc,2\n")


def test_a_file_without_a_fold_column_lists_its_columns(tmp_path):
    with pytest.raises(FoldError, match="'id', 'label'"):
        adopted(tmp_path, "id,label\na,0\nb,1\nc,1\n")


@pytest.mark.parametrize("content", ["", "[1]", '{"0": "a"}', "{"])
def test_a_json_of_another_shape_is_an_error(tmp_path, content):
    with pytest.raises(FoldError, match="cannot read"):
        adopted(tmp_path, content, name="x.json")


def test_a_missing_foreign_file_is_an_error(tmp_path):
    with pytest.raises(FoldError, match="cannot read"):
        adopt_folds(tmp_path / "none.csv", make_table(["a"]))


def test_an_edited_file_of_ones_own_is_adopted_with_its_groups_and_strata(tmp_path):
    table, folds = small_folds()
    path = write_folds(tmp_path / "x.csv", folds)
    swapped = {"0": "1", "1": "0"}
    lines = [line.split(",", 2) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{name},{swapped.get(fold, fold)},{rest}\n" for name, fold, rest in lines))
    again = adopt_folds(path, table)
    assert again.groups.tolist() == folds.groups.tolist()
    assert again.strata.tolist() == folds.strata.tolist()
    assert again.hash != folds.hash
    assert read_folds(write_folds(path, again)).hash == again.hash


def test_adoption_holds_folds_against_the_groups_asked_for(tmp_path):
    (tmp_path / "team.csv").write_text("id,fold\na,0\nb,1\nc,1\n")
    table = make_table(["a", "b", "c"], patient=["p", "p", "q"])
    with pytest.raises(FoldError, match="1 groups are in more than one fold: 'p'"):
        adopt_folds(tmp_path / "team.csv", table, cut=Cut(2, 0, (), "patient"))


def test_shuffled_rows_of_a_file_give_the_same_bytes(tmp_path):
    table = routes()
    folds = make_folds(table, "stratified", Cut(7, 42, ("route", "time_of_day")), {})
    lines = [f"{name},{fold}\n" for name, fold in zip(folds.ids, folds.fold, strict=True)]
    written = []
    for seed in (0, 1):
        order = np.random.RandomState(seed).permutation(len(lines))
        (tmp_path / "team.csv").write_text("name,fold\n" + "".join(lines[row] for row in order))
        path = write_folds(tmp_path / f"{seed}.csv", adopt_folds(tmp_path / "team.csv", table))
        written.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
    assert written[0] == written[1]
    assert read_folds(tmp_path / "0.csv").hash == folds.hash
