"""U-Nets at full resolution: their parameters, their sizes, and a last layer that is exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kbench import registry
from kbench.errors import ConfigError
from kbench.models.layer_groups import layer_groups
from kbench.models.plain_unets import deepsense, unet_plain
from kbench.models.segmenter import exactly, smp


def count(model: nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters() if weights.requires_grad)


@pytest.mark.parametrize(("channels", "expected"), [(20, 1_622_305), (3, 1_612_513)])
def test_deepsense_has_the_parameters_of_an_independent_build(channels: int, expected: int) -> None:
    model = deepsense(1, channels)
    assert count(model) == expected
    moving = sum(values.numel() for name, values in model.named_buffers() if "running" in name)
    assert moving == 4_928  # what Keras counts beside those that train


def test_a_plain_unet_has_the_parameters_counted_by_hand() -> None:
    # levels 4 and 8 of 3 channels: two 3x3 convolutions each, without bias, and norms of two numbers a channel
    down = 3 * 4 * 9 + 4 * 4 * 9 + 2 * 2 * 4 + 4 * 8 * 9 + 8 * 8 * 9 + 2 * 2 * 8
    up = (8 * 4 * 4 + 4) + (8 * 4 * 9 + 4 * 4 * 9 + 2 * 2 * 4) + (4 * 2 + 2)
    assert count(unet_plain(2, 3, width=4, depth=1)) == down + up
    assert count(unet_plain(2, 3, widths=[4, 8])) == down + up


@pytest.mark.parametrize("name", ["unet_plain", "deepsense"])
def test_maps_are_as_large_as_images_of_any_size_and_everything_learns(name: str) -> None:
    model = registry.build("model", name, {}, 2, 5)
    logits = model(torch.rand(2, 5, 37, 50))
    assert logits.shape == (2, 2, 37, 50)
    logits.square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert len(layer_groups(model)) == 3


def test_one_pixel_reaches_its_own_answer_at_full_resolution() -> None:
    torch.manual_seed(0)
    model = unet_plain(1, 1, width=8, depth=2).eval()
    images = torch.zeros(1, 1, 32, 32)
    dot = images.clone()
    dot[..., 13, 18] = 1
    change = (model(dot) - model(images)).abs()[0, 0]
    assert divmod(int(change.argmax()), 32) in {(13 + dy, 18 + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


@pytest.mark.parametrize("norm", ["group", "none"])
def test_norms_that_do_not_mix_images(norm: str) -> None:
    model = unet_plain(1, 2, width=6, depth=1, norm=norm).train()  # type: ignore[arg-type]
    images = torch.rand(3, 2, 16, 16)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


@pytest.mark.parametrize("options", [{"widths": [8]}, {"depth": 0}, {"dropout": 1.0}, {"width": 0}])
def test_values_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        unet_plain(1, 3, **options)


# -- a last layer in fp32 -----------------------------------------------------------------------------------------


def test_an_exact_layer_answers_in_fp32_under_bf16_and_can_be_copied() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 1, 1)
    names = list(layer.state_dict())
    nn.init.constant_(layer.weight, 1.0)
    nn.init.constant_(layer.bias, 301.0)  # bf16 knows 300 and 302
    with torch.autocast("cpu", torch.bfloat16):
        assert float(layer(torch.zeros(1, 1, 1, 1)).float().detach()) != 301.0
        exact = copy.deepcopy(exactly(layer))
        answer = exact(torch.full((1, 1, 1, 1), 0.25, dtype=torch.bfloat16))
    assert answer.dtype == torch.float32
    assert float(answer.detach()) == 301.25
    assert list(exact.state_dict()) == names


@pytest.mark.parametrize("name", ["unet_plain", "deepsense", "resnet_unet", "smp"])
def test_numbers_are_answered_in_fp32_and_classes_by_the_same_weights(name: str) -> None:
    given = {"_backbone": "test_resnet", "_size": (64, 64)}
    model = registry.build("model", name, {}, 1, 3, **given, _task="dense_regression").eval()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert model(torch.rand(1, 3, 64, 64)).dtype == torch.float32
    other = registry.build("model", name, {}, 1, 3, **given, _task="segmentation")
    assert list(other.state_dict()) == list(model.state_dict())


def test_heads_that_are_no_sequence_are_exact_too() -> None:
    model = smp(1, 3, _backbone="test_vit", _size=(64, 64), decoder="dpt", _task="dense_regression").eval()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert model(torch.rand(1, 3, 64, 64)).dtype == torch.float32
