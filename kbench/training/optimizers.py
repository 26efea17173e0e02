"""Optimisers, with a learning rate and a weight decay per layer group.

To add one, write a function here with `@register("optimizer")` and the signature of `sgd`: layer groups, one rate
and one weight decay per group, and its own keywords. torch's fused Adam goes over each weight once: on 2 cores an
update of 1.3 million weights takes a tenth of the time. Its fused SGD is not used: after a first step whose fp16
gradients overflow, its momentum is whatever the memory held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kbench.errors import ConfigError, check_number
from kbench.registry import register
from kbench.training.schedules import Schedule

Layers = Sequence[Sequence[tuple[str, nn.Parameter]]]
"""Layer groups from the input to the head; each holds named parameters."""


def per_group(value: float | Sequence[float], count: int, *, what: str) -> list[float]:
    """Return one value per layer group (F-12).

    Args:
        value: one for all groups, or one per group from the input to the head.
        count: how many groups there are.
        what: the setting's name, for the message.

    Raises:
        ConfigError: another number of values, or a value that is no number of at least 0.
    """
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise ConfigError(
            f"{what} has {len(values)} values: '{value}'",
            f"one number, or {count}: one per layer group, from the input to the head",
            f"correct `{what}:` in the YAML",
        )
    for item in values:
        check_number(what, item, "[0, inf)")
    return values


def spread(lr_last: float, decay: float, count: int) -> list[float]:
    """Return differential rates: each earlier layer group learns `decay` times slower.

    Args:
        lr_last: rate of the last group, the head.
        decay: at least 1.
        count: how many groups there are.

    Raises:
        ConfigError: a value is out of range.
    """
    check_number("lr", lr_last, "[0, inf)")
    check_number("lr_decay", decay, "[1, inf)")
    return [lr_last / decay**distance for distance in reversed(range(count))]


def parameter_groups(
    layers: Layers, rates: Sequence[float], decays: Sequence[float], *, no_decay: bool
) -> list[dict[str, Any]]:
    """Return torch parameter groups: one per layer group, or two where some parameters do not decay (B-06).

    Args:
        layers: layer groups; frozen parameters (`requires_grad` False) are left out.
        rates: highest learning rate of each group.
        decays: weight decay of each group.
        no_decay: exempt parameters of at most one dimension (biases, norms) from weight decay.

    Returns:
        Dicts with `params`, `lr`, `lr_max`, `weight_decay` and `layer`, the layer group's number.

    Raises:
        ConfigError: nothing is left to train.
    """
    groups = []
    for layer, (named, lr, decay) in enumerate(zip(layers, rates, decays, strict=True)):
        trained = [parameter for _, parameter in named if parameter.requires_grad]
        exempt = [parameter for parameter in trained if no_decay and parameter.ndim <= 1]
        decayed = [parameter for parameter in trained if not no_decay or parameter.ndim > 1]
        for params, weight_decay in ((decayed, decay), (exempt, 0.0)):
            if params:
                groups.append({"params": params, "lr": lr, "lr_max": lr, "weight_decay": weight_decay, "layer": layer})
    if not groups:
        raise ConfigError(
            f"none of the {len(layers)} layer groups has a parameter that trains",
            "at least one layer group that is not frozen",
            "set `groups:` of the stage to `head`, `all` or a list of group numbers",
        )
    return groups


@register("optimizer")
def sgd(
    layers: Layers,
    rates: Sequence[float],
    decays: Sequence[float],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    decoupled: bool = False,
    no_decay: bool = False,
) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with momentum, fast.ai's optimiser.

    Args:
        layers: layer groups.
        rates: highest learning rate of each group.
        decays: weight decay of each group.
        momentum: 0 for none.
        nesterov: Nesterov's momentum.
        decoupled: decay the weights by rate times decay, apart from the gradient and its momentum (SGDW, Loshchilov &
            Hutter 2017, algorithm 1; F-21).
        no_decay: exempt biases and norms from weight decay.

    Raises:
        ConfigError: a value is out of range.
    """
    check_number("momentum", momentum, "[0, 1)")
    if nesterov and momentum == 0:
        raise ConfigError("nesterov is 'true' and momentum is '0'", "a momentum above 0", "write `momentum: 0.9`")
    groups = parameter_groups(layers, rates, decays, no_decay=no_decay)
    if not decoupled:
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)
    for group in groups:
        group["decoupled"], group["weight_decay"] = group["weight_decay"], 0.0
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)
    optimizer.register_step_pre_hook(_decay)
    return optimizer


@torch.no_grad()
def _decay(optimizer: torch.optim.Optimizer, *given: object) -> None:
    """Shrink the weights of groups with a decay of their own, before the step."""
    for group in optimizer.param_groups:
        if group["decoupled"]:
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decoupled"])


def normalised(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let each cycle divide the weight decay by the root of its updates (AdamW, appendix B.1; F-21); return it."""
    for group in optimizer.param_groups:
        group["decay_norm"] = group[_decay_key(group)]
    return optimizer


def _decay_key(group: dict[str, Any]) -> str:
    return "decoupled" if "decoupled" in group else "weight_decay"


@register("optimizer")
def adamw(
    layers: Layers,
    rates: Sequence[float],
    decays: Sequence[float],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    no_decay: bool = True,
) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov & Hutter 2017, algorithm 2).

    Args:
        layers: layer groups.
        rates: highest learning rate of each group.
        decays: weight decay of each group.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        no_decay: exempt biases and norms from weight decay.

    Raises:
        ConfigError: a value is out of range.
    """
    _check_adam(betas, eps)
    groups = parameter_groups(layers, rates, decays, no_decay=no_decay)
    return torch.optim.AdamW(groups, betas=(betas[0], betas[1]), eps=eps, fused=True)


@register("optimizer")
def adam(
    layers: Layers,
    rates: Sequence[float],
    decays: Sequence[float],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    no_decay: bool = False,
) -> torch.optim.Optimizer:
    """Return Adam; its weight decay is added to the gradient (Kingma & Ba 2014, algorithm 1).

    Args:
        layers: layer groups.
        rates: highest learning rate of each group.
        decays: weight decay of each group.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        no_decay: exempt biases and norms from weight decay.

    Raises:
        ConfigError: a value is out of range.
    """
    _check_adam(betas, eps)
    groups = parameter_groups(layers, rates, decays, no_decay=no_decay)
    return torch.optim.Adam(groups, betas=(betas[0], betas[1]), eps=eps, fused=True)


def apply_schedule(
    optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, history: Sequence[float] = ()
) -> None:
    """Set the rate and the momentum of every parameter group for one update.

    Args:
        optimizer: made by a function of this module; its groups keep `lr_max`.
        schedule: of the stage.
        step: the update, counted from 0.
        history: validation scores, one per finished epoch, larger is better.
    """
    momentum = schedule.momentum(step)
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(step, group["lr_max"], history)
        if "decay_norm" in group:
            cycle = next(cycle for cycle in schedule.cycles if step <= cycle.last)
            group[_decay_key(group)] = group["decay_norm"] / math.sqrt(cycle.last - cycle.first + 1)
        if momentum is not None:
            set_momentum(group, momentum)


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set the momentum of a parameter group: `momentum` of SGD, the first of Adam's `betas`.

    Raises:
        ConfigError: the optimiser has neither.
    """
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif "momentum" in group:
        group["momentum"] = momentum
    else:
        raise ConfigError(
            f"the schedule sets a momentum of '{momentum:g}' and the optimizer has none",
            "an optimizer with momentum or betas",
            "remove `momenta:` of the schedule, or use `sgd` or `adamw`",
        )


def _check_adam(betas: Sequence[float], eps: float) -> None:
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise ConfigError(f"betas is '{betas}'", "two numbers", "write `betas: [0.9, 0.999]`")
    for beta in betas:
        check_number("betas", beta, "[0, 1)")
    check_number("eps", eps, "(0, inf)")
