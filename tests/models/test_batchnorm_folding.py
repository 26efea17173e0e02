"""Batch norms folded into convolutions: the same answers, and nothing folded where they would be others."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from kbench.models.batchnorm_folding import fold, folded
from kbench.models.classifier import timm_classifier
from kbench.models.segmenter import smp

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and parameters that a training could have left."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("backbone", "left"),
    [("resnet10t", 0), ("mobilenetv2_100", 0), ("efficientnet_b0", 0), ("densenet121", 62), ("resnetv2_50", 17)],
)
@torch.no_grad()
def test_a_folded_model_answers_as_before(backbone: str, left: int) -> None:
    model = trained(timm.create_model(backbone, num_classes=5))
    answer, state = model(IMAGES), copy.deepcopy(model.state_dict())
    made = folded(model, IMAGES)
    assert norms(made) == left, "norms that follow something else than one convolution stay"
    torch.testing.assert_close(made(IMAGES), answer, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items()), "the model is untouched"


@torch.no_grad()
def test_a_classifier_with_its_head_is_folded_in_place() -> None:
    model = trained(timm_classifier(2, 3, _backbone="mobilenetv2_100", head="concat")).to(
        memory_format=torch.channels_last
    )
    answer, features = model(IMAGES), model.features(IMAGES)
    assert fold(model, IMAGES) == 52
    torch.testing.assert_close(model(IMAGES), answer, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.features(IMAGES), features, atol=1e-4, rtol=1e-4)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(one.weight.is_contiguous(memory_format=torch.channels_last) for one in convolutions)


@torch.no_grad()
def test_a_segmenter_is_tried_on_a_part_of_its_images() -> None:
    model = trained(smp(4, 3, _backbone="test_efficientnet", decoder_channels=[16, 16, 8, 8, 8]))
    images = torch.randn(1, 3, 75, 101, generator=torch.Generator().manual_seed(2))
    answer = model(images)
    assert fold(model, images[..., :32, :48]) > 10
    torch.testing.assert_close(model(images), answer, atol=1e-4, rtol=1e-4)


class Odd(nn.Module):
    """A convolution and a norm that may not be folded, for one reason or another."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.conv, self.norm, self.why = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), why

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        if self.why == "the norm's input is used again":
            return self.norm(maps) + maps
        if self.why == "something stands between":
            return self.norm(maps.relu())
        if self.why == "the convolution runs twice":
            return self.norm(self.conv(maps))
        if self.why == "the model reads its norm":
            return self.norm(maps) * self.norm.eps
        if self.why == "one size alone" and images.shape[-1] != 64:
            raise ValueError("not my size")
        return self.norm(maps)


@pytest.mark.parametrize(
    ("why", "pixels"),
    [("the norm's input is used again", 64), ("something stands between", 64), ("the convolution runs twice", 64),
     ("the model reads its norm", 64), ("one size alone", 32)],
)  # fmt: skip
@torch.no_grad()
def test_what_cannot_be_folded_stays(why: str, pixels: int) -> None:
    model = trained(Odd(why))
    answer, state = model(IMAGES), copy.deepcopy(model.state_dict())
    assert folded(model, IMAGES[..., :pixels, :pixels]) is model
    assert fold(model, IMAGES[..., :pixels, :pixels]) == 0
    assert torch.equal(model(IMAGES), answer)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_statistics_of_the_batch_are_no_constants() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))
    assert folded(model, IMAGES) is model
