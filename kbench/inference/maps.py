"""Maps of whole images: one model, all its views, through windows.

Used for judging while training and for predicting, so what is scored is what is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kbench.inference.mean import ARITHMETIC, Mean
from kbench.inference.views import View
from kbench.inference.windows import Model, Windows
from kbench.models.device import Precision, autocast, in_parts
from kbench.models.outputs import probabilities
from kbench.models.width import width_of


@dataclass(frozen=True)
class _Answer:
    """A model as windows see it.

    Attributes:
        forward: [b, C, h, w] -> [b, K, h, w].
        width: channels of its widest layer at the size of the image.
    """

    forward: Model
    width: int

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the answer to a batch, in halves where memory does not hold it."""
        return in_parts(lambda parts: self.forward(parts[0]), [batch])


@dataclass(frozen=True)
class MapMaker:
    """How maps are made, whatever the model.

    Attributes:
        windows: what the network sees at once.
        views: test-time augmentation; the first one is the plain view.
        task: a dense task.
        device: where the model is.
        mean: how views are averaged.
    """

    windows: Windows
    views: Sequence[View]
    task: str
    device: torch.device
    mean: Mean = ARITHMETIC

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
        plain: Tensor | None = None
        total: Tensor | None = None
        weight = sum(view.weight for view in self.views)
        for view, values in zip(self.views, self.apart(model, images, precision), strict=True):
            plain = values if plain is None else plain
            total = self.mean.add(total, values, view.weight / weight)
        assert plain is not None, "a set of views is not empty"
        assert total is not None, "a set of views is not empty"
        return self.mean.back(total), plain

    def apart(self, model: nn.Module, images: Tensor, precision: Precision) -> Iterator[Tensor]:
        """Yield [B, K, H, W] float32 of each view; the arguments are those of a call."""
        answer = _Answer(lambda batch: self._forward(model, batch, precision), width_of(model, images))
        for view in self.views:
            with torch.inference_mode():
                values = self._one_view(answer, images, view)
            yield values

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
