from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from kbench.errors import ConfigError
from kbench.models.checkpoint import load_pretrained, read_tensors
from kbench.models.layer_groups import layer_groups
from kbench.models.segmenter import Segmenter
from kbench.models.signate_unet import resnet_unet


def made(backbone: str = "test_resnet", *, outputs: int = 3, channels: int = 3, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    return resnet_unet(outputs, channels, _backbone=backbone, **options)


@pytest.mark.parametrize(("backbone", "deconv", "parameters"), [  # counted by hand from the original's layers
    ("resnet18", False, 24_497_364), ("resnet18", True, 27_507_924), ("resnet34", False, 34_605_524),
    ("resnet34", True, 37_616_084), ("resnet50", False, 55_629_524),
])  # fmt: skip
def test_it_has_as_many_parameters_as_the_original(backbone: str, deconv: bool, parameters: int) -> None:
    with torch.device("meta"):
        model = made(backbone, outputs=20, deconv=deconv)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize("backbone", ["resnet101", "resnet152"])
def test_the_deep_encoders_are_there(backbone: str) -> None:
    with torch.device("meta"):
        model = made(backbone)
    assert model.net.dec5[1][0].in_channels == 2048 + 256  # type: ignore[index,union-attr]


@pytest.mark.parametrize("deconv", [False, True])
def test_the_blocks_give_the_shapes_of_the_original(deconv: bool) -> None:
    model = made("resnet18", deconv=deconv).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("center", "dec5", "dec4", "dec3", "dec2", "dec1", "dec0", "final"):
        module: nn.Module = getattr(model.net, name)
        module.register_forward_hook(lambda _, given, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    assert model(torch.rand(1, 3, 64, 128)).shape == (1, 3, 64, 128)
    assert shapes == {
        "center": (256, 2, 4), "dec5": (256, 4, 8), "dec4": (256, 8, 16), "dec3": (64, 16, 32), "dec2": (128, 32, 64),
        "dec1": (32, 64, 128), "dec0": (32, 64, 128), "final": (3, 64, 128),
    }  # fmt: skip


@pytest.mark.parametrize("size", [(64, 64), (101, 75), (33, 130)])
@pytest.mark.parametrize("deconv", [False, True])
def test_images_of_any_size_and_channels_teach_every_parameter(size: tuple[int, int], deconv: bool) -> None:
    model = made(channels=20, outputs=2, filters=8, deconv=deconv)
    logits = model(torch.rand(2, 20, *size))
    assert logits.shape == (2, 2, *size)
    logits.square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_there_is_no_batch_norm_in_the_decoder_and_three_layer_groups() -> None:
    model = made("resnet18")
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(name.startswith("net.encoder.") for name in norms)
    early, late, decoder = ([name for name, _ in group] for group in layer_groups(model))
    assert early[-1].startswith("net.encoder.layer2")
    assert late[0].startswith("net.encoder.layer3")
    assert not any("encoder" in name for name in decoder)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_torchvisions_weights_files_fit_the_encoder(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path / f"resnet18.{ending}"
    if ending == "pth":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    model = made("resnet18").eval()
    assert load_pretrained(model.body, read_tensors(path), file=str(path)) == ["fc.bias", "fc.weight"]
    images = torch.rand(1, 3, 64, 64)
    expected = nn.Sequential(*list(theirs.children())[:-2])(images)
    torch.testing.assert_close(model.body.forward_features(images), expected)  # type: ignore[operator]
    other = made("resnet18", channels=5)
    load_pretrained(other.body, read_tensors(path), file=str(path))
    assert other.body.conv1.weight.shape[1] == 5  # type: ignore[union-attr,index]


def test_dropout_takes_whole_maps() -> None:
    assert made(dropout=0.3).net.dropout.p == 0.3  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [
    {"backbone": "convnext_atto"}, {"backbone": "resnet5"}, {"filters": 0}, {"dropout": 1.0}, {"create": {"nope": 1}},
])  # fmt: skip
def test_what_cannot_be_built_is_an_error_with_a_remedy(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**options)
    assert caught.value.todo
