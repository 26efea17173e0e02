from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbench.data.table.targets import detect_task, read_targets, sorted_labels


def frame(**columns: Sequence[object]) -> pd.DataFrame:
    return pd.DataFrame({name: [str(value) for value in values] for name, values in columns.items()})


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (["cat", "dog", "cat"], "single_label"),
        (["0", "1", "1"], "single_label"),
        (["sky road", "sky", "road"], "multi_label"),
        (["0.5", "1", "1"], "regression"),
        (["1e-3", "2e4", "1"], "regression"),
        ([str(number) for number in range(50)], "regression"),
        ([str(number % 10) for number in range(50)], "single_label"),
        (["1 3", "2", "5"], "multi_label"),
        (["", "cat", "dog"], "single_label"),
    ],
)
def test_one_column_tells_the_task(cells: list[str], task: str) -> None:
    assert detect_task(frame(target=cells), ["target"]) == task


@pytest.mark.parametrize(
    ("first", "second", "task"),
    [
        ([1, 0, 0], [0, 1, 1], "single_label"),
        ([1, 0, 1], [0, 0, 1], "multi_label"),
        ([1, 0, 2], [0, 1, 1], "regression"),
        ([1.5, 0, 0], [0, 1, 1], "regression"),
    ],
)
def test_several_columns_tell_the_task(first: list[float], second: list[float], task: str) -> None:
    assert detect_task(frame(a=first, b=second), ["a", "b"]) == task


@given(st.lists(st.sampled_from(["cat", "dog", "fox"]), min_size=1))
def test_exactly_one_word_a_row_is_single_label(cells: list[str]) -> None:
    assert detect_task(frame(target=cells), ["target"]) == "single_label"


@given(st.lists(st.lists(st.sampled_from(["cat", "dog", "fox"]), max_size=3, unique=True), min_size=1))
def test_tags_come_back_from_their_indicators(tags: list[list[str]]) -> None:
    targets = read_targets(
        frame(tags=[" ".join(row) for row in tags]),
        ["tags"],
        task="multi_label",
        ids=np.arange(len(tags)).astype(str),
        classes=("cat", "dog", "fox"),
        empty_tags=True,
    )
    assert targets.values is not None
    assert targets.problems == ()
    back = [[targets.names[column] for column in np.flatnonzero(row)] for row in targets.values]
    assert back == [sorted(row) for row in tags]


@given(st.lists(st.sampled_from(["cat", "dog", "fox", "owl"]), min_size=2).filter(lambda cells: len(set(cells)) > 1))
def test_labels_come_back_from_their_indices(cells: list[str]) -> None:
    targets = read_targets(frame(label=cells), ["label"], task="single_label", ids=np.arange(len(cells)).astype(str))
    assert targets.values is not None
    assert [targets.names[index] for index in targets.values] == cells
    assert list(targets.names) == sorted(set(cells))


@given(st.lists(st.integers(-1000, 1000), min_size=1))
def test_integer_labels_are_sorted_by_value(labels: list[int]) -> None:
    assert [int(label) for label in sorted_labels(map(str, labels))] == sorted(set(labels))


def ids_of(cells: Sequence[object]) -> np.ndarray:
    return np.array([f"a{row}" for row in range(len(cells))])


@pytest.mark.parametrize(
    ("cells", "refused"),
    [
        ([1.6e9 + 5 * row for row in range(10)], True),  # seconds of a minute: 32 bits count them by 128
        ([1e6 + 1e-3 * row for row in range(10)], True),
        ([1e6 + row for row in range(10)], False),
        ([1e30 * (1 + row) for row in range(10)], False),
        ([1e-12 * (1 + row) for row in range(10)], False),
        ([5.0] * 10, False),
    ],
)
def test_numbers_that_32_bits_cannot_tell_apart_are_refused(cells: list[float], refused: bool) -> None:
    table = frame(time=[repr(cell) for cell in cells])
    targets = read_targets(table, ["time"], task="regression", ids=ids_of(cells))
    assert bool(targets.problems) == refused
    if refused:
        offset = float(re.findall(r"such as ([0-9.e+]+) from all", targets.problems[0].hint)[0])
        less = frame(time=[repr(cell - offset) for cell in cells])  # what the hint says to do
        assert not read_targets(less, ["time"], task="regression", ids=ids_of(cells)).problems


@pytest.mark.parametrize("word", ["NaN", "n/a", "null", "?"])
def test_words_for_nothing_among_class_names_are_classes_and_said_to_be(word: str) -> None:
    cells = ["cat", "dog", word, "cat"]
    targets = read_targets(frame(label=cells), ["label"], task="single_label", ids=ids_of(cells))
    assert word in targets.names
    assert f"'label' has '{word}' (1 row), which count as classes" in targets.notes[0]
    given = read_targets(
        frame(label=cells), ["label"], task="single_label", ids=ids_of(cells), classes=["cat", "dog", word]
    )
    assert not given.notes


def test_a_word_among_numbers_is_a_class_and_said_to_be_and_a_grade_called_none_is_not() -> None:
    cells = ["0", "1", "lost", "1"]
    targets = read_targets(frame(label=cells), ["label"], task="single_label", ids=ids_of(cells))
    assert "'lost' (1 row)" in targets.notes[0]
    cells = ["none", "mild", "severe", "none"]
    assert not read_targets(frame(label=cells), ["label"], task="single_label", ids=ids_of(cells)).notes


def test_cells_of_invisible_signs_are_blank() -> None:
    cells = ["cat", "\u200b", "dog", "\u00a0\ufeff"]
    targets = read_targets(frame(label=cells), ["label"], task="single_label", ids=ids_of(cells))
    assert targets.blank is not None
    assert (targets.names, targets.blank.tolist()) == (("cat", "dog"), [False, True, False, True])


@pytest.mark.parametrize("sign", [",", ";", "|"])
def test_tags_of_another_separator_are_said_with_what_to_write(sign: str) -> None:
    cells = [f"red{sign}big", f"green{sign}small", f"red{sign}small"]
    targets = read_targets(frame(tags=cells), ["tags"], task="multi_label", ids=ids_of(cells))
    assert f'separator: "{sign}"' in targets.notes[0]
    right = read_targets(frame(tags=cells), ["tags"], task="multi_label", ids=ids_of(cells), separator=sign)
    assert (right.names, right.notes) == (("big", "green", "red", "small"), ())


def test_lists_as_programs_write_them_are_no_tags() -> None:
    cells = ["['red', 'big']", "['green']"]
    targets = read_targets(frame(tags=cells), ["tags"], task="multi_label", ids=ids_of(cells))
    assert "tags with brackets" in targets.notes[0]


def test_cells_that_are_no_numbers_are_told_what_to_write() -> None:
    for cell, hint in (("1,5", 'decimal: ","'), ("True", "write 1 and 0"), ("12 yrs", "leave cells blank")):
        cells = ["1", cell, "2"]
        targets = read_targets(frame(age=cells), ["age"], task="regression", ids=ids_of(cells))
        assert hint in targets.problems[0].hint
