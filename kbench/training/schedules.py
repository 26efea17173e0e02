"""Learning-rate schedules: pure functions of the step, so that they can be printed before training.

A schedule knows its epochs, its updates and its cycles, and gives the rate of any update. Only `plateau` also
looks at the validation scores so far. To add one, write a function here with `@register("schedule")` that takes
the updates per epoch and its own keywords and returns a `Schedule`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from kbench.errors import ConfigError, check_number
from kbench.registry import register

MAX_EPOCHS = 1_000_000

Momentum = Callable[[int], float | None]
Rate = Callable[[int, float, Sequence[float]], float]
"""Called as `rate(step, lr_max, history)`; history holds one validation score per finished epoch, larger is better."""


def keep_momentum(step: int) -> None:
    """Leave the optimiser's own momentum as it is."""
    return None


@dataclass(frozen=True)
class Cycle:
    """Updates of one cycle; its snapshot is the state after update `last`.

    Attributes:
        index: 0 for the first cycle.
        first: its first update, counted from 0.
        last: its last update, inclusive.
    """

    index: int
    first: int
    last: int


@dataclass(frozen=True)
class Schedule:
    """Learning rate and momentum of every update of a stage.

    Attributes:
        epochs: how many epochs there are.
        steps: how many updates, `epochs * steps_per_epoch`.
        cycles: tile the updates 0..steps-1.
        rate: the learning rate of an update, 0 <= step < steps.
        momentum: the momentum of an update, or None where the optimiser's own is kept.
    """

    epochs: int
    steps: int
    cycles: tuple[Cycle, ...]
    rate: Rate
    momentum: Momentum = keep_momentum


def curve(schedule: Schedule, lr_max: float, history: Sequence[float] = ()) -> list[float]:
    """Return the learning rate of every update, for printing and plotting.

    Args:
        schedule: any schedule.
        lr_max: the highest rate.
        history: validation scores, one per finished epoch; only `plateau` needs them.
    """
    return [schedule.rate(step, lr_max, history) for step in range(schedule.steps)]


@register("schedule")
def sgdr(
    steps_per_epoch: int,
    *,
    cycles: int = 1,
    cycle_len: int = 1,
    cycle_mult: int = 1,
    warmup: float = 0.0,
    warmup_rate: float = 0.01,
    floor: float = 0.0,
    floor_lr: float = 0.0,
) -> Schedule:
    """Return cosine annealing with warm restarts (Loshchilov & Hutter 2016, equation 5; F-16).

    Update `i` of a cycle of `n` has the rate `lr_min + (lr_max - lr_min) / 2 * (1 + cos(pi * i / n))`.
    fast.ai's is `warmup=0.05`. It saved a cycle's snapshot one update early; here it is the state after the last.

    Args:
        steps_per_epoch: updates per epoch.
        cycles: how many cycles.
        cycle_len: epochs of the first cycle.
        cycle_mult: each cycle is this many times longer than the one before.
        warmup: fraction of the first cycle at `lr_max * warmup_rate`, while the cosine goes on underneath; at
            least one update of the cycle is left out of it.
        warmup_rate: rate of the warm-up, as a fraction of `lr_max`.
        floor: lowest rate as a fraction of `lr_max`.
        floor_lr: lowest rate; the higher of the two floors counts, never above `lr_max`.

    Raises:
        ConfigError: a value is out of range, or the epochs are more than a million.
    """
    check_number("cycles", cycles, "[1, 1000000]", whole=True)
    check_number("cycle_len", cycle_len, "[1, 1000000]", whole=True)
    check_number("cycle_mult", cycle_mult, "[1, 1000000]", whole=True)
    check_number("warmup", warmup, "[0, 1)")
    check_number("warmup_rate", warmup_rate, "[0, 1]")
    lowest = _floor(floor, floor_lr)
    lengths = _cycle_epochs(cycles, cycle_len, cycle_mult)
    tiles = _tile(lengths, steps_per_epoch)
    starts = [cycle.first for cycle in tiles]
    first_length = tiles[0].last + 1
    warm = min(math.ceil(round(warmup * first_length, 6)), first_length - 1)

    def rate(step: int, lr_max: float, history: Sequence[float]) -> float:
        if step < warm:
            return lr_max * warmup_rate
        cycle = tiles[bisect_right(starts, step) - 1]
        return _cosine((step - cycle.first) / (cycle.last - cycle.first + 1), lr_max, lowest(lr_max))

    return Schedule(sum(lengths), tiles[-1].last + 1, tiles, rate)


@register("schedule")
def cosine(
    steps_per_epoch: int,
    *,
    epochs: int,
    floor: float = 0.0,
    floor_lr: float = 0.0,
    per: Literal["step", "epoch"] = "step",
) -> Schedule:
    """Return one cosine descent, per update or per epoch (`per: epoch` with floors 0.1 and 5e-5 is B-09).

    Args:
        steps_per_epoch: updates per epoch.
        epochs: how many epochs.
        floor: lowest rate as a fraction of `lr_max`.
        floor_lr: lowest rate; the higher of the two floors counts, never above `lr_max`.
        per: whether the rate changes at every update or stands for an epoch.

    Raises:
        ConfigError: a value is out of range.
    """
    lowest = _floor(floor, floor_lr)
    if per not in ("step", "epoch"):
        raise ConfigError(f"per is '{per}'", "'step' or 'epoch'", "correct `per:` in the YAML")

    def rate(step: int, lr_max: float, history: Sequence[float]) -> float:
        part = step / (epochs * steps_per_epoch) if per == "step" else (step // steps_per_epoch) / epochs
        return _cosine(part, lr_max, lowest(lr_max))

    return _one_cycle(epochs, steps_per_epoch, rate)


@register("schedule")
def constant(steps_per_epoch: int, *, epochs: int) -> Schedule:
    """Return a schedule that keeps the highest rate.

    Args:
        steps_per_epoch: updates per epoch.
        epochs: how many epochs.

    Raises:
        ConfigError: a value is out of range.
    """
    return _one_cycle(epochs, steps_per_epoch, lambda step, lr_max, history: lr_max)


@register("schedule")
def one_cycle(
    steps_per_epoch: int,
    *,
    epochs: int,
    div: float = 10,
    pct: float = 10,
    momenta: tuple[float, float] | None = None,
) -> Schedule:
    """Return fast.ai's 1cycle, `use_clr_beta` (Smith 2018; F-17): straight up, straight down, then a tail.

    Args:
        steps_per_epoch: updates per epoch.
        epochs: how many epochs.
        div: the rate begins at `lr_max / div`.
        pct: percent of the updates in the tail, which falls from `lr_max / div` to a hundredth of it.
        momenta: high and low momentum; it falls while the rate rises. Without it the optimiser's stays.

    Raises:
        ConfigError: a value is out of range.
    """
    check_number("div", div, "[1, inf)")
    check_number("pct", pct, "[0, 100)")
    total = _steps(epochs, steps_per_epoch)
    half = max(1, int(total * (1 - pct / 100) / 2))

    def height(step: int) -> float:
        return max(0.0, 1 - abs(step - half) / half)

    def rate(step: int, lr_max: float, history: Sequence[float]) -> float:
        if step > 2 * half:
            return lr_max / div * (1 - 0.99 * (step - 2 * half) / (total - 2 * half))
        return _between(lr_max / div, lr_max, height(step))

    return _one_cycle(epochs, steps_per_epoch, rate, _momentum(momenta, height))


@register("schedule")
def triangular(
    steps_per_epoch: int,
    *,
    epochs: int,
    div: float = 4,
    cut_div: float = 8,
    momenta: tuple[float, float] | None = None,
) -> Schedule:
    """Return fast.ai's slanted triangle, `use_clr` (Howard & Ruder 2018, equation 3; F-17).

    Args:
        steps_per_epoch: updates per epoch.
        epochs: how many epochs.
        div: the rate begins and ends at `lr_max / div`.
        cut_div: it rises during one part in `cut_div` of the updates and falls in the rest.
        momenta: high and low momentum; it falls while the rate rises. Without it the optimiser's stays.

    Raises:
        ConfigError: a value is out of range.
    """
    check_number("div", div, "[1, inf)")
    check_number("cut_div", cut_div, "[1, inf)")
    total = _steps(epochs, steps_per_epoch)
    cut = max(1, int(total // cut_div))

    def height(step: int) -> float:
        return 1 - (step - cut) / (total - cut) if step > cut else step / cut

    def rate(step: int, lr_max: float, history: Sequence[float]) -> float:
        return _between(lr_max / div, lr_max, height(step))

    return _one_cycle(epochs, steps_per_epoch, rate, _momentum(momenta, height))


@register("schedule", adaptive=True)
def plateau(
    steps_per_epoch: int,
    *,
    epochs: int,
    factor: float = 0.3,
    patience: int = 3,
    threshold: float = 1e-3,
    min_lr: float = 1e-6,
) -> Schedule:
    """Return a schedule that lowers the rate when the score stops rising (S-06).

    It is torch's ReduceLROnPlateau (`mode="max"`, `threshold_mode="abs"`) as a function of the scores: replaying
    a run gives the same rates.

    Args:
        steps_per_epoch: updates per epoch.
        epochs: how many epochs at most.
        factor: what the rate is multiplied by.
        patience: epochs without a better score that are let pass; the next one lowers the rate.
        threshold: how much better counts as better, in the units of the score.
        min_lr: lowest rate.

    Raises:
        ConfigError: a value is out of range.
    """
    check_number("factor", factor, "(0, 1)")
    check_number("patience", patience, "[0, 1000000]", whole=True)
    check_number("threshold", threshold, "[0, inf)")
    check_number("min_lr", min_lr, "[0, inf)")

    def rate(step: int, lr_max: float, history: Sequence[float]) -> float:
        lr, best, bad = lr_max, -math.inf, 0
        for score in history[: step // steps_per_epoch]:
            if score > best + threshold:
                best, bad = score, 0
            else:
                bad += 1
            if bad > patience:
                lr, bad = _lowered(lr, factor, min_lr), 0
        return lr

    return _one_cycle(epochs, steps_per_epoch, rate)


def _lowered(lr: float, factor: float, min_lr: float) -> float:
    lower = max(lr * factor, min_lr)
    return lower if lr - lower > 1e-8 else lr  # torch's eps


def _cosine(part: float, lr_max: float, lr_min: float) -> float:
    return lr_min + (lr_max - lr_min) / 2 * (1 + math.cos(math.pi * part))


def _between(low: float, high: float, height: float) -> float:
    return low + (high - low) * height


def _floor(floor: float, floor_lr: float) -> Callable[[float], float]:
    check_number("floor", floor, "[0, 1]")
    check_number("floor_lr", floor_lr, "[0, inf)")
    return lambda lr_max: min(lr_max, max(floor * lr_max, floor_lr))


def _momentum(momenta: tuple[float, float] | None, height: Callable[[int], float]) -> Momentum:
    if momenta is None:
        return keep_momentum
    if not isinstance(momenta, Sequence) or isinstance(momenta, str) or len(momenta) != 2:
        raise ConfigError(f"momenta is '{momenta}'", "two numbers, high and low", "write `momenta: [0.95, 0.85]`")
    for value in momenta:
        check_number("momenta", value, "[0, 1)")
    high, low = momenta
    return lambda step: _between(high, low, height(step))


def _cycle_epochs(cycles: int, cycle_len: int, cycle_mult: int) -> list[int]:
    lengths: list[int] = []
    length, total = cycle_len, 0
    while len(lengths) < cycles and total <= MAX_EPOCHS:
        lengths.append(length)
        total += length
        length *= cycle_mult
    if total > MAX_EPOCHS:
        raise ConfigError(
            f"cycles '{cycles}' of cycle_len '{cycle_len}' and cycle_mult '{cycle_mult}' never end",
            f"at most {MAX_EPOCHS:,} epochs together",
            "lower `cycles:`, `cycle_len:` or `cycle_mult:` in the YAML",
        )
    return lengths


def _tile(epochs: Sequence[int], steps_per_epoch: int) -> tuple[Cycle, ...]:
    check_number("steps_per_epoch", steps_per_epoch, "[1, inf)", whole=True)
    ends = list(accumulate(count * steps_per_epoch for count in epochs))
    return tuple(Cycle(index, first, end - 1) for index, (first, end) in enumerate(zip([0, *ends], ends, strict=False)))


def _steps(epochs: int, steps_per_epoch: int) -> int:
    check_number("epochs", epochs, "[1, 1000000]", whole=True)
    check_number("steps_per_epoch", steps_per_epoch, "[1, inf)", whole=True)
    return epochs * steps_per_epoch


def _one_cycle(epochs: int, steps_per_epoch: int, rate: Rate, momentum: Momentum = keep_momentum) -> Schedule:
    steps = _steps(epochs, steps_per_epoch)
    return Schedule(epochs, steps, _tile([epochs], steps_per_epoch), rate, momentum)
