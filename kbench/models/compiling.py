"""Compiled training: torch fuses a network's layers into kernels of this machine (`compile: true` of a stage).

What it gains depends on the network: on a CPU, networks of depthwise convolutions train up to 1.7 times as fast, others
no faster. The first update takes a minute or more; what was compiled is kept on disk by torch and serves later folds.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from kbench.errors import TrainingError

_LIMIT = 64  # kernels of one network: a fold, stage or image size may need one of its own


def compiled(model: nn.Module) -> nn.Module:
    """Return a module that computes what a model computes, with the same parameters, faster after its first batch.

    Args:
        model: on its device. It stays what it was: what it learns through the compiled one is in its own parameters.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _LIMIT)
    return cast(nn.Module, torch.compile(model, dynamic=False))


def compiler_failed(error: RuntimeError) -> TrainingError | None:
    """Return what to tell about an error of the compiler, or None where the error is another one."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return TrainingError(
        f"the network cannot be compiled here: {reason}",
        "a C++ compiler (on a GPU: Triton), and a network that torch can trace",
        "set `compile: false`",
    )
