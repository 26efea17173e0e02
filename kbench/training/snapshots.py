"""What a stage leaves on disk: snapshots that become ensemble members, mean weights, resume points.

The mean of a model's weights at the ends of epochs or cycles, with batch norm refitted to it (F-18, F-20).

Stochastic weight averaging (Izmailov et al. 2018, algorithm 1): the mean of weights lies in a flatter place than any
of them, and costs one model at prediction instead of many. Running statistics of batch norm are not those of the
mean; they are measured again in one pass over the training batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kbench.errors import CheckpointError
from kbench.models.checkpoint import (
    Tensors,
    keep_body,
    read_checkpoint,
    read_tensors,
    save_checkpoint,
    snapshot_tensors,
)
from kbench.models.device import Precision, autocast
from kbench.models.layer_groups import body_digest, body_state, head_state, train_mode, trains_head_alone
from kbench.training.events import Epoch
from kbench.training.fold_context import FoldContext
from kbench.training.lone_image import lone_image
from kbench.training.loop import diverged
from kbench.training.resume import Progress, learner_tensors, save_resume
from kbench.training.schedules import Schedule
from kbench.training.stage_plan import StagePlan
from kbench.training.update import Learner, Rules


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
        with autocast(device, precision), lone_image(model, batch):
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return True


@dataclass(frozen=True)
class Keeper:
    """Writes what is kept of a stage.

    Attributes:
        context: the fold.
        stage: what is to be kept.
        schedule: whose cycles end in snapshots.
        model: the whole model.
        learner: what trains: the model, or its head.
        progress: where the fold is.
        rules: of the updates.
        judged_in: precision of the forward pass when judging and predicting.
        channels_last: memory format.
        head_alone: whether the learner is the head, given features.
        precomputed: whether they are precomputed activations.
        refit_inputs: yields the inputs batch norm is refitted with, where weights are averaged.
        mean: of the weights so far.
    """

    context: FoldContext
    stage: StagePlan
    schedule: Schedule
    model: nn.Module
    learner: Learner
    progress: Progress
    rules: Rules
    judged_in: Precision
    channels_last: bool
    head_alone: bool
    precomputed: bool
    refit_inputs: Callable[[], Iterator[torch.Tensor]]
    mean: WeightMean = field(default_factory=WeightMean)

    def keep(self, epoch: Epoch, *, done: bool, constant: float | None = None) -> None:
        """Write the snapshots that are due after an epoch.

        Args:
            epoch: what it brought.
            done: whether it is the stage's last.
            constant: loss of saying the mean of a regression's targets everywhere, which a member should not exceed.
        """
        stage, progress, smoke = self.stage, self.progress, bool(self.context.limit)
        ends = [cycle.index for cycle in self.schedule.cycles if cycle.last == progress.step - 1]
        cycle = bool(ends) and "cycles" in stage.keep and not smoke
        if cycle:
            self._snapshot(str(ends[0]), epoch, kept=True)
            self._hold_against(constant, epoch, str(ends[0]))
        if epoch.best and ("best" in stage.keep or stage.early_stop):
            self._snapshot("best", epoch, kept="best" in stage.keep)
        if done and "last" in stage.keep and not cycle:
            self._snapshot("last", epoch, kept=True)
            self._hold_against(constant, epoch, "last")
        if "average" in stage.keep and not smoke:
            self._average(ends, epoch, done=done)
        if done and stage.keep and not smoke and not self._kept():
            self._keep_end(epoch)
        if done:
            self.context.plan.set(
                f"end/{stage.name}",
                {"epochs": progress.epoch, "best_epoch": progress.best_epoch, "history": list(progress.history)},
            )

    def _hold_against(self, constant: float | None, epoch: Epoch, tag: str) -> None:
        """Say of a snapshot that is kept when it is worse than a constant: the mean of an ensemble suffers from it."""
        if constant is not None and epoch.valid_loss is not None and epoch.valid_loss > constant:
            self.rules.said.append(
                f"snapshot {self.stage.name}-{tag} is worse than the mean of the training rows' targets: its loss is "
                f"{epoch.valid_loss:.3g}, the mean's {constant:.3g}; a lower `lr` or more epochs may help, and "
                "`ensemble.members` leaves it out"
            )

    def _kept(self) -> bool:
        """Return whether the stage has a snapshot that is predicted with."""
        keep, progress = self.stage.keep, self.progress
        return (
            "last" in keep
            or ("best" in keep and progress.best_epoch is not None)
            or ("cycles" in keep and any(cycle.last < progress.step for cycle in self.schedule.cycles))
            or ("average" in keep and self.mean.count > 0)
        )

    def _keep_end(self, epoch: Epoch) -> None:
        """Keep the stage's end, after an early stop its best epoch: it was over before what was to be kept came."""
        path = self.context.paths.snapshot(self.stage.name, "best")
        best = read_checkpoint(path) if self.stage.early_stop else None
        if best is None:
            self._snapshot("last", epoch, kept=True)
        else:
            save_checkpoint(path, read_tensors(best.tensors), {**best.info, "kept": True})
        what = "end" if best is None else "best epoch"
        wanted = " or ".join(sorted(self.stage.keep))
        self.rules.said.append(
            f"stage {self.stage.name} was over before there was a {wanted} to keep: its {what} is kept"
        )

    def _average(self, ends: list[int], epoch: Epoch, *, done: bool) -> None:
        """Count the weights at the end of an epoch or cycle; at the end of the stage keep their mean (F-18, F-20)."""
        stage = self.stage
        if stage.average_of == "epochs" or ends:
            place = self.progress.epoch if stage.average_of == "epochs" else ends[0] + 1
            if place >= stage.average_from:
                self.mean.add(self.learner.judged)
        if not done or not self.mean.count:
            return
        model = copy.deepcopy(self.learner.model)  # knows what is frozen
        model.load_state_dict(self.mean.tensors)
        device, precision = self.context.device, self.rules.precision
        refit_batch_norm(model, self.refit_inputs(), device=device, precision=precision)
        self._snapshot("average", replace(epoch, valid_loss=None, score=None), kept=True, of=model)

    def _snapshot(self, tag: str, epoch: Epoch, *, kept: bool, of: nn.Module | None = None) -> None:
        context, stage, table = self.context, self.stage, self.context.table
        weights, body = self._weights(self.learner.judged if of is None else of)
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise diverged("weights are NaN or infinite", step=epoch.step - 1, rate=epoch.lr)
        monitor = None if self.progress.by_loss else stage.monitor
        info: dict[str, Any] = {
            "fold": context.fold, "stage": stage.name, "tag": tag, "epoch": epoch.epoch, "step": epoch.step,
            "kept": kept, "subset": stage.subset, "train_loss": epoch.train_loss, "valid_loss": epoch.valid_loss,
            "score": epoch.score, "monitor": monitor.name if monitor else "loss",
            "size": list(stage.size), "crop": stage.valid_show.crop.resize, "scale": context.scale_for(None),
            "precision": self.judged_in, "channels_last": self.channels_last, "task": table.task,
            "names": list(table.target_names), "body": body, "precomputed": self.precomputed, **context.identity,
        }  # fmt: skip
        units = context.units()
        if units is not None:
            info["units"] = {"mean": list(units.mean), "std": list(units.std)}
        save_checkpoint(context.paths.snapshot(stage.name, tag), weights, info)

    def _weights(self, judged: nn.Module) -> tuple[Tensors, str]:
        """Return what a snapshot holds: the whole model, or the head and the digest of its body, which is kept."""
        if not self.head_alone and not trains_head_alone(self.model):
            return dict(judged.state_dict()), ""
        head = judged if self.head_alone else getattr(judged, "head")  # noqa: B009
        return head_state(head), self._body

    @cached_property
    def _body(self) -> str:
        """Digest of the frozen body, which is written where it is first asked for and stays what it is."""
        digest = body_digest(self.model)
        keep_body(self.context.paths, digest, body_state(self.model))
        return digest

    def checkpoint(self) -> None:
        """Write the resume point."""
        progress = self.progress
        progress.body = self._body if self.head_alone else ""
        progress.micro_batch, progress.lone_said = self.learner.micro_batch, self.learner.lone_said
        progress.averaged = self.mean.count
        progress.log_lines = self.context.log.lines
        mean = {f"mean/{name}": value for name, value in self.mean.tensors.items()}
        tensors = {**learner_tensors(self.learner), **mean}
        save_resume(self.context.paths, progress, tensors, training=str(self.context.identity["training"]))

    def hand_over(self) -> None:
        """Leave in the model what the next stage starts from: the averaged or, after an early stop, best weights."""
        if self.stage.early_stop and self.progress.best_epoch is not None:
            best = read_checkpoint(self.context.paths.snapshot(self.stage.name, "best"))
            if best is None:
                raise CheckpointError(
                    f"the best epoch of stage {self.stage.name} was kept as "
                    f"'{self.context.paths.snapshot(self.stage.name, 'best')}', which is missing or damaged",
                    "the snapshot that was written when the epoch ended",
                    f"bring it back, or `kbench train --fold {self.context.fold} --force` trains the fold anew",
                )
            self.model.load_state_dict(snapshot_tensors(best))
        elif self.learner.averaged is not None:
            self.learner.model.load_state_dict(self.learner.averaged.state_dict())
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
