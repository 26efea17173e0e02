"""How much memory a network takes for a pixel: the channels of its widest layer, measured by running it once."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_PROBE = 64  # pixels, each way, of the part of an image it is run on
_known: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()


@torch.no_grad()
def width_of(model: Any, images: Tensor) -> int:
    """Return how many channels the widest layer of a model has, counted at the size of the image.

    A layer of 256 channels at a quarter of the sides counts as 16. What is found is remembered with the model.

    Args:
        model: in eval mode.
        images: normalised [B, C, H, W], on its device; a corner of the first one is looked at.
    """
    if not isinstance(model, nn.Module):  # an engine, which does not say what it is made of
        return int(images.shape[1])
    known = _known.get(model)
    if known is None or known[0] != images.shape[1]:
        probe = images[:1, :, :_PROBE, :_PROBE]
        known = _known[model] = (int(images.shape[1]), max(int(images.shape[1]), _measured(model, probe)))
    return known[1]


def _measured(model: nn.Module, probe: Tensor) -> int:
    sides = [-(-side // _PROBE) * _PROBE for side in probe.shape[-2:]]  # networks fill smaller ones up to theirs
    pixels, largest = math.prod(sides), [0]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        largest[0] = max(largest[0], *(maps.numel() for maps in (*inputs, output) if isinstance(maps, Tensor)), 0)

    handles = [module.register_forward_hook(look) for module in model.modules() if not list(module.children())]
    try:
        model(probe)
    except Exception:  # a model of one input size alone, of whose input this is a part
        return int(probe.shape[1])
    finally:
        for handle in handles:
            handle.remove()
    return -(-largest[0] // pixels)
