"""Layer groups: which parameters learn together, freezing, and models cut into a body and a head.

A model says its groups as prefixes of parameter names (`layer_prefixes`, first layers first, the head last); one that
says nothing is a single group. Batch norm of frozen groups runs in eval mode, so its statistics stay too.

A model is split when it has a method `features(images) -> [B, D]`, a module `head` that turns those into logits, and
its last layer group is that head. A plug-in's model needs no more than that to be trained on precomputed activations
(F-22) and to share its frozen body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kbench.errors import ConfigError

Layers = list[list[tuple[str, nn.Parameter]]]
HEAD = "head."


def layer_groups(model: nn.Module) -> Layers:
    """Return the named parameters of each layer group, first layers first (F-12)."""
    prefixes: Any = getattr(model, "layer_prefixes", None) or [[""]]
    where = {prefix: group for group, members in enumerate(prefixes) for prefix in members}
    layers: Layers = [[] for _ in prefixes]
    for name, parameter in model.named_parameters():
        layers[_group_of(name, where)].append((name, parameter))
    return [layer for layer in layers if layer]


def _group_of(name: str, where: dict[str, int]) -> int:
    if name in where:
        return where[name]
    prefixes = [prefix for prefix in where if name.startswith(prefix)]
    return where[max(prefixes, key=len)] if prefixes else 0


def chosen(groups: Literal["all", "head"] | Sequence[int], count: int) -> list[int]:
    """Return the numbers of the groups that train.

    Args:
        groups: `all`, `head` (the last), or numbers; negative ones count from the end.
        count: how many there are.

    Raises:
        ConfigError: a number is out of range.
    """
    if groups == "all":
        return list(range(count))
    if groups == "head":
        return [count - 1]
    for group in groups:
        if not -count <= int(group) < count:
            raise ConfigError(
                f"stages.*.groups names layer group {group}",
                f"0 to {count - 1}: this model has {count}",
                "correct `groups:`",
            )
    return sorted({int(group) % count for group in groups})


def freeze_but(model: nn.Module, layers: Layers, training: Sequence[int]) -> None:
    """Let only some layer groups learn (F-13)."""
    for group, layer in enumerate(layers):
        for _, parameter in layer:
            parameter.requires_grad_(group in training)


def train_mode(model: nn.Module) -> None:
    """Set training mode, but eval mode for batch norm whose parameters, or whose parent's, are all frozen (F-13)."""
    model.train()
    for module in model.modules():
        for child in module.children():
            if isinstance(child, _BatchNorm):
                parameters = list(child.parameters()) or list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    child.eval()


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether any batch norm is in training mode."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


class Split(Protocol):
    """A model whose logits are `head(features(images))`."""

    head: nn.Module

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return features [B, D] of normalised [B, C, H, W] images."""


def is_split(model: nn.Module) -> bool:
    """Return whether a model has a body, and a head that is its last layer group."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module) or not callable(getattr(model, "features", None)):
        return False
    last = {id(parameter) for _, parameter in layer_groups(model)[-1]}
    return bool(last) and last == {id(parameter) for parameter in head.parameters()}


def check_split(model: nn.Module) -> None:
    """Raise what a user of `precompute: true` should know of a model that is not split.

    Raises:
        ConfigError: it is not.
    """
    if not is_split(model):
        raise ConfigError(
            f"the model {type(model).__name__} cannot be precomputed",
            "a model with `features(images)` and a module `head` that is its last layer group",
            "remove `precompute: true` from the stage, or give the model these two (kbench/models/layer_groups.py)",
        )


def trains_head_alone(model: nn.Module) -> bool:
    """Return whether a model is split and everything but its head is frozen."""
    frozen = (not parameter.requires_grad for name, parameter in model.named_parameters() if not _of_head(name))
    return is_split(model) and all(frozen)


def body_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of everything but the head."""
    return {name: tensor for name, tensor in model.state_dict().items() if not _of_head(name)}


def head_state(head: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a head, by the names they have in the model."""
    return {f"{HEAD}{name}": tensor for name, tensor in head.state_dict().items()}


def load_head(head: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Load the head's part of a model's state.

    Raises:
        RuntimeError: names or shapes differ.
    """
    head.load_state_dict({name.removeprefix(HEAD): value for name, value in tensors.items() if _of_head(name)})


def body_digest(model: nn.Module) -> str:
    """Return 32 hexadecimal digits of a body's structure and weights: equal ones give equal features."""
    state = hashlib.sha256(f"{type(model).__qualname__} {getattr(model, 'origin', '')}\n".encode())
    for name, child in model.named_children():
        if not _of_head(f"{name}."):
            state.update(f"{name} {child!r}\n".encode())
    for name, tensor in sorted(body_state(model).items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:32]


def _of_head(name: str) -> bool:
    return name.startswith(HEAD)
