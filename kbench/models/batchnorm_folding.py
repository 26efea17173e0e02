"""Batch norms folded into the convolutions before them: the same function with fewer passes over the maps.

In eval mode a batch norm multiplies and shifts each channel by constants, which the weights and the bias of the
convolution before it can carry (Jacob et al. 2018, section 3.2). torch fuses a pair; here is which norm follows which
convolution, seen by running the model and not read from names, and that what was folded answers as before, or nothing
is folded. `benchmarks/README.md` has what it gains.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

PROBE = 256  # pixels a model of whole images is tried on, each way
_TOLERANCE = 1e-3  # of the largest output; rounding moves it by 1e-5


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of a model for inference, or the model itself where there is nothing to fold.

    Args:
        model: answers normalised images with one tensor; left in eval mode.
        images: normalised [B, C, H, W] on the model's device; the first one is tried.
    """
    model.eval()
    if not _foldable(model):
        return model
    folded_model = copy.deepcopy(model)
    return folded_model if fold(folded_model, images) else model


@torch.no_grad()
def fold(model: nn.Module, images: Tensor) -> int:
    """Fold the batch norms of a model in place, for inference alone: its state dict is another one afterwards.

    Args:
        model: as in `folded`.
        images: as in `folded`.

    Returns:
        How many were folded; 0 where the model would answer otherwise.
    """
    model.eval()
    if not _foldable(model):
        return 0
    probe = images[:1]
    try:
        with _exact():
            before, pairs = _observed(model, probe)
    except Exception:  # a model of one input size alone, of whose input this is a part
        return 0
    parents = {id(child): (parent, name) for parent in model.modules() for name, child in parent.named_children()}
    kept = [(conv, conv.weight, conv.bias, norm, *parents[id(norm)]) for conv, norm in pairs]
    for conv, _, _, norm, parent, name in kept:
        both = _fused(conv, norm)
        conv.weight, conv.bias = both.weight, both.bias
        setattr(parent, name, _rest(norm))
    try:
        with _exact():
            after = model(probe)
        same = bool((after - before).abs().max() <= _TOLERANCE * (1 + before.abs().max()))
    except Exception:  # a model may look at its norms in any way: then they stay
        same = False
    if not same:
        for conv, weight, bias, norm, parent, name in kept:
            conv.weight, conv.bias = weight, bias
            setattr(parent, name, norm)
    return len(kept) if same else 0


@contextmanager
def _exact() -> Iterator[None]:
    """Let convolutions on a GPU compute in float32, not in TF32, whose rounding hides what is compared."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _foldable(model: nn.Module) -> bool:
    modules = list(model.modules())
    return any(_is_norm(module) for module in modules) and any(isinstance(module, nn.Conv2d) for module in modules)


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm with statistics of its own, or timm's with an activation in it."""
    plain = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return plain and isinstance(module, _BatchNorm) and module.running_mean is not None


def _observed(model: nn.Module, probe: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, _BatchNorm]]]:
    """Return what the model answers, and the norms that are given exactly what a convolution made."""
    scaled: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are held, so no two share an id
    shifted: list[tuple[_BatchNorm, Tensor]] = []
    calls: Counter[int] = Counter()

    def hook(module: Any, inputs: Any, output: Any) -> None:
        calls[id(module)] += 1
        if isinstance(module, nn.Conv2d):
            scaled[id(output)] = (module, output)
        else:
            shifted.append((module, inputs[0]))

    watched = [module for module in model.modules() if isinstance(module, nn.Conv2d) or _is_norm(module)]
    hooks = [module.register_forward_hook(hook) for module in watched]
    try:
        answer = model(probe)
    finally:
        for one in hooks:
            one.remove()
    followed = [(scaled[id(tensor)][0], norm) for norm, tensor in shifted if id(tensor) in scaled]
    once = Counter(id(conv) for conv, _ in followed)
    pairs = [(conv, norm) for conv, norm in followed
             if calls[id(conv)] == calls[id(norm)] == once[id(conv)] == 1 and "weight" in conv._parameters]  # fmt: skip
    return answer, pairs


def _fused(conv: nn.Conv2d, norm: _BatchNorm) -> nn.Conv2d:
    """Return a frozen convolution that does what both do; a norm in float64 makes torch round but once."""
    return fuse_conv_bn_eval(conv, copy.deepcopy(norm).double()).requires_grad_(False)


def _rest(norm: _BatchNorm) -> nn.Module:
    """Return what a norm does besides norming: timm's has a drop and an activation."""
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    active = [part for part in parts if not isinstance(part, nn.Identity)]
    return active[0] if len(active) == 1 else nn.Sequential(*active)
