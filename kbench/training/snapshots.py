"""What a stage leaves on disk: snapshots that become ensemble members, the mean of weights, resume points.

To keep one more kind of snapshot, give `Keeper.keep` the moment it is due and `StagePlan.keep` its name. The mean of
weights at the ends of epochs or cycles (F-18, F-20) is stochastic weight averaging (Izmailov et al. 2018, algorithm 1):
it lies in a flatter place than any of them, and costs one model at prediction instead of many. Running statistics of
batch norm are not those of the mean; they are measured again in one pass over the training batches.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn, update_bn

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
from kbench.training.batch_norm_sync import synchronised
from kbench.training.events import Epoch
from kbench.training.fold_context import FoldContext
from kbench.training.lone_image import lone_image
from kbench.training.loop import diverged
from kbench.training.ranks import Ranks
from kbench.training.resume import Progress, learner_tensors, part, restore_learner, save_resume
from kbench.training.schedules import Schedule
from kbench.training.stage_plan import StagePlan
from kbench.training.update import Learner, Rules


def weight_mean(model: nn.Module) -> AveragedModel:
    """Return the running mean of a model's states, of none so far; whole numbers (counts of batches) are the newest.

    Args:
        model: has the names and shapes of what will be counted.
    """
    mean = get_swa_avg_fn()  # type: ignore[no-untyped-call]

    def moved(averaged: Any, current: Any, count: Any) -> Any:
        return mean(averaged, current, count) if averaged.is_floating_point() else current

    return AveragedModel(model, avg_fn=moved, use_buffers=True)


class _Norms(nn.ModuleList):
    """The batch norms that `update_bn` measures while the rest of their model runs in eval mode."""

    def __init__(self, norms: Iterable[nn.Module], forward: Callable[[torch.Tensor], Any]) -> None:
        super().__init__(norms)
        self.whole = forward

    def forward(self, images: torch.Tensor) -> Any:
        """Run the whole model."""
        return self.whole(images)


def refit_batch_norm(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    device: torch.device,
    precision: Precision,
    together: Ranks | None = None,
) -> None:
    """Measure the running statistics of batch norm anew, as the plain mean over batches; frozen ones stay.

    Args:
        model: in the state its statistics are measured for; left in eval mode.
        batches: inputs of the model, on its device.
        device: where the model is.
        precision: of the forward pass.
        together: the ranks whose parts of a batch are measured together.
    """

    def forward(images: torch.Tensor) -> None:
        lone = lone_image(model, images) if together is None else contextlib.nullcontext()
        with autocast(device, precision), lone, synchronised(together):
            model(images)

    train_mode(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    model.eval()
    update_bn(batches, _Norms(norms, forward).eval())


@dataclass(frozen=True)
class Keeper:
    """Writes what is kept of a stage.

    Attributes:
        context: the fold.
        plan: the stage, with what is to be kept.
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
        mean: of the weights so far, where it is kept.
    """

    context: FoldContext
    plan: StagePlan
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
    mean: AveragedModel | None

    def keep(self, epoch: Epoch, *, done: bool, constant: float | None = None) -> None:
        """Write the snapshots that are due after an epoch.

        Args:
            epoch: what it brought.
            done: whether it is the stage's last.
            constant: loss of saying the mean of a regression's targets everywhere, which a member should not exceed.
        """
        plan, progress, smoke = self.plan, self.progress, bool(self.context.limit)
        ends = [cycle.index for cycle in self.schedule.cycles if cycle.last == progress.step - 1]
        cycle = bool(ends) and "cycles" in plan.keep and not smoke
        if cycle:
            self._snapshot(str(ends[0]), epoch, kept=True)
            self._hold_against(constant, epoch, str(ends[0]))
        if epoch.best and ("best" in plan.keep or plan.stage.early_stop):
            self._snapshot("best", epoch, kept="best" in plan.keep)
        if done and "last" in plan.keep and not cycle:
            self._snapshot("last", epoch, kept=True)
            self._hold_against(constant, epoch, "last")
        if self.mean is not None and not smoke:
            self._average(self.mean, ends, epoch, done=done)
        if done and plan.keep and not smoke and not self._kept():
            self._keep_end(epoch)
        if done:
            self.context.plan.set(
                f"end/{plan.name}",
                {"epochs": progress.epoch, "best_epoch": progress.best_epoch, "history": list(progress.history)},
            )

    def _hold_against(self, constant: float | None, epoch: Epoch, tag: str) -> None:
        """Say of a snapshot that is kept when it is worse than a constant: the mean of an ensemble suffers from it."""
        if constant is not None and epoch.valid_loss is not None and epoch.valid_loss > constant:
            self.rules.said.append(
                f"snapshot {self.plan.name}-{tag} is worse than the mean of the training rows' targets: its loss is "
                f"{epoch.valid_loss:.3g}, the mean's {constant:.3g}; a lower `lr` or more epochs may help, and "
                "`ensemble.members` leaves it out"
            )

    def _kept(self) -> bool:
        """Return whether the stage has a snapshot that is predicted with."""
        keep, progress = self.plan.keep, self.progress
        return (
            "last" in keep
            or ("best" in keep and progress.best_epoch is not None)
            or ("cycles" in keep and any(cycle.last < progress.step for cycle in self.schedule.cycles))
            or (self.mean is not None and int(self.mean.n_averaged) > 0)
        )

    def _keep_end(self, epoch: Epoch) -> None:
        """Keep the stage's end, after an early stop its best epoch: it was over before what was to be kept came."""
        if not self.context.ranks.first:
            return
        path = self.context.paths.snapshot(self.plan.name, "best")
        best = read_checkpoint(path) if self.plan.stage.early_stop else None
        if best is None:
            self._snapshot("last", epoch, kept=True)
        else:
            save_checkpoint(path, read_tensors(best.tensors), {**best.info, "kept": True})
        what = "end" if best is None else "best epoch"
        wanted = " or ".join(sorted(self.plan.keep))
        self.rules.said.append(
            f"stage {self.plan.name} was over before there was a {wanted} to keep: its {what} is kept"
        )

    def _average(self, mean: AveragedModel, ends: list[int], epoch: Epoch, *, done: bool) -> None:
        """Count the weights at the end of an epoch or cycle; at the end of the stage keep their mean (F-18, F-20)."""
        average = self.plan.stage.average
        if average.of == "epochs" or ends:
            place = self.progress.epoch if average.of == "epochs" else ends[0] + 1
            if place >= average.start:
                mean.update_parameters(self.learner.judged)
        if not done or not mean.n_averaged:
            return
        model = copy.deepcopy(self.learner.model)  # knows what is frozen
        model.load_state_dict(mean.module.state_dict())
        device, precision = self.context.device, self.rules.precision
        together = self.rules.whole_batches
        refit_batch_norm(model, self.refit_inputs(), device=device, precision=precision, together=together)
        if together is None:
            train_mode(model)  # says which statistics were measured
            self.context.ranks.average_statistics(model)
            model.eval()
        self._snapshot("average", replace(epoch, valid_loss=None, score=None), kept=True, of=model)

    def _snapshot(self, tag: str, epoch: Epoch, *, kept: bool, of: nn.Module | None = None) -> None:
        context, plan, table = self.context, self.plan, self.context.table
        if not context.ranks.first:
            return
        weights, body = self._weights(self.learner.judged if of is None else of)
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise diverged("weights are NaN or infinite", step=epoch.step - 1, rate=epoch.lr)
        monitor = None if self.progress.by_loss else plan.monitor
        info: dict[str, Any] = {
            "fold": context.fold, "stage": plan.name, "tag": tag, "epoch": epoch.epoch, "step": epoch.step,
            "kept": kept, "subset": plan.stage.subset, "train_loss": epoch.train_loss, "valid_loss": epoch.valid_loss,
            "score": epoch.score, "monitor": monitor.name if monitor else "loss",
            "size": list(plan.size), "crop": plan.valid_show.crop.resize, "scale": context.scale_for(None),
            "precision": self.judged_in, "channels_last": self.channels_last, "task": table.task,
            "names": list(table.target_names), "body": body, "precomputed": self.precomputed, **context.identity,
        }  # fmt: skip
        units = context.units()
        if units is not None:
            info["units"] = {"mean": list(units.mean), "std": list(units.std)}
        save_checkpoint(context.paths.snapshot(plan.name, tag), weights, info)

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
        if not self.context.ranks.first:
            return
        progress = self.progress
        progress.body = self._body if self.head_alone else ""
        progress.micro_batch, progress.lone_said = self.learner.micro_batch, self.learner.lone_said
        progress.averaged = int(self.mean.n_averaged) if self.mean is not None else 0
        progress.log_lines = self.context.log.lines
        tensors = learner_tensors(self.learner)
        if self.mean is not None and progress.averaged:
            tensors |= {f"mean/{name}": value for name, value in self.mean.module.state_dict().items()}
        save_resume(self.context.paths, progress, tensors, training=str(self.context.identity["training"]))

    def restore(self, tensors: Tensors) -> None:
        """Go on from a resume point."""
        restore_learner(self.learner, tensors)
        self.learner.micro_batch, self.learner.lone_said = self.progress.micro_batch, self.progress.lone_said
        if self.mean is not None and self.progress.averaged:
            self.mean.module.load_state_dict(part(tensors, "mean/"))
            self.mean.n_averaged.fill_(self.progress.averaged)

    def hand_over(self) -> None:
        """Leave in the model what the next stage starts from: the averaged or, after an early stop, best weights."""
        self.context.ranks.wait()  # rank 0 has written them
        if self.plan.stage.early_stop and self.progress.best_epoch is not None:
            path = self.context.paths.snapshot(self.plan.name, "best")
            best = read_checkpoint(path)
            if best is None:
                raise CheckpointError(
                    f"the best epoch of stage {self.plan.name} was kept as '{path}', which is missing or damaged",
                    "the snapshot that was written when the epoch ended",
                    f"bring it back, or `kbench train --fold {self.context.fold} --force` trains the fold anew",
                )
            self.model.load_state_dict(snapshot_tensors(best))
        elif self.learner.averaged is not None:
            self.learner.model.load_state_dict(self.learner.averaged.module.state_dict())
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
