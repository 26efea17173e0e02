"""Layer groups: which parameters learn together, and freezing.

A model says its groups as prefixes of parameter names (`layer_prefixes`, first layers first, the head last); one
that says nothing is a single group. Batch norm of frozen groups runs in eval mode, so its statistics stay too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kbench.errors import ConfigError

Layers = list[list[tuple[str, nn.Parameter]]]


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
    found = [prefix for prefix in where if name.startswith(prefix)]
    return where[max(found, key=len)] if found else 0


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
