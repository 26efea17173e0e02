from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbench import registry
from kbench.errors import ConfigError
from kbench.inference.views import PLAIN, View, d4, five_crop, flip_views, none, random, scales

SETS = registry.names("views")
SHAPES = [(4, 6), (6, 4), (5, 5), (1, 7)]


def numbered(height: int, width: int) -> torch.Tensor:
    """[2, 3, height, width], every value once."""
    return torch.arange(2.0 * 3 * height * width).reshape(2, 3, height, width)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_view_is_undone_exactly(name: str, shape: tuple[int, int]) -> None:
    batch = numbered(*shape)
    for view in registry.build("views", name, {}):
        assert torch.equal(view.inverse(view.forward(batch)), batch)


@pytest.mark.parametrize("name", SETS)
def test_the_first_view_is_the_plain_one_and_the_only_one_of_its_kind(name: str) -> None:
    batch = numbered(4, 6)
    views = registry.build("views", name, {})
    assert views[0].name == "plain"
    assert views[0].load == PLAIN
    assert torch.equal(views[0].forward(batch), batch)
    seen = {(view.load, tuple(view.forward(batch).shape), view.forward(batch).numpy().tobytes()) for view in views}
    assert len(seen) == len({view.name for view in views}) == len(views)


@pytest.mark.parametrize("name", SETS)
def test_weights_are_positive(name: str) -> None:
    assert all(view.weight > 0 for view in registry.build("views", name, {}))


def test_the_sets_have_the_views_their_names_promise() -> None:
    assert [len(views) for views in (none(), flip_views(), d4(), five_crop(), random(), scales())] == [1, 2, 8, 5, 5, 6]


def test_the_eight_symmetries_are_closed_under_flips_and_turns() -> None:
    batch = numbered(5, 5)
    seen = {view.forward(batch).numpy().tobytes() for view in d4()}
    assert {view.forward(batch.flip(-1)).numpy().tobytes() for view in d4()} == seen
    assert {view.forward(torch.rot90(batch, 1, (-2, -1))).numpy().tobytes() for view in d4()} == seen


@pytest.mark.parametrize(("n", "weight"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_the_plain_view_counts_a_quarter_of_the_draws_rounded_up(n: int, weight: int) -> None:
    views = random(n=n)
    assert len(views) == 1 + n
    assert [view.weight for view in views] == [weight, *[1] * n]


def test_draws_are_numbered_whatever_their_number() -> None:
    assert random(n=2)[1:] == random(n=5)[1:3]


@given(st.integers(0, 5))
def test_a_prediction_that_is_no_image_needs_no_undoing(seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).random((2, 3)))
    assert torch.equal(flip_views()[0].inverse(values), values)


def test_scales_are_views_of_the_whole_image_at_other_sizes() -> None:
    loads = [view.load.scale for view in scales(factors=[1.0, 0.5], mirrored=False)]
    assert loads == [1.0, 0.5]
    assert [view.name for view in scales(factors=[1, 2])] == ["plain", "x1-flip", "x2", "x2-flip"]


@pytest.mark.parametrize(("make", "params"), [
    (five_crop, {"margin": 1.0}), (five_crop, {"margin": 0.5}), (random, {"n": 0}), (random, {"n": 2.5}),
    (scales, {"factors": [0.5, 1.0]}), (scales, {"factors": [1.0, 0.0]}), (scales, {"factors": [1.0, 1.0]}),
    (scales, {"factors": [1.0, -2.0]}),
])  # fmt: skip
def test_parameters_that_make_no_sense_are_an_error(make, params) -> None:
    with pytest.raises(ConfigError, match=r"tta\."):
        make(**params)


def test_a_view_does_nothing_unless_told() -> None:
    batch = numbered(4, 6)
    assert View("x").forward(batch) is batch
