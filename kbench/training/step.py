"""What one update computes: from a batch to a loss.

A step is a registered factory; what it returns is called as `step(model, images, target, loss) -> LossSum`
with normalised images [B, C, H, W]. To add one (distillation, auxiliary heads), write a factory here or in a
plug-in with `@register("step")`; it is given the whole model, also in stages where the head alone learns, whose frozen
body otherwise runs apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from kbench.registry import register
from kbench.training.losses import Loss, LossSum

Step = Callable[[nn.Module, torch.Tensor, torch.Tensor, Loss], LossSum]


@register("step")
def supervised() -> Step:
    """Compare the model's logits with the target."""

    def step(model: nn.Module, images: torch.Tensor, target: torch.Tensor, loss: Loss) -> LossSum:
        return loss(model(images), target)

    return step
