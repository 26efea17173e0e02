"""What the network sees of an image at once, and how its answers become one map of the image (S-07 to S-10).

A kind of windows is a registered factory that returns a `Windows`. To add one, write a factory here with
`@register("windows")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kbench.registry import register

Model = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Windows:
    """How maps of whole images are made.

    Attributes:
        predict: (model, images) -> [B, K, H, W] float32; `model` maps normalised [b, C, h, w] to [b, K, h, w]
            probabilities, images are normalised [B, C, H, W].
    """

    predict: Callable[[Model, torch.Tensor], torch.Tensor]


@register("windows")
def full() -> Windows:
    """Show whole images; models pad them to what their layers can halve."""
    return Windows(lambda model, images: model(images))
