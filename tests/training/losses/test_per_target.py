from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench import registry
from kbench.errors import ConfigError, TrainingError
from kbench.training.losses.per_target import bce, cross_entropy, focal
from kbench.training.losses.regression import huber, l1, mse, smooth_l1

WEIGHTS = [0.5, 2.0, 1.0, 3.0]


def batch(rows: int = 6, *, dense: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 4, 3, 2) if dense else (rows, 4)
    logits = 3 * torch.randn(shape, generator=generator)
    return logits, torch.randint(0, 4, (rows, *shape[2:]), generator=generator)


def tags(logits: torch.Tensor, *, unknown: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 2, logits.shape, generator=generator).float()
    if unknown:
        target[torch.rand(logits.shape, generator=generator) < 0.2] = torch.nan
    return target


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs(dense: bool, smoothing: float, weights: list[float] | None) -> None:
    logits, target = batch(dense=dense)
    target[0] = -100
    ours = cross_entropy(label_smoothing=smoothing, class_weights=weights)(logits, target).mean()
    theirs = F.cross_entropy(
        logits, target, label_smoothing=smoothing, weight=None if weights is None else torch.tensor(weights)
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_cross_entropy_of_soft_targets_is_torchs() -> None:
    logits, _ = batch()
    target = torch.rand(6, 4).softmax(1)
    ours = cross_entropy(label_smoothing=0.1)(logits, target).mean()
    assert ours.item() == pytest.approx(F.cross_entropy(logits, target, label_smoothing=0.1).item(), rel=1e-6)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_a_one_hot_target_equals_its_class_index(name: str, dense: bool) -> None:
    logits, target = batch(dense=dense)
    params = {"label_smoothing": 0.1, "class_weights": WEIGHTS} if name == "cross_entropy" else {"alpha": WEIGHTS}
    loss = registry.build("loss", name, params)
    hard, soft = loss(logits, target), loss(logits, F.one_hot(target, 4).movedim(-1, 1).float())
    assert soft.total.item() == pytest.approx(hard.total.item(), rel=1e-5)
    assert soft.count.item() == pytest.approx(hard.count.item())


def test_an_ignored_index_beyond_the_classes_is_not_counted() -> None:
    logits, target = batch(dense=True)
    rest = cross_entropy(class_weights=WEIGHTS)(logits[1:], target[1:])
    target[0] = 255
    for loss in (
        cross_entropy(class_weights=WEIGHTS, ignore_index=255),
        focal(gamma=0, alpha=WEIGHTS, ignore_index=255),
    ):
        whole = loss(logits, target)
        assert whole.total.item() == pytest.approx(rest.total.item(), rel=1e-5)
        assert whole.count.item() == pytest.approx(rest.count.item(), rel=1e-5)


@pytest.mark.parametrize("pos_weight", [None, 3.0, WEIGHTS])
@pytest.mark.parametrize("dense", [False, True])
def test_bce_is_torchs(dense: bool, pos_weight) -> None:
    logits, _ = batch(dense=dense)
    target = tags(logits, unknown=False)
    ours = bce(pos_weight=pos_weight)(logits, target)
    weight = None if pos_weight is None else torch.tensor(pos_weight).view(-1, *[1] * (logits.ndim - 2))
    theirs = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    assert ours.count.item() == logits.numel()


def test_label_smoothing_of_bce_moves_targets_towards_a_half() -> None:
    logits, _ = batch()
    target = tags(logits, unknown=False)
    theirs = F.binary_cross_entropy_with_logits(logits, target * 0.8 + 0.1)
    assert bce(label_smoothing=0.2)(logits, target).mean().item() == pytest.approx(theirs.item(), rel=1e-6)


def test_unknown_tags_are_neither_summed_nor_counted() -> None:
    logits, _ = batch()
    target = tags(logits)
    known = ~target.isnan()
    theirs = F.binary_cross_entropy_with_logits(logits[known], target[known])
    ours = bce()(logits, target)
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    assert ours.count.item() == known.sum().item()


def test_bce_takes_class_indices_as_one_hot_rows() -> None:
    logits, target = batch()
    one_hot = bce()(logits, F.one_hot(target, 4).float())
    assert bce()(logits, target).total.item() == pytest.approx(one_hot.total.item())
    target[0] = -100
    assert bce()(logits, target).count.item() == one_hot.count.item() - 4


def test_bce_takes_a_class_index_of_one_output_as_its_tag() -> None:
    logits, index = torch.randn(5, 1), torch.tensor([0, 1, 1, 0, -100])
    theirs = F.binary_cross_entropy_with_logits(logits[:4, 0], index[:4].float())
    assert bce()(logits, index).mean().item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_with_gamma_0_is_cross_entropy(dense: bool, weights: list[float] | None) -> None:
    logits, target = batch(dense=dense)
    target[0] = -100
    ours, theirs = focal(gamma=0, alpha=weights)(logits, target), cross_entropy(class_weights=weights)(logits, target)
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=1e-5)


def test_focal_of_tags_with_gamma_0_is_bce() -> None:
    logits, _ = batch()
    target = tags(logits)
    ours, theirs = focal(gamma=0, multi_label=True)(logits, target), bce()(logits, target)
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=1e-6)


def test_focal_is_its_formula() -> None:
    logits, target = batch()
    p = logits.softmax(1)[torch.arange(6), target]
    theirs = (-((1 - p) ** 2) * p.log()).mean()
    assert focal()(logits, target).mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_focal_of_tags_is_torchvisions() -> None:
    from torchvision.ops import sigmoid_focal_loss

    logits, _ = batch()
    target = tags(logits, unknown=False)
    theirs = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="mean")
    ours = focal(alpha=0.25, multi_label=True)(logits, target)
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_focal_of_tags_does_not_count_the_class_that_is_ignored(dtype: torch.dtype) -> None:
    logits, target = batch(dense=True)
    known = torch.rand(target.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    loss = focal(multi_label=True, alpha=0.25, ignore_index=255)
    ours = loss(logits, target.where(known, 255).to(dtype))
    one_hot = F.one_hot(target, 4).movedim(-1, 1).float().where(known.unsqueeze(1), torch.nan)
    theirs = loss(logits, one_hot)
    assert ours.count == theirs.count == 4 * known.sum()
    assert ours.total.item() == pytest.approx(theirs.total.item(), rel=1e-6)
    single = loss(logits[:, :1], (target % 2).where(known, 255).to(dtype))
    assert single.count == known.sum()


def test_a_detached_factor_weighs_the_gradient_of_tags_too() -> None:
    logits, _ = batch()
    target = tags(logits, unknown=False)
    logits.requires_grad_(True)
    missed = torch.where(target > 0.5, 1 - logits.detach().sigmoid(), logits.detach().sigmoid())
    (ours,) = torch.autograd.grad(focal(multi_label=True, detach_factor=True)(logits, target).total, logits)
    weighted = (missed**2 * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum()
    (theirs,) = torch.autograd.grad(weighted, logits)
    torch.testing.assert_close(ours, theirs)
    (full,) = torch.autograd.grad(focal(multi_label=True)(logits, target).total, logits)
    assert not torch.allclose(ours, full)


def test_a_detached_factor_weighs_the_gradient_of_cross_entropy() -> None:
    logits, target = batch()
    logits.requires_grad_(True)
    p = logits.detach().softmax(1)[torch.arange(6), target]
    (ours,) = torch.autograd.grad(focal(detach_factor=True)(logits, target).total, logits)
    weighted = ((1 - p) ** 2 * F.cross_entropy(logits, target, reduction="none")).sum()
    (theirs,) = torch.autograd.grad(weighted, logits)
    (full,) = torch.autograd.grad(focal()(logits, target).total, logits)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, full, atol=1e-3)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (l1(), F.l1_loss),
        (mse(), F.mse_loss),
        (huber(delta=0.5), lambda x, y: F.huber_loss(x, y, delta=0.5)),
        (smooth_l1(beta=0.5), lambda x, y: F.smooth_l1_loss(x, y, beta=0.5)),
        (smooth_l1(beta=0), F.l1_loss),
    ],
)
def test_a_regression_loss_is_torchs_over_known_targets(loss, reference) -> None:
    logits, _ = batch(dense=True)
    target = logits + tags(logits) * 2 - 0.7
    known = ~target.isnan()
    assert loss(logits, target).mean().item() == pytest.approx(reference(logits[known], target[known]).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_targets_of_another_precision_give_a_float32_loss(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 4)
    for loss in (cross_entropy(), bce(), focal(), l1(), huber()):
        assert loss(logits, torch.full((3, 4), 0.25, dtype=dtype)).total.dtype == torch.float32


def test_a_regression_target_without_the_output_axis_is_not_broadcast() -> None:
    target = torch.arange(5.0)
    assert mse()(target.unsqueeze(1) + 1, target).mean().item() == 1


ACCUMULATED = [
    ("cross_entropy", {"class_weights": WEIGHTS, "label_smoothing": 0.1}, "index"),
    ("cross_entropy", {}, "soft"),
    ("bce", {"pos_weight": WEIGHTS}, "tags"),
    ("focal", {"alpha": WEIGHTS}, "index"),
    ("focal", {"multi_label": True}, "tags"),
    ("l1", {}, "tags"),
    ("mse", {}, "tags"),
    ("huber", {}, "tags"),
    ("smooth_l1", {}, "tags"),
]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 17), st.integers(1, 5), st.integers(0, 1000), st.sampled_from(ACCUMULATED))
def test_parts_of_a_batch_add_up_to_the_whole(rows: int, size: int, seed: int, case: tuple[str, dict, str]) -> None:
    name, params, kind = case
    logits, target = batch(rows, dense=bool(seed % 2), seed=seed)
    if kind == "index":
        target[seed % rows] = -100
    else:
        target = tags(logits)
    logits.requires_grad_(True)
    loss = registry.build("loss", name, params)
    whole = loss(logits, target)
    parts = [loss(logits[at : at + size], target[at : at + size]) for at in range(0, rows, size)]
    total, count = sum(part.total for part in parts), sum(part.count for part in parts)
    assert float(count) == pytest.approx(float(whole.count), rel=1e-6)
    assert float(total.detach()) == pytest.approx(float(whole.total.detach()), rel=1e-6, abs=1e-6)
    (ours,) = torch.autograd.grad(total, logits)
    (theirs,) = torch.autograd.grad(whole.total, logits)
    assert torch.allclose(ours, theirs, atol=1e-6)


EVERY = [
    (cross_entropy(class_weights=WEIGHTS), "index"),
    (cross_entropy(label_smoothing=0.1), "soft"),
    (bce(pos_weight=2.0, label_smoothing=0.1), "tags"),
    (focal(gamma=0.5), "index"),
    (focal(gamma=0.5), "soft"),
    (focal(gamma=0.5, multi_label=True), "tags"),
    (l1(), "tags"),
    (mse(), "tags"),
    (huber(), "tags"),
    (smooth_l1(), "tags"),
]


@pytest.mark.parametrize(("loss", "kind"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_half_precision_logits_give_float32_losses_and_finite_gradients(loss, kind: str, dtype) -> None:
    logits = torch.tensor([[6e4, -6e4, 0, 1], [-6e4, 6e4, 1, 0], [0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 0, -100]) if kind == "index" else tags(logits)
    if kind == "soft":
        target = F.one_hot(torch.tensor([0, 0, 1]), 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(logits, target)
    assert result.total.dtype == result.count.dtype == torch.float32
    assert result.total.isfinite()
    # 1e-5: the gradient of a mean, so that it fits float16 before the scaler enlarges it
    (gradient,) = torch.autograd.grad(result.total * 1e-5, logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("loss", "kind"), EVERY)
def test_a_batch_without_a_known_target_has_loss_0_and_gradient_0(loss, kind: str) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    target = torch.full((3,), -100) if kind == "index" else torch.full((3, 4), torch.nan)
    result = loss(logits, target)
    assert result.count.item() == 0
    assert result.mean().item() == 0
    result.mean().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0


@pytest.mark.parametrize(("loss", "kind"), EVERY)
def test_no_value_is_read_back_from_the_device(loss, kind: str) -> None:
    logits = torch.zeros(3, 4, 5, device="meta", requires_grad=True)  # a device whose values cannot be read
    shape = (3, 5) if kind == "index" else (3, 4, 5)
    result = loss(logits, torch.zeros(shape, dtype=torch.int64 if kind == "index" else torch.float32, device="meta"))
    result.mean().backward()
    assert result.count.device.type == "meta"


def test_balanced_class_weights_are_sklearns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 3], [5, 1, 14])
    counts = np.bincount(labels, minlength=4)
    given_, by_hand = (
        registry.build("loss", "cross_entropy", {"class_weights": "balanced"}, _counts=counts, _rows=20),
        compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels),
    )
    logits, target = batch()
    target[target == 2] = 0
    weights = [by_hand[0], by_hand[1], 1.0, by_hand[2]]
    expected = cross_entropy(class_weights=weights)(logits, target)
    assert given_(logits, target).mean().item() == pytest.approx(expected.mean().item(), rel=1e-6)


def test_a_balanced_pos_weight_is_negative_rows_over_positive_rows() -> None:
    logits, _ = batch()
    target = tags(logits)
    ours = registry.build("loss", "bce", {"pos_weight": "balanced"}, _counts=np.array([2, 5, 0, 10]), _rows=10)
    expected = bce(pos_weight=[4.0, 1.0, 1.0, 0.0])(logits, target)
    assert ours(logits, target).total.item() == pytest.approx(expected.total.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("cross_entropy", {"label_smoothing": 1.0}),
        ("cross_entropy", {"class_weights": [1.0, -1.0]}),
        ("cross_entropy", {"class_weights": "balanced"}),
        ("bce", {"pos_weight": "balanced"}),
        ("bce", {"pos_weight": "heavy"}),
        ("focal", {"gamma": -1}),
        ("focal", {"alpha": 0.25}),
        ("focal", {"alpha": 2.0, "multi_label": True}),
        ("huber", {"delta": 0}),
        ("smooth_l1", {"beta": -1}),
    ],
)
def test_a_wrong_parameter_is_an_error(name: str, params: dict) -> None:
    with pytest.raises(ConfigError):
        registry.build("loss", name, params)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (cross_entropy(), torch.zeros(6, 2, dtype=torch.int64)),
        (cross_entropy(), torch.zeros(6, 3)),
        (bce(), torch.zeros(6)),
        (focal(multi_label=True), torch.zeros(6, 3)),
        (mse(), torch.zeros(6, dtype=torch.int64)),
    ],
)
def test_targets_of_another_shape_are_an_error(loss, target: torch.Tensor) -> None:
    with pytest.raises(TrainingError, match="do not fit outputs"):
        loss(torch.zeros(6, 4), target)


def test_a_wrong_number_of_class_weights_is_an_error() -> None:
    with pytest.raises(ConfigError, match="class_weights has 3 values"):
        cross_entropy(class_weights=[1.0, 1.0, 1.0])(*batch())


@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_a_class_that_is_not_counted_stands_beside_pixels_that_are_unknown(loss) -> None:
    logits, target = batch(dense=True)
    target[0, 0] = -100
    expected = loss()(logits, target.where(target != 2, -100))
    found = loss(ignore_index=2)(logits, target)
    torch.testing.assert_close(found.total, expected.total)
    assert found.count == expected.count == ((target != 2) & (target >= 0)).sum()
