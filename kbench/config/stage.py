"""One stage of training: its settings, and what they say against one another.

A setting is one field here and the line of `kbench/training/` that uses it, which reads it off `plan.stage`; mark it
`LATER`, so that runs trained before it was there keep their hash. What a setting cannot stand beside, or has no effect
with, is said here too, by the key it has in the YAML; what stages say against each other is in `rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from kbench.config.section import (
    LATER,
    Component,
    Decay,
    Finite,
    Kind,
    Positive,
    Rate,
    Section,
    Size,
    Surroundings,
    hold,
)
from kbench.errors import Problem

LOSS = "loss"  # what `monitor:` may say instead of a metric


class RangeTest(Section):
    """The learning-rate range test of a stage with `lr: find`."""

    steps: int = Field(100, ge=16, description="updates; fewer where the loss diverges before")
    start: Rate = Field(1e-5, description="first rate of the last layer group")
    end: Rate = Field(10.0, description="last rate")
    linear: bool = Field(False, description="raise the rate by equal steps instead of equal factors")
    valid: bool = Field(False, description="judge a batch of held-out rows after each update; its loss is what counts")
    stop: bool = Field(True, description="end the test where the loss diverges")
    divide: Annotated[Finite, LATER] = Field(
        10.0, ge=1, description="the rate is this many times below that of the lowest smoothed loss"
    )


class AxisDropout(Section):
    """Dates or files of training images that are left out, as they may be missing in what is predicted."""

    axis: Literal["date", "file"] = Field("date", description="what is left out at once")
    p: float = Field(0.5, ge=0, le=1, description="probability that an image is changed")
    each: float = Field(0.3, ge=0, lt=1, description="probability that each is left out then; one stays at least")


class Average(Section):
    """The mean of weights a stage with `keep: [average]` leaves, batch norm refitted to it."""

    of: Literal["epochs", "cycles"] = Field("cycles", description="at whose ends weights are taken")
    start: int = Field(1, ge=1, description="the first epoch or cycle that counts, from 1")


class Stage(Section):
    """One stage of training. What a stage leaves out is taken from `train:`."""

    schedule: Annotated[Component, Kind("schedule")] = Field(
        Component(name="sgdr"), description="how the rate changes; `kbench list schedule`"
    )
    lr: Rate | Annotated[list[Decay], Field(min_length=1)] | Literal["find"] = Field(
        "find", description="highest rate of the head, one per layer group, or found by a range test"
    )
    range_test: RangeTest = Field(RangeTest(), description="how `lr: find` looks for the rate")
    lr_from_fold: int | None = Field(None, ge=0, description="with `lr: find`: take the rate this fold found")
    lr_from_stage: str | None = Field(None, description="with `lr: find`: take the rate this earlier stage found")
    lr_decay: Finite = Field(1.0, ge=1, description="each earlier layer group learns this many times slower")
    weight_decay: Decay | Annotated[list[Decay], Field(min_length=1)] = Field(
        0.0, description="for all layer groups, or one per group"
    )
    normalise_decay: bool = Field(False, description="divide the weight decay by the root of the cycle's updates")
    optimizer: Annotated[Component, Kind("optimizer")] = Field(
        Component(name="adamw"), description="see `kbench list optimizer`"
    )
    groups: Literal["all", "head"] | Annotated[list[int], Field(min_length=1)] = Field(
        "all", description="layer groups that train; the others are frozen"
    )
    precompute: bool = Field(
        False, description="run the frozen body once over all rows and train the head on what it said"
    )
    draws: int = Field(1, ge=1, description="augmented draws of each image that `precompute` runs the body over")
    size: Size | None = Field(None, description="image size of this stage; `input.size` by default")
    batch_size: int = Field(64, ge=1, description="images per batch")
    accumulate: int = Field(1, ge=1, description="batches per update")
    clip: Positive | None = Field(None, description="largest gradient norm")
    batch_norm: Annotated[Literal["local", "sync"], LATER] = Field(
        "local", description="with `--devices`: batch norm measures a device's part of a batch, or all of it (sync)"
    )
    loss: Annotated[Component | None, Kind("loss")] = Field(
        None, description="by default the task's: cross_entropy, bce or mse"
    )
    augment: Annotated[Component, Kind("augmentation")] = Field(
        Component(name="none"), description="see `kbench list augmentation`"
    )
    axis_dropout: Annotated[AxisDropout | None, LATER] = Field(
        None, description="leave out whole dates or files of training images; with `input: {missing: mask}`"
    )
    crop: Annotated[Component, Kind("crop")] = Field(
        Component(name="random"), description="which window of a training image; `kbench list crop`"
    )
    mix: Annotated[Component | None, Kind("mix")] = Field(None, description="mixup or cutmix of a batch")
    sampler: Annotated[Component, Kind("sampler")] = Field(
        Component(name="shuffle"), description="which rows an epoch visits; `kbench list sampler`"
    )
    step: Annotated[Component, Kind("step")] = Field(
        Component(name="supervised"), description="what one update computes; `kbench list step`"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="what the hardware can, or this one")
    channels_last: Literal["auto"] | bool = Field("auto", description="memory format of the images")
    checkpoint_blocks: Annotated[bool, LATER] = Field(
        False, description="compute the body's blocks again in the backward pass: less memory, a third more time"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a moving average of the weights, which is kept")
    early_stop: int | None = Field(None, ge=1, description="epochs without a better score before the stage stops")
    min_delta: Finite = Field(0.0, ge=0, description="how much better counts as better")
    monitor: str | None = Field(None, description="what `best` means: `loss` or a metric; the competition's by default")
    keep: list[Literal["cycles", "best", "last", "average"]] = Field(
        default_factory=list, description="which states become ensemble members"
    )
    average: Average = Field(Average(), description="what `keep: [average]` is the mean of")
    subset: Literal["fold", "full"] = Field("fold", description="rows that train: the fold's, or all of them")
    start: str = Field("previous", description="`previous` stage, `fresh`, or a stage's name")

    @field_validator("monitor")
    @classmethod
    def _known(cls, monitor: str | None, info: ValidationInfo) -> str | None:
        """Ask the registry for a metric that is not the competition's own, which has parameters of its own."""
        if monitor not in (None, LOSS) and isinstance(info.context, Surroundings) and monitor != info.context.metric:
            hold("metric", str(monitor), {}, info, where="monitor")
        return monitor


_AS_JUDGED = ("centre", "squash")  # crops that show the same part of an image every time


def contradictions(stage: Stage) -> Iterator[Problem]:
    """Yield what the settings of a stage say against one another, at their keys."""
    yield from _beside_activations(stage)
    if stage.lr_from_stage is not None and stage.lr != "find":
        yield Problem("lr_from_stage", "stands beside a rate of its own", "write `lr: find`")
    if stage.range_test.end <= stage.range_test.start:
        yield Problem("range_test.end", "is not above `start`", "write start: 1e-5, end: 10")


def _beside_activations(stage: Stage) -> Iterator[Problem]:
    """Yield what cannot be together with activations that are computed once."""
    if not stage.precompute:
        return
    why = "with `precompute: true` an image is seen once, as it is judged"
    if stage.groups != "head":
        yield Problem("groups", "is not `head`, and only a frozen body can be precomputed",
                      "write `groups: head`, or `precompute: false` where the body learns")  # fmt: skip
    if stage.augment.name != "none" and stage.draws == 1:
        yield Problem("augment", f"'{stage.augment.name}' would have no effect: {why}",
                      "write `draws: 8` beside it for 8 augmented draws of each image, or `augment: none`")  # fmt: skip
    if stage.axis_dropout is not None:
        yield Problem("axis_dropout", f"would have no effect: {why}", "remove it")
    if stage.mix is not None:
        yield Problem("mix", f"'{stage.mix.name}' mixes images, and {why}", "write `mix: null`")
    if stage.step.name != "supervised":
        yield Problem("step", f"'{stage.step.name}' is given images, and {why}", "write `step: supervised`")


def without_effect(stage: Stage) -> Iterator[Problem]:
    """Yield the settings a stage does not use, at their keys."""
    if stage.precompute and stage.draws == 1 and stage.crop.name not in _AS_JUDGED:
        what = (
            f"'{stage.crop.name}' would have no effect: with `precompute: true` an image is seen once, as it is judged"
        )
        yield Problem("crop", what, "remove it, or write `crop: centre`")
    if stage.checkpoint_blocks and stage.groups == "head":
        yield Problem("checkpoint_blocks", "would have no effect: no gradient goes through a frozen body", "remove it")
    if stage.draws > 1 and not stage.precompute:
        yield Problem("draws", "would have no effect without `precompute: true`",
                      "remove it: images are drawn anew every epoch")  # fmt: skip
    if stage.draws > 1 and stage.augment.name == "none" and stage.crop.name in _AS_JUDGED:
        yield Problem("draws", "would all be the same: nothing is augmented", "write `augment: side_on`, or remove it")
    if isinstance(stage.lr, list) and stage.lr_decay != 1:
        yield Problem("lr_decay", "would have no effect beside an `lr` for each layer group", "remove one of the two")
    if stage.lr != "find" and stage.lr_from_fold is not None:
        yield Problem("lr_from_fold", "stands beside a rate of its own", "write `lr: find`, or `lr_from_fold: null`")
    if "average" not in stage.keep and stage.average != Average():
        yield Problem("average", "would have no effect: the mean of weights is not kept", "write `keep: [average]`")
    if stage.subset == "full":
        why = "with `subset: full` there are no rows to judge it by"
        if stage.early_stop is not None:
            yield Problem("early_stop", f"would have no effect: {why}", "remove it")
        if stage.schedule.name == "plateau":
            yield Problem("schedule", f"'plateau' would never lower the rate: {why}", "write another schedule")
        if stage.range_test.valid:
            yield Problem("range_test.valid", f"would judge rows it trains on: {why}", "remove it")


def switched(merged: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage without the `precompute` of `train:` where it cannot be (F-22).

    A stage that trains more than the head, or mixes or (without `draws`) augments by its own words, switches it off.

    Args:
        merged: the stage as a mapping, with what it takes from `train:`.
        own: what the YAML says of the stage itself.
    """
    if merged.get("precompute") is not True or "precompute" in own:
        return dict(merged)
    once = ("augment", "mix") if merged.get("draws", 1) == 1 else ("mix",)
    changes_images = any(own.get(key) not in (None, "none", {"name": "none"}) for key in once)
    return {**merged, "precompute": False} if merged.get("groups") != "head" or changes_images else dict(merged)
