from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from streets_and_salt import SIGNATE

from kbench.data.masks.classes import Codec, colour_table
from kbench.errors import DataError

COLOURS = np.array(list(SIGNATE.values()), dtype=np.uint8)


def test_there_are_twenty_colours_no_two_alike() -> None:
    assert len({tuple(colour) for colour in SIGNATE.values()}) == 20


@settings(max_examples=50)
@given(numbers=arrays(np.uint8, (6, 5), elements=st.integers(0, 19)), how=st.sampled_from(["strict", "nearest"]))
def test_the_twenty_colours_go_both_ways_without_loss(numbers: np.ndarray, how: str) -> None:
    codec = Codec(COLOURS, how)  # type: ignore[arg-type]
    image = codec.encode(numbers)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(codec.decode(image, of="a"), numbers)
    np.testing.assert_array_equal(codec.encode(codec.decode(image, of="a")), image)


def test_a_colour_between_classes_is_refused_or_goes_to_the_nearest() -> None:
    """What cubic interpolation of a colour mask makes, and the original's exact comparison lost."""
    image = Codec(COLOURS).encode(np.zeros((4, 6), dtype=np.uint8))
    image[0, :2] = 3, 3, 252
    image[3, 5] = 206, 147, 3
    with pytest.raises(DataError, match=r"'m\.png' has 2 colours that no class has: \[3, 3, 252\] \(2 pixels\)"):
        Codec(COLOURS).decode(image, of="m.png")
    found = Codec(COLOURS, "nearest").decode(image, of="m.png")
    assert found[3, 5] == 7
    assert (found.ravel()[:-1] == 0).all()


@settings(max_examples=25)
@given(image=arrays(np.uint8, (4, 4, 3)))
def test_nearest_is_nearest(image: np.ndarray) -> None:
    distances = ((image[:, :, None].astype(int) - COLOURS.astype(int)) ** 2).sum(-1)
    np.testing.assert_array_equal(Codec(COLOURS, "nearest").decode(image, of="a"), distances.argmin(-1))


def test_a_table_may_be_a_csv_that_says_what_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("class_id,name,R,g,b,ignore\n0,sky,1,2,3,0\n1,void,0,0,0,1\n")
    assert colour_table("c.csv", tmp_path) == ({"sky": (1, 2, 3), "void": (0, 0, 0)}, ["void"])


def test_every_fault_of_a_table_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("name,r,g,b\nsky,1,2,300\nroad,x,0,0\ntree,5,5,5\ntree,5,5,5\n")
    with pytest.raises(DataError) as caught:
        colour_table("c.csv", tmp_path)
    assert "4 problems" in caught.value.what
    (tmp_path / "c.csv").write_text("name,red\nsky,1\n")
    with pytest.raises(DataError, match="no column 'r', 'g', 'b'"):
        colour_table("c.csv", tmp_path)
