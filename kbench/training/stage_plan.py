"""A recipe: the stages of training as built parts, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kbench import registry
from kbench.config.stage import Stage
from kbench.data.dataset import Show
from kbench.data.images.crops import Crop, Size
from kbench.metrics.metric import Metric
from kbench.training.loop import Mix
from kbench.training.losses.per_target import Loss
from kbench.training.schedules import Schedule
from kbench.training.update import Step


@dataclass(frozen=True)
class StagePlan:
    """One stage: its settings as the YAML has them, and what is built or found for it.

    Attributes:
        name: the stage's name.
        index: its place in the recipe.
        stage: its settings; a setting is read here, by its name in the YAML, and stands nowhere else.
        schedule: steps per epoch -> schedule.
        optimizer: (layers, rates, decays) -> optimiser.
        show: size, crop and augmentation of training images.
        valid_show: how images are shown when judged.
        loss: (training counts per target, rows, units of targets learned standardised or None) -> loss.
        mix: mixup or cutmix.
        sampler: (targets, rows) -> order of an epoch.
        step: what one update computes.
        monitor: metric that judges an epoch, or None for the loss.
        positive: class numbers of which the share of patches that show them is logged.
        stop_after: epochs after which the stage ends, found on the folds (`--full`).
        rates: factor of the rate in each epoch, found on the folds (`--full` with plateau).
    """

    name: str
    index: int
    stage: Stage
    schedule: Callable[[int], Schedule]
    optimizer: Callable[..., torch.optim.Optimizer]
    show: Show
    valid_show: Show
    loss: Callable[..., Loss]
    mix: Mix | None
    sampler: Callable[[np.ndarray | None, int], Callable[[np.random.Generator], np.ndarray]]
    step: Step
    monitor: Metric | None
    positive: tuple[int, ...] = ()
    stop_after: int | None = None
    rates: tuple[float, ...] | None = None

    @property
    def size(self) -> Size:
        """Height and width of the images."""
        return self.show.size

    @property
    def keep(self) -> frozenset[str]:
        """Which states become ensemble members; without rows to judge it by, the end in place of the best epoch."""
        keep: frozenset[str] = frozenset(self.stage.keep)
        return frozenset("last" if name == "best" else name for name in keep) if self.stage.subset == "full" else keep

    @property
    def adaptive(self) -> bool:
        """Whether the schedule follows the scores."""
        return bool(registry.get("schedule", self.stage.schedule.name).meta.get("adaptive"))

    def with_settings(self, **settings: Any) -> StagePlan:
        """Return the same stage with other settings; what is built stays."""
        return replace(self, stage=self.stage.model_copy(update=settings))

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


def for_full(plan: StagePlan, plan_of_folds: dict[str, Any]) -> StagePlan:
    """Return a stage that trains on all rows with what the folds found, and selects on nothing.

    Args:
        plan: the fold's stage.
        plan_of_folds: `lr`, and `epochs` and `rates` where the folds stopped early or lowered the rate themselves.
    """
    rates = plan_of_folds.get("rates")
    return replace(
        plan.with_settings(lr=plan_of_folds["lr"], lr_from_fold=None, early_stop=None, subset="full"),
        stop_after=plan_of_folds.get("epochs"), rates=None if rates is None else tuple(rates),
    )  # fmt: skip


def with_limit(plans: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """Return the stages for a smoke run: one epoch each, and every stage keeps its end."""
    return tuple(replace(plan.with_settings(keep=["last"], early_stop=None), stop_after=1) for plan in plans)


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
