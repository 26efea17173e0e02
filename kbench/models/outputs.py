"""From logits to what predictions hold, by task."""

from __future__ import annotations

import torch

DEFAULT_LOSS = {
    "single_label": "cross_entropy",
    "multi_label": "bce",
    "regression": "mse",
    "segmentation": "cross_entropy",
    "dense_regression": "mse",
}


def probabilities(logits: torch.Tensor, task: str) -> torch.Tensor:
    """Return float32 probabilities of logits [B, K, ...], or the values themselves for regression.

    Args:
        logits: of any floating dtype.
        task: single-label tasks sum to 1 over K (softmax), multi-label ones are independent (sigmoid).
    """
    logits = logits.float()
    if task in ("single_label", "segmentation"):
        return logits.softmax(1)
    return logits.sigmoid() if task == "multi_label" else logits
