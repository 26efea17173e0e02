"""U-Nets without a pretrained encoder, at full resolution: `unet_plain`, and the `deepsense` of the DSTL contest.

Both are small, take any number of channels and keep what is one pixel wide: nothing is halved before the first skip. To
add another one, write its layers as an `encoder` and a `decoder` and wrap them in a `Segmenter`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from kbench.errors import ConfigError, check_number
from kbench.models.segmenter import Segmenter, exactly
from kbench.registry import register
from kbench.tasks import DENSE

Norm = Literal["batch", "group", "none"]
_WIDE, _MERGED, _LEVELS = 64, 96, 4  # channels of `deepsense`, behind a skip, and its levels below the first


def _norm(norm: Norm, width: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(max(n for n in range(1, 9) if width % n == 0), width) if norm == "group" else nn.Identity()


def _twice(wide: int, out: int, norm: Norm) -> nn.Sequential:
    """Return two 3x3 convolutions with norm and ReLU: [B, wide, H, W] -> [B, out, H, W]."""
    layers: list[nn.Module] = []
    for inside in (wide, out):
        layers += [nn.Conv2d(inside, out, 3, padding=1, bias=norm == "none"), _norm(norm, out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class _PlainEncoder(nn.Module):
    """[B, C, H, W] -> one feature map per level, full resolution first; each halves the one before."""

    def __init__(self, in_channels: int, widths: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_twice(a, b, norm) for a, b in itertools.pairwise([in_channels, *widths]))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of all levels."""
        maps = [self.levels[0](images)]
        for level in self.levels[1:]:
            maps.append(level(max_pool2d(maps[-1], 2)))
        return maps


class _PlainDecoder(nn.Module):
    """The maps of a `_PlainEncoder` -> [B, K, H, W]."""

    def __init__(self, widths: Sequence[int], n_outputs: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        steps = list(itertools.pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, flat, 2, stride=2) for deep, flat in steps)
        self.blocks = nn.ModuleList(_twice(2 * flat, flat, norm) for _, flat in steps)
        self.dropout = nn.Dropout2d(dropout)
        self.final = exactly(nn.Conv2d(widths[0], n_outputs, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits."""
        deep = maps[-1]
        for up, block, skip in zip(self.up, self.blocks, maps[-2::-1], strict=True):
            deep = block(torch.cat([up(deep), skip], 1))
        logits: Tensor = self.final(self.dropout(deep))
        return logits


class _Joined(nn.Module):
    """An encoder and the decoder that takes its maps."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K, H, W]."""
        logits: Tensor = self.decoder(self.encoder(images))
        return logits


@register("model", tasks=DENSE)
def unet_plain(
    n_outputs: int,
    in_channels: int,
    *,
    width: int = 16,
    depth: int = 3,
    widths: list[int] | None = None,
    norm: Norm = "batch",
    dropout: float = 0.0,
) -> Segmenter:
    """Return a U-Net of plain convolutions without pretrained weights: two a level, the first at full resolution.

    Args:
        n_outputs: number of maps.
        in_channels: channels of the images.
        width: channels of the first level; each further level has twice as many.
        depth: how often the maps are halved; images may have any size.
        widths: channels of every level, in place of the other two; one more than the maps are halved.
        norm: `batch`, `group` (8 groups or fewer, for batches of one or two) or `none`, behind every convolution.
        dropout: of whole maps before the last layer.

    Raises:
        ConfigError: a value is out of range.

    Source: Ronneberger et al. 2015, with padding, so that maps are as large as the image.
    """
    check_number("width", width, "[1, 4096]", whole=True)
    check_number("depth", depth, "[1, 8]", whole=True)
    check_number("dropout", dropout, "[0, 1)")
    levels = [width * 2**level for level in range(depth + 1)] if widths is None else list(widths)
    if not 2 <= len(levels) <= 9:
        raise ConfigError(
            f"model.options.widths is {levels}", "2 to 9 numbers of channels, full resolution first",
            "write `widths: [16, 32, 64]`, or `width` and `depth`",
        )  # fmt: skip
    for one in levels:
        check_number("widths", one, "[1, 65536]", whole=True)
    encoder = _PlainEncoder(in_channels, levels, norm)
    net = _Joined(encoder, _PlainDecoder(levels, n_outputs, norm, dropout))
    marks = [f"levels.{level}" for level in range(len(levels))]
    stride = 2 ** (len(levels) - 1)
    return Segmenter(net, body="encoder", marks=marks, divisor=stride, least=stride, config={})


def _norm_conv(wide: int, out: int) -> nn.Sequential:
    """Return batch norm, a 3x3 convolution and ReLU, in this order."""
    conv = nn.Conv2d(wide, out, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(nn.BatchNorm2d(wide), conv, nn.ReLU(inplace=True))


def _norm_up(width: int) -> nn.Sequential:
    """Return batch norm, a transposed 3x3 convolution that doubles the maps, and ReLU."""
    conv = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(nn.BatchNorm2d(width), conv, nn.ReLU(inplace=True))


class _DeepsenseEncoder(nn.Module):
    """[B, C, H, W] -> the maps that are skipped to the decoder, full resolution first, and the deepest ones (/ 32)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        stem = nn.Conv2d(in_channels, _WIDE, 3, padding=1)
        nn.init.kaiming_normal_(stem.weight, nonlinearity="relu")
        self.stem = nn.Sequential(stem, nn.ReLU(inplace=True))
        first, others = _norm_conv(_WIDE, _WIDE), [self._pair() for _ in range(_LEVELS)]
        self.before = nn.ModuleList([first, *others])
        self.after = nn.ModuleList(_norm_conv(_WIDE, _WIDE) for _ in range(_LEVELS + 1))
        self.bottom = self._pair()

    @staticmethod
    def _pair() -> nn.Sequential:
        return nn.Sequential(_norm_conv(_WIDE, _WIDE), _norm_conv(_WIDE, _WIDE))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps."""
        maps, skips = self.stem(images), []
        for before, after in zip(self.before, self.after, strict=True):
            skips.append(before(maps))
            maps = max_pool2d(after(skips[-1]), 2)
        return [*skips, self.bottom(maps)]


class _DeepsenseDecoder(nn.Module):
    """The maps of a `_DeepsenseEncoder` -> [B, K, H, W]."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(_norm_up(_WIDE) for _ in range(_LEVELS + 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(_norm_conv(2 * _WIDE, _MERGED), _norm_conv(_MERGED, _WIDE)) for _ in range(_LEVELS + 1)
        )
        self.final = exactly(nn.Conv2d(_WIDE, n_outputs, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits."""
        deep = maps[-1]
        for up, block, skip in zip(self.up, self.blocks, maps[-2::-1], strict=True):
            deep = block(torch.cat([up(deep), skip], 1))
        logits: Tensor = self.final(deep)
        return logits


@register("model", tasks=DENSE)
def deepsense(n_outputs: int, in_channels: int) -> Segmenter:
    """Return the U-Net of constant width of the DSTL contest's fourth place (D-08).

    64 channels on every level, batch norm before every convolution but the first, transposed 3x3 convolutions to
    enlarge; five halvings, so that sides are filled to multiples of 32. 1,622,305 weights for 20 channels and one map.

    Args:
        n_outputs: number of maps.
        in_channels: channels of the images.
    """
    net = _Joined(_DeepsenseEncoder(in_channels), _DeepsenseDecoder(n_outputs))
    marks = ["stem", *(f"after.{level}" for level in range(_LEVELS + 1)), "bottom"]
    return Segmenter(net, body="encoder", marks=marks, divisor=32, least=32, config={})
