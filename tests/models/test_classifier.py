from __future__ import annotations

import huggingface_hub
import pytest
import torch
from torch import nn

from kbench.errors import CheckpointError, ConfigError
from kbench.models.classifier import (  # fmt: skip
    Classifier,
    ConcatPool,
    backbone_statistics,
    check_backbone,
    concat_head,
    timm_classifier,
)

pytestmark = [  # timm resizes tables of positions by means torch has since renamed
    pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]


def made(name: str = "resnet10t", **options) -> Classifier:
    return timm_classifier(
        options.pop("outputs", 3), options.pop("channels", 3), _backbone=name, _size=options.pop("size", (32, 32)),
        **options,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3, 5, 15])
@pytest.mark.parametrize("head", ["linear", "concat", "timm"])
def test_a_classifier_gives_one_logit_per_target(channels: int, head: str) -> None:
    model = made(channels=channels, head=head, outputs=7)
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("name", "size"), [
    ("mobilenetv2_050", (32, 48)), ("convnext_atto", (32, 64)), ("vit_tiny_patch16_224", (64, 48)),
    ("swin_tiny_patch4_window7_224", (64, 64)), ("regnetx_002", (40, 40)),
])  # fmt: skip
def test_backbones_of_every_kind_take_the_size_of_the_images(name: str, size: tuple[int, int]) -> None:
    assert made(name, size=size)(torch.zeros(2, 3, *size)).shape == (2, 3)


def test_a_transformer_is_judged_by_its_token() -> None:
    model = made("vit_tiny_patch16_224", size=(32, 32))
    features = model.encode(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(model.head(model.pool(features)), model.head[1](features[:, 0]))


def test_a_transformer_that_was_trained_with_mean_pooling_takes_the_mean_of_places_without_the_token() -> None:
    model = made("eva02_tiny_patch14_224", size=(28, 28))
    features = model.encode(torch.randn(2, 3, 28, 28))
    assert features.shape[1] == 1 + 4
    torch.testing.assert_close(model.head(model.pool(features)), model.head[1](features[:, 1:].mean(1)))
    assert any("fc_norm" in name for name in model.body.state_dict())  # the norm its weights were trained with


def test_a_convolutional_network_is_judged_by_the_mean_of_its_maps() -> None:
    model = made()
    maps = model.encode(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(model.head(model.pool(maps)), model.head[1](maps.mean((2, 3))))


def test_channels_last_maps_are_pooled_over_places_not_channels() -> None:
    model = made("swin_tiny_patch4_window7_224", size=(64, 64), head="concat")
    assert model.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 768, 2, 2)


def test_the_lessons_head_has_the_lessons_layers() -> None:
    head = concat_head(512, 2, hidden=[512], dropout=[0.25, 0.5])
    kinds = [type(layer) for layer in head]
    assert kinds == [
        nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear,
    ]  # fmt: skip
    assert [layer.in_features for layer in head if isinstance(layer, nn.Linear)] == [1024, 512]
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.25, 0.5]


def test_the_concat_pool_puts_the_largest_before_the_mean() -> None:
    maps = torch.randn(2, 5, 3, 4)
    pooled = ConcatPool()(maps)
    torch.testing.assert_close(pooled, torch.cat([maps.flatten(2).max(2).values, maps.flatten(2).mean(2)], 1))
    tokens = torch.randn(2, 7, 5)
    torch.testing.assert_close(ConcatPool()(tokens), torch.cat([tokens.max(1).values, tokens.mean(1)], 1))


def test_one_dropout_is_used_for_every_layer() -> None:
    head = concat_head(8, 2, hidden=[4, 4], dropout=[0.1])
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.1] * 3
    with pytest.raises(ConfigError, match="2 values"):
        concat_head(8, 2, hidden=[4, 4], dropout=[0.1, 0.2])


def test_the_same_seed_makes_the_same_model() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append({name: value.clone() for name, value in made(head="concat").state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_options_of_timm_reach_it() -> None:
    model = made("mobilenetv2_050", create={"pad_type": "same"}, drop_path=0.1)
    assert "Same" in type(model.body.conv_stem).__name__


@pytest.mark.parametrize("options", [
    {"create": {"no_such_option": 1}}, {"dropout": 1.0}, {"dropout": [-0.1]}, {"drop_path": 1.5}, {"size": (2, 2)},
])  # fmt: skip
def test_what_timm_cannot_build_is_an_error_with_a_remedy(options) -> None:
    with pytest.raises(ConfigError) as caught:
        made("vgg11" if "size" in options else "resnet10t", **options)
    assert caught.value.todo


@pytest.mark.parametrize("name", ["coat_tiny", "deit_tiny_distilled_patch16_224"])
def test_a_backbone_that_cannot_do_without_its_own_pooling_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"backbone|coat_tiny"):
        made(name, size=(224, 224))


@pytest.mark.parametrize(("name", "near"), [
    ("resnet5", "resnet50"), ("resnet18.nope", "resnet18."), ("mobilenet2_100", "mobilenetv2_100"), ("qqqq", "known"),
])  # fmt: skip
def test_an_unknown_backbone_is_an_error_with_the_nearest_name_and_not_a_list_of_all(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=near) as caught:
        made(name)
    assert len(str(caught.value)) < 500
    assert backbone_statistics(name) is None


def test_known_backbones_pass_with_and_without_a_tag() -> None:
    assert check_backbone("resnet18") == check_backbone("resnet18.a1_in1k") == ""
    assert backbone_statistics("resnet18") == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_weights_that_cannot_be_fetched_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot be fetched") as caught:
        made(_pretrained=True)
    assert "weights:" in caught.value.todo


@pytest.mark.filterwarnings("ignore::UserWarning")  # timm's, of its own indexing
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_backbone_of_one_size_takes_the_sizes_of_several_stages(name: str) -> None:
    model = made(name, size=(112, 112), _several=True).eval()
    with torch.no_grad():
        assert [model(torch.zeros(1, 3, side, side)).shape for side in (112, 224)] == [(1, 3)] * 2


def test_a_backbone_that_cannot_take_several_sizes_says_so_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="takes images of one size"):
        made("beit_base_patch16_224", size=(112, 112), _several=True)
