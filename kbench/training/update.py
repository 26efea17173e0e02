"""One optimiser update: forward, backward, clip, step, moving average; equal to one large batch.

The gradient is that of sum(totals) / sum(counts) over the update's batches, however they are cut: accumulated
batches, a last partial group, targets that do not count, or micro-batches halved because memory ran out.

What goes from a batch to a loss is a step, a registered factory; what it returns is called as
`step(model, images, target, loss) -> LossSum` with normalised images [B, C, H, W]. To add one (distillation, auxiliary
heads), write a factory here or in a plug-in with `@register("step")`; it is given the whole model, also in stages where
the head alone learns, whose frozen body otherwise runs apart.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kbench.config.stage import Stage
from kbench.errors import TrainingError
from kbench.models.device import Precision, autocast, out_of_memory
from kbench.models.layer_groups import has_batch_norm
from kbench.registry import register
from kbench.training.batch_norm_sync import synchronised
from kbench.training.lone_image import lone_image
from kbench.training.losses.per_target import Loss, LossSum
from kbench.training.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)
Step = Callable[[nn.Module, torch.Tensor, torch.Tensor, Loss], LossSum]
Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Learner:
    """What an update changes.

    Attributes:
        model: on its device, in training mode.
        optimizer: over the parameters that train.
        scaler: gradient scaler; disabled but for fp16.
        averaged: the exponential moving average of the model, or None.
        micro_batch: images per forward pass; halved when memory runs out.
        lone_said: whether it was said that batch norm used its kept statistics for a batch of one image.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    averaged: AveragedModel | None
    micro_batch: int
    lone_said: bool = False
    _buffers: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] | None = None

    def remember_buffers(self) -> None:
        """Copy the model's buffers to where `restore_buffers` finds them: one kernel per dtype, no walk, no allocation.

        Modules change their buffers in place; they are looked for once.
        """
        if self._buffers is None:
            self._buffers = {}
            for buffer in self.model.buffers():
                now, before = self._buffers.setdefault(buffer.dtype, ([], []))
                now.append(buffer)
                before.append(torch.empty_like(buffer))
        for now, before in self._buffers.values():
            torch._foreach_copy_(before, now)

    def restore_buffers(self) -> None:
        """Put back the buffers as they were when they were remembered."""
        for now, before in (self._buffers or {}).values():
            torch._foreach_copy_(now, before)

    @property
    def loss_scale(self) -> float | None:
        """What losses are multiplied by before the gradient, or None where nothing is scaled (S-25)."""
        return float(self.scaler.get_scale()) if self.scaler.is_enabled() else None

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated and kept: the moving average where there is one."""
        return self.model if self.averaged is None else self.averaged.module


@dataclass(frozen=True)
class Rules:
    """How an update is made.

    Attributes:
        step: from images and target to a loss.
        loss: compares logits with a target.
        device: where the model is.
        precision: of the forward pass.
        stage: settings of an update, such as `clip`.
        said: what went otherwise than asked, to be told.
        ranks: who makes the update together.
    """

    step: Step
    loss: Loss
    device: torch.device
    precision: Precision
    stage: Stage = field(default_factory=Stage)
    said: list[str] = field(default_factory=list)
    ranks: Ranks = ALONE

    @property
    def whole_batches(self) -> Ranks | None:
        """The ranks whose parts of a batch batch norm measures together; None where each measures its own."""
        return self.ranks if self.ranks.several and self.stage.batch_norm == "sync" else None


@register("step")
def supervised() -> Step:
    """Compare the model's logits with the target; a model that is fitted to pixels is handed them (`collect`)."""

    def step(model: nn.Module, images: torch.Tensor, target: torch.Tensor, loss: Loss) -> LossSum:
        collect = getattr(model, "collect", None)
        if collect is not None:
            collect(images, target)
        return loss(model(images), target)

    return step


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average, at its start: a copy that does not learn.

    Args:
        model: what it follows.
        decay: what is left of the average after an update; whole numbers, such as counts of batches, are the newest.
    """
    lerp = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def follow(averaged: Any, current: Any, updates: Any) -> None:
        if averaged[0].is_floating_point():
            lerp(averaged, current, updates)
        else:
            torch._foreach_copy_(averaged, current)

    averaged = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    averaged.update_parameters(model)  # the first update copies
    averaged.eval().requires_grad_(False)
    return averaged


def update(learner: Learner, batches: Pairs, *, rules: Rules, seed: int) -> LossSum:
    """Make one update.

    Args:
        learner: changed in place.
        batches: normalised images and targets, on the device; together, and with those of the other ranks, they are
            one large batch.
        rules: how.
        seed: of dropout and other random layers.

    Returns:
        Sums over valid targets of all ranks, detached, on the device.

    Raises:
        TrainingError: a single image does not fit into memory, or batch norm without statistics is given one value.
    """
    while True:
        learner.remember_buffers()
        try:
            found = _gradients(learner, batches, rules=rules, seed=seed)
            break
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"batch norm cannot learn from one image: {error}",
                "batches of two images or more, or batch norm that keeps statistics",
                "set `batch_size: 2` or more, train on more rows, or take a model without such a layer",
            ) from error
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        if rules.whole_batches is not None:
            raise _cannot_halve(reason)
        # the error is gone, and with it the tensors its traceback held
        learner.optimizer.zero_grad(set_to_none=True)
        learner.restore_buffers()
        _halve(learner, batches, rules, reason)
    if rules.stage.clip is not None:
        torch.nn.utils.clip_grad_norm_(_trained(learner.optimizer), rules.stage.clip)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    if rules.whole_batches is None:
        rules.ranks.average_statistics(learner.model)
    if learner.averaged is not None:
        learner.averaged.update_parameters(learner.model)
    return found


def _gradients(learner: Learner, batches: Pairs, *, rules: Rules, seed: int) -> LossSum:
    torch.manual_seed(seed)
    totals, counts = [], []
    nominal: torch.Tensor | None = None
    rows, together = sum(len(images) for images, _ in batches), rules.whole_batches
    for images, target in batches:
        parts = -(-len(images) // learner.micro_batch) if together is None else 1  # of even size: batch norm needs two
        for some, their in zip(images.tensor_split(parts), target.tensor_split(parts), strict=True) if parts else ():
            loss = _loss(learner, some, their, rules)
            if nominal is None:  # about the update's count: keeps fp16 gradients in range, changes no result
                nominal = loss.count.detach() * (rows / max(1, len(some)))
                nominal = (nominal if together is None else together.added(nominal)).clamp_min(1)
            learner.scaler.scale(loss.total / nominal).backward()  # type: ignore[no-untyped-call]
            totals.append(loss.total.detach())
            counts.append(loss.count.detach())
    own = (torch.stack(totals).sum(), torch.stack(counts).sum()) if totals else torch.zeros(2, device=rules.device)
    total, count = rules.ranks.added(torch.stack(tuple(own))).unbind()
    trained = _trained(learner.optimizer)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if gradients and nominal is not None:
        factor = torch.where(count > 0, nominal / count.clamp_min(1e-12), torch.zeros_like(count))
        torch._foreach_mul_(gradients, factor)
    rules.ranks.add_gradients(trained)
    learner.scaler.unscale_(learner.optimizer)
    return LossSum(total, count)


def _loss(learner: Learner, images: torch.Tensor, target: torch.Tensor, rules: Rules) -> LossSum:
    """Return the loss of one forward pass, which may be of no image where batch norm measures all ranks' images."""
    model, together = learner.model, rules.whole_batches
    alone: AbstractContextManager[list[str]] = contextlib.nullcontext([])
    alone = alone if together is not None else lone_image(model, images)
    with autocast(rules.device, rules.precision), alone as kept, synchronised(together):
        if not len(images):  # the other ranks wait for its sums
            nothing = model(images).float().sum()
            return LossSum(nothing, torch.zeros_like(nothing))
        loss = rules.step(model, images, target, rules.loss)
    if kept and not learner.lone_said:
        learner.lone_said = True
        rules.said.append(_lone(kept))
    return loss


def _cannot_halve(reason: str) -> TrainingError:
    return TrainingError(
        f"memory ran out: {reason}",
        "batches that fit into the devices' memory: with `batch_norm: sync` they cannot be halved",
        "set a smaller `batch_size` and a larger `accumulate`, more `--devices`, or `batch_norm: local`",
    )


def _lone(norms: list[str]) -> str:
    return (
        f"a batch of one image: batch norm '{norms[0]}' sees one value per channel and uses its kept statistics, which "
        "such batches do not change; a `batch_size` of 2 or more, or a head without batch norm, learns better"
    )


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _halve(learner: Learner, batches: Pairs, rules: Rules, reason: str) -> None:
    largest = min(learner.micro_batch, max(len(images) for images, _ in batches))
    if largest <= 1:
        raise TrainingError(
            f"memory ran out with a single image: {reason}",
            "a model and an image size that fit",
            "free the device's memory and run the same command again, or choose a smaller input.size or model.backbone",
        )
    learner.micro_batch = -(-largest // 2)
    if rules.device.type == "cuda":
        torch.cuda.empty_cache()
    message = f"memory ran out: the update is repeated with {learner.micro_batch} images at a time"
    if has_batch_norm(learner.model):
        message += "; batch norm now sees smaller batches, which changes the result"
    logger.warning(message)
    rules.said.append(message)
