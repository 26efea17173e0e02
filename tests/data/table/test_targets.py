from __future__ import annotations

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
