from __future__ import annotations

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import segmentation_models_pytorch
import timm
import torch
from places import SHARED
from safetensors.torch import save_file
from torch import nn

from kbench import registry
from kbench.errors import CheckpointError, ConfigError
from kbench.models.checkpoint import load_pretrained, read_tensors
from kbench.models.layer_groups import layer_groups
from kbench.models.segmenter import Segmenter, smp

SHARED = SHARED / "weights" / "mobilenetv2_100.safetensors"
DECODERS = sorted(set(segmentation_models_pytorch.MODEL_ARCHITECTURES_MAPPING))
SMALL = {"unet": [16, 16, 8, 8, 8], "unetplusplus": [16, 16, 8, 8, 8], "manet": [64, 64, 64, 64, 16]}
pytestmark = [
    pytest.mark.slow,  # a few seconds together
    pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]


def made(decoder: str = "unet", *, channels: int = 3, outputs: int = 3, backbone: str = "", **options) -> Segmenter:
    backbone = backbone or ("test_vit" if decoder == "dpt" else "test_efficientnet")
    widths = {"decoder_channels": SMALL[decoder]} if decoder in SMALL and "depth" not in options else {}
    torch.manual_seed(0)
    return smp(outputs, channels, _backbone=backbone, _size=(64, 48), decoder=decoder, **{**widths, **options})


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_gives_maps_of_the_size_of_any_image_and_learns_everywhere(decoder: str) -> None:
    model = made(decoder, channels=2)
    logits = model(torch.rand(2, 2, 101, 75))
    assert logits.shape == (2, 3, 101, 75)
    logits.square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    groups = layer_groups(model)
    assert len(groups) == 3
    assert all("encoder.model" in name for name, _ in groups[0] + groups[1])
    assert not any("encoder.model" in name for name, _ in groups[2])


@pytest.mark.parametrize(("backbone", "decoder"), [
    ("test_convnext", "unet"), ("test_resnet", "fpn"), ("swin_tiny_patch4_window7_224", "segformer"),
    ("vgg11", "linknet"),
])  # fmt: skip
@pytest.mark.slow
def test_backbones_of_every_kind_take_images_of_any_size(backbone: str, decoder: str) -> None:
    model = made(decoder, backbone=backbone, channels=1).eval()
    assert model(torch.rand(1, 1, 70, 90)).shape == (1, 3, 70, 90)


@pytest.mark.parametrize("channels", [1, 3, 15, 20])
def test_any_number_of_channels(channels: int) -> None:
    assert made(channels=channels, outputs=1).eval()(torch.rand(1, channels, 33, 40)).shape == (1, 1, 33, 40)


# -- borders --------------------------------------------------------------------------------------------------


def test_the_maps_are_those_of_the_image_mirrored_to_the_divisor() -> None:
    model = made().eval()
    images = torch.rand(2, 3, 101, 101)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (13, 14), (13, 14)), mode="reflect"))
    torch.testing.assert_close(model(images), model.net(padded)[..., 13:114, 13:114])


# -- options --------------------------------------------------------------------------------------------------


def test_scse_is_squeeze_and_excitation_of_channels_plus_that_of_places() -> None:
    model = made(decoder_attention="scse", decoder_channels=[32, 32, 32, 16, 16])
    [block, *_] = [module for module in model.modules() if type(module).__name__ == "SCSEModule"]
    maps = torch.randn(2, block.sSE[0].in_channels, 5, 7)
    squeeze, excite = block.cSE[1], block.cSE[3]
    channels = torch.sigmoid(excite(torch.relu(squeeze(maps.mean((2, 3), keepdim=True)))))
    places = torch.sigmoid(block.sSE[0](maps))
    torch.testing.assert_close(block(maps), maps * channels + maps * places)
    assert not any(type(module).__name__ == "SCSEModule" for module in made().modules())


def test_linknet_adds_skips_to_blocks_of_three_convolutions() -> None:
    decoder: nn.Module = made("linknet", backbone="resnet18").net.decoder  # type: ignore[assignment]
    first = decoder.blocks[0]  # type: ignore[index]
    convolutions = [m for m in first.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [type(m).__name__ for m in convolutions] == ["Conv2d", "ConvTranspose2d", "Conv2d"]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [(512, 128), (128, 128), (128, 256)]
    assert (convolutions[1].kernel_size, convolutions[1].stride, convolutions[1].padding) == ((4, 4), (2, 2), (1, 1))
    deep, skip = torch.randn(2, 512, 2, 2), torch.randn(2, 256, 4, 4)
    first.eval()
    torch.testing.assert_close(first(deep, skip), first(deep) + skip)


@pytest.mark.parametrize(("decoder", "kind"), [("unet", nn.Dropout2d), ("fpn", nn.Dropout2d), ("pspnet", nn.Dropout2d)])
def test_dropout_reaches_every_decoder(decoder: str, kind: type[nn.Module]) -> None:
    found = [m.p for m in made(decoder, dropout=0.35).modules() if isinstance(m, kind)]  # type: ignore[attr-defined]
    assert 0.35 in found


def test_options_reach_decoder_and_backbone() -> None:
    model = made(
        create={"pad_type": "same"}, decode={"decoder_use_norm": "identity"}, interpolation="bilinear", depth=4,
        decoder_channels=[32, 16, 8, 8],
    )  # fmt: skip
    assert "Same" in type(model.body.conv_stem).__name__
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.net.decoder.modules())  # type: ignore[union-attr]
    assert model.divisor == 16
    assert model(torch.rand(2, 3, 40, 24)).shape == (2, 3, 40, 24)


@pytest.mark.parametrize("options", [
    {"decoder": "fpn", "decoder_attention": "scse"}, {"decoder": "linknet", "decoder_channels": [1]},
    {"decoder_attention": "scse", "decoder_channels": [16, 16, 16, 16, 8]}, {"decoder_channels": [8]},
    {"decoder": "segformer", "interpolation": "bilinear"}, {"depth": 6}, {"dropout": 1.0},
    {"create": {"no_such_option": 1}}, {"create": {"features_only": False}}, {"decode": {"classes": 7}},
    {"backbone": "test_vit"}, {"backbone": "resnet5"}, {"decoder": "fpn", "decode": {"upsampling": 2}},
])  # fmt: skip
def test_what_cannot_be_built_is_an_error_with_a_remedy(options) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**options)
    assert caught.value.todo


def test_a_classifier_is_refused_for_masks_and_a_segmenter_for_labels() -> None:
    for name, task, fits in (
        ("timm", "segmentation", False), ("timm", "single_label", True), ("timm", "regression", True),
        ("smp", "single_label", False), ("smp", "segmentation", True), ("smp", "dense_regression", True),
    ):  # fmt: skip
        problems = registry.bind("model", name, {}, where="model.name", task=task)
        assert (problems == []) is fits


# -- weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize(("backbone", "create"), [
    ("mobilenetv2_050", {"pad_type": "same"}), ("test_convnext", {}), ("test_resnet", {}),
])  # fmt: skip
def test_weights_of_the_classifier_give_its_feature_maps(backbone, create, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier = timm.create_model(backbone, **create).eval()
    for buffer in classifier.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    save_file(classifier.state_dict(), tmp_path / "w.safetensors")
    model = made(backbone=backbone, create=create, channels=channels).eval()
    left = load_pretrained(model.body, read_tensors(tmp_path / "w.safetensors"), file="w")
    assert left
    images = torch.rand(2, 3, 64, 96)
    if channels == 3:
        wanted = classifier.forward_intermediates(images, intermediates_only=True)
        for found, want in zip(model.body(images)[-3:], wanted[-3:], strict=True):
            torch.testing.assert_close(found, want)
    else:
        assert torch.isfinite(model(torch.rand(1, channels, 64, 96))).all()


def test_weights_of_another_backbone_are_an_error() -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load_pretrained(made().body, timm.create_model("test_resnet").state_dict(), file="w")


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared weights are not here")
def test_the_shared_weights_give_the_feature_maps_of_the_classifier() -> None:
    create = {"pad_type": "same"}
    model = made(backbone="mobilenetv2_100", create=create).eval()
    load_pretrained(model.body, read_tensors(SHARED), file=str(SHARED))
    body = timm.create_model("mobilenetv2_100", num_classes=0, **create).eval()
    load_pretrained(body, read_tensors(SHARED), file=str(SHARED))
    images = torch.randn(1, 3, 64, 96)
    before = body.blocks(body.bn1(body.conv_stem(images)))
    torch.testing.assert_close(model.body(images)[-1], before)


def test_weights_that_cannot_be_fetched_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot be fetched") as caught:
        smp(3, 3, _backbone="resnet10t", _pretrained=True)
    assert "weights:" in caught.value.todo
