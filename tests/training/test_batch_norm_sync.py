from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import on_ranks
from torch import nn

from kbench.training.batch_norm_sync import synchronised
from kbench.training.ranks import ALONE, Ranks

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def _case(shape: tuple[int, ...], *, momentum: float | None, affine: bool) -> tuple[nn.Module, torch.Tensor, Any]:
    torch.manual_seed(3)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    norm = kind(shape[1], momentum=momentum, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm, 5 + 3 * torch.randn(shape), torch.randn(shape)


CASES = [((5, 3, 2, 2), 0.1, True), ((2, 3), 0.1, True), ((4, 3, 1, 2), None, False)]  # 3 ranks: 2 rows leave one empty


def _measured(ranks: Ranks) -> list[list[torch.Tensor]]:
    """Return output, gradient of the input and what the norm holds afterwards, of each case's part."""
    answers = []
    for shape, momentum, affine in CASES:
        norm, images, weights = _case(shape, momentum=momentum, affine=affine)
        part = ranks.share(len(images))
        shown = images[part].clone().requires_grad_(True)
        with synchronised(ranks):
            out = norm(shown)
        (out.square() * weights[part]).sum().backward()
        assert shown.grad is not None
        gradients = [ranks.added(parameter.grad) for parameter in norm.parameters() if parameter.grad is not None]
        norm.eval()
        with synchronised(ranks):
            judged = norm(images)
        answers.append([out.detach(), shown.grad, judged.detach(), *gradients, *norm.buffers()])
    return answers


def test_batch_norm_of_three_ranks_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    parts = on_ranks(tmp_path / "ranks", 3, _measured)
    for case, expected in enumerate(_measured(ALONE)):
        for place, value in enumerate(expected):
            several = [part[case][place] for part in parts]
            if place < 2:
                torch.testing.assert_close(torch.cat(several), value, rtol=1e-5, atol=1e-5)
            else:
                assert all(torch.equal(one, several[0]) for one in several)
                torch.testing.assert_close(several[0], value, rtol=1e-5, atol=1e-5)
