from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench import registry
from kbench.errors import ConfigError, TrainingError
from kbench.training.mix import box, cutmix, mixup, soft_targets


def batch(*shape: int) -> torch.Tensor:
    """Images whose pixels all hold the row's number plus 1."""
    rows = torch.arange(1.0, shape[0] + 1)
    return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 2, 3, 4, 6)])
def test_mixup_mixes_images_and_targets_with_the_same_weight(shape: tuple[int, ...]) -> None:
    images, targets = mixup(alpha=1.0)(batch(*shape), torch.arange(5), rng(), 5)
    expected = targets @ torch.arange(1.0, 6)
    assert torch.allclose(images.flatten(1), expected.unsqueeze(1).expand(5, images[0].numel()))
    assert torch.allclose(targets.sum(1), torch.ones(5))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_the_share_of_a_cutmix_target_is_the_share_of_its_pixels(seed: int, height: int, width: int) -> None:
    images, targets = cutmix()(batch(4, 1, height, width), torch.arange(4), rng(seed), 4)
    for row in range(4):
        shares = [(images[row] == label + 1).float().mean().item() for label in range(4)]
        assert targets[row].tolist() == pytest.approx(shares, abs=1e-6)


def test_cutmix_pastes_the_same_box_in_every_date_and_channel() -> None:
    images, _ = cutmix()(batch(6, 2, 3, 8, 8), torch.arange(6), rng(3), 6)
    assert torch.equal(images, images[:, :1, :1].expand_as(images))
    assert len(images.unique()) == 6


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 40), st.integers(1, 40))
def test_a_box_lies_in_the_image_and_is_no_larger_than_drawn(seed: int, share: float, height: int, width: int) -> None:
    rows, columns = box(rng(seed), share, height, width)
    assert 0 <= rows.start <= rows.stop <= height
    assert 0 <= columns.start <= columns.stop <= width
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert area <= (1 - share) * height * width + 1e-6


@pytest.mark.parametrize("mix", [mixup(alpha=0.4), cutmix()])
def test_the_result_depends_on_the_generator_alone(mix) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(mix(batch(8, 3, 9, 9), torch.arange(8), rng(7), 8))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    other, _ = mix(batch(8, 3, 9, 9), torch.arange(8), rng(8), 8)
    assert not torch.equal(results[0][0], other)


@pytest.mark.parametrize("mix", [mixup(), cutmix()])
def test_the_batch_given_is_not_changed(mix) -> None:
    images, targets = batch(4, 3, 8, 8), torch.rand(4, 2)
    before = images.clone(), targets.clone()
    mix(images, targets, rng(), 2)
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_a_batch_that_is_not_mixed_still_gets_soft_targets(make) -> None:
    images, targets = make(prob=0.0)(batch(3, 1, 4, 4), torch.tensor([2, 0, 1]), rng(), 3)
    assert torch.equal(images, batch(3, 1, 4, 4))
    assert torch.equal(targets, torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_what_is_drawn_does_not_depend_on_whether_a_batch_is_mixed(name: str) -> None:
    generators = rng(5), rng(5)
    for generator, prob in zip(generators, (0.0, 1.0), strict=True):
        registry.build("mix", name, {"prob": prob})(batch(4, 1, 8, 8), torch.arange(4), generator, 4)
    assert generators[0].random() == generators[1].random()


@pytest.mark.parametrize("mix", [mixup(alpha=1.0), cutmix()])
def test_unknown_tags_stay_unknown(mix) -> None:
    targets = torch.tensor([[1.0, torch.nan], [0.0, torch.nan], [1.0, torch.nan]])
    _, mixed = mix(batch(3, 1, 8, 8), targets, rng(), 2)
    assert mixed[:, 1].isnan().all()
    assert not mixed[:, 0].isnan().any()


def test_regression_targets_are_mixed_linearly() -> None:
    images, targets = mixup(alpha=1.0)(batch(6, 1, 2, 2), 10 * torch.arange(1.0, 7).unsqueeze(1), rng(2), 1)
    assert torch.allclose(targets[:, 0], 10 * images[:, 0, 0, 0])


def test_cutmix_pastes_target_images_where_it_pastes_images() -> None:
    images = batch(4, 1, 8, 8)
    mixed, targets = cutmix()(images, images * 100, rng(1), 1)
    assert torch.equal(targets, mixed * 100)
    mixed, targets = cutmix()(images, images[:, 0].long() - 1, rng(1), 4)
    assert torch.equal(targets.argmax(1), mixed[:, 0].long() - 1)


def test_cutmix_refuses_target_images_of_another_size() -> None:
    with pytest.raises(TrainingError, match="pixels for images of"):
        cutmix()(batch(2, 1, 8, 8), torch.zeros(2, 1, 4, 4), rng(), 1)


def test_indices_that_are_no_class_become_unknown() -> None:
    rows = soft_targets(torch.tensor([1, -100, 255]), 3)
    assert torch.equal(rows[0], torch.tensor([0.0, 1, 0]))
    assert rows[1:].isnan().all()


@pytest.mark.parametrize("mix", [mixup(alpha=1.0), cutmix()])
def test_memory_format_and_dtype_are_kept(mix) -> None:
    images = batch(4, 3, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    mixed, _ = mix(images, torch.arange(4), rng(), 4)
    assert mixed.dtype == torch.bfloat16
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "params"), [("mixup", {"alpha": 0}), ("cutmix", {"prob": 1.1})])
def test_a_wrong_parameter_is_an_error(name: str, params: dict) -> None:
    with pytest.raises(ConfigError):
        registry.build("mix", name, params)
