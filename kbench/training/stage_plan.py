"""A recipe: the stages of training as built parts, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from kbench.data.dataset import Show
from kbench.data.images.crops import Crop, Size
from kbench.metrics.metric import Metric
from kbench.training.loop import Mix
from kbench.training.losses.per_target import Loss
from kbench.training.schedules import Schedule
from kbench.training.update import Step


@dataclass(frozen=True)
class RangeTest:
    """The learning-rate range test (F-14).

    Attributes:
        steps: updates, fewer where the loss diverges before.
        start: first rate of the last layer group.
        end: last rate.
        linear: raise it by equal steps instead of equal factors.
        valid: judge a batch of the rows held out after each update; its loss is what counts.
        stop: end where the loss diverges; one that is not finite ends the test anyway.
    """

    steps: int = 100
    start: float = 1e-5
    end: float = 10.0
    linear: bool = False
    valid: bool = False
    stop: bool = True


@dataclass(frozen=True)
class StagePlan:
    """One stage; the fields are those of `stages:` in the YAML, names turned into parts.

    Attributes:
        name: the stage's name.
        index: its place in the recipe.
        schedule: steps per epoch -> schedule.
        lr: highest rate of the last layer group, one per group, or `find`.
        lr_decay: each earlier group learns this many times slower.
        range_test: how a rate is found.
        lr_from_fold: take the rate this fold found, or None.
        normalise_decay: divide the weight decay by the root of the cycle's updates (F-21).
        average_of: ends of `epochs` or `cycles` whose mean of weights `keep: average` is.
        average_from: the first of them that counts, from 1.
        lr_from_stage: take the rate this earlier stage found, or None.
        weight_decay: one, or one per group.
        optimizer: (layers, rates, decays) -> optimiser.
        groups: which layer groups train.
        show: size, crop and augmentation of training images.
        valid_show: how images are shown when judged.
        batch_size: images per batch.
        accumulate: batches per update.
        clip: largest gradient norm.
        loss: (training counts per target, rows) -> loss.
        mix: mixup or cutmix.
        sampler: (targets, rows) -> order of an epoch.
        step: what one update computes.
        precision: setting; resolved by the hardware.
        channels_last: memory format, or `auto`.
        ema: decay of the moving average.
        early_stop: epochs without a better score before the stage stops.
        min_delta: how much better counts as better.
        monitor: metric that judges an epoch, or None for the loss.
        keep: which states become ensemble members.
        subset: rows that train.
        start: where the weights come from.
        adaptive: whether the schedule follows the scores.
        stop_after: epochs after which the stage ends, found on the folds (`--full`).
        rates: factor of the rate in each epoch, found on the folds (`--full` with plateau).
        precompute: train the head on what the frozen body said once (F-22).
        draws: augmented draws of each image it said it about; 1: each as it is judged.
        shown_how: JSON-like description of crop and augmentation.
        whole_step: the step looks at the whole model, also where the head alone trains.
    """

    name: str
    index: int
    schedule: Callable[[int], Schedule]
    lr: float | Sequence[float] | Literal["find"]
    lr_decay: float
    range_test: RangeTest
    lr_from_fold: int | None
    weight_decay: float | Sequence[float]
    optimizer: Callable[..., torch.optim.Optimizer]
    groups: Literal["all", "head"] | Sequence[int]
    show: Show
    valid_show: Show
    batch_size: int
    accumulate: int
    clip: float | None
    loss: Callable[[np.ndarray | None, int], Loss]
    mix: Mix | None
    sampler: Callable[[np.ndarray | None, int], Callable[[np.random.Generator], np.ndarray]]
    step: Step
    precision: str
    channels_last: bool | Literal["auto"]
    ema: float | None
    early_stop: int | None
    min_delta: float
    monitor: Metric | None
    keep: frozenset[str]
    subset: Literal["fold", "full"]
    start: str
    adaptive: bool
    stop_after: int | None = None
    rates: tuple[float, ...] | None = None
    precompute: bool = False
    draws: int = 1
    shown_how: Any = None
    whole_step: bool = False
    lr_from_stage: str | None = None
    normalise_decay: bool = False
    average_of: Literal["epochs", "cycles"] = "cycles"
    average_from: int = 1

    @property
    def size(self) -> Size:
        """Height and width of the images."""
        return self.show.size

    def schedule_of(self, per_epoch: int) -> Schedule:
        """Return the schedule of a stage with so many updates per epoch.

        Rates that the folds found by their scores are played back: all rows have no score to find them by.
        """
        schedule, factors = self.schedule(per_epoch), self.rates
        if factors is None:
            return schedule
        return replace(
            schedule, rate=lambda step, lr_max, history: lr_max * factors[min(step // per_epoch, len(factors) - 1)]
        )


def for_full(stage: StagePlan, found: dict[str, Any]) -> StagePlan:
    """Return a stage that trains on all rows with what the folds found, and selects on nothing.

    Args:
        stage: the fold's stage.
        found: `lr`, and `epochs` and `rates` where the folds stopped early or lowered the rate themselves.
    """
    return replace(
        stage,
        lr=found["lr"],
        lr_from_fold=None,
        early_stop=None,
        keep=kept_without_scores(stage.keep),
        subset="full",
        stop_after=found.get("epochs"),
        rates=None if found.get("rates") is None else tuple(found["rates"]),
    )


def kept_without_scores(keep: frozenset[str]) -> frozenset[str]:
    """Return what a stage keeps that has no rows to be judged on: its end in place of its best epoch."""
    return frozenset("last" if name == "best" else name for name in keep)


def with_limit(stages: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """Return the stages for a smoke run: one epoch each, and every stage keeps its end."""
    return tuple(
        replace(stage, stop_after=1, keep=frozenset({"last"}), early_stop=None, subset=stage.subset) for stage in stages
    )


def crop_for_validation(name: str, train: Crop, *, centre: Crop, squash: Crop) -> Crop:
    """Return how images are shown when judged, so that things are as large there as in training (F-08).

    As fast.ai does: the centre of a covered image, where training shows windows of it; the whole image, where training
    shows it whole; what a crop says itself otherwise.

    Args:
        name: `input.crop` of the YAML; `squash` always shows the whole image.
        train: how training images are shown.
        centre: the crop `centre`.
        squash: the crop `squash`.
    """
    if name == "squash" or train.resize == "exact" or train.judged == "whole":
        return squash
    return train.judged if isinstance(train.judged, Crop) else centre
