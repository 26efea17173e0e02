"""Maps of whole images: one model, all its views, through windows.

Used for judging while training and for predicting, so what is scored is what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kbench.inference.views import View
from kbench.inference.windows import Model, Windows
from kbench.models.device import Precision, autocast, in_parts
from kbench.models.outputs import probabilities

SMALLEST = 1e-12  # probabilities are clipped here before a logarithm


@dataclass(frozen=True)
class MapMaker:
    """How maps are made, whatever the model.

    Attributes:
        windows: what the network sees at once.
        views: test-time augmentation; the first one is the plain view.
        task: a dense task.
        device: where the model is.
        geometric: whether views are averaged as logarithms.
    """

    windows: Windows
    views: Sequence[View]
    task: str
    device: torch.device
    geometric: bool = False

    @torch.inference_mode()
    def __call__(self, model: nn.Module, images: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
        """Return the mean over views and the plain view alone.

        Args:
            model: in eval mode.
            images: normalised [B, C, H, W], on the device.
            precision: of the forward pass.

        Returns:
            Two tensors [B, K, H, W] float32: probabilities, or target units of a dense regression.
        """

        def answer(batch: Tensor) -> Tensor:
            return in_parts(lambda parts: self._forward(model, parts[0], precision), [batch])

        plain: Tensor | None = None
        total: Tensor | None = None
        weight = sum(view.weight for view in self.views)
        for view in self.views:
            values = self._one_view(answer, images, view)
            plain = values if plain is None else plain
            part = self.into(values) * (view.weight / weight)
            total = part if total is None else total.add_(part)
        assert plain is not None, "a set of views is not empty"
        assert total is not None, "a set of views is not empty"
        return self.back(total), plain

    def _forward(self, model: nn.Module, images: Tensor, precision: Precision) -> Tensor:
        with autocast(self.device, precision):
            logits = model(images)
        return probabilities(logits, self.task)

    def _one_view(self, answer: Model, images: Tensor, view: View) -> Tensor:
        scale, size = view.load.scale, images.shape[-2:]
        if scale != 1:
            smaller = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            images = nn.functional.interpolate(images, smaller, mode="bilinear", antialias=scale < 1)
        values = view.inverse(self.windows.predict(answer, view.forward(images)))
        if scale != 1:
            values = nn.functional.interpolate(values, size, mode="bilinear")
        return values

    def into(self, values: Tensor) -> Tensor:
        """Return what is averaged."""
        return values.clamp_min(SMALLEST).log() if self.geometric else values

    def back(self, mean: Tensor) -> Tensor:
        """Return probabilities of a mean; those of exclusive classes sum to 1 again."""
        if not self.geometric:
            return mean
        values = mean.exp()
        return values / values.sum(1, keepdim=True) if self.task == "segmentation" and values.shape[1] > 1 else values
