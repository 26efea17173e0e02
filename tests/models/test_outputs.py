from __future__ import annotations

import pytest
import torch

from kbench import registry
from kbench.models.outputs import DEFAULT_LOSS, probabilities


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5, 6)])
@pytest.mark.parametrize("task", ["single_label", "segmentation"])
def test_classes_that_exclude_each_other_sum_to_one(task: str, shape: tuple[int, ...]) -> None:
    found = probabilities(torch.randn(shape) * 30, task)
    torch.testing.assert_close(found.sum(1), torch.ones(shape[0], *shape[2:]))


def test_tags_are_independent() -> None:
    logits = torch.randn(4, 3)
    torch.testing.assert_close(probabilities(logits, "multi_label"), logits.sigmoid())


@pytest.mark.parametrize("task", ["regression", "dense_regression"])
def test_values_of_a_regression_are_left_alone(task: str) -> None:
    values = torch.randn(4, 3) * 1e6
    assert torch.equal(probabilities(values, task), values)


@pytest.mark.parametrize("task", list(DEFAULT_LOSS))
def test_predictions_are_float32_whatever_the_precision(task: str) -> None:
    found = probabilities((torch.randn(4, 3) * 100).bfloat16(), task)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("task", list(DEFAULT_LOSS))
def test_every_task_has_a_loss_that_is_registered(task: str) -> None:
    registry.build("loss", DEFAULT_LOSS[task], {})
