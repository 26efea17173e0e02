"""Models cut into a body and a head: what precomputed activations and shared frozen bodies rest on.

A model is split when it has a method `features(images) -> [B, D]`, a module `head` that turns those into logits, and
its last layer group is that head. A plug-in's model needs no more than that to be trained on activations (F-22).
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import nn

from kbench.errors import ConfigError
from kbench.models.groups import layer_groups

HEAD = "head."


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
            "remove `precompute: true` from the stage, or give the model these two (kbench/models/split.py)",
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
