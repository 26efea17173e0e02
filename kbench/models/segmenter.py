"""Networks that judge every pixel: decoders of segmentation_models_pytorch on any timm backbone.

`Segmenter` makes a network that wants sides divisible by 32 or so take images of any size: it mirrors the borders
outwards (`padded`) and cuts the result back. To add another decoder of the library, add a row to `_DECODERS`; to add
another network, wrap it in a `Segmenter` and register it, as `signate_unet.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal

import segmentation_models_pytorch
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kbench.errors import ConfigError, check_number
from kbench.models.checkpoint import joined
from kbench.models.classifier import any_size, check_backbone, making
from kbench.registry import register
from kbench.tasks import DENSE

Place = tuple[EllipsisType, slice, slice]
Decoder = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet",
    "segformer", "dpt",
]  # fmt: skip
_WIDTHS = (256, 128, 64, 32, 16)  # of U-Nets, deepest block first
_SQUEEZE = 16  # by how much scSE reduces channels


class _Exact(nn.Module):
    """What a layer becomes by `exactly`: its own class with this one before it."""

    def forward(self, *maps: Any) -> Any:
        """Compute in fp32, whatever the pass around it does."""
        with torch.autocast(maps[0].device.type, enabled=False):
            return super().forward(*(one.float() for one in maps))


def exactly(layer: nn.Module) -> nn.Module:
    """Have a layer of maps compute in fp32 in passes of any precision; it stays the same object with the same weights.

    A last layer in bf16 says numbers in steps: of 2 at 300. In fp32 it costs next to nothing.
    """
    kind = type(layer)
    layer.__class__ = type(kind.__name__, (_Exact, kind), {})
    return layer


class Segmenter(nn.Module):
    """A network of images [B, C, H, W] to logits [B, K, H, W], for any H and W.

    Args:
        net: takes images whose sides are multiples of `divisor`.
        body: name of its submodule that pretrained weights are for.
        marks: names of the submodules of the body that its feature maps come from, first to last.
        divisor: what both sides must be multiples of.
        least: shortest side the network can do with.
        config: mean and std the backbone was trained with.
    """

    def __init__(
        self, net: nn.Module, *, body: str, marks: Sequence[str], divisor: int, least: int, config: dict[str, Any]
    ) -> None:
        super().__init__()
        self.net, self._body = net, body
        self.divisor, self.least = divisor, max(least, divisor)
        self.config, self._marks = config, tuple(marks)
        self.layer_prefixes = [*_halves(self.body, f"net.{body}.", marks), ["net."]]

    def around(self, net: nn.Module) -> Segmenter:
        """Return the same around another network that has this one's encoder by the same name."""
        return Segmenter(
            net, body=self._body, marks=self._marks, divisor=self.divisor, least=self.least, config=self.config
        )

    @property
    def body(self) -> nn.Module:
        """The encoder; its names are those of timm's weights files."""
        return self.net.get_submodule(self._body)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K, H, W] of normalised [B, C, H, W] images."""
        tall, wide = (max(self.least, -(-side // self.divisor) * self.divisor) for side in images.shape[-2:])
        filled, place = padded(images, (tall, wide))
        logits: torch.Tensor = self.net(filled)
        return logits[place]


@dataclass(frozen=True)
class _Facts:
    """What an architecture calls its options.

    Attributes:
        channels: its number, or list, of channels; empty where it has none to choose.
        dropout: its dropout; empty where it has none of its own.
        attention: whether its blocks may have attention.
        interpolation: whether its upsampling can be chosen.
        depth: stages of the encoder it uses by default.
        cells: smallest side of the maps it begins with.
        multiple: of how many cells that side must be.
    """

    channels: str = "decoder_channels"
    dropout: str = ""
    attention: bool = False
    interpolation: bool = False
    depth: int = 5
    cells: int = 1
    multiple: int = 1


_DECODERS: dict[str, _Facts] = {
    "unet": _Facts(attention=True, interpolation=True),
    "unetplusplus": _Facts(attention=True, interpolation=True),
    "manet": _Facts(interpolation=True),
    "linknet": _Facts(""),
    "fpn": _Facts("decoder_pyramid_channels", "decoder_dropout", interpolation=True),
    "pspnet": _Facts("psp_out_channels", "psp_dropout", depth=3),
    "deeplabv3": _Facts(dropout="decoder_aspp_dropout"),
    "deeplabv3plus": _Facts(dropout="decoder_aspp_dropout"),
    "pan": _Facts(interpolation=True, cells=8),  # it halves them three times more
    "upernet": _Facts(),
    "segformer": _Facts("decoder_segmentation_channels"),
    "dpt": _Facts("decoder_fusion_channels", depth=4, multiple=2),
}


@register("model", tasks=DENSE, backbone="timm")
def smp(
    n_outputs: int,
    in_channels: int,
    *,
    _backbone: str,
    _pretrained: bool = False,
    _size: tuple[int, int] = (224, 224),
    _task: str = "segmentation",
    decoder: Decoder = "unet",
    decoder_attention: Literal["scse"] | None = None,
    decoder_channels: int | list[int] | None = None,
    depth: int | None = None,
    dropout: float | None = None,
    interpolation: Literal["nearest", "bilinear"] | None = None,
    decode: dict[str, Any] | None = None,
    create: dict[str, Any] | None = None,
) -> Segmenter:
    """Return a decoder of segmentation_models_pytorch on a timm backbone (B-04, D-06, S-20, S-22).

    Args:
        n_outputs: number of maps.
        in_channels: channels of the images; a pretrained stem is adapted to them.
        _backbone: name of a timm model; `dpt` takes vision transformers, the others models with feature maps.
        _pretrained: fetch timm's weights from their hub.
        _size: image height and width, for the messages; images may have any size.
        _task: the competition's; numbers come from a last layer in fp32.
        decoder: the architecture.
        decoder_attention: `scse` puts squeeze and excitation of channels and places into every block (U-Nets).
        decoder_channels: a width per block, deepest first (U-Nets, `manet`); a single width elsewhere.
        depth: stages of the encoder that are used; 5 by default, 3 for `pspnet`, 4 for `dpt`.
        dropout: of the decoder; where it has none of its own, whole maps are dropped before the last layer.
        interpolation: how the decoder enlarges maps.
        decode: further keyword arguments of the architecture, such as `decoder_use_norm: identity`.
        create: further keyword arguments of `timm.create_model`, such as `pad_type: same`.

    Raises:
        ConfigError: the decoder has no such option, or does not go with the backbone.
        CheckpointError: the backbone's weights cannot be fetched.
    """
    if problem := check_backbone(_backbone):
        raise ConfigError(problem, "a model of `timm.list_models()`", "correct model.backbone")
    facts = _DECODERS[decoder]
    depth = depth or facts.depth
    options = _options(
        decoder, depth, attention=decoder_attention, channels=decoder_channels, dropout=dropout,
        interpolation=interpolation,
    )  # fmt: skip
    settings = {**options, **(decode or {}), **(create or {})}
    with making(_backbone, pretrained=_pretrained, size=_size, options={"decoder": decoder, **settings}):
        headless = {"num_classes": 0, "global_pool": ""} if decoder == "dpt" else {}
        build = segmentation_models_pytorch.MODEL_ARCHITECTURES_MAPPING[decoder]
        net: Any = build(
            f"tu-{_backbone}", encoder_depth=depth, encoder_weights=True if _pretrained else None,
            in_channels=in_channels, classes=n_outputs,
            **{**any_size(_backbone), **headless, **settings},
        )  # fmt: skip
        if dropout and not facts.dropout:
            net.segmentation_head = nn.Sequential(nn.Dropout2d(dropout), net.segmentation_head)
        if _task == "dense_regression":
            exactly(net.segmentation_head)
        stride, body = int(net.encoder.output_stride), net.encoder.model
        if decoder == "dpt":
            body.norm = nn.Identity()  # behind the last maps it takes
        marks = _marks(body)
        _cut(body, marks[-1])
        model = Segmenter(
            net, body="encoder.model", marks=marks, divisor=stride * facts.multiple, least=stride * facts.cells,
            config=dict(body.pretrained_cfg),
        )  # fmt: skip
        _try(model, in_channels, n_outputs)
    return model


def _options(
    decoder: str,
    depth: int,
    *,
    attention: str | None,
    channels: int | list[int] | None,
    dropout: float | None,
    interpolation: str | None,
) -> dict[str, Any]:
    """Return the keyword arguments of an architecture."""
    facts, options = _DECODERS[decoder], dict[str, Any]()
    check_number("depth", depth, "[1, 5]", whole=True)
    if attention is not None:
        _need(decoder, "decoder_attention", facts.attention)
        options["decoder_attention_type"] = attention
    if interpolation is not None:
        _need(decoder, "interpolation", facts.interpolation)
        options["decoder_interpolation"] = interpolation
    if decoder in ("unet", "unetplusplus", "manet"):
        options["decoder_channels"] = list(_WIDTHS[:depth])
    if decoder == "pspnet":
        options["upsampling"] = 2**depth
    if channels is not None:
        _need(decoder, "decoder_channels", bool(facts.channels))
        options[facts.channels] = channels
    if attention is not None and min(options["decoder_channels"]) < _SQUEEZE:
        raise ConfigError(
            f"decoder_channels is '{options['decoder_channels']}' with decoder_attention",
            f"widths of {_SQUEEZE} or more: a {_SQUEEZE}th of them is what the attention works with",
            "correct model.options.decoder_channels",
        )
    if dropout is not None:
        check_number("dropout", dropout, "[0, 1)")
        options |= {facts.dropout: dropout} if facts.dropout else {}
    return options


def _need(decoder: str, option: str, there: bool) -> None:
    if not there:
        raise ConfigError(
            f"the decoder '{decoder}' has no {option}",
            "options of this decoder; `kbench list model` names them",
            f"remove model.options.{option} or choose another decoder",
        )


def _marks(body: Any) -> list[str]:
    """Return the names of the submodules that feature maps come from."""
    info = body.feature_info
    return list(info.module_name()) if hasattr(info, "module_name") else [str(stage["module"]) for stage in info]


def _cut(body: Any, last: str) -> None:
    """Take off the blocks behind the last feature map, which timm's EfficientNets keep and compute."""
    kind, _, number = last.partition(".")
    if kind == "blocks" and number.isdigit() and isinstance(getattr(body, "blocks", None), nn.Sequential):
        body.blocks = body.blocks[: int(number) + 1]


@torch.no_grad()
def _try(model: Segmenter, in_channels: int, n_outputs: int) -> None:
    """Hold the logits of one small image against what was asked for."""
    was, side = model.training, model.least
    model.eval()
    shape = model.net(torch.zeros(1, in_channels, side, side)).shape
    model.train(was)
    if shape != (1, n_outputs, side, side):
        raise ConfigError(
            f"the decoder gives maps of {shape[-2]} x {shape[-1]} for images of {side} x {side}",
            "maps as large as the image",
            "correct model.options.depth or `decode: {upsampling: N}`",
        )


def _halves(body: nn.Module, prefix: str, marks: Sequence[str]) -> list[list[str]]:
    """Cut the parameters of an encoder behind the middle one of its stages; return their full names."""
    names = [name for name, _ in body.named_parameters()]
    early = tuple(f"{joined(mark)}_" for mark in marks[: math.ceil(len(marks) / 2)])
    places = [place for place, name in enumerate(names) if joined(name).startswith(early)]
    end = places[-1] + 1 if places and places[-1] + 1 < len(names) else len(names) // 2
    return [[f"{prefix}{name}" for name in part] for part in (names[:end], names[end:])]


def padded(images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Place]:
    """Return images padded on all sides by reflection, and the index that cuts [..., H, W] back.

    Args:
        images: [B, C, H, W].
        size: height and width, not below those of the images; an image is reflected as often as it takes.
    """
    height, width = images.shape[-2:]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    place = (..., slice(top, top + height), slice(left, left + width))
    down, across = size[0] - height, size[1] - width
    if not down and not across:
        return images, place
    if max(down - top, top) < height and max(across - left, left) < width:
        return pad(images, (left, across - left, top, down - top), mode="reflect"), place
    rows = _reflected(height, -top, size[0], images.device)
    columns = _reflected(width, -left, size[1], images.device)
    return images[..., rows, :][..., columns], place


def _reflected(length: int, first: int, count: int, device: torch.device) -> Tensor:
    """Return `count` positions from `first` on, reflected into 0..length-1 without repeating the border."""
    places = torch.arange(first, first + count, device=device)
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * (length - 1)
    places = places % period
    return torch.minimum(places, period - places)
