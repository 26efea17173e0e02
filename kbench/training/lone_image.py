"""A batch of one image: what batch norm does that then sees one value per channel, which has no deviation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def lone_image(model: nn.Module, images: torch.Tensor) -> Iterator[list[str]]:
    """Let batch norms in training mode use their kept statistics where they see one value per channel.

    Norms that see a map of one image measure it, as always; batches of two images and more are left alone.

    Args:
        model: is run inside the block.
        images: of one forward pass.

    Yields:
        The names of the norms that did; filled while the model runs.
    """
    names: list[str] = []
    if len(images) != 1:
        yield names
        return
    norms: dict[nn.Module, str] = {module: name for name, module in model.named_modules()
             if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None}  # fmt: skip

    def hook(module: nn.Module, inputs: Any) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            module.eval()
            names.append(norms[module])

    hooks = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        yield names
    finally:
        for one in hooks:
            one.remove()
        for norm in norms:
            norm.train()
