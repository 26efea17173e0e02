"""Losses as sums over valid targets, so that accumulated micro-batches equal the large batch.

A loss takes logits and targets and returns a `LossSum`; the loss of an update is the sum of its micro-batches'
totals over the sum of their counts. Unknown targets (NaN, or `ignore_index`) add to neither. Everything is
computed in float32, also under autocast.

A loss that is no sum over targets but one value of a region (`regions.py`) or of several losses (`sum` in
`regression.py`) counts images: its total is the mean times their number, and accumulated batches give the mean of
their values, weighted by images.

To add one, write a factory here with `@register("loss")` whose keywords are what a YAML may set and which returns
a function of logits [B, K, ...] and targets. Keywords with `_` in front are given by kbench when they are named:
`_counts` ([K] training rows, or pixels, per class or tag), `_rows` (training rows, or known pixels), `_task` and
`_units` (of targets that are learned standardised); the counts are those of `FoldContext.balance`. A weight of classes
that is found from them is a word of `ClassWeights` and a line of `class_weights_of`, which every loss with
`class_weights` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kbench.errors import ConfigError, TrainingError, check_number
from kbench.registry import register
from kbench.tasks import exclusive


class LossSum(NamedTuple):
    """What one batch adds to the loss of an update.

    Attributes:
        total: float32 scalar with a gradient, the sum over valid targets.
        count: float32 scalar, their number, or the sum of their weights.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count on purpose

    def mean(self) -> Tensor:
        """Return total over count; 0, with zero gradients, where nothing was valid."""
        return self.total / torch.where(self.count > 0, self.count, 1.0)


Loss = Callable[[Tensor, Tensor], LossSum]
ClassWeights = list[float] | Literal["balanced"] | None
_UNKNOWN = -100  # class index that is not counted; what PyTorch takes it for


@register("loss")
def cross_entropy(
    *,
    label_smoothing: float = 0.0,
    class_weights: ClassWeights = None,
    ignore_index: int = -100,
    _counts: np.ndarray | None = None,
    _rows: int | None = None,
) -> Loss:
    """Return softmax cross entropy, torch's `cross_entropy`; with weights, the weighted mean.

    Targets are int64 class indices [B, ...] or float class probabilities [B, K, ...], as mixup makes them: a
    one-hot row equals its index, also with weights; a row with NaN is not counted.

    Args:
        label_smoothing: share of a target that is spread evenly over the classes (Szegedy et al. 2015).
        class_weights: one weight per class, or `balanced`: rows / (classes * rows of the class).
        ignore_index: class index that is not counted.

    Raises:
        ConfigError: a value is out of range, or `balanced` without known class counts.
    """
    check_number("label_smoothing", label_smoothing, "[0, 1)")
    check_number("ignore_index", ignore_index, "(-inf, inf)", whole=True)
    class_weights = class_weights_of(class_weights, _counts, _rows)
    weights_on = weights_on_device("class_weights", class_weights)

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        weights = weights_on(logits)
        if target.is_floating_point():
            log_p, target, valid = _soft(logits, target)
            smooth = target * (1 - label_smoothing) + label_smoothing / logits.shape[1]
            each = -(_columns(weights, logits) * smooth * log_p).sum(dim=1, keepdim=True)
            return LossSum(each.where(valid, 0).sum(), (_columns(weights, logits) * target).sum())
        target = ignored(_indices(logits, target), ignore_index)
        each = F.cross_entropy(
            logits.float(),
            target,
            weight=weights,
            label_smoothing=label_smoothing,
            reduction="none",
        )
        return LossSum(each.sum(), _weight_of(target, target != _UNKNOWN, weights).sum())

    return loss


@register("loss")
def bce(
    *,
    pos_weight: float | list[float] | Literal["balanced"] | None = None,
    label_smoothing: float = 0.0,
    _counts: np.ndarray | None = None,
    _rows: int | None = None,
) -> Loss:
    """Return sigmoid cross entropy, torch's `binary_cross_entropy_with_logits`.

    Targets are float [B, K, ...] in 0..1, NaN where unknown; class indices [B, ...] are taken as one-hot rows,
    negative ones as unknown.

    Args:
        pos_weight: weight of positive targets, for all tags or per tag, or `balanced`: negative rows / positive rows.
        label_smoothing: targets move this share of the way to 0.5.

    Raises:
        ConfigError: a value is out of range, or `balanced` without known tag counts.
    """
    check_number("label_smoothing", label_smoothing, "[0, 1)")
    if pos_weight == "balanced":
        pos_weight = _balanced_pos_weight(_counts, _rows)
    weights_on = weights_on_device("pos_weight", pos_weight)

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        target = per_tag(logits, target)
        valid = ~target.isnan()
        smooth = target.where(valid, 0) * (1 - label_smoothing) + label_smoothing / 2
        weights = weights_on(logits)
        weights = weights if weights is None else _columns(weights, logits)
        each = F.binary_cross_entropy_with_logits(logits.float(), smooth, pos_weight=weights, reduction="none")
        return summed(each, valid)

    return loss


@register("loss")
def focal(
    *,
    gamma: float = 2.0,
    alpha: float | list[float] | None = None,
    multi_label: bool | None = None,
    detach_factor: bool = False,
    ignore_index: int = -100,
    _task: str | None = None,
) -> Loss:
    """Return focal loss, `-(1 - p_t)^gamma * log p_t` (Lin et al. 2017, equations 4 and 5).

    With gamma 0 it is `cross_entropy` with alpha as class weights, or, with `multi_label`, `bce`. Targets are those
    of these two.

    Args:
        gamma: how much less a well-predicted target counts.
        alpha: weight per class; with `multi_label` the weight of positive targets in 0..1, those of negative
            ones being `1 - alpha`, for all tags or per tag.
        multi_label: sigmoid per tag instead of softmax over the classes; by default what the task and the number
            of outputs say.
        detach_factor: no gradient through `(1 - p_t)^gamma`, as Signate's code had it.
        ignore_index: class index that is not counted.

    Raises:
        ConfigError: a value is out of range.
    """
    check_number("gamma", gamma, "[0, inf)")
    check_number("ignore_index", ignore_index, "(-inf, inf)", whole=True)
    single = isinstance(alpha, float | int)
    if single and not (multi_label or (multi_label is None and _task not in (None, "single_label"))):
        raise _no_list(alpha)
    weights_on = weights_on_device("alpha", alpha, "[0, 1]" if single or multi_label else "[0, inf)")

    def modulate(miss: Tensor) -> Tensor:
        factor = miss.clamp_min(1e-12) ** gamma  # a power below 1 has no gradient at 0
        return factor.detach() if detach_factor else factor

    def softmax_loss(logits: Tensor, target: Tensor) -> LossSum:
        if single:
            raise _no_list(alpha)
        weights = weights_on(logits)
        if target.is_floating_point():
            log_p, target, _ = _soft(logits, target)
            share = _columns(weights, logits) * target
        else:
            target = ignored(_indices(logits, target), ignore_index)
            valid = target != _UNKNOWN
            log_p = F.log_softmax(logits.float(), dim=1)
            log_p = log_p.gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
            share = _weight_of(target, valid, weights)
        miss = -torch.expm1(log_p)  # 1 - p, exact near p = 1
        return LossSum(-(share * modulate(miss) * log_p).sum(), share.sum())

    def sigmoid_loss(logits: Tensor, target: Tensor) -> LossSum:
        target = per_tag(logits, ignored(target, ignore_index))
        valid = ~target.isnan()
        target, logits = target.where(valid, 0), logits.float()
        miss = logits.sigmoid() * (1 - target) + (-logits).sigmoid() * target
        each = modulate(miss) * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        weights = weights_on(logits)
        if weights is not None:
            weights = _columns(weights, logits)
            each = each * (weights * target + (1 - weights) * (1 - target))
        return summed(each, valid)

    def loss(logits: Tensor, target: Tensor) -> LossSum:
        one_by_one = each_alone(multi_label, _task, logits.shape[1])
        return sigmoid_loss(logits, target) if one_by_one else softmax_loss(logits, target)

    return loss


def _no_list(alpha: object) -> ConfigError:
    return ConfigError(f"alpha is '{alpha}'", "a list with a weight per class", "write `alpha: [...]` or remove it")


def each_alone(multi_label: bool | None, task: str | None, n_outputs: int) -> bool:
    """Return whether a loss judges outputs one by one (sigmoid) and not as one choice among classes (softmax).

    Args:
        multi_label: what the YAML says; None asks the task.
        task: of the competition, or None.
        n_outputs: number of outputs; a single one is a yes or no.
    """
    if multi_label is not None:
        return multi_label
    return n_outputs == 1 or not (task is None or exclusive(task, n_outputs))


def summed(each: Tensor, valid: Tensor) -> LossSum:
    """Return the sum of a loss [B, K, ...] over valid targets, and their number."""
    return LossSum(each.where(valid, 0).sum(), valid.sum().float())


def _soft(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities, targets [B, K, ...] with 0 in rows with NaN, and [B, 1, ...]: rows without NaN."""
    target = like(logits, target)
    valid = ~target.isnan().any(dim=1, keepdim=True)
    return F.log_softmax(logits.float(), dim=1), target.where(valid, 0), valid


def ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Return targets where the class index that is not counted is -100, which `per_tag` takes as unknown."""
    return target if target.is_floating_point() else target.long().where(target != ignore_index, _UNKNOWN)


def per_tag(logits: Tensor, target: Tensor) -> Tensor:
    """Return float targets [B, K, ...]; class indices become one-hot, negative ones NaN."""
    if target.ndim == logits.ndim - 1 and not target.is_floating_point():
        index = target.unsqueeze(1)
        classes = torch.arange(logits.shape[1], device=target.device).view(1, -1, *[1] * (target.ndim - 1))
        tags = index == classes if logits.shape[1] > 1 else index  # one output: the index is the tag, 0 or 1
        target = tags.float().where(index >= 0, torch.nan)
    return like(logits, target)


def like(logits: Tensor, target: Tensor) -> Tensor:
    """Return float32 targets of the shape of the logits; with one output the targets may lack its axis."""
    if target.ndim == logits.ndim - 1 and logits.shape[1] == 1:
        target = target.unsqueeze(1)
    if target.shape != logits.shape:
        raise _shape_error(logits, target)
    return target.float()


def _indices(logits: Tensor, target: Tensor) -> Tensor:
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise _shape_error(logits, target)
    return target.long()


def _weight_of(target: Tensor, valid: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weight of each class index, 0 where it is not valid."""
    return valid.float() if weights is None else weights[target.where(valid, 0)].where(valid, 0)


def _columns(weights: Tensor | None, logits: Tensor) -> Tensor:
    """Return weights per class as [1, K, 1, ...]; 1 where there are none."""
    weights = logits.new_ones(1, dtype=torch.float32) if weights is None else weights
    return weights.view(1, -1, *[1] * (logits.ndim - 2))


def weights_on_device(
    name: str, values: float | Sequence[float] | None, interval: str = "[0, inf)"
) -> Callable[[Tensor], Tensor | None]:
    """Return a function that gives the weights [K] on the device of the logits; copied there once."""
    if values is None:
        return lambda logits: None
    per_class = isinstance(values, Sequence) and not isinstance(values, str)
    numbers: Sequence[float] = values if per_class else [values]  # type: ignore[assignment,list-item]
    for value in numbers:
        check_number(name, value, interval)
    weights = torch.tensor(numbers, dtype=torch.float32)
    copies: dict[torch.device, Tensor] = {}

    def on(logits: Tensor) -> Tensor:
        if per_class and len(weights) != logits.shape[1]:
            raise ConfigError(
                f"{name} has {len(weights)} values", f"{logits.shape[1]}, one per output", f"correct `{name}:`"
            )
        if logits.device not in copies:
            copies[logits.device] = weights.to(logits.device)
        return copies[logits.device]

    return on


def class_weights_of(weights: ClassWeights, counts: np.ndarray | None, rows: int | None) -> list[float] | None:
    """Return what a YAML says of the weights of classes as one number per class, or None.

    Args:
        weights: numbers, or how they are found.
        counts: [K] training rows, or pixels, per class.
        rows: training rows, or known pixels.

    Raises:
        ConfigError: they are to be found, and the counts are not known.
    """
    return _balanced_weights(counts, rows) if weights == "balanced" else weights


def _balanced_weights(counts: np.ndarray | None, rows: int | None) -> list[float]:
    """Return a weight per class, so that all classes weigh the same; 1 for a class no training row has.

    Raises:
        ConfigError: the counts are not known.
    """
    counts, _ = _known("class_weights", counts, rows)
    present = counts > 0
    weights = counts.sum() / (present.sum() * np.where(present, counts, 1))
    return [float(weight) for weight in np.where(present, weights, 1.0)]


def _balanced_pos_weight(counts: np.ndarray | None, rows: int | None) -> list[float]:
    counts, rows = _known("pos_weight", counts, rows)
    weights = np.where(counts > 0, (rows - counts) / np.where(counts > 0, counts, 1), 1.0)
    return [float(weight) for weight in weights]


def _known(name: str, counts: np.ndarray | None, rows: int | None) -> tuple[np.ndarray, int]:
    if counts is None or rows is None:
        raise ConfigError(
            f"{name} is 'balanced' and the training rows of each class are not known",
            "a competition whose targets are classes or tags",
            f"write `{name}: [...]`, a number per class",
        )
    return np.asarray(counts, dtype=np.float64), rows


def _shape_error(logits: Tensor, target: Tensor) -> TrainingError:
    return TrainingError(
        f"targets of shape '{list(target.shape)}' do not fit outputs of shape '{list(logits.shape)}'",
        "one target per output, or one class index in place of the outputs of a row or pixel",
        "choose a loss of the competition's task: cross_entropy for single_label, bce for multi_label",
    )
