from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbench.errors import PredictionError
from kbench.models.device import in_parts, out_of_memory


def doubled(most: int, seen: list[int] | None = None):
    """Doubles its rows, of which it takes only some at a time."""

    def compute(batch: list[torch.Tensor]) -> torch.Tensor:
        if seen is not None:
            seen.append(len(batch[0]))
        if len(batch[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch[0] * 2 + batch[1]

    return compute


@given(st.integers(1, 40), st.integers(1, 40))
def test_parts_give_what_the_whole_gives(rows: int, most: int) -> None:
    batch = [torch.arange(rows), torch.arange(rows) + 1]
    assert torch.equal(in_parts(doubled(most), batch), batch[0] * 2 + batch[1])


def test_what_fits_is_computed_at_once() -> None:
    seen: list[int] = []
    in_parts(doubled(8, seen), [torch.zeros(8), torch.zeros(8)])
    assert seen == [8]


def test_a_single_row_that_does_not_fit_is_an_error_with_a_remedy() -> None:
    with pytest.raises(PredictionError, match="single image: CUDA out of memory") as caught:
        in_parts(doubled(0), [torch.zeros(4), torch.zeros(4)])
    assert caught.value.todo


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        in_parts(lambda batch: batch[0] + batch[1], [torch.zeros(2, 3), torch.zeros(2, 4)])


@pytest.mark.parametrize(("error", "is_one"), [
    (torch.OutOfMemoryError(), True), (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("shapes differ"), False),
])  # fmt: skip
def test_lack_of_memory_is_recognised(error: RuntimeError, is_one: bool) -> None:
    assert out_of_memory(error) == is_one
