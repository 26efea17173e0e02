"""The updates of an epoch: generators without callbacks.

`train_epoch` makes the updates of one epoch and yields one `Update` each. Who calls it (`stage.py`) logs, judges
(`validation.py`), checkpoints, keeps snapshots and stops early, in visible order, between two yields. What one update
computes is in `update.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kbench.data import seeds
from kbench.data.dataset import Batch, Draw
from kbench.errors import Diverged
from kbench.models.device import Precision, autocast
from kbench.models.layer_groups import train_mode
from kbench.models.outputs import Units, dense_target
from kbench.training.losses.per_target import LossSum
from kbench.training.optimizers import apply_schedule
from kbench.training.ranks import ALONE, Ranks
from kbench.training.schedules import Schedule
from kbench.training.update import Learner, Rules, update

Mix = Callable[..., tuple[torch.Tensor, torch.Tensor]]
Load = Callable[[Sequence[Sequence[Draw]]], Iterator[Batch]]


@dataclass(frozen=True)
class Update:
    """One optimiser update.

    Attributes:
        step: its number in the stage, from 0.
        rate: learning rate of the last layer group.
        images: how many it saw, on all ranks.
        loss: sums over valid targets of all ranks, on the device.
        waited: seconds spent waiting for data.
        seconds: seconds in all.
        positive: how many patches showed a class that is looked for, on the device; None where none is.
    """

    step: int
    rate: float
    images: int
    loss: LossSum
    waited: float
    seconds: float
    positive: torch.Tensor | None = None


@dataclass
class Meter:
    """Running sums of an epoch; read from the device only now and then.

    Attributes:
        total: sum of losses.
        count: valid targets.
        images: images seen.
        waited: seconds spent waiting for data.
        seconds: seconds in all.
        positive: patches that showed a class that is looked for.
    """

    total: float = 0.0
    count: float = 0.0
    images: int = 0
    positive: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0
    _pending: list[Update] = field(default_factory=list)

    def add(self, update: Update) -> None:
        """Count an update; every 50 of them the losses are read.

        Raises:
            Diverged: a loss is not finite.
        """
        self.images += update.images
        self.waited += update.waited
        self.seconds += update.seconds
        self._pending.append(update)
        if len(self._pending) >= 50 or update.loss.total.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Read the losses from the device."""
        if not self._pending:
            return
        losses = [torch.stack((one.loss.total, one.loss.count)) for one in self._pending]
        for one, (total, count) in zip(self._pending, torch.stack(losses).double().cpu().tolist(), strict=True):
            if not math.isfinite(total):
                raise diverged(f"the loss is {total}", step=one.step, rate=one.rate)
            self.total += total
            self.count += count
            self.positive += 0.0 if one.positive is None else float(one.positive)
        self._pending = []

    @property
    def loss(self) -> float:
        """Mean loss so far."""
        self.flush()
        return self.total / self.count if self.count else 0.0


def diverged(what: str, *, step: int, rate: float) -> Diverged:
    """Return the error that marks a fold failed.

    Args:
        what: what is not finite.
        step: update of the stage after which it was seen.
        rate: learning rate of that update.
    """
    return Diverged(
        f"{what} at step {step}, at a learning rate of {rate:.3g}",
        "finite losses and weights",
        "lower `lr`, set `clip: 1.0` or `precision: fp32`, then train this fold again",
    )


@dataclass(frozen=True)
class Feed:
    """How batches reach the model.

    Attributes:
        load: yields planned batches.
        normalise: [B, H, W, C] of any dtype -> [B, C, H, W] float32, on the device.
        device: where to.
        mix: mixup or cutmix, or None.
        n_outputs: number of targets.
        task: the competition's task.
        body: what a frozen body makes of images where its head alone trains, or None.
        units: of a regression's targets, where they are learned standardised.
        wanted: numbers of the classes that patches are looked through for.
        ranks: who takes a part of every batch.
    """

    load: Load
    normalise: nn.Module
    device: torch.device
    mix: Mix | None = None
    n_outputs: int = 0
    task: str = "single_label"
    body: Callable[[torch.Tensor], torch.Tensor] | None = None
    units: Units | None = None
    wanted: tuple[int, ...] = ()
    ranks: Ranks = ALONE

    def positive(self, target: torch.Tensor) -> torch.Tensor | None:
        """Return how many patches of a batch's target, as losses take it, show a wanted class; None where none is."""
        if not self.wanted:
            return None
        if target.ndim == 3:
            layers = torch.isin(target, torch.tensor(self.wanted, device=target.device))
        else:
            layers = target[:, list(self.wanted)] == 1
        return layers.flatten(1).any(1).sum()

    def parts(self, batches: Sequence[Sequence[Draw]]) -> Iterator[Batch]:
        """Yield what this rank loads of planned batches."""
        return self.load(batches if not self.ranks.several else _Parts(batches, self.ranks))

    def normalised(self, raw: torch.Tensor, regions: Sequence[str]) -> torch.Tensor:
        """Return images [B, C, H, W] as the network sees them; rows of activations stay as they are."""
        shown: torch.Tensor = self.normalise(raw, regions) if any(regions) else self.normalise(raw)
        return shown

    def learned(self, target: torch.Tensor) -> torch.Tensor:
        """Return targets as the loss compares them: those of a regression standardised."""
        return target if self.units is None else self.units.standardised(target)

    def seen(self, images: torch.Tensor) -> torch.Tensor:
        """Return what is given to what trains: normalised images, or their features."""
        return images if self.body is None else self.body(images)

    def ready(self, batch: Batch, key: tuple[int, ...], *, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Move, normalise and mix one batch; return this rank's part of it, which may be empty.

        Images are mixed with others of the whole batch, wherever they are.

        Args:
            batch: what `parts` yields.
            key: of the random numbers.
            rows: of the whole batch.
        """
        raw = batch.images[0].to(self.device, non_blocking=True)
        assert batch.target is not None, "training rows have targets"
        target = batch.target.to(self.device, non_blocking=True)
        part, own = self.ranks.part(rows)
        if any(batch.regions):  # of rows that other ranks may have
            raw = self.normalised(raw, batch.regions)
        if self.mix is not None:
            raw, target = self.ranks.whole(raw[:own], rows), self.ranks.whole(target[:own], rows)
        images = raw if any(batch.regions) else self.normalise(raw)
        if target.ndim == 4:  # masks
            target = dense_target(target, self.task, self.n_outputs)
        target = self.learned(target)
        if self.mix is not None:
            images, target = self.mix(images, target, seeds.generator(*key), self.n_outputs)
            images, target = images[part], target[part]
        return self.seen(images)[:own], target[:own]


class _Parts(Sequence[Sequence[Draw]]):
    """What a rank loads of planned batches."""

    def __init__(self, batches: Sequence[Sequence[Draw]], ranks: Ranks) -> None:
        self._batches, self._ranks = batches, ranks

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        draws = self._batches[index]
        return draws[self._ranks.part(len(draws))[0]]


def train_epoch(
    learner: Learner,
    feed: Feed,
    batches: Sequence[Sequence[Draw]],
    *,
    rules: Rules,
    schedule: Schedule,
    history: Sequence[float],
    first_step: int,
    accumulate: int,
    key: tuple[int, ...],
) -> Iterator[Update]:
    """Make the updates of an epoch, or of what is left of it.

    Args:
        learner: changed in place.
        feed: loads the batches.
        batches: the plan; `accumulate` of them make one update, the last group may be smaller.
        rules: how an update is made.
        schedule: learning rate of each step.
        history: scores of the finished epochs, larger is better.
        first_step: number of the first update in the stage.
        accumulate: batches per update.
        key: (seed, fold, stage); random numbers derive from it and the step.

    Yields:
        One record per update.
    """
    loaded = feed.parts(batches)
    train_mode(learner.model)
    for offset in range(0, len(batches), accumulate):
        started = time.perf_counter()
        step = first_step + offset // accumulate
        waited, ready, images = 0.0, [], 0
        for position in range(min(accumulate, len(batches) - offset)):
            asked = time.perf_counter()
            batch = next(loaded)
            waited += time.perf_counter() - asked
            rows = len(batch.rows) if not feed.ranks.several else len(batches[offset + position])
            ready.append(feed.ready(batch, (seeds.MIX, *key, step, position), rows=rows))
            images += rows
        if not learner.model.training:  # the caller has evaluated in between
            train_mode(learner.model)
        apply_schedule(learner.optimizer, schedule, step, history)
        rate = float(learner.optimizer.param_groups[-1]["lr"])
        own = (rules.ranks.rank,) if rules.ranks.rank else ()  # other images are dropped otherwise
        loss = update(learner, ready, rules=rules, seed=seeds.number(seeds.STEP, *key, step, *own))
        shows = [count for _, target in ready if (count := feed.positive(target)) is not None]
        positive = feed.ranks.added(torch.stack(shows).sum()) if shows else None
        yield Update(step, rate, images, loss, waited, time.perf_counter() - started, positive)


def logits_in(model: nn.Module, device: torch.device, precision: Precision, batch: list[torch.Tensor]) -> torch.Tensor:
    """Return what a model answers in a precision."""
    with autocast(device, precision):
        logits: torch.Tensor = model(batch[0])
    return logits
