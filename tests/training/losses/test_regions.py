from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch import losses as smp
from torch import Tensor

from kbench import registry
from kbench.errors import ConfigError, TrainingError
from kbench.training.losses.per_target import cross_entropy
from kbench.training.losses.regions import dice, jaccard, lovasz, tversky
from kbench.training.losses.regression import sum_of_losses

NAMES = ["jaccard", "dice", "tversky", "lovasz"]
CLASSES = 4


def masks(rows: int = 3, *, seed: int = 0, size: tuple[int, int] = (5, 6)) -> tuple[Tensor, Tensor]:
    """Return logits [B, 4, H, W] and a class per pixel; all classes are there."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((rows, CLASSES, *size), generator=generator)
    target = torch.randint(0, CLASSES, (rows, *size), generator=generator)
    target[:, 0, :CLASSES] = torch.arange(CLASSES)
    return logits, target


def tags(rows: int = 3, *, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((rows, classes, 5, 6), generator=generator)
    return logits, torch.randint(0, 2, logits.shape, generator=generator).float()


def value(loss, *given: Tensor) -> float:
    return float(loss(*given).mean())


# -- formulas -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_sum_with_jaccard_is_signates_loss(weight: float) -> None:
    logits, target = masks()
    expected = (1 - weight) * F.nll_loss(F.log_softmax(logits, 1), target)
    for of in range(CLASSES):
        truth, p = (target == of).float(), logits.softmax(1)[:, of]
        inside, both = (p * truth).sum(), p.sum() + truth.sum()
        expected = expected - weight / CLASSES * torch.log((inside + 1e-15) / (both - inside + 1e-15))
    parts = [{"name": "cross_entropy", "weight": 1 - weight}, {"name": "jaccard", "weight": weight}]
    assert value(sum_of_losses(parts=parts), logits, target) == pytest.approx(float(expected), rel=1e-5)


def test_signates_loss_has_signates_gradient() -> None:
    logits, target = masks()
    logits.requires_grad_(True)
    truth = F.one_hot(target, CLASSES).movedim(-1, 1).float()
    inside, both = ((logits.softmax(1) * truth).sum((0, 2, 3)), (logits.softmax(1) + truth).sum((0, 2, 3)))
    expected = 0.7 * F.cross_entropy(logits, target) - 0.3 * torch.log(inside / (both - inside)).mean()
    parts = [{"name": "cross_entropy", "weight": 0.7}, {"name": "jaccard", "weight": 0.3}]
    (theirs,) = torch.autograd.grad(expected, logits)
    (ours,) = torch.autograd.grad(sum_of_losses(parts=parts)(logits, target).mean(), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("ours", "theirs"), [
    (jaccard(log=True), smp.JaccardLoss("multiclass", log_loss=True, eps=1e-7)),
    (jaccard(log=False), smp.JaccardLoss("multiclass")),
    (dice(), smp.DiceLoss("multiclass")),
    (dice(log=True), smp.DiceLoss("multiclass", log_loss=True)),
    (tversky(alpha=0.3, beta=0.7), smp.TverskyLoss("multiclass", alpha=0.3, beta=0.7)),
    (lovasz(), smp.LovaszLoss("multiclass")),
    (lovasz(per_image=True), smp.LovaszLoss("multiclass", per_image=True)),
])  # fmt: skip
@pytest.mark.parametrize("ignored", [False, True])
def test_softmax_losses_are_those_of_smp(ours, theirs, ignored: bool) -> None:
    logits, target = masks()
    if ignored:
        target[:, 3] = -100
        theirs.ignore_index = -100
    assert value(ours, logits, target) == pytest.approx(float(theirs(logits, target)), rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [
    (jaccard(log=False), smp.JaccardLoss("binary")),
    (dice(), smp.DiceLoss("binary")),
    (tversky(alpha=0.3, beta=0.7), smp.TverskyLoss("binary", alpha=0.3, beta=0.7)),
    (lovasz(), smp.LovaszLoss("binary")),
    (lovasz(per_image=True), smp.LovaszLoss("binary", per_image=True)),
])  # fmt: skip
def test_a_single_output_is_a_yes_or_no(ours, theirs) -> None:
    logits, target = tags(classes=1)
    expected = float(theirs(logits, target))
    assert value(ours, logits, target) == pytest.approx(expected, rel=1e-5)
    assert value(ours, logits, target[:, 0].long()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [
    (jaccard(log=False, multi_label=True), smp.JaccardLoss("multilabel")),
    (dice(multi_label=True), smp.DiceLoss("multilabel")),
])  # fmt: skip
def test_overlapping_classes_are_judged_one_by_one(ours, theirs) -> None:
    logits, target = tags()
    assert value(ours, logits, target) == pytest.approx(float(theirs(logits, target)), rel=1e-5)


def test_the_task_says_softmax_or_sigmoid() -> None:
    logits, target = tags()
    for name in (*NAMES, "focal"):
        by_task = registry.build("loss", name, {}, _task="multi_label_segmentation")
        by_hand = registry.build("loss", name, {"multi_label": True})
        assert value(by_task, logits, target) == value(by_hand, logits, target)
        one = registry.build("loss", name, {}, _task="segmentation")
        hand = registry.build("loss", name, {"multi_label": False})
        assert value(one, *masks()) == value(hand, *masks())
        assert value(one, *tags(classes=1)) == value(by_hand, *tags(classes=1))


def test_tversky_has_dice_and_jaccard_as_its_ends() -> None:
    given = masks()
    assert value(tversky(), *given) == pytest.approx(value(dice(), *given), rel=1e-6)
    plain = value(jaccard(log=False, classes="present"), *given)
    assert value(tversky(alpha=1, beta=1), *given) == pytest.approx(plain, rel=1e-6)


def test_a_lovasz_loss_of_certain_answers_is_1_minus_iou() -> None:
    _, target = masks()
    answer = target.roll(1, 0)
    logits = 1e4 * F.one_hot(answer, CLASSES).movedim(-1, 1).float()
    iou = [
        float(((answer == of) & (target == of)).sum() / ((answer == of) | (target == of)).sum())
        for of in range(CLASSES)
    ]
    assert value(lovasz(), logits, target) == pytest.approx(1 - np.mean(iou), rel=1e-5)


def test_a_lovasz_loss_of_sigmoids_of_certain_answers_is_1_minus_iou() -> None:
    answer, target = tags(seed=1)[1], tags()[1]
    iou = [float((answer * target)[:, of].sum() / (answer + target)[:, of].clamp_max(1).sum()) for of in range(CLASSES)]
    loss = lovasz(hinge=False, multi_label=True)
    assert value(loss, 1e4 * (2 * answer - 1), target) == pytest.approx(1 - np.mean(iou), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_classes_that_are_not_there_count_or_not(name: str) -> None:
    logits, target = masks()
    target[target == 2] = 1
    here = registry.build("loss", name, {"classes": "present"})
    every = registry.build("loss", name, {"classes": "all"})
    weighted = registry.build("loss", name, {"classes": "all", "class_weights": [1.0, 1.0, 0.0, 1.0]})
    assert value(here, logits, target) == pytest.approx(value(weighted, logits, target), rel=1e-6)
    assert value(every, logits, target) > value(here, logits, target)


@pytest.mark.parametrize("name", NAMES)
def test_class_weights_weigh_the_mean_and_are_balanced_by_pixels(name: str) -> None:
    given = masks()
    one_hot = [[float(of == other) for other in range(CLASSES)] for of in range(CLASSES)]
    alone = [value(registry.build("loss", name, {"class_weights": weights}), *given) for weights in one_hot]
    weights = np.array([3.0, 1.0, 0.5, 2.0])
    found = value(registry.build("loss", name, {"class_weights": weights.tolist()}), *given)
    assert found == pytest.approx(np.average(alone, weights=weights), rel=1e-5)
    balanced = registry.build("loss", name, {"class_weights": "balanced"}, _counts=1 / weights, _rows=99)
    assert value(balanced, *given) == pytest.approx(found, rel=1e-5)


# -- laws -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(NAMES), st.booleans(), st.booleans(), st.integers(0, 1000), st.floats(0.5, 30),
    st.sampled_from(["softmax", "sigmoid"]),
)  # fmt: skip
def test_the_truth_costs_less_than_its_opposite(
    name: str, per_image: bool, log: bool, seed: int, scale: float, way: str
) -> None:
    options = {"per_image": per_image, **({"log": log} if name in ("jaccard", "dice") else {})}
    loss = registry.build("loss", name, {**options, "multi_label": way == "sigmoid"})
    _, target = masks(seed=seed)
    truth = F.one_hot(target, CLASSES).movedim(-1, 1).float()
    right, wrong = (value(loss, sign * scale * (2 * truth - 1), target) for sign in (1, -1))
    assert right < wrong
    assert right > -1e-5


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([*NAMES, "cross_entropy", "focal", "sum"]), st.booleans(), st.integers(0, 1000),
    st.sampled_from(["softmax", "sigmoid", "one"]),
)  # fmt: skip
def test_ignored_pixels_change_nothing_and_learn_nothing(name: str, per_image: bool, seed: int, way: str) -> None:
    params: dict = {"per_image": per_image} if name in NAMES else {}
    if name == "sum":
        params = {"parts": ["jaccard", {"name": "lovasz", "per_image": per_image}, "dice"]}
    if name == "cross_entropy" and way != "softmax":
        name = "bce"
    task = "multi_label_segmentation" if way == "sigmoid" else "segmentation"
    loss = registry.build("loss", name, params, _task=task)
    logits, target = masks(seed=seed) if way == "softmax" else tags(seed=seed, classes=1 if way == "one" else CLASSES)
    generator = torch.Generator().manual_seed(seed)
    ignored = torch.rand(target.shape, generator=generator) < 0.3
    ignored[0] = True  # a whole image
    target = target.masked_fill(ignored, -100 if way == "softmax" else torch.nan)
    each = ignored.unsqueeze(1).expand_as(logits) if way == "softmax" else ignored
    other = logits.where(~each, 50 * torch.randn(logits.shape, generator=generator))
    first, second = logits.requires_grad_(True), other.requires_grad_(True)
    before, after = loss(first, target), loss(second, target)
    assert float(before.count) == float(after.count) > 0
    assert float(before.mean().detach()) == pytest.approx(float(after.mean().detach()), rel=1e-6)
    for of, found in ((first, before), (second, after)):
        (gradient,) = torch.autograd.grad(found.mean(), of)
        assert gradient.isfinite().all()
        assert gradient[each].abs().max() == 0
        assert gradient[~each].abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_another_ignored_index_is_ignored_as_minus_100_is(name: str) -> None:
    logits, target = masks()
    target[:, 2] = -100
    expected = value(registry.build("loss", name, {}), logits, target)
    changed = target.where(target >= 0, 255)
    assert value(registry.build("loss", name, {"ignore_index": 255}), logits, changed) == expected


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_add_up_image_by_image(name: str) -> None:
    logits, target = masks(5)
    target[1] = -100
    loss = registry.build("loss", name, {"per_image": True})
    whole = loss(logits, target)
    parts = [loss(logits[at : at + 2], target[at : at + 2]) for at in range(0, 5, 2)]
    assert float(whole.count) == sum(float(part.count) for part in parts) == 4
    assert float(whole.total) == pytest.approx(sum(float(part.total) for part in parts), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_one_region_and_counts_its_images(name: str) -> None:
    logits, target = masks(4)
    loss = registry.build("loss", name, {})
    found = loss(logits, target)
    flat = loss(logits.transpose(0, 1).flatten(1, 2)[None], target.flatten(0, 1)[None])
    assert float(found.count) == 4
    assert float(found.mean()) == pytest.approx(float(flat.mean()), rel=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "sum"])
@pytest.mark.parametrize("way", ["softmax", "sigmoid"])
def test_nothing_known_is_loss_0_and_gradient_0(name: str, way: str) -> None:
    params = {"parts": ["jaccard", "cross_entropy" if way == "softmax" else "bce"]} if name == "sum" else {}
    task = "segmentation" if way == "softmax" else "multi_label_segmentation"
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.full((2, 4, 5), -100) if way == "softmax" else torch.full((2, 3, 4, 5), torch.nan)
    found = registry.build("loss", name, params, _task=task)(logits, target)
    found.mean().backward()
    assert found.count.item() == 0
    assert found.mean().item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("name", [*NAMES, "sum"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_logits_give_float32_losses_and_finite_gradients(name: str, dtype) -> None:
    logits = (2e4 * torch.randn(2, 3, 4, 4)).clamp(-6e4, 6e4).to(dtype).requires_grad_(True)
    params = {"parts": ["jaccard", "lovasz", "cross_entropy"]} if name == "sum" else {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = registry.build("loss", name, params)(logits, torch.randint(0, 3, (2, 4, 4)))
    assert found.total.dtype == found.count.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found.mean(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [*NAMES, "sum"])
def test_no_value_is_read_back_from_the_device(name: str) -> None:
    params = {"parts": ["jaccard", "cross_entropy"]} if name == "sum" else {}
    logits = torch.zeros(2, 3, 4, 5, device="meta", requires_grad=True)
    found = registry.build("loss", name, params)(logits, torch.zeros(2, 4, 5, dtype=torch.int64, device="meta"))
    found.mean().backward()
    assert found.count.device.type == "meta"


# -- weighted sums --------------------------------------------------------------------------------------------


def test_a_sum_is_the_weighted_sum_of_means_and_counts_images() -> None:
    given = masks()
    parts = [{"name": "cross_entropy", "weight": 2, "class_weights": [1, 2, 3, 4]}, {"name": "dice", "weight": 0.5}]
    found = sum_of_losses(parts=[*parts, "focal"])(*given)
    expected = 2 * value(cross_entropy(class_weights=[1, 2, 3, 4]), *given) + 0.5 * value(dice(), *given)
    focal = value(registry.build("loss", "focal", {}), *given)
    assert float(found.mean()) == pytest.approx(expected + focal, rel=1e-6)
    assert float(found.count) == 3


def test_a_part_of_weight_0_is_not_computed() -> None:
    given = masks()
    parts = [{"name": "cross_entropy"}, {"name": "mse", "weight": 0}]  # mse has no such targets
    assert value(sum_of_losses(parts=parts), *given) == pytest.approx(value(cross_entropy(), *given), rel=1e-6)


def test_what_kbench_gives_reaches_the_parts() -> None:
    parts = [{"name": "cross_entropy", "class_weights": "balanced"}]
    given = masks()
    balanced = registry.build("loss", "sum", {"parts": parts}, _counts=np.array([1, 2, 4, 8]), _rows=15)
    expected = value(cross_entropy(class_weights=[8, 4, 2, 1]), *given)
    assert value(balanced, *given) == pytest.approx(expected, rel=1e-5)
    tagged = registry.build("loss", "sum", {"parts": ["dice"]}, _task="multi_label_segmentation")
    assert value(tagged, *tags()) == pytest.approx(value(dice(multi_label=True), *tags()), rel=1e-6)


@pytest.mark.parametrize(("parts", "where", "what"), [
    ([{"name": "jacard"}], "loss.parts.0", "unknown loss"),
    ([{"name": "cross_entropy"}, {"name": "jaccard", "smoth": 1}], "loss.parts.1.smoth", "no such parameter"),
    ([{"name": "jaccard", "log": 1}], "loss.parts.0.log", "valid boolean|true or false"),
    ([{"weight": 1}], "loss.parts.0", "a loss is meant"),
    ([{"name": "sum", "parts": [{"name": "x"}]}], "loss.parts.0.parts.0", "unknown loss"),
    ("jaccard", "loss.parts", "array"),
])  # fmt: skip
def test_a_wrong_part_of_a_sum_is_found_before_training(parts, where: str, what: str) -> None:
    problems = registry.bind("loss", "sum", {"parts": parts}, where="loss")
    assert [problem.where for problem in problems] == [where]
    assert re.search(what, problems[0].what)


def test_the_right_parts_of_a_sum_have_no_problem() -> None:
    parts = [{"name": "cross_entropy", "weight": 0.7}, {"name": "jaccard", "weight": 0.3, "log": False}, "dice"]
    assert registry.bind("loss", "sum", {"parts": parts}, where="loss", task="segmentation") == []


@pytest.mark.parametrize(("name", "params"), [
    ("jaccard", {"smooth": 0}), ("dice", {"class_weights": "balanced"}), ("dice", {"class_weights": [-1.0]}),
    ("tversky", {"alpha": -1}), ("tversky", {"gamma": 0}), ("sum", {"parts": []}),
    ("sum", {"parts": [{"name": "dice", "weight": 0}]}), ("sum", {"parts": [{"name": "dice", "weight": -1}]}),
    ("sum", {"parts": [{"name": "nope"}]}), ("lovasz", {"ignore_index": 0.5}),
])  # fmt: skip
def test_a_wrong_parameter_is_an_error(name: str, params: dict) -> None:
    with pytest.raises(ConfigError):
        registry.build("loss", name, params)


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_another_shape_are_an_error(name: str) -> None:
    with pytest.raises(TrainingError, match="do not fit outputs"):
        registry.build("loss", name, {})(torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 2, dtype=torch.int64))


def test_a_focal_loss_over_classes_needs_a_weight_per_class() -> None:
    loss = registry.build("loss", "focal", {"alpha": 0.25}, _task="segmentation")
    assert value(loss, *tags(classes=1)) > 0
    with pytest.raises(ConfigError, match="alpha"):
        loss(*masks())
