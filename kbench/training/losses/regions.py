"""Losses of the overlap of regions: Jaccard, Dice, Tversky, Lovasz.

They compare the pixels of a class in all images of a batch at once, or, with `per_image`, image by image. Ignored
pixels (index -100, NaN) take no part. Targets are those of `cross_entropy` or, where outputs are judged one by one, of
`bce`; which, the task and the number of outputs say (`multi_label` overrules them).

A batch's value is no sum over pixels, so that accumulated batches do not equal the large batch: their values are
averaged, weighted by images. With `per_image` they do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kbench.errors import check_number
from kbench.registry import register
from kbench.training.losses.per_target import (
    ClassWeights,
    Loss,
    LossSum,
    class_weights_of,
    each_alone,
    ignored,
    per_tag,
    weights_on_device,
)

_EXACT = 2**24  # up to here float32 counts pixels without an error
Classes = Literal["all", "present"]


class _Regions(NamedTuple):
    """What a loss compares, flat: one row per image, or one for the whole batch.

    Attributes:
        score: float32 [R, K, P], probabilities or logits.
        truth: float32 [R, K, P] in 0..1, 0 where not valid.
        valid: bool [R, K, P].
        images: float32 [R], images with valid pixels.
    """

    score: Tensor
    truth: Tensor
    valid: Tensor
    images: Tensor


@register("loss")
def jaccard(
    *,
    log: bool = True,
    smooth: float = 1e-15,
    classes: Classes = "all",
    class_weights: ClassWeights = None,
    per_image: bool = False,
    multi_label: bool | None = None,
    ignore_index: int = -100,
    _counts: np.ndarray | None = None,
    _rows: int | None = None,
    _task: str | None = None,
) -> Loss:
    """Return the soft Jaccard loss, the mean over classes of `-log((I + e) / (U - I + e))` (S-05).

    I is the sum of p * t, U that of p plus that of t. Signate's "bce" with Jaccard weight w is
    `{name: sum, parts: [{name: cross_entropy, weight: 1-w}, {name: jaccard, weight: w}]}`.

    Args:
        log: minus the logarithm of the overlap; false is 1 minus the overlap.
        smooth: the e of the formula.
        classes: `present` leaves out classes without a pixel in the truth.
        class_weights: weight per class, or `balanced`.
        per_image: the mean over images instead of one region per batch.
        multi_label: sigmoid per class instead of softmax over the classes; by default what the task says.
        ignore_index: class index that is not counted.

    Raises:
        ConfigError: a value is out of range, or `balanced` without known counts.
    """
    value = _overlap(false_positive=1, false_negative=1, smooth=smooth, log=log)
    return _region_loss(
        value, classes, class_weights, per_image=per_image, multi_label=multi_label, ignore_index=ignore_index,
        known=(_counts, _rows), task=_task,
    )  # fmt: skip


@register("loss")
def dice(
    *,
    log: bool = False,
    smooth: float = 1e-7,
    classes: Classes = "present",
    class_weights: ClassWeights = None,
    per_image: bool = False,
    multi_label: bool | None = None,
    ignore_index: int = -100,
    _counts: np.ndarray | None = None,
    _rows: int | None = None,
    _task: str | None = None,
) -> Loss:
    """Return the soft Dice loss, the mean over classes of 1 - 2I / (sum of p + sum of t).

    Args:
        log: minus the logarithm of the overlap.
        smooth: added to I and to half the sum below.
        classes: `all` counts classes without a pixel in the truth too: their loss is near 1.
        class_weights: weight per class, or `balanced`.
        per_image: the mean over images instead of one region per batch.
        multi_label: sigmoid per class instead of softmax over the classes; by default what the task says.
        ignore_index: class index that is not counted.

    Raises:
        ConfigError: a value is out of range, or `balanced` without known counts.
    """
    value = _overlap(false_positive=0.5, false_negative=0.5, smooth=smooth, log=log)
    return _region_loss(
        value, classes, class_weights, per_image=per_image, multi_label=multi_label, ignore_index=ignore_index,
        known=(_counts, _rows), task=_task,
    )  # fmt: skip


@register("loss")
def tversky(
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 1e-7,
    classes: Classes = "present",
    class_weights: ClassWeights = None,
    per_image: bool = False,
    multi_label: bool | None = None,
    ignore_index: int = -100,
    _counts: np.ndarray | None = None,
    _rows: int | None = None,
    _task: str | None = None,
) -> Loss:
    """Return the Tversky loss, the mean over classes of (1 - I / (I + alpha FP + beta FN))^gamma.

    With alpha and beta 0.5 it is `dice`, with 1 the plain `jaccard` (Salehi et al. 2017; gamma: Abraham and Khan 2018).

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives.
        gamma: below 1 turns towards well overlapping classes, above 1 towards badly overlapping ones.
        smooth: added above and below.
        classes: `all` counts classes without a pixel in the truth too.
        class_weights: weight per class, or `balanced`.
        per_image: the mean over images instead of one region per batch.
        multi_label: sigmoid per class instead of softmax over the classes; by default what the task says.
        ignore_index: class index that is not counted.

    Raises:
        ConfigError: a value is out of range, or `balanced` without known counts.
    """
    check_number("alpha", alpha, "[0, inf)")
    check_number("beta", beta, "[0, inf)")
    check_number("gamma", gamma, "(0, inf)")
    plain = _overlap(false_positive=alpha, false_negative=beta, smooth=smooth, log=False)

    def value(regions: _Regions) -> Tensor:
        return plain(regions).clamp_min(1e-12) ** gamma  # a power below 1 has no gradient at 0

    return _region_loss(
        plain if gamma == 1 else value, classes, class_weights, per_image=per_image, multi_label=multi_label,
        ignore_index=ignore_index, known=(_counts, _rows), task=_task,
    )  # fmt: skip


@register("loss")
def lovasz(
    *,
    hinge: bool = True,
    classes: Classes | None = None,
    class_weights: ClassWeights = None,
    per_image: bool = False,
    multi_label: bool | None = None,
    ignore_index: int = -100,
    _counts: np.ndarray | None = None,
    _rows: int | None = None,
    _task: str | None = None,
) -> Loss:
    """Return the Lovasz loss, the convex extension of 1 - IoU (Berman et al. 2018).

    Lovasz-softmax over the classes, or, where outputs are judged one by one, the Lovasz hinge of each. Targets are 0
    or 1.

    Args:
        hinge: of outputs judged one by one; false compares their sigmoids, as softmax probabilities are.
        classes: by default `present` for softmax and `all` otherwise, as in the paper.
        class_weights: weight per class, or `balanced`.
        per_image: the mean over images instead of one region per batch.
        multi_label: sigmoid per class instead of softmax over the classes; by default what the task says.
        ignore_index: class index that is not counted.

    Raises:
        ConfigError: `balanced` without known counts.
    """
    build = partial(
        _region_loss, class_weights=class_weights, per_image=per_image, ignore_index=ignore_index,
        known=(_counts, _rows), task=_task,
    )  # fmt: skip
    softmax = build(_lovasz, classes or "present", multi_label=False)
    value = partial(_lovasz, hinge=True) if hinge else _lovasz
    alone = build(value, classes or "all", multi_label=True, raw=hinge)

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        return (alone if each_alone(multi_label, _task, logits.shape[1]) else softmax)(logits, target)

    return loss


def _region_loss(
    value: Callable[[_Regions], Tensor],
    classes: Classes,
    class_weights: ClassWeights,
    *,
    per_image: bool,
    multi_label: bool | None,
    ignore_index: int,
    known: tuple[np.ndarray | None, int | None],
    task: str | None,
    raw: bool = False,
) -> Loss:
    """Return a loss from a value [R, K] of regions.

    Args:
        value: what a row's regions of each class cost.
        classes: which count.
        class_weights: their weights.
        per_image: one row per image.
        multi_label: what the YAML says.
        ignore_index: class index that is not counted.
        known: training pixels per class, and in all.
        task: of the competition.
        raw: compare logits instead of probabilities.
    """
    check_number("ignore_index", ignore_index, "(-inf, inf)", whole=True)
    weights_on = weights_on_device("class_weights", class_weights_of(class_weights, *known))

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        alone = each_alone(multi_label, task, logits.shape[1])
        regions = _regions(logits, target, alone=alone, raw=raw, per_image=per_image, ignore_index=ignore_index)
        weights = weights_on(logits)
        share = torch.ones_like(regions.truth[..., 0]) if weights is None else weights.expand(regions.truth.shape[:2])
        if classes == "present":
            share = share.where(regions.truth.sum(2) > 0, 0)
        each = (value(regions) * share).sum(1) / share.sum(1).where(share.sum(1) > 0, 1)  # [R]
        return LossSum((each * regions.images).sum(), regions.images.sum())

    return loss


def _regions(logits: Tensor, target: Tensor, *, alone: bool, raw: bool, per_image: bool, ignore_index: int) -> _Regions:
    truth = per_tag(logits, ignored(target, ignore_index))
    valid = ~truth.isnan()
    if not alone:
        valid = valid.all(1, keepdim=True).expand_as(truth)
    logits = logits.float()
    score = logits if raw else logits.sigmoid() if alone else logits.softmax(1)
    images = valid.flatten(1).any(1).float()
    score, truth, valid = (tensor.flatten(2) if tensor.ndim > 2 else tensor.unsqueeze(2)
                           for tensor in (score, truth.where(valid, 0), valid))  # fmt: skip
    if per_image:
        return _Regions(score, truth, valid, images)
    score, truth, valid = (tensor.transpose(0, 1).flatten(1).unsqueeze(0) for tensor in (score, truth, valid))
    return _Regions(score, truth, valid, images.sum().unsqueeze(0))


def _overlap(*, false_positive: float, false_negative: float, smooth: float, log: bool) -> Callable[[_Regions], Tensor]:
    check_number("smooth", smooth, "(0, inf)")

    def value(regions: _Regions) -> Tensor:
        score = regions.score.where(regions.valid, 0)
        inside = (score * regions.truth).sum(2)
        wrong, missed = score.sum(2) - inside, regions.truth.sum(2) - inside
        index = (inside + smooth) / (inside + false_positive * wrong + false_negative * missed + smooth)
        return -index.log() if log else 1 - index

    return value


def _lovasz(regions: _Regions, *, hinge: bool = False) -> Tensor:
    """Return the Lovasz extension [R, K] of 1 - IoU of each class at its errors."""
    score, truth, valid = regions.score, regions.truth, regions.valid
    errors = 1 - score * (2 * truth - 1) if hinge else (truth - score).abs()
    order = errors.detach().where(valid, -torch.inf).argsort(2, descending=True)  # ignored pixels come last
    errors = errors.where(valid, 0).gather(2, order)
    truth = truth.gather(2, order)
    truth = truth.double() if truth.shape[2] > _EXACT else truth
    all_of_it = truth.sum(2, keepdim=True)
    overlap = (all_of_it - truth.cumsum(2)) / (all_of_it + (1 - truth).cumsum(2))
    slope = torch.diff(1 - overlap, dim=2, prepend=torch.zeros_like(all_of_it))
    return ((errors.relu() if hinge else errors) * slope).sum(2).float()
