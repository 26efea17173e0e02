from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from several_ranks import on_ranks
from torch import nn

from kbench.errors import TrainingError
from kbench.training.ranks import ALONE, Ranks

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@given(st.integers(0, 40), st.integers(1, 7))
def test_shares_leave_nothing_out_and_differ_by_one_row_at_most(rows: int, count: int) -> None:
    shares = [list(range(rows))[Ranks(rank, count).share(rows)] for rank in range(count)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_without_a_row_loads_one_that_does_not_count() -> None:
    assert [Ranks(rank, 3).part(2) for rank in range(3)] == [(slice(0, 1), 1), (slice(1, 2), 1), (slice(1, 2), 0)]
    assert [Ranks(rank, 2).part(5) for rank in range(2)] == [(slice(0, 3), 3), (slice(3, 5), 2)]


def test_alone_every_number_stays_the_object_it_is() -> None:
    value = torch.ones(3)
    assert ALONE.added(value) is value
    assert ALONE.whole(value, 3) is value
    assert ALONE.gathered("one") == ["one"]
    assert ALONE.once(lambda: 7) == 7


def _speak(ranks: Ranks) -> dict[str, Any]:
    rank = ranks.rank
    parts = {
        dtype: torch.arange(10).to(dtype).reshape(5, 2)[ranks.share(5)]
        for dtype in (torch.uint8, torch.uint16, torch.int64, torch.float32)
    }
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Linear(1, 1))
    parameters = list(model.parameters())
    for place, parameter in enumerate(parameters):
        if place == 0 or (place == 1 and rank == 2):  # the others have no gradient on any rank
            parameter.grad = torch.full_like(parameter, 10.0**rank)
    ranks.add_gradients(parameters)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    norm.running_mean.fill_(rank)
    norm.num_batches_tracked.fill_(5 - rank)
    ranks.average_statistics(model)
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(1.0)
    ranks.hold_alike(model)
    with torch.no_grad():
        parameters[0].fill_(1.0 + (rank == 1) * 1e-7)
    try:
        ranks.hold_alike(model)
        apart = ""
    except TrainingError as error:
        apart = error.what
    return {
        "decided": ranks.decided(f"by {rank}"), "once": ranks.once(lambda: rank + 100), "all": ranks.gathered(rank),
        "sum": ranks.added(torch.tensor([1.0, rank])).tolist(),
        "whole": {str(dtype): ranks.whole(part, 5).tolist() for dtype, part in parts.items()},
        "gradients": [None if parameter.grad is None else parameter.grad.sum().item() for parameter in parameters],
        "mean": norm.running_mean.item(), "batches": norm.num_batches_tracked.item(), "apart": apart,
    }  # fmt: skip


def test_ranks_add_up_gather_and_are_told_what_the_first_decides(tmp_path: Path) -> None:
    answers = on_ranks(tmp_path / "ranks", 3, _speak)
    assert answers[0] == answers[1] == answers[2]
    said = answers[0]
    assert (said["decided"], said["once"], said["all"]) == ("by 0", 100, [0, 1, 2])
    assert said["sum"] == [3.0, 3.0]
    rows = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert said["whole"] == {f"torch.{name}": rows for name in ("uint8", "uint16", "int64", "float32")}
    assert said["gradients"] == [111.0, 100.0, None, None, None, None]
    assert (said["mean"], said["batches"]) == (1.0, 5)
    assert said["apart"] == "the weights of the devices are no longer the same"
