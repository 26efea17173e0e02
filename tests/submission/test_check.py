from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kbench import registry
from kbench.errors import SubmissionError
from kbench.submission.check import check_submission, find_problems, read_sample, write_submission
from kbench.submission.formats.base import Format

SAMPLE = pd.DataFrame({"id": ["03", "1", "2"], "cat": [0.5] * 3, "dog": [0.5] * 3})
GOOD = pd.DataFrame({"id": ["03", "1", "2"], "cat": [0.1, 0.25, 1.0], "dog": [0.9, 0.75, 0.0]})


def format_of(name: str = "probabilities", task: str = "single_label") -> Format:
    made: Format = registry.build("format", name, {}, _names=("cat", "dog"), _task=task)
    return made


def found(frame: pd.DataFrame, *, sample: pd.DataFrame = SAMPLE, format: Format | None = None) -> str:
    return "\n".join(map(str, find_problems(frame, sample, format=format or format_of())))


def test_a_good_submission_has_no_problems() -> None:
    assert found(GOOD) == ""


def test_a_missing_column_is_a_problem() -> None:
    assert found(GOOD.drop(columns="dog")) == "columns: 1 columns are missing: 'dog'"


def test_a_column_the_sample_lacks_is_a_problem() -> None:
    assert found(GOOD.assign(cow=0.0)) == "columns: 1 columns are not in the sample: 'cow'"


def test_a_misspelt_column_is_shown_with_the_nearest() -> None:
    assert "did you mean 'dogs'?" in found(GOOD.rename(columns={"dog": "dogs"}))


def test_columns_in_another_order_are_a_problem() -> None:
    assert found(GOOD[["id", "dog", "cat"]]) == (
        "columns: in another order: column 2 is 'dog' (the sample has 'cat' there)"
    )


def test_a_missing_row_is_a_problem() -> None:
    assert found(GOOD.iloc[:2]) == "id: 1 of 3 ids are missing: '2'"


def test_a_row_the_sample_lacks_is_a_problem() -> None:
    more = pd.concat([GOOD, GOOD.iloc[:1].assign(id="9")])
    assert found(more) == "id: 1 ids are not in the sample: '9'"


def test_ids_that_lost_their_zeros_are_shown_beside_the_samples() -> None:
    text = found(GOOD.assign(id=["3", "1", "2"]))
    assert "1 of 3 ids are missing: '03' (did you mean '3'?)" in text
    assert "1 ids are not in the sample: '3'" in text


def test_a_repeated_id_is_a_problem() -> None:
    assert found(pd.concat([GOOD, GOOD.iloc[:1]])) == "id: 1 ids stand twice: '03'"


def test_rows_in_another_order_are_a_problem() -> None:
    assert found(GOOD.iloc[[1, 0, 2]]) == "id: ids in another order: row 1 is '1' (the sample has '03' there)"


def test_an_empty_file_lacks_every_row() -> None:
    assert found(GOOD.iloc[:0]) == "id: 3 of 3 ids are missing: '03', '1', '2'"


@pytest.mark.parametrize("cell", [np.nan, None])
def test_a_hole_is_a_problem(cell: float | None) -> None:
    assert "1 cells are not a number; the first: id '1'" in found(GOOD.assign(dog=[0.9, cell, 0.0]))


def test_a_word_among_numbers_is_a_problem() -> None:
    text = found(GOOD.assign(dog=["0.9", "dog", "0.0"]))
    assert text == "dog: 1 cells are not a number; the first: id '1' has 'dog'"


@pytest.mark.parametrize("cell", [np.inf, -np.inf])
def test_an_infinite_cell_is_a_problem(cell: float) -> None:
    assert "dog: 1 cells are infinite" in found(GOOD.assign(dog=[0.9, 0.75, cell]))


def test_cells_below_zero_and_above_one_are_problems() -> None:
    text = found(GOOD.assign(cat=[-0.5, 0.25, 1.5]))
    assert "cat: 1 cells are below 0; the first: id '03' has '-0.5'" in text
    assert "cat: 1 cells are above 1; the first: id '2' has '1.5'" in text


def test_rows_that_do_not_sum_to_one_are_a_problem() -> None:
    text = found(GOOD.assign(cat=[0.1, 0.25, 0.99999]))
    assert text == "row sums: 1 rows do not sum to 1 within 1e-06; the first: id '2' sums to 0.99999"


def test_rows_of_labels_need_not_sum_to_one() -> None:
    frame = GOOD.assign(cat=[1.0, 1.0, 1.0])
    assert found(frame, format=format_of(task="multi_label")) == ""


def test_an_unknown_class_is_a_problem() -> None:
    sample = pd.DataFrame({"id": ["1", "2"], "label": ["cat", "cat"]})
    text = found(sample.assign(label=["cat", "dgo"]), sample=sample, format=format_of("label"))
    assert text == "label: 1 cells are no class: 'dgo' (did you mean 'dog'?)"


def test_a_regression_may_be_any_finite_number() -> None:
    format = format_of("value", "regression")
    assert found(GOOD.assign(cat=[-5.0, 0.0, 1e9]), format=format) == ""
    assert "not a number" in found(GOOD.assign(cat=[np.nan, 0.0, 1.0]), format=format)


def test_all_problems_are_raised_as_one_error_in_three_parts() -> None:
    bad = pd.concat([GOOD.assign(cat=[2.0, np.nan, 0.5]), GOOD.iloc[:1]]).iloc[[0, 1, 3]]
    with pytest.raises(SubmissionError) as caught:
        check_submission(bad, SAMPLE, format=format_of())
    for part in ("stand twice", "are missing", "not a number", "above 1", "do not sum to 1"):
        assert part in caught.value.what
    assert "3 rows" in caught.value.expected
    assert "kbench" in caught.value.todo


def test_a_file_is_checked_like_its_rows(tmp_path: Path) -> None:
    GOOD.to_csv(tmp_path / "a.csv", index=False)
    assert check_submission(tmp_path / "a.csv", SAMPLE, format=format_of())["id"].tolist() == ["03", "1", "2"]
    (tmp_path / "b.csv").write_text("id,cat,dog\n3,1,0\n1,1,0\n2,1,0\n")
    with pytest.raises(SubmissionError, match=r"b\.csv': 2 problems"):
        check_submission(tmp_path / "b.csv", SAMPLE, format=format_of())


def test_a_missing_file_is_a_submission_error(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="no such file"):
        check_submission(tmp_path / "absent.csv", SAMPLE, format=format_of())


# The sample ------------------------------------------------------------------------------------------------------


def test_ids_of_a_sample_are_text(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text("id,p\n0012,0.5\n7,0.5\n")
    assert read_sample(tmp_path / "sample.csv")["id"].tolist() == ["0012", "7"]


def test_a_sample_with_an_id_twice_or_no_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("id,cat,dog\n1,0,1\n1,0,1\n")
    sample = read_sample(tmp_path / "twice.csv")
    assert "several rows of 1 id: '1'" in found(sample, sample=sample)
    assert "download" not in found(sample, sample=sample)
    (tmp_path / "none.csv").write_text("id,p\n")
    with pytest.raises(SubmissionError, match="has no rows"):
        read_sample(tmp_path / "none.csv")


# Writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, packed: bool) -> None:
    files = [
        write_submission(tmp_path / name, GOOD, sample=SAMPLE, format=format_of(), gzip=packed)
        for name in ("a.csv", "another.csv")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_gzip_file_holds_the_plain_file_and_ends_in_gz(tmp_path: Path) -> None:
    plain = write_submission(tmp_path / "a.csv", GOOD, sample=SAMPLE, format=format_of())
    packed = write_submission(tmp_path / "a.csv", GOOD, sample=SAMPLE, format=format_of(), gzip=True)
    assert packed.name == "a.csv.gz"
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert plain.read_bytes() == b"id,cat,dog\n03,0.1,0.9\n1,0.25,0.75\n2,1,0\n"
    again = write_submission(packed, GOOD, sample=SAMPLE, format=format_of(), gzip=True)
    assert again == packed


def test_a_bad_submission_is_not_written_and_the_old_file_stays(tmp_path: Path) -> None:
    path = write_submission(tmp_path / "a.csv", GOOD, sample=SAMPLE, format=format_of())
    before = path.read_bytes()
    with pytest.raises(SubmissionError):
        write_submission(path, GOOD.assign(cat=2.0), sample=SAMPLE, format=format_of())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_what_does_not_survive_writing_is_found_before_the_old_file_is_replaced(tmp_path: Path) -> None:
    path = write_submission(tmp_path / "a.csv", GOOD, sample=SAMPLE, format=format_of())
    before = path.read_bytes()
    frame, sample = (rows.rename(columns={"id": "\ufeffid"}) for rows in (GOOD, SAMPLE))  # read back without its mark
    with pytest.raises(SubmissionError, match="1 columns are missing"):
        write_submission(path, frame, sample=sample, format=format_of())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]
