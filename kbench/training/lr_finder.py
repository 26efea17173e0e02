"""The learning-rate range test: the loop's own updates on a copy of the model (F-14; Smith 2015, arXiv 1506.01186).

The rate rises from step to step, the loss is smoothed, and the test ends when it diverges. Afterwards the
model, its optimiser and the random state are as before, bit for bit: the copy is what learned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from kbench.data.dataset import Draw
from kbench.models.groups import Layers, layer_groups
from kbench.models.memory import in_parts
from kbench.training.loop import Feed, logits_in, train_epoch
from kbench.training.lr_curve import LRCurve, Smoother, ramp, should_stop, track_best
from kbench.training.recipe import RangeTest
from kbench.training.schedules import Cycle, Schedule, keep_momentum
from kbench.training.update import Learner, Rules

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
        for made in train_epoch(
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
            rates.append(schedule.rate(made.step, 1.0, ()))  # of the last layer group, even if it is frozen
            losses.append(float(made.loss.mean()))
            if valid is not None:
                judged.append(_judged(learned, next(valid), rules))
            smoothed = smoother.add((judged or losses)[-1])
            tell(made.step + 1, steps)
            if not math.isfinite(smoothed) or (rise.stop and should_stop(smoothed, best, made.step)):
                break
            best = track_best(smoothed, best, made.step)
    return LRCurve(tuple(rates), tuple(losses), tuple(judged))


@torch.no_grad()
def _judged(model: nn.Module, pair: tuple[torch.Tensor, torch.Tensor], rules: Rules) -> float:
    """Return the mean loss of one batch that is not learned from."""
    images, target = pair
    model.eval()  # the next update sets training mode again
    logits = in_parts(partial(logits_in, model, rules.device, rules.precision), [images])
    return float(rules.loss(logits.float(), target).mean())


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Restore torch's random states, CPU and CUDA, after the block."""
    cpu = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
