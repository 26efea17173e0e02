from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kbench.data.masks import run_lengths
from kbench.data.masks.run_lengths import CONVENTIONS, Runs, convention, decode, encode, fill, parse, runs_of
from kbench.errors import ConfigError, DataError

masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))
named = pytest.mark.parametrize("name", list(CONVENTIONS))
CORNER = np.zeros((3, 4), dtype=np.uint8)
CORNER[1:, 1] = CORNER[0, 2] = 1  # down the columns: pixels 4, 5 and 6 of 0 to 11; along the rows: 2, 5 and 9


@named
@settings(max_examples=60)
@given(mask=masks)
def test_decoding_undoes_encoding(name: str, mask: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(encode(mask, CONVENTIONS[name]), mask.shape, CONVENTIONS[name]), mask)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tgs", "5 3"), ("columns_0", "4 3"), ("columns_ends", "5 7"), ("columns_0_ends", "4 6"), ("coco", "4 3 5"),
        ("carvana", "3 1 6 1 10 1"), ("rows_0", "2 1 5 1 9 1"), ("rows_ends", "3 3 6 6 10 10"),
        ("rows_0_ends", "2 2 5 5 9 9"),
    ],
)  # fmt: skip
def test_each_convention_numbers_pixels_its_own_way(name: str, text: str) -> None:
    assert encode(CORNER, CONVENTIONS[name]) == text
    np.testing.assert_array_equal(decode(text, (3, 4), CONVENTIONS[name]), CORNER)


def test_the_example_of_the_competition_page() -> None:
    mask = decode("1 3 10 5", (101, 101), CONVENTIONS["tgs"])
    assert np.flatnonzero(mask.ravel(order="F")).tolist() == [0, 1, 2, 9, 10, 11, 12, 13]


@named
def test_an_empty_mask_is_an_empty_text_and_a_full_one_a_single_run(name: str) -> None:
    rule = CONVENTIONS[name]
    assert encode(np.zeros((3, 4)), rule) == ""
    assert not decode("", (3, 4), rule).any()
    assert len(encode(np.ones((3, 4)), rule).split()) == 2
    assert decode(encode(np.ones((3, 4)), rule), (3, 4), rule).all()


def test_counts_may_leave_out_what_follows_the_last_run_and_be_written_as_a_list() -> None:
    for text in ("4 3 5", "4 3", "[4, 3, 5]"):
        np.testing.assert_array_equal(decode(text, (3, 4), CONVENTIONS["coco"]), CORNER)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("1 2 3", "tgs", "3 numbers"),
        ("1 x", "tgs", "no whole number"),
        ("1 2 5 0", "tgs", "a run without pixels: '5 0', run 2"),
        ("0 2", "tgs", r"pixels outside of an image of 3 x 4: '0 2', run 1"),
        ("12 2", "tgs", "pixels outside"),
        ("1 4 3 2", "tgs", "overlap or are not in order: '3 2', run 2"),
        ("5 4", "columns_ends", "a run without pixels"),
        ("4 3 6", "coco", "'6', number 3"),
        ("4 0 5", "coco", "'0', number 2"),
        ("99999999999999999999 1", "tgs", "pixels outside"),
    ],
)
def test_a_wrong_text_is_refused_with_its_run(text: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(text, (3, 4), CONVENTIONS[name])


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match="'kagle'"):
        convention("kagle")


@settings(max_examples=40)
@given(mask=arrays(np.uint8, (7, 5), elements=st.integers(0, 4)))
def test_all_classes_are_encoded_and_filled_at_once(mask: np.ndarray) -> None:
    for rule in (CONVENTIONS["tgs"], CONVENTIONS["rows_0"]):
        found = runs_of(mask, rule)
        for value in range(5):
            assert run_lengths.as_text(*found.of(value), rule) == encode(mask == value, rule)
        np.testing.assert_array_equal(fill(found, mask.shape, rule), mask)
        kept = found.values > 0
        some = Runs(found.starts[kept], found.lengths[kept], found.values[kept])
        np.testing.assert_array_equal(fill(some, mask.shape, rule), np.where(mask == 0, 255, mask))


def test_runs_that_share_a_pixel_are_refused() -> None:
    with pytest.raises(DataError, match="two classes share a pixel"):
        Runs(np.array([4, 0]), np.array([2, 5]), np.array([0, 1], dtype=np.uint8)).check_apart()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, with NumPy 2
@settings(max_examples=40)
@given(mask=masks)
def test_counts_are_those_of_pycocotools(mask: np.ndarray) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    text = encode(mask, CONVENTIONS["coco"])
    packed = tools.encode(np.asfortranarray(mask))
    given_counts = [int(number) for number in text.split()] or [mask.size]
    assert tools.frPyObjects({"size": list(mask.shape), "counts": given_counts}, *mask.shape) == packed
    np.testing.assert_array_equal(tools.decode(packed), decode(text, mask.shape, CONVENTIONS["coco"]))


@pytest.mark.parametrize("text", ["-1", "NaN", "None", "0", "1 0"])
def test_a_text_that_often_means_nothing_is_told_how_to_say_so(text: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(text, (4, 5), convention("tgs"))
    assert f'empty: ["{text}"]' in caught.value.todo
