"""Image classifiers and regressors: any timm backbone with the head a competition needs.

A model is a registered function `(n_outputs, in_channels, *, ...) -> nn.Module`. A module may say how it is cut into
layer groups (`layer_prefixes`); see `layer_groups.py`. To add a model, write a function here, or in a plug-in, with
`@register("model")`.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import timm
import torch
from torch import nn

from kbench.errors import CheckpointError, ConfigError, KbenchError, check_number, nearest
from kbench.registry import register


class ConcatPool(nn.Module):
    """Largest and mean value of every channel, concatenated: [B, C, H, W] or [B, N, C] -> [B, 2C] (F-11)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool; tokens [B, N, C] are pooled over N."""
        if features.ndim == 3:
            return torch.cat([features.amax(1), features.mean(1)], 1)  # [B, 2C]
        return torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)  # [B, 2C]


class Head(nn.Sequential):
    """Layers from [B, D] features to logits [B, K], always in fp32: they cost nothing, and rounding costs score."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits of features of any floating dtype."""
        with torch.autocast(features.device.type, enabled=False):
            logits: torch.Tensor = super().forward(features.float())  # type: ignore[no-untyped-call]
        return logits


def concat_head(features: int, n_outputs: int, *, hidden: Sequence[int], dropout: Sequence[float]) -> Head:
    """Return the lesson's head behind its pooling: blocks of batch norm, dropout, linear, ReLU (F-11).

    Args:
        features: channels of the body; the pooling makes twice as many.
        n_outputs: width of the last layer.
        hidden: widths of the layers between.
        dropout: one probability per layer, or one for all.
    """
    widths = [2 * features, *hidden, n_outputs]
    rates = list(dropout) if len(dropout) > 1 else list(dropout) * (len(widths) - 1)
    if len(rates) != len(widths) - 1:
        raise ConfigError(
            f"model.options.dropout has {len(rates)} values",
            f"one, or one for each of the {len(widths) - 1} layers of the head",
            "correct the list",
        )
    layers: list[nn.Module] = []
    for position, rate in enumerate(rates):
        linear = nn.Linear(widths[position], widths[position + 1])
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [nn.BatchNorm1d(widths[position]), nn.Dropout(rate), linear]
        if position < len(rates) - 1:
            layers.append(nn.ReLU(inplace=True))
    return Head(*layers)


class Classifier(nn.Module):
    """A body that makes feature maps, a pooling without parameters, and a head that makes logits.

    Any model with a `features` method and a `head` module like these can be trained on precomputed activations
    and shares its frozen body when predicting; see `layer_groups.py`.

    Args:
        body: a timm model without classifier.
        pool: [B, C, H, W], [B, N, C] or [B, C] -> [B, D].
        head: [B, D] -> [B, K].
        body_groups: prefixes of parameter names, one list per layer group of the body, first to last.
        config: mean and std the backbone was trained with.
        origin: what the body is made of beside its weights; part of its identity.
    """

    def __init__(
        self,
        body: nn.Module,
        pool: nn.Module,
        head: nn.Module,
        *,
        body_groups: list[list[str]],
        config: dict[str, Any],
        origin: str = "",
    ) -> None:
        super().__init__()
        self.body, self.pool, self.head = body, pool, head
        self.layer_prefixes = [*body_groups, ["head."]]
        self.config, self.origin = config, origin

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the body's feature maps of [B, C, H, W] images."""
        features: torch.Tensor = _channels_first(self.body, self.body(images))
        return features

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pooled features [B, D], float32, of normalised [B, C, H, W] images."""
        pooled: torch.Tensor = self.pool(self.encode(images).float())
        return pooled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of normalised [B, C, H, W] images."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


class OwnPool(nn.Module):
    """The backbone's own pooling: its token, or the mean of places; what is pooled already stays: -> [B, C]."""

    def __init__(self, *, token: bool, prefix: int) -> None:
        super().__init__()
        self.token, self.prefix = token, prefix

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool [B, C, H, W] or [B, N, C]; [B, C] is left alone."""
        if features.ndim == 2:
            return features
        if features.ndim == 4:
            return features.mean((2, 3))
        return features[:, 0] if self.token else features[:, self.prefix :].mean(1)


@register("model", "timm", tasks=("single_label", "multi_label", "regression"), backbone="timm")
def timm_classifier(
    n_outputs: int,
    in_channels: int,
    *,
    _backbone: str,
    _pretrained: bool = False,
    _size: tuple[int, int] = (224, 224),
    _several: bool = False,
    head: Literal["linear", "concat", "timm"] = "linear",
    hidden: list[int] | None = None,
    dropout: float | list[float] | None = None,
    drop_path: float = 0.0,
    create: dict[str, Any] | None = None,
) -> Classifier:
    """Return a timm backbone with a head.

    Args:
        n_outputs: number of targets.
        in_channels: channels of the images; a pretrained stem is adapted to them.
        _backbone: name of a timm model.
        _pretrained: fetch timm's weights from their hub.
        _size: image height and width, for backbones that need it.
        _several: whether stages show images of several sizes.
        head: `linear` (mean pooling or the backbone's token, dropout, linear), the lesson's `concat` (F-11), or
            `timm`: the backbone's own pooling and layers before its classifier (`create: {global_pool: catavgmax}`
            chooses the pooling), then dropout and linear.
        hidden: widths between, of the `concat` head; [512] by default.
        dropout: probability per layer of the head; 0.25 and 0.5 for `concat`, else 0 by default.
        drop_path: stochastic depth of the backbone.
        create: further keyword arguments of `timm.create_model`, such as `pad_type: same`.

    Raises:
        ConfigError: timm cannot make it so, or it does not take images of this size.
        CheckpointError: its weights cannot be fetched.
    """
    check_number("drop_path", drop_path, "[0, 1)")
    options = {**({"drop_path_rate": drop_path} if drop_path else {}), **(create or {})}
    body, pooling = _create_body(
        _backbone,
        in_channels,
        pretrained=_pretrained,
        size=_size,
        options=options,
        pooled=head == "timm",
        several=_several,
    )
    shape = _feature_shape(body, in_channels, _size, dims=(2,) if head == "timm" else (3, 4))
    features = shape[-1] if len(shape) < 4 else shape[1]
    rates = [dropout] if isinstance(dropout, float | int) else dropout
    for rate in rates or ():
        check_number("dropout", rate, "[0, 1)")
    if head == "concat":
        pool: nn.Module = ConcatPool()
        made = concat_head(features, n_outputs, hidden=hidden or [512], dropout=rates or [0.25, 0.5])
    else:
        pool = OwnPool(token=pooling == "token", prefix=getattr(body, "num_prefix_tokens", 0))
        made = Head(nn.Dropout((rates or [0.0])[0]), nn.Linear(features, n_outputs))
    return Classifier(
        body,
        pool,
        made,
        body_groups=_halves(body),
        config=dict(body.pretrained_cfg),
        origin=f"{_backbone} {options}{' pooled' if head == 'timm' else ''}",
    )


def check_backbone(name: str) -> str:
    """Return why timm has no such model, with the nearest names; empty when it has."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        known = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4) or ["convnext_tiny", "resnet18"]
    else:
        known = timm.list_pretrained(f"{base}.*") if tag else [name]
    return "" if name in known else f"timm has no model '{name}' ({nearest(name, known)})"


def backbone_statistics(name: str) -> tuple[list[float], list[float]] | None:
    """Return the mean and standard deviation a timm backbone was trained with, or None when timm does not know."""
    config = None if check_backbone(name) else timm.get_pretrained_cfg(name)
    return None if config is None else (list(config.mean), list(config.std))


def _create_body(
    name: str,
    in_channels: int,
    *,
    pretrained: bool,
    size: tuple[int, int],
    options: dict[str, Any],
    pooled: bool,
    several: bool,
) -> tuple[Any, str]:
    """Return a timm model without classifier, and pooling unless `pooled`, and the name of its pooling."""
    problem = check_backbone(name)
    if problem:
        raise ConfigError(problem, "a model of `timm.list_models()`", "correct model.backbone")
    config = timm.get_pretrained_cfg(name)
    if several and config is not None and config.fixed_input_size:
        free = any_size(name)
        if not free:
            raise ConfigError(
                f"'{name}' takes images of one size, and the stages have several", "stages of one size",
                "remove `size` from the stages, or choose another model.backbone",
            )  # fmt: skip
        options = {**free, **options}
    with making(name, pretrained=pretrained, size=size, options=options):
        body: Any = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **options)
        if hasattr(body, "set_input_size") and body.pretrained_cfg.get("fixed_input_size"):
            body.set_input_size(img_size=size)
        pool = getattr(body, "global_pool", "")
        if not pooled:
            body.reset_classifier(0, "")  # not asked for at once: some models choose their last norm by the pooling
    return body, pool if isinstance(pool, str) else ""


def any_size(backbone: str) -> dict[str, Any]:
    """Return the option by which timm lets a backbone of fixed image size take any; empty where there is none."""
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.fixed_input_size:
        return {}
    ways: tuple[dict[str, Any], ...] = ({"strict_img_size": False}, {"dynamic_img_size": True})
    for option in ways:
        try:
            with torch.device("meta"):
                timm.create_model(backbone, **option)
        except TypeError:
            continue
        return option
    return {}


@contextlib.contextmanager
def making(name: str, *, pretrained: bool, size: tuple[int, int], options: dict[str, Any]) -> Iterator[None]:
    """Turn what timm and those who build on it raise into errors that say what to do.

    Args:
        name: of the backbone.
        pretrained: whether its weights are fetched.
        size: height and width of the images.
        options: what it was asked for.
    """
    try:
        yield
    except KbenchError:
        raise
    except Exception as error:  # timm asserts and raises many types; so does the hub's client
        if pretrained and not isinstance(error, TypeError | AssertionError | AttributeError):
            raise CheckpointError(
                f"the pretrained weights of '{name}' cannot be fetched: {type(error).__name__}: {error}",
                "a machine that reaches the model hub, or a weights file",
                "download the weights elsewhere, set `model: {pretrained: false, weights: path/to/file.safetensors}`",
            ) from error
        raise ConfigError(
            f"timm's '{name}' cannot be made for images of {size[0]} x {size[1]} with {options}: {error}",
            "a backbone that takes this size, and arguments of timm.create_model",
            "correct input.size, model.backbone or model.options",
        ) from error


def _channels_first(body: Any, features: torch.Tensor) -> torch.Tensor:
    """Return [B, C, H, W] of a body that says its maps are [B, H, W, C]; leave others alone."""
    return features.permute(0, 3, 1, 2) if getattr(body, "output_fmt", "") == "NHWC" else features


@torch.no_grad()
def _feature_shape(body: nn.Module, in_channels: int, size: tuple[int, int], *, dims: tuple[int, ...]) -> torch.Size:
    was = body.training
    body.eval()
    try:
        maps = body(torch.zeros(1, in_channels, *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"the backbone does not take images of {size[0]} x {size[1]}: {error}",
            "a size its layers can halve and cut",
            "correct input.size, such as 224, or choose another model.backbone",
        ) from error
    body.train(was)
    if not isinstance(maps, torch.Tensor) or maps.ndim not in dims:
        raise ConfigError(
            "the backbone gives neither feature maps nor tokens"
            if 3 in dims
            else "the backbone gives no pooled features",
            "one that does",
            "choose another model.backbone, or another `head` in model.options",
        )
    return _channels_first(body, maps).shape


def _halves(body: Any) -> list[list[str]]:
    """Cut a timm body into two layer groups; for a ResNet these are the lesson's (F-12)."""
    if hasattr(body, "group_matcher"):
        order = timm.models.group_parameters(body, body.group_matcher(coarse=True), reverse=False)
        blocks = [list(names) for _, names in sorted(order.items())]
    else:
        blocks = [[f"{name}."] for name, _ in body.named_children()]
    middle = math.ceil(len(blocks) / 2)
    return [[f"body.{name}" for block in part for name in block] for part in (blocks[:middle], blocks[middle:])]
