"""Gradient checkpointing: a body keeps what goes into its blocks, and computes them again in the backward pass.

Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost. timm's bodies know how (`set_grad_checkpointing`). The
gradients are the same: random numbers of dropout are drawn again as they were. Batch norm that learns its statistics
would count every batch twice, so such bodies are refused.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kbench.errors import ConfigError


def checkpoint_blocks(model: nn.Module, *, on: bool) -> None:
    """Switch gradient checkpointing of a model's body on or off.

    Args:
        model: in the mode it trains in.
        on: whether blocks are computed again.

    Raises:
        ConfigError: the body does not know how, or its batch norm learns.
    """
    able = [module for module in model.modules() if hasattr(module, "set_grad_checkpointing")]
    if on and not able:
        raise ConfigError(
            "checkpoint_blocks: the model cannot compute its blocks again", "a body of timm with blocks, such as a ViT",
            "remove `checkpoint_blocks`, or choose another `model.backbone`",
        )  # fmt: skip
    norms = [one for body in able for one in body.modules() if isinstance(one, _BatchNorm) and one.training]
    if on and norms:
        raise ConfigError(
            "checkpoint_blocks: the body's batch norm would count every batch twice",
            "a body without batch norm, such as a ViT or ConvNeXt, or one whose batch norm is frozen",
            "remove `checkpoint_blocks`; a smaller `batch_size` with `accumulate` saves memory, too",
        )  # fmt: skip
    for module in able:
        switch: Any = module.set_grad_checkpointing
        switch(on)
