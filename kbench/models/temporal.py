"""Images of several dates: one encoder for all of them, and a pooling over the dates at each of its scales (B-03).

Channels stand date by date, those without a date last (`kbench/data/images/channels.py`). A date whose channels are all
0 is one that is not there: its weight is 0 exactly, it does not go through the encoder, and so it reaches neither the
answer nor the statistics of batch norm, whatever its pixels hold. To add a way to pool, write a module like `_Mean`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kbench.errors import ConfigError
from kbench.models.segmenter import Decoder, Segmenter, smp
from kbench.registry import register
from kbench.tasks import DENSE

Pool = Literal["attention", "mean"]


class _Mean(nn.Module):
    """The mean of the feature maps of the dates that are there."""

    def weights(self, maps: Tensor, valid: Tensor, there: Tensor) -> Tensor:
        """Return [B, D, 1, 1] weights that sum to 1, 0 of a date that is not there.

        Args:
            maps: [M, C, h, w] of the dates that are there, one image after the other.
            valid: [B, D] bool.
            there: [M] their places among the B * D.
        """
        shares = valid.to(maps.dtype)
        return (shares / shares.sum(1, keepdim=True))[..., None, None]

    def forward(self, maps: Tensor, valid: Tensor, there: Tensor) -> Tensor:
        """Return [B, C, h, w]; the arguments are those of `weights`."""
        weights = self.weights(maps, valid, there)
        batch, dates = valid.shape
        spread = maps.new_zeros(batch * dates, *maps.shape[1:]).index_copy(0, there, maps)
        pooled: Tensor = (spread.view(batch, dates, *maps.shape[1:]) * weights.to(maps.dtype).unsqueeze(2)).sum(1)
        return pooled


class _Attention(_Mean):
    """Their mean, weighted pixel by pixel by a softmax over the dates of what a small network says of each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(channels, channels), nn.LayerNorm(channels), nn.GELU(), nn.Linear(channels, 1)
        )

    def weights(self, maps: Tensor, valid: Tensor, there: Tensor) -> Tensor:
        """Return [B, D, h, w] weights, as above."""
        scores = self.score(maps.permute(0, 2, 3, 1))[..., 0].float()  # [M, h, w]
        batch, dates = valid.shape
        every = scores.new_full((batch * dates, *scores.shape[1:]), -torch.inf).index_copy(0, there, scores)
        weights: Tensor = every.view(batch, dates, *scores.shape[1:]).softmax(1)
        return weights


class _OverDates(nn.Module):
    """A network of segmentation_models_pytorch whose encoder sees one date at a time.

    Args:
        net: takes [B, bands, H, W].
        dates: D.
        undated: channels without a date, which every date is shown with.
        pool: how the dates of a scale become one.
    """

    def __init__(self, net: Any, *, dates: int, undated: int, pool: Pool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = net.encoder, net.decoder, net.segmentation_head
        self.dates, self.undated = dates, undated
        widths = list(net.encoder.out_channels)[1:]
        self.pools = nn.ModuleList(_Attention(width) if pool == "attention" else _Mean() for width in widths)
        self._plain = _Mean()  # of the images themselves, which few decoders look at

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K, H, W] of [B, C, H, W], C = D * bands + undated."""
        shown, valid = self.unfolded(images)
        selects = not (torch._C._get_tracing_state() or torch.compiler.is_compiling())  # what is exported has one shape
        there = valid.flatten().nonzero()[:, 0] if selects else torch.arange(valid.numel(), device=valid.device)
        if not selects:
            valid = torch.ones_like(valid)
        features = self.encoder(shown.flatten(0, 1)[there])
        pools = [self._plain, *self.pools]
        pooled = [pool(maps, valid, there) for pool, maps in zip(pools, features, strict=True)]
        logits: Tensor = self.segmentation_head(self.decoder(pooled))
        return logits

    def unfolded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, D, bands + undated, H, W] and [B, D] bool, which dates are there.

        An image without any, such as a window of a scene where there is nothing, is shown as it is: a row without any
        is refused where it is read.
        """
        dated = images.shape[1] - self.undated
        shown = images[:, :dated].reshape(len(images), self.dates, dated // self.dates, *images.shape[-2:])
        known = (shown != 0) & ~shown.isnan()
        valid = known.flatten(2).any(2)
        valid = valid | ~valid.any(1, keepdim=True)
        if self.undated:
            same = images[:, None, dated:].expand(-1, self.dates, -1, -1, -1)
            shown = torch.cat([shown, same], 2)
        return shown, valid


@register("model", tasks=DENSE, backbone="timm")
def temporal(
    n_outputs: int,
    in_channels: int,
    *,
    _backbone: str,
    _pretrained: bool = False,
    _size: tuple[int, int] = (224, 224),
    _task: str = "segmentation",
    _dates: int = 1,
    _undated: int = 0,
    pool: Pool = "attention",
    decoder: Decoder = "unet",
    decoder_attention: Literal["scse"] | None = None,
    decoder_channels: int | list[int] | None = None,
    depth: int | None = None,
    dropout: float | None = None,
    interpolation: Literal["nearest", "bilinear"] | None = None,
    decode: dict[str, Any] | None = None,
    create: dict[str, Any] | None = None,
) -> Segmenter:
    """Return the model `smp` with its encoder shared over the dates of `input.dates`, and a pooling at each scale.

    Whatever the order of the dates, the answer is the same; how many there are changes no weight.

    Args:
        n_outputs: number of maps.
        in_channels: channels of the images, all dates together.
        _backbone: as in `smp`.
        _pretrained: as in `smp`.
        _size: as in `smp`.
        _task: as in `smp`.
        _dates: how many dates there are.
        _undated: how many channels belong to none.
        pool: `attention` weighs dates pixel by pixel, `mean` alike; dates that are not there have no weight.
        decoder: as in `smp`; all but `dpt`.
        decoder_attention: as in `smp`.
        decoder_channels: as in `smp`.
        depth: as in `smp`.
        dropout: as in `smp`.
        interpolation: as in `smp`.
        decode: as in `smp`.
        create: as in `smp`.

    Raises:
        ConfigError: channels are not the same for every date, or as in `smp`.
        CheckpointError: the backbone's weights cannot be fetched.
    """
    bands, rest = divmod(in_channels - _undated, max(1, _dates))
    if rest or bands < 1:
        raise ConfigError(
            f"the model 'temporal' for {in_channels} channels of {_dates} dates", "as many channels of every date",
            "name `files`, `dates` and `bands` of `input` so that every date has the same",
        )  # fmt: skip
    if decoder == "dpt":
        raise ConfigError(
            "the model 'temporal' with the decoder 'dpt', whose encoder makes no maps of several scales",
            "a decoder of feature maps, such as unet", "correct model.options.decoder",
        )  # fmt: skip
    one = smp(
        n_outputs, bands + _undated, _backbone=_backbone, _pretrained=_pretrained, _size=_size, _task=_task,
        decoder=decoder, decoder_attention=decoder_attention, decoder_channels=decoder_channels, depth=depth,
        dropout=dropout, interpolation=interpolation, decode=decode, create=create,
    )  # fmt: skip
    return one.around(_OverDates(one.net, dates=_dates, undated=_undated, pool=pool))
