"""The mean of a model's weights at the ends of epochs or cycles, with batch norm refitted to it (F-18, F-20).

Stochastic weight averaging (Izmailov et al. 2018, algorithm 1): the mean of weights lies in a flatter place than any
of them, and costs one model at prediction instead of many. Running statistics of batch norm are not those of the
mean; they are measured again in one pass over the training batches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kbench.models.checkpoint import Tensors
from kbench.models.groups import train_mode
from kbench.models.precision import Precision, autocast


class WeightMean:
    """A running mean of states; counters take the newest value.

    Attributes:
        count: states so far.
        tensors: their mean, by name.
    """

    def __init__(self) -> None:
        self.count = 0
        self.tensors: Tensors = {}

    def restore(self, tensors: Tensors, count: int) -> None:
        """Go on from a resume point."""
        self.tensors, self.count = tensors, count

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Count a model's state."""
        self.count += 1
        for name, value in model.state_dict().items():
            if self.count == 1 or not value.is_floating_point():
                self.tensors[name] = value.detach().clone()
            else:
                mean = self.tensors[name].to(value.device)
                self.tensors[name] = mean + (value - mean) / self.count


@torch.no_grad()
def refit_batch_norm(
    model: nn.Module, batches: Iterable[torch.Tensor], *, device: torch.device, precision: Precision
) -> bool:
    """Measure the running statistics of batch norm anew, as the plain mean over batches; frozen ones stay.

    Args:
        model: in the state its statistics are measured for; left in eval mode.
        batches: inputs of the model, on its device.
        device: where the model is.
        precision: of the forward pass.

    Returns:
        Whether there was anything to measure.
    """
    train_mode(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    model.eval()
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for batch in batches:
        with autocast(device, precision):
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return True
