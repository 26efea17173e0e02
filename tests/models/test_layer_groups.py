from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from kbench.errors import ConfigError
from kbench.models.classifier import timm_classifier
from kbench.models.layer_groups import chosen, freeze_but, has_batch_norm, layer_groups, train_mode

FAMILIES = [
    "resnet10t", "resnet18", "mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_lite0", "convnext_atto",
    "regnetx_002", "densenet121", "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "poolformer_s12", "ghostnet_050",
    "swinv2_cr_tiny_ns_224",
]  # fmt: skip


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return timm_classifier(2, 3, _backbone="resnet10t", _size=(32, 32))


def statistics(model: nn.Module, prefix: str) -> dict[str, bytes]:
    return {name: buffer.numpy().tobytes() for name, buffer in model.named_buffers() if name.startswith(prefix)}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_in_exactly_one_of_three_groups(name: str) -> None:
    model = timm_classifier(2, 3, _backbone=name, _size=(56, 56) if "14" in name else (64, 64))
    layers = layer_groups(model)
    grouped = [parameter for layer in layers for _, parameter in layer]
    assert len(layers) == 3
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(list(model.parameters()))
    assert [name for name, _ in layers[-1]] == ["head.1.weight", "head.1.bias"]


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
def test_a_resnet_is_cut_where_the_lesson_cuts_it(name: str) -> None:
    layers = layer_groups(timm_classifier(2, 3, _backbone=name, _size=(32, 32)))
    tops = [{parameter.split(".")[1] for parameter, _ in layer} for layer in layers]
    assert tops == [{"conv1", "bn1", "layer1", "layer2"}, {"layer3", "layer4"}, {"1"}]


def test_a_model_that_says_nothing_is_a_single_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    (layer,) = layer_groups(model)
    assert [name for name, _ in layer] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_the_longest_prefix_decides() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    model.layer_prefixes = [["0.", "1.1."], ["1."]]
    assert [[name for name, _ in layer] for layer in layer_groups(model)] == [
        ["0.weight", "0.bias", "1.1.weight", "1.1.bias"], ["1.0.weight", "1.0.bias"],
    ]  # fmt: skip


def test_groups_are_chosen_by_name_or_number() -> None:
    assert chosen("all", 3) == [0, 1, 2]
    assert chosen("head", 3) == [2]
    assert chosen([-1, 0, 0], 3) == [0, 2]
    for wrong in ([3], [-4]):
        with pytest.raises(ConfigError, match="names layer group"):
            chosen(wrong, 3)


def train_once(model: nn.Module) -> None:
    train_mode(model)
    model(torch.randn(4, 3, 32, 32)).sum().backward()


@pytest.mark.parametrize(("groups", "still", "moving"), [
    ([2], "body.", None), ([1, 2], "body.layer2", "body.layer3"), ([0, 1, 2], None, "body."),
])  # fmt: skip
def test_batch_norm_of_frozen_groups_keeps_its_statistics_to_the_bit(resnet, groups, still, moving) -> None:
    layers = layer_groups(resnet)
    freeze_but(resnet, layers, groups)
    before_still, before_moving = statistics(resnet, still or "none"), statistics(resnet, moving or "none")
    for _ in range(3):
        train_once(resnet)
    assert statistics(resnet, still or "none") == before_still
    if moving:
        after = statistics(resnet, moving)
        assert all(after[name] != before_moving[name] for name in after)
    resnet.zero_grad()


@pytest.mark.parametrize("groups", [[0], [1], [2], [0, 2], [0, 1, 2]])
def test_only_the_chosen_groups_have_gradients(resnet, groups: list[int]) -> None:
    layers = layer_groups(resnet)
    freeze_but(resnet, layers, groups)
    train_once(resnet)
    for number, layer in enumerate(layers):
        assert all((parameter.grad is not None) == (number in groups) for _, parameter in layer)
    resnet.zero_grad()


def test_unfreezing_makes_everything_learn_again(resnet) -> None:
    layers = layer_groups(resnet)
    freeze_but(resnet, layers, [2])
    freeze_but(resnet, layers, [0, 1, 2])
    train_mode(resnet)
    assert all(parameter.requires_grad for parameter in resnet.parameters())
    assert all(module.training for module in resnet.modules())


def test_batch_norm_without_parameters_follows_its_parent() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), nn.Conv2d(4, 2, 1))
    model.layer_prefixes = [["0."], ["1."]]
    freeze_but(model, layer_groups(model), [1])
    train_mode(model)
    assert not model[0][1].training
    freeze_but(model, layer_groups(model), [0, 1])
    train_mode(model)
    assert model[0][1].training


def test_a_frozen_body_has_no_batch_norm_in_training(resnet) -> None:
    layers = layer_groups(resnet)
    freeze_but(resnet, layers, [2])
    train_mode(resnet)
    assert not has_batch_norm(resnet)
    freeze_but(resnet, layers, [0, 1, 2])
    train_mode(resnet)
    assert has_batch_norm(resnet)


def test_dropout_of_a_frozen_group_goes_on() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    model.layer_prefixes = [["0."], ["1."]]
    freeze_but(model, layer_groups(model), [1])
    train_mode(model)
    assert model[0][1].training


def test_families_are_models_timm_knows() -> None:
    assert all(timm.is_model(name) for name in FAMILIES)
