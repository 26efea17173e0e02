"""The learning-rate range test: the loop's own updates on a copy of the model (F-14; Smith 2015, arXiv 1506.01186).

The rate rises from step to step, the loss is smoothed, and the test ends when it diverges. Afterwards the
model, its optimiser and the random state are as before, bit for bit: the copy is what learned.

The learning-rate range test as arithmetic: the ramp of rates, smoothing, when to stop, what to suggest.

The training steps themselves are run elsewhere; this module only sees rates and losses. The rule for the
suggestion is in `suggest`. To add another rule, write a function of the same signature beside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from kbench.config.stage import RangeTest
from kbench.data.dataset import Draw
from kbench.errors import TrainingError, check_number
from kbench.models.device import in_parts
from kbench.models.layer_groups import Layers, layer_groups
from kbench.training.loop import Feed, logits_in, train_epoch
from kbench.training.schedules import Cycle, Schedule, keep_momentum
from kbench.training.update import Learner, Rules

BETA = 0.98
"""Decay of the running mean of the loss (F-14)."""

SETTLE = 10
"""The best loss is tracked after this many iterations (F-14)."""

FEWEST = 8
"""A curve of fewer finite losses says nothing."""


def ramp(step: int, steps: int, start: float, end: float, linear: bool = False) -> float:
    """Return the rate of one iteration of the range test (Smith 2015; F-14, oracle 6.2).

    Args:
        step: 0..steps-1.
        steps: iterations of the whole ramp.
        start: first rate.
        end: the rate the ramp runs up to; the last iteration is one step short of it.
        linear: `end * step / steps`, from 0, instead of `start * (end / start)^(step / steps)`.

    Raises:
        ConfigError: rates that do not rise from above 0.
    """
    check_number("start", start, "(0, inf)")
    check_number("end", end, f"({start}, inf)")
    return end * step / steps if linear else float(start * (end / start) ** (step / steps))


@dataclass
class Smoother:
    """Running mean of the loss without a bias towards 0 (F-14).

    Attributes:
        beta: decay per iteration.
        mean: the biased running mean.
        count: values so far.
    """

    beta: float = BETA
    mean: float = 0.0
    count: int = 0

    def add(self, loss: float) -> float:
        """Take one loss and return the smoothed one: the mean of all so far, newer ones weighing more."""
        self.count += 1
        self.mean = self.beta * self.mean + (1 - self.beta) * loss
        return self.mean / (1 - self.beta**self.count)


def track_best(smoothed: float, best: float, step: int) -> float:
    """Return the lowest smoothed loss so far; infinite until iteration 10 is past.

    Args:
        smoothed: smoothed loss of this iteration.
        best: what this function returned for the one before, infinite at first.
        step: the iteration, counted from 0.
    """
    return min(best, smoothed) if step > SETTLE else best


def should_stop(smoothed: float, best: float, step: int) -> bool:
    """Return whether the loss has diverged: no longer finite, or four times the best (F-14).

    Args:
        smoothed: smoothed loss of this iteration.
        best: `track_best` of the iterations before it.
        step: the iteration, counted from 0.
    """
    if not math.isfinite(smoothed):
        return True
    return step > SETTLE and math.isfinite(best) and smoothed > best + 3 * abs(best)


def shown(count: int) -> slice:
    """Return the points that are plotted and judged: not the first 10 and the last 6 (F-14), fewer of short curves."""
    return slice(min(10, count // 10), count - min(6, count // 16))


def smooth(losses: Sequence[float]) -> np.ndarray:
    """Return [N] float64 smoothed losses."""
    smoother = Smoother()
    return np.array([smoother.add(loss) for loss in losses], dtype=np.float64)


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Return the rate one order of magnitude before the minimum, where the loss still falls (F-15).

    The rule, on the smoothed losses up to the first that is not finite:

    1. The minimum is the lowest point but for the first 10 and the last 6. The loss falls clearly if it drops, before
       the minimum, by more than 1 % of it and by more than four standard deviations of its noise, which is
       estimated from the differences of neighbouring raw losses.
    2. Where it does, the suggestion is a tenth of the minimum's rate, but not below the rate at which a tenth of
       the drop is done: before it nothing is learned.
    3. Where it stays level and then rises as clearly (a network that is nearly trained), the suggestion is a tenth
       of the highest rate at which it was still level, if that rate was tested.

    Args:
        lrs: [N] rates in rising order.
        losses: [N] raw losses.

    Raises:
        TrainingError: no rate helps: the loss rises at once, never changes, or too few iterations were run.
    """
    rates, raw = _finite(np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64))
    level, points = smooth(list(raw)), shown(len(rates))
    noise = _noise(raw, behind=points.start + 1)
    lowest = points.start + int(np.argmin(level[points]))
    before, floor = level[points.start : lowest + 1], level[lowest]
    clear = max(0.01 * abs(floor), 4 * noise)
    drop = float(before.max() - floor)
    if drop > clear:
        begun = points.start + int(np.flatnonzero(before >= floor + 0.9 * drop)[-1])
        return float(max(rates[lowest] / 10, rates[begun]))
    return _before_rise(rates, risen=np.flatnonzero((level > floor + clear) & (np.arange(len(level)) > lowest)))


def _before_rise(rates: np.ndarray, *, risen: np.ndarray) -> float:
    if not len(risen):
        raise _no_rate("the loss neither falls nor rises at any learning rate")
    edge = rates[risen[0] - 1]
    if edge / 10 < rates[0]:
        raise _no_rate("the loss rises from the lowest learning rate on")
    return float(edge / 10)


def _finite(lrs: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points before the first loss that is not finite."""
    bad = np.flatnonzero(~np.isfinite(losses))
    count = int(bad[0]) if len(bad) else len(losses)
    if count < FEWEST:
        raise _no_rate(f"the loss could be followed for only '{count}' iterations")
    return lrs[:count], losses[:count]


def _noise(losses: np.ndarray, *, behind: int) -> float:
    """Return the standard deviation of a smoothed loss that is the mean of `behind` raw ones."""
    raw = 1.4826 * float(np.median(np.abs(np.diff(losses)))) / math.sqrt(2)
    return raw * math.sqrt((1 - BETA) / (1 + BETA) * (1 + BETA**behind) / (1 - BETA**behind))


def _no_rate(what: str) -> TrainingError:
    return TrainingError(
        what,
        "a loss that falls at some rates and rises at higher ones",
        "look at the curve's CSV and picture; start the finder at a lower rate, or set `lr:` of the stage to a number, "
        "such as 1e-3",
    )


@dataclass(frozen=True)
class LRCurve:
    """Rates and losses of one range test.

    Attributes:
        lrs: rate of each iteration, of the last layer group.
        losses: raw loss of each iteration; the last one may not be finite.
        valid: loss of a validation batch after each iteration, or empty; where there is one, it is what counts.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    valid: tuple[float, ...] = ()

    @property
    def followed(self) -> tuple[float, ...]:
        """The losses that are smoothed and judged."""
        return self.valid or self.losses

    @cached_property
    def smoothed(self) -> np.ndarray:
        """[N] float64 smoothed losses."""
        return smooth(self.followed)

    @cached_property
    def suggestion(self) -> float:
        """The suggested rate.

        Raises:
            TrainingError: no rate helps.
        """
        return suggest(self.lrs, self.followed)

    @property
    def suggested(self) -> float | None:
        """The suggested rate, or None where no rate helps."""
        try:
            return self.suggestion
        except TrainingError:
            return None

    def rows(self) -> list[dict[str, float]]:
        """Return one dict per iteration, the rows of the CSV: `step`, `lr`, `loss`, `smoothed`, any `valid_loss`."""
        columns = zip(self.lrs, self.losses, self.smoothed, strict=True)
        rows = [
            {"step": step, "lr": lr, "loss": loss, "smoothed": float(level)}
            for step, (lr, loss, level) in enumerate(columns)
        ]
        return [row | {"valid_loss": loss} for row, loss in zip(rows, self.valid, strict=True)] if self.valid else rows


Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]


def find_lr(
    model: nn.Module,
    feed: Feed,
    batches: Sequence[Sequence[Draw]],
    *,
    optimizer: Callable[[Layers, Sequence[float]], torch.optim.Optimizer],
    ratios: Sequence[float],
    rules: Rules,
    micro_batch: int,
    accumulate: int,
    key: tuple[int, ...],
    rise: RangeTest,
    valid: Pairs | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> LRCurve:
    """Raise the rate until the loss diverges; return the curve and its suggestion.

    Args:
        model: copied, not changed.
        feed: loads the batches.
        batches: the plan; one step per `accumulate` of them.
        optimizer: (layer groups, rates) -> optimiser.
        ratios: rate of each layer group over that of the last.
        rules: how an update is made.
        micro_batch: images per forward pass.
        accumulate: batches per step.
        key: (seed, fold, stage) of the random numbers.
        rise: first and last rate of the last group, how it rises, and whether it ends where the loss diverges.
        valid: normalised images and targets, on the device; after each update the next one is judged.
        tell: called as `tell(done, total)` after each step.
    """
    steps = -(-len(batches) // accumulate)
    schedule = Schedule(
        epochs=1,
        steps=steps,
        cycles=(Cycle(0, 0, steps - 1),),
        rate=lambda step, lr_max, history: lr_max * ramp(step, steps, rise.start, rise.end, linear=rise.linear),
        momentum=keep_momentum,
    )
    with untouched_random_state():
        learned = copy.deepcopy(model)
        learner = Learner(
            model=learned,
            optimizer=optimizer(layer_groups(learned), ratios),
            scaler=torch.amp.GradScaler(rules.device.type, enabled=rules.precision == "fp16"),
            averaged=None,
            micro_batch=micro_batch,
        )
        smoother, best = Smoother(), float("inf")
        rates, losses, judged = [], [], []
        for update in train_epoch(
            learner,
            feed,
            batches,
            rules=rules,
            schedule=schedule,
            history=(),
            first_step=0,
            accumulate=accumulate,
            key=key,
        ):
            rates.append(schedule.rate(update.step, 1.0, ()))  # of the last layer group, even if it is frozen
            losses.append(float(update.loss.mean()))
            if valid is not None:
                judged.append(_judged(learned, next(valid), rules))
            smoothed = smoother.add((judged or losses)[-1])
            tell(update.step + 1, steps)
            over = not math.isfinite(smoothed) or (rise.stop and should_stop(smoothed, best, update.step))
            if rules.ranks.decided(over):
                break
            best = track_best(smoothed, best, update.step)
    return LRCurve(tuple(rates), tuple(losses), tuple(judged))


@torch.no_grad()
def _judged(model: nn.Module, pair: tuple[torch.Tensor, torch.Tensor], rules: Rules) -> float:
    """Return the mean loss of one batch that is not learned from."""
    images, target = pair
    model.eval()  # the next update sets training mode again
    logits = in_parts(partial(logits_in, model, rules.device, rules.precision), [images])
    return float(rules.loss(logits.float(), target).mean())


def untouched_random_state() -> AbstractContextManager[None]:
    """Restore torch's random states, CPU and CUDA, after the block."""
    return torch.random.fork_rng(range(torch.cuda.device_count()))
