"""The learning-rate range test: the loop's own updates on a copy of the model (F-14; Smith 2015, arXiv 1506.01186).

The rate rises from step to step, the loss is smoothed, and the test ends when it diverges. Afterwards the
model, its optimiser and the random state are as before, bit for bit: the copy is what learned.

The rule for the suggestion is in `judge`. To add another rule, write a function of the same signature beside it.
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
"""Decay of the running mean of the loss that ends the test (F-14)."""

SETTLE = 10
"""The best loss is tracked after this many iterations (F-14)."""

FEWEST = 8
"""A curve of fewer finite losses says nothing."""

TENTH = 10.0
"""How many times below the minimum the lesson's rate is (F-15)."""


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
    """Return [N] float64 losses as they are judged, smoothed as far as their noise asks for; NaN from the first NaN on.

    A running mean (F-14) over an eighth of the points (`_SHORT`), or over up to a fifth of them (`_LONG`) where the
    noise is as large as the fall. The running mean lags, so that its minimum lies a little to the right of the loss's:
    on the level floor that most curves have before they rise, noise alone would put it anywhere.
    """
    raw = np.asarray(losses, dtype=np.float64)
    count = _followed(raw)
    level, _ = _smoothed(raw[:count])
    return np.concatenate([level, np.full(len(raw) - count, np.nan)])


@dataclass(frozen=True)
class Suggestion:
    """What a range test says.

    Attributes:
        rate: the suggested rate.
        level: whether it comes from the end of a level stretch, because the loss does not clearly fall.
    """

    rate: float
    level: bool


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Return the rate of `judge`."""
    return judge(lrs, losses).rate


def judge(lrs: Sequence[float], losses: Sequence[float], *, divide: float = TENTH) -> Suggestion:
    """Return the rate one order of magnitude before the minimum, where the loss still falls (F-15; Smith 2015).

    The rule, on the smoothed losses up to the first that is not finite:

    1. The minimum is the lowest point but for the first 10 and the last 6. The loss falls clearly if it drops, before
       the minimum, by more than 1 % of it and by more than three standard deviations of what noise does to the drop.
       Then the suggestion is a tenth of the minimum's rate, or what `divide` makes of it.
    2. Where it stays level and then rises as clearly (a network that is nearly trained, or noise as large as the fall),
       the suggestion is a tenth of the last rate at which it was level, if that rate was tested. That rate is where
       the sum of what the raw losses have above the level, and half of their noise, is lowest: it needs no smoothing.

    `benchmarks/bench_lr_finder.py` shows how far this lies from a tenth of the true minimum.

    Args:
        lrs: [N] rates in rising order.
        losses: [N] raw losses.
        divide: how many times below the minimum the suggestion is, 1 or more.

    Raises:
        TrainingError: no rate can be read off: the loss rises at once, does neither, or too few iterations were run.
    """
    raw = np.asarray(losses, dtype=np.float64)
    count = _followed(raw)
    if count < FEWEST:
        raise _no_rate(f"the loss could be followed for only '{count}' iterations")
    rates, raw = np.asarray(lrs, dtype=np.float64)[:count], raw[:count]
    points = shown(count)
    level, noise = _smoothed(raw)
    lowest = points.start + int(np.argmin(level[points]))
    before = slice(points.start, lowest + 1)
    top = points.start + int(np.argmax((level - _SURE * noise)[before]))
    clear = max(0.01 * abs(float(level[lowest])), _SURE * math.hypot(noise[lowest], noise[top]))
    if level[top] - level[lowest] > clear:
        return Suggestion(float(rates[lowest] / divide), level=False)
    if level[lowest:].max() - level[lowest] <= clear:
        raise _no_rate("the loss neither falls nor rises clearly above its noise at any learning rate")
    edge = _edge(raw, lowest=lowest, last=int(np.flatnonzero(level <= level[lowest] + clear)[-1]))
    if rates[edge] / divide < rates[0]:
        raise _no_rate("the loss rises from the lowest learning rate on")
    return Suggestion(float(rates[edge] / divide), level=True)


_SHORT, _LONG = 8, 5  # a mean is over the points divided by these
_SURE = 3.0  # standard deviations


def _followed(losses: np.ndarray) -> int:
    """Return how many losses come before the first that is not finite."""
    bad = np.flatnonzero(~np.isfinite(losses))
    return int(bad[0]) if len(bad) else len(losses)


def _smoothed(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smoothed losses, and the standard deviation of each."""
    count = len(raw)
    if count < 3:
        return raw.copy(), np.zeros(count)
    points = shown(count)
    first = _running_mean(raw, count / 6)
    lowest = points.start + int(np.argmin(first[points]))
    drop = float(first[points.start : lowest + 1].max() - first[lowest])
    noise = _noise(raw[: max(lowest + 1, 6)])
    wanted = 100 * (noise / drop) ** 2 if drop > 0 else math.inf
    span = max(2.0, min(max(wanted, count / _SHORT), count / _LONG))
    beta, behind = 1 - 1 / span, np.arange(1, count + 1)
    deviation = noise * np.sqrt((1 - beta) / (1 + beta) * (1 + beta**behind) / (1 - beta**behind))
    return _running_mean(raw, span), deviation


def _running_mean(raw: np.ndarray, span: float) -> np.ndarray:
    smoother = Smoother(1 - 1 / max(span, 2.0))
    return np.array([smoother.add(float(loss)) for loss in raw])


def _noise(raw: np.ndarray) -> float:
    """Return the standard deviation of raw losses about a line, by their second differences; outliers count less."""
    squares = np.diff(raw, 2) ** 2
    return float(np.sqrt(np.minimum(squares, 25 * np.median(squares)).mean() / 6)) if len(squares) else 0.0


def _edge(raw: np.ndarray, *, lowest: int, last: int) -> int:
    """Return the last point of a level stretch.

    Args:
        raw: losses.
        lowest: the smoothed minimum, which the stretch reaches.
        last: the last point that is not clearly above it when smoothed; the loss began to rise before it.
    """
    flat = raw[: max(lowest, last - len(raw) // (2 * _LONG)) + 1]
    level, noise = float(flat.mean()), _noise(flat)
    step = max(noise / 2, 0.02 * abs(level))
    above = np.minimum(raw - level - step, 4 * max(noise, step))
    return lowest + int(np.argmin(np.cumsum(above)[lowest:]))


def _no_rate(what: str) -> TrainingError:
    return TrainingError(
        what,
        "a loss that falls at some rates and rises at higher ones",
        "look at the curve's CSV and picture; a clearer one needs more steps (`range_test: {steps: 200}`), a larger "
        "`batch_size` or `accumulate`, or a lower `start`; or set `lr:` of the stage to a number, such as 1e-3",
    )


@dataclass(frozen=True)
class LRCurve:
    """Rates and losses of one range test.

    Attributes:
        lrs: rate of each iteration, of the last layer group.
        losses: raw loss of each iteration; the last one may not be finite.
        valid: loss of a validation batch after each iteration, or empty; where there is one, it is what counts.
        divide: how many times below the minimum the suggestion is.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    valid: tuple[float, ...] = ()
    divide: float = TENTH

    @property
    def followed(self) -> tuple[float, ...]:
        """The losses that are smoothed and judged."""
        return self.valid or self.losses

    @cached_property
    def smoothed(self) -> np.ndarray:
        """[N] float64 smoothed losses."""
        return smooth(self.followed)

    @cached_property
    def judged(self) -> Suggestion:
        """The suggested rate, and where it comes from.

        Raises:
            TrainingError: no rate helps.
        """
        return judge(self.lrs, self.followed, divide=self.divide)

    @property
    def suggestion(self) -> float:
        """The suggested rate.

        Raises:
            TrainingError: no rate helps.
        """
        return self.judged.rate

    @property
    def suggested(self) -> float | None:
        """The suggested rate, or None where no rate helps."""
        try:
            return self.suggestion
        except TrainingError:
            return None

    def rows(self) -> list[dict[str, float]]:
        """Return one dict per iteration, the rows of the CSV: `step`, `lr`, `loss`, `smoothed`, any `valid_loss`.

        Where the suggestion is not a tenth of the minimum's rate, `divide` stands beside them.
        """
        columns = zip(self.lrs, self.losses, self.smoothed, strict=True)
        rows = [
            {"step": step, "lr": lr, "loss": loss, "smoothed": float(level)}
            for step, (lr, loss, level) in enumerate(columns)
        ]
        if self.valid:
            rows = [row | {"valid_loss": loss} for row, loss in zip(rows, self.valid, strict=True)]
        return rows if self.divide == TENTH else [row | {"divide": self.divide} for row in rows]


def level_note(stage: str, rate: float) -> str:
    """Return what a user should know of a rate that comes from a level stretch.

    Args:
        stage: its name.
        rate: the suggested rate.
    """
    return (
        f"stage {stage}: in its range test the loss does not clearly fall before it rises; the rate {rate:.3g} is a "
        "tenth of the last one at which it was level, not of a minimum. A clearer curve needs more steps "
        "(`range_test: {steps: 200}`) or a larger `batch_size`"
    )


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
        rise: first and last rate of the last group, how it rises, whether it ends where the loss diverges, and how
            far below the minimum the suggestion is.
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
    return LRCurve(tuple(rates), tuple(losses), tuple(judged), rise.divide)


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
