"""The U-Net of the Signate system: a ResNet encoder, and a decoder without batch norm."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import nn

from kbench.errors import ConfigError, check_number
from kbench.models.classifier import check_backbone, making
from kbench.models.segmenter import Segmenter, exactly
from kbench.registry import register
from kbench.tasks import DENSE

_STAGES = ("layer1", "layer2", "layer3", "layer4")
_DIVISOR = 64  # halved once by the stem, once by the pool behind it, three times by stages and once more by a pool


def _conv_relu(wide: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(wide, out, 3, padding=1), nn.ReLU(inplace=True))


class _Block(nn.Sequential):
    """Enlarge maps [B, C, H, W] to [B, out, 2H, 2W]: nearest and two convolutions, or one and a transposed one."""

    def __init__(self, wide: int, middle: int, out: int, *, deconv: bool) -> None:
        first = _conv_relu(wide, middle)
        if deconv:
            transposed = nn.ConvTranspose2d(middle, out, kernel_size=4, stride=2, padding=1)
            super().__init__(first, transposed, nn.ReLU(inplace=True))
        else:
            super().__init__(nn.Upsample(scale_factor=2, mode="nearest"), first, _conv_relu(middle, out))


class _ResNetUNet(nn.Module):
    """The network, for images whose sides are multiples of 64.

    Args:
        encoder: a timm ResNet without classifier.
        n_outputs: number of maps.
        filters: what the widths of the decoder are multiples of.
        deconv: enlarge by transposed convolutions.
        dropout: of whole maps before the last layer.
    """

    def __init__(self, encoder: Any, n_outputs: int, *, filters: int, deconv: bool, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        one, two, three, four = (_width(getattr(encoder, stage)) for stage in _STAGES)
        self.center = _Block(four, filters * 16, filters * 8, deconv=deconv)
        self.dec5 = _Block(four + filters * 8, filters * 16, filters * 8, deconv=deconv)
        self.dec4 = _Block(three + filters * 8, filters * 16, filters * 8, deconv=deconv)
        self.dec3 = _Block(two + filters * 8, filters * 8, filters * 2, deconv=deconv)
        self.dec2 = _Block(one + filters * 2, filters * 4, filters * 4, deconv=deconv)
        self.dec1 = _Block(filters * 4, filters * 4, filters, deconv=deconv)
        self.dec0 = _conv_relu(filters, filters)
        self.dropout = nn.Dropout2d(dropout)
        self.final = nn.Conv2d(filters, n_outputs, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K, H, W]."""
        encoder = self.encoder
        maps = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(images))))  # [B, C, H/4, W/4]
        skips = []
        for stage in _STAGES:
            maps = getattr(encoder, stage)(maps)
            skips.append(maps)
        maps = self.center(F.max_pool2d(maps, 2))  # from [B, C, H/64, W/64] to H/32
        for block in (self.dec5, self.dec4, self.dec3, self.dec2):
            maps = block(torch.cat([maps, skips.pop()], 1))
        logits: torch.Tensor = self.final(self.dropout(self.dec0(self.dec1(maps))))
        return logits


def _width(stage: Any) -> int:
    """Return the channels a stage of a ResNet gives: those of the last convolution of its last block."""
    return int([module for module in stage[-1].modules() if isinstance(module, nn.Conv2d)][-1].out_channels)


@register("model", tasks=DENSE, backbone="timm")
def resnet_unet(
    n_outputs: int,
    in_channels: int,
    *,
    _backbone: str,
    _pretrained: bool = False,
    _size: tuple[int, int] = (256, 256),
    _task: str = "segmentation",
    filters: int = 32,
    deconv: bool = False,
    dropout: float = 0.0,
    create: dict[str, Any] | None = None,
) -> Segmenter:
    """Return the Signate system's U-Net: five stages and a centre, no batch norm in the decoder (S-04).

    Args:
        n_outputs: number of maps.
        in_channels: channels of the images; a pretrained stem is adapted to them.
        _backbone: a ResNet of timm: resnet18, 34, 50, 101, 152 are torchvision's, and take its weights files.
        _pretrained: fetch timm's weights from their hub.
        _size: image height and width, for the messages; images may have any size.
        _task: the competition's; numbers come from a last layer in fp32.
        filters: the widths of the decoder are 1, 2, 4 and 8 times as many.
        deconv: enlarge by transposed convolutions instead of repeating pixels.
        dropout: of whole maps before the last layer.
        create: further keyword arguments of `timm.create_model`.

    Raises:
        ConfigError: a value is out of range, or the backbone is no ResNet.
        CheckpointError: its weights cannot be fetched.
    """
    check_number("filters", filters, "[1, 1024]", whole=True)
    check_number("dropout", dropout, "[0, 1)")
    if problem := check_backbone(_backbone):
        raise ConfigError(problem, "a model of `timm.list_models()`", "correct model.backbone")
    with making(_backbone, pretrained=_pretrained, size=_size, options=create or {}):
        encoder: Any = timm.create_model(
            _backbone, pretrained=_pretrained, in_chans=in_channels, **{**(create or {}), "num_classes": 0}
        )
        config = dict(encoder.pretrained_cfg)
    if not isinstance(encoder, ResNet):
        raise ConfigError(
            f"'{_backbone}' is no ResNet", "resnet18, 34, 50, 101, 152 or a kin of them in timm",
            "correct model.backbone, or take `model: {name: smp}`",
        )  # fmt: skip
    net = _ResNetUNet(encoder, n_outputs, filters=filters, deconv=deconv, dropout=dropout)
    if _task == "dense_regression":
        exactly(net.final)
    return Segmenter(net, body="encoder", marks=("act1", *_STAGES), divisor=_DIVISOR, least=_DIVISOR, config=config)
